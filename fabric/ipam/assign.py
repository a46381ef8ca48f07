"""Decide which address a workload gets: which pools count, which block serves, which to claim next.

Everything is decided on one view of the datastore and carried out as one transaction guarded by the
revisions in that view; a lost race is decided again on a newer view. Calico's nodes claim in several
writes; of what they see of ours, there are only the states in which their protocol ends.

Source: calico-semantics §5 "AutoAssign", "AssignIP" and "Release", §6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from ipaddress import collapse_addresses, ip_network
from math import ceil
from typing import Literal

from fabric.errors import ConfigError, Exhausted, NotFound, Taken
from fabric.ipam import block as blocks
from fabric.ipam.block import Block, Owner
from fabric.ipam.config import DEFAULT_MAX_BLOCKS
from fabric.ipam.records import Affinity
from fabric.ipam.types import Address, Prefix, order
from fabric.ipam.view import Change, Stored, View
from fabric.model.ippool import IPPool
from policy import selector

_SEE_POOLS = "; see `fabricctl get ippools -o yaml`"
RECLAIM_AFTER = timedelta(seconds=60)  # an empty block of another node may be one it has just claimed


@dataclass(frozen=True)
class Demand:
    """Who wants an address, and what it may be: `pools` are names or prefixes asked for, () for any.

    No node wants one for the use LoadBalancer: a service's controller claims those, in its own name.
    """

    owner: Owner
    use: Literal["Workload", "Tunnel"] = "Workload"
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    pools: tuple[str, ...] = ()


@dataclass(frozen=True)
class Assignment:
    """`address` is its owner's once `change` is stored."""

    address: Address
    change: Change


def own_blocks(view: View) -> tuple[Stored, ...]:
    """Return the blocks this node may announce: affine to it, the affinity confirmed; in prefix order."""
    return tuple(stored for stored in _of_node(view) if view.confirmed(stored.block.prefix))


def automatic(view: View, version: int, demand: Demand, at: datetime) -> Assignment:
    """Return the next address of family `version` (4 or 6), at the time `at` (UTC).

    It comes from an own block, else from a new one, else from one that another node holds empty, else,
    where strict affinity is off, from any block that has room.

    Raises:
        ConfigError: no pool of that family may serve; or one that was asked for is unknown or disabled.
        Exhausted: nothing is free where this node may take it; the message says what was looked at.
    """
    pools = candidate_pools(view, version, demand)
    if not pools:
        raise ConfigError(f"{_no_pool(view, version, demand)}; nothing was allocated{_SEE_POOLS}")
    for stored in _affine(view, pools):
        # The claim's records may be left half-way by Calico's agent or by a crash: they are put right on the way.
        block = blocks.cooled(stored.block, at, view.config.cooldown)
        if blocks.usable(block, view.reserved) is not None:
            return _assigned(view, stored, block, demand)
    # The rest is as strict as Calico is: at the limit, and without automatic claims, nothing is borrowed.
    _refuse_at_limit(view, version, pools, at)
    if not view.config.auto_allocate:
        raise Exhausted(
            f"{_full(view, pools, at)}, and auto_allocate_blocks is off; nothing was allocated; turn it on with "
            '`fabricctl patch ipamconfiguration default -p \'{"spec": {"autoAllocateBlocks": true}}\'`, or '
            "remove workloads"
        )
    if found := _unclaimed(view, pools) or _reclaimable(view, pools, at):
        return _claimed(view, pools, found, demand, at)
    if view.config.strict_affinity:
        raise Exhausted(
            f"{_full(view, pools, at)}, no block is left to claim, and strict affinity forbids to borrow; nothing was "
            "allocated; add a pool or remove workloads"
        )
    for stored in _all_blocks(view, pools):
        block = blocks.cooled(stored.block, at, view.config.cooldown)
        if blocks.usable(block, view.reserved) is not None:
            return _assigned(view, stored, block, demand)
    raise Exhausted(
        f"{_full(view, pools, at)}, no block is left to claim and no other has a free address; nothing was allocated; "
        "add a pool or remove workloads"
    )


