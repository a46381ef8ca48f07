"""Tunnels and the routes that the datastore says, from what is stored: calico-semantics §§6, 8."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.nexthop import Hop
from bgp.peering import Here, Uplink
from fabric.agent.overlay import Overlay, Row
from fabric.agent.snapshot import Snapshot, fold
from fabric.agent.ways import Way
from fabric.ipam import block as blocks
from fabric.ipam.records import AFFINITY_CONFIRMED
from fabric.model.base import Resource
from fabric.model.ippool import IPPool
from fabric.ops.resources import key_of
from fabric.plan import encap as encaps
from fabric.plan.encap import IPIP, VXLAN, VXLAN6, Encap
from fabric.plan.mtu import Mtus
from fabric.plan.routes import NextHop, RouteKey
from fabric.plan.tunnels import Far, Tunnel
from fabric.store import keys
from fabric.store.kv import Changes, KeyValue
from tests.unit.overlays import (
    AT,
    DEFAULTS,
    GROUND,
    LINKS,
    address,
    block,
    end,
    endpoint,
    foreign,
    hops,
    interface,
    mac,
    made,
    network,
    node,
    own_address,
    pool,
    stored,
)

ALL = (IPIP, VXLAN, VXLAN6)
NODES = tuple(node(number, *ALL) for number in (1, 2, 3))
MODES = ("Never", "CrossSubnet", "Always")


def asking(encap: Encap, mode: str, *, fallback: bool = False) -> IPPool:
    return pool(encap.version, fallback=fallback, **{f"{encap.kind}Mode": mode})


EVERY = (asking(IPIP, "Always", fallback=True), asking(VXLAN6, "Always"))  # pools that ask for all of them


def towards(number: int, encap: Encap) -> Way:
    """The way through a tunnel to a node of the topology."""
    underlay = address(own_address(number, encap.version))
    return Way(Hop(underlay if encap.kind == "ipip" else end(number, encap), encap.device), underlay)


def ready(*resources: Resource, **more: object) -> Overlay:
    """n1's, with every end assigned to it."""
    return made(stored(*resources, ends=ALL, **more))  # type: ignore[arg-type]


# Ways


KINDS = [
    pytest.param(IPIP, False, "", id="ipip"),
    pytest.param(IPIP, True, "", id="ipip that may fall back"),
    pytest.param(IPIP, True, "here", id="this node has no ipip"),
    pytest.param(IPIP, True, "there", id="the other has no ipip"),
    pytest.param(VXLAN, False, "", id="vxlan"),
    pytest.param(VXLAN6, False, "", id="vxlan of IPv6"),
]


@pytest.mark.parametrize(("encap", "fallback", "lacks"), KINDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [2, 3], ids=["same subnet", "other subnet"])
def test_the_way_to_a_nodes_block(encap: Encap, fallback: bool, lacks: str, mode: str, number: int) -> None:
    nodes = {one.metadata.name: one for one in NODES}
    if lacks:
        lacking = node(1 if lacks == "here" else number, VXLAN, lacks="ipip")
        nodes[lacking.metadata.name] = lacking
    found = ready(*nodes.values(), asking(encap, mode, fallback=fallback))

    tunnelled = {"Never": False, "Always": True, "CrossSubnet": number == 3}[mode]
    used = VXLAN if lacks else encap
    want = towards(number, used) if tunnelled else None
    prefix, next_hop = block(number, encap.version), address(own_address(number, encap.version))
    assert found.ways.way(prefix, next_hop) == want
    by_datastore = want if want and used.kind == "vxlan" else None
    assert hops(found, prefix) == (
        {str(NextHop(by_datastore.hop.gateway, by_datastore.hop.device))} if by_datastore else None
    )
    rows = {
        row.encapsulation for row in found.rows if (row.node, row.version) == (f"n{number}", encap.version)
    }
    assert rows == ({used.kind if want else "native"} if mode != "Never" else set())
    assert (found.problems, found.waiting) == ({}, {})


