"""What `fabricctl bgp` prints, and what it asks the agent."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fabric.cli import bgp

UP: dict[str, Any] = {
    "peer": "10.1.0.0",
    "name": "tor-a",
    "type": "NodePeer",
    "peer_as": 65000,
    "local_as": 65001,
    "source": "10.1.0.1",
    "state": "Established",
    "since": 130.0,
    "reason": "",
    "notification": None,
    "idle_until": None,
    "flaps": 1,
    "peer_id": "1.1.1.1",
    "received": 12,
    "accepted": 11,
    "best": 10,
    "advertised": 2,
    "max_prefixes": 10000,
    "updates_in": 7,
    "updates_out": 3,
    "required": True,
    "drained": True,
    "hits": [{"filter": "f", "direction": "import", "version": 4, "rule": 1, "hits": 9}],
    "hints": [],
}
DOWN = UP | {
    "peer": "10.2.0.0",
    "name": "",
    "state": "Connect",
    "reason": "connection refused",
    "notification": {"code": 2, "subcode": 2, "text": "bad peer AS", "sent_by": "peer", "at": 60.0},
    "drained": False,
    "hits": [],
    "hints": [{"id": "FAB1801", "cause": "the cause", "cure": "the cure"}],
}


def printed(*rows: tuple[str, float, dict[str, Any]], wide: bool = False) -> None:
    """Print rows as `bgp peers` does; times are seconds ago, of the idle one seconds from now."""
    now = time.time()
    told = []
    for node, ago, session in rows:
        last, until = session["notification"], session["idle_until"]
        of_now = {
            "since": now - session["since"],
            "notification": last and {**last, "at": now - last["at"]},
            "idle_until": until and now + until,
        }
        told.append((node, now - ago, {**session, **of_now}))
    bgp._print_peers(told, wide)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_peers_say_how_each_is_why_one_is_down_and_what_mends_it(capsys: pytest.CaptureFixture[str]) -> None:
    printed(("", 0.0, UP), ("", 0.0, DOWN))
    heading, up, down, *rest = lines(capsys)
    assert cells(heading)[:5] == ["PEER", "NAME", "AS", "STATE", "SINCE"]
    assert cells(up) == ["10.1.0.0", "tor-a", "65000", "Established, drained", "2m10s", "12", "11", "10", "2"]
    assert "(mesh)" in down
    assert "connection refused; last notification: bad peer AS (2/2), from the peer, 1m00s ago" in down
    assert rest == ["", "10.2.0.0: the cause [FAB1801]", "  the cure"]


def test_that_bgp_is_off_and_what_is_not_done_of_its_resources_is_told_on_stderr(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    problem = "BGPPeer tor-b: no secret: no session"
    status = {
        "node": "n1",
        "bgp": False,
        "problems": ["/some/key: why", problem],
        "bgp_problems": [problem],
        "sessions": [UP],
    }
    with agent(tmp_path / "a.sock", status) as asked:
        bgp._peers_here(bgp.PeersFormat.TABLE, at=tmp_path / "a.sock")
    said = capsys.readouterr()
    assert asked == ["GET /v1/status"]
    off, warning = said.err.splitlines()
    assert "BGP is off on this node" in off
    assert warning == f"warning: {problem}"
    assert "10.1.0.0" in said.out
    with agent(tmp_path / "b.sock", [UP]) as asked:
        bgp._peers_here(bgp.PeersFormat.JSON, at=tmp_path / "b.sock")
    assert asked == ["GET /v1/bgp/peers"]
    assert capsys.readouterr().err == ""


def test_a_notification_that_the_reason_has_is_not_told_twice(capsys: pytest.CaptureFixture[str]) -> None:
    printed(("", 0.0, DOWN | {"reason": "sent 5 prefixes and 4 is the limit: notification sent (6,1)"}))
    assert cells(lines(capsys)[1])[-1].endswith("notification sent (6,1)")


def test_wide_has_more_columns_and_how_often_each_rule_decided(capsys: pytest.CaptureFixture[str]) -> None:
    printed(("", 0.0, UP), wide=True)
    heading, up, _, *hits = lines(capsys)
    assert {"SOURCE", "PEER ID", "FLAPS", "MAX", "UPDATES IN", "REQUIRED"} <= set(cells(heading))
    assert {"10.1.0.1", "1.1.1.1", "yes"} <= set(cells(up))
    assert [cells(line) for line in hits] == [
        ["PEER", "FILTER", "RULE", "HITS"],
        ["10.1.0.0", "f", "importV4[1]", "9"],
    ]


def test_peers_of_all_nodes_have_their_node_and_the_age_of_what_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printed(("n1", 40.0, UP), ("n2", 400.0, DOWN))
    heading, up, down, *rest = lines(capsys)
    assert (cells(heading)[0], cells(up)[0], cells(down)[0]) == ("NODE", "n1", "n2")
    assert "40s" in cells(up)
    assert "6m40s" in cells(down)
    assert rest[1] == "n2: 10.2.0.0: the cause [FAB1801]"


def test_a_session_that_idles_for_its_prefixes_says_for_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    printed(("", 0.0, DOWN | {"idle_until": 600.0, "notification": None}))
    assert re.search(r"connection refused; idle for (10m00s|9m\d\ds) more", lines(capsys)[1])


@contextmanager
def agent(at: Path, *answers: object) -> Iterator[list[str]]:
    """An agent that has one answer for each that asks, in order; yields what it was asked."""
    asked: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(at))
        listener.listen()
        listener.settimeout(5)

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    asked.append(connection.recv(65536).decode().partition(" HTTP")[0])
                    body = json.dumps(answer).encode()
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join()


ROUTE = {
    "prefix": "10.244.2.0/26",
    "own": "",
    "paths": [
        {
            "peer": "10.1.0.0",
            "next_hop": "10.1.0.0",
            "as_path": [65000, 65002],
            "local_pref": None,
            "med": 5,
            "use": "lost",
            "why": "longer AS path (2 > 1)",
        }
    ],
    "kernel": {
        "route": {"type": "unicast", "next_hops": [{"address": "10.2.0.0", "device": "eth2"}]},
        "why": "",
    },
    "advertised": [
        {"peer": "10.1.0.0", "advertised": False, "announcement": None, "why": "learned from this peer"},
        {
            "peer": "10.3.0.0",
            "advertised": True,
            "announcement": {"next_hop": "10.3.0.1", "as_path": [65001], "communities": ["65535:0"]},
            "why": "",
        },
    ],
}


def test_a_route_is_shown_with_every_path_the_kernel_and_every_peer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bgp._print_route(ROUTE)
    found = [cells(line) for line in lines(capsys)]
    assert found[0] == ["prefix", "10.244.2.0/26"]
    assert found[1] == ["kernel", "via 10.2.0.0 dev eth2"]
    assert found[4] == ["10.1.0.0", "10.1.0.0", "65000 65002", "-", "5", "lost", "longer AS path (2 > 1)"]
    assert found[7] == ["10.1.0.0", "no", "-", "learned from this peer"]
    assert found[8] == ["10.3.0.0", "yes", "10.3.0.1", "65001", "65535:0"]


def test_names_and_prefixes_are_quoted_in_what_is_asked(tmp_path: Path) -> None:
    with agent(tmp_path / "a.sock", []) as asked:
        assert bgp._routes("received", "tor/a b", "10.0.0.0/8", at=tmp_path / "a.sock") == []
    assert asked == ["GET /v1/bgp/received?peer=tor%2Fa+b&prefix=10.0.0.0%2F8"]
    with agent(tmp_path / "b.sock", [{"peer": "10.1.0.0", "name": ""}]) as asked:
        bgp._act("fd00::1", "drain", "drained", at=tmp_path / "b.sock")
    assert asked == ["POST /v1/bgp/peers/fd00%3A%3A1/drain"]
