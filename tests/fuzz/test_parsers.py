"""The gateway's parsers and the oracle never disagree, wherever the bytes are cut.

The budget is fixed and the examples are the same in each run; ``make fuzz`` looks further.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.fuzz import messages
from tests.fuzz.compare import check_requests, check_responses
from tests.fuzz.oracle import End

bounded = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=400,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
METHODS = st.sampled_from([b"GET", b"HEAD", b"POST"])


@bounded
@given(messages.requests(), messages.CUTS)
def test_valid_requests_are_read_as_the_oracle_reads_them(data: bytes, cuts: Sequence[int]) -> None:
    reading = check_requests(data, cuts)
    assert reading.end in (End.COMPLETE, End.CLOSED), reading


@bounded
@given(messages.damaged(messages.requests()), messages.CUTS)
@example(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\nGET / HTTP/1.1\r\n", [])
@example(b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", [])
@example(b"GET / RTSP/1.0\r\nHost: a\r\n\r\n", [])
@example(b"\r\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", [])
@example(b"GET / HTTP/1.1\r\nHost: [:::]\r\n\r\n", [])
@example(b"GET / HTTP/1.0\r\nConnection: close\r\nConnection: keep-alive\r\n\r\nGET", [])
@example(b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n", [])
def test_of_damaged_requests_none_is_accepted_that_the_oracle_refuses(
    data: bytes, cuts: Sequence[int]
) -> None:
    check_requests(data, cuts)


@bounded
@given(st.data(), METHODS, messages.CUTS)
def test_valid_responses_are_read_as_the_oracle_reads_them(
    data: st.DataObject, method: bytes, cuts: Sequence[int]
) -> None:
    answer = data.draw(messages.response(to_head=method == b"HEAD"))
    reading = check_responses(answer, cuts, method=method, ended=True)
    assert reading.end in (End.COMPLETE, End.CLOSED), reading


@bounded
@given(messages.damaged(messages.response()), METHODS, messages.CUTS, st.booleans())
@example(
    b"HTTP/1.1 199 A\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", b"GET", [], False
)
@example(
    b"HTTP/1.1 200 A\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n", b"HEAD", [], False
)
@example(b"\r\nHTTP/1.1 200 A\r\nContent-Length: 0\r\n\r\n", b"GET", [], False)
@example(b"RTSP/1.0 200 A\r\nContent-Length: 0\r\n\r\n", b"GET", [], False)
def test_of_damaged_responses_none_is_accepted_that_the_oracle_refuses(
    data: bytes, method: bytes, cuts: Sequence[int], ended: bool
) -> None:
    check_responses(data, cuts, method=method, ended=ended)
