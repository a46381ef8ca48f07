"""Decide what a reader of etcd is told: one full listing, then nothing but differences, for ever.

    list ──▶ Listing ──▶ watch ──▶ Changes, Changes, …
     ▲                     │ any StoreError, compaction included
     └── back-off ◀── Lost ┘   (the list after it comes out as Changes against what was told before)

The reader is in sync from the Listing on, and out of sync from a Lost to the next event that is none. To tell
differences only, a hash of each item is kept, never a value.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeAlias

from fabric.errors import StoreError
from fabric.store.kv import Changes, KeyValueStore, Listing

# Seconds between attempts, doubling from the first to the longest, each half to one and a half times
# that: a cluster that comes back is not met by every node at once.
FIRST_DELAY = 0.2
LONGEST_DELAY = 5.0


@dataclass(frozen=True, slots=True)
class Lost:
    """What was told is no longer kept up to date, because of `reason`; it is not known to be wrong."""

    reason: str


Event: TypeAlias = Listing | Changes | Lost


async def _anything(_: Listing | Changes) -> None:
    return


async def follow(
    kv: KeyValueStore, prefix: str, check: Callable[[Listing | Changes], Awaitable[None]] = _anything
) -> AsyncGenerator[Event, None]:
    """Yield everything below `prefix`, then each change to it, through every outage.

    The first Listing is the only one. A Lost comes once for each reason of an outage, also before the
    Listing: "the stream ended" is seldom why it does not come back. The next other event says what changed
    meanwhile, as Changes that may be empty, whose puts keep their own revisions, and whose `present` says
    what there is. What `check` refuses with a StoreError is not told, and is an outage as any other. Never
    ends by itself and never raises StoreError. Close it with `aclosing`.
    """
    told = _Told()
    delay = FIRST_DELAY
    reasons: set[str] = set()
    while True:
        synced_at = None
        try:
            listing = await kv.list(prefix)
            await check(listing)
            yield told.listing(listing)
            reasons, synced_at = set(), _now()
            async with aclosing(kv.watch(prefix, after=told.revision)) as stream:
                async for changes in stream:
                    await check(changes)
                    told.changes(changes)
                    yield changes
        except StoreError as err:
            reason = str(err)
        # A list that works does not end an outage whose watches do not: only time in sync does.
        if synced_at is not None and _now() - synced_at > LONGEST_DELAY:
            delay = FIRST_DELAY
        if reason not in reasons:
            reasons.add(reason)
            yield Lost(reason)
        await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
        delay = min(2 * delay, LONGEST_DELAY)


def _now() -> float:
    return asyncio.get_running_loop().time()


@dataclass(slots=True)
class _Told:
    """What the reader has been told so far: the revision it stands at, and a hash of each item.

    Of the whole item: an etcd restored from a backup hands revisions out a second time, so an equal
    revision alone does not mean an equal value.
    """

    revision: int = 0
    hashes: dict[str, int] = field(default_factory=dict)

    def listing(self, listing: Listing) -> Listing | Changes:
        """Note the whole state; return it when it is the first, else how it differs."""
        first, known = self.revision == 0, self.hashes
        self.revision = listing.revision
        self.hashes = {item.key: hash(item) for item in listing.items}
        if first:
            return listing
        return Changes(
            listing.revision,
            puts=tuple(item for item in listing.items if known.get(item.key) != self.hashes[item.key]),
            deletes=tuple(key for key in known if key not in self.hashes),
            present=frozenset(self.hashes),
        )

    def changes(self, changes: Changes) -> None:
        self.revision = changes.revision
        self.hashes.update((item.key, hash(item)) for item in changes.puts)
        for key in changes.deletes:
            self.hashes.pop(key, None)