def test_a_fallback_is_told_with_who_lacks_what() -> None:
    found = ready(NODES[0], node(3, VXLAN, lacks="ipip"), asking(IPIP, "CrossSubnet", fallback=True))
    assert found.rows == (Row("n3", 4, "vxlan", "no IPIP in the kernel of n3"),)


ROUTER = address("10.1.0.254")


@pytest.mark.parametrize("mode", MODES)
def test_a_router_that_announces_a_block_carries_it_unless_the_pool_is_always_tunnelled(mode: str) -> None:
    found = ready(*NODES, asking(IPIP, mode))
    assert found.ways.way(block(3), ROUTER) == (towards(3, IPIP) if mode == "Always" else None)


def test_what_a_router_announces_of_several_blocks_or_of_nobodys_goes_as_it_is() -> None:
    found = ready(*NODES, asking(IPIP, "Always"))
    assert found.ways.way(network("10.244.3.0/24"), ROUTER) is None
    assert found.ways.way(network("10.244.99.0/26"), ROUTER) is None
    assert found.ways.way(block(1), ROUTER) is None  # this node's own
    assert found.ways.way(network("10.99.0.0/26"), address(own_address(3))) is None  # in no pool
    assert found.ways.way(network("10.244.0.0/15"), address(own_address(3))) is None  # around the pool


def test_another_pool_that_is_always_tunnelled_makes_no_difference_to_a_routers_word() -> None:
    found = ready(*NODES, asking(IPIP, "CrossSubnet"), asking(VXLAN6, "Always"))
    assert found.ways.way(block(3), ROUTER) is None
    assert found.ways.way(block(3), address("10.3.0.254")) is None  # of another subnet
    assert found.ways.way(block(3, 6), address("2001:db8:1::fe")) == towards(3, VXLAN6)


def test_an_address_that_a_router_announces_leads_to_the_node_that_borrowed_it() -> None:
    borrowed = endpoint("web", 2, "10.244.3.9")
    found = ready(*NODES, asking(IPIP, "Always"), borrowed)
    assert found.ways.way(network("10.244.3.9/32"), ROUTER) == towards(2, IPIP)
    assert found.ways.way(network("10.244.3.10/32"), ROUTER) == towards(3, IPIP)


@pytest.mark.parametrize("encap", ALL, ids=lambda e: f"{e.kind}{e.version}")
@pytest.mark.parametrize("missing", [1, 3])
def test_until_both_nodes_note_their_ends_packets_go_as_they_are(encap: Encap, missing: int) -> None:
    nodes = [node(number, *(() if number == missing else ALL)) for number in (1, 3)]
    found = ready(*nodes, asking(encap, "Always"))
    assert found.ways.way(block(3, encap.version), address(own_address(3, encap.version))) is None
    assert hops(found, block(3, encap.version)) is None
    assert found.waiting.keys() == {f"Node n{missing}"}
    assert found.problems == {}
    [row] = found.rows
    assert row == Row("n3", encap.version, "native", f"n{missing} has no end of {encap.kind.upper()} yet")


@pytest.mark.parametrize(("before", "now"), [(IPIP, VXLAN), (VXLAN, IPIP)], ids=["to vxlan", "to ipip"])
@pytest.mark.parametrize("ready_at", [(), (1,), (3,), (1, 3)], ids=str)
def test_a_pool_that_asks_for_another_tunnel_keeps_the_one_it_had_until_that_stands_at_both_ends(
    before: Encap, now: Encap, ready_at: tuple[int, ...]
) -> None:
    nodes = [node(number, before, *((now,) if number in ready_at else ())) for number in (1, 3)]
    found = ready(*nodes, asking(now, "CrossSubnet"))
    used = now if ready_at == (1, 3) else before
    assert found.ways.way(block(3), address(own_address(3))) == towards(3, used)
    assert hops(found, block(3)) == (
        {f"via {end(3, VXLAN)} dev vxlan.fabric"} if VXLAN == used == now else None
    )
    [row] = found.rows
    assert row.encapsulation == used.kind
    assert bool(found.waiting) == bool(row.why) == (used != now)
    assert all(f"packets go by {before.kind.upper()}" in said for said in found.waiting.values())
    assert {tunnel.encap for tunnel in found.tunnels} == {used, now}


