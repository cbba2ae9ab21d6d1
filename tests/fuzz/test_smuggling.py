"""Request smuggling, class by class: refused, or forwarded as messages that nobody can misread.

Each payload is sent whole and byte by byte, and ends with a request that an attacker would like to
hide or to have answered in the place of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest

from tests.fuzz.stage import Stage, check_answers, forward, heard_upstream
from tests.protocol.harness import BASE

HOST: Final = b"Host: localhost\r\n"
HIDDEN: Final = b"GET " + BASE + b"hidden HTTP/1.1\r\n" + HOST + b"\r\n"
GET: Final = b"GET " + BASE + b"x HTTP/1.1\r\n" + HOST
POST: Final = b"POST " + BASE + b"x HTTP/1.1\r\n" + HOST
CHUNKED: Final = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def coding(value: bytes, name: bytes = b"Transfer-Encoding:") -> bytes:
    """A request with a Transfer-Encoding that some read as chunked, and a length for the others."""
    return POST + b"Content-Length: 5\r\n" + name + value + b"\r\n\r\n0\r\n\r\n"


def alone(value: bytes, name: bytes = b"Transfer-Encoding:") -> bytes:
    """The same without a length."""
    return POST + name + value + b"\r\n\r\n0\r\n\r\n"


def length(value: bytes) -> bytes:
    return POST + b"Content-Length:" + value + b"\r\n\r\nabcde"


def line(start: bytes) -> bytes:
    return start + b"\r\n" + HOST + b"\r\n"


def hosts(*lines: bytes, target: bytes = BASE + b"x") -> bytes:
    return (
        b"GET " + target + b" HTTP/1.1\r\n" + b"".join(each + b"\r\n" for each in lines) + b"\r\n"
    )


#: Not a byte goes upstream.
REFUSED: Final = {
    "CL.TE": POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "TE.CL": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n1\r\nG\r\n0\r\n\r\n",
    "TE.TE, two fields": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    "TE.TE, the other way round": POST
    + b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE.0": b"OPTIONS " + BASE + b" HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: x\r\n\r\n" + HIDDEN,
    "CL and TE in HTTP/1.0": coding(b" chunked").replace(b"1.1", b"1.0"),
    "TE in HTTP/1.0": alone(b" chunked").replace(b"1.1", b"1.0"),
    **{
        f"TE {name}, {'with' if make is coding else 'without'} CL": make(value)
        for make in (coding, alone)
        for name, value in {
            "with a vertical tab": b" \x0bchunked",
            "with a form feed": b" \x0cchunked",
            "with a vertical tab behind": b" chunked\x0b",
            "with NUL": b" chunked\0",
            "with no-break space": b" \xa0chunked",
            "with high bytes": b" chunked\xff",
            "of identity": b" identity",
            "of chunked and identity": b" chunked, identity",
            "of identity and chunked": b" identity, chunked",
            "of gzip and chunked": b" gzip, chunked",
            "of chunked twice": b" chunked, chunked",
            "with a parameter": b" chunked;q=1",
            "with quotes": b' "chunked"',
            "with apostrophes": b" 'chunked'",
            "with a comma": b" chunked,",
            "with a comma before": b" ,chunked",
            "of xchunked": b" xchunked",
            "of chunke": b" chunke",
            "with a tab behind": b" chunked\t",
            "without a value": b"",
            "folded": b"\r\n chunked",
            "folded by a tab": b"\r\n\tchunked",
            "with a bare CR": b" \rchunked",
            "with a bare LF": b"\n chunked",
            "behind a bare LF": b" x\nTransfer-Encoding: chunked",
            "behind a bare CR": b" x\rTransfer-Encoding: chunked",
        }.items()
    },
    "TE with space before the colon": coding(b" chunked", b"Transfer-Encoding :"),
    "TE with a tab before the colon": coding(b" chunked", b"Transfer-Encoding\t:"),
    "TE with NUL before the colon": coding(b" chunked", b"Transfer-Encoding\0:"),
    "TE with a space in front": coding(b" chunked", b" Transfer-Encoding:"),
    "TE as a field that is folded": coding(b" a\r\n Transfer-Encoding: chunked", b"X:"),
    "TE without a colon": coding(b" chunked", b"Transfer-Encoding"),
    "CL with space before the colon": POST + b"Content-Length : 5\r\n\r\nabcde",
    "CL twice": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
    "CL twice, in two cases": POST + b"Content-Length: 5\r\ncontent-length: 0\r\n\r\nabcde",
    "CL in two, differing": POST + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\nabcde",
    **{
        f"CL of {value!r}": length(b" " + value)
        for value in (
            *(b"+5", b"-5", b"-0", b"5, 5", b"5,5", b"5,", b",5", b"0x5", b"5.0", b"5e0", b"5 5"),
            *(b"", b"five", b"5;", b'"5"', b"0_5", b"\x0b5", b"5\x0b", b"5\0", b"\xd9\xa5"),
            *(b"9" * 20, b"9" * 400, b"18446744073709551616", b"18446744073709551621"),
        )
    },
    "CL folded": length(b"\r\n 5"),
    "LF before the request line": b"\n" + GET + b"\r\n",
    "CR before the request line": b"\r" + GET + b"\r\n",
    "CR CR LF before the request line": b"\r\r\n" + GET + b"\r\n",
    "space before the request line": b" " + GET + b"\r\n",
    "NUL before the request line": b"\0" + GET + b"\r\n",
    "byte order mark": b"\xef\xbb\xbf" + GET + b"\r\n",
    "two spaces before the target": line(b"GET  " + BASE + b" HTTP/1.1"),
    "two spaces before the version": line(b"GET " + BASE + b"  HTTP/1.1"),
    "tab before the target": line(b"GET\t" + BASE + b" HTTP/1.1"),
    "tab before the version": line(b"GET " + BASE + b"\tHTTP/1.1"),
    "vertical tab before the version": line(b"GET " + BASE + b"\x0bHTTP/1.1"),
    "space behind the version": line(b"GET " + BASE + b" HTTP/1.1 "),
    "a second version": line(b"GET " + BASE + b" HTTP/1.1 HTTP/1.1"),
    "a request line in the target": line(b"GET " + BASE + b" HTTP/1.1\rGET / HTTP/1.1"),
    "no version": line(b"GET " + BASE),
    "no target": line(b"GET HTTP/1.1"),
    "empty target": line(b"GET  HTTP/1.1"),
    "HTTP/0.9": line(b"GET " + BASE + b" HTTP/0.9"),
    "HTTP/1.10": line(b"GET " + BASE + b" HTTP/1.10"),
    "HTTP/01.1": line(b"GET " + BASE + b" HTTP/01.1"),
    "HTTP/1.2": line(b"GET " + BASE + b" HTTP/1.2"),
    "HTTP/2.0": line(b"GET " + BASE + b" HTTP/2.0"),
    "HTTP/1": line(b"GET " + BASE + b" HTTP/1"),
    "HTTP 1.1": line(b"GET " + BASE + b" HTTP 1.1"),
    "http/1.1": line(b"GET " + BASE + b" http/1.1"),
    "RTSP/1.0": line(b"GET " + BASE + b" RTSP/1.0"),
    "RTSP/1.1 with content": line(b"POST " + BASE + b" RTSP/1.1"),
    "ICE/1.0": line(b"SOURCE " + BASE + b" ICE/1.0"),
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "method in small letters": line(b"get " + BASE + b" HTTP/1.1"),
    "method with a quote": line(b'GE"T ' + BASE + b" HTTP/1.1"),
    "authority-form": line(b"GET localhost:80 HTTP/1.1"),
    "CONNECT": line(b"CONNECT localhost:80 HTTP/1.1"),
    "fragment": line(b"GET " + BASE + b"#/../ HTTP/1.1"),
    "high bytes in the target": line(b"GET " + BASE + b"\xe4 HTTP/1.1"),
    "no Host": hosts(),
    "empty Host": hosts(b"Host:"),
    "two Hosts": hosts(b"Host: localhost", b"Host: localhost"),
    "two Hosts in two cases": hosts(b"Host: localhost", b"hOST: evil"),
    "Host with space before the colon": hosts(b"Host: localhost", b"Host : evil"),
    "Host that is folded": hosts(b"Host: localhost", b" evil"),
    "Host behind a bare CR": hosts(b"X: y\rHost: evil", b"Host: localhost"),
    **{
        f"Host of {value!r}": hosts(b"Host: " + value)
        for value in (
            *(b"localhost@evil", b"user@localhost", b"user:pass@localhost", b"local host"),
            *(b"localhost, evil", b"localhost,evil", b"localhost/evil", b"localhost\\evil"),
            *(b"localhost?evil", b"localhost#evil", b"localhost:80:80", b"localhost:80evil"),
            *(b"localhost:-1", b"localhost:+80", b"localhost\0evil", b"localhost\tevil"),
            *(b"[::1", b"::1", b"[::1]evil", b"[:::1]", b"[localhost]", b"[::1%25lo]", b"\xe4"),
            *(b"http://localhost", b"%6cocalhost", b"localhost%00", b"a" * 300),
        )
    },
}
#: They are answered by the gateway itself, and the connection goes on or ends cleanly.
ANSWERED: Final = {
    "absolute-form to elsewhere": (hosts(b"Host: localhost", target=b"http://evil/"), 400),
    "absolute-form to another port": (
        hosts(b"Host: localhost", target=b"http://localhost:81" + BASE),
        400,
    ),
    "absolute-form with an empty host": (hosts(b"Host: localhost", target=b"http:///"), 400),
    "absolute-form with a user": (hosts(b"Host: localhost", target=b"http://localhost@evil/"), 400),
    "asterisk-form": (line(b"OPTIONS * HTTP/1.1"), 400),
    "asterisk-form of GET": (line(b"GET * HTTP/1.1"), 400),
    "foreign Host": (hosts(b"Host: evil"), 421),
}
#: What is wrong comes behind the head: no complete message goes upstream.
BROKEN: Final = {
    f"{name}": CHUNKED + body
    for name, body in {
        "chunk size 0x": b"0x5\r\nabcde\r\n0\r\n\r\n",
        "chunk size with a sign": b"+5\r\nabcde\r\n0\r\n\r\n",
        "chunk size with a space before": b" 5\r\nabcde\r\n0\r\n\r\n",
        "chunk size with a space behind": b"5 \r\nabcde\r\n0\r\n\r\n",
        "chunk size with a tab behind": b"5\t\r\nabcde\r\n0\r\n\r\n",
        "chunk size with an underscore": b"0_5\r\nabcde\r\n0\r\n\r\n",
        "chunk size with NUL": b"5\0\r\nabcde\r\n0\r\n\r\n",
        "chunk size that overflows 64 bits": b"10000000000000005\r\nabcde\r\n0\r\n\r\n",
        "chunk size that overflows 32 bits": b"100000005\r\nabcde\r\n0\r\n\r\n",
        "no chunk size": b"\r\nabcde\r\n0\r\n\r\n",
        "LF behind the size": b"5\nabcde\r\n0\r\n\r\n",
        "CR behind the size": b"5\rabcde\r\n0\r\n\r\n",
        "CR CR LF behind the size": b"5\r\r\nabcde\r\n0\r\n\r\n",
        "LF in an extension": b"5;a\nb\r\nabcde\r\n0\r\n\r\n",
        "CR in an extension": b"5;a\rb\r\nabcde\r\n0\r\n\r\n",
        "LF that ends an extension": b"5;\nabcde\r\n0\r\n\r\n",
        "LF in a quoted extension": b'5;a="\n"\r\nabcde\r\n0\r\n\r\n',
        "a chunk in a quoted extension": b'5;a="\r\n0\r\n\r\n' + HIDDEN,
        "NUL in an extension": b"5;a=\0\r\nabcde\r\n0\r\n\r\n",
        "LF behind the data": b"5\r\nabcde\n0\r\n\r\n",
        "CR behind the data": b"5\r\nabcde\r0\r\n\r\n",
        "any two bytes behind the data": b"5\r\nabcdeXX0\r\n\r\n",
        "more data than the size says": b"5\r\nabcdef\r\n0\r\n\r\n",
        "less data than the size says": b"6\r\nabcde\r\n0\r\n\r\n",
        "no data": b"5\r\n\r\n0\r\n\r\n",
        "last chunk with a sign": b"-0\r\n\r\n",
        "LF behind the last chunk": b"0\n\r\n",
        "LF at the very end": b"0\r\n\n",
        "CR at the very end": b"0\r\n\rX",
        "trailer with a space before the colon": b"0\r\nX : y\r\n\r\n",
        "trailer that is folded": b"0\r\nX: y\r\n z\r\n\r\n",
        "trailer with a bare LF": b"0\r\nX: y\nZ: z\r\n\r\n",
        "trailer with a bare CR": b"0\r\nX: y\rZ: z\r\n\r\n",
        "trailer without a colon": b"0\r\nX\r\n\r\n",
        "trailer that is a request": b"0\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "trailer with NUL": b"0\r\nX: \0\r\n\r\n",
    }.items()
}
X: Final = BASE + b"x"
Sent = tuple[bytes, bytes, bytes]
#: Plain enough to be forwarded, as (method, target, content) of each message.
FORWARDED: Final[dict[str, tuple[bytes, list[Sent]]]] = {
    "CL.0": (POST + b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN, [(b"POST", X, HIDDEN)]),
    "GET with content": (
        GET + b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
        [(b"GET", X, HIDDEN)],
    ),
    "0.CL": (POST + b"Content-Length: 0\r\n\r\n", [(b"POST", X, b"")]),
    "0.CL with an alias": (POST + b"Content_Length: 5\r\n\r\n", [(b"POST", X, b"")]),
    "CL with zeros": (length(b" 0005"), [(b"POST", X, b"abcde")]),
    "CL without a space": (length(b"5"), [(b"POST", X, b"abcde")]),
    "CL with white space around": (length(b" \t5 \t"), [(b"POST", X, b"abcde")]),
    "CL in HTTP/1.0": (length(b" 5").replace(b"1.1", b"1.0"), [(b"POST", X, b"abcde")]),
    "TE in capitals": (alone(b" CHUNKED"), [(b"POST", X, b"")]),
    "TE with white space around": (alone(b"\t chunked  "), [(b"POST", X, b"")]),
    "TE by an alias": (alone(b" chunked", b"Transfer_Encoding:")[:-5], [(b"POST", X, b"")]),
    "TE named in Connection": (
        POST + b"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        [(b"POST", X, b"")],
    ),
    "CL named in Connection": (
        POST + b"Connection: Content-Length\r\nContent-Length: 5\r\n\r\nabcde",
        [(b"POST", X, b"abcde")],
    ),
    "Host named in Connection": (GET + b"Connection: host\r\n\r\n", [(b"GET", X, b"")]),
    "chunk sizes with zeros": (CHUNKED + b"0005\r\nabcde\r\n000\r\n\r\n", [(b"POST", X, b"abcde")]),
    "chunk extensions": (
        CHUNKED + b'5;a;b=c;d="e;\\"f"\r\nabcde\r\n0;g\r\n\r\n',
        [(b"POST", X, b"abcde")],
    ),
    "a request within a chunk": (
        CHUNKED + b"%x\r\n" % len(HIDDEN) + HIDDEN + b"\r\n0\r\n\r\n",
        [(b"POST", X, HIDDEN)],
    ),
    "empty lines before the request line": (b"\r\n\r\n" + GET + b"\r\n", [(b"GET", X, b"")]),
    "an empty line behind content": (length(b" 5") + b"\r\n", [(b"POST", X, b"abcde")]),
    "HTTP/1.0 without Host": (b"GET " + X + b" HTTP/1.0\r\n\r\n", [(b"GET", X, b"")]),
    "an upgrade that is not followed": (
        POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nabcde",
        [(b"POST", X, b"abcde")],
    ),
    "Expect with content": (
        POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nabcde",
        [(b"POST", X, b"abcde")],
    ),
    "fields of others": (
        GET + b"X-HTTP-Method-Override: PUT\r\nX-Original-URL: /a\r\n\r\n",
        [(b"GET", X, b"")],
    ),
    "two requests": (GET + b"\r\n" + GET + b"\r\n", [(b"GET", X, b""), (b"GET", X, b"")]),
}
#: Trailers that no recipient may merge into the head: refused, or forwarded without them.
TRAILERS: Final = {
    name: CHUNKED + b"5\r\nabcde\r\n0\r\n" + trailer + b"\r\n\r\n"
    for name, trailer in {
        "Content-Length in a trailer": b"Content-Length: 100",
        "Transfer-Encoding in a trailer": b"Transfer-Encoding: chunked",
        "Host in a trailer": b"Host: evil",
        "Connection in a trailer": b"Connection: close",
        "Upgrade in a trailer": b"Connection: upgrade\r\nUpgrade: websocket",
        "Authorization in a trailer": b"Authorization: Bearer x",
        "forwarded address in a trailer": b"X-Forwarded-For: 10.0.0.1",
    }.items()
}

CUTS: Final[dict[str, Sequence[int]]] = {"whole": (), "byte by byte": range(2**16)}
cut = pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)


def play(stage: Stage, data: bytes, cuts: Sequence[int]) -> list[tuple[int, bool]]:
    """The answers: (status, whether the connection ends with it)."""

    async def run() -> list[tuple[int, bool]]:
        received = await forward(stage, data, cuts)
        heard_upstream(stage)
        finals = check_answers(received, [b"GET"] * 8)
        return [(int(final.start[1]), not final.keep_alive) for final in finals]

    return stage.runner.run(run())


def asked(stage: Stage) -> list[Sent]:
    messages = stage.dev.asked + stage.control.asked
    return [(message.start[0], message.start[1], message.body) for message in messages]


@cut
@pytest.mark.parametrize("payload", REFUSED.values(), ids=REFUSED)
def test_what_is_ambiguous_is_refused_without_a_byte_upstream(
    stage: Stage, payload: bytes, cuts: Sequence[int]
) -> None:
    ((status, closed),) = play(stage, payload + HIDDEN, cuts)
    assert status in (400, 405, 501, 505)
    assert closed
    assert not stage.dev.heard
    assert not stage.control.heard


@pytest.mark.parametrize("payload", REFUSED.values(), ids=REFUSED)
def test_it_is_refused_behind_a_good_request_too(stage: Stage, payload: bytes) -> None:
    good, (status, closed) = play(stage, GET + b"\r\n" + payload + HIDDEN, ())
    assert good == (200, False)
    assert (status in (400, 405, 501, 505), closed) == (True, True)
    assert asked(stage) == [(b"GET", X, b"")]


@cut
@pytest.mark.parametrize(("payload", "status"), ANSWERED.values(), ids=ANSWERED)
def test_what_is_for_nobody_here_goes_nowhere(
    stage: Stage, payload: bytes, status: int, cuts: Sequence[int]
) -> None:
    assert play(stage, payload, cuts) == [(status, False)]
    assert not asked(stage)


@cut
@pytest.mark.parametrize("payload", BROKEN.values(), ids=BROKEN)
def test_bad_chunks_never_become_a_complete_request(
    stage: Stage, payload: bytes, cuts: Sequence[int]
) -> None:
    answers = play(stage, payload + HIDDEN, cuts)
    assert not asked(stage)
    assert [status for status, _ in answers] in ([400], [])


@cut
@pytest.mark.parametrize(("payload", "expected"), FORWARDED.values(), ids=FORWARDED)
def test_what_is_plain_is_forwarded_as_one_message_for_everybody(
    stage: Stage, payload: bytes, expected: list[Sent], cuts: Sequence[int]
) -> None:
    answers = play(stage, payload, cuts)
    assert asked(stage) == expected
    assert [status for status, _ in answers] == [200] * len(expected)


@cut
@pytest.mark.parametrize("payload", TRAILERS.values(), ids=TRAILERS)
def test_trailers_decide_about_nothing(stage: Stage, payload: bytes, cuts: Sequence[int]) -> None:
    answers = play(stage, payload + HIDDEN, cuts)
    if answers[:1] == [(400, True)]:
        assert not asked(stage)
        return
    # llhttp refuses what follows a Connection: close, wherever that was.
    assert answers[0] == (200, False)
    assert [status for status, _ in answers[1:]] in ([200], [400])
    assert asked(stage)[0] == (b"POST", X, b"abcde")
    assert asked(stage)[1:] in ([(b"GET", BASE + b"hidden", b"")], [])
    assert not stage.dev.asked[0].trailers