def exact(view: View, address: Address, demand: Demand, at: datetime) -> Assignment:
    """Return the assignment of this very address; its block is claimed where it is nobody's yet.

    In another node's block the address is borrowed: that node keeps the block. Reservations do not
    count: they keep automatic assignment away.

    Raises:
        ConfigError: the address is in no pool that is enabled for that use (of those asked for, if any).
        Taken: somebody holds it, strict affinity forbids it, or a block of another size is in the way.
    """
    asked = _requested(view, demand) if demand.pools else view.pools
    pool = next((p for p in asked if _serves(p, demand.use) and address in p.spec.cidr), None)
    if pool is None:
        known = ", ".join(str(p.spec.cidr) for p in asked) or "none"
        raise ConfigError(
            f"address {address}: in no enabled pool for {demand.use} (pools: {known}); nothing was allocated"
        )
    if stored := view.block_of(address):
        if view.config.strict_affinity and stored.block.node != view.node:
            raise Taken(
                f"address {address}: its block {stored.block.prefix} is {_whose(stored.block)}, and strict affinity "
                "forbids to borrow; nothing was allocated; choose an address of another block"
            )
        block = blocks.cooled(stored.block, at, view.config.cooldown)
        if block.deleted:
            raise Taken(
                f"address {address}: its block {block.prefix} is being deleted; nothing was allocated"
            )
        return _stored(view, stored, blocks.allocate_exact(block, address, demand.owner), address, demand)
    prefix = _block_around(pool, address)
    if rival := next((p for p in view.blocks if p.overlaps(prefix)), None):
        raise Taken(
            f"address {address}: its block would be {prefix}, but {rival} of an older block size is still in use; "
            "nothing was allocated; choose an address inside that block, or another"
        )
    fresh = blocks.allocate_exact(blocks.new(prefix, view.node, at), address, demand.owner)
    return _while_stands(view, pool, _stored(view, Stored(fresh, 0), fresh, address, demand))


def release(
    view: View, address: Address, handle: str | None, expected_sequence: int | None = None, *, at: datetime
) -> Change:
    """Return the change that takes `address` back from `handle` (None: from whoever holds it).

    A block that is empty then and belongs to no node goes with its last address.

    Raises:
        NotFound: nobody holds it.
        Taken: it was given to another since; it is left alone.
    """
    stored = view.block_of(address)
    if stored is None:
        raise NotFound(f"address {address}: in no block; nothing was released")
    cooldown = view.config.cooldown
    block = blocks.release(
        blocks.cooled(stored.block, at, cooldown),
        address,
        handle,
        expected_sequence,
        at=at,
        cooldown=cooldown,
    )
    holder = stored.block.owners[stored.block.ordinal(address)]
    gone = block.empty and block.affinity is None
    return Change(
        blocks={block.prefix: (None if gone else block, stored.revision)},
        handles={holder.handle: {block.prefix: -1}} if holder and holder.handle else {},
    )


def hand_back(view: View, node: str, prefix: Prefix) -> Change:
    """Return the change that gives up the affinity of `node` to `prefix`, and what is left of its record.

    An empty block goes; one in use stays with its addresses and no node. A record without a block, or
    beside a block of another's, goes alone.
    """
    stored, record = view.blocks.get(prefix), view.affinities.get((node, prefix))
    affinities = {(node, prefix): (False, record.revision)} if record else {}
    if stored is None or stored.block.node != node:
        return Change(affinities=affinities)
    left = None if stored.block.empty else blocks.without_affinity(stored.block)
    return Change(blocks={prefix: (left, stored.revision)}, affinities=affinities)


