"""The pure parts of several data-plane processes: adding up, pauses, shares, messages."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

import pytest

from gateway.errors import (
    Fenced,
    GatewayError,
    NotAcknowledged,
    RegistryUnavailable,
    SessionNotFound,
    SettingsError,
)
from gateway.settings import load_settings
from gateway.telemetry import Kind, Sample
from gateway.workers.link import (
    pack_error,
    pack_settings,
    unpack_error,
    unpack_samples,
    unpack_settings,
)
from gateway.workers.pauses import LONGEST_SECONDS, STABLE_SECONDS, Pauses
from gateway.workers.sockets import listening_sockets
from gateway.workers.supervisor import share
from gateway.workers.tally import Tally, merged


def sample(name: str, kind: Kind, **values: float) -> Sample:
    """A sample whose values are told apart by one label."""
    return (name, "Help.", kind, [({"code": label}, value) for label, value in values.items()])


def values(samples: list[Sample]) -> dict[str, float]:
    return {
        f"{name}.{labels['code']}": value
        for name, _, _, pairs in samples
        for labels, value in pairs
    }


# -- adding up -------------------------------------------------------------------------------------


def test_counters_and_gauges_of_all_workers_are_added_up_by_label() -> None:
    tally = Tally()
    tally.report(0, [sample("hits", "counter", ok=3, bad=1), sample("open", "gauge", all=5)])
    tally.report(1, [sample("hits", "counter", ok=4, late=2), sample("open", "gauge", all=7)])
    assert values(tally.samples()) == {
        "hits.ok": 7,
        "hits.bad": 1,
        "hits.late": 2,
        "open.all": 12,
    }


def test_a_flag_is_up_only_where_it_is_up_everywhere() -> None:
    up, down = [sample("linked", "flag", x=1)], [sample("linked", "flag", x=0)]
    assert values(merged([up, up])) == {"linked.x": 1}
    assert values(merged([up, down, up])) == {"linked.x": 0}


def test_a_report_replaces_the_last_one_of_its_worker() -> None:
    tally = Tally()
    tally.report(0, [sample("hits", "counter", ok=3)])
    tally.report(0, [sample("hits", "counter", ok=9)])
    assert values(tally.samples()) == {"hits.ok": 9}


def test_counters_never_go_back_when_a_worker_is_replaced() -> None:
    tally = Tally()
    tally.report(0, [sample("hits", "counter", ok=10), sample("open", "gauge", all=5)])
    tally.report(1, [sample("hits", "counter", ok=1), sample("open", "gauge", all=2)])
    tally.gone(0)
    assert values(tally.samples()) == {"hits.ok": 11, "open.all": 2}
    tally.gone(0)  # its successor, which never reported
    tally.report(0, [sample("hits", "counter", ok=4), sample("open", "gauge", all=1)])
    assert values(tally.samples()) == {"hits.ok": 15, "open.all": 3}
    tally.gone(0)
    tally.gone(1)
    assert values(tally.samples()) == {"hits.ok": 15}


def test_labels_are_the_same_in_any_order() -> None:
    one: Sample = ("x", "", "counter", [({"a": "1", "b": "2"}, 1)])
    two: Sample = ("x", "", "counter", [({"b": "2", "a": "1"}, 1)])
    assert merged([[one], [two]]) == [("x", "", "counter", [({"a": "1", "b": "2"}, 2)])]


# -- pauses ----------------------------------------------------------------------------------------


def test_a_worker_is_replaced_at_once_and_then_ever_later_up_to_a_bound() -> None:
    pauses = Pauses()
    found = [pauses.after(0.1) for _ in range(9)]
    assert found[:4] == [0, 0.25, 0.5, 1]
    assert found[-1] == LONGEST_SECONDS
    assert found == sorted(found)


def test_a_worker_that_has_lived_is_replaced_at_once_again() -> None:
    pauses = Pauses()
    for _ in range(9):
        pauses.after(0.1)
    assert pauses.after(STABLE_SECONDS) == 0


# -- shares ----------------------------------------------------------------------------------------


def test_limits_of_the_gateway_are_divided_among_its_workers() -> None:
    settings = load_settings(
        {
            "workers": 4,
            "max_connections": 10,
            "max_connections_per_preview": 1,
            "max_queue_per_preview": 5,
            "max_tunnels_per_preview": 9,
        }
    )
    part = share(settings)
    parts = {
        "max_connections": 3,
        "max_connections_per_preview": 1,
        "max_queue_per_preview": 2,
        "max_tunnels_per_preview": 3,
    }
    assert part == settings.model_copy(update=parts), "nothing else differs"


# -- messages --------------------------------------------------------------------------------------


def test_settings_arrive_as_they_were_sent_with_their_secrets() -> None:
    settings = load_settings(
        {
            "port": 1234,
            "api_tokens": "one-token-of-sixteen,another-token-of-16",
            "data_dir": Path("/somewhere"),
            "drain_seconds": 0.5,
            "workers": 1,
        }
    )
    sent = json.loads(json.dumps(pack_settings(settings)))
    assert unpack_settings(sent) == settings
    assert unpack_settings(sent).tokens == {"one-token-of-sixteen", "another-token-of-16"}


def test_samples_arrive_as_they_were_sent() -> None:
    samples = [sample("hits", "counter", ok=1), sample("none", "counter")]
    assert unpack_samples(json.loads(json.dumps(samples))) == samples


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (SessionNotFound("some-id-1"), SessionNotFound),
        (RegistryUnavailable("away"), RegistryUnavailable),
        (NotAcknowledged("away"), RegistryUnavailable),
        (Fenced("lost"), GatewayError),
    ],
)
def test_an_error_keeps_its_sentence_and_what_it_means(
    sent: GatewayError, kind: type[GatewayError]
) -> None:
    raised = unpack_error(pack_error(sent), session_id="some-id-1")
    assert type(raised) is kind
    assert str(raised) == str(sent)


# -- sockets ---------------------------------------------------------------------------------------


def bound(port: int = 0) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def test_each_worker_gets_a_socket_of_its_own_on_the_one_port() -> None:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(s) for s in listening_sockets(bound(), 3)]
        assert len({sock.getsockname() for sock in sockets}) == 1
        for _ in range(100):
            stack.enter_context(socket.create_connection(sockets[0].getsockname()))
        for sock in sockets:
            sock.settimeout(1)
            stack.enter_context(sock.accept()[0])


def test_of_two_gateways_that_start_at_once_only_one_gets_the_port() -> None:
    with bound() as first, bound(first.getsockname()[1]) as second, contextlib.ExitStack() as stack:
        for sock in listening_sockets(first, 2):
            stack.enter_context(sock)
        with pytest.raises(SettingsError, match="GATEWAY_PORT"):
            listening_sockets(second, 2)
