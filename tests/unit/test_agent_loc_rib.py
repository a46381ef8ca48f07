"""From adj-RIBs-in to routes, next hops that BGP itself has to reach included; sections are RFC 4271's."""

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.filters import ImportPolicy
from bgp.peering import Here, Peering, StaticRoute, Uplink
from bgp.rib import Path, Prefix, SessionSpec
from fabric.agent.counts import LastCounts
from fabric.agent.loc_rib import ROUNDS, Inputs, LocRib, loc_rib
from fabric.agent.ways import Ways
from fabric.plan.encap import IPIP, VXLAN, Encap, Kind, Mode, Node, Pool
from fabric.plan.routes import NextHop, Route, RouteKey

ME = IPv4Address("192.0.2.1")
A, B = ip_address("10.1.0.0"), ip_address("10.2.0.0")
HERE = Here(
    uplinks=(
        Uplink("eth1", ip_interface("10.1.0.1/31")),
        Uplink("eth2", ip_interface("10.2.0.1/31")),
        Uplink("eth1", ip_interface("2001:db8:a::1/64")),
    ),
    loopback=frozenset({ME}),
)
OWN = ip_network("10.244.1.0/26")
POLICY = ImportPolicy(
    pools=frozenset({ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")}),
    own_blocks=frozenset({OWN}),
    default_routes=frozenset({4, 6}),
)


def foreign(prefix: str, device: str, gateway: str = "", metric: int = 0) -> Route:
    hop = NextHop(ip_address(gateway) if gateway else None, device)
    return Route(RouteKey(ip_network(prefix), metric), frozenset({hop}))


LINKS = (
    foreign("10.1.0.0/31", "eth1"),
    foreign("10.2.0.0/31", "eth2"),
    foreign("2001:db8:a::/64", "eth1", metric=256),
    foreign("fe80::/64", "eth1", metric=256),
    foreign("fe80::/64", "eth2", metric=256),
    foreign("0.0.0.0/0", "eth0", "172.16.0.1"),
)


def peering(peer: object) -> Peering:
    return Peering(SessionSpec(ip_address(str(peer)), 65000, ME, 65001, ME))


def path(
    prefix: str, next_hop: str = "", peer: object = A, as_path: tuple[int, ...] = (65000, 65002)
) -> Path:
    return Path(ip_network(prefix), ip_address(next_hop or str(peer)), ip_address(str(peer)), as_path=as_path)


def inputs(*paths: Path, peers: Iterable[object] = (A, B)) -> Inputs:
    tables = {p: {one.prefix: one for one in paths if one.peer == p} for p in peers}
    return Inputs(tuple(map(peering, peers)), POLICY, LINKS, tables, here=HERE)  # type: ignore[arg-type]


def made(*paths: Path) -> LocRib:
    return loc_rib(inputs(*paths), LocRib())


def hops(found: LocRib, prefix: str) -> set[str] | None:
    for route in found.routes:
        if route.key == RouteKey(ip_network(prefix)):
            return {f"{hop.gateway} {hop.device}" for hop in route.next_hops}
    return None


BOTH = {"10.1.0.0 eth1", "10.2.0.0 eth2"}


def test_equal_paths_of_two_peers_share_the_load() -> None:
    found = made(path("10.9.0.0/26"), path("10.9.0.0/26", peer=B))
    assert hops(found, "10.9.0.0/26") == BOTH
    assert [c.path.peer for c in found.candidates[ip_network("10.9.0.0/26")]] == [A, B]


def test_the_identifier_of_a_peer_breaks_the_tie() -> None:
    # 9.1.2.2 f, before g
    both = inputs(path("10.9.0.0/26"), path("10.9.0.0/26", peer=B))
    ids = {A: IPv4Address("9.9.9.9"), B: IPv4Address("1.1.1.1")}
    found = loc_rib(replace(both, peer_ids=ids), LocRib())
    assert found.best[ip_network("10.9.0.0/26")].best.path.peer == B


def test_an_ipv4_prefix_may_have_an_ipv6_next_hop() -> None:
    # RFC 8950 4
    assert hops(made(path("10.9.0.0/26", "2001:db8:a::9")), "10.9.0.0/26") == {"2001:db8:a::9 eth1"}


def test_a_next_hop_behind_a_bgp_route_takes_every_way_of_it() -> None:
    # 9.1.2.1: recursive; the other rack's node, whose address both ToRs announce
    node = [path("10.0.0.7/32", peer=peer) for peer in (A, B)]
    found = made(*node, path("10.9.0.0/26", "10.0.0.7"))
    assert hops(found, "10.9.0.0/26") == BOTH
    via = found.best[ip_network("10.9.0.0/26")].best.via
    assert (via.metric, via.through) == (1, (ip_network("10.0.0.7/32"),))


def test_what_the_host_reaches_by_itself_is_nearer() -> None:
    # 9.1.2.2 e
    found = made(path("10.0.0.7/32"), path("10.9.0.0/26", "10.0.0.7"), path("10.9.0.0/26", peer=B))
    assert hops(found, "10.9.0.0/26") == {"10.2.0.0 eth2"}


def test_a_chain_of_next_hops_is_followed_and_not_without_end() -> None:
    chain = [path("10.3.0.0/24")] + [path(f"10.{n}.0.0/24", f"10.{n - 1}.0.1") for n in range(4, 12)]
    found = made(*chain)
    assert found.best.keys() == {one.prefix for one in chain[: ROUNDS + 1]}
    assert found.refused.keys() == set(chain[ROUNDS + 1 :])
    assert made(*chain[::-1]).best == found.best


SELF = [
    pytest.param([path("10.9.0.0/16", "10.9.0.1")], id="in its own prefix"),
    pytest.param([path("10.9.0.1/32", "10.9.0.1")], id="being its own prefix"),
    pytest.param(
        [path("10.8.0.0/16", "10.9.0.1"), path("10.9.0.0/16", "10.8.0.1")], id="two, each through the other"
    ),
    pytest.param([path("0.0.0.0/0"), path("10.9.0.0/16", "172.31.0.1")], id="through a default route, BGP's"),
    pytest.param([path("10.9.0.0/16", "172.31.0.1")], id="through a default route, the host's"),
    pytest.param([path("10.0.0.0/8"), path("10.9.0.0/16", "10.9.0.1")], id="the way would change with it"),
    pytest.param([path("10.244.0.0/16"), path("10.9.0.0/16", str(OWN[5]))], id="in an own block"),
    pytest.param([path("10.9.0.0/16", "10.2.0.1")], id="this node"),
    pytest.param([path("10.9.0.0/16", str(ME))], id="this node, on lo"),
    pytest.param([path("2001:db8:9::/48", "fe80::1")], id="link-local"),
]


@pytest.mark.parametrize("paths", SELF)
def test_a_next_hop_never_resolves_through(paths: list[Path]) -> None:
    # 9.1.2.1
    found = made(*paths)
    assert found.refused.keys() == {paths[-1]} or found.refused.keys() == set(paths)
    assert hops(found, str(paths[-1].prefix)) is None


@pytest.mark.parametrize(
    ("next_hop", "why"),
    [
        (
            "172.31.0.1",
            "next hop 172.31.0.1 is on no link that has a carrier, and behind no route but a default",
        ),
        ("10.2.0.1", "the next hop is this node"),
        (str(OWN[5]), "the next hop is in 10.244.1.0/26, which is this node's own"),
        ("fe80::1", "a link-local next hop does not say on which link it is"),
    ],
)
def test_why_a_next_hop_does_not_resolve_is_told(next_hop: str, why: str) -> None:
    (told,) = made(path("10.9.0.0/16", next_hop)).refused.values()
    assert told.startswith(why)


def test_a_better_path_that_would_depend_on_itself_does_not_displace_the_one_that_stands() -> None:
    # 9.1.2.1: "if it would become unresolvable if the route was installed"
    stands = path("10.9.0.0/16", as_path=(65000, 65002, 65003))
    better = path("10.9.0.0/16", "10.9.0.1", peer=B)
    found = made(stands, better)
    assert hops(found, "10.9.0.0/16") == {"10.1.0.0 eth1"}
    assert found.refused.keys() == {better}


def test_nor_does_one_that_would_depend_on_itself_by_another_prefix() -> None:
    stands = path("10.8.0.0/16", as_path=(65000, 65002, 65003))
    behind = path("10.9.0.0/16", "10.8.0.1")
    better = path("10.8.0.0/16", "10.9.0.1", peer=B)
    found = made(stands, behind, better)
    assert hops(found, "10.8.0.0/16") == hops(found, "10.9.0.0/16") == {"10.1.0.0 eth1"}
    assert found.refused.keys() == {better}


@pytest.mark.parametrize("prefix", ["2001:db8:a::2/128", "2001:db8:a::/65"])
def test_a_prefix_narrower_than_the_link_does_not_take_in_its_own_next_hop(prefix: str) -> None:
    # The kernel would then reach nothing by this router any more.
    found = made(path(prefix, "2001:db8:a::2"), path("2001:db8:9::/48", "2001:db8:a::2"))
    assert hops(found, "2001:db8:9::/48") == {"2001:db8:a::2 eth1"}
    assert {str(refused.prefix) for refused in found.refused} == {prefix}


def test_a_prefix_within_its_next_hops_own_way_is_none_of_the_next_hops_business() -> None:
    # The usual aggregate: its next hop is closer covered.
    found = made(path("10.9.1.0/24"), path("10.9.0.0/16", "10.9.1.1", peer=B))
    assert hops(found, "10.9.0.0/16") == {"10.1.0.0 eth1"}


def test_a_link_without_carrier_reaches_nothing() -> None:
    given_ = inputs(path("10.9.0.0/26"), path("10.9.0.0/26", peer=B))
    cut = replace(HERE, uplinks=tuple(replace(u, carrier=u.device != "eth1") for u in HERE.uplinks))
    found = loc_rib(replace(given_, here=cut), LocRib())
    assert hops(found, "10.9.0.0/26") == {"10.2.0.0 eth2"}
    assert [lost.peer for lost in found.unreached] == [A]


def test_a_static_route_is_a_route_and_reaches_the_peer() -> None:
    # calico-semantics 7: reachableBy
    peer = "10.0.0.250"
    static = StaticRoute(ip_address(peer), B)
    far = StaticRoute(ip_address("10.0.0.251"), ip_address("172.31.0.1"))  # its gateway is on no link
    given_ = replace(
        inputs(path("10.9.0.0/26", peer=peer), peers=[ip_address(peer)]), static_routes=(static, far)
    )
    found = loc_rib(given_, LocRib())
    way = frozenset({NextHop(B, "eth2")})
    assert found.static_routes == (Route(RouteKey(ip_network("10.0.0.250/32")), way),)
    assert hops(found, "10.9.0.0/26") == {"10.2.0.0 eth2"}


def test_a_strangers_route_of_the_same_key_keeps_its_place() -> None:
    given_ = inputs(path("10.9.0.0/26"))
    theirs = foreign("10.9.0.0/26", "eth0", "172.16.0.1", metric=1024)
    assert loc_rib(replace(given_, foreign_routes=(*LINKS, theirs)), LocRib()).routes == ()


def test_paths_are_counted_by_what_became_of_them() -> None:
    loop, lost = path("10.9.1.0/26", as_path=(65000, 65001)), path("10.9.2.0/26", "172.31.0.1")
    found = made(path("10.9.0.0/26"), loop, lost, path("203.0.113.0/24"))
    assert (len(found.refused), found.unreached) == (3, (lost,))
    counts = LastCounts().of(found)
    assert (counts.accepted, counts.best) == ({A: 1}, {A: 1})
    assert (counts.looped, counts.unreached, counts.next_hops) == (
        {A: [loop.prefix]},
        {A: [lost.prefix]},
        {A: lost.next_hop},
    )


def test_nothing_is_made_anew_of_the_same_inputs() -> None:
    given_ = inputs(path("10.9.0.0/26"))
    found = loc_rib(given_, LocRib())
    assert loc_rib(replace(given_), found) is found
    assert loc_rib(replace(given_, here=Here()), found) is not found


# Tunnels: this node is 10.1.0.1 of 10.1.0.0/31, and far away, behind a default route, are n2 and n3.


def a_node(name: str, own: str) -> Node:
    ends: dict[Encap, IPv4Address] = {
        encap: IPv4Address(int(IPv4Address(f"10.244.{own[-1]}.0")) + n)
        for n, encap in enumerate((IPIP, VXLAN))
    }
    return Node(name, (ip_interface(f"{own}/24"),), ends)


FAR2, FAR3 = "172.31.0.2", "172.31.0.3"
BLOCK2, BLOCK3 = "10.244.2.0/26", "10.244.3.0/26"
NODES = {"n2": a_node("n2", FAR2), "n3": a_node("n3", FAR3)}


def ways(mode: Mode = "CrossSubnet", kind: Kind = "ipip") -> Ways:
    return Ways(
        replace(a_node("n1", "10.1.0.1"), addresses=(ip_interface("10.1.0.1/31"),)),
        NODES,
        (Pool(ip_network("10.244.0.0/16"), kind, mode, name="p"),),
        {ip_network(BLOCK2): "n2", ip_network(BLOCK3): "n3"} if mode == "Always" else {},
    )


def tunnelled(*paths: Path, by: Ways | None = None, **more: object) -> LocRib:
    return loc_rib(replace(inputs(*paths), ways=by or ways(), **more), LocRib())  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "want"), [("ipip", f"{FAR2} tunl0"), ("vxlan", "10.244.2.1 vxlan.fabric")])
