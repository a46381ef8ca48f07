"""Decide what a node puts right in IPAM on each periodic pass; and its tunnels' addresses.

Each step is one transaction on its own: one that loses a race is decided again by the next pass. No two
steps of a pass write the same key.

Source: calico-semantics §5 "Release block affinity", "Tunnel addresses", "GC".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from fabric.errors import ConfigError, Exhausted
from fabric.ipam import assign
from fabric.ipam import block as blocks
from fabric.ipam.assign import Demand
from fabric.ipam.block import Block, Owner
from fabric.ipam.types import Address, Prefix, order
from fabric.ipam.view import Change, Stored, View, after, joined
from fabric.model import extensions
from fabric.model.ippool import IPPool

EMPTY_FOR = timedelta(seconds=60)  # a block seen empty that long, unchanged, is not about to be used

# Prefix to the block's sequence number when it was first seen empty, and when that was (UTC).
Observed: TypeAlias = Mapping[Prefix, tuple[int, datetime]]


@dataclass(frozen=True)
class Step:
    """One transaction's worth; `what` is a line for the log."""

    what: str
    change: Change


@dataclass(frozen=True)
class Tunnel:
    """One kind of tunnel: `handle` and `type` are Calico's words for its address."""

    name: str
    version: int
    handle: str
    type: str

    @property
    def kind(self) -> Literal["ipip", "vxlan"]:
        return "ipip" if self.name == "ipip" else "vxlan"

    def wanted_by(self, pool: IPPool) -> bool:
        """Whether `pool` wants its traffic in such tunnels, if only where one end lacks what it wants first."""
        modes = {pool.spec.ipip_mode} if self.name == "ipip" else {pool.spec.vxlan_mode}
        if self.name == "vxlan" and _falls_back(pool):
            modes.add(pool.spec.ipip_mode)
        return modes != {"Never"} and pool.spec.cidr.version == self.version


def _falls_back(pool: IPPool) -> bool:
    said = pool.metadata.annotations
    return bool(extensions.value(said, extensions.TUNNEL_FALLBACK, extensions.tunnel_fallback, ""))


TUNNELS = (
    Tunnel("ipip", 4, "ipip-tunnel-addr-", "ipipTunnelAddress"),
    Tunnel("vxlan", 4, "vxlan-tunnel-addr-", "vxlanTunnelAddress"),
    Tunnel("vxlan-v6", 6, "vxlan-v6-tunnel-addr-", "vxlanV6TunnelAddress"),
)


@dataclass(frozen=True)
class Upkeep:
    """`steps` are independent; `problems` are what could not be decided, one line each."""

    steps: tuple[Step, ...] = ()
    problems: tuple[str, ...] = ()


def observe(view: View, earlier: Observed, at: datetime) -> Observed:
    """Return which own blocks are empty, and since when they have been, as far as `earlier` knows."""
    seen = {}
    for stored in assign.own_blocks(view):
        block = stored.block
        if block.empty:
            known = earlier.get(block.prefix)
            seen[block.prefix] = known if known and known[0] == block.sequence else (block.sequence, at)
    return seen


def upkeep(
    view: View,
    observed: Observed,
    at: datetime,
    ours: Callable[[str], bool],
    lacks: AbstractSet[str] = frozenset(),
    standing: AbstractSet[Address] = frozenset(),
) -> Upkeep:
    """Return what the view's node should put right at the time `at` (UTC).

    Args:
        observed: what `observe` returned on this view.
        ours: whether a handle is one that only this node's attaches write; tunnels' are known here.
        lacks: the kinds of tunnel, "ipip" and "vxlan", that the node's kernel does not have.
        standing: the addresses that its tunnel devices have, wanted or not.
    """
    tunnels, problems = _tunnels(view, at, lacks, standing)
    done = set(tunnels.change.blocks) if tunnels else set()
    steps = [tunnels] if tunnels else []
    for prefix in sorted(_concerns(view) - done, key=order):
        if step := _mend(view, prefix, observed, at):
            steps.append(step)
    busy = {handle for step in steps for handle in step.change.handles}
    steps += (s for s in _handles(view, ours) if not busy & set(s.change.handles))
    return Upkeep(tuple(steps), problems)


