"""What a node should have, from whole situations."""

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.peering import Here, Uplink
from bgp.rib import Announcement, Path
from bgp.speaker.seam import Wanted
from fabric.agent.desired import Desired, desire, joined
from fabric.agent.ribs import Ribs
from fabric.agent.routing import Host, routing
from fabric.agent.snapshot import Snapshot, fold
from fabric.ipam import block as blocks
from fabric.ipam.records import AFFINITY_CONFIRMED
from fabric.model.base import Resource
from fabric.model.bgp import BGPConfiguration, BGPPeer
from fabric.model.extensions import DEFAULT_ROUTE, EXPORT, MAX_PREFIX, SOURCE, UPLINK
from fabric.model.node import Node
from fabric.model.wire import to_json
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.ops.resources import key_of
from fabric.plan.endpoints import NETNS_ANNOTATION
from fabric.plan.routes import NextHop, Route, RouteKey
from fabric.store import keys
from fabric.store.kv import Changes, KeyValue
from tests.fakes.node import pool

TOR_A, TOR_B = ip_address("10.1.0.0"), ip_address("10.2.0.0")
LINK_A, LINK_B = (
    Route(RouteKey(ip_network("10.1.0.0/31"), 0), frozenset({NextHop(None, "eth1")})),
    Route(RouteKey(ip_network("10.2.0.0/31"), 0), frozenset({NextHop(None, "eth2")})),
)
HOST_DEFAULT = Route(RouteKey(ip_network("0.0.0.0/0"), 0), frozenset({NextHop(TOR_A, "eth1")}))
HOST = Host(
    here=Here(
        uplinks=tuple(
            Uplink(device, ip_interface(text))
            for device, text in (("eth0", "192.0.2.1/32"), ("eth1", "10.1.0.1/31"), ("eth2", "10.2.0.1/31"))
        )
    ),
    foreign_routes=(LINK_A, LINK_B),
    mtu=9000,
)
OWN = ip_network("10.244.1.0/26")
POOL = pool("10.244.0.0/16")
REMOTE = ip_network("10.244.2.0/26")
FAB = "fab0123456789ab"


def node(**annotations: str) -> Node:
    return Node.model_validate(
        {
            "metadata": {"name": "n1", "annotations": annotations},
            "spec": {"bgp": {"ipv4Address": "192.0.2.1/32", "asNumber": 65001}},
        }
    )


def tor(name: str, address: object, **annotations: str) -> BGPPeer:
    return BGPPeer.model_validate(
        {
            "metadata": {"name": name, "annotations": {SOURCE: UPLINK, **annotations}},
            "spec": {"peerIP": str(address), "asNumber": 65000},
        }
    )


def endpoint(address: str, node_name: str = "n1", netns: str = "/run/netns/web") -> WorkloadEndpoint:
    return WorkloadEndpoint.model_validate(
        {
            "metadata": {
                "name": f"{node_name}-fabricctl-web-eth0",
                "namespace": "default",
                "annotations": {NETNS_ANNOTATION: netns} if netns else {},
            },
            "spec": {
                "node": node_name,
                "workload": "web",
                "endpoint": "eth0",
                "ipNetworks": [f"{address}/32"],
                "interfaceName": FAB,
                "mac": "02:00:00:00:00:01",
            },
        }
    )


TORS = (tor("a", TOR_A), tor("b", TOR_B))


def store(*resources: Resource, block: bool = True) -> Snapshot:
    puts = [(key_of(r), to_json(r)) for r in resources]
    if block:
        puts += [
            (
                keys.BlockKey(OWN).path,
                blocks.to_json(blocks.new(OWN, "n1", datetime(2026, 11, 21, tzinfo=UTC))),
            ),
            (keys.AffinityKey("n1", OWN).path, AFFINITY_CONFIRMED),
        ]
    return fold(Snapshot(), Changes(1, tuple(KeyValue(key, value, 1) for key, value in puts)))


def learned(*paths: Path) -> Ribs:
    tables: dict[object, dict[object, Path]] = {}
    for path in paths:
        tables.setdefault(path.peer, {})[path.prefix] = path
    return Ribs(connected=True, adj_rib_in=tables)  # type: ignore[arg-type]


