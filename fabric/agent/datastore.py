"""Keep the snapshot as the datastore has it, and a copy of it on disk that a start without etcd begins from.

The copy is read only where etcd does not answer the first listing, and is replaced whole by that listing
when it comes: nothing of the copy outlives it. Until then the snapshot is not in sync, so nothing is
removed, withdrawn or attached because of it. An etcd that has another cluster than before, which does not
know this node, is as good as away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial

import structlog

from fabric.agent.snapshot import Snapshot, fold
from fabric.agent.state import State
from fabric.errors import ConfigError, StoreError
from fabric.store import cluster, sync
from fabric.store.cache import Journal
from fabric.store.keys import CALICO
from fabric.store.kv import Changes, KeyValueStore, Listing
from policy.unread import instead

log = structlog.get_logger()

RENEW = 30.0  # seconds between two signs in the copy that it was still true
MOST_NOTED = 10_000  # changes that may wait for the disk


class Keeper:
    """Owns the copy on disk: what `note` is given is written by `run`, in a thread, in the order it came."""

    def __init__(self, state: State, journal: Journal) -> None:
        self._state, self._journal = state, journal
        self._noted: asyncio.Queue[Listing | Changes] = asyncio.Queue(MOST_NOTED)
        self._missed = False

    async def read(self) -> Snapshot | None:
        """Return the copy as a snapshot that is out of date, or None where there is none of use."""
        try:
            copy = await asyncio.to_thread(self._journal.read)
        except ConfigError as err:
            self._failed("copy of the datastore not used", str(err))
            return None
        return replace(_listed(copy.listing), lost_at=copy.as_of, copied=True) if copy else None

    def note(self, event: Listing | Changes) -> None:
        try:
            self._noted.put_nowait(event)
        except asyncio.QueueFull:
            self._missed = True

    async def run(self) -> None:
        """Write until cancelled; a disk that refuses costs the copy, and nothing else."""
        try:
            while True:
                await self._write(await self._next())
        except OSError as err:
            # Not what stands there either: changes are missing from it now.
            with suppress(OSError):
                await asyncio.to_thread(self._journal.remove)
            self._failed("copy of the datastore given up until the agent starts again", str(err))
        while True:
            await self._noted.get()

    async def _next(self) -> list[Listing | Changes]:
        """Return what was noted, at least one; none when it is time to renew and the copy is true."""
        with suppress(TimeoutError):
            async with asyncio.timeout(RENEW):
                events = [await self._noted.get()]
                while not self._noted.empty():
                    events.append(self._noted.get_nowait())
                return events
        return []

    async def _write(self, events: list[Listing | Changes]) -> None:
        if self._missed:
            raise OSError(f"the disk is slower than the datastore: {MOST_NOTED} changes wait for it")
        changes = [event for event in events if isinstance(event, Changes)]
        if events and isinstance(first := events[0], Listing):
            await asyncio.to_thread(self._journal.begin, first)
            self._state.copy_problem = ""
        if changes or (not events and self._state.snapshot.in_sync):
            await asyncio.to_thread(self._journal.append, changes)

    def _failed(self, what: str, why: str) -> None:
        self._state.copy_problem = f"{what}: {why}"
        log.error(what, error=why)


async def follow(state: State, kv: KeyValueStore, keeper: Keeper) -> None:
    """Fold every change into the snapshot, for ever; what cannot be read is logged once."""
    known: Mapping[str, str] = {}
    async with aclosing(sync.follow(kv, CALICO, partial(_check, state, keeper))) as events:
        async for event in events:
            match event:
                case Listing(revision, items):
                    keeper.note(event)
                    state.update(snapshot=_synced(_listed(event)))
                    log.info("datastore in sync", revision=revision, keys=len(items))
                case Changes():
                    keeper.note(event)
                    if state.snapshot.lost:
                        log.info("datastore in sync again", revision=event.revision)
                    state.update(snapshot=_synced(fold(state.snapshot, event)))
                case sync.Lost(reason):
                    log.warning("datastore lost; forwarding goes on as it is", error=reason)
                    lost = await _lost(state.snapshot, keeper)
                    state.update(snapshot=replace(lost, lost=reason, in_sync=False))
            known = _log_problems(state.snapshot, known)


def _listed(listing: Listing) -> Snapshot:
    return fold(Snapshot(), Changes(listing.revision, puts=listing.items))


def _synced(now: Snapshot) -> Snapshot:
    return replace(now, in_sync=True, lost="", lost_at=0.0, copied=False)


async def _check(state: State, keeper: Keeper, heard: Listing | Changes) -> None:
    """What another cluster lacks is no reason to take anything away, so to have one is to have no etcd.

    Raises:
        StoreError: etcd has another cluster than before, and that one does not know this node.
    """
    match heard:
        case Changes(deletes=deletes) if cluster.INFORMATION in deletes:
            raise StoreError(f"{cluster.INFORMATION} was deleted")  # and what else? The listing will tell.
        case Listing(items=items) if not cluster.knows(items, state.node):
            known = state.snapshot if state.snapshot.revision else await keeper.read()
            if known and (why := cluster.strangeness(items, state.node, known.cluster)):
                raise StoreError(
                    f"{why}; restore etcd's data, or run `fabricctl node join` to begin anew there"
                )


async def _lost(snapshot: Snapshot, keeper: Keeper) -> Snapshot:
    """What is known stands; where nothing was read yet, the copy does."""
    if snapshot.lost:  # another reason of the same outage
        return snapshot
    if snapshot.revision:
        return replace(snapshot, lost_at=time.time())
    if (copied := await keeper.read()) is None:
        return snapshot
    age = round(time.time() - copied.lost_at)
    log.warning(
        "started from the copy of the datastore; it is stale", revision=copied.revision, seconds_old=age
    )
    return copied


def _log_problems(snapshot: Snapshot, known: Mapping[str, str]) -> Mapping[str, str]:
    for key in snapshot.problems.keys() - known.keys():
        unread = snapshot.unread.get(key)
        does = instead(unread) if unread else "it counts as absent"
        log.error(f"object cannot be read; {does}", key=key, error=snapshot.problems[key])
    return dict(snapshot.problems)
