"""Turn IPAM's decisions into one guarded transaction on Calico's keys."""

from __future__ import annotations

from collections.abc import Mapping

from fabric.ipam import block as blocks
from fabric.ipam import records, view
from fabric.ipam.records import Handle
from fabric.ipam.view import Change
from fabric.store import keys
from fabric.store.kv import Delete, Guard, Put, Txn


def transaction(handles: Mapping[str, Handle], *changes: Change) -> Txn:
    """Return the one transaction that does all of `changes`, each decided on the view after the one before.

    Every key it writes is guarded by the revision it was read at. `handles` are those of the first view.
    """
    change = view.joined(changes)
    guards = [
        Guard(keys.ResourceKey("ippools", None, name).path, read) for name, read in change.pools.items()
    ]
    ops: list[Put | Delete] = []

    def write(key: str, value: str | None, revision: int) -> None:
        guards.append(Guard(key, revision))
        if value is not None:
            ops.append(Put(key, value))
        elif revision:
            ops.append(Delete(key))

    for prefix, (block, revision) in change.blocks.items():
        write(keys.BlockKey(prefix).path, blocks.to_json(block) if block else None, revision)
    for (node, prefix), (confirmed, revision) in change.affinities.items():
        write(
            keys.AffinityKey(node, prefix).path, records.AFFINITY_CONFIRMED if confirmed else None, revision
        )
    for handle, rises in change.handles.items():
        found = handles.get(handle, Handle({}, 0))
        # What the record does not have cannot fall: then the blocks are right, and it was wrong.
        counts = {p: found.counts.get(p, 0) + rises.get(p, 0) for p in {**found.counts, **rises}}
        left = {p: count for p, count in counts.items() if count > 0}
        write(keys.HandleKey(handle).path, records.handle_to_json(left) if left else None, found.revision)
    return Txn(tuple(guards), tuple(ops))


def joined(*txns: Txn) -> Txn:
    """Return one transaction that holds and does all of `txns`, which write different keys."""
    return Txn(tuple(g for t in txns for g in t.guards), tuple(op for t in txns for op in t.ops))
