"""Two whole nodes, each in its own time, while their pool is switched from one tunnel straight to another and back."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from random import Random

import pytest

from bgp.peering import Here, Uplink
from bgp.rib import Path
from fabric.agent import upkeep
from fabric.agent.routing import Host
from fabric.model.node import Node
from fabric.plan.encap import IPIP, VXLAN, Encap
from tests.fakes.node import FakeNode, MuteEtcd, pool, put, running, worked_out
from tests.unit.overlays import address, foreign, interface

AT = datetime(2026, 11, 21, tzinfo=UTC)
OWN = {"n1": "192.0.2.1", "n2": "198.51.100.2"}  # of two subnets
POOLS: Mapping[Encap, Mapping[str, str]] = {
    IPIP: {"ipipMode": "CrossSubnet"},
    VXLAN: {"vxlanMode": "CrossSubnet"},
}


def host(own: str) -> Host:
    gateway = own.rpartition(".")[0] + ".254"
    routes = [foreign(f"{interface(f'{own}/24').network}", "eth1"), foreign("0.0.0.0/0", "eth1", gateway)]
    return Host(Here((Uplink("eth1", interface(f"{own}/24")),)), tuple(routes), mtus={"eth1": 1500})


async def act(node: FakeNode, other: FakeNode, what: str) -> None:
    """Have `node` do one of the things that its agent does, on what it has heard by now."""
    state = node.state
    if what == "look after its part of IPAM":
        await upkeep.look_after(state, node.kv, {}, AT)
    elif what == "hear":
        await node.caught_up()
        own = address(OWN[other.state.node])
        blocks = [block for (name, block), _ in state.snapshot.affinities.items() if name == other.state.node]
        table = {block: Path(block, own, own, as_path=()) for block in blocks}
        state.update(ribs=replace(state.ribs, adj_rib_in={own: table}))
    else:
        worked_out(state)
        outcome = await node.passes.run(state.compute, read_back=what == "pass with read-back")
        assert not outcome.refused
        state.raised(node.passes.held_tunnels)
        state.passed(outcome)


ACTS = ("hear", "look after its part of IPAM", "pass", "pass with read-back")


def way(node: FakeNode, other: FakeNode) -> str:
    """The device by which packets for the other's block leave, which stands at both ends if it is a tunnel."""
    held = other.state.snapshot.blocks.values()
    blocks = {stored.block.prefix for stored in held if stored.block.node == other.state.node}
    used = {hop for r in node.fib.routes.values() if r.key.prefix in blocks for hop in r.next_hops}
    devices = {hop.device or "" for hop in used}
    for device in devices - {"eth1"}:
        here, there = node.tunnels.tunnels[device].tunnel, other.tunnels.tunnels[device].tunnel
        if here.encap == VXLAN:
            assert {far.address for far in here.far} >= {hop.gateway for hop in used} == {there.address}
    return "".join(devices)


@pytest.mark.parametrize("seed", range(8))
async def test_a_pool_that_goes_from_one_tunnel_to_another_is_carried_by_one_of_them_all_the_time(
    seed: int,
) -> None:
    turns, kv = Random(seed), MuteEtcd()
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(running(kv, name)) for name in OWN]
        for node in nodes:
            name = node.state.node
            spec = {"bgp": {"ipv4Address": f"{OWN[name]}/24"}}
            await put(kv, Node.model_validate({"metadata": {"name": name}, "spec": spec}))
            node.state.update(host=host(OWN[name]))
        pairs = [(nodes[0], nodes[1]), (nodes[1], nodes[0])]
        carried = False
        for encap in (IPIP, VXLAN, IPIP):
            await put(kv, pool("10.244.0.0/16", **POOLS[encap]))
            random = [(turns.choice(pairs), turns.choice(ACTS)) for _ in range(30)]
            for pair, what in [*random, *((pair, what) for _ in range(4) for pair in pairs for what in ACTS)]:
                await act(*pair, what)
                assert not carried or {way(*one) for one in pairs} <= {"tunl0", "vxlan.fabric"}
            assert {way(*one) for one in pairs} == {encap.device}
            carried = True