def tunnel_addresses(view: View) -> Mapping[str, Address | None]:
    """Return what the Node is to carry: for each tunnel's name the address its handle holds, or None."""
    return {t.name: next(iter(_held(view, t.handle + view.node)), None) for t in TUNNELS}


def _concerns(view: View) -> set[Prefix]:
    """Blocks and records that name this node, and blocks that name nobody."""
    blocks_here = {p for p, s in view.blocks.items() if s.block.node == view.node or not s.block.affinity}
    return blocks_here | {prefix for node, prefix in view.affinities if node == view.node}


def _mend(view: View, prefix: Prefix, observed: Observed, at: datetime) -> Step | None:
    stored = view.blocks.get(prefix)
    if stored is None or (stored.block.affinity and stored.block.node != view.node):
        why = "there is no such block" if stored is None else f"the block is {stored.block.affinity}'s"
        return Step(f"affinity to {prefix}: deleted, {why}", assign.hand_back(view, view.node, prefix))
    block = blocks.cooled(stored.block, at, view.config.cooldown)
    record = view.affinities.get((view.node, prefix))
    if not block.affinity:
        return _mend_orphan(view, stored, block)
    if block.empty and (why := _unwanted(view, block, observed, at)):
        change = assign.hand_back(after(view, _put(stored, block)), view.node, prefix)
        return Step(f"block {prefix}: released, {why}", change)
    if not view.confirmed(prefix):
        # The write to the block ends whatever was deciding on the state as it was.
        kept = block if block is not stored.block else blocks.touched(block)
        claim = {(view.node, prefix): (True, record.revision if record else 0)}
        return Step(
            f"affinity to {prefix}: confirmed, the block is this node's",
            replace(_put(stored, kept), affinities=claim),
        )
    if block is not stored.block:
        return Step(f"block {prefix}: addresses that have cooled down are free", _put(stored, block))
    return None


def _mend_orphan(view: View, stored: Stored, block: Block) -> Step | None:
    """A block of nobody's: any node may free what has cooled down in it, and delete it when it is empty."""
    prefix = block.prefix
    record = view.affinities.get((view.node, prefix))
    affinities = {(view.node, prefix): (False, record.revision)} if record else {}
    if block.empty:
        gone = Change({prefix: (None, stored.revision)}, affinities)
        return Step(f"block {prefix}: deleted, it is empty and nobody's", gone)
    if block is not stored.block:
        return Step(
            f"block {prefix}: addresses that have cooled down are free",
            replace(_put(stored, block), affinities=affinities),
        )
    return (
        Step(f"affinity to {prefix}: deleted, the block is nobody's", Change(affinities=affinities))
        if record
        else None
    )


def _put(stored: Stored, block: Block) -> Change:
    return Change({block.prefix: (block, stored.revision)})


def _unwanted(view: View, block: Block, observed: Observed, at: datetime) -> str:
    """Why this empty block of the node's own should go; "" where it should not."""
    pool = next((p for p in view.pools if assign.within(block.prefix, p)), None)
    if block.deleted:
        return "its deletion was announced"
    if pool is None:
        return "it is empty and in no pool"
    if not assign.is_open(pool):
        return f"it is empty and pool {pool.metadata.name} is disabled"
    if not assign.selects(pool, view.labels):
        return f"it is empty and pool {pool.metadata.name} does not select this node"
    seen = observed.get(block.prefix)
    lasting = seen is not None and at - seen[1] >= EMPTY_FOR
    return "it stays empty and the node has another" if lasting and _spare(view, block.prefix) else ""


def _spare(view: View, prefix: Prefix) -> bool:
    """Whether the node keeps a block of the family without this one: the first of those it has, or one in use."""
    own = [s.block for s in assign.own_blocks(view) if s.block.prefix.version == prefix.version]
    in_use = any(not b.empty for b in own)
    return in_use or bool(own and own[0].prefix != prefix)


