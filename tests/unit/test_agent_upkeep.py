"""When a node looks after its part of IPAM, and what it then writes; what is due is fabric.ipam.upkeep's to decide."""

import asyncio
import errno
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest

from fabric.agent import report, upkeep
from fabric.agent.passes import Outcome
from fabric.agent.upkeep import End
from fabric.errors import DataplaneError
from fabric.ipam import block as blocks
from fabric.ipam.types import Address
from fabric.ipam.upkeep import tunnel_addresses
from fabric.model.ippool import IPPool
from fabric.model.node import Node, NodeBGP
from fabric.plan import asked
from fabric.plan.encap import IPIP, VXLAN, Encap, Kind
from fabric.plan.tunnels import Tunnel
from fabric.store import keys
from fabric.store.kv import Delete, Put, Txn
from tests.fakes.node import FakeNode, MuteEtcd, pool, put, request, running

POOL = pool("10.0.0.0/24", blockSize=28)
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
OWN = ip_address("192.0.2.1")
ME = keys.ResourceKey("nodes", None, "n1").path


async def etcd(*pools: IPPool) -> MuteEtcd:
    kv = MuteEtcd()
    for one in pools or (POOL,):
        await put(kv, one)
    return kv


async def stored(kv: MuteEtcd, prefix: str) -> list[str]:
    return [item.key for item in (await kv.list(prefix)).items]


async def look(node: FakeNode, at: datetime = NOW) -> None:
    await upkeep.look_after(node.state, node.kv, {}, at)


async def nothing_missing(_asked: AbstractSet[Kind]) -> dict[Kind, str]:
    return {}


async def nothing_unasked() -> dict[Kind, str]:
    return {}


def raise_tunnels(node: FakeNode, *tunnels: Tunnel) -> None:
    node.state.raised({tunnel.name: tunnel for tunnel in tunnels})
    node.state.passed(Outcome())


def me(node: FakeNode) -> Node:
    found = node.state.snapshot.get(Node, "n1")
    assert found
    return found


def ends(node: FakeNode) -> dict[Encap, Address]:
    return dict(asked.node(me(node)).ends)


def held(node: FakeNode, name: str) -> Address:
    address = tunnel_addresses(node.state.snapshot.view("n1"))[name]
    assert address
    return address


async def test_an_end_stands_in_the_node_once_its_device_stands_and_goes_with_the_pool_that_wanted_it() -> (
    None
):
    async with running(kv := await etcd()) as node:
        before, revision = me(node), kv.revision
        await look(node)
        assert kv.revision == revision
        await put(kv, pool("10.0.0.0/24", blockSize=28, ipipMode="CrossSubnet"))
        await node.caught_up()
        raise_tunnels(node)
        await look(node)
        assert me(node) == before
        raise_tunnels(node, tunl0 := Tunnel(IPIP, held(node, "ipip"), OWN, 1480))
        await look(node)
        assert ends(node) == {IPIP: tunl0.address}
        assert await stored(kv, keys.HANDLES) == [keys.HandleKey("ipip-tunnel-addr-n1").path]
        await put(kv, POOL)
        await node.caught_up()
        await look(node)
        assert ends(node) == {IPIP: tunl0.address}  # the device lingers: others may go by it
        assert held(node, "ipip") == tunl0.address
        raise_tunnels(node)
        await look(node)
        assert me(node) == before
        assert await stored(kv, keys.HANDLES) == []


async def test_an_end_is_noted_as_its_device_has_it_until_that_has_another_address() -> None:
    async with running(await etcd(pool("10.0.0.0/24", blockSize=28, vxlanMode="Always"))) as node:
        await look(node)
        stands = Tunnel(VXLAN, held(node, "vxlan"), OWN, 1450, mac="66:00:00:00:00:01", vni=4096, port=4789)
        for standing in (stands, replace(stands, address=stands.address + 1), stands):
            raise_tunnels(node, standing)
            await look(node)
            assert ends(node) == {VXLAN: standing.address}
            assert me(node).spec.vxlan_tunnel_mac_addr == standing.mac
        raise_tunnels(node)  # it is refused
        await look(node)
        assert ends(node) == {}
        assert me(node).spec.vxlan_tunnel_mac_addr is None


