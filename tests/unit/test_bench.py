"""The pure parts of the proxy benchmark."""

from __future__ import annotations

import resource
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from bench.proxy.cases import QUICK, CaseFailed, Metric, Rival, limited_sockets, parse_wrk
from bench.proxy.chart import Panel, draw
from bench.proxy.contestants import SHIPPED
from bench.proxy.figures import Figure, percentile, ratios, shown
from bench.proxy.footprint import Footprint, blocks, parse, report
from bench.proxy.frames import frame, split_frames, unmask
from bench.proxy.load import complete
from bench.proxy.report import CaseResult, Results, summary, table, verdicts
from bench.proxy.workers import compared

CPU = Metric("cpu", "CPU", "us", reach=1.5, goal=1.0)


def result(**medians: float) -> CaseResult:
    figures = {name: {"cpu": Figure((value,))} for name, value in medians.items()}
    return CaseResult("case", "A case", (CPU,), figures, {})


def run(*cases: CaseResult) -> Results:
    return Results({}, QUICK, {}, {}, list(cases))


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([5, 1, 4, 2, 3], 50) == 3
    assert percentile(list(range(1, 101)), 99) == 99
    assert percentile([7], 99) == 7


def test_a_figure_is_the_median_of_its_rounds_with_their_spread() -> None:
    figure = Figure((3.0, 1.0, 10.0))
    assert (figure.median, figure.low, figure.high) == (3.0, 1.0, 10.0)


def test_ratios_compare_medians_with_the_base() -> None:
    figures = {"nginx": Figure((20.0,)), "gateway": Figure((10.0, 30.0, 50.0))}
    assert ratios(figures, "nginx") == {"nginx": 1.0, "gateway": 1.5}


def test_ratios_of_what_is_added_leave_out_the_direct_part() -> None:
    figures = {"nginx": Figure((200.0,)), "gateway": Figure((250.0,))}
    assert ratios(figures, "nginx", less=100.0)["gateway"] == 1.5


def test_without_a_base_there_are_no_ratios() -> None:
    assert ratios({"gateway": Figure((1.0,))}, "nginx") == {}
    assert ratios({"nginx": Figure((90.0,))}, "nginx", less=100.0) == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.06251, "0.0625"), (1.0, "1.00"), (38.27, "38.3"), (12267.4, "12,267")],
)
def test_numbers_are_shown_with_three_digits_that_count(value: float, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(("cpu", "word"), [(20, "goal met"), (29, "reached"), (31, "missed")])
def test_a_verdict_says_what_was_reached(cpu: float, word: str) -> None:
    (found,) = verdicts(result(nginx=20, gateway=cpu))
    assert found.word == word
    assert str(found).endswith(f"x nginx; reach 1.5, goal 1: {word}")


def test_each_build_has_a_verdict_of_its_own() -> None:
    both = result(nginx=20, gateway=31)
    both.figures["gateway-compiled"] = {"cpu": Figure((20.0,))}
    words = {found.subject: found.word for found in verdicts(both)}
    assert words == {"gateway": "missed", "gateway-compiled": "goal met"}


def test_rivals_have_limits_of_their_own() -> None:
    metric = replace(CPU, rivals=(Rival("traefik", 0.6, 0.4), Rival("absent", 1, 1)))
    measured = replace(result(nginx=20, gateway=25, traefik=50), metrics=(metric,))
    found = [(one.of, one.value, one.word) for one in verdicts(measured)]
    assert found == [("x nginx", 1.25, "reached"), ("x traefik", 0.5, "reached")]


def test_a_limit_may_be_a_value() -> None:
    metric = Metric("cpu", "memory", "KiB", 8, 4, absolute=True)
    (found,) = verdicts(replace(result(gateway=3.5), metrics=(metric,)))
    assert str(found) == "gateway, memory: 3.50 KiB; reach 8, goal 4: goal met"


def test_the_summary_is_that_of_the_build_that_is_shipped() -> None:
    both = result(nginx=20, gateway=31)
    assert summary(run(both)) == []
    both.figures[SHIPPED] = {"cpu": Figure((25.0,))}
    assert summary(run(both))[2:] == ["| A case: CPU | 1.25 x nginx | 1.5 | 1 | reached |"]


def test_two_workers_are_compared_with_one() -> None:
    one = {"rate": Figure((100.0,)), "scaled": Figure((200.0,))}
    two = {"rate": Figure((150.0,)), "scaled": Figure((190.0,))}
    (line,) = compared({"1 worker": one, "2 workers": two})
    assert "1.50 x the requests a second, 0.95 x those per CPU second" in line
    assert compared({"1 worker": one}) == []


def test_a_limit_of_descriptors_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20_000, 20_000))
    assert limited_sockets(10_000).startswith("9,900 instead of 10,000 sockets: ")
    assert limited_sockets(9_000) == ""


