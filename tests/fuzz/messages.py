"""Messages made up by hypothesis: valid ones, and ones with faults that others have fallen for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hypothesis import strategies as st

#: Where the bytes are cut into packets: nowhere, everywhere, or here and there.
CUTS: Final[st.SearchStrategy[Sequence[int]]] = st.one_of(
    st.just([]), st.just(range(4000)), st.lists(st.integers(0, 2000), max_size=6)
)

_TEXT: Final = st.text("abcXYZ09 -_.,;=/\"'()<>@~\t", max_size=16).map(
    lambda text: text.strip().encode()
)
_OBS_TEXT: Final = st.binary(max_size=4).map(lambda data: bytes(byte | 0x80 for byte in data))
_FIELD: Final = st.builds(
    lambda name, left, value, right: name + b":" + left + value + right,
    st.sampled_from(
        [
            b"X-A",
            b"x-b",
            b"Cookie",
            b"Accept-Encoding",
            b"If-None-Match",
            b"Range",
            b"X_A",
            b"TE",
            b"Accept",
        ]
    ),
    st.sampled_from([b" ", b" ", b"", b"\t "]),
    _TEXT | _OBS_TEXT,
    st.sampled_from([b"", b"", b" ", b" \t"]),
)
_CONNECTION: Final = st.sampled_from(
    [
        b"Connection: keep-alive",
        b"Connection: close",
        b"Connection: Close, x-a",
        b"connection:X-A,\t,keep-alive",
        b"Connection: x-b, cookie",
    ]
)
_TARGET: Final = st.text("ab%2F40@/.?=&[]{}|:;,~", max_size=12).map(
    lambda text: b"/" + text.encode()
)
_BODY: Final = st.binary(max_size=24) | st.sampled_from(
    [b"0\r\n\r\n", b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\r\n", b"\r\n\r\n"]
)


@st.composite
def _chunks(draw: st.DrawFn) -> bytes:
    out = b""
    for part in draw(st.lists(_BODY.filter(bool), max_size=3)):
        size = draw(st.sampled_from([b"%x", b"%X", b"0%x", b"000%x"])) % len(part)
        out += size + draw(_EXTENSION) + b"\r\n" + part + b"\r\n"
    trailers = draw(st.lists(st.sampled_from([b"X-T: 1", b"Server-Timing:a"]), max_size=2))
    out += draw(st.sampled_from([b"0", b"0", b"00"])) + draw(_EXTENSION) + b"\r\n"
    return out + b"".join(line + b"\r\n" for line in trailers) + b"\r\n"


_EXTENSION: Final = st.sampled_from([b"", b"", b"", b";a", b";a=b", b';a="b;c"', b";a;b=c"])


@st.composite
def _framed(draw: st.DrawFn, *, chunks: bool) -> tuple[list[bytes], bytes]:
    """Field lines that frame some content, and the content."""
    kind = draw(st.sampled_from(["length", "zeros", "chunks"] if chunks else ["length", "zeros"]))
    if kind == "chunks":
        line = draw(st.sampled_from([b"Transfer-Encoding: chunked", b"transfer-encoding:Chunked "]))
        return [line], draw(_chunks())
    body = draw(_BODY)
    zeros = b"00" if kind == "zeros" else b""
    return [b"Content-Length: " + zeros + b"%d" % len(body)], body


@st.composite
def request(draw: st.DrawFn, *, host: bytes = b"a", base: bytes = b"") -> bytes:
    """A valid request for something below ``base``."""
    old = draw(st.sampled_from([False] * 4 + [True]))
    lines = draw(st.lists(_FIELD, max_size=4))
    lines.insert(0, b"Host: " + host)
    if draw(st.sampled_from([False] * 3 + [True])):
        lines.append(draw(_CONNECTION))
    body = b""
    method = draw(
        st.sampled_from([b"GET", b"GET", b"HEAD", b"POST", b"PUT", b"OPTIONS", b"DELETE"])
    )
    if method in (b"POST", b"PUT", b"DELETE") and draw(st.booleans()):
        framing, body = draw(_framed(chunks=not old))
        lines += framing
    lines = draw(st.permutations(lines))
    target = base.rstrip(b"/") + draw(_TARGET)
    start = method + b" " + target + (b" HTTP/1.0" if old else b" HTTP/1.1")
    return draw(st.sampled_from([b"", b"", b"\r\n"])) + b"\r\n".join((start, *lines, b"", body))


def requests(*, host: bytes = b"a", base: bytes = b"") -> st.SearchStrategy[bytes]:
    """What a client sends: some valid requests in a row."""
    return st.lists(request(host=host, base=base), min_size=1, max_size=4).map(b"".join)


@st.composite
def response(draw: st.DrawFn, *, to_head: bool = False) -> bytes:
    """The valid response to one request, with interim ones before it."""
    interim = draw(
        st.lists(
            st.sampled_from(
                [
                    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
                    b"HTTP/1.1 100 \r\n\r\n",
                    b"HTTP/1.1 104 X\r\n\r\n",
                ]
            ),
            max_size=2,
        )
    )
    old = draw(st.sampled_from([False] * 4 + [True]))
    lines = draw(st.lists(_FIELD, max_size=4))
    if draw(st.sampled_from([False] * 3 + [True])):
        lines.append(draw(_CONNECTION))
    status = draw(st.sampled_from([b"200 OK", b"404 Not Found", b"204 None", b"304 ", b"599"]))
    body = b""
    if draw(st.sampled_from([True] * 3 + [False])):
        framing, body = draw(_framed(chunks=not old))
        lines += framing
    else:
        body = draw(_BODY)
    if to_head or status[:3] in (b"204", b"304"):
        body = b""
    lines = draw(st.permutations(lines))
    start = (b"HTTP/1.0 " if old else b"HTTP/1.1 ") + status
    return b"".join(interim) + b"\r\n".join((start, *lines, b"", body))


_NASTY: Final = st.sampled_from(
    [
        *(bytes([byte]) for byte in b'\r\n\0 \t:,;="\\\x0b\x0c\x1f\x7f\x80\xa0\xff+-_0#@/[]'),
        *(
            b"\r\n",
            b"\r\n\r\n",
            b"\n\n",
            b"\r\r\n",
            b"\r\n ",
            b"0x",
            b"  ",
            b"chunked, ",
            b"HTTP/1.1",
        ),
        *(b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length: +5\r\n"),
        *(b"Content-Length: 5, 5\r\n", b"Content-Length: 0x5\r\n", b"Content-Length:\r\n"),
        *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n"),
        *(b"Transfer-Encoding:\tchunked\r\n", b"Transfer-Encoding: chunked\t\r\n"),
        *(b"Transfer-Encoding:\x0bchunked\r\n", b"Transfer-Encoding : chunked\r\n"),
        *(b"Transfer-Encoding: xchunked\r\n", b"Transfer-Encoding: chunked, identity\r\n"),
        *(b"Transfer-Encoding:\r\n chunked\r\n", b"Transfer_Encoding: chunked\r\n"),
        *(b"Host: b\r\n", b"host:b\r\n", b"Connection: close\r\n", b"Connection: upgrade\r\n"),
        *(
            b"Upgrade: websocket\r\n",
            b"Upgrade: h2c\r\n",
            b"Upgrade: a\r\n",
            b"HTTP/1.0",
            b"RTSP/1.0",
        ),
        *(b"5\r\nabcde\r\n", b"0\r\n\r\n", b"0\r\nContent-Length: 3\r\n\r\n", b";a\nb", b"GET / "),
        *(b"CONNECT a:1 HTTP/1.1\r\n", b"http://a", b"[::1]", b"[:::]", b"9" * 20, b"f" * 17),
    ]
)


@st.composite
def damaged(draw: st.DrawFn, valid: st.SearchStrategy[bytes]) -> bytes:
    """A valid byte string with one to four faults in it."""
    data = draw(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(_place(data))
        kind = draw(st.sampled_from(["insert", "insert", "replace", "flip", "cut", "repeat"]))
        if kind == "insert":
            data = data[:at] + draw(_NASTY) + data[at:]
        elif kind == "replace":
            nasty = draw(_NASTY)
            data = data[:at] + nasty + data[at + len(nasty) :]
        elif kind == "flip":
            data = (
                data[:at]
                + bytes([data[at] ^ 1 << draw(st.integers(0, 7))] if data[at:] else [])
                + data[at + 1 :]
            )
        else:
            end = at + draw(st.integers(1, 20))
            data = data[:at] + (data[at:end] * 2 if kind == "repeat" else b"") + data[end:]
    return data


def _place(data: bytes) -> st.SearchStrategy[int]:
    """Where a fault does harm: mostly around the ends of lines."""
    edges = [at for at in range(len(data)) if data[at : at + 1] in b"\r\n: ;"]
    anywhere = st.integers(0, len(data))
    return st.sampled_from(edges) | anywhere if edges else anywhere