def test_another_tunnel_is_no_way_out_where_a_kernel_has_not_what_the_pool_asks_for() -> None:
    found = ready(NODES[0], node(3, VXLAN, lacks="ipip"), asking(IPIP, "CrossSubnet"))
    assert found.ways.way(block(3), address(own_address(3))) is None
    found = ready(node(1, IPIP), node(3, IPIP, lacks="ipip"), asking(VXLAN, "CrossSubnet"))
    assert found.ways.way(block(3), address(own_address(3))) is None


def test_a_kernel_without_ipip_and_no_fallback_is_a_problem_that_names_pool_module_and_way_out() -> None:
    found = ready(NODES[0], node(3, VXLAN, lacks="ipip"), asking(IPIP, "CrossSubnet"))
    assert found.ways.way(block(3), address(own_address(3))) is None
    [said] = found.problems.values()
    for word in ("pool v4", "n3", "module ipip", "vxlanMode", "fabricctl.io/tunnel-fallback: vxlan"):
        assert word in said
    own = ready(node(1, lacks="ipip"), *NODES[1:], asking(IPIP, "Always"))
    assert own.problems.keys() == {"Node n1"}
    assert own.tunnels == ()


def test_a_kernel_without_ipip_is_told_of_also_where_every_other_node_is_in_its_subnet() -> None:
    nodes = (node(1, lacks="ipip"), node(2, IPIP))
    found = ready(*nodes, asking(IPIP, "CrossSubnet"))
    assert found.ways.way(block(2), address(own_address(2))) is None
    assert not found.ways.barred(block(2), address(own_address(2)))  # it needs none
    assert "module ipip" in found.problems["Node n1"]
    assert found.unmade == {"tunl0": "the kernel has no IPIP (module ipip)"}
    far = ready(*nodes, node(3, IPIP), asking(IPIP, "CrossSubnet"))
    assert far.problems == found.problems
    assert far.ways.barred(block(3), address(own_address(3)))
    other = ready(*nodes, asking(IPIP, "CrossSubnet", fallback=True))
    assert (other.problems, other.unmade) == ({}, {})


@pytest.mark.parametrize(
    ("encap", "size", "told"),
    [
        (VXLAN6, 1349, "eth1 has an MTU of 1349, which leaves 1279 in vxlan-v6.fabric; IPv6 needs 1280"),
        (VXLAN6, 1350, ""),
        (VXLAN, 625, "eth1 has an MTU of 625, which leaves 575 in vxlan.fabric; IPv4 needs 576"),
        (IPIP, 596, ""),
    ],
)
def test_a_tunnel_for_which_there_is_no_room_is_not_made_nor_used(encap: Encap, size: int, told: str) -> None:
    snapshot = stored(*NODES, asking(encap, "Always"), ends=ALL)
    found = made(snapshot, replace(GROUND, mtus={"eth1": size}, mtu=size))
    assert found.unmade == ({encap.device: told} if told else {})
    assert [tunnel.encap for tunnel in found.tunnels] == ([] if told else [encap])
    used = found.ways.way(block(3, encap.version), address(own_address(3, encap.version)))
    assert used == (None if told else towards(3, encap))
    assert told in found.problems.get("Node n1", "")
    assert bool(found.problems) == bool(told)
    assert not [r for r in found.routes if told and any(hop.device for hop in r.next_hops)]


def test_a_node_in_its_own_tunnelled_pool_is_not_tunnelled_to_since_the_tunnel_would_go_through_itself() -> (
    None
):
    around = {"metadata": {"name": "all"}, "spec": {"cidr": "10.0.0.0/8", "ipipMode": "Always"}}
    found = ready(*NODES, IPPool.model_validate(around))
    assert found.ways.way(block(3), address(own_address(3))) is None
    assert "own address 10.1.0.1 is in pool all" in found.problems["Node n1"]
    assert "vxlanMode" not in found.problems["Node n1"]  # it would go through itself as well


