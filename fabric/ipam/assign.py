"""Decide which address a workload gets: which pools count, which block serves, which to claim next.

Everything is decided on one view of the datastore and carried out as one transaction guarded by the
revisions in that view; a lost race is decided again on a newer view.

Source: calico-semantics §5 "AutoAssign" and "AssignIP", §6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fabric.errors import ConfigError, Exhausted, Taken
from fabric.ipam import block as blocks
from fabric.ipam.block import Block, Owner
from fabric.ipam.types import Address, Prefix
from fabric.model.ippool import IPPool
from policy import selector


@dataclass(frozen=True, slots=True)
class Stored:
    """A block with the revision it was read at."""

    block: Block
    revision: int


@dataclass(frozen=True)
class View:
    """What a node knows when it assigns.

    `affinities` has this node's own affinity records: prefix to (confirmed, revision).
    """

    node: str
    labels: Mapping[str, str]
    pools: tuple[IPPool, ...]
    blocks: Mapping[Prefix, Stored] = field(default_factory=dict)
    affinities: Mapping[Prefix, tuple[bool, int]] = field(default_factory=dict)

    def block_of(self, address: Address) -> Stored | None:
        """Return the block that has `address`, of whatever size its pool once had."""
        return next((stored for prefix, stored in self.blocks.items() if address in prefix), None)


@dataclass(frozen=True)
class Assignment:
    """`address` for its owner: `block` is to be stored in place of `revision` (0: it is new).

    `claims` says that this node's affinity to the block is to be stored, confirmed, in place of
    `affinity_revision`, in the same transaction.
    """

    address: Address
    block: Block
    revision: int
    claims: bool = False
    affinity_revision: int = 0


def own_blocks(view: View) -> tuple[Stored, ...]:
    """Return the blocks this node may announce: affine to it, the affinity confirmed; in prefix order."""
    return tuple(
        stored
        for prefix, stored in sorted(view.blocks.items(), key=lambda item: _order(item[0]))
        if stored.block.node == view.node and view.affinities.get(prefix, (False, 0))[0]
    )


def automatic(view: View, version: int, owner: Owner, now_ns: int, claimed_at: str) -> Assignment:
    """Return the next address of family `version` (4 or 6): from an own block, else from a new one.

    Raises:
        ConfigError: no pool of that family may serve this node.
        Exhausted: every pool that may is full; the message says what was looked at.
    """
    pools = candidate_pools(view, version)
    if not pools:
        raise ConfigError(
            f"node {view.node}: no IPv{version} pool may serve it (enabled, automatic, for workloads, nodeSelector "
            "matching); nothing was allocated; see `fabricctl get ippools -o yaml`"
        )
    for stored in own_blocks(view):
        if stored.block.free and any(_within(stored.block.prefix, pool) for pool in pools):
            block, address = blocks.allocate(stored.block, owner)
            return Assignment(address, block, stored.revision)
    for pool in pools:
        # A pool made anew with another block size leaves blocks of the old size behind, still in use.
        odd = [p for p in view.blocks if p.prefixlen != pool.spec.block_size]
        for prefix in walk(pool, view.node):
            if prefix not in view.blocks and not any(map(prefix.overlaps, odd)):
                block, address = blocks.allocate(blocks.new(prefix, view.node, now_ns, claimed_at), owner)
                return _claim(view, block, 0, address)
    names = ", ".join(f"{pool.metadata.name} ({pool.spec.cidr})" for pool in pools)
    raise Exhausted(
        f"node {view.node}: no address left in {names}: its own blocks are full and there is no block left to "
        "claim; nothing was allocated; add a pool or remove workloads"
    )


def exact(view: View, address: Address, owner: Owner, now_ns: int, claimed_at: str) -> Assignment:
    """Return the assignment of this very address; its block is claimed where it is nobody's yet.

    In another node's block the address is borrowed: that node keeps the block.

    Raises:
        ConfigError: the address is in no pool that is enabled for workloads.
        Taken: somebody holds it, or a block of another size is in the way.
    """
    pool = next((p for p in view.pools if _serves_workloads(p) and address in p.spec.cidr), None)
    if pool is None:
        known = ", ".join(str(p.spec.cidr) for p in view.pools) or "none"
        raise ConfigError(
            f"address {address}: in no enabled pool for workloads (pools: {known}); nothing was allocated"
        )
    if (stored := view.block_of(address)) is not None:
        return Assignment(address, blocks.allocate_exact(stored.block, address, owner), stored.revision)
    prefix = _block_around(pool, address)
    if rival := next((p for p in view.blocks if p.overlaps(prefix)), None):
        raise Taken(
            f"address {address}: its block would be {prefix}, but {rival} of an older block size is still in use; "
            "nothing was allocated; choose an address inside that block, or another"
        )
    fresh = blocks.new(prefix, view.node, now_ns, claimed_at)
    return _claim(view, blocks.allocate_exact(fresh, address, owner), 0, address)


def _claim(view: View, block: Block, revision: int, address: Address) -> Assignment:
    affinity_revision = view.affinities.get(block.prefix, (False, 0))[1]
    return Assignment(address, block, revision, claims=True, affinity_revision=affinity_revision)


def candidate_pools(view: View, version: int) -> tuple[IPPool, ...]:
    """Return the pools that automatic assignment on this node may use, by name."""
    return tuple(
        pool
        for pool in sorted(view.pools, key=lambda p: p.metadata.name)
        if pool.spec.cidr.version == version
        and _serves_workloads(pool)
        and pool.spec.assignment_mode == "Automatic"
        and selector.parse(pool.spec.node_selector).matches(view.labels)
    )


def _serves_workloads(pool: IPPool) -> bool:
    return not pool.spec.disabled and "Workload" in pool.spec.allowed_uses


def walk(pool: IPPool, node: str) -> Iterator[Prefix]:
    """Yield every block of `pool` once, in a circle that starts at a place of the node's own.

    Nodes that claim at the same moment thus rarely want the same block.
    """
    cidr, size = pool.spec.cidr, pool.spec.block_size
    count = 1 << (size - cidr.prefixlen)
    seed = hashlib.sha256(f"{node} {cidr}".encode()).digest()
    start = int.from_bytes(seed[:8], "big") % count
    step = 1 << (cidr.max_prefixlen - size)
    for i in range(count):
        first = cidr.network_address + ((start + i) % count) * step
        yield type(cidr)((int(first), size))


def _block_around(pool: IPPool, address: Address) -> Prefix:
    host_bits = address.max_prefixlen - pool.spec.block_size
    return type(pool.spec.cidr)((int(address) >> host_bits << host_bits, pool.spec.block_size))


def _within(prefix: Prefix, pool: IPPool) -> bool:
    return prefix.version == pool.spec.cidr.version and prefix.network_address in pool.spec.cidr


def _order(prefix: Prefix) -> tuple[int, int, int]:
    return prefix.version, int(prefix.network_address), prefix.prefixlen
