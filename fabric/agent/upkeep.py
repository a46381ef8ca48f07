"""Put right in IPAM what this node left half-done, no longer needs or is owed: one guarded transaction a step.

What is to be done is decided by `fabric.ipam.upkeep`. Here is when: once the datastore is in sync, soon after
something it depends on changed, and every 90 s or so. A step that loses a race is decided anew next time.
Each is guarded by the Node as well, so that one that leaves takes nothing more.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from datetime import UTC, datetime

import structlog

from fabric.agent import endpoint as endpoints
from fabric.agent.snapshot import Snapshot
from fabric.agent.state import State
from fabric.errors import Conflict, StoreError
from fabric.ipam import upkeep as ipam_upkeep
from fabric.ipam.types import Address
from fabric.ipam.upkeep import Observed
from fabric.model.ippool import IPPool
from fabric.model.ipreservation import IPReservation
from fabric.model.node import Node, NodeBGP
from fabric.model.wire import to_json
from fabric.plan.endpoints import is_handle_of
from fabric.store import ipam
from fabric.store.kv import Guard, KeyValueStore, Put, Txn

log = structlog.get_logger()

EVERY = 90.0  # seconds between two looks, each a tenth more or less
GATHER = 0.5  # seconds that changes may gather before the next look


async def keep_up(state: State, kv: KeyValueStore) -> None:
    """Look after this node's part of IPAM, for ever."""
    observed: Observed = {}
    while True:
        await state.until(lambda: _may(state))
        observed = await look_after(state, kv, observed, datetime.now(UTC))
        await _due(state)


async def look_after(state: State, kv: KeyValueStore, observed: Observed, at: datetime) -> Observed:
    """Do everything that is due at `at` (UTC); return which blocks are empty, for the next time to compare."""
    view = state.snapshot.view(state.node)
    seen = ipam_upkeep.observe(view, observed, at)
    due = ipam_upkeep.upkeep(view, seen, at, lambda handle: is_handle_of(state.node, handle))
    for problem in set(due.problems) - set(state.upkeep_problems):
        log.warning("address upkeep", error=problem)
    state.upkeep_problems = due.problems
    try:
        for step in due.steps:
            if not _may(state):
                return seen
            if await _commit(state, kv, ipam.transaction(view.handles, step.change)):
                log.info("address upkeep", done=step.what)
        await _note_tunnels(state, kv)
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


async def _note_tunnels(state: State, kv: KeyValueStore) -> None:
    """Have the Node say which tunnel addresses it holds, as other nodes read it."""
    if not _may(state) or (me := state.snapshot.stored(Node, state.node)) is None:
        return
    assert isinstance(me.resource, Node)
    after = with_tunnels(me.resource, ipam_upkeep.tunnel_addresses(state.snapshot.view(state.node)))
    key = endpoints.node_key(state.node)
    if after != me.resource and await _commit(
        state, kv, Txn((Guard(key, me.revision),), (Put(key, to_json(after)),))
    ):
        log.info("address upkeep", done=f"Node {state.node}: tunnel addresses noted")


def with_tunnels(node: Node, held: Mapping[str, Address | None]) -> Node:
    """Return `node` carrying the tunnel addresses it holds, by the tunnel's name, and no others."""
    bgp = node.spec.bgp or (NodeBGP() if held["ipip"] else None)
    spec = {
        "bgp": bgp and bgp.model_copy(update={"ipv4_ipip_tunnel_addr": held["ipip"]}),
        "ipv4_vxlan_tunnel_addr": held["vxlan"],
        "ipv6_vxlan_tunnel_addr": held["vxlan-v6"],
    }
    return node.model_copy(update={"spec": node.spec.model_copy(update=spec)})


async def _due(state: State) -> None:
    """Return when the time has come, or something changed that upkeep depends on."""
    before = _depends_on(state.snapshot, state.node)
    loop = asyncio.get_running_loop()
    until = loop.time() + EVERY * random.uniform(0.9, 1.1)  # noqa: S311  spreads load, hides nothing
    try:
        async with asyncio.timeout_at(until):
            while _depends_on(seen := state.snapshot, state.node) == before:
                await state.until(lambda seen=seen: state.snapshot is not seen)  # type: ignore[misc]
                await asyncio.sleep(GATHER)
    except TimeoutError:
        return


def _depends_on(snapshot: Snapshot, node: str) -> object:
    me = snapshot.get(Node, node)
    return (
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