def test_of_nodes_that_the_pool_does_not_select_there_is_nothing_to_say() -> None:
    chosen = pool(4, ipipMode="Always", nodeSelector="has(rack)")
    found = ready(node(1), node(3), chosen)
    assert (found.problems, found.waiting, found.rows) == ({}, {}, ())
    racked = node(3).model_copy(
        update={"metadata": node(3).metadata.model_copy(update={"labels": {"rack": "a"}})}
    )
    found = ready(node(1), racked, chosen)
    assert (found.problems, found.waiting) == ({}, {})
    assert found.rows == (Row("n3", 4, "native", "pool v4 does not select n1"),)


@pytest.mark.parametrize("racked", [1, 3])
def test_a_tunnel_that_still_stands_at_a_node_that_no_pool_asks_it_of_any_more_is_left_at_once(
    racked: int,
) -> None:
    labels = {"labels": {"rack": "a"}}
    nodes = [node(number, *ALL) for number in (1, 3)]
    nodes = [
        one.model_copy(update={"metadata": one.metadata.model_copy(update=labels)})
        if one.metadata.name == f"n{racked}"
        else one
        for one in nodes
    ]
    chosen = pool(4, vxlanMode="Always", nodeSelector="has(rack)")
    for name, number in (("n1", 3), ("n3", 1)):
        found = made(stored(*nodes, chosen, ends=ALL), name=name)
        assert found.ways.way(block(number), address(own_address(number))) is None
        assert (found.problems, found.waiting) == ({}, {})


# Routes

Written: TypeAlias = Mapping[keys.Key, str | None]
KEPT: Written = {
    keys.AffinityKey("n3", block(3)): AFFINITY_CONFIRMED,
    keys.BlockKey(block(3)): blocks.to_json(blocks.new(block(3), "n3", AT)),
}


def orphan(number: int) -> str:
    return blocks.to_json(blocks.without_affinity(blocks.new(block(number), f"n{number}", AT)))


def written(base: Snapshot, change: Written, at: int) -> Snapshot:
    puts = tuple(KeyValue(key.path, text, at) for key, text in change.items() if text)
    return fold(base, Changes(at, puts, tuple(key.path for key, text in change.items() if not text)))


def far_ends(found: Overlay) -> set[str]:
    return {str(r.key.prefix) for r in found.routes if all(hop.gateway is None for hop in r.next_hops)}


def test_each_far_end_of_a_vxlan_has_a_route_and_none_of_ipips() -> None:
    found = ready(*NODES, *EVERY)
    want = {
        f"{end(number, encap)}/{32 if encap == VXLAN else 128}"
        for number in (2, 3)
        for encap in (VXLAN, VXLAN6)
    }
    assert far_ends(found) == want
    assert hops(found, f"{end(2, VXLAN)}/32") == {"dev vxlan.fabric"}
    assert hops(found, f"{end(2, VXLAN6)}/128") == {"dev vxlan-v6.fabric"}


def test_a_borrowed_address_leads_to_its_workload_also_from_the_block_it_is_in() -> None:
    workloads = [
        endpoint("a", 2, "10.244.3.9"),  # of another's block
        endpoint("b", 3, "10.244.1.9"),  # of this node's block
        endpoint("c", 3, "10.244.3.10"),  # at home
        endpoint("d", 1, "10.244.3.11"),  # of another's block, here
    ]
    found = ready(*NODES, asking(VXLAN, "Always"), *workloads)
    assert hops(found, "10.244.3.9/32") == {f"via {end(2, VXLAN)} dev vxlan.fabric"}
    assert hops(found, "10.244.1.9/32") == {f"via {end(3, VXLAN)} dev vxlan.fabric"}
    assert hops(found, "10.244.3.10/32") is None
    assert hops(found, "10.244.3.11/32") is None
    assert hops(found, block(3)) == {f"via {end(3, VXLAN)} dev vxlan.fabric"}


def test_a_block_of_a_node_that_is_gone_has_no_route() -> None:
    assert hops(ready(*NODES[:2], asking(VXLAN, "Always")), block(3)) is None


