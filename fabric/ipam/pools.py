"""Decide whether pools may be stored as they are wanted, and how a pool is taken out of use.

Source: calico-semantics §5 "Disabled pool", §6.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from fabric.ipam import assign
from fabric.ipam.types import Address, Prefix, order
from fabric.ipam.view import Change, View
from fabric.model.ippool import IPPool

HostPrefix: TypeAlias = tuple[str, Prefix]  # an interface, as the message names it, and its prefix
NAMED = 5  # blocks that a message lists; the rest is counted


def refusals(
    view: View, wanted: Sequence[IPPool], hosts: Sequence[HostPrefix] = ()
) -> Mapping[str, tuple[str, ...]]:
    """Return why the pools `wanted` may not replace those of the same name in `view`: name to reasons.

    What a pool says already is not held against it again: a pool that overlaps a host's subnet since
    before can still be disabled.

    Args:
        view: of any node; its pools, blocks and affinities count.
        hosts: prefixes of hosts' interfaces, such as ("interface eth0 of node n1", 192.0.2.0/24).
    """
    stored = {pool.metadata.name: pool for pool in view.pools}
    standing = {**stored, **{pool.metadata.name: pool for pool in wanted}}
    found = {}
    for pool in wanted:
        name = pool.metadata.name
        before = stored.get(name)
        others = [other for other in standing.values() if other.metadata.name != name]
        why = _resized(view, before, pool, others) if before else []
        if before is None or before.spec.cidr != pool.spec.cidr:
            why += [*_overlapping(pool, others), *_over_hosts(pool, hosts)]
        if why:
            found[name] = tuple(why)
    return found


def _overlapping(pool: IPPool, others: Sequence[IPPool]) -> list[str]:
    return [
        f"cidr {pool.spec.cidr} overlaps IPPool {other.metadata.name} ({other.spec.cidr})"
        for other in others
        if other.spec.cidr.overlaps(pool.spec.cidr)
    ]


def _over_hosts(pool: IPPool, hosts: Sequence[HostPrefix]) -> list[str]:
    return [
        f"cidr {pool.spec.cidr} overlaps the subnet {prefix} of {interface}: a container could get the "
        "address of a host"
        for interface, prefix in hosts
        if prefix.overlaps(pool.spec.cidr)
    ]


def resized(before: IPPool, pool: IPPool) -> tuple[str, ...]:
    """Return what of the pool's extent `pool` changes, () where it is that of `before`."""
    return tuple(
        f"{what} {old} may not become {new}"
        for what, old, new in (
            ("cidr", before.spec.cidr, pool.spec.cidr),
            ("blockSize", before.spec.block_size, pool.spec.block_size),
        )
        if old != new
    )


def _resized(view: View, before: IPPool, pool: IPPool, others: Sequence[IPPool]) -> list[str]:
    changed = resized(before, pool)
    if not changed:
        return []
    holders = [
        (prefix, node)
        for prefix, node in _holders(view)
        if prefix.overlaps(before.spec.cidr)
        or (prefix.overlaps(pool.spec.cidr) and not any(prefix.overlaps(o.spec.cidr) for o in others))
    ]
    if not holders:
        return []
    nodes = Counter(node for _, node in holders)
    named = ", ".join(f"{prefix} ({node})" for prefix, node in holders[:NAMED])
    more = f" and {len(holders) - NAMED} more" if len(holders) > NAMED else ""
    counts = ", ".join(f"{node}: {count}" for node, count in sorted(nodes.items()))
    return [
        f"{change} while blocks of the pool are claimed: {named}{more}; a node's count: {counts}; make a new pool, or "
        "disable this one and remove its workloads first"
        for change in changed
    ]


def _holders(view: View) -> list[tuple[Prefix, str]]:
    """Every block with whom it belongs to, and every record of a claim without its block."""
    found = {(prefix, stored.block.node or "no node") for prefix, stored in view.blocks.items()}
    found |= {(prefix, node) for node, prefix in view.affinities}
    return sorted(found, key=lambda item: (order(item[0]), item[1]))


def disabled(pool: IPPool) -> IPPool:
    """Return `pool` giving out nothing more: the first step of its deletion.

    Then nodes are given a moment to see it, `releases` is carried out on a view read after that, and the
    pool is deleted.
    """
    return pool.model_copy(update={"spec": pool.spec.model_copy(update={"disabled": True})})


def releases(view: View, pool: IPPool) -> tuple[Change, ...]:
    """Return what takes every node's claims out of `pool`: empty blocks go, used ones keep their addresses."""
    claims = {(node, prefix) for node, prefix in view.affinities if _inside(prefix, pool)}
    claims |= {(s.block.node, p) for p, s in view.blocks.items() if s.block.node and _inside(p, pool)}
    ordered = sorted(claims, key=lambda claim: (order(claim[1]), claim[0]))
    return tuple(assign.hand_back(view, node, prefix) for node, prefix in ordered)


def in_use(view: View, pool: IPPool) -> tuple[Address, ...]:
    """Return the addresses of `pool` that somebody holds: they stay valid when it is deleted."""
    return tuple(
        stored.block.address(i)
        for prefix, stored in view.blocks.items()
        if _inside(prefix, pool)
        for i, owner in enumerate(stored.block.owners)
        if owner and not owner.released_at
    )


def _inside(prefix: Prefix, pool: IPPool) -> bool:
    return prefix.overlaps(pool.spec.cidr)
