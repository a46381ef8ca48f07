"""Several nodes take addresses out of one etcd, each with a view of its own age, and some die half-way."""

import asyncio
import json
from dataclasses import dataclass, field
from ipaddress import ip_network
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.agent.snapshot import Snapshot, fold, written
from fabric.errors import Conflict, Exhausted, StoreError
from fabric.ipam import assign, block
from fabric.ipam.assign import Stored
from fabric.ipam.block import Owner
from fabric.store import ipam, keys
from fabric.store.kv import Changes, Txn
from tests.fakes.node import MuteEtcd, pool, put

NODES = ("n1", "n2", "n3")
POOL = pool("10.0.0.0/28", blockSize=30)  # four blocks of four: soon full, so every branch is walked


@dataclass
class Taker:
    """A node as IPAM knows it: what it saw last, and nothing else."""

    name: str
    kv: MuteEtcd
    seen: Snapshot = field(default_factory=Snapshot)

    async def look(self) -> None:
        listing = await self.kv.list(keys.CALICO)
        self.seen = fold(Snapshot(), Changes(listing.revision, listing.items))

    async def take(self, workload: str, fate: str) -> None:
        handle = f"{self.name}.{workload}"
        try:
            made = assign.automatic(self.seen.view(self.name), 4, Owner(handle), 1, "2026-11-21T04:16:27Z")
        except Exhausted:
            return
        await self._commit(ipam.assign([made], self.name, handle), fate)

    async def give_back(self, workload: str, fate: str) -> None:
        handle = f"{self.name}.{workload}"
        released = [
            (stored, block.release(stored.block, address, handle))
            for stored in self.seen.blocks.values()
            for address in stored.block.held_by(handle)
        ]
        if released:
            await self._commit(ipam.release(released, handle), fate)

    async def leave(self, fate: str) -> None:
        for stored in [s for s in self.seen.blocks.values() if s.block.node == self.name]:
            await self._commit(ipam.hand_back(stored, self.name), fate)

    async def _commit(self, txn: Txn, fate: str) -> None:
        if fate == "dies before":
            return
        self.kv.lost = int(fate == "answer lost")
        try:
            revision = await self.kv.commit(txn)
        except (Conflict, StoreError):
            self.kv.lost = 0
            return
        self.seen = fold(self.seen, written(txn, revision), watched=False)


async def check(kv: MuteEtcd) -> None:
    """What must hold of the datastore at every revision, whoever died."""
    listing = await kv.list(keys.IPAM)
    truth = fold(Snapshot(), Changes(listing.revision, listing.items))
    assert not truth.problems
    stored = list(truth.blocks.values())
    assert not any(a.block.prefix.overlaps(b.block.prefix) for a, b in combinations(stored, 2))
    claims = {(s.block.node, s.block.prefix) for s in stored if s.block.node}
    assert claims == {(key.node, key.prefix) for key, (confirmed, _) in truth.affinities.items() if confirmed}
    assert _handles_in(stored) == {
        key.id: json.loads(item.value)["block"]
        for item in listing.items
        if isinstance(key := keys.parse(item.key), keys.HandleKey)
    }


def _handles_in(stored: list[Stored]) -> dict[str, dict[str, int]]:
    """Who holds how much where. One address a handle: a second one would be an address given out twice."""
    held: dict[str, dict[str, int]] = {}
    for s in stored:
        for owner in s.block.owners:
            if owner and owner.handle:
                counts = held.setdefault(owner.handle, {})
                counts[str(s.block.prefix)] = counts.get(str(s.block.prefix), 0) + 1
    assert all(list(counts.values()) == [1] for counts in held.values())
    return held


steps = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "take", "give back", "look", "look", "leave"]),
        st.sampled_from(NODES),
        st.sampled_from(["w1", "w2", "w3", "w4", "w5"]),
        st.sampled_from(["done", "done", "dies before", "answer lost"]),
    ),
    min_size=5,
    max_size=60,
)


@given(steps)
@settings(max_examples=150, deadline=None)
def test_no_interleaving_and_no_death_gives_an_address_out_twice(
    walk: list[tuple[str, str, str, str]],
) -> None:
    async def run() -> None:
        kv = MuteEtcd()
        await put(kv, POOL)
        takers = {name: Taker(name, kv) for name in NODES}
        for taker in takers.values():
            await taker.look()
        for verb, name, workload, fate in walk:
            match verb:
                case "take":
                    await takers[name].take(workload, fate)
                case "give back":
                    await takers[name].give_back(workload, fate)
                case "look":
                    await takers[name].look()
                case _:
                    await takers[name].leave(fate)
            await check(kv)

    asyncio.run(run())


async def test_a_full_pool_is_full_to_the_last_address_and_no_further() -> None:
    kv = MuteEtcd()
    await put(kv, POOL)
    taker = Taker("n1", kv)
    await taker.look()
    for number in range(20):
        await taker.take(f"w{number}", "done")
    await check(kv)
    held = [owner for stored in taker.seen.blocks.values() for owner in stored.block.owners if owner]
    assert len(held) == ip_network("10.0.0.0/28").num_addresses


async def test_a_node_that_leaves_with_an_old_view_takes_nobodys_address_away() -> None:
    kv = MuteEtcd()
    await put(kv, POOL)
    taker = Taker("n1", kv)
    await taker.look()
    await taker.take("w1", "done")
    await taker.take("w2", "answer lost")
    before = kv.revision
    await taker.leave("done")
    assert kv.revision == before
    await check(kv)


async def test_a_block_without_a_node_goes_with_its_last_address() -> None:
    kv = MuteEtcd()
    await put(kv, POOL)
    taker = Taker("n1", kv)
    await taker.look()
    await taker.take("w1", "done")
    await taker.leave("done")
    [orphan] = taker.seen.blocks.values()
    assert orphan.block.node is None
    await taker.give_back("w1", "done")
    assert (await kv.list(keys.IPAM)).items == ()