def test_a_tunnel_reaches_a_node_that_only_a_default_route_leads_to(kind: Kind, want: str) -> None:
    found = tunnelled(path(BLOCK2, FAR2), path("10.9.0.0/26", FAR2), by=ways(kind=kind))
    assert hops(found, BLOCK2) == {want}
    assert {str(lost.prefix) for lost in found.unreached} == {"10.9.0.0/26"}  # of no pool
    assert found.best[ip_network(BLOCK2)].best.via.metric == 0


def test_the_interior_cost_of_a_tunnel_is_that_of_the_way_to_its_far_end() -> None:
    static = foreign("172.31.0.0/24", "eth2", "10.2.0.0", metric=20)
    found = tunnelled(path(BLOCK2, FAR2), foreign_routes=(*LINKS, static))
    assert hops(found, BLOCK2) == {f"{FAR2} tunl0"}
    assert found.best[ip_network(BLOCK2)].best.via.metric == 20


def test_two_routers_that_announce_a_block_lead_into_one_tunnel_where_the_pool_is_always_tunnelled() -> None:
    both = [path(prefix, peer=peer) for prefix in (BLOCK2, BLOCK3) for peer in (A, B)]
    found = tunnelled(*both, by=ways("Always"))
    assert (hops(found, BLOCK2), hops(found, BLOCK3)) == ({f"{FAR2} tunl0"}, {f"{FAR3} tunl0"})
    assert {hops(tunnelled(*both), prefix) == BOTH for prefix in (BLOCK2, BLOCK3)} == {True}


