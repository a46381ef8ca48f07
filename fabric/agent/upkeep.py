"""Put right in IPAM what this node left half-done, no longer needs or is owed: one guarded transaction a step.

What is to be done is decided by `fabric.ipam.upkeep`. Here is when: once the datastore is in sync, soon after
something it depends on changed, and every 90 s or so. A step that loses a race is decided anew next time.
Each is guarded by the Node as well, so that one that leaves takes nothing more.

What the Node says of its tunnels is written here too: where they end, once they stand; which ones the kernel lacks.
Of these only such are tried as a pool asks of this node, since the kernel loads a module for it; of IPIP it is noted
all the same, so that whoever would ask for it, wherever, hears of it before.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TypeAlias

import structlog

from fabric.agent import endpoint as endpoints
from fabric.agent.overlay import NAMES
from fabric.agent.snapshot import Snapshot
from fabric.agent.state import State
from fabric.errors import Conflict, DataplaneError, StoreError
from fabric.ipam import upkeep as ipam_upkeep
from fabric.ipam.types import Address
from fabric.ipam.upkeep import Observed
from fabric.model import extensions
from fabric.model.ippool import IPPool
from fabric.model.ipreservation import IPReservation
from fabric.model.node import Node
from fabric.model.wire import to_json
from fabric.plan import asked
from fabric.plan.encap import IPIP, VXLAN, VXLAN6, Encap, Kind
from fabric.plan.endpoints import is_handle_of
from fabric.plan.tunnels import Tunnel
from fabric.store import ipam
from fabric.store.kv import Guard, KeyValueStore, Put, Txn

log = structlog.get_logger()

EVERY = 90.0  # seconds between two looks, each a tenth more or less
GATHER = 0.5  # seconds that changes may gather before the next look

Missing: TypeAlias = Callable[[AbstractSet[Kind]], Awaitable[Mapping[Kind, str]]]
Unasked: TypeAlias = Callable[[], Awaitable[Mapping[Kind, str]]]


@dataclass(frozen=True, slots=True)
class End:
    """Where a tunnel ends: its address, and of a VXLAN the MAC."""

    address: Address
    mac: str = ""


async def keep_up(state: State, kv: KeyValueStore, missing: Missing, unasked: Unasked) -> None:
    """Look after this node's part of IPAM, for ever; `missing` says which of some tunnels the kernel lacks, and why.

    `unasked` says it of what no pool asks for, as far as can be told without loading a module.
    """
    observed: Observed = {}
    there = frozenset[Kind]()
    while True:
        # A host that comes up has no tunnels before the first pass, and others go by what its Node says of them.
        await state.until(lambda: state.passes > 0 and _may(state))
        before = _depends_on(state)
        looked_for = _asked_for(state) - there
        try:
            lacks = frozenset(await missing(looked_for))
            there |= looked_for - lacks
            if "ipip" not in there | looked_for:
                lacks |= frozenset(await unasked())
        except DataplaneError as err:
            log.warning("address upkeep", error=str(err))
            lacks = _noted_lacks(state) - there
        observed = await look_after(state, kv, observed, datetime.now(UTC), lacks)
        await _due(state, before)


async def look_after(
    state: State,
    kv: KeyValueStore,
    observed: Observed,
    at: datetime,
    lacks: frozenset[Kind] = frozenset(),
) -> Observed:
    """Do everything that is due at `at` (UTC); return which blocks are empty, for the next time to compare.

    `lacks` are tunnels that this node's kernel has not.
    """
    view = state.snapshot.view(state.node)
    seen = ipam_upkeep.observe(view, observed, at)
    standing = {tunnel.address for tunnel in state.tunnels.values()}
    due = ipam_upkeep.upkeep(view, seen, at, lambda handle: is_handle_of(state.node, handle), lacks, standing)
    for problem in set(due.problems) - set(state.upkeep_problems):
        log.warning("address upkeep", error=problem)
    state.upkeep_problems = due.problems
    try:
        for step in due.steps:
            if not _may(state):
                return seen
            if await _commit(state, kv, ipam.transaction(view.handles, step.change)):
                log.info("address upkeep", done=step.what)
        await _note(state, kv, lacks)
    except StoreError as err:
        log.warning("address upkeep broken off; it goes on when etcd answers", error=str(err))
    return seen


def _may(state: State) -> bool:
    return state.snapshot.whole and state.snapshot.get(Node, state.node) is not None


async def _commit(state: State, kv: KeyValueStore, txn: Txn) -> bool:
    """Return whether it was done; read our own write."""
    key = endpoints.node_key(state.node)
    registered = Guard(key, state.snapshot.seen.get(key, 0))
    guards = txn.guards if any(guard.key == key for guard in txn.guards) else (registered, *txn.guards)
    try:
        revision = await kv.commit(Txn(guards, txn.ops))
    except Conflict as err:
        log.debug("address upkeep lost a race; it is decided again", error=str(err))
        return False
    state.wrote(txn, revision)
    return True


def _asked_for(state: State) -> frozenset[Kind]:
    """Return the tunnels that pools ask of this node, and those that they asked for when it lacked them.

    What a node lacks stays known, so that a pool that would ask for it again is refused; of IPIP that is known anyway.
    """
    view = state.snapshot.view(state.node)
    found = frozenset(t.kind for t in ipam_upkeep.TUNNELS if ipam_upkeep.wanted(t, view.pools, view.labels))
    return found | (_noted_lacks(state) - {"ipip"})


def _noted_lacks(state: State) -> frozenset[Kind]:
    me = state.snapshot.get(Node, state.node)
    return asked.node(me).lacks if me else frozenset()


async def _note(state: State, kv: KeyValueStore, lacks: frozenset[Kind]) -> None:
    """Have the Node say what this node's part is, as other nodes read it. None goes by a tunnel that is not noted."""
    if not _may(state) or (me := state.snapshot.stored(Node, state.node)) is None:
        return
    assert isinstance(me.resource, Node)
    held = ipam_upkeep.tunnel_addresses(state.snapshot.view(state.node))
    noting = with_tunnels(me.resource, _standing(state, held))
    after = with_annotations(noting, bgp=state.bgp, lacks=lacks)
    key = endpoints.node_key(state.node)
    if after != me.resource and await _commit(
        state, kv, Txn((Guard(key, me.revision),), (Put(key, to_json(after)),))
    ):
        log.info("address upkeep", done=f"Node {state.node}: noted what its tunnels are")