def path(prefix: object, peer: object = TOR_A) -> Path:
    return Path(ip_network(str(prefix)), ip_address(str(peer)), ip_address(str(peer)), as_path=(65000, 65002))


def worked_out(snapshot: Snapshot, ribs: Ribs, host: Host, known: Desired) -> Desired:
    """What is desired, with the part in BGP worked out; of `known` what still holds is kept."""
    return desire(
        "n1", snapshot, host, routing("n1", snapshot, ribs, host, known.routing), known.adj_ribs_out
    )


def made(*resources: Resource, ribs: Ribs | None = None, host: Host = HOST) -> Desired:
    return worked_out(store(*(resources or (node(), POOL, *TORS))), ribs or Ribs(), host, Desired())


def hops(found: Desired, prefix: object) -> set[tuple[str, str | None]] | None:
    route = found.routes.get(RouteKey(ip_network(str(prefix))))
    return {(str(h.gateway), h.device) for h in route.next_hops} if route else None


def test_each_endpoint_of_this_node_has_a_link_and_a_route() -> None:
    desired = made(node(), POOL, endpoint("10.244.1.5"), endpoint("10.244.9.5", "n2"))
    assert desired.links.keys() == {FAB}
    assert (desired.links[FAB].mtu, desired.links[FAB].netns) == (9000, "/run/netns/web")
    assert hops(desired, "10.244.1.5/32") == {("None", FAB)}
    assert hops(desired, "10.244.9.5/32") is None


def test_an_endpoint_that_another_agent_made_has_no_link_of_ours() -> None:
    assert made(node(), POOL, endpoint("10.244.1.5", netns="")).links == {}


def test_own_blocks_are_blackholed_and_announced_on_every_session() -> None:
    desired = made()
    assert desired.routes[RouteKey(OWN)].blackhole
    assert desired.wanted.announce == {peer: {Announcement(OWN)} for peer in (TOR_A, TOR_B)}
    assert {(s.peer, str(s.source)) for s in desired.wanted.sessions} == {
        (TOR_A, "10.1.0.1"),
        (TOR_B, "10.2.0.1"),
    }


def test_a_borrowed_address_is_announced_by_itself() -> None:
    desired = made(node(), POOL, *TORS, endpoint("10.244.9.5"))
    assert Announcement(ip_network("10.244.9.5/32")) in desired.wanted.announce[TOR_A]


def test_a_pool_that_is_not_to_be_exported_is_not() -> None:
    desired = made(node(), pool("10.244.0.0/16", disableBGPExport=True), *TORS)
    assert desired.wanted.announce == {TOR_A: frozenset(), TOR_B: frozenset()}
    assert desired.routes[RouteKey(OWN)].blackhole


def test_two_tors_that_announce_the_same_share_the_load() -> None:
    desired = made(ribs=learned(path(REMOTE), path(REMOTE, TOR_B)))
    assert hops(desired, REMOTE) == {("10.1.0.0", "eth1"), ("10.2.0.0", "eth2")}


def test_a_path_whose_link_is_gone_is_no_candidate() -> None:
    ribs = learned(path(REMOTE), path(REMOTE, TOR_B))
    desired = made(ribs=ribs, host=replace(HOST, foreign_routes=(LINK_B, HOST_DEFAULT)))
    assert hops(desired, REMOTE) == {("10.2.0.0", "eth2")}
    assert "on no link" in desired.loc_rib.refused[path(REMOTE)]


def test_paths_of_a_session_that_is_not_wanted_are_not_used() -> None:
    assert hops(made(node(), POOL, TORS[0], ribs=learned(path(REMOTE, TOR_B))), REMOTE) is None


def test_a_local_workload_beats_what_peers_say_of_its_address() -> None:
    desired = made(node(), POOL, *TORS, endpoint("10.244.1.5"), ribs=learned(path("10.244.1.5/32")))
    assert hops(desired, "10.244.1.5/32") == {("None", FAB)}


def test_what_is_refused_says_why() -> None:
    stranger, own = path("198.51.100.0/24"), path(OWN)
    desired = made(ribs=learned(stranger, own))
    assert desired.loc_rib.refused == {stranger: "in no pool", own: "own block"}
    assert desired.routes.keys() == {RouteKey(OWN)}