def test_ways_through_two_tunnels_share_the_load() -> None:
    found = tunnelled(path(BLOCK2, FAR2), path(BLOCK2, FAR3, peer=B))
    assert hops(found, BLOCK2) == {f"{FAR2} tunl0", f"{FAR3} tunl0"}


CUT = replace(HERE, uplinks=tuple(replace(u, carrier=u.device != "eth1") for u in HERE.uplinks))
DEAD_DEFAULT = foreign("0.0.0.0/0", "eth1", "10.1.0.0")
DEAD_STATIC = foreign("172.31.0.0/24", "eth1", "10.1.0.0")


@pytest.mark.parametrize(
    ("routes", "reached"),
    [
        pytest.param((DEAD_DEFAULT,), False, id="a default route by the dead link"),
        pytest.param((DEAD_STATIC,), False, id="another route by it"),
        pytest.param((DEAD_STATIC, DEAD_DEFAULT), False, id="both"),
        pytest.param((DEAD_STATIC, LINKS[-1]), True, id="a default route by another link too"),
        pytest.param((), True, id="no route that is to be seen here"),
    ],
)
def test_a_tunnel_reaches_nothing_where_only_links_without_carrier_lead_to_its_far_end(
    routes: tuple[Route, ...], reached: bool
) -> None:
    found = tunnelled(path(BLOCK2, FAR2), foreign_routes=(*LINKS[:2], *routes), here=CUT)
    assert hops(found, BLOCK2) == ({f"{FAR2} tunl0"} if reached else None)
    assert [lost.prefix for lost in found.unreached] == ([] if reached else [ip_network(BLOCK2)])