def _standing(state: State, held: Mapping[str, Address | None]) -> Mapping[Encap, End]:
    """Return the ends that stand, as they do: one that has another address by now has that after the next pass."""
    return {
        tunnel.encap: End(tunnel.address, tunnel.mac)
        for tunnel in state.tunnels.values()
        if held[NAMES[tunnel.encap]]
    }


def with_tunnels(node: Node, ends: Mapping[Encap, End]) -> Node:
    """Return `node` carrying these ends, and no others; without `bgp`, whose an end of IPIP is, it carries none."""
    ipip, vxlan, vxlan6 = (ends.get(encap) for encap in (IPIP, VXLAN, VXLAN6))
    bgp = node.spec.bgp and node.spec.bgp.model_copy(update={"ipv4_ipip_tunnel_addr": ipip and ipip.address})
    spec = {
        # One without a field cannot be read again.
        "bgp": bgp if bgp and any(dict(bgp).values()) else None,
        "ipv4_vxlan_tunnel_addr": vxlan and vxlan.address,
        "vxlan_tunnel_mac_addr": vxlan and vxlan.mac,
        "ipv6_vxlan_tunnel_addr": vxlan6 and vxlan6.address,
        "vxlan_tunnel_mac_addr_v6": vxlan6 and vxlan6.mac,
    }
    return node.model_copy(update={"spec": node.spec.model_copy(update=spec)})


def with_annotations(node: Node, *, bgp: bool, lacks: frozenset[Kind]) -> Node:
    """Return `node` saying whether it has BGP sessions, and which tunnels its kernel lacks."""
    ours = (extensions.BGP, extensions.LACKS)
    said = {key: text for key, text in node.metadata.annotations.items() if key not in ours}
    said |= {} if bgp else {extensions.BGP: "off"}
    said |= {extensions.LACKS: ",".join(sorted(lacks))} if lacks else {}
    return node.model_copy(update={"metadata": node.metadata.model_copy(update={"annotations": said})})


async def _due(state: State, before: object) -> None:
    """Return when the time has come, or something is not as `before` that upkeep depends on."""
    loop = asyncio.get_running_loop()
    until = loop.time() + EVERY * random.uniform(0.9, 1.1)  # noqa: S311  spreads load, hides nothing
    try:
        async with asyncio.timeout_at(until):
            if _depends_on(state) != before:  # during the last look, by itself or by others
                await asyncio.sleep(GATHER)
            while _depends_on(state) == before:
                await state.until(partial(_is_past, state, state.snapshot, state.tunnels))
                await asyncio.sleep(GATHER)
    except TimeoutError:
        return


def _is_past(state: State, snapshot: Snapshot, tunnels: Mapping[str, Tunnel]) -> bool:
    return state.snapshot is not snapshot or state.tunnels is not tunnels


def _depends_on(state: State) -> object:
    snapshot, node = state.snapshot, state.node
    me = snapshot.get(Node, node)
    return (
        {(tunnel.name, tunnel.address, tunnel.mac) for tunnel in state.tunnels.values()},
        snapshot.whole,
        me,
        snapshot.all(IPPool),
        snapshot.all(IPReservation),
        snapshot.ipam_config,
        {key: record for key, record in snapshot.affinities.items() if key[0] == node},
        # Its last address gone, a block of a pool that no longer selects this node is given back at once.
        {
            prefix
            for prefix, stored in snapshot.blocks.items()
            if stored.block.node == node and stored.block.empty
        },
    )
