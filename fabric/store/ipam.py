"""Turn IPAM's decisions into guarded transactions on Calico's keys."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from fabric.ipam import block as blocks
from fabric.ipam.assign import Assignment, Stored
from fabric.ipam.block import Block
from fabric.store import keys
from fabric.store.kv import Delete, Guard, Put, Txn

CONFIRMED = '{"state":"confirmed","deleted":false}'


def assign(made: Sequence[Assignment], node: str, handle: str) -> Txn:
    """Store each block with its new allocation, the handle, and the affinities that are claimed.

    The handle must be new: it names one workload's allocation, of one address a family.
    """
    handle_key = keys.HandleKey(handle).path
    counts = {str(m.block.prefix): 1 for m in made}
    guards = [Guard(handle_key, 0)]
    ops: list[Put | Delete] = [
        Put(handle_key, json.dumps({"block": counts, "deleted": False}, separators=(",", ":")))
    ]
    for m in made:
        block_key = keys.BlockKey(m.block.prefix).path
        guards.append(Guard(block_key, m.revision))
        ops.append(Put(block_key, blocks.to_json(m.block)))
        if m.claims:
            affinity_key = keys.AffinityKey(node, m.block.prefix).path
            guards.append(Guard(affinity_key, m.affinity_revision))
            ops.append(Put(affinity_key, CONFIRMED))
    return Txn(tuple(guards), tuple(ops))


def release(released: Iterable[tuple[Stored, Block]], handle: str) -> Txn:
    """Store each block, given as it was and as it is to be, and forget the handle.

    A block that is empty and belongs to no node goes with its last address.
    """
    guards: list[Guard] = []
    ops: list[Put | Delete] = [Delete(keys.HandleKey(handle).path)]
    for stored, after in released:
        block_key = keys.BlockKey(after.prefix).path
        gone = after.empty and after.affinity is None
        guards.append(Guard(block_key, stored.revision))
        ops.append(Delete(block_key) if gone else Put(block_key, blocks.to_json(after)))
    return Txn(tuple(guards), tuple(ops))


def hand_back(stored: Stored, node: str) -> Txn:
    """Give up `node`'s affinity: an empty block goes, one in use stays with its addresses and no node."""
    prefix = stored.block.prefix
    block_key = keys.BlockKey(prefix).path
    left = blocks.without_affinity(stored.block)
    return Txn(
        (Guard(block_key, stored.revision),),
        (
            Delete(block_key) if stored.block.empty else Put(block_key, blocks.to_json(left)),
            Delete(keys.AffinityKey(node, prefix).path),
        ),
    )


def joined(*txns: Txn) -> Txn:
    """Return one transaction that holds and does all of `txns`."""
    return Txn(tuple(g for t in txns for g in t.guards), tuple(op for t in txns for op in t.ops))
