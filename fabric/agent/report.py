"""Decide what the agent says of itself: its state as plain JSON values, for people and programs. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from bgp import sessions as bgp_sessions
from bgp.rib import Path, SessionState, SessionStatus
from fabric.agent.endpoint import own_labels
from fabric.agent.state import State
from fabric.ipam.assign import own_blocks
from fabric.model.node import Node
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.plan.endpoints import NETNS_ANNOTATION
from fabric.plan.routes import Route

Json: TypeAlias = dict[str, Any]


def status(state: State) -> Json:
    """Return the node's state: readiness, datastore, sessions, blocks, routes, problems."""
    me = state.snapshot.get(Node, state.node)
    return {
        "node": state.node,
        "ready": state.ready,
        "registered": state.registered,
        "address": str(me.spec.bgp.ipv4_address or me.spec.bgp.ipv6_address) if me and me.spec.bgp else "",
        "datastore": {
            "in_sync": state.snapshot.in_sync,
            "revision": state.snapshot.revision,
            "lost": state.snapshot.lost,
            "stale_since": state.snapshot.lost_at or None,
            "copied": state.snapshot.copied,
            "locked": state.snapshot.locked,
        },
        "speaker": {
            "connected": state.ribs.connected,
            "settled": state.ribs.settled,
            "sessions": len(state.ribs.sessions),
        },
        "sessions": sessions(state),
        "blocks": blocks(state),
        "workloads": len(state.snapshot.endpoints(state.node)),
        "refused": [*filter(None, [state.fault]), *map(str, state.outcome.refused.values())],
        "problems": [
            *_absence(state),
            *filter(None, [state.copy_problem, *state.upkeep_problems]),
            *(f"{key}: {why}" for key, why in sorted(state.snapshot.problems.items())),
            *(f"BGPPeer {name}: {why}" for name, why in sorted(_peer_problems(state, me).items())),
        ],
    }


def _absence(state: State) -> list[str]:
    if state.registered or not state.snapshot.whole:
        return []
    why = (
        f"Node {state.node}: is not in the datastore, or cannot be read: without it this node announces nothing and "
        "takes no new workload; those it has keep their links; run `fabricctl node join` as before, or `node leave`"
    )
    return [why]


def _peer_problems(state: State, me: Node | None) -> dict[str, str]:
    local = me and bgp_sessions.local(me, state.snapshot.bgp_configuration(), state.host.addresses)
    return bgp_sessions.problems(local, state.snapshot.peers()) if local else {}


def sessions(state: State) -> list[Json]:
    """Return one entry a wanted session: where it leads, how it is, what it carries."""
    advertised = state.desired.wanted.announce
    entries = []
    for spec in sorted(state.desired.wanted.sessions, key=lambda s: (s.peer.version, int(s.peer))):
        seen = state.ribs.sessions.get(spec.peer, SessionStatus(SessionState.IDLE, 0.0, "not started yet"))
        received = state.ribs.adj_rib_in.get(spec.peer, {})
        up = seen.state is SessionState.ESTABLISHED
        entries.append(
            {
                "peer": str(spec.peer),
                "peer_as": spec.peer_as,
                "local_as": spec.local_as,
                "source": str(spec.source),
                "state": str(seen.state),
                "since": seen.since,
                "reason": seen.reason,
                "flaps": seen.flaps,
                "received": len(received),
                "accepted": sum(path not in state.desired.loc_rib.refused for path in received.values()),
                # Never counted as advertised unless the session is there to carry it.
                "advertised": len(advertised.get(spec.peer, ())) if up else 0,
            }
        )
    return entries


def blocks(state: State) -> list[Json]:
    """Return this node's blocks with how much of each is held."""
    return [
        {
            "prefix": str(s.block.prefix),
            "size": len(s.block.owners),
            "held": len(s.block.owners) - len(s.block.free),
        }
        for s in own_blocks(state.snapshot.view(state.node))
    ]


def workload(endpoint: WorkloadEndpoint) -> Json:
    """Return one workload as `workload list` shows it."""
    return {
        "name": endpoint.spec.workload,
        "namespace": endpoint.metadata.namespace,
        "node": endpoint.spec.node,
        "addresses": [str(prefix.network_address) for prefix in endpoint.spec.ip_networks],
        "interface": endpoint.spec.interface_name,
        "mac": endpoint.spec.mac,
        "netns": endpoint.metadata.annotations.get(NETNS_ANNOTATION, ""),
        "labels": own_labels(endpoint),
    }


def workloads(state: State) -> list[Json]:
    endpoints = state.snapshot.endpoints(state.node)
    return [workload(e) for e in sorted(endpoints, key=lambda e: e.metadata.name)]


def received(state: State) -> list[Json]:
    """Return every path of every adj-RIB-in, and why it is not used where it is not."""
    return [
        _path(path) | {"refused": state.desired.loc_rib.refused.get(path, "")}
        for peer in sorted(state.ribs.adj_rib_in, key=str)
        for path in sorted(state.ribs.adj_rib_in[peer].values(), key=_by_prefix)
    ]


def best(state: State) -> list[Json]:
    """Return the loc-RIB: one entry a prefix, with every next hop that shares its load."""
    return [
        _path(entry.best.path)
        | {"next_hops": [{"address": str(c.via.gateway), "device": c.via.device} for c in entry.multipath]}
        for _, entry in sorted(
            state.desired.loc_rib.best.items(), key=lambda item: _by_prefix(item[1].best.path)
        )
    ]


def advertised(state: State) -> list[Json]:
    """Return what each Established session carries to its peer."""
    up = {peer for peer, seen in state.ribs.sessions.items() if seen.state is SessionState.ESTABLISHED}
    return [
        {"peer": str(spec.peer), "prefix": str(a.prefix), "next_hop": str(a.next_hop or spec.source)}
        for spec in sorted(state.desired.wanted.sessions, key=lambda s: str(s.peer))
        if spec.peer in up
        for a in sorted(state.desired.wanted.announce.get(spec.peer, ()), key=lambda a: str(a.prefix))
    ]


def routes(held: Iterable[Route]) -> list[Json]:
    """Return the node's own routes in its kernel."""
    return [
        {
            "prefix": str(route.key.prefix),
            "metric": route.key.metric,
            "type": "blackhole" if route.blackhole else "unicast",
            "next_hops": sorted(
                ({"address": str(h.gateway or ""), "device": h.device or ""} for h in route.next_hops),
                key=lambda hop: sorted(hop.items()),
            ),
        }
        for route in sorted(held, key=lambda r: (r.key.prefix.version, int(r.key.prefix.network_address)))
    ]


def _path(path: Path) -> Json:
    return {
        "prefix": str(path.prefix),
        "peer": str(path.peer),
        "next_hop": str(path.next_hop),
        "as_path": list(path.as_path),
        "origin": str(path.origin),
        "med": path.med,
        "local_pref": path.local_pref,
        "communities": list(path.communities),
    }


def _by_prefix(path: Path) -> tuple[int, int, int]:
    return path.prefix.version, int(path.prefix.network_address), path.prefix.prefixlen
