"""Nodes of ours and of Calico's take addresses out of one etcd, with views of any age, and some die half-way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.agent.snapshot import Snapshot, fold, written
from fabric.errors import ConfigError, Conflict, Exhausted, FabricError, StoreError, Taken
from fabric.ipam import assign, config
from fabric.ipam.assign import Demand
from fabric.ipam.block import Owner
from fabric.ipam.config import IPAMConfig
from fabric.ipam.types import Address, Prefix
from fabric.ipam.upkeep import Observed, observe, upkeep
from fabric.ipam.view import Change, View, after
from fabric.model.ippool import IPPool
from fabric.ops import change, pools, resources
from fabric.store import ipam, keys
from fabric.store.kv import Changes, Put, Txn
from tests.fakes.calico_node import CalicoNode
from tests.fakes.node import MuteEtcd, pool, put

OURS, CALICOS = ("n1", "n2"), ("c1", "c2")
POOL = pool("10.0.0.0/29", blockSize=31)  # four blocks of two: soon full, so every branch is walked
PREFIXES = [*ip_network("10.0.0.0/29").subnets(new_prefix=31)]
POOL_KEY = resources.key_of(POOL)
START = datetime(2026, 11, 21, 4, 16, 27, tzinfo=UTC)


@dataclass
class Taker:
    """A node of ours as IPAM knows it: what it saw last; `held` is what its workloads were told they have."""

    name: str
    kv: MuteEtcd
    seen: Snapshot = field(default_factory=Snapshot)
    observed: Observed = field(default_factory=dict)
    held: dict[str, Address] = field(default_factory=dict)

    @property
    def view(self) -> View:
        return self.seen.view(self.name)

    async def look(self) -> None:
        listing = await self.kv.list(keys.CALICO)
        self.seen = fold(Snapshot(), Changes(listing.revision, listing.items))

    async def attach(
        self, workloads: Sequence[str], at: datetime, fate: str, wanted: Address | None = None
    ) -> None:
        """Give each workload an address, all of them in one transaction; the address `wanted`, where it is given."""
        view, made, told = self.view, [], {}
        for handle in (f"{self.name}.{workload}" for workload in workloads):
            if handle in view.handles:
                continue
            demand = Demand(Owner(handle))
            try:
                one = (
                    assign.exact(view, wanted, demand, at)
                    if wanted
                    else assign.automatic(view, 4, demand, at)
                )
            except (Exhausted, Taken, ConfigError):
                continue
            view = after(view, one.change)
            made.append(one.change)
            told[handle] = one.address
        if made and await self._commit(fate, *made):
            self.held |= told

    async def detach(self, workload: str, at: datetime, fate: str) -> None:
        handle = f"{self.name}.{workload}"
        holders = [a for s in self.view.blocks.values() for a in s.block.held_by(handle)]
        changes = [assign.release(self.view, address, handle, at=at) for address in holders]
        if changes and await self._commit(fate, *changes):
            self.held.pop(handle, None)

    async def upkeep(self, at: datetime, fate: str = "done") -> int:
        """Return how many things were not right; a pass that dies has done the first of them."""
        self.observed = observe(self.view, self.observed, at)
        steps = upkeep(self.view, self.observed, at, lambda handle: handle.startswith(f"{self.name}.")).steps
        for step in steps if fate == "done" else steps[:1]:
            await self._commit(fate, step.change)
        return len(steps)

    async def leave(self, fate: str) -> None:
        mine = {p for p, s in self.view.blocks.items() if s.block.node == self.name}
        for prefix in mine | {p for node, p in self.view.affinities if node == self.name}:
            await self._commit(fate, assign.hand_back(self.view, self.name, prefix))

    async def _commit(self, fate: str, *changes: Change) -> bool:
        """Whether it was done, and known to the outside; a node whose answer was lost knows it only later."""
        if fate == "dies before":
            return False
        txn = ipam.transaction(self.seen.handles, *changes)
        self.kv.lost = int(fate == "answer lost")
        try:
            revision = await self.kv.commit(txn)
        except (Conflict, StoreError) as err:
            self.kv.lost = 0
            return not isinstance(err, Conflict)
        self.seen = fold(self.seen, written(txn, revision), watched=False)
        return True


@dataclass
class World:
    kv: MuteEtcd
    takers: dict[str, Taker]
    calicos: dict[str, CalicoNode]
    now: datetime = START

    @classmethod
    async def made(cls, cooldown: int = 0) -> World:
        kv = MuteEtcd()
        await put(kv, POOL)
        await kv.commit(Txn((), (Put(keys.IPAM_CONFIG, config.to_json(IPAMConfig(cooldown=cooldown))),)))
        takers = {name: Taker(name, kv) for name in OURS}
        for taker in takers.values():
            await taker.look()
        return cls(kv, takers, {name: CalicoNode(name, kv, list(PREFIXES)) for name in CALICOS})

    async def truth(self) -> Snapshot:
        listing = await self.kv.list(keys.CALICO)
        return fold(Snapshot(), Changes(listing.revision, listing.items))

    async def check(self) -> None:
        """What must hold of the datastore at every revision, whoever died."""
        truth = await self.truth()
        assert not truth.problems
        assert not any(a.overlaps(b) for a, b in combinations(truth.blocks, 2))
        # What counts for routing: whose confirmed affinity it is, has the block.
        for (node, prefix), record in truth.affinities.items():
            assert not record.confirmed or truth.blocks[prefix].block.node == node
        ours, theirs = self.takers.values(), self.calicos.values()
        told = Counter(
            pair for held in (*(n.held for n in ours), *(n.held for n in theirs)) for pair in held.items()
        )
        stored = Counter(
            (owner.handle, s.block.address(i))
            for s in truth.blocks.values()
            for i, owner in enumerate(s.block.owners)
            if owner and owner.released_at is None
        )
        tunnels = Counter({held: count for held, count in stored.items() if held[0] in TUNNELS})
        assert set(Counter(handle for handle, _ in tunnels.elements()).values()) <= {1}
        # Neither lost (its block gone, or given to another) nor held by nobody who was told so.
        assert stored - tunnels == told
        # Calico counts up before it takes and down after it gives back; we do both at once.
        for handle, counts in _counts(truth).items():
            recorded = truth.handles[handle].counts
            assert all(recorded.get(prefix, 0) >= count for prefix, count in counts.items())
            assert recorded == counts or handle.startswith("c")

    async def check_mended(self) -> None:
        """What must hold of our part of it once the next passes are through, whoever died where."""
        for calico in self.calicos.values():
            calico.die()
        self.now += timedelta(hours=1)
        for _ in range(4):
            wrong = 0
            for taker in self.takers.values():
                await taker.look()
                wrong += await taker.upkeep(self.now)
            if not wrong:
                break
        assert not wrong
        await self.check()
        truth = await self.truth()
        own = {(s.block.node, p) for p, s in truth.blocks.items() if s.block.node in OURS}
        assert own == {key for key in truth.affinities if key[0] in OURS}
        assert all(record.confirmed for (node, _), record in truth.affinities.items() if node in OURS)
        assert not [p for p, s in truth.blocks.items() if s.block.empty and not s.block.affinity]
        counts = _counts(truth)
        assert {h: k.counts for h, k in truth.handles.items() if h.startswith("n")} == {
            h: c for h, c in counts.items() if h.startswith("n")
        }


def _counts(truth: Snapshot) -> dict[str, Counter[Prefix]]:
    counts: dict[str, Counter[Prefix]] = {}
    for prefix, stored in truth.blocks.items():
        for owner in stored.block.owners:
            if owner and owner.handle:
                counts.setdefault(owner.handle, Counter())[prefix] += 1
    return counts


TUNNELS = {f"ipip-tunnel-addr-{name}" for name in OURS}
WORKLOADS = ("w1", "w2", "w3", "w4", "w5")
our_steps = st.tuples(
    st.sampled_from(
        ["attach", "fresh attach", "fresh attach", "batch", "detach", "detach", "look", "upkeep", "leave"]
    ),
    st.sampled_from(OURS),
    st.sampled_from(WORKLOADS),
    st.sampled_from(["done", "done", "dies before", "answer lost"]),
)
calico_steps = st.tuples(
    st.sampled_from(["assign", "assign", "release", "release", "leave", "goes on", "goes on", "dies"]),
    st.sampled_from(CALICOS),
    st.sampled_from(WORKLOADS),
    st.sampled_from([1, 2, 3, 5, 8, 40, 100]),
)
time_passes = st.tuples(st.just("time"), st.just(""), st.just(""), st.sampled_from([1, 61]))


async def go(world: World, verb: str, name: str, workload: str, how: str | int) -> None:
    match verb, how:
        case "time", int(seconds):
            world.now += timedelta(seconds=seconds)
        case _, int(requests):
            await _go_calico(world, world.calicos[name], verb, workload, requests)
        case _, str(fate):
            taker = world.takers[name]
            match verb:
                case "attach":
                    await taker.attach([workload], world.now, fate)
                case "fresh attach":
                    await taker.look()
                    await taker.attach([workload], world.now, fate)
                case "batch":
                    await taker.attach(WORKLOADS, world.now, fate)
                case "detach":
                    await taker.detach(workload, world.now, fate)
                case "look":
                    await taker.look()
                case "upkeep":
                    await taker.upkeep(world.now, fate)
                case _:
                    await taker.leave(fate)


async def _go_calico(world: World, node: CalicoNode, verb: str, workload: str, requests: int) -> None:
    handle = f"{node.name}.{workload}"
    if verb == "dies":
        node.die()
    elif node.op is None:
        if verb == "assign" and handle not in node.held:
            node.op = node.assign(handle)
        elif verb == "release" and handle in node.held:
            node.op = node.release(handle)
        elif verb == "leave":
            node.op = node.leave()
    await node.advance(requests, world.now)


@given(
    st.lists(
        st.one_of(our_steps, our_steps, calico_steps, calico_steps, time_passes), min_size=40, max_size=120
    ),
    st.sampled_from([0, 60]),
)
@settings(max_examples=75, deadline=None)
def test_no_interleaving_and_no_death_gives_an_address_out_twice_or_loses_one_and_all_is_mended(
    walk: list[tuple[str, str, str, str | int]], cooldown: int
) -> None:
    async def run() -> None:
        world = await World.made(cooldown)
        for verb, name, workload, how in walk:
            await go(world, verb, name, workload, how)
            await world.check()
        await world.check_mended()

    asyncio.run(run())


pool_steps = st.tuples(
    st.sampled_from(["disabled", "open", "tunnels", "of /30", "gone"]), st.just(""), st.just(""), st.just("")
)
exact_steps = st.tuples(
    st.just("exact"), st.sampled_from(OURS), st.sampled_from(WORKLOADS), st.sampled_from([0, 1, 3, 6])
)
POOLS = {
    "disabled": pool("10.0.0.0/29", blockSize=31, disabled=True),
    "open": POOL,
    "tunnels": pool("10.0.0.0/29", blockSize=31, ipipMode="Always"),
    "of /30": pool("10.0.0.0/29", blockSize=30),
}


async def _go_pool(world: World, to: str) -> None:
    """An operator applies the pool, or deletes it; what is refused changes nothing."""
    if wanted := POOLS.get(to):
        with suppress(FabricError):
            await change.change(world.kv, POOL_KEY, lambda stored: stored if stored == wanted else wanted)
    elif item := await world.kv.get(POOL_KEY):
        stored = resources.decode(item)
        assert isinstance(stored, IPPool)
        await pools.delete(world.kv, POOL_KEY, stored, item.revision, moment=0)


async def _check_in_pools(world: World) -> None:
    """A block that a node has is one of a pool, and of its size, whatever became of the pools meanwhile."""
    truth = await world.truth()
    for prefix, stored in truth.blocks.items():
        sizes = [p.spec.block_size for p in truth.all(IPPool) if assign.within(prefix, p)]
        assert not stored.block.affinity or sizes == [prefix.prefixlen]


@given(
    st.lists(st.one_of(our_steps, our_steps, exact_steps, pool_steps, time_passes), min_size=20, max_size=80),
    st.sampled_from([0, 60]),
)
@settings(max_examples=50, deadline=None)
def test_a_pool_may_change_and_go_under_any_interleaving_and_no_claim_outlives_it(
    walk: list[tuple[str, str, str, str | int]], cooldown: int
) -> None:
    async def run() -> None:
        world = await World.made(cooldown)
        world.calicos.clear()
        for verb, name, workload, how in walk:
            if not name and verb != "time":
                await _go_pool(world, verb)
            elif verb == "exact" and isinstance(how, int):
                await world.takers[name].attach([workload], world.now, "done", POOL.spec.cidr[how])
            else:
                await go(world, verb, name, workload, how)
            await world.check()
            await _check_in_pools(world)
        await world.check_mended()

    asyncio.run(run())


async def test_a_full_pool_is_full_to_the_last_address_and_no_further() -> None:
    world = await World.made()
    taker = world.takers["n1"]
    await taker.attach([f"w{number}" for number in range(12)], START, "done")
    await world.check()
    assert len(taker.held) == POOL.spec.cidr.num_addresses


async def test_a_node_that_leaves_with_an_old_view_takes_nobodys_address_away() -> None:
    world = await World.made()
    taker = world.takers["n1"]
    await taker.attach(["w1"], START, "done")
    await taker.attach(["w2"], START, "answer lost")
    before = world.kv.revision
    await taker.leave("done")
    assert world.kv.revision == before
    await world.check()


async def test_a_block_without_a_node_goes_with_its_last_address() -> None:
    world = await World.made()
    taker = world.takers["n1"]
    await taker.attach(["w1"], START, "done")
    await taker.leave("done")
    [orphan] = taker.seen.blocks.values()
    assert orphan.block.node is None
    await taker.detach("w1", START, "done")
    assert [item.key for item in (await world.kv.list(keys.IPAM)).items] == [keys.IPAM_CONFIG]


async def test_all_that_calico_may_leave_half_way_of_a_claim_stops_no_node_of_ours() -> None:
    for requests in range(12):
        world = await World.made()
        calico = world.calicos["c1"]
        calico.op = calico.assign("c1.w1")
        await calico.advance(requests, START)
        calico.die()
        for taker in world.takers.values():
            await taker.look()
            await taker.attach(WORKLOADS[:3], START, "done")
            assert len(taker.held) == 3
        await world.check()


async def test_an_empty_block_that_calico_takes_from_us_half_way_is_ours_again_or_theirs_in_full() -> None:
    ours = set()
    for requests in range(40):
        world = await World.made()
        taker, calico = world.takers["n1"], world.calicos["c1"]
        await taker.attach([f"w{number}" for number in range(8)], START, "done")
        for number in range(2):
            await taker.look()
            await taker.detach(f"w{number}", START, "done")
        world.now += timedelta(hours=1)
        calico.op = calico.assign("c1.w1")
        await calico.advance(requests, world.now)
        calico.die()
        await world.check_mended()
        ours.add(sum(s.block.node == "n1" for s in (await world.truth()).blocks.values()))
    assert ours == {3, 4}
