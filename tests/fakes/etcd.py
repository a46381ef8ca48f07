"""An etcd in memory: revisions, history and compaction are real, and it goes away on request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from fabric.errors import Compacted, Conflict, StoreError
from fabric.store.kv import Changes, Delete, KeyValue, Listing, Put, Txn

MAX_OPS = 128  # etcd's --max-txn-ops


class FakeEtcd:
    """Behaves like etcd, outages included; it does not record calls.

    Set `down` and every call fails, as do the watches; set it back and the data is still there.
    """

    def __init__(self) -> None:
        self.revision = 1
        self._items: dict[str, KeyValue] = {}
        self._history: list[Changes] = []
        self._compacted = 0
        self._down = False
        self._drops = 0
        self._wake = asyncio.Event()

    @property
    def down(self) -> bool:
        return self._down

    @down.setter
    def down(self, value: bool) -> None:
        self._down = value
        self._wake_watches()

    def drop_watches(self) -> None:
        """End every watch there is now; new ones work."""
        self._drops += 1
        self._wake_watches()

    def compact(self, revision: int) -> None:
        """Forget the history up to and including `revision`; running watches have had it."""
        self._compacted = revision
        self._history = [changes for changes in self._history if changes.revision > revision]

    def wipe(self) -> None:
        """Come back with nothing, at revision 1, as after the loss of the disk."""
        self.revision, self._items, self._history, self._compacted = 1, {}, [], 0
        self.drop_watches()

    async def get(self, key: str) -> KeyValue | None:
        await self._answer(f"get of {key}")
        return self._items.get(key)

    async def list(self, prefix: str) -> Listing:
        await self._answer(f"list of {prefix}")
        keys = sorted(key for key in self._items if key.startswith(prefix))
        return Listing(self.revision, tuple(self._items[key] for key in keys))

    async def commit(self, txn: Txn) -> int:
        await self._answer("commit")
        _check(txn)
        found = {guard.key: self._revision_of(guard.key) for guard in txn.guards}
        if wrong := [guard for guard in txn.guards if found[guard.key] != guard.revision]:
            texts = [f"{g.key} is at revision {found[g.key]}, not {g.revision}" for g in wrong]
            raise Conflict(f"commit: {'; '.join(texts)}; nothing was written")
        for below in txn.unwritten:
            if any(
                i.key.startswith(below.prefix) and i.revision > below.revision for i in self._items.values()
            ):
                what = f"a key below {below.prefix} was written after revision {below.revision}"
                raise Conflict(f"commit: {what}; nothing was written")
        self._write(txn)
        return self.revision

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Changes, None]:
        what = f"watch of {prefix} after revision {after}"
        await self._answer(what)
        if after > self.revision:
            raise StoreError(f"{what}: required revision is a future revision")
        drops, at = self._drops, after
        while True:
            wake = self._wake  # taken first: what happens while the reader has its turn sets this one
            if self._down or self._drops != drops:
                raise StoreError(f"{what}: the stream ended")
            if at < self._compacted:
                raise Compacted(f"{what}: compacted up to revision {self._compacted}")
            for changes in [changes for changes in self._history if changes.revision > at]:
                at = changes.revision
                if below := _below(prefix, changes):
                    yield below
            await wake.wait()

    async def close(self) -> None:
        self.drop_watches()

    async def _answer(self, what: str) -> None:
        await asyncio.sleep(0)  # others run meanwhile, as they would
        if self._down:
            raise StoreError(f"{what}: etcd is down")

    def _revision_of(self, key: str) -> int:
        item = self._items.get(key)
        return item.revision if item else 0

    def _write(self, txn: Txn) -> None:
        puts = [op for op in txn.ops if isinstance(op, Put)]
        deletes = [op.key for op in txn.ops if isinstance(op, Delete) and op.key in self._items]
        if not puts and not deletes:
            return  # a transaction that changes nothing takes no revision
        self.revision += 1
        items = tuple(KeyValue(put.key, put.value, self.revision) for put in puts)
        self._items.update((item.key, item) for item in items)
        for key in set(deletes):
            del self._items[key]
        self._history.append(Changes(self.revision, items, tuple(dict.fromkeys(deletes))))
        self._wake_watches()

    def _wake_watches(self) -> None:
        self._wake.set()
        self._wake = asyncio.Event()


def _check(txn: Txn) -> None:
    puts = [op.key for op in txn.ops if isinstance(op, Put)]
    deletes = {op.key for op in txn.ops if isinstance(op, Delete)}
    if len(set(puts)) < len(puts) or deletes & set(puts):
        raise StoreError("commit: duplicate key given in txn request; nothing was written")
    if max(len(txn.ops), len(txn.guards)) > MAX_OPS:
        raise StoreError("commit: too many operations in txn request; nothing was written")


def _below(prefix: str, changes: Changes) -> Changes | None:
    puts = tuple(item for item in changes.puts if item.key.startswith(prefix))
    deletes = tuple(key for key in changes.deletes if key.startswith(prefix))
    return Changes(changes.revision, puts, deletes) if puts or deletes else None