def test_a_strangers_route_keeps_its_place() -> None:
    theirs = foreign(str(block(3)), "eth1", "10.1.0.254", metric=1024)
    snapshot = stored(*NODES, asking(VXLAN, "Always"), ends=ALL)
    found = made(snapshot, replace(GROUND, foreign_routes=(*LINKS, *DEFAULTS, theirs)))
    assert hops(found, block(3)) is None
    assert hops(found, block(2)) is not None


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({keys.AffinityKey("n3", block(3)): '{"state":"pending"}'}, id="not confirmed yet"),
        pytest.param({keys.AffinityKey("n3", block(3)): None}, id="no record"),
        pytest.param({keys.BlockKey(block(3)): None}, id="no block"),
        pytest.param({keys.BlockKey(block(3)): orphan(3)}, id="nobody's"),
    ],
)
def test_a_block_leads_to_a_node_while_block_and_record_both_say_that_it_has_it(change: Written) -> None:
    base = stored(*NODES, asking(VXLAN, "Always"), ends=ALL)
    before = made(base)
    after = made(written(base, change, 2), known=before)
    assert hops(before, block(3)) is not None
    assert hops(after, block(3)) is None
    again = made(written(written(base, change, 2), {key: KEPT[key] for key in change}, 3), known=after)
    assert again.routes == before.routes


# Nodes without BGP


@pytest.mark.parametrize("off", [(1,), (2,), (1, 2)], ids=["here", "there", "both"])
@pytest.mark.parametrize("version", [4, 6])
def test_the_blocks_of_a_neighbour_without_bgp_lead_to_its_address(
    off: tuple[int, ...], version: int
) -> None:
    nodes = [node(number, bgp="off") if number in off else node(number) for number in (1, 2)]
    found = made(stored(*nodes, pool(4), pool(6), endpoint("web", 2, "10.244.3.9")))
    assert hops(found, block(2, version)) == {f"via {own_address(2, version)} dev eth1"}
    assert hops(found, "10.244.3.9/32") == {f"via {own_address(2)} dev eth1"}
    assert found.problems == {}


def test_with_bgp_at_both_ends_the_datastore_says_nothing_of_what_is_not_tunnelled() -> None:
    assert made(stored(*map(node, (1, 2, 3)), pool(4))).routes == ()


@pytest.mark.parametrize("encap", [IPIP, VXLAN])
def test_without_bgp_a_tunnel_is_the_way_to_another_subnet(encap: Encap) -> None:
    nodes = [node(number, *ALL, bgp="off") for number in (1, 2, 3)]
    found = ready(*nodes, asking(encap, "CrossSubnet"), pool(6))
    assert hops(found, block(2)) == {f"via {own_address(2)} dev eth1"}
    want = towards(3, encap).hop
    assert hops(found, block(3)) == {f"via {want.gateway} dev {want.device}"}


def test_a_node_of_another_subnet_without_bgp_and_without_a_tunnel_is_a_problem_that_names_both() -> None:
    found = made(stored(node(1), node(3, bgp="off"), pool(4)))
    assert hops(found, block(3)) is None
    said = found.problems["Node n3"]
    for word in ("from n1 to n3", "BGP is off on n3", "10.2.0.3 is not in the subnet of n1, 10.1.0.0/24"):
        assert word in said


def test_it_is_none_yet_while_the_tunnel_to_it_is_being_made() -> None:
    found = ready(node(1, VXLAN), node(3, bgp="off"), asking(VXLAN, "CrossSubnet"))
    assert hops(found, block(3)) is None
    assert found.problems.get("Node n3", "").count("from n1 to n3") == 1  # of IPv6, which no pool tunnels
    assert "from n1 to n3: BGP is off on n3, 10.2.0.3 is not in" in found.waiting["Node n3"]


def test_a_neighbour_behind_a_link_without_carrier_has_no_route() -> None:
    dead = replace(GROUND, here=Here((Uplink("eth1", interface("10.1.0.1/24"), carrier=False),)))
    found = made(stored(node(1), node(2, bgp="off"), pool(4)), dead)
    assert hops(found, block(2)) is None
    assert "no link with a carrier leads to 10.1.0.2" in found.problems["Node n2"]