def _tunnels(
    view: View, at: datetime, lacks: AbstractSet[str], standing: AbstractSet[Address]
) -> tuple[Step | None, tuple[str, ...]]:
    """All tunnels in one step, as their addresses may come out of one block."""
    changes: list[Change] = []
    said, problems = [], []
    for tunnel in TUNNELS:
        now = after(view, joined(changes))
        try:
            for what, change in _tunnel(now, tunnel, at, standing, possible=tunnel.kind not in lacks):
                said.append(what)
                changes.append(change)
        except (ConfigError, Exhausted) as err:
            problems.append(f"{tunnel.name} tunnel: {err}")
    step = Step("; ".join(said), joined(changes)) if changes else None
    return step, tuple(problems)


def _tunnel(
    view: View, tunnel: Tunnel, at: datetime, standing: AbstractSet[Address], *, possible: bool
) -> Iterator[tuple[str, Change]]:
    """Keep the first address where some pool wants one, release the others, assign one where there is none.

    One that a wanting pool has is kept before others; but one of another pool of this node will do as well: that a pool
    has another mode now must not move what carries the packets of those that stay. A pool that is disabled gives none,
    but what has addresses of it goes through tunnels as before. A device that no pool wants any more keeps its address
    for as long as it stands: others still send to it.
    """
    handle = tunnel.handle + view.node
    wanting = wanted(tunnel, view.pools, view.labels) if possible else ()
    pools = [pool for pool in wanting if assign.is_open(pool)]
    here = [pool for pool in view.pools if assign.selects(pool, view.labels)] if wanting else []
    held = _held(view, handle)
    staying = [pool.spec.cidr for pool in (*wanting, *here) if not assign.is_going(pool)]
    kept = next((address for cidr in staying for address in held if address in cidr), None)
    if not wanting:
        kept = next((address for address in held if address in standing), None)
    if pools and kept is None:
        owner = Owner(handle, {"node": view.node, "type": tunnel.type})
        names = tuple(pool.metadata.name for pool in pools)
        made = assign.automatic(view, tunnel.version, Demand(owner, "Tunnel", pools=names), at)
        yield f"{tunnel.name} tunnel: address {made.address} assigned", made.change
        view = after(view, made.change)
    for address in held:
        if address != kept:
            change = assign.release(view, address, handle, at=at)
            yield f"{tunnel.name} tunnel: address {address} released", change
            view = after(view, change)


def wanted(tunnel: Tunnel, pools: Iterable[IPPool], labels: Mapping[str, str]) -> tuple[IPPool, ...]:
    """Return which of `pools`, by name, want such a tunnel on a node with these labels."""
    found = (pool for pool in pools if tunnel.wanted_by(pool) and assign.selects(pool, labels))
    return tuple(sorted(found, key=lambda pool: pool.metadata.name))


def _held(view: View, handle: str) -> tuple[Address, ...]:
    """The addresses that `handle` holds, in the blocks that its record names."""
    counts = view.handles[handle].counts if handle in view.handles else {}
    found = (view.blocks[prefix].block for prefix in sorted(counts, key=order) if prefix in view.blocks)
    return tuple(address for block in found for address in block.held_by(handle))


def _handles(view: View, ours: Callable[[str], bool]) -> Iterator[Step]:
    """Bring the records of our handles in line with the blocks: each was written with its block."""
    tunnels = {tunnel.handle + view.node for tunnel in TUNNELS}
    mine = {handle for handle in view.handles if handle in tunnels or ours(handle)}
    held: dict[str, Counter[Prefix]] = {}
    for prefix, stored in view.blocks.items():
        for owner in filter(None, stored.block.owners):
            handle = owner.handle
            # Most are in `mine` or nobody's of ours: asking is what would take the time.
            if (
                handle
                and not owner.released_at
                and (handle in mine or _unrecorded(view, handle, tunnels, ours))
            ):
                held.setdefault(handle, Counter())[prefix] += 1
    for handle in sorted(mine | held.keys()):
        known = view.handles[handle].counts if handle in view.handles else {}
        there = held.get(handle, Counter())
        if known != there or not there:
            rises = {p: there[p] - known.get(p, 0) for p in {**known, **there}}
            what = "corrected, the blocks say otherwise" if there else "deleted, no block knows it"
            yield Step(f"handle {handle}: {what}", Change(handles={handle: rises}))


def _unrecorded(view: View, handle: str, tunnels: set[str], ours: Callable[[str], bool]) -> bool:
    return handle not in view.handles and (handle in tunnels or ours(handle))