@pytest.mark.parametrize(
    ("foreign", "annotation", "installed"),
    [
        pytest.param((), "", True, id="the host has none"),
        pytest.param((HOST_DEFAULT,), "", False, id="the host has one of its own"),
        pytest.param((HOST_DEFAULT,), "install", True, id="it has, and the operator wants ours beside it"),
        pytest.param((HOST_DEFAULT,), "yes", False, id="a word we do not know"),
    ],
)
def test_a_default_route_is_taken_only_where_the_host_has_none_or_the_node_asks_for_it(
    foreign: tuple[Route, ...], annotation: str, installed: bool
) -> None:
    me = node(**{DEFAULT_ROUTE: annotation})
    host = replace(HOST, foreign_routes=(LINK_A, LINK_B, *foreign))
    desired = made(me, POOL, *TORS, ribs=learned(path("0.0.0.0/0")), host=host)
    assert (hops(desired, "0.0.0.0/0") is not None) == installed


@pytest.mark.parametrize("prefix", ["0.0.0.0/0", str(REMOTE)])
def test_a_strangers_route_with_our_key_keeps_its_place(prefix: str) -> None:
    me = node(**{DEFAULT_ROUTE: "install"})
    theirs = Route(RouteKey(ip_network(prefix)), frozenset({NextHop(TOR_A, "eth1")}))
    host = replace(HOST, foreign_routes=(LINK_A, LINK_B, theirs))
    assert hops(made(me, POOL, *TORS, ribs=learned(path(prefix)), host=host), prefix) is None


def test_without_its_node_resource_it_takes_no_part_in_bgp_but_containers_keep_their_links() -> None:
    desired = made(POOL, *TORS, endpoint("10.244.1.5"), ribs=learned(path(REMOTE)))
    assert (desired.wanted.sessions, desired.wanted.announce) == (frozenset(), {})
    assert desired.links.keys() == {FAB}
    assert hops(desired, REMOTE) is None


def test_an_empty_datastore_wants_nothing() -> None:
    desired = worked_out(Snapshot(), Ribs(), Host(), Desired())
    assert (desired.links, desired.routes, desired.wanted) == ({}, {}, Wanted())


def test_what_was_told_stands_beside_what_is_wanted_now_and_gives_way_prefix_by_prefix() -> None:
    one, other = sorted(made(node(), POOL, *TORS).wanted.sessions, key=lambda s: str(s.peer))
    first, second = (ip_network(text) for text in ("10.244.1.0/26", "10.244.2.0/26"))
    told = Wanted(frozenset({one}), {one.peer: frozenset({Announcement(first), Announcement(second)})})
    now = Announcement(first, next_hop=ip_address("192.0.2.99"))
    wanted = Wanted(
        frozenset({replace(one, port=1790), other}), {one.peer: frozenset({now}), other.peer: frozenset()}
    )
    both = joined(told, wanted)
    assert both.sessions == {one, other}
    assert both.announce == {one.peer: {now, Announcement(second)}, other.peer: frozenset()}
    assert joined(told, Wanted()) == told


TRANSIT = (tor("a", TOR_A, **{EXPORT: "calico"}), tor("b", TOR_B, **{EXPORT: "calico"}))
SITUATIONS = [
    (snapshot, ribs, host)
    for snapshot in (
        store(node(), POOL, *TORS),
        store(node(), POOL, *TRANSIT),
        store(node(), POOL, *TRANSIT, endpoint("10.244.9.5")),
        store(node(), POOL, TORS[0]),
        store(node(), *TORS),
        Snapshot(),
    )
    for ribs in (Ribs(), learned(path(REMOTE)), learned(path(REMOTE, TOR_B), path("10.244.9.5/32")))
    for host in (HOST, replace(HOST, foreign_routes=(LINK_B,)), replace(HOST, foreign_routes=(HOST_DEFAULT,)))
]


@given(st.lists(st.sampled_from(SITUATIONS), max_size=8))
def test_what_is_remembered_never_changes_what_is_desired(walk: list[tuple[Snapshot, Ribs, Host]]) -> None:
    known = Desired()
    for snapshot, ribs, host in walk:
        desired = worked_out(snapshot, ribs, host, known)
        assert desired == worked_out(snapshot, ribs, host, Desired())
        known = desired


