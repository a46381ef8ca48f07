"""Decide what is wrong with the stored state of IPAM, and what mends it.

`audit` finds, `mend` turns findings into changes, a transaction's worth each. A finding has a key, and
the same key in a later audit means the very same fault on objects that nobody has written since. So a
report can be acted on long after it was made: only what is still found under its key is touched.

Source: calico-semantics §5.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import NamedTuple

from fabric.ipam import block as blocks
from fabric.ipam.block import Block
from fabric.ipam.inventory import GRACE, Allocation, Inventory, State, allocations, held
from fabric.ipam.records import Handle
from fabric.ipam.types import Address, Prefix, order
from fabric.ipam.view import Change, Stored

LEAKED = "leaked-address"
LEFTOVER_HANDLE = "handle-without-addresses"

# What each fault calls for; `release` puts the first group right.
MENDABLE = {
    LEAKED: "release it",
    LEFTOVER_HANDLE: "release it",
    "missing-handle": "release writes it anew, from the blocks",
    "handle-disagrees": "release writes it anew, from the blocks",
    "affinity-without-block": "release it",
    "stale-affinity": "release it",
    "unconfirmed-affinity": "release it: the claim it belongs to has died half-way",
    "unknown-node": "release it, or join the node again",
    "block-without-affinity": "release the block: its addresses stay valid",
    "orphaned-block": "release it",
    "lost-addresses": "release them",
}
BY_HAND = {
    "shared-address": "delete the endpoint that is not there any more, or attach one of them anew",
    "unallocated-address": "attach its workload anew: the address may be given to another at any time",
    "address-outside-pools": "add a pool that covers it, or attach its workload anew",
    "overlapping-blocks": "move the workloads out of one of them; release it once it is empty",
    "block-outside-pools": "add its pool again, or remove the workloads in it",
    "unreadable": "mend or delete the object",
}

_MOST = 60  # findings mended in one transaction: etcd takes 128 operations


class Key(NamedTuple):
    """Tells one fault from every other, also from a later one of the same object.

    `version` is the revision of the object, or the sequence number of the allocation.
    """

    id: str
    object: str
    handle: str
    version: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault; `object` is an address, a block, a handle or a key of the store.

    `counts` is what a handle should say: prefix to number of addresses.
    """

    id: str
    object: str
    node: str
    why: str
    version: int
    handle: str = ""
    prefix: Prefix | None = None
    counts: Mapping[Prefix, int] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return Key(self.id, self.object, self.handle, self.version)

    @property
    def cure(self) -> str:
        return MENDABLE.get(self.id) or BY_HAND[self.id]


