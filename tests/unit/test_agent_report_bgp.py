"""What the agent says of its sessions, paths and announcements."""

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network
from typing import Any

import pytest

from bgp.rib import Notification, Path, SessionState, SessionStatus, Traffic
from fabric.agent import report, report_bgp
from fabric.agent.overlay import Overlay
from fabric.agent.passes import Outcome
from fabric.agent.report_bgp import Asked
from fabric.agent.ribs import Ribs, lost
from fabric.agent.snapshot import Snapshot
from fabric.agent.state import State
from fabric.agent.ways import Ways
from fabric.errors import DataplaneError, NotFound
from fabric.model.bgpfilter import BGPFilter
from fabric.model.extensions import REQUIRED
from fabric.plan.encap import Kind, Node, Pool
from fabric.plan.routes import NextHop, Replace, Route, RouteKey
from tests.fakes.node import worked_out
from tests.unit.test_agent_desired import (
    HOST,
    OWN,
    POOL,
    REMOTE,
    TOR_A,
    TOR_B,
    endpoint,
    node,
    path,
    store,
    tor,
)

NOW = 1000.0
UP = SessionStatus(SessionState.ESTABLISHED, 900.0, flaps=1, synced=True, peer_id=IPv4Address("1.1.1.1"))
DOWN = SessionStatus(
    SessionState.CONNECT, 990.0, "connection refused", 2, notification=Notification(2, 2, False, 990.0)
)
WORSE = replace(path(REMOTE, TOR_B), as_path=(65000, 65009, 65002))
STRANGER = path("198.51.100.0/24")
NAMED = (tor("tor-a", TOR_A), tor("tor-b", TOR_B))


def state(
    *paths: Path, sessions: Mapping[Any, SessionStatus] | None = None, snapshot: Snapshot | None = None
) -> State:
    tables: dict[Any, dict[Any, Path]] = {TOR_A: {}, TOR_B: {}}
    for one in paths:
        tables[one.peer][one.prefix] = one
    seen = {TOR_A: UP, TOR_B: UP} if sessions is None else sessions
    made = State(
        "n1",
        snapshot or store(node(), POOL, *NAMED),
        Ribs(True, True, sessions=seen, adj_rib_in=tables, traffic={TOR_A: Traffic(7, 3)}),
        HOST,
    )
    worked_out(made)
    return made


def session(of: State, peer: object = TOR_A) -> dict[str, Any]:
    (found,) = [s for s in report_bgp.sessions(of, NOW) if s["peer"] == str(peer)]
    return found


def test_a_session_says_what_it_carries_and_what_becomes_of_it() -> None:
    found = session(state(path(REMOTE), STRANGER, WORSE))
    assert {key: found[key] for key in ("state", "received", "accepted", "best", "advertised", "hints")} == {
        "state": "Established",
        "received": 2,
        "accepted": 1,
        "best": 1,
        "advertised": 1,
        "hints": [],
    }
    assert (found["name"], found["type"], found["peer_as"]) == ("tor-a", "GlobalPeer", 65000)
    assert (found["updates_in"], found["updates_out"], found["flaps"], found["peer_id"]) == (
        7,
        3,
        1,
        "1.1.1.1",
    )
    assert session(state(path(REMOTE), WORSE), TOR_B)["best"] == 0


def test_a_session_that_is_down_says_why_who_said_it_and_carries_nothing() -> None:
    found = session(state(sessions={TOR_A: DOWN, TOR_B: UP}))
    assert found["notification"] == {
        "code": 2,
        "subcode": 2,
        "text": "bad peer AS",
        "sent_by": "peer",
        "at": 990.0,
    }
    assert (found["state"], found["reason"], found["advertised"]) == ("Connect", "connection refused", 0)
    assert [hint["id"] for hint in found["hints"]] == ["FAB1801"]


def test_a_session_that_was_never_heard_of_is_idle_and_nothing_is_wrong_with_it() -> None:
    found = session(state(sessions={}))
    assert (found["state"], found["since"], found["notification"], found["hints"]) == ("Idle", 0.0, None, [])


def test_without_a_speaker_no_session_is_up_and_nothing_is_advertised() -> None:
    made = state(path(REMOTE))
    made.ribs = lost(made.ribs, 995.0)
    found = session(made)
    assert (found["state"], found["reason"]) == ("Idle", "the speaker does not answer")
    assert (found["received"], found["best"], found["advertised"], report_bgp.advertised(made)) == (
        1,
        1,
        0,
        [],
    )