def test_the_loc_rib_is_not_made_again_for_an_attach() -> None:
    ribs = learned(path(REMOTE))
    before = made(ribs=ribs)
    after = worked_out(store(node(), POOL, *TORS, endpoint("10.244.1.5")), ribs, HOST, before)
    assert after.loc_rib is before.loc_rib
    assert hops(after, "10.244.1.5/32") == {("None", FAB)}


def test_what_is_passed_on_is_not_decided_again_for_an_attach() -> None:
    transit = (node(), POOL, *TRANSIT)
    ribs = learned(path(REMOTE))
    before = worked_out(store(*transit), ribs, HOST, Desired())
    after = worked_out(store(*transit, endpoint("10.244.9.5")), ribs, HOST, before)
    assert REMOTE in {a.prefix for a in before.wanted.announce[TOR_B]}
    assert {a.prefix for a in after.wanted.announce[TOR_A] - before.wanted.announce[TOR_A]} == {
        ip_network("10.244.9.5/32")
    }
    for peer in (TOR_A, TOR_B):
        assert after.adj_ribs_out[peer].passed_on is before.adj_ribs_out[peer].passed_on
        assert after.routing.passed_on is before.routing.passed_on


def test_an_address_inside_an_own_block_leaves_every_announcement_as_it_is() -> None:
    before = made()
    after = worked_out(store(node(), POOL, *TORS, endpoint("10.244.1.5")), Ribs(), HOST, before)
    assert after.wanted == before.wanted
    assert after.peerings is before.peerings


def test_what_a_peer_may_send_at_most_is_handed_down_unless_it_is_without_a_limit() -> None:
    desired = made(node(), POOL, TORS[0], tor("b", TOR_B, **{MAX_PREFIX: "0"}))
    assert desired.wanted.max_prefixes == {TOR_A: 10_000}


def test_the_nodes_address_is_announced_where_it_is_a_single_one_on_lo() -> None:
    mine = ip_network("192.0.2.1/32")
    on_lo = replace(HOST, here=replace(HOST.here, loopback=frozenset({mine.network_address, TOR_A + 77})))
    assert {a.prefix for a in made(host=on_lo).wanted.announce[TOR_A]} == {OWN, mine}
    assert {a.prefix for a in made().wanted.announce[TOR_A]} == {OWN}


def test_routes_get_the_communities_that_the_configuration_gives_their_prefix() -> None:
    given = BGPConfiguration.model_validate(
        {
            "metadata": {"name": "default"},
            "spec": {
                "communities": [{"name": "rack", "value": "65000:100"}],
                "prefixAdvertisements": [{"cidr": str(POOL.spec.cidr), "communities": ["rack", "65000:1:2"]}],
            },
        }
    )
    (announcement,) = made(node(), POOL, given, *TORS).wanted.announce[TOR_A]
    assert set(announcement.attributes.communities) == {"65000:100", "65000:1:2"}


def test_a_peer_behind_a_gateway_has_a_route_there_that_next_hops_resolve_through() -> None:
    far = BGPPeer.model_validate(
        {
            "metadata": {"name": "far"},
            "spec": {"peerIP": "198.51.100.1", "asNumber": 65000, "reachableBy": str(TOR_A)},
        }
    )
    desired = made(node(), POOL, far, ribs=learned(path(REMOTE, "198.51.100.1")))
    assert hops(desired, "198.51.100.1/32") == {(str(TOR_A), "eth1")}
    assert hops(desired, REMOTE) == {(str(TOR_A), "eth1")}


def test_a_session_whose_secret_is_not_there_is_none_and_says_where_it_was_looked_for() -> None:
    signed = BGPPeer.model_validate(
        {
            "metadata": {"name": "a", "annotations": {SOURCE: UPLINK}},
            "spec": {
                "peerIP": str(TOR_A),
                "asNumber": 65000,
                "password": {"secretKeyRef": {"name": "tor", "key": "md5"}},
            },
        }
    )
    without = made(node(), POOL, signed)
    assert not without.wanted.sessions
    assert "/etc/fabricctl/secrets/tor/md5" in without.peerings.problems["BGPPeer a"]
    secrets = replace(HOST, here=replace(HOST.here, secrets={("tor", "md5"): "hush"}))
    desired = worked_out(store(node(), POOL, signed), Ribs(), secrets, without)
    assert [s.password for s in desired.wanted.sessions] == ["hush"]
    assert "hush" not in repr(desired)
