"""When a node looks after its part of IPAM, and what it then writes; what is due is fabric.ipam.upkeep's to decide."""

import asyncio
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from fabric.agent import report, upkeep
from fabric.ipam import block as blocks
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from fabric.store import keys
from fabric.store.kv import Delete, Put, Txn
from tests.fakes.node import FakeNode, MuteEtcd, pool, put, request, running

POOL = pool("10.0.0.0/24", blockSize=28)
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
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


async def test_tunnel_addresses_come_with_a_pool_that_wants_them_stand_in_the_node_and_go_with_it() -> None:
    async with running(kv := await etcd()) as node:
        before, revision = node.state.snapshot.get(Node, "n1"), kv.revision
        await look(node)
        assert kv.revision == revision
        await put(kv, pool("10.0.0.0/24", blockSize=28, ipipMode="CrossSubnet"))
        await node.caught_up()
        await look(node)
        me = node.state.snapshot.get(Node, "n1")
        assert me
        assert me.spec.bgp
        assert me.spec.bgp.ipv4_ipip_tunnel_addr
        assert await stored(kv, keys.HANDLES) == [keys.HandleKey("ipip-tunnel-addr-n1").path]
        await put(kv, POOL)
        await node.caught_up()
        await look(node)
        assert node.state.snapshot.get(Node, "n1") == before
        assert await stored(kv, keys.HANDLES) == []


async def test_a_node_that_died_between_address_and_node_says_it_the_next_time() -> None:
    async with running(kv := await etcd(pool("10.0.0.0/24", blockSize=28, vxlanMode="Always"))) as node:
        await look(node)
        me = node.state.snapshot.get(Node, "n1")
        assert me
        held = me.spec.ipv4_vxlan_tunnel_addr
        assert held
        await put(kv, upkeep.with_tunnels(me, {"ipip": None, "vxlan": None, "vxlan-v6": None}))
        await node.caught_up()
        await look(node)
        again = node.state.snapshot.get(Node, "n1")
        assert again
        assert again.spec.ipv4_vxlan_tunnel_addr == held


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
        task = asyncio.create_task(upkeep.keep_up(node.state, kv))
        try:
            kv.down = True
            async with asyncio.timeout(5):
                await node.state.until(lambda: not node.state.snapshot.in_sync)
            kv.down = False
            async with asyncio.timeout(5):
                await node.state.until(lambda: node.state.snapshot.in_sync)
            await put(kv, pool("10.0.0.0/24", blockSize=28, ipipMode="Always"))
            async with asyncio.timeout(10):
                await node.state.until(
                    lambda: "ipip-tunnel-addr-n1" in node.state.snapshot.handles and _noted(node)
                )
        finally:
            task.cancel()


async def test_it_gives_back_a_block_as_its_last_address_goes_where_the_pool_no_longer_selects_the_node() -> (
    None
):
    async with running(kv := await etcd()) as node:
        task = asyncio.create_task(upkeep.keep_up(node.state, kv))
        try:
            await node.workloads.attach(request("web"))
            await put(kv, pool("10.0.0.0/24", blockSize=28, nodeSelector="rack == 'elsewhere'"))
            await node.caught_up()
            await node.workloads.detach("default", "web")
            async with asyncio.timeout(10):
                await node.state.until(lambda: not node.state.snapshot.blocks)
        finally:
            task.cancel()


def _noted(node: FakeNode) -> bool:
    me = node.state.snapshot.get(Node, "n1")
    return bool(me and me.spec.bgp and me.spec.bgp.ipv4_ipip_tunnel_addr)