def test_there_is_no_verdict_without_nginx() -> None:
    assert list(verdicts(result(gateway=1))) == []


def test_a_table_begins_with_the_cheapest_contestant() -> None:
    rows = table(result(caddy=84, nginx=20, gateway=40))
    assert [row[0] for row in rows] == ["contestant", "nginx", "gateway", "caddy"]
    assert rows[2][-1] == "2.00"


def test_wrk_reports_with_failed_requests_do_not_count() -> None:
    good = "  5227 requests in 1.00s, 6.20MB read\nRequests/sec:   5227.00\n"
    assert parse_wrk(good) == 5227
    for bad in ("  Non-2xx or 3xx responses: 3\n", "  Socket errors: connect 0, read 2, write 0"):
        with pytest.raises(CaseFailed):
            parse_wrk(good + bad)
    with pytest.raises(CaseFailed):
        parse_wrk("unable to connect")


@pytest.mark.parametrize("size", [0, 125, 126, 200, 65535, 65536])
def test_frames_survive_any_cut(size: int) -> None:
    payload = bytes(n % 251 for n in range(size))
    sent = frame(payload, masked=True) + frame(b"next")
    for cut in {0, 1, 3, 5, 9, 13, len(sent) - 1}:
        first, rest = split_frames(sent[:cut])
        second, rest = split_frames(rest + sent[cut:])
        assert first + second == [(2, payload), (2, b"next")]
        assert rest == b""


def test_a_masked_frame_is_unmasked() -> None:
    # RFC 6455 5.7: a single-frame masked text message.
    data = bytes.fromhex("818537fa213d7f9f4d5158")
    assert split_frames(data) == ([(1, b"Hello")], b"")
    assert unmask(unmask(b"Hello", b"\x01\x02\x03\x04"), b"\x01\x02\x03\x04") == b"Hello"


def test_an_answer_is_complete_in_either_framing() -> None:
    head, body = b"HTTP/1.1 200 OK\r\n", b"x" * 1024
    plain = head + b"Content-Length: 1024\r\n\r\n" + body
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n400\r\n" + body + b"\r\n0\r\n\r\n"
    for answer in (plain, chunked):
        assert complete(answer)
        assert not complete(answer[:-1])


def test_the_chart_is_well_formed_and_bars_are_in_proportion() -> None:
    svg = draw([Panel("CPU <1 KiB>", "us", [("nginx", 20.0), ("gateway", 40.0)])], own=["gateway"])
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own
    bars = {
        bar.get("class"): float(bar.get("width", "0"))
        for bar in root.iter("{http://www.w3.org/2000/svg}rect")
    }
    assert bars["own"] == pytest.approx(2 * bars["base"], rel=0.01)
    assert "prefers-color-scheme: dark" in svg


CALLGRIND = """
positions: instr line
events: Ir
ob=(1) /lib/a.so
fn=(1) begin
0x1000 7 10
+4 * 10
cob=(2) /lib/b.so
cfn=(2) end
calls=10 0x40
+4 8 70
ob=(2)
fn=(2)
0x40 1 10
-32 +1 1
"""


def test_a_footprint_is_what_nearly_every_request_executes() -> None:
    found = parse(CALLGRIND.splitlines())
    assert found.counts == {
        ("/lib/a.so", 0x1000): 10,
        ("/lib/a.so", 0x1004): 10,
        ("/lib/b.so", 0x40): 10,
        ("/lib/b.so", 0x20): 1,
    }
    every = found.of_every_request(10)
    assert ("/lib/b.so", 0x20) not in every
    assert blocks(every, 64) == {"/lib/a.so": 1, "/lib/b.so": 1}
    assert report(found, 10, 1) == [
        "3 instructions per request, 3 of them different",
        "2 lines of 64 bytes, 2 pages",
        "      1 lines     1 pages  a.so",
        "      1 lines     1 pages  b.so",
        "      1 lines  begin",
    ]
    assert Footprint().of_every_request(10) == []