def test_prefixes_of_others_that_only_come_with_the_own_as_are_diagnosed_and_own_ones_are_not() -> None:
    looped = replace(path(REMOTE), as_path=(65000, 65001))
    own = replace(path(OWN), as_path=(65000, 65001))
    assert "as-override" in session(state(looped, own))["hints"][0]["cure"]
    assert session(state(own, path("10.244.3.0/26")))["hints"] == []
    mine = replace(path("192.0.2.1/32"), as_path=(65000, 65001))
    made = state(mine, path("10.244.3.0/26"))
    made.host = replace(HOST, here=replace(HOST.here, loopback=frozenset({ip_address("192.0.2.1")})))
    worked_out(made)
    assert session(made)["hints"] == []
    assert session(state(looped, path(REMOTE, TOR_B)))["hints"] == []  # the other router has it


def test_next_hops_that_nothing_reaches_are_diagnosed() -> None:
    far = replace(path(REMOTE), next_hop=ip_address("203.0.113.9"))
    (hint,) = session(state(far))["hints"]
    assert "(203.0.113.9) is reached by no route" in hint["cause"]


def test_prefixes_for_want_of_their_tunnel_are_no_trail_to_their_next_hop() -> None:
    far = ip_interface("203.0.113.9/24")
    made = state(replace(path(REMOTE), next_hop=far.ip))
    lacking, having = frozenset[Kind]({"ipip"}), frozenset[Kind]()
    asking = Pool(ip_network("10.244.0.0/16"), "ipip", "CrossSubnet", name="p")
    for lacks, pools, hints in ((lacking, [asking], 0), (having, [asking], 0), (lacking, [], 1)):
        here = Node("n1", (ip_interface("192.0.2.1/24"),), lacks=lacks)
        ways = Ways(here, {"n2": Node("n2", (far,))}, tuple(pools))
        made.routing = replace(made.routing, overlay=Overlay(ways=ways))
        assert len(session(made)["hints"]) == hints


def test_what_a_filter_rejects_is_why_nothing_goes_out_and_its_rules_count() -> None:
    shut = BGPFilter.model_validate(
        {"metadata": {"name": "shut"}, "spec": {"exportV4": [{"action": "Reject"}]}}
    )
    peer = tor("tor-a", TOR_A)
    peer = peer.model_copy(update={"spec": peer.spec.model_copy(update={"filters": ("shut",)})})
    found = session(state(path(REMOTE), snapshot=store(node(), POOL, peer, shut)))
    assert "nothing goes out: rejected by BGPFilter shut" in found["hints"][0]["cause"]
    assert found["hits"] == [{"filter": "shut", "direction": "export", "version": 4, "rule": 0, "hits": 1}]


def test_received_says_of_each_path_why_it_is_not_used() -> None:
    found = report_bgp.received(state(path(REMOTE), STRANGER, WORSE))
    assert [(r["peer"], r["prefix"], r["refused"]) for r in found] == [
        (str(TOR_A), str(REMOTE), ""),
        (str(TOR_A), "198.51.100.0/24", "in no pool"),
        (str(TOR_B), str(REMOTE), ""),
    ]


@pytest.mark.parametrize(
    ("asked", "prefixes"),
    [
        pytest.param(Asked(), ["10.244.2.0/26", "198.51.100.0/24", "10.244.2.0/26"], id="everything"),
        pytest.param(Asked(frozenset({TOR_B})), ["10.244.2.0/26"], id="of one peer"),
        pytest.param(Asked(prefix=ip_network("10.0.0.0/8")), ["10.244.2.0/26"] * 2, id="inside a prefix"),
        pytest.param(
            Asked(prefix=ip_network("198.51.100.7/32")), ["198.51.100.0/24"], id="around an address"
        ),
        pytest.param(Asked(prefix=ip_network("10.244.2.0/27")), [], id="a part is not the whole"),
        pytest.param(Asked(prefix=ip_network("::/0")), [], id="of the other family"),
    ],
)
def test_tables_are_told_as_far_as_they_are_asked_for(asked: Asked, prefixes: list[str]) -> None:
    assert [r["prefix"] for r in report_bgp.received(state(path(REMOTE), STRANGER, WORSE), asked)] == prefixes


def test_best_has_every_next_hop_that_shares_the_load() -> None:
    (found,) = report_bgp.best(state(path(REMOTE), path(REMOTE, TOR_B)))
    assert found["next_hops"] == [
        {"address": "10.1.0.0", "device": "eth1"},
        {"address": "10.2.0.0", "device": "eth2"},
    ]
    assert found["peers"] == [str(TOR_A), str(TOR_B)]


def test_advertised_is_what_stands_on_the_wire_of_established_sessions_alone() -> None:
    (found,) = report_bgp.advertised(state(sessions={TOR_A: UP, TOR_B: DOWN}))
    assert (found["peer"], found["prefix"], found["next_hop"]) == (str(TOR_A), str(OWN), "10.1.0.1")
    assert (found["as_path"], found["origin"], found["local_pref"]) == ([65001], "igp", None)


def route(of: State, asked: object, held: Mapping[RouteKey, Route] | None = None) -> dict[str, Any]:
    return report_bgp.route(of, ip_network(str(asked)), of.desired.routes if held is None else held)


