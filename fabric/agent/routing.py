"""Decide this node's part in BGP: its sessions, its loc-RIB, what it passes on. Pure.

    resources, host ─▶ peerings ─┬─▶ ways through tunnels (agent.overlay)
                                 ▼        ▼
    adj-RIB-in ─────────▶ loc-RIB (agent.loc_rib) ─▶ what is passed on, one table a session

What costs time with peers and routes is all here, and apart from the rest of what is desired: a full table takes a
thread of its own half a second, while attaches go on with the last answer. What nothing changed for is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from bgp import export, policies, sessions
from bgp.export import Exported, ExportPolicy
from bgp.peering import Here, Peering
from bgp.rib import Address, Prefix
from bgp.sessions import Peerings, Resources
from fabric.agent.loc_rib import Inputs, LocRib, loc_rib
from fabric.agent.overlay import Ground, Overlay, overlay
from fabric.agent.ribs import Ribs
from fabric.agent.settings import settings
from fabric.agent.snapshot import Snapshot
from fabric.ipam.assign import own_blocks
from fabric.model import extensions
from fabric.model.bgp import BGPConfiguration, BGPPeer
from fabric.model.bgpfilter import BGPFilter
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from fabric.plan import routes as plan_routes
from fabric.plan.routes import Route


@dataclass(frozen=True, slots=True)
class Host:
    """What this host is, read from its kernel: what it is to BGP, routes that are not ours, the MTU of its uplinks.

    `mtu` is the smallest of `mtus`. `links` are all of its links that are not ours, each with its addresses;
    `routed_before` the families that it forwarded before we made it a router; `heeding` the links that have routes
    from router advertisements.
    """

    here: Here = field(default_factory=Here)
    foreign_routes: tuple[Route, ...] = ()
    mtu: int = 1500
    mtus: Mapping[str, int] = field(default_factory=dict)
    links: Mapping[str, frozenset[Address]] = field(default_factory=dict)
    routed_before: frozenset[int] = frozenset()
    heeding: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Basis:
    """What sessions and policies are made of. `own` are the prefixes of this node's blocks."""

    resources: Resources
    here: Here = field(repr=False)  # the secrets of sessions are in it
    pools: tuple[IPPool, ...]
    own: frozenset[Prefix]
    default_routes: frozenset[int]


@dataclass(frozen=True)
class Routing:
    """What this node makes of BGP: of `ribs`, and of nothing that was heard later.

    `passed_on` has for each session what goes out of what was learned; what is this node's own goes before it. `routes`
    lead to others, one a prefix: static ones, the overlay's, BGP's.
    """

    ribs: Ribs = field(default_factory=Ribs)
    basis: Basis | None = None
    peerings: Peerings = field(default_factory=Peerings)
    policy: ExportPolicy = field(default_factory=ExportPolicy)
    overlay: Overlay = field(default_factory=Overlay)
    loc_rib: LocRib = field(default_factory=LocRib)
    passed_on: Mapping[Address, Exported] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()


def routing(node: str, snapshot: Snapshot, ribs: Ribs, host: Host, known: Routing) -> Routing:
    """Return the part of `node` in BGP: without a Node resource it has none. `known` is the last answer."""
    me = snapshot.get(Node, node)
    basis = Basis(
        resources(node, snapshot),
        host.here,
        snapshot.all(IPPool),
        frozenset(stored.block.prefix for stored in own_blocks(snapshot.view(node))),
        _default_routes(me, host.foreign_routes) if me else frozenset(),
    )
    found, policy = known.peerings, known.policy
    if basis != known.basis:
        found = sessions.peerings(basis.resources, host.here)
        policy = policies.export_policy(node, basis.pools, basis.resources.configurations)
    ground = Ground(
        host.here, host.foreign_routes, host.mtus, host.mtu, tuple(p.spec.peer for p in found.peerings)
    )
    over = overlay(node, snapshot, settings(snapshot, node), ground, known.overlay)
    heard = loc_rib(
        Inputs(
            found.peerings,
            policies.import_policy(basis.pools, basis.own, basis.default_routes),
            host.foreign_routes,
            ribs.adj_rib_in,
            _peer_ids(ribs),
            found.static_routes,
            host.here,
            over.ways,
        ),
        known.loc_rib,
    )
    passed_on = known.passed_on
    if basis != known.basis or heard.best is not known.loc_rib.best:
        passed_on = _passed_on(found.peerings, basis.own, policy, heard, known)
    return Routing(ribs, basis, found, policy, over, heard, passed_on, _routes(over, heard, known))


def _routes(over: Overlay, heard: LocRib, known: Routing) -> tuple[Route, ...]:
    if over.routes is known.overlay.routes and heard is known.loc_rib:
        return known.routes
    merged = plan_routes.merge(static=heard.static_routes, overlay=over.routes, bgp=heard.routes)
    return tuple(merged.values())


def resources(node: str, snapshot: Snapshot) -> Resources:
    """Return what the datastore has for the sessions of `node`."""
    return Resources(
        node,
        nodes=snapshot.all(Node),
        configurations=snapshot.all(BGPConfiguration),
        peers=snapshot.all(BGPPeer),
        filters=snapshot.all(BGPFilter),
    )


def _passed_on(
    peerings: Iterable[Peering],
    blocks: frozenset[Prefix],
    policy: ExportPolicy,
    heard: LocRib,
    known: Routing,
) -> Mapping[Address, Exported]:
    """Decide for the sessions that something changed for; a table that comes out the same stays the same object."""
    before = {p.spec.peer: p for p in known.peerings.peerings}
    same = (
        heard.best is known.loc_rib.best
        and known.basis is not None
        and (blocks, policy) == (known.basis.own, known.policy)
    )
    kept = {p.spec.peer for p in peerings if same and before.get(p.spec.peer) == p}
    due = [p for p in peerings if p.spec.peer not in kept]
    made = export.passed_on(due, blocks, policy, heard.best) if due else {}
    return {
        p.spec.peer: known.passed_on[p.spec.peer] if p.spec.peer in kept else made[p.spec.peer]
        for p in peerings
    }


def _peer_ids(ribs: Ribs) -> dict[Address, IPv4Address]:
    return {peer: status.peer_id for peer, status in ribs.sessions.items() if status.peer_id}


def _default_routes(me: Node, foreign: Iterable[Route]) -> frozenset[int]:
    """The families whose default may come by BGP: those the host has none of, or all on opt-in."""
    if me.metadata.annotations.get(extensions.DEFAULT_ROUTE) == "install":
        return frozenset({4, 6})
    return frozenset({4, 6}) - {r.key.prefix.version for r in foreign if r.key.prefix.prefixlen == 0}