@pytest.mark.parametrize("left", [{}, {"as_number": 64512}], ids=["nothing", "an AS number"])
async def test_a_node_whose_addresses_are_taken_away_carries_no_end_of_ipip_and_stays_readable(
    left: dict[str, int],
) -> None:
    async with running(kv := await etcd(pool("10.0.0.0/24", blockSize=28, ipipMode="Always"))) as node:
        await look(node)
        raise_tunnels(node, Tunnel(IPIP, held(node, "ipip"), OWN, 1480))
        await look(node)
        bgp = NodeBGP(**left) if left else None
        await put(kv, me(node).model_copy(update={"spec": me(node).spec.model_copy(update={"bgp": bgp})}))
        await node.caught_up()
        for _ in range(2):  # the device lingers
            await look(node)
            await node.caught_up()
        assert (asked.node(me(node)).addresses, list(ends(node))) == ((), [IPIP] if left else [])
        raise_tunnels(node)
        await look(node)
        assert (ends(node), me(node).spec.bgp) == ({}, bgp)


async def test_a_node_that_says_nothing_but_its_end_says_nothing_once_that_is_gone() -> None:
    async with running(kv := await etcd()) as node:
        bgp = NodeBGP(ipv4_ipip_tunnel_addr=ip_address("10.0.0.1"))
        await put(kv, me(node).model_copy(update={"spec": me(node).spec.model_copy(update={"bgp": bgp})}))
        await node.caught_up()
        await look(node)
        await node.caught_up()
        assert me(node).spec.bgp is None


async def test_what_a_node_notes_of_its_tunnels_stands_until_the_first_pass_has_tried_to_make_them() -> None:
    async with running(kv := await etcd(pool("10.0.0.0/24", blockSize=28, vxlanMode="Always"))) as node:
        await look(node)
        end = End(held(node, "vxlan"), "66:00:00:00:00:01")
        await put(kv, upkeep.with_tunnels(me(node), {VXLAN: end}))
        await node.caught_up()
        task = asyncio.create_task(upkeep.keep_up(node.state, kv, nothing_missing, nothing_unasked))
        try:
            await asyncio.sleep(0)  # it has begun
            assert ends(node) == {VXLAN: end.address}
            raise_tunnels(node)
            async with asyncio.timeout(5):
                await node.state.until(lambda: not ends(node))
        finally:
            task.cancel()


async def test_a_node_says_that_it_has_no_sessions_and_what_its_kernel_lacks_as_long_as_that_is_so() -> None:
    async with running(kv := await etcd(pool("10.0.0.0/24", blockSize=28, ipipMode="Always"))) as node:
        before = me(node)
        node.state.bgp = False
        await upkeep.look_after(node.state, kv, {}, NOW, frozenset({"ipip"}))
        said = me(node).metadata.annotations
        assert said == {
            **before.metadata.annotations,
            "fabricctl.io/bgp": "off",
            "fabricctl.io/lacks": "ipip",
        }
        assert await stored(kv, keys.HANDLES) == []
        node.state.bgp = True
        await put(kv, POOL)
        await node.caught_up()
        await look(node)
        assert me(node) == before


async def test_an_empty_block_of_a_pool_that_is_gone_goes_and_one_in_use_stays() -> None:
    other = pool("10.1.0.0/24", "other", blockSize=28)
    async with running(kv := await etcd(POOL, other)) as node:
        await node.workloads.attach(request("a", address=ip_address("10.0.0.1")))
        await node.workloads.attach(request("b", 1, address=ip_address("10.1.0.1")))
        await node.workloads.detach("default", "b")
        await kv.commit(Txn((), tuple(Delete(key) for key in await stored(kv, keys.resources("ippools")))))
        await node.caught_up()
        await look(node)
        assert [str(prefix) for prefix in node.state.snapshot.blocks] == ["10.0.0.0/28"]
        assert len(await stored(kv, keys.AFFINITIES)) == 1


async def test_a_spare_empty_block_goes_when_two_looks_a_minute_apart_find_it_so() -> None:
    async with running(await etcd()) as node:
        for number in range(17):
            await node.workloads.attach(request(f"w{number}", number))
        await node.workloads.detach("default", "w16")
        seen = await upkeep.look_after(node.state, node.kv, {}, NOW)
        seen = await upkeep.look_after(node.state, node.kv, seen, NOW + timedelta(seconds=59))
        assert len(node.state.snapshot.blocks) == 2
        await upkeep.look_after(node.state, node.kv, seen, NOW + timedelta(seconds=61))
        assert len(node.state.snapshot.blocks) == 1