# Tunnels


def test_this_nodes_tunnels_end_where_ipam_says_and_vxlans_know_the_others() -> None:
    found = ready(node(1), *NODES[1:], *EVERY)  # its Node notes none yet: they are to be made first
    by_encap = {tunnel.encap: tunnel for tunnel in found.tunnels}
    assert by_encap[IPIP] == Tunnel(IPIP, end(1, IPIP), address("10.1.0.1"), 1480)
    for encap in (VXLAN, VXLAN6):
        far = {
            Far(end(number, encap), mac(number, encap.version), address(own_address(number, encap.version)))
            for number in (2, 3)
        }
        assert by_encap[encap] == Tunnel(
            encap,
            end(1, encap),
            address(own_address(1, encap.version)),
            1500 - encap.overhead,
            encaps.mac("n1", encap),
            4096,
            4789,
            frozenset(far),
        )


def test_without_an_end_in_ipam_without_the_kernels_leave_and_without_its_node_there_is_no_tunnel() -> None:
    assert made(stored(*NODES, *EVERY)).tunnels == ()
    lacking = ready(node(1, lacks="ipip,vxlan"), *NODES[1:], *EVERY)
    assert (lacking.tunnels, far_ends(lacking)) == ((), set())
    assert ready(*NODES[1:], *EVERY).tunnels == ()


def test_an_end_that_no_pool_asks_of_this_node_any_more_has_no_tunnel_though_ipam_still_holds_it() -> None:
    elsewhere = asking(VXLAN6, "Always").model_copy(
        update={"spec": pool(6, vxlanMode="Always", nodeSelector="has(rack)").spec}
    )
    found = ready(*NODES, asking(VXLAN, "CrossSubnet"), elsewhere)
    assert [tunnel.encap for tunnel in found.tunnels] == [VXLAN]
    assert ready(*NODES, asking(IPIP, "Never"), elsewhere).tunnels == ()


def test_a_far_end_whose_node_says_no_mac_has_calicos() -> None:
    bare = node(2, VXLAN)
    bare = bare.model_copy(update={"spec": bare.spec.model_copy(update={"vxlan_tunnel_mac_addr": None})})
    [tunnel] = [t for t in ready(NODES[0], bare, *EVERY).tunnels if t.encap == VXLAN]
    assert {far.mac for far in tunnel.far} == {encaps.mac("n2", VXLAN)}


def test_workloads_send_what_fits_in_every_tunnel_of_their_pools() -> None:
    assert ready(*NODES, pool(4), pool(6)).mtus == Mtus(1500, 1500)
    assert ready(*NODES, asking(IPIP, "CrossSubnet"), asking(VXLAN6, "Always")).mtus == Mtus(1480, 1430)
    assert ready(*NODES, asking(IPIP, "CrossSubnet", fallback=True)).mtus == Mtus(1450, 1500)


def test_the_link_to_a_peer_counts_like_the_links_to_nodes() -> None:
    tor = foreign("10.9.0.0/31", "eth2")
    ground = replace(GROUND, foreign_routes=(*LINKS, *DEFAULTS, tor), mtus={"eth1": 1500, "eth2": 1400})
    snapshot = stored(*NODES, ends=ALL)
    assert made(snapshot, ground).mtus == Mtus(1500, 1500)
    assert made(snapshot, replace(ground, peers=(address("10.9.0.1"),))).mtus == Mtus(1400, 1400)


# What is kept


def test_an_attach_changes_nothing_of_it() -> None:
    base = stored(*NODES, asking(VXLAN, "Always"), endpoint("a", 2, "10.244.3.9"), ends=ALL)
    before = made(base)
    after = made(stored(endpoint("b", 2, "10.244.2.9"), blocks_of=(), base=base, at=2), known=before)
    assert after.routes is before.routes
    assert after.ways is before.ways
    assert after.tunnels is before.tunnels


