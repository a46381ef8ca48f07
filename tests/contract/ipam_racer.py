"""One node's process in the race for addresses: it attaches and detaches as fast as it can, until it is killed."""

from __future__ import annotations

import asyncio
import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fabric.agent.snapshot import Snapshot, fold
from fabric.errors import Conflict, Exhausted
from fabric.ipam import assign
from fabric.ipam.assign import Demand
from fabric.ipam.block import Owner
from fabric.ipam.upkeep import upkeep
from fabric.ipam.view import Change
from fabric.store import ipam, keys
from fabric.store.etcd import Etcd
from fabric.store.kv import Changes, KeyValueStore, Listing

WORKLOADS = 5


def race(node: str, url: str, log: Path) -> None:
    """The process's whole life."""
    asyncio.run(_race(node, url, log))


async def _race(node: str, url: str, log: Path) -> None:
    kv, chance = Etcd([url]), random.Random()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        seen = read(await kv.list(keys.CALICO))
        # Clocks apart, so that blocks are old enough to be taken over at times.
        at = datetime.now(UTC) + timedelta(seconds=chance.randrange(300))
        handle = f"{node}.w{chance.randrange(WORKLOADS)}"
        try:
            if handle in seen.handles:
                address = next(a for s in seen.blocks.values() for a in s.block.held_by(handle))
                os.write(out, f"gives back {handle} {address}\n".encode())
                await _commit(kv, seen, assign.release(seen.view(node), address, handle, at=at))
            elif chance.random() < 0.1:
                await mend(kv, seen, node, at)
            else:
                made = assign.automatic(seen.view(node), 4, Demand(Owner(handle)), at)
                await _commit(kv, seen, made.change)
                os.write(out, f"has {handle} {made.address}\n".encode())
        except (Conflict, Exhausted):
            await asyncio.sleep(chance.random() / 50)


async def mend(kv: KeyValueStore, seen: Snapshot, node: str, at: datetime) -> int:
    """Do one pass of upkeep; return the number of its steps."""
    steps = upkeep(seen.view(node), {}, at, lambda handle: handle.startswith(f"{node}.")).steps
    for step in steps:
        await _commit(kv, seen, step.change)
    return len(steps)


def read(listing: Listing) -> Snapshot:
    return fold(Snapshot(), Changes(listing.revision, listing.items))


async def _commit(kv: KeyValueStore, seen: Snapshot, change: Change) -> None:
    await kv.commit(ipam.transaction(seen.handles, change))