def candidate_pools(view: View, version: int, demand: Demand) -> tuple[IPPool, ...]:
    """Return the pools that may serve `demand` on this node: as asked for, else by name.

    Raises:
        ConfigError: a pool that was asked for is unknown or disabled.
    """
    if demand.pools:
        asked = _requested(view, demand)
        return tuple(p for p in asked if p.spec.cidr.version == version and _serves(p, demand.use))
    return tuple(
        pool
        for pool in sorted(view.pools, key=lambda p: p.metadata.name)
        if pool.spec.cidr.version == version
        and _serves(pool, demand.use)
        and pool.spec.assignment_mode == "Automatic"
        and selects(pool, view.labels)
        and _selects_namespace(pool, demand.namespace_labels)
    )


def passed_over(view: View, version: int, demand: Demand) -> str:
    """Return why no address of family `version` came where there are pools for that use; "" where there are none."""
    meant = any(
        p.spec.cidr.version == version
        and p.spec.assignment_mode == "Automatic"
        and demand.use in p.spec.allowed_uses
        for p in view.pools
    )
    if not meant or candidate_pools(view, version, demand):
        return ""
    return f"no IPv{version} address: {_no_pool(view, version, demand)}{_SEE_POOLS}"


def selects(pool: IPPool, labels: Mapping[str, str]) -> bool:
    """Whether `pool` is one for nodes with `labels`."""
    return selector.parse(pool.spec.node_selector).matches(labels)


def is_open(pool: IPPool) -> bool:
    """Whether `pool` gives out addresses: neither disabled nor about to be deleted."""
    return not (pool.spec.disabled or is_going(pool))


def is_going(pool: IPPool) -> bool:
    """Whether `pool` is about to be deleted, once nobody has addresses of it."""
    return "deletionTimestamp" in (pool.metadata.model_extra or {})


def _selects_namespace(pool: IPPool, labels: Mapping[str, str]) -> bool:
    text = pool.spec.namespace_selector
    return not text or selector.parse(text).matches(labels)


def _serves(pool: IPPool, use: str) -> bool:
    return is_open(pool) and use in pool.spec.allowed_uses


def _requested(view: View, demand: Demand) -> tuple[IPPool, ...]:
    found = []
    for text in demand.pools:
        pool = next(
            (p for p in view.pools if p.metadata.name == text or p.spec.cidr == _as_prefix(text)), None
        )
        if pool is None:
            known = ", ".join(f"{p.metadata.name} ({p.spec.cidr})" for p in view.pools) or "none"
            raise ConfigError(f'pool "{text}": there is no such pool (pools: {known}); nothing was allocated')
        if not is_open(pool):
            raise ConfigError(
                f"pool {pool.metadata.name} ({pool.spec.cidr}): is disabled or being deleted; nothing was allocated; "
                "name another pool"
            )
        found.append(pool)
    return tuple(found)


def _as_prefix(text: str) -> Prefix | None:
    try:
        return ip_network(text)
    except ValueError:
        return None


def _affine(view: View, pools: Sequence[IPPool]) -> list[Stored]:
    """The blocks in `pools` that say they are this node's, in prefix order."""
    return [s for s in _of_node(view) if any(within(s.block.prefix, pool) for pool in pools)]


def _of_node(view: View) -> list[Stored]:
    mine = f"host:{view.node}"
    own = [stored for stored in view.blocks.values() if stored.block.affinity == mine]
    return sorted(own, key=lambda stored: order(stored.block.prefix))


def _refuse_at_limit(view: View, version: int, pools: Sequence[IPPool], at: datetime) -> None:
    limit, count = view.config.max_blocks or DEFAULT_MAX_BLOCKS, len(_affine(view, pools))
    if count >= limit:
        raise Exhausted(
            f"node {view.node}: its {count} IPv{version} blocks in {_named(pools)} are full"
            f"{_resting(view, pools, at)}, and {limit} is the most a node may own (maxBlocksPerHost; at the limit "
            "nothing is borrowed either); nothing was allocated; raise it with `fabricctl ipam configure "
            "--max-blocks-per-host`, or remove workloads"
        )