async def test_a_step_that_loses_a_race_is_left_for_the_next_time() -> None:
    async with running(kv := await etcd()) as node:
        await node.workloads.attach(request("a"))
        await node.workloads.detach("default", "a")
        await kv.commit(Txn((), tuple(Delete(key) for key in await stored(kv, keys.resources("ippools")))))
        await node.caught_up()
        [block] = node.state.snapshot.blocks.values()
        kv.flows.clear()  # it decides on a block that somebody has written since
        key = keys.BlockKey(block.block.prefix).path
        await kv.commit(Txn((), (Put(key, blocks.to_json(blocks.touched(block.block))),)))
        await look(node)
        assert await stored(kv, keys.BLOCKS) == [key]
        kv.flows.set()
        await node.caught_up()
        await look(node)
        assert await stored(kv, keys.BLOCKS) == []


async def test_a_node_that_leaves_takes_no_tunnel_address_although_it_has_not_heard_of_it_yet() -> None:
    async with running(kv := await etcd(pool("10.0.0.0/24", blockSize=28, ipipMode="Always"))) as node:
        kv.flows.clear()
        await kv.commit(Txn((), (Delete(ME),)))
        await look(node)
        assert await stored(kv, keys.IPAM) == []
        assert await stored(kv, ME) == []


async def test_what_ipam_cannot_give_is_a_problem_of_the_node_until_it_can() -> None:
    full = pool("10.0.0.0/30", blockSize=30, ipipMode="Always")
    async with running(await etcd(full)) as node:
        for number in range(4):
            await node.workloads.attach(request(f"w{number}", number))
        await look(node)
        [problem] = report.status(node.state, 0.0)["problems"]
        assert problem.startswith("ipip tunnel: node n1: no address left")
        await node.workloads.detach("default", "w0")
        await look(node)
        assert report.status(node.state, 0.0)["problems"] == []


async def test_it_waits_for_the_datastore_and_looks_again_when_a_pool_changes() -> None:
    kv = await etcd()
    async with running(kv) as node:
        task = asyncio.create_task(upkeep.keep_up(node.state, kv, nothing_missing, nothing_unasked))
        raise_tunnels(node)
        try:
            kv.down = True
            async with asyncio.timeout(5):
                await node.state.until(lambda: not node.state.snapshot.in_sync)
            kv.down = False
            async with asyncio.timeout(5):
                await node.state.until(lambda: node.state.snapshot.in_sync)
            await put(kv, pool("10.0.0.0/24", blockSize=28, ipipMode="Always"))
            async with asyncio.timeout(10):
                await node.state.until(lambda: "ipip-tunnel-addr-n1" in node.state.snapshot.handles)
                raise_tunnels(node, Tunnel(IPIP, held(node, "ipip"), OWN, 1480))
                await node.state.until(lambda: IPIP in ends(node))
        finally:
            task.cancel()


async def test_only_tunnels_that_pools_ask_of_the_node_are_tried_until_they_are_found() -> None:
    tried: list[AbstractSet[Kind]] = []
    loaded: set[Kind] = {"ipip"}

    async def missing(kinds: AbstractSet[Kind]) -> dict[Kind, str]:
        tried.append(kinds)
        return dict.fromkeys(kinds - loaded, "Operation not supported")

    other = pool("10.1.0.0/24", "other", ipipMode="Always", nodeSelector="rack == 'elsewhere'")
    async with running(kv := await etcd(POOL, other)) as node:
        task = asyncio.create_task(upkeep.keep_up(node.state, kv, missing, nothing_unasked))
        raise_tunnels(node)
        try:
            async with asyncio.timeout(10):
                await put(kv, pool("10.0.0.0/24", blockSize=28, vxlanMode="Always"))
                await node.state.until(lambda: asked.node(me(node)).lacks == {"vxlan"})
                loaded.add("vxlan")
                await put(kv, pool("10.0.0.0/24", blockSize=28, ipipMode="Always"))
                await node.state.until(lambda: not asked.node(me(node)).lacks)
        finally:
            task.cancel()
    kinds = [some for some in tried if some]
    assert not tried[0]
    assert (kinds[0], kinds[-1]) == ({"vxlan"}, {"ipip", "vxlan"})
    assert kinds.count({"ipip", "vxlan"}) == 1