def test_but_by_bgp_it_may_be_reached_all_the_same() -> None:
    to_far = path(f"{FAR2}/32", peer=B)
    policy = replace(POLICY, pools=POLICY.pools | {ip_network("172.31.0.0/16")})
    found = tunnelled(
        path(BLOCK2),
        to_far,
        by=ways("Always"),
        foreign_routes=(*LINKS[:2], DEAD_DEFAULT),
        here=CUT,
        policy=policy,
    )
    assert hops(found, BLOCK2) == {f"{FAR2} tunl0"}
    assert found.best[ip_network(BLOCK2)].best.via.metric == 1


STATIC = foreign("172.31.0.0/24", "eth2", "10.2.0.0")


@pytest.mark.parametrize(
    ("prefix", "routes", "want"),
    [
        pytest.param("172.31.0.3/32", (), None, id="the far end"),
        pytest.param("172.31.0.0/16", (), None, id="around it"),
        pytest.param("0.0.0.0/0", (), None, id="a default"),
        pytest.param("172.31.0.0/25", (STATIC,), None, id="narrower than the host's own route to it"),
        pytest.param("172.31.0.0/24", (STATIC,), {f"{FAR3} tunl0"}, id="the host's own is as narrow"),
        pytest.param("172.31.0.0/16", (STATIC,), {f"{FAR3} tunl0"}, id="the host's own is narrower"),
        pytest.param("172.31.9.0/24", (), {f"{FAR3} tunl0"}, id="elsewhere"),
    ],
)
def test_what_is_announced_from_behind_a_tunnel_does_not_take_the_tunnels_own_packets(
    prefix: str, routes: tuple[Route, ...], want: set[str] | None
) -> None:
    router = path(prefix, "10.244.3.9", peer=B)  # a workload on n3
    policy = replace(POLICY, pools=POLICY.pools | {ip_network("172.31.0.0/16")})
    found = tunnelled(path(BLOCK3, FAR3), router, policy=policy, foreign_routes=(*LINKS[:-1], *routes))
    assert hops(found, BLOCK3) == {f"{FAR3} tunl0"}
    assert hops(found, prefix) == want
    assert found.unreached == (() if want else (router,))


