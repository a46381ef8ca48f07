"""Decide how full pools, blocks and nodes are, counted the way Calico counts.

An address that was given out before it was reserved is both in use and reserved; one that cools down is
in use. So the columns need not add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import collapse_addresses

from fabric.ipam.block import Block
from fabric.ipam.inventory import Allocation, Inventory, State
from fabric.ipam.types import Address, Prefix, order


@dataclass(frozen=True, slots=True)
class Use:
    """Numbers of addresses; of a pool, in its blocks and where no block is yet."""

    total: int
    in_use: int
    reserved: int
    free: int
    cooling: int


@dataclass(frozen=True, slots=True)
class BlockUse:
    prefix: Prefix
    affinity: str | None
    node: str | None
    use: Use


@dataclass(frozen=True, slots=True)
class PoolUse:
    """A pool and its blocks; `name` and `cidr` are None for the blocks that are in no pool."""

    name: str | None
    cidr: Prefix | None
    disabled: bool
    use: Use
    blocks: tuple[BlockUse, ...]


@dataclass(frozen=True, slots=True)
class NodeUse:
    """What a node has. `in_use` of its own blocks' `total` addresses are held, by whomever.

    `holds` are the addresses given out on the node, and `borrowed` those of them in blocks not its own.
    """

    node: str
    blocks: int
    total: int
    in_use: int
    holds: int
    borrowed: int


def by_pool(inventory: Inventory) -> tuple[PoolUse, ...]:
    """Return every pool in the order of its cidr; last, where there are any, the blocks in none."""
    blocks: dict[str | None, list[BlockUse]] = {}
    for prefix in sorted(inventory.blocks, key=order):
        block, pool = inventory.blocks[prefix].block, inventory.pool_of(prefix)
        entry = BlockUse(prefix, block.affinity, block.node, _use(inventory, prefix, [block]))
        blocks.setdefault(pool.metadata.name if pool else None, []).append(entry)
    pools = []
    for pool in sorted(inventory.pools, key=lambda p: order(p.spec.cidr)):
        name, cidr = pool.metadata.name, pool.spec.cidr
        inside = blocks.get(name, [])
        use = _use(inventory, cidr, [inventory.blocks[b.prefix].block for b in inside])
        pools.append(PoolUse(name, cidr, pool.spec.disabled, use, tuple(inside)))
    if outside := blocks.get(None):
        sums = (sum(numbers) for numbers in zip(*map(_numbers, outside), strict=True))
        pools.append(PoolUse(None, None, False, Use(*sums), tuple(outside)))
    return tuple(pools)


def _use(inventory: Inventory, prefix: Prefix, blocks: Iterable[Block]) -> Use:
    reserved = _within(prefix, inventory.reserved)
    in_use = cooling = both = 0
    for block in blocks:
        near = [r for r in reserved if r.overlaps(block.prefix)]
        for ordinal, owner in enumerate(block.owners):
            if owner is not None:
                in_use += 1
                cooling += owner.released_at is not None
                both += _in_any(block.address(ordinal), near)
    total, kept = prefix.num_addresses, sum(r.num_addresses for r in reserved)
    return Use(total, in_use, kept, max(total - kept - in_use + both, 0), cooling)


def _numbers(block: BlockUse) -> tuple[int, ...]:
    use = block.use
    return use.total, use.in_use, use.reserved, use.free, use.cooling


def _within(prefix: Prefix, reserved: Sequence[Prefix]) -> list[Prefix]:
    """Return the parts of `prefix` that are reserved, none of them twice."""
    inside = [r if r.prefixlen >= prefix.prefixlen else prefix for r in reserved if r.overlaps(prefix)]
    return list(collapse_addresses(inside))  # type: ignore[type-var]


def _in_any(address: Address, prefixes: Iterable[Prefix]) -> bool:
    return any(address in prefix for prefix in prefixes)


def by_node(inventory: Inventory, found: Iterable[Allocation]) -> tuple[NodeUse, ...]:
    """Return every node that exists, has a block or holds an address, by name."""
    held = [a for a in found if a.state is not State.COOLING]
    owned: dict[str, list[Block]] = {}
    for stored in inventory.blocks.values():
        if stored.block.node:
            owned.setdefault(stored.block.node, []).append(stored.block)
    names = sorted({*inventory.nodes, *owned, *(a.node for a in held if a.node)})
    holds: dict[str, int] = {}
    borrowed: dict[str, int] = {}
    for a in held:
        holds[a.node] = holds.get(a.node, 0) + 1
        borrowed[a.node] = borrowed.get(a.node, 0) + a.borrowed
    return tuple(
        NodeUse(
            name,
            len(owned.get(name, ())),
            sum(block.prefix.num_addresses for block in owned.get(name, ())),
            sum(owner is not None for block in owned.get(name, ()) for owner in block.owners),
            holds.get(name, 0),
            borrowed.get(name, 0),
        )
        for name in names
    )