def test_a_block_more_changes_routes_and_not_the_ways_of_a_pool_that_asks_for_no_owners() -> None:
    base = stored(*NODES, asking(VXLAN, "CrossSubnet"), ends=ALL)
    before = made(base)
    after = made(stored(blocks_of=(3, 4), base=base, at=2), known=before)
    assert after.ways is before.ways
    assert made(stored(node(4, VXLAN), base=base, blocks_of=(4,), at=2), known=before).routes != before.routes


def test_a_workload_that_moved_or_went_is_not_looked_for_where_it_was() -> None:
    base = stored(*NODES, asking(VXLAN, "Always"), endpoint("a", 2, "10.244.3.9"), ends=ALL)
    before = made(base)
    moved = made(stored(endpoint("a", 2, "10.244.2.9"), blocks_of=(), base=base, at=2), known=before)
    assert hops(before, "10.244.3.9/32") is not None
    assert hops(moved, "10.244.3.9/32") is None
    gone = fold(base, Changes(2, deletes=(key_of(endpoint("a", 2)),)))
    assert hops(made(gone, known=before), "10.244.3.9/32") is None


SITUATIONS = [
    (stored(*nodes, *pools, *workloads, ends=ends), ground)
    for nodes, pools, workloads, ends, ground in product(
        (NODES, (*NODES[:2], node(3, VXLAN, lacks="ipip")), (NODES[0], node(2, bgp="off"), node(3))),
        (
            (asking(IPIP, "CrossSubnet", fallback=True),),
            (asking(VXLAN, "Always"), asking(VXLAN6, "CrossSubnet")),
            (pool(4),),
        ),
        ((), (endpoint("a", 2, "10.244.3.9"),), (endpoint("a", 3, "10.244.3.9"),)),
        (ALL,),
        (GROUND, replace(GROUND, mtus={"eth1": 9000})),
    )
]
BASE = stored(*NODES, asking(VXLAN, "Always"), endpoint("a", 2, "10.244.3.9"), ends=ALL)
SITUATIONS += [
    (Snapshot(), GROUND),
    (BASE, GROUND),
    (fold(BASE, Changes(2, deletes=(key_of(endpoint("a", 2)),))), GROUND),
    (stored(endpoint("a", 2, "10.244.2.9"), blocks_of=(), base=BASE, at=2), GROUND),
    (stored(endpoint("b", 3, "10.244.2.9"), blocks_of=(4,), base=BASE, at=2), GROUND),
    *((written(BASE, {key: None}, 2), GROUND) for key in KEPT),
    (written(BASE, {keys.BlockKey(block(3)): orphan(3)}, 2), GROUND),
]


@given(st.lists(st.sampled_from(SITUATIONS), max_size=8))
def test_what_is_remembered_never_changes_what_comes_out(walk: list[tuple[Snapshot, object]]) -> None:
    known = Overlay()
    for snapshot, ground in walk:
        found = made(snapshot, ground, known)  # type: ignore[arg-type]
        assert found == made(snapshot, ground)  # type: ignore[arg-type]
        known = found


@given(st.sampled_from(SITUATIONS), st.sampled_from([2, 3]))
def test_no_route_leads_into_a_tunnel_that_is_not_there_or_by_a_route_of_its_own(
    situation: tuple[Snapshot, object], number: int
) -> None:
    found = made(*situation)  # type: ignore[arg-type]
    devices = {tunnel.name for tunnel in found.tunnels}
    used = {hop.device for route in found.routes for hop in route.next_hops}
    assert used - {"eth1"} <= devices
    ends = {far.address for tunnel in found.tunnels for far in tunnel.far}
    neighbour = {address(own_address(2, version)) for version in (4, 6)}
    gateways = {hop.gateway for route in found.routes for hop in route.next_hops}
    assert gateways <= {None, *ends, *neighbour}
    way = found.ways.way(block(number), address(own_address(number)))
    assert way is None or (way.hop.device in devices and way.underlay not in network("10.244.0.0/16"))
    assert RouteKey(block(1)) not in {route.key for route in found.routes}