@pytest.mark.parametrize(("prefix", "taken"), [("172.31.0.3/32", False), ("172.31.0.0/24", True)])
def test_nor_where_it_is_bgp_that_leads_to_the_far_end(prefix: str, taken: bool) -> None:
    to_far, router = path(f"{FAR3}/32"), path(prefix, "10.244.3.9", peer=B)
    policy = replace(POLICY, pools=POLICY.pools | {ip_network("172.31.0.0/16")})
    found = tunnelled(path(BLOCK3, FAR3), to_far, router, policy=policy, foreign_routes=LINKS[:-1])
    assert hops(found, f"{FAR3}/32") == {"10.1.0.0 eth1"}
    assert found.unreached == (() if taken else (router,))


def test_no_next_hop_is_reached_by_a_route_into_a_tunnel() -> None:
    into = foreign("172.31.0.0/24", "tunl0")
    found = loc_rib(replace(inputs(path("10.9.0.0/26", FAR2)), foreign_routes=(*LINKS, into)), LocRib())
    assert hops(found, "10.9.0.0/26") is None


def test_no_tunnel_leads_where_no_route_may() -> None:
    found = tunnelled(path(BLOCK2, str(OWN[5])), path(BLOCK3, str(ME), peer=B), by=ways("Always"))
    assert found.best == {}
    assert sorted(found.refused.values()) == [
        "the next hop is in 10.244.1.0/26, which is this node's own",
        "the next hop is this node",
    ]