def _unclaimed(view: View, pools: Sequence[IPPool]) -> Prefix | None:
    for pool in pools:
        size, inside = pool.spec.block_size, [p for p in view.blocks if p.overlaps(pool.spec.cidr)]
        # A pool made anew with another block size leaves blocks of the old size behind, still in use.
        larger = [p for p in inside if p.prefixlen < size]
        taken = {p.supernet(new_prefix=size) for p in inside if p.prefixlen >= size}
        free = (p for p in walk(pool, view.node, (*view.reserved, *larger)) if p not in taken)
        if prefix := next(free, None):
            return prefix
    return None


def _reclaimable(view: View, pools: Sequence[IPPool], at: datetime) -> Prefix | None:
    for stored in _all_blocks(view, pools):
        block = blocks.cooled(stored.block, at, view.config.cooldown)
        foreign = block.node not in (None, view.node)
        idle = block.empty and block.claimed_before(at - RECLAIM_AFTER)
        if foreign and idle and blocks.usable(block, view.reserved) is not None:
            return block.prefix
    return None


def _claimed(view: View, pools: Sequence[IPPool], prefix: Prefix, demand: Demand, at: datetime) -> Assignment:
    """Take a free address of `prefix`: of a block that is not there, or that another node holds empty."""
    stored = view.blocks.get(prefix)
    fresh = blocks.new(prefix, view.node, at)
    if stored:  # the numbers of a prefix never repeat, however the clocks of two nodes differ
        fresh = replace(fresh, sequence=max(fresh.sequence, stored.block.sequence + 1))
    block, address = blocks.allocate(fresh, demand.owner, view.reserved)
    made = _stored(view, stored or Stored(block, 0), block, address, demand)
    if stored:
        loser = str(stored.block.node)
        record = view.affinities.get((loser, prefix), Affinity("", 0))
        affinities = {**made.change.affinities, (loser, prefix): (False, record.revision)}
        made = replace(made, change=replace(made.change, affinities=affinities))
    return _while_stands(view, next(pool for pool in pools if within(prefix, pool)), made)


def _while_stands(view: View, pool: IPPool, made: Assignment) -> Assignment:
    """Have the claim lose against whoever disables, resizes or deletes `pool` meanwhile."""
    name = pool.metadata.name
    guarded = replace(made.change, pools={name: view.pool_revisions.get(name, 0)})
    return replace(made, change=guarded)


def _assigned(view: View, stored: Stored, block: Block, demand: Demand) -> Assignment:
    after, address = blocks.allocate(block, demand.owner, view.reserved)
    return _stored(view, stored, after, address, demand)


def _stored(view: View, stored: Stored, block: Block, address: Address, demand: Demand) -> Assignment:
    """Store `block` in place of `stored`; where it is ours, with the affinity confirmed."""
    handle, prefix = demand.owner.handle, block.prefix
    record = view.affinities.get((view.node, prefix), Affinity("", 0))
    claims = block.node == view.node and not record.confirmed
    return Assignment(
        address,
        Change(
            blocks={prefix: (block, stored.revision)},
            affinities={(view.node, prefix): (True, record.revision)} if claims else {},
            handles={handle: {prefix: 1}} if handle else {},
        ),
    )


def _all_blocks(view: View, pools: Sequence[IPPool]) -> Iterator[Stored]:
    """Every block in `pools`, in the order of the walk; of whatever size."""
    for pool in pools:
        start = _start(pool, view.node)
        inside = [s for s in view.blocks.values() if within(s.block.prefix, pool)]
        count = _block_count(pool)
        yield from sorted(inside, key=lambda s: (_index(pool, s.block.prefix) - start) % count)


