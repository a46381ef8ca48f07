"""Decide what the agent says of itself: its state as plain JSON values, for people and programs. Pure."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from bgp.rib import prefix_order
from fabric.agent import report_policy
from fabric.agent.endpoint import own_labels
from fabric.agent.report_bgp import route_json, sessions
from fabric.agent.snapshot import Snapshot
from fabric.agent.state import NO_REQUIRED_SESSION, State
from fabric.agent.ways import NO_END, WORDS
from fabric.ipam.assign import own_blocks
from fabric.model.node import Node
from fabric.model.workloadendpoint import EndpointPort, WorkloadEndpoint
from fabric.plan import publish
from fabric.plan.encap import ENCAPS
from fabric.plan.endpoints import NETNS_ANNOTATION
from fabric.plan.links import Create, Repair
from fabric.plan.routes import Route
from policy.unread import instead

Json: TypeAlias = dict[str, Any]

WAITS_AT_MOST = 30.0  # seconds that the far end of a tunnel may take before that is a problem


def status(state: State, now: float) -> Json:
    """Return the node's state at `now` (Unix epoch): readiness, datastore, sessions, blocks, problems."""
    me = state.snapshot.get(Node, state.node)
    of_bgp = [*_absence(state), *_lines(state.desired.peerings.problems)]
    return {
        "node": state.node,
        "ready": state.ready,
        "locally_ready": set(state.missing) <= {NO_REQUIRED_SESSION, *state.missing_tunnels},
        "missing": list(state.missing),
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
        "bgp": state.bgp,
        "sessions": sessions(state, now),
        "blocks": blocks(state),
        "tunnels": tunnels(state),
        "ways": [
            {
                "node": row.node,
                "family": f"IPv{row.version}",
                "as": row.encapsulation,
                "why": _not_yet(state, row.why),
            }
            for row in state.routing.overlay.rows
        ],
        "workloads": len(state.snapshot.endpoints(state.node)),
        "policy": _policy(state),
        "refused": [*filter(None, [state.fault]), *_refused(state)],
        "problems": [
            *of_bgp,
            *filter(None, [state.copy_problem, *state.upkeep_problems, state.filter_problem]),
            *_lines(_unread(state.snapshot)),
            *_lines(_of_tunnels(state, now)),
            *_lines(state.policy_problems),
        ],
        "bgp_problems": of_bgp,
    }


def _refused(state: State) -> Iterable[str]:
    """Return what the kernel refused, once each: what policy holds back has the same reason for all.

    A container that has gone comes back by nobody's doing; which workload it was is known here.
    """
    refused = state.outcome.refused.items()
    gone = {
        op.veth.name: str(why)
        for op, why in refused
        if isinstance(op, Create | Repair) and why.code == errno.ENOENT
    }
    cures = {
        gone[at]: f"; `fabricctl workload del {e.spec.workload}{_in(e)}` if it will not be back"
        for e in (state.snapshot.endpoints(state.node) if gone else ())
        if (at := e.spec.interface_name) in gone
    }
    return dict.fromkeys(f"{why}{cures.get(str(why), '')}" for _, why in refused)


def _in(endpoint: WorkloadEndpoint) -> str:
    namespace = endpoint.metadata.namespace
    return "" if namespace in (None, "default") else f" -n {namespace}"


def _lines(problems: Mapping[str, str]) -> list[str]:
    return [f"{name}: {why}" for name, why in sorted(problems.items())]


def _of_tunnels(state: State, now: float) -> dict[str, str]:
    """Return what is wrong with ways through tunnels; that the other end is still being made is nothing for a while."""
    lasting = {
        name: _not_yet(state, why)
        for name, (why, since) in state.waiting.items()
        if now - since >= WAITS_AT_MOST
    }
    problems = state.routing.overlay.problems
    return {
        name: "; ".join(said[name] for said in (problems, lasting) if name in said)
        for name in problems.keys() | lasting.keys()
    }


def _not_yet(state: State, why: str) -> str:
    """Return `why`, not as if a tunnel came by itself that was refused here."""
    for encap in (encap for encap in ENCAPS if encap.device in state.unmade):
        said = f"{state.node} has no end of {WORDS[encap.kind]}: {encap.device} was refused"
        why = why.replace(NO_END.format(state.node, WORDS[encap.kind]), said)
    return why


def _absence(state: State) -> list[str]:
    if state.registered or not state.snapshot.whole:
        return []
    why = (
        f"Node {state.node}: is not in the datastore, or cannot be read: without it this node announces nothing and "
        "takes no new workload; those it has keep their links; run `fabricctl node join` as before, or `node leave`"
    )
    return [why]


def _unread(snapshot: Snapshot) -> dict[str, str]:
    """Return what cannot be read, with what becomes of it where policy must know of it all the same."""
    return {
        key: f"{why}; {instead(snapshot.unread[key])}" if key in snapshot.unread else why
        for key, why in snapshot.problems.items()
    }


def _policy(state: State) -> Json:
    enforced, staged = report_policy.in_force(state.policing)
    return {
        "backend": state.backend,
        "enforced": enforced,
        "staged": staged,
        "problems": len(state.policy_problems),
        "put_back": {
            "at": state.put_back[0],
            "what": [f"{gap.name}: {gap.what}" for gap in state.put_back[1]],
        }
        if state.put_back
        else None,
    }


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


def tunnels(state: State) -> list[Json]:
    """Return this node's tunnels: those it should have, and those that linger."""
    wanted = state.desired.tunnels
    return [
        {
            "device": name,
            "address": str(tunnel.address),
            "mtu": tunnel.mtu,
            "far_ends": len(tunnel.far) if tunnel.encap.kind == "vxlan" else None,
            "offload": tunnel.offload,
            "probed": state.probed.get(name, ""),
            "state": ("up" if name in wanted else "lingers") if name in state.tunnels else "not made",
        }
        for name, tunnel in sorted({**state.tunnels, **wanted}.items())
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
        "ports": [_port(port) for port in publish.of(endpoint)],
    }


def _port(port: EndpointPort) -> Json:
    return {
        "host_ip": port.host_ip,
        "host_port": port.host_port,
        "port": port.port,
        "protocol": publish.protocol_name(port),
    }


def workloads(state: State) -> list[Json]:
    endpoints = state.snapshot.endpoints(state.node)
    return [workload(e) for e in sorted(endpoints, key=lambda e: e.metadata.name)]


def routes(held: Iterable[Route]) -> list[Json]:
    """Return the node's own routes in its kernel."""
    ordered = sorted(held, key=lambda r: prefix_order(r.key.prefix))
    return [route_json(route) for route in ordered]
