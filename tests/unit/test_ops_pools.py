"""Pools that are stored or resized while others write pools and claim blocks at the same moment."""

from datetime import UTC, datetime
from ipaddress import ip_network

import pytest

from fabric.errors import FabricError
from fabric.ipam import assign
from fabric.ipam import block as blocks
from fabric.ipam.assign import Demand
from fabric.ipam.block import Owner
from fabric.model.ippool import IPPool
from fabric.ops import pools, resources
from fabric.ops.change import apply, carry_out, gather
from fabric.ops.files import Given
from fabric.store import ipam, keys
from fabric.store.kv import Put, Txn
from tests.fakes.etcd import FakeEtcd
from tests.fakes.node import pool, put, running
from tests.unit.changing import plan

NOW = datetime(2026, 11, 21, 4, 16, 27, tzinfo=UTC)
PREFIX = ip_network("10.0.0.0/26")


class RivalledEtcd(FakeEtcd):
    """Somebody else commits `theirs` just before the next `times` commits of ours."""

    theirs, times = Txn((), ()), 0

    async def commit(self, txn: Txn) -> int:
        if self.times:
            self.times -= 1
            await super().commit(self.theirs)
        return await super().commit(txn)


def stored(wanted: IPPool) -> Txn:
    return Txn((), (Put(resources.key_of(wanted), resources.encode(wanted)),))


def claimed() -> Txn:
    return Txn((), (Put(keys.BlockKey(PREFIX).path, blocks.to_json(blocks.new(PREFIX, "n2", NOW))),))


async def applied(kv: RivalledEtcd, *wanted: IPPool, theirs: Txn | None = None, times: int = 1) -> list[str]:
    """What `apply` of the pools does where somebody commits `theirs` between its check and its first write."""
    steps = await plan(kv, gather(apply, [Given(one, "pools.yaml:1") for one in wanted]))
    if theirs:
        kv.theirs, kv.times = theirs, times
    return [step.verb async for step in carry_out(kv, steps)]


async def test_of_two_who_add_pools_over_one_another_at_the_same_moment_one_is_refused() -> None:
    kv = RivalledEtcd()
    with pytest.raises(FabricError, match=r"IPPool a: cidr 10\.0\.0\.0/16 overlaps IPPool b .*not written"):
        await applied(kv, pool("10.0.0.0/16", "a"), theirs=stored(pool("10.0.0.0/8", "b")))
    assert [p.metadata.name for p in await resources.pools(kv)] == ["b"]


async def test_a_pool_beside_one_that_came_at_the_same_moment_is_stored_after_all() -> None:
    kv = RivalledEtcd()
    theirs = stored(pool("10.1.0.0/16", "b"))
    assert await applied(kv, pool("10.0.0.0/16", "a"), theirs=theirs) == ["created"]


async def test_pools_of_one_command_are_checked_as_they_will_stand() -> None:
    kv = RivalledEtcd()
    await put(kv, pool("10.0.0.0/16", "a"))
    moved = [pool("10.0.0.0/16", "b"), pool("10.1.0.0/16", "a")]
    assert await applied(kv, *moved) == ["created", "configured"]


async def test_a_block_claimed_at_the_moment_of_a_resize_stops_the_resize() -> None:
    kv = RivalledEtcd()
    await put(kv, pool("10.0.0.0/16"))
    with pytest.raises(FabricError, match=r"blockSize 26 may not become 27 .* 10\.0\.0\.0/26 \(n2\)"):
        await applied(kv, pool("10.0.0.0/16", blockSize=27), theirs=claimed())
    [still] = await resources.pools(kv)
    assert still.spec.block_size == 26


async def test_to_add_or_disable_a_pool_nobody_has_to_stop_claiming() -> None:
    kv = RivalledEtcd()
    await put(kv, pool("10.0.0.0/16"))
    wanted = [pool("10.0.0.0/16", disabled=True), pool("10.1.0.0/16", "b")]
    assert await applied(kv, *wanted, theirs=claimed(), times=100) == ["configured", "created"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(stored(pool("10.0.0.0/24", disabled=True)), id="disabled"),
        pytest.param(stored(pool("10.0.0.0/24", blockSize=27)), id="resized"),
    ],
)
async def test_a_claim_decided_before_its_pool_changed_is_decided_again(change: Txn) -> None:
    kv = RivalledEtcd()
    await put(kv, pool("10.0.0.0/24"))
    async with running(kv) as node:
        view = node.state.snapshot.view("n1")
        claims = [
            assign.automatic(view, 4, Demand(Owner("web")), NOW).change,
            assign.exact(view, ip_network("10.0.0.9").network_address, Demand(Owner("web")), NOW).change,
        ]
        await kv.commit(change)
        for claim in claims:
            with pytest.raises(FabricError, match="ippools/pool"):
                await kv.commit(ipam.transaction({}, claim))


class BusyEtcd(FakeEtcd):
    """Each block that is released is used by its node just before, once."""

    def __init__(self) -> None:
        super().__init__()
        self.used: set[str] = set()

    async def commit(self, txn: Txn) -> int:
        for key in {guard.key for guard in txn.guards if guard.key.startswith(keys.BLOCKS)} - self.used:
            if item := await self.get(key):
                self.used.add(key)
                await super().commit(Txn((), (Put(key, item.value),)))
        return await super().commit(txn)


async def test_a_pool_of_many_blocks_goes_while_nodes_use_them() -> None:
    kv = BusyEtcd()
    going = pool("10.0.0.0/16")
    await put(kv, going)
    for prefix in [*ip_network("10.0.0.0/16").subnets(new_prefix=26)][: 3 * pools.ROUNDS]:
        fresh = blocks.new(prefix, "n1", NOW)
        await FakeEtcd.commit(kv, Txn((), (Put(keys.BlockKey(prefix).path, blocks.to_json(fresh)),)))
    key = resources.key_of(going)
    item = await kv.get(key)
    assert item
    await pools.delete(kv, key, going, item.revision)
    assert (await kv.list("/calico/")).items == ()
