"""A node of Calico's beside ours: it claims, assigns and releases in several writes, and may die between any two.

Each operation is a generator that yields one request at a time (a key to get, a prefix ending in "/" to
list, or a transaction) and is sent the answer: so others act between any two of its requests. A store that
such nodes have left somehow is written down at once with `tests.fakes.calico`.

Source: calico-semantics §5, "AutoAssign" steps 3 to 9, "Release", "Release block affinity".
"""

from __future__ import annotations

import json
from collections.abc import Generator
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import Any, TypeAlias

from fabric.errors import Conflict, FabricError
from fabric.ipam import block as blocks
from fabric.ipam.block import Block, Owner
from fabric.ipam.types import Address, Prefix
from fabric.store import keys
from fabric.store.kv import Delete, Guard, KeyValue, KeyValueStore, Put, Txn

# None: the key is absent, or the transaction lost its race.
Answer: TypeAlias = Any
Op: TypeAlias = Generator[str | Txn, Answer, Any]


class CalicoNode:
    """`held` has what it assigned, from the write of the block on; `op` is what it is in the middle of."""

    def __init__(self, name: str, kv: KeyValueStore, pool: list[Prefix]) -> None:
        self.name, self.kv = name, kv
        turn = sum(name.encode()) % len(pool)
        self.walk = pool[turn:] + pool[:turn]
        self.held: dict[str, Address] = {}
        self.op: Op | None = None
        self.answer: Answer = None
        self.now = datetime.min
        self._then: dict[str, Address] | None = None  # what is held once the transaction asked for is done

    async def advance(self, requests: int, at: datetime) -> None:
        """Let it do so many more requests."""
        self.now = at
        for _ in range(requests):
            if self.op is None:
                return
            try:
                request = self.op.send(self.answer)
            except StopIteration:
                self.die()
                return
            self.answer = await self._asked(request)

    def die(self) -> None:
        self.op, self.answer = None, None

    async def _asked(self, request: str | Txn) -> Answer:
        if isinstance(request, Txn):
            held, self._then = self._then, None
            try:
                revision = await self.kv.commit(request)
            except Conflict:
                return None
            self.held = self.held if held is None else held
            return revision
        if request.endswith("/"):
            return (await self.kv.list(request)).items
        return await self.kv.get(request)

    # AutoAssign.

    def assign(self, handle: str) -> Op:
        for item in (yield f"{keys.AFFINITIES}{self.name}/"):
            prefix = _prefix(item)
            if (yield from self._ensure(prefix)) and (yield from self._take(prefix, handle)):
                return
        found = {_prefix(item) for item in (yield keys.BLOCKS)}
        for prefix in [p for p in self.walk if p not in found]:
            if (yield from self._claim(prefix)) and (yield from self._take(prefix, handle)):
                return
        for prefix in self.walk:
            idle = yield from self._reclaim(prefix)
            if idle and (yield from self._claim(prefix)) and (yield from self._take(prefix, handle)):
                return
        for prefix in self.walk:
            if (yield from self._take(prefix, handle)):
                return

    def _claim(self, prefix: Prefix) -> Generator[str | Txn, Answer, bool]:
        key = keys.AffinityKey(self.name, prefix).path
        found = yield key
        begun = found and _state(found) == "confirmed"
        if not begun and not (yield _put(key, _affinity("pending"), found)):
            return False
        return (yield from self._ensure(prefix))

    def _ensure(self, prefix: Prefix) -> Generator[str | Txn, Answer, bool]:
        """Make block and affinity agree; False when the block turns out to be another's."""
        key, block_key = keys.AffinityKey(self.name, prefix).path, keys.BlockKey(prefix).path
        record = yield key
        if record is None:
            return False
        stored = yield block_key
        if stored is None:
            if not (yield _put(key, _affinity("pending"), record)):
                return False
            fresh = blocks.new(prefix, self.name, self.now)
            yield _put(block_key, blocks.to_json(fresh), None)
        elif blocks.from_json(stored.value).node != self.name:
            yield _delete(record)
            return False
        elif _state(record) == "confirmed":
            return True
        else:
            if not (yield _put(key, _affinity("pending"), record)):
                return False
            touched = blocks.touched(blocks.from_json(stored.value))
            if not (yield _put(block_key, blocks.to_json(touched), stored)):
                return False
        stored, record = (yield block_key), (yield key)
        if stored is None or record is None:
            return False
        if blocks.from_json(stored.value).node != self.name:
            yield _delete(record)
            return False
        return bool((yield _put(key, _affinity("confirmed"), record)))

    def _take(self, prefix: Prefix, handle: str) -> Generator[str | Txn, Answer, bool]:
        for _ in range(3):
            stored = yield keys.BlockKey(prefix).path
            if stored is None:
                return False
            try:
                block, address = blocks.allocate(
                    blocks.from_json(stored.value), Owner(handle, {"node": self.name})
                )
            except FabricError:
                return False
            yield from self._count(handle, prefix, 1)
            self._then = {**self.held, handle: address}
            if (yield _put(stored.key, blocks.to_json(block), stored)):
                return True
            yield from self._count(handle, prefix, -1)
        return False

    def _reclaim(self, prefix: Prefix) -> Generator[str | Txn, Answer, bool]:
        stored = yield keys.BlockKey(prefix).path
        if stored is None:
            return True
        block = blocks.from_json(stored.value)
        idle = block.empty and block.node and block.claimed_before(self.now - timedelta(seconds=60))
        return bool(idle) and (yield from self._give_up(str(block.node), stored, block))

    def _give_up(self, node: str, stored: KeyValue, block: Block) -> Generator[str | Txn, Answer, bool]:
        key = keys.AffinityKey(node, block.prefix).path
        record = yield key
        if record is None or not (yield _put(key, _affinity("pendingDeletion"), record)):
            return False
        left = blocks.without_affinity(block)
        if not (yield _delete(stored) if block.empty else _put(stored.key, blocks.to_json(left), stored)):
            return False
        record = yield key
        if record is not None and _state(record) == "pendingDeletion":
            yield _delete(record)
        return True

    # Release.

    def release(self, handle: str) -> Op:
        for item in (yield keys.BLOCKS):
            stored: KeyValue | None = item
            for _ in range(3):
                block = blocks.from_json(stored.value) if stored else None
                if not stored or not block or not block.held_by(handle):
                    break
                left = blocks.release(block, block.held_by(handle)[0], handle, at=self.now)
                gone = left.empty and left.affinity is None
                self._then = {h: a for h, a in self.held.items() if h != handle}
                if (yield _delete(stored) if gone else _put(stored.key, blocks.to_json(left), stored)):
                    yield from self._count(handle, block.prefix, -1)
                    break
                stored = yield stored.key

    def leave(self) -> Op:
        for item in (yield f"{keys.AFFINITIES}{self.name}/"):
            stored = yield keys.BlockKey(_prefix(item)).path
            if stored and (block := blocks.from_json(stored.value)).node == self.name:
                yield from self._give_up(self.name, stored, block)

    def _count(self, handle: str, prefix: Prefix, rise: int) -> Generator[str | Txn, Answer, None]:
        key = keys.HandleKey(handle).path
        while True:
            found = yield key
            counts = json.loads(found.value)["block"] if found else {}
            counts[str(prefix)] = counts.get(str(prefix), 0) + rise
            left = {p: n for p, n in counts.items() if n > 0}
            text = json.dumps({"block": left, "deleted": False})
            if not found and not left:
                return
            if (yield _put(key, text, found) if left else _delete(found)):
                return


def _put(key: str, value: str, found: KeyValue | None) -> Txn:
    return Txn((Guard(key, found.revision if found else 0),), (Put(key, value),))


def _delete(found: KeyValue) -> Txn:
    return Txn((Guard(found.key, found.revision),), (Delete(found.key),))


def _affinity(state: str) -> str:
    return json.dumps({"state": state, "deleted": False})


def _state(record: KeyValue) -> str:
    return str(json.loads(record.value)["state"])


def _prefix(item: KeyValue) -> Prefix:
    return ip_network(item.key.rpartition("/")[2].replace("-", "/"))