@dataclass(frozen=True)
class Audit:
    """`findings` are faults; `notes` are worth knowing and no fault: recent, borrowed or assumed addresses."""

    allocations: tuple[Allocation, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def audit(inventory: Inventory, now: datetime, grace: timedelta = GRACE) -> Audit:
    """Return everything that is wrong, in the order of the objects.

    An address that nothing uses counts as leaked once it was given out `grace` before `now`.
    """
    found = tuple(allocations(inventory, now, grace))
    findings = [
        *_leaked(found),
        *_users(inventory, found),
        *_blocks(inventory),
        *_affinities(inventory),
        *_handles(inventory),
        *(Finding("unreadable", key, "", why, 0) for key, why in sorted(inventory.unreadable.items())),
    ]
    return Audit(found, tuple(findings), tuple(_notes(inventory, found)))


def _leaked(found: Sequence[Allocation]) -> Iterator[Finding]:
    return (leak(a) for a in found if a.state is State.LEAKED)


def leak(a: Allocation) -> Finding:
    """Return the finding that `a` is leaked, whatever its state: mending it frees the address."""
    why = f"held by {a.owner.handle or 'no handle'}, and no endpoint or tunnel uses it"
    return Finding(LEAKED, str(a.address), a.node, why, a.sequence, a.owner.handle or "", a.block)


def _users(inventory: Inventory, found: Sequence[Allocation]) -> Iterator[Finding]:
    known = {a.address for a in found if a.state is not State.COOLING}
    for address, users in sorted(inventory.uses.items(), key=lambda use: _address_order(use[0])):
        names = " and ".join(use.holder for use in users)
        nodes = ", ".join(sorted({use.node for use in users}))
        if len(users) > 1:
            yield Finding("shared-address", str(address), nodes, f"used by {names}", 0)
        if address in known or any(address in prefix for prefix in inventory.dark_blocks):
            continue
        if inventory.pool_of(address) is None:
            why = f"used by {names}, in no pool and not allocated"
            yield Finding("address-outside-pools", str(address), nodes, why, 0)
        else:
            yield Finding("unallocated-address", str(address), nodes, f"used by {names}, not allocated", 0)


def _blocks(inventory: Inventory) -> Iterator[Finding]:
    wider: Block | None = None
    for prefix in sorted(inventory.blocks, key=order):
        stored = inventory.blocks[prefix]
        block, node = stored.block, stored.block.node or ""
        of_block = f"block {prefix}"
        if wider is not None and wider.prefix.overlaps(prefix):
            yield Finding("overlapping-blocks", of_block, node, _overlap(wider, block), stored.revision)
        else:
            wider = block
        if inventory.pool_of(prefix) is None:
            why = f"in no pool; {_count(block)} in it"
            yield Finding("block-outside-pools", of_block, node, why, stored.revision)
        if block.affinity is None and block.empty:
            why = "belongs to no node, and holds no address"
            yield Finding("orphaned-block", of_block, "", why, stored.revision, prefix=prefix)
        if lost := len(_lost(block)):
            why = f"{lost} of its addresses are neither held nor free"
            yield Finding("lost-addresses", of_block, node, why, stored.revision, prefix=prefix)
        if node and (node, prefix) not in inventory.affinities:
            yield Finding(
                "block-without-affinity" if node in inventory.nodes else "unknown-node",
                of_block,
                node,
                f"belongs to {_named(inventory, node)} that has no affinity record for it",
                stored.revision,
                prefix=prefix,
            )


def _overlap(wider: Block, block: Block) -> str:
    both = [
        str(block.address(i))
        for i, owner in enumerate(block.owners)
        if owner and block.address(i) in wider.prefix and wider.owners[wider.ordinal(block.address(i))]
    ]
    doubled = (
        f"held in both: {', '.join(both[:5])}{' …' if len(both) > 5 else ''}"
        if both
        else "none is held twice"
    )
    return f"overlaps block {wider.prefix}; of its addresses, {doubled}"


def _affinities(inventory: Inventory) -> Iterator[Finding]:
    for (node, prefix), affinity in sorted(
        inventory.affinities.items(), key=lambda item: (item[0][0], order(item[0][1]))
    ):
        stored = inventory.blocks.get(prefix)
        if prefix in inventory.dark_blocks:
            continue
        if node not in inventory.nodes:
            fault, why = "unknown-node", f"there is no Node {node}"
        elif stored is None:
            fault, why = "affinity-without-block", f"{affinity.state}, and there is no such block"
        elif stored.block.node != node:
            whose = stored.block.affinity or "no node"
            fault, why = "stale-affinity", f"{affinity.state}, and the block belongs to {whose}"
        elif not affinity.confirmed:
            fault, why = "unconfirmed-affinity", f"{affinity.state}: nobody counts it"
        else:
            continue
        yield Finding(fault, f"affinity {prefix}", node, why, affinity.revision, prefix=prefix)


def _handles(inventory: Inventory) -> Iterator[Finding]:
    truth = held(inventory)
    for handle in sorted({*truth, *inventory.handles} - inventory.dark_handles):
        record, real = inventory.handles.get(handle), truth.get(handle, {})
        recorded = {prefix: count for prefix, count in record.counts.items() if count} if record else {}
        name = f"handle {handle}"
        if any(prefix in inventory.dark_blocks for prefix in recorded):
            continue
        if record is None:
            why = f"blocks name it for {_counts(real)}, and there is no such handle"
            yield Finding("missing-handle", name, "", why, 0, handle, counts=real)
        elif not real:
            why = "no block names it" if not recorded else f"says {_counts(recorded)}, and no block names it"
            yield Finding(LEFTOVER_HANDLE, name, "", why, record.revision, handle)
        elif recorded != real:
            why = f"says {_counts(recorded)}; the blocks say {_counts(real)}"
            yield Finding("handle-disagrees", name, "", why, record.revision, handle, counts=real)


def _notes(inventory: Inventory, found: Sequence[Allocation]) -> Iterator[str]:
    for a in found:
        match a.state:
            case State.RECENT:
                yield f"{a.address}: given out to {a.owner.handle or 'no handle'} on {a.node} just now; not used yet"
            case State.ASSUMED:
                yield f"{a.address}: taken for used: {', '.join(a.users)}"
    if borrowed := sum(a.borrowed for a in found):
        strict = " although strict affinity is on" if inventory.config.strict_affinity else ""
        yield f"borrowed addresses: {borrowed}{strict}; see `fabricctl ipam show --show-borrowed`"


def groups(findings: Iterable[Finding]) -> list[tuple[Finding, ...]]:
    """Return the mendable ones of `findings` as a transaction's worth each: one block, or some handles.

    Handles first: what the blocks say they hold is true until a block is changed.
    """
    handles: list[Finding] = []
    by_block: dict[Prefix, list[Finding]] = {}
    for finding in findings:
        if finding.id in MENDABLE:
            (handles if finding.prefix is None else by_block.setdefault(finding.prefix, [])).append(finding)
    return [
        tuple(members[at : at + _MOST])
        for members in (handles, *by_block.values())
        for at in range(0, len(members), _MOST)
    ]


def mend(inventory: Inventory, group: Iterable[Finding], at: datetime) -> Change:
    """Return what puts one of `groups` right. `inventory` is the one it was found in, or `after` it."""
    edit = _Edit(inventory)
    for f in group:
        match f.id:
            case "missing-handle" | "handle-disagrees" | "handle-without-addresses":
                edit.set_handle(f.handle, f.counts)
            case "leaked-address":
                edit.release(f, at)
            case "lost-addresses":
                edit.find_lost(f.prefix)
            case "orphaned-block":
                edit.keep(f.prefix)
            case _:
                edit.drop_affinity(f.node, f.prefix)
    return edit.change()


class _Edit:
    """The change to one block, or to some handles, while findings are added to it."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._blocks: dict[Prefix, Block] = {}
        self._affinities: dict[tuple[str, Prefix], tuple[bool, int]] = {}
        self._handles: dict[str, dict[Prefix, int]] = {}

    def set_handle(self, handle: str, counts: Mapping[Prefix, int]) -> None:
        record = self._inventory.handles.get(handle)
        recorded = record.counts if record else {}
        self._handles[handle] = {p: counts.get(p, 0) - recorded.get(p, 0) for p in {**recorded, **counts}}

    def release(self, finding: Finding, at: datetime) -> None:
        if (block := self._block(finding.prefix)) is None:
            return
        cooldown = self._inventory.config.cooldown
        self._blocks[block.prefix] = blocks.release(
            block, ip_address(finding.object), None, at=at, cooldown=cooldown
        )
        if finding.handle:
            rises = self._handles.setdefault(finding.handle, {})
            rises[block.prefix] = rises.get(block.prefix, 0) - 1

    def find_lost(self, prefix: Prefix | None) -> None:
        if block := self._block(prefix):
            free = (*block.free, *_lost(block))
            self._blocks[block.prefix] = replace(block, free=free, sequence=block.sequence + 1)

    def keep(self, prefix: Prefix | None) -> None:
        """Take the block up as it is; `change` deletes it if it is nobody's."""
        if block := self._block(prefix):
            self._blocks[block.prefix] = block

    def drop_affinity(self, node: str, prefix: Prefix | None) -> None:
        if prefix is None:
            return
        if affinity := self._inventory.affinities.get((node, prefix)):
            self._affinities[node, prefix] = (False, affinity.revision)
        block = self._block(prefix)
        if block and block.node == node:
            self._blocks[prefix] = blocks.without_affinity(block)

    def _block(self, prefix: Prefix | None) -> Block | None:
        if prefix is None or prefix not in self._inventory.blocks:
            return None
        return self._blocks.get(prefix) or self._inventory.blocks[prefix].block

    def change(self) -> Change:
        """A block that is empty and belongs to no node goes with its last address."""
        return Change(
            {
                prefix: (
                    None if block.empty and block.affinity is None else block,
                    self._inventory.blocks[prefix].revision,
                )
                for prefix, block in self._blocks.items()
            },
            self._affinities,
            self._handles,
        )


def after(inventory: Inventory, change: Change, revision: int) -> Inventory:
    """Return `inventory` with what a transaction of `change` made of it at `revision`."""
    stored, affinities, handles = (
        dict(inventory.blocks),
        dict(inventory.affinities),
        dict(inventory.handles),
    )
    for prefix, (block, _) in change.blocks.items():
        stored.pop(prefix, None)
        if block:
            stored[prefix] = Stored(block, revision)
    for key in change.affinities:
        affinities.pop(key, None)
    for handle, rises in change.handles.items():
        record = handles.pop(handle, Handle({}, 0))
        counts = {p: record.counts.get(p, 0) + rises.get(p, 0) for p in {**record.counts, **rises}}
        if left := {p: count for p, count in counts.items() if count > 0}:
            handles[handle] = Handle(left, revision)
    return replace(inventory, blocks=stored, affinities=affinities, handles=handles)


def _lost(block: Block) -> list[int]:
    free = set(block.free)
    return [i for i, owner in enumerate(block.owners) if owner is None and i not in free]


def _count(block: Block) -> str:
    number = sum(owner is not None for owner in block.owners)
    return "1 address" if number == 1 else f"{number} addresses"


def _counts(counts: Mapping[Prefix, int]) -> str:
    return ", ".join(
        f"{count} in {prefix}" for prefix, count in sorted(counts.items(), key=lambda c: order(c[0]))
    )


def _named(inventory: Inventory, node: str) -> str:
    return f"node {node}," if node in inventory.nodes else f"node {node}, which does not exist,"


def _address_order(address: Address) -> tuple[int, int]:
    return address.version, int(address)