def walk(pool: IPPool, node: str, closed: Sequence[Prefix] = ()) -> Iterator[Prefix]:
    """Yield every block of `pool` once, less those that lie wholly in `closed`, taken together.

    It goes in a circle that starts at a place of the node's own: nodes that claim at the same moment
    thus rarely want the same block.
    """
    cidr, size, start = pool.spec.cidr, pool.spec.block_size, _start(pool, node)
    ranges = _open_ranges(pool, closed)
    onward = ((max(first, start), end) for first, end in ranges)
    around = ((first, min(end, start)) for first, end in ranges)
    for first, end in (*onward, *around):
        for i in range(first, end):
            yield type(cidr)((int(cidr.network_address) + (i << (cidr.max_prefixlen - size)), size))


def _open_ranges(pool: IPPool, closed: Sequence[Prefix]) -> list[tuple[int, int]]:
    """The blocks outside `closed`, as ranges of their indexes: half an IPv6 /64 is too much to walk through."""
    ranges, at = [], 0
    for prefix in collapse_addresses(p for p in closed if p.version == pool.spec.cidr.version):  # type: ignore[type-var]
        if prefix.prefixlen <= pool.spec.block_size and prefix.overlaps(pool.spec.cidr):
            first = _index(pool, prefix)
            ranges.append((at, first))
            at = first + (1 << (pool.spec.block_size - prefix.prefixlen))
    return [*ranges, (at, _block_count(pool))]


def _block_count(pool: IPPool) -> int:
    return 1 << max(0, pool.spec.block_size - pool.spec.cidr.prefixlen)


def _start(pool: IPPool, node: str) -> int:
    seed = hashlib.sha256(f"{node} {pool.spec.cidr}".encode()).digest()
    return int.from_bytes(seed[:8], "big") % _block_count(pool)


def _index(pool: IPPool, prefix: Prefix) -> int:
    """The place of `prefix` among the pool's blocks; negative for one that begins before the pool."""
    offset = int(prefix.network_address) - int(pool.spec.cidr.network_address)
    return offset >> (prefix.max_prefixlen - pool.spec.block_size)


def _block_around(pool: IPPool, address: Address) -> Prefix:
    host_bits = address.max_prefixlen - pool.spec.block_size
    return type(pool.spec.cidr)((int(address) >> host_bits << host_bits, pool.spec.block_size))


def within(prefix: Prefix, pool: IPPool) -> bool:
    """Whether the block `prefix` is one of `pool`."""
    return prefix.version == pool.spec.cidr.version and prefix.network_address in pool.spec.cidr


def _no_pool(view: View, version: int, demand: Demand) -> str:
    if demand.pools:
        return (
            f"node {view.node}: none of the pools asked for ({', '.join(demand.pools)}) has IPv{version} addresses for "
            f"{demand.use}"
        )
    return (
        f"node {view.node}: no IPv{version} pool may serve it (enabled, automatic, for {demand.use}, nodeSelector and "
        "namespaceSelector matching)"
    )


def _full(view: View, pools: Sequence[IPPool], at: datetime) -> str:
    kept = " (reserved addresses left out)" if view.reserved else ""
    return (
        f"node {view.node}: no address left in {_named(pools)}: its own blocks are full{kept}"
        f"{_resting(view, pools, at)}"
    )


def _resting(view: View, pools: Sequence[IPPool], at: datetime) -> str:
    """Say how many addresses of these pools only wait for their cooldown to end: then they serve again."""
    cooldown = timedelta(seconds=view.config.cooldown)
    left = [
        owner.released_at + cooldown - at
        for stored in _all_blocks(view, pools)
        for owner in stored.block.owners
        if owner and owner.released_at
    ]
    if not left:
        return ""
    return f" (released and still in cooldown: {len(left)}, for {ceil(max(left).total_seconds())} s at most)"


def _named(pools: Sequence[IPPool]) -> str:
    return ", ".join(f"{pool.metadata.name} ({pool.spec.cidr})" for pool in pools)


def _whose(block: Block) -> str:
    return f"of {block.affinity}" if block.affinity else "nobody's"