def test_a_route_says_of_every_path_where_it_lost() -> None:
    found = route(state(path(REMOTE), WORSE), REMOTE)
    uses = {p["peer"]: (p["use"], p["why"]) for p in found["paths"]}
    assert uses[str(TOR_A)] == ("best", "")
    assert uses[str(TOR_B)][0] == "lost"
    assert "longer AS path" in uses[str(TOR_B)][1]
    worse = replace(WORSE, peer=TOR_A, next_hop=TOR_A)
    assert [p["use"] for p in route(state(worse, path(REMOTE, TOR_B)), REMOTE)["paths"]] == ["best", "lost"]
    assert found["kernel"] == {
        "route": {
            "prefix": str(REMOTE),
            "metric": 1024,
            "type": "unicast",
            "next_hops": [{"address": "10.1.0.0", "device": "eth1"}],
        },
        "why": "",
    }


def test_a_route_says_of_a_refused_path_by_what() -> None:
    (found,) = route(state(STRANGER), "198.51.100.0/24")["paths"]
    assert (found["use"], found["why"]) == ("refused", "in no pool")


def test_paths_that_share_the_load_are_multipath() -> None:
    found = route(state(path(REMOTE), path(REMOTE, TOR_B)), REMOTE)
    assert [p["use"] for p in found["paths"]] == ["best", "multipath"]


def test_an_address_means_the_longest_prefix_around_it() -> None:
    made = state(path(REMOTE), path("10.244.0.0/16"))
    assert route(made, "10.244.2.7/32")["prefix"] == str(REMOTE)
    assert route(made, "10.244.9.7/32")["prefix"] == "10.244.0.0/16"
    assert route(made, "10.244.1.7/32")["prefix"] == str(OWN)
    with pytest.raises(NotFound, match=r"203\.0\.113\.1/32: no peer has sent"):
        route(made, "203.0.113.1/32")


def test_a_route_says_to_whom_it_is_announced_and_else_why_not() -> None:
    found = route(state(path(REMOTE), sessions={TOR_A: UP, TOR_B: DOWN}), OWN)
    to = {a["peer"]: a for a in found["advertised"]}
    assert found["own"] == "block"
    assert to[str(TOR_A)]["advertised"]
    assert to[str(TOR_A)]["announcement"]["next_hop"] == "10.1.0.1"
    assert (to[str(TOR_B)]["advertised"], to[str(TOR_B)]["announcement"]) == (False, None)
    assert "not Established: Connect: connection refused" in to[str(TOR_B)]["why"]
    learned = {a["peer"]: a["why"] for a in route(state(path(REMOTE)), REMOTE)["advertised"]}
    assert learned[str(TOR_A)] == "learned from this peer"
    assert "safe export" in learned[str(TOR_B)]


@pytest.mark.parametrize(
    ("held", "foreign", "refusals", "why"),
    [
        pytest.param({}, False, False, "the next pass sets it", id="not yet"),
        pytest.param({}, True, False, "a route of another origin", id="a stranger's stands there"),
        pytest.param({}, False, True, "ENETUNREACH", id="the kernel refused"),
    ],
)
def test_a_route_says_why_the_kernel_does_not_have_it(
    held: dict[RouteKey, Route], foreign: bool, refusals: bool, why: str
) -> None:
    made = state(path(REMOTE))
    if foreign:
        theirs = Route(RouteKey(REMOTE), frozenset({NextHop(TOR_A, "eth1")}))
        made.host = replace(HOST, foreign_routes=(*HOST.foreign_routes, theirs))
        worked_out(made)
    if refusals:
        op = Replace(made.desired.routes[RouteKey(REMOTE)])
        made.outcome = Outcome(refused={op: DataplaneError("route", 101)})
    kernel = route(made, REMOTE, held)["kernel"]
    assert kernel["route"] is None
    assert why in kernel["why"]


def test_a_workloads_own_route_is_told_as_that() -> None:
    found = route(state(snapshot=store(node(), POOL, *NAMED, endpoint("10.244.1.5"))), "10.244.1.5/32")
    assert found["own"].startswith("workload on fab")
    assert "inside own block" in found["advertised"][0]["why"]


@pytest.mark.parametrize(
    ("sessions", "ready"),
    [({TOR_A: UP, TOR_B: DOWN}, False), ({TOR_A: DOWN, TOR_B: UP}, True)],
)
def test_a_node_is_ready_only_while_a_required_session_is_established(
    sessions: dict[Any, SessionStatus], ready: bool
) -> None:
    snapshot = replace(store(node(), POOL, NAMED[0], tor("tor-b", TOR_B, **{REQUIRED: "true"})), in_sync=True)
    made = state(sessions=sessions, snapshot=snapshot)
    made.passed(Outcome())
    said = report.status(made, NOW)
    assert (said["ready"], said["locally_ready"]) == (ready, True)
    assert said["missing"] == ([] if ready else ["no required session is Established"])
