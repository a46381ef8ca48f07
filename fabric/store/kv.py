"""The seam to the datastore: what this project needs of a revisioned key-value store, as values.

`fabric.store.etcd.Etcd` is the real one, `tests.fakes.etcd.FakeEtcd` the one in memory; one contract
test (tests/contract/test_kv.py) runs on both. Keys and values are text, as Calico writes them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as stored; `revision` is etcd's mod_revision of it (> 0)."""

    key: str
    value: str
    revision: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Every key below a prefix as of one store `revision`, ordered by key."""

    revision: int
    items: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one key; an absent key is no error."""

    key: str


@dataclass(frozen=True, slots=True)
class Guard:
    """The transaction holds only if `key`'s mod_revision equals `revision`; 0 means absent."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Unwritten:
    """The transaction holds only if no key below `prefix` was written after `revision`; a deletion is not seen."""

    prefix: str
    revision: int


@dataclass(frozen=True, slots=True)
class Txn:
    """All of `ops` if every guard holds, else nothing."""

    guards: tuple[Guard, ...]
    ops: tuple[Put | Delete, ...]
    unwritten: tuple[Unwritten, ...] = ()


@dataclass(frozen=True, slots=True)
class Changes:
    """What one store revision did below the watched prefix, in order; a Delete carries its key only.

    `present` comes with a listing that followed an outage: every key there was at `revision`.
    """

    revision: int
    puts: tuple[KeyValue, ...] = ()
    deletes: tuple[str, ...] = ()
    present: frozenset[str] | None = None


class KeyValueStore(Protocol):
    """Every call has a deadline of its own and raises StoreError when the store does not answer."""

    async def get(self, key: str) -> KeyValue | None:
        """Return the key, linearizably read, or None."""

    async def list(self, prefix: str) -> Listing:
        """Return every key that starts with `prefix`, all as of one revision."""

    async def commit(self, txn: Txn) -> int:
        """Run `txn` and return its revision.

        Raises:
            Conflict: a guard did not hold; nothing was written, and the message names the keys or prefixes.
        """

    def watch(self, prefix: str, after: int) -> AsyncGenerator[Changes, None]:
        """Yield what happens below `prefix` after revision `after`, in order, without a gap.

        Raises:
            Compacted: `after` is older than what the store keeps.
            StoreError: the stream ended for any other reason; list again and watch from there.
        """

    async def close(self) -> None:
        """Give the connections back; outstanding calls fail."""
