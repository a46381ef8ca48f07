"""Fill in the status of those CalicoNodeStatus that ask for this node's, as often as each of them asks."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import structlog

from bgp.peering import Source
from bgp.rib import Address, Prefix, SessionState
from fabric.agent.report_bgp import NOT_STARTED
from fabric.agent.state import State
from fabric.errors import Conflict, StoreError
from fabric.model.caliconodestatus import CalicoNodeStatus, CalicoNodeStatusSpec
from fabric.model.wire import to_json
from fabric.store import keys
from fabric.store.kv import Guard, KeyValueStore, Put, Txn

log = structlog.get_logger()

GATHER = 0.5  # seconds between two looks at what is asked
RETRY = 5.0  # seconds before what could not be written is tried again
MOST_ROUTES = 2000  # of a family: etcd takes no value of more than 1.5 MiB
NO_GATEWAY = "N/A"
CLASSES = ("agent", "bgp", "routes")


async def keep(state: State, kv: KeyValueStore) -> None:
    """Write each status when it is due, and at once where something else is asked for; etcd away is no error."""
    due: dict[tuple[str, CalicoNodeStatusSpec], float] = {}
    loop = asyncio.get_running_loop()
    while True:
        seen = state.snapshot
        asked = (
            [found for found in seen.all(CalicoNodeStatus) if is_asked(found, state)] if seen.whole else []
        )
        by_what = {(found.metadata.name, found.spec): found for found in asked}
        due = {what: due.get(what, 0.0) for what in by_what}
        for what, found in by_what.items():
            if due[what] <= loop.time():
                due[what] = await _write(state, kv, found) + loop.time()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(due.values(), default=None)):
                await state.until(lambda seen=seen: state.snapshot is not seen)  # type: ignore[misc]
        await asyncio.sleep(GATHER)


def is_asked(found: CalicoNodeStatus, state: State) -> bool:
    return found.spec.node == state.node and found.spec.update_period_seconds > 0


async def _write(state: State, kv: KeyValueStore, found: CalicoNodeStatus) -> float:
    """Return in how many seconds it is due again."""
    now = datetime.now(UTC)
    said = await asyncio.to_thread(status, copy.copy(state), found.spec.classes, now)
    others = {key: value for key, value in (found.status or {}).items() if key not in CLASSES}
    stored = state.snapshot.stored(CalicoNodeStatus, found.metadata.name)
    if stored is None or stored.resource != found:
        return 0.0  # changed meanwhile
    key = keys.ResourceKey("caliconodestatuses", None, found.metadata.name).path
    after = found.model_copy(update={"status": {**others, **said}})
    txn = Txn((Guard(key, stored.revision),), (Put(key, to_json(after)),))
    try:
        revision = await kv.commit(txn)
    except StoreError as err:
        log.debug("node status not written; tried again", name=found.metadata.name, error=str(err))
        return 0.0 if isinstance(err, Conflict) else RETRY
    state.wrote(txn, revision)
    return found.spec.update_period_seconds


def status(state: State, classes: Iterable[str], now: datetime) -> dict[str, Any]:
    """Return a CalicoNodeStatus' status at `now` (UTC), with the classes that are asked for.

    Source: projectcalico/api, nodestatus.go. The BGP daemon is called BIRD there.
    """
    made = {"Agent": ("agent", _agent), "BGP": ("bgp", _bgp), "Routes": ("routes", _routes)}
    said = {name: make(state) for name, make in (made[asked] for asked in classes)}
    return {"lastUpdated": _time(now), **said}


def _agent(state: State) -> dict[str, Any]:
    peerings = state.desired.peerings.peerings
    ready = {"state": "Ready" if state.ribs.connected else "NotReady", "version": "fabricctl"}
    ids = {"routerID": str(peerings[0].spec.router_id)} if peerings else {}
    return {"birdV4": ready | ids, "birdV6": ready | ids}


def _bgp(state: State) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for version in (4, 6):
        found = [
            (p, state.ribs.sessions.get(p.spec.peer, NOT_STARTED))
            for p in state.desired.peerings.peerings
            if p.spec.peer.version == version
        ]
        up = sum(seen.state is SessionState.ESTABLISHED for _, seen in found)
        said[f"numberEstablishedV{version}"] = up
        said[f"numberNotEstablishedV{version}"] = len(found) - up
        said[f"peersV{version}"] = [
            {
                "peerIP": str(peering.spec.peer),
                "type": str(peering.source),
                "state": str(seen.state),
                "since": _time(datetime.fromtimestamp(seen.since, UTC)) if seen.since else "",
            }
            for peering, seen in found
        ]
    return {key: value for key, value in said.items() if value != []}


def _routes(state: State) -> dict[str, Any]:
    found: dict[int, list[dict[str, Any]]] = {4: [], 6: []}
    for prefix, entry in (*_host(state), *_own(state), *_learned(state)):
        if len(found[prefix.version]) < MOST_ROUTES:
            found[prefix.version].append(entry)
    return {f"routesV{version}": entries for version, entries in found.items() if entries}


def _host(state: State) -> Iterator[tuple[Prefix, dict[str, Any]]]:
    """What others have put into the kernel's table."""
    for route in state.host.foreign_routes:
        for hop in route.next_hops:
            kind = "Kernel" if hop.gateway else "Direct"
            yield route.key.prefix, _entry("FIB", route.key.prefix, hop.gateway, hop.device, kind)


def _own(state: State) -> Iterator[tuple[Prefix, dict[str, Any]]]:
    """Blackholes, ways to workloads, static ways to peers."""
    by_bgp = {route.key for route in state.desired.loc_rib.routes}
    for key, route in state.desired.routes.items():
        if route.blackhole:
            yield key.prefix, _entry("FIB", key.prefix, None, "blackhole", "Static")
        elif key not in by_bgp or key.prefix in state.desired.own.workloads:
            for hop in route.next_hops:
                kind = "Static" if hop.gateway else "Kernel"
                yield key.prefix, _entry("FIB", key.prefix, hop.gateway, hop.device, kind)


def _learned(state: State) -> Iterator[tuple[Prefix, dict[str, Any]]]:
    """Each path by BGP: those in use are FIB, the others RIB."""
    for prefix, candidates in state.desired.loc_rib.candidates.items():
        in_use = state.desired.loc_rib.best[prefix].multipath
        for candidate in candidates:
            kind = "FIB" if any(candidate is used for used in in_use) else "RIB"
            peering = candidate.peering
            source = "NodeMesh" if peering.source is Source.MESH else "BGPPeer"
            for hop in candidate.via.hops:
                entry = _entry(kind, prefix, hop.gateway, hop.device, source)
                entry["learnedFrom"]["peerIP"] = str(peering.spec.peer)
                yield prefix, entry


def _entry(
    kind: str, prefix: Prefix, gateway: Address | None, device: str | None, source: str
) -> dict[str, Any]:
    return {
        "type": kind,
        "destination": str(prefix),
        "gateway": str(gateway) if gateway else NO_GATEWAY,
        "interface": device or "",
        "learnedFrom": {"sourceType": source},
    }


def _time(at: datetime) -> str:
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")