async def test_that_a_kernel_lacks_ipip_is_noted_though_no_pool_asks_for_it_and_nothing_is_loaded_for_that() -> (
    None
):
    tried: list[AbstractSet[Kind]] = []

    async def missing(kinds: AbstractSet[Kind]) -> dict[Kind, str]:
        tried.append(kinds)
        return {}

    async def unasked() -> dict[Kind, str]:
        return {"ipip": "not in /lib/modules"}

    async with running(kv := await etcd()) as node:
        task = asyncio.create_task(upkeep.keep_up(node.state, kv, missing, unasked))
        raise_tunnels(node)
        try:
            async with asyncio.timeout(10):
                await node.state.until(lambda: asked.node(me(node)).lacks == {"ipip"})
        finally:
            task.cancel()
    assert not any(tried)


async def test_what_a_kernel_lacks_stands_while_it_cannot_be_told() -> None:
    tried: asyncio.Queue[AbstractSet[Kind]] = asyncio.Queue()
    refused = DataplaneError("make an ipip device", errno.ENOMEM)
    answers: list[Mapping[Kind, str] | DataplaneError] = [{"ipip": "not supported"}, refused, {}]

    async def missing(kinds: AbstractSet[Kind]) -> Mapping[Kind, str]:
        if not kinds:
            return {}
        tried.put_nowait(kinds)
        if isinstance(answer := answers.pop(0), DataplaneError):
            raise answer
        return answer

    def lacks(node: FakeNode) -> bool:
        return "fabricctl.io/lacks" in me(node).metadata.annotations

    async with running(kv := await etcd(pool("10.0.0.0/24", blockSize=28, ipipMode="Always"))) as node:
        task = asyncio.create_task(upkeep.keep_up(node.state, kv, missing, nothing_unasked))
        raise_tunnels(node)
        try:
            async with asyncio.timeout(10):
                await node.state.until(lambda: lacks(node))
                for other in ("10.1.0.0/24", "10.2.0.0/24"):
                    assert await tried.get() == {"ipip"}
                    assert lacks(node)
                    await put(kv, pool(other, "other"))
                await node.state.until(lambda: not lacks(node))
        finally:
            task.cancel()
    assert not answers


class Changing(MuteEtcd):
    """Somebody takes the pool's tunnels away while the node takes an address for them, and the node hears of it."""

    def __init__(self) -> None:
        super().__init__()
        self.node: FakeNode | None = None

    async def commit(self, txn: Txn) -> int:
        revision = await super().commit(txn)
        if self.node and any(op.key.startswith(keys.HANDLES) for op in txn.ops):
            node, self.node = self.node, None
            await put(self, POOL)
            await node.caught_up()
        return revision


async def test_what_changes_during_a_look_is_looked_at_soon() -> None:
    await put(kv := Changing(), POOL)
    async with running(kv) as node:
        task = asyncio.create_task(upkeep.keep_up(node.state, kv, nothing_missing, nothing_unasked))
        raise_tunnels(node)
        try:
            kv.node = node
            await put(kv, pool("10.0.0.0/24", blockSize=28, ipipMode="Always"))
            async with asyncio.timeout(5):
                await node.state.until(lambda: bool(node.state.snapshot.handles))
                await node.state.until(lambda: not node.state.snapshot.handles)
        finally:
            task.cancel()


async def test_it_gives_back_a_block_as_its_last_address_goes_where_the_pool_no_longer_selects_the_node() -> (
    None
):
    async with running(kv := await etcd()) as node:
        task = asyncio.create_task(upkeep.keep_up(node.state, kv, nothing_missing, nothing_unasked))
        raise_tunnels(node)
        try:
            await node.workloads.attach(request("web"))
            await put(kv, pool("10.0.0.0/24", blockSize=28, nodeSelector="rack == 'elsewhere'"))
            await node.caught_up()
            await node.workloads.detach("default", "web")
            async with asyncio.timeout(10):
                await node.state.until(lambda: not node.state.snapshot.blocks)
        finally:
            task.cancel()