def test_other_ways_are_other_inputs() -> None:
    given_ = replace(inputs(path(BLOCK2, FAR2)), ways=ways())
    found = loc_rib(given_, LocRib())
    assert loc_rib(replace(given_), found) is found
    assert hops(loc_rib(replace(given_, ways=ways("Always")), found), BLOCK2) == {f"{FAR2} tunl0"}
    assert hops(loc_rib(replace(given_, ways=Ways()), found), BLOCK2) is None


networks = [f"10.{n}.0.0/{length}" for n in (8, 9) for length in (15, 16, 24)] + ["10.8.0.1/32"]
addresses = ["10.1.0.0", "10.2.0.0", "10.8.0.1", "10.8.1.1", "10.9.0.1", "172.31.0.1"]
walks = st.lists(
    st.builds(
        path,
        st.sampled_from([str(ip_network(n, strict=False)) for n in networks]),
        st.sampled_from(addresses),
        st.sampled_from([A, B]),
        st.sampled_from([(65000, 65002), (65000,), (65000, 65002, 65003)]),
    ),
    max_size=12,
    unique_by=lambda one: (one.prefix, one.peer),
)


@given(walks, st.randoms(use_true_random=False))
def test_the_end_does_not_depend_on_who_was_heard_first(paths: list[Path], random: Random) -> None:
    shuffled = list(paths)
    random.shuffle(shuffled)
    found, again = made(*paths), loc_rib(inputs(*shuffled, peers=(B, A)), LocRib())
    assert (again.best, again.refused, set(again.routes)) == (found.best, found.refused, set(found.routes))


with_tunnels = st.lists(
    st.builds(
        path,
        st.sampled_from([BLOCK2, BLOCK3, "10.244.2.9/32", "10.244.0.0/16", "10.9.0.0/16", "10.8.0.1/32"]),
        st.sampled_from(["10.1.0.0", "10.2.0.0", FAR2, FAR3, "10.9.0.1", "10.8.0.1", "10.244.2.9"]),
        st.sampled_from([A, B]),
        st.sampled_from([(65000, 65002), (65000,), (65000, 65002, 65003)]),
    ),
    max_size=12,
    unique_by=lambda one: (one.prefix, one.peer),
)


@given(with_tunnels, st.sampled_from(["CrossSubnet", "Always"]), st.randoms(use_true_random=False))
def test_nor_does_it_with_tunnels_and_each_of_their_routes_leads_to_a_node(
    paths: list[Path], mode: Mode, random: Random
) -> None:
    shuffled = list(paths)
    random.shuffle(shuffled)
    found, again = (tunnelled(*some, by=ways(mode)) for some in (paths, shuffled))
    assert (again.best, again.refused, set(again.routes)) == (found.best, found.refused, set(found.routes))
    taken = [hop for route in found.routes for hop in route.next_hops if hop.device == "tunl0"]
    assert {str(hop.gateway) for hop in taken} <= {FAR2, FAR3}
    used = {c.path for candidates in found.candidates.values() for c in candidates}
    assert used | found.refused.keys() == set(paths)


@given(walks)
def test_every_route_leads_to_a_link_and_every_path_is_accounted_for(paths: list[Path]) -> None:
    found = made(*paths)
    assert all(hop.gateway in (A, B) for route in found.routes for hop in route.next_hops)
    used = {c.path for candidates in found.candidates.values() for c in candidates}
    assert used | found.refused.keys() == set(paths)
    assert not used & found.refused.keys()
    assert {
        prefix: set(found.candidates[prefix]) >= set(best.multipath) for prefix, best in found.best.items()
    } == (dict.fromkeys(found.candidates, True))


def test_prefixes_of_both_families_stand_side_by_side() -> None:
    found = made(path("10.9.0.0/26"), path("2001:db8:9::/48", "2001:db8:a::9"))
    want: set[Prefix] = {ip_network("10.9.0.0/26"), ip_network("2001:db8:9::/48")}
    assert found.best.keys() == want
