"""What a decision of IPAM is made on (`View`), and what it comes to (`Change`).

A decision is a value: `fabric.store.ipam.transaction` stores several as one guarded transaction, and
`after` gives the view on which the next one is decided meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import TypeVar

from fabric.ipam.block import Block
from fabric.ipam.config import IPAMConfig
from fabric.ipam.records import Affinity, Handle
from fabric.ipam.types import Address, Prefix
from fabric.model.ippool import IPPool

MAX_HOST_BITS = 12  # Calico's blocks are /20 to /32 and /116 to /128

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Stored:
    """A block with the revision it was read at."""

    block: Block
    revision: int


@dataclass(frozen=True)
class View:
    """The datastore as `node` sees it. `labels` are its own; `affinities` are every node's.

    `reserved` are the prefixes of all IPReservations, `pool_revisions` those that `pools` were read at, by name.
    """

    node: str
    labels: Mapping[str, str]
    pools: tuple[IPPool, ...]
    blocks: Mapping[Prefix, Stored] = field(default_factory=dict)
    affinities: Mapping[tuple[str, Prefix], Affinity] = field(default_factory=dict)
    reserved: tuple[Prefix, ...] = ()
    config: IPAMConfig = field(default_factory=IPAMConfig)
    handles: Mapping[str, Handle] = field(default_factory=dict)
    pool_revisions: Mapping[str, int] = field(default_factory=dict)

    def block_of(self, address: Address) -> Stored | None:
        """Return the block that has `address`, of whatever size its pool once had."""
        network = type(ip_network(address))
        for host_bits in range(MAX_HOST_BITS + 1):
            first = int(address) >> host_bits << host_bits
            if found := self.blocks.get(network((first, address.max_prefixlen - host_bits))):
                return found
        return None

    def confirmed(self, prefix: Prefix) -> bool:
        """Whether this node's own affinity to `prefix` counts."""
        found = self.affinities.get((self.node, prefix))
        return found is not None and found.confirmed


@dataclass(frozen=True)
class Change:
    """What one transaction is to make of the store, guarded by the revisions the decision was made on.

    `blocks`: what is to stand at each prefix (None: nothing), and the revision read (0: there was none).
    `affinities`: whether (node, prefix) is to be confirmed or deleted, and the revision read.
    `handles`: by how much each handle's count of each block rises or falls; one that holds nothing then goes.
    `pools`: those that must still stand as they were read, by name, and the revision read.
    """

    blocks: Mapping[Prefix, tuple[Block | None, int]] = field(default_factory=dict)
    affinities: Mapping[tuple[str, Prefix], tuple[bool, int]] = field(default_factory=dict)
    handles: Mapping[str, Mapping[Prefix, int]] = field(default_factory=dict)
    pools: Mapping[str, int] = field(default_factory=dict)


def joined(changes: Iterable[Change]) -> Change:
    """Return one change that does all of `changes`, each decided on the view after the one before.

    The last state of a key wins, and the first revision: that is the one in the store.
    """
    blocks: dict[Prefix, tuple[Block | None, int]] = {}
    affinities: dict[tuple[str, Prefix], tuple[bool, int]] = {}
    handles: dict[str, dict[Prefix, int]] = {}
    pools: dict[str, int] = {}
    for change in changes:
        pools |= change.pools
        for prefix, (block, revision) in change.blocks.items():
            blocks[prefix] = (block, blocks[prefix][1] if prefix in blocks else revision)
        for key, (confirmed, revision) in change.affinities.items():
            affinities[key] = (confirmed, affinities[key][1] if key in affinities else revision)
        for handle, rises in change.handles.items():
            sums = handles.setdefault(handle, {})
            for prefix, rise in rises.items():
                sums[prefix] = sums.get(prefix, 0) + rise
    return Change(blocks, affinities, handles, pools)


def after(view: View, change: Change) -> View:
    """Return `view` as if `change` were stored; what is there keeps the revision it was read at.

    `handles` stay as read, so that the rises and falls of several changes can be added up.
    """
    return replace(
        view,
        blocks=_with(
            view.blocks,
            {p: Stored(block, revision) if block else None for p, (block, revision) in change.blocks.items()},
        ),
        affinities=_with(
            view.affinities,
            {
                key: Affinity("confirmed", revision) if confirmed else None
                for key, (confirmed, revision) in change.affinities.items()
            },
        ),
    )


def _with(base: Mapping[K, V], edits: Mapping[K, V | None]) -> Mapping[K, V]:
    if not edits:
        return base
    edited = dict(base)
    for key, value in edits.items():
        if value is None:
            edited.pop(key, None)
        else:
            edited[key] = value
    return edited
