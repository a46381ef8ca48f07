"""Decide what the agent says of its sessions, paths and announcements, as plain JSON values. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from ipaddress import ip_network
from typing import Any, TypeAlias

from bgp import decision, diagnosis, export
from bgp.decision import Best, Candidate
from bgp.diagnosis import Diagnosis, Seen
from bgp.notifications import words
from bgp.peering import Here, Peering
from bgp.rib import (
    Address,
    AdjRibOut,
    Announcement,
    Path,
    Prefix,
    SessionState,
    SessionStatus,
    Traffic,
    address_order,
    prefix_order,
)
from bgp.rules import RuleId
from fabric.agent.adj_ribs_out import Table
from fabric.agent.state import State
from fabric.errors import NotFound
from fabric.model.node import Node
from fabric.plan.routes import Route, RouteKey

Json: TypeAlias = dict[str, Any]

NOTHING: AdjRibOut = frozenset()
NOT_STARTED = SessionStatus(SessionState.IDLE, 0.0, "not started yet")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for of a table: paths of these peers (None: of all), and inside a prefix or around an address."""

    peers: AbstractSet[Address] | None = None
    prefix: Prefix | None = None

    def has(self, peer: Address, prefix: Prefix) -> bool:
        if self.peers is not None and peer not in self.peers:
            return False
        if self.prefix is None:
            return True
        single = self.prefix.prefixlen == self.prefix.max_prefixlen
        return _inside(prefix, self.prefix) or (single and _inside(self.prefix, prefix))


ALL = Asked()
USES = ("best", "multipath", "lost", "refused")  # what becomes of a path


def sessions(state: State, now: float) -> list[Json]:
    """Return one entry a session at `now` (Unix epoch): where it leads, how it is, what it carries, what is wrong."""
    return [_session(state, peering, now) for peering in state.desired.peerings.peerings]


def _session(state: State, peering: Peering, now: float) -> Json:
    spec = peering.spec
    seen = state.ribs.sessions.get(spec.peer, NOT_STARTED)
    traffic = state.ribs.traffic.get(spec.peer, Traffic())
    counts = state.counts.of(state.desired.loc_rib)
    last = seen.notification
    return {
        "peer": str(spec.peer),
        "name": peering.name,
        "type": str(peering.source),
        "peer_as": spec.peer_as,
        "local_as": spec.local_as,
        "source": str(spec.source),
        "state": str(seen.state),
        "since": seen.since,
        "reason": seen.reason,
        "notification": last
        and {
            "code": last.code,
            "subcode": last.subcode,
            "text": words(last.code, last.subcode),
            "sent_by": "us" if last.sent_by_us else "peer",
            "at": last.at,
        },
        "idle_until": seen.idle_until or None,
        "flaps": seen.flaps,
        "peer_id": str(seen.peer_id or ""),
        "received": len(state.ribs.adj_rib_in.get(spec.peer, ())),
        "accepted": counts.accepted.get(spec.peer, 0),
        "best": counts.best.get(spec.peer, 0),
        "advertised": len(_advertised(state, peering)),
        "max_prefixes": peering.max_prefixes,
        "updates_in": traffic.updates_in,
        "updates_out": traffic.updates_out,
        "required": peering.required,
        "drained": peering.drained,
        "hits": _hits(state, spec.peer),
        "hints": [asdict(found) for found in _diagnoses(state, peering, seen, now)],
    }


def _diagnoses(state: State, peering: Peering, status: SessionStatus, now: float) -> tuple[Diagnosis, ...]:
    peer, counts = peering.spec.peer, state.counts.of(state.desired.loc_rib)
    return diagnosis.diagnose(
        Seen(
            peering,
            status,
            age=now - status.since,
            received=len(state.ribs.adj_rib_in.get(peer, ())),
            advertised=len(_advertised(state, peering)),
            looped=_of_others(state, counts.looped.get(peer, [])),
            unreached=_of_others(state, _unbarred(state, peer, counts.unreached.get(peer, []))),
            next_hop=counts.next_hops.get(peer),
            dead_link=_dead_link(state.host.here, peering.spec.source),
            withheld=_withheld(state.desired.adj_ribs_out.get(peer), state.desired.own.blocks),
            others=len(state.snapshot.all(Node)) > 1 or len(state.desired.peerings.peerings) > 1,
            dropped=state.signatures.lately(now, status.since),
        )
    )


def _of_others(state: State, prefixes: Iterable[Prefix]) -> int:
    """How many are not this node's own: its address and what it borrowed come back from everywhere too."""
    return sum(prefix not in state.desired.own.routes for prefix in prefixes)


def _unbarred(state: State, peer: Address, prefixes: Iterable[Prefix]) -> list[Prefix]:
    """Those not for want of the tunnel that their pool asks for: of that `node status` tells, and of its own cure."""
    ways, table = state.routing.overlay.ways, state.ribs.adj_rib_in.get(peer, {})
    return [one for one in prefixes if not ((path := table.get(one)) and ways.barred(one, path.next_hop))]


def _dead_link(here: Here, source: Address) -> str:
    links = {uplink.device: uplink.carrier for uplink in here.uplinks if uplink.address.ip == source}
    return "" if any(links.values()) else ", ".join(sorted(links))


def _withheld(table: Table | None, blocks: Iterable[Prefix]) -> str:
    """Why own blocks do not go out: the reason of most of them."""
    refused = table.exported.refused if table else {}
    whys = Counter(refused[block] for block in blocks if block in refused)
    return whys.most_common(1)[0][0] if whys else ""


def _hits(state: State, peer: Address) -> list[Json]:
    """How many paths each rule decided, both ways."""
    table = state.desired.adj_ribs_out.get(peer)
    found = Counter({rule: hits for (of, rule), hits in state.desired.loc_rib.hits.items() if of == peer})
    found.update(table.exported.hits if table else {})
    return [
        _rule(rule) | {"hits": hits} for rule, hits in sorted(found.items(), key=lambda item: str(item[0]))
    ]


def _rule(rule: RuleId) -> Json:
    return {
        "filter": rule.filter,
        "direction": rule.direction,
        "version": rule.version,
        "rule": rule.index,
    }


def received(state: State, asked: Asked = ALL) -> list[Json]:
    """Return the paths of every adj-RIB-in, and why one is not used where it is not."""
    return [
        _path(path) | {"refused": state.desired.loc_rib.refused.get(path, "")}
        for path in sorted(_paths(state, asked), key=_order)
    ]


def _paths(state: State, asked: Asked) -> Iterator[Path]:
    for table in state.ribs.adj_rib_in.values():
        yield from (path for path in table.values() if asked.has(path.peer, path.prefix))


def best(state: State, asked: Asked = ALL) -> list[Json]:
    """Return the loc-RIB: one entry a prefix, with every next hop that shares its load."""
    found = [
        entry
        for prefix, entry in state.desired.loc_rib.best.items()
        if any(asked.has(c.path.peer, prefix) for c in entry.multipath)
    ]
    return [_best(entry) for entry in sorted(found, key=lambda entry: _order(entry.best.path))]


def _best(entry: Best) -> Json:
    hops = [{"address": str(hop.gateway), "device": hop.device} for hop in entry.next_hops]
    return _path(entry.best.path) | {"next_hops": hops, "peers": [str(c.path.peer) for c in entry.multipath]}


def advertised(state: State, asked: Asked = ALL) -> list[Json]:
    """Return what each Established session carries to its peer, as it stands on the wire."""
    return [
        _announcement(peering, announcement)
        for peering in state.desired.peerings.peerings
        for announcement in sorted(_advertised(state, peering), key=lambda a: prefix_order(a.prefix))
        if asked.has(peering.spec.peer, announcement.prefix)
    ]


def _advertised(state: State, peering: Peering) -> AdjRibOut:
    """Never counted as advertised unless the session is there to carry it."""
    seen = state.ribs.sessions.get(peering.spec.peer)
    up = seen is not None and seen.state is SessionState.ESTABLISHED
    return state.desired.wanted.announce.get(peering.spec.peer, NOTHING) if up else NOTHING


def _announcement(peering: Peering, announcement: Announcement) -> Json:
    spec, attributes = peering.spec, announcement.attributes
    own = (spec.local_as,) if spec.external else ()
    return {
        "prefix": str(announcement.prefix),
        "peer": str(spec.peer),
        "next_hop": str(announcement.next_hop or spec.source),
        "as_path": list(own if attributes.as_path is None else attributes.as_path),
        "origin": str(attributes.origin),
        "med": attributes.med,
        "local_pref": attributes.local_pref,
        "communities": list(attributes.communities),
        "originator_id": str(attributes.originator_id or ""),
        "cluster_list": list(map(str, attributes.cluster_list)),
    }


def route(state: State, asked: Prefix, held: Mapping[RouteKey, Route]) -> Json:
    """Return all there is to say of one prefix, or of the longest one around an address; `held` the kernel has.

    Every path with what became of it, what the kernel has, and to whom it is announced or why not.

    Raises:
        NotFound: no peer has sent it, and it is not this node's own.
    """
    prefix = _meant(state, asked)
    own, paths = _own(state, prefix), sorted(_fates(state, prefix), key=lambda p: USES.index(p["use"]))
    if not (own or paths):
        raise NotFound(f"prefix {prefix}: no peer has sent a path to it, and it is not this node's own")
    return {
        "prefix": str(prefix),
        "own": own,
        "paths": paths,
        "kernel": _kernel(state, RouteKey(prefix), held),
        "advertised": [_advertisement(state, peering, prefix) for peering in state.desired.peerings.peerings],
    }


def _meant(state: State, asked: Prefix) -> Prefix:
    """The longest prefix that is known and has the address, where one is asked for; else what is asked for."""
    if asked.prefixlen < asked.max_prefixlen:
        return asked
    around = {path.prefix for path in _paths(state, Asked(prefix=asked))}
    around |= {prefix for prefix in state.desired.own.routes if _inside(asked, prefix)}
    return max(around, key=lambda prefix: prefix.prefixlen, default=asked)


def _own(state: State, prefix: Prefix) -> str:
    """What of this node's own the prefix is, "" where it is nothing."""
    own = state.desired.own
    if prefix in own.blocks:
        return "block"
    if link := own.workloads.get(prefix):
        return f"workload on {link}"
    return "address of this node" if prefix in map(ip_network, own.loopback) else ""


def _fates(state: State, prefix: Prefix) -> Iterator[Json]:
    """Each path with `use`, one of USES, and `why` it lost or was refused."""
    loc_rib = state.desired.loc_rib
    candidates = {c.path.peer: c for c in loc_rib.candidates.get(prefix, ())}
    lost = _explained(list(candidates.values()))
    for table in state.ribs.adj_rib_in.values():
        if (path := table.get(prefix)) is None:
            continue
        if candidate := candidates.get(path.peer):
            why = lost[path.peer]
            use = {"": "best", "multipath": "multipath"}.get(why, "lost")
            yield _path(candidate.path) | {"use": use, "why": why if use == "lost" else ""}
        else:
            why = loc_rib.refused.get(path, "not looked at yet")
            yield _path(path) | {"use": "refused", "why": why}


def _explained(candidates: list[Candidate]) -> dict[Address, str]:
    return {path.peer: why for path, why in decision.explain(candidates).items()}


def _kernel(state: State, key: RouteKey, held: Mapping[RouteKey, Route]) -> Json:
    """Whether the kernel has the route, how, and where it has none of BGP why not."""
    wanted, there = state.desired.routes.get(key), held.get(key)
    refusals = [
        str(err)
        for op, err in state.outcome.refused.items()
        if getattr(op, "key", None) == key or getattr(getattr(op, "route", None), "key", None) == key
    ]
    why = ""
    if refusals:
        why = refusals[0]
    elif wanted is None and key.prefix in state.desired.loc_rib.best:
        why = "a route of another origin has this prefix and metric, and keeps its place"
    elif wanted is None:
        why = "nothing wants it there"
    elif wanted != there:
        why = "the next pass sets it"
    return {"route": route_json(there) if there else None, "why": why}


def _advertisement(state: State, peering: Peering, prefix: Prefix) -> Json:
    """Whether, how, and else why not, the prefix is announced to one peer."""
    spec, desired = peering.spec, state.desired
    seen = state.ribs.sessions.get(spec.peer, NOT_STARTED)
    sent = next((a for a in desired.wanted.announce.get(spec.peer, ()) if a.prefix == prefix), None)
    said = {
        "peer": str(spec.peer),
        "name": peering.name,
        "advertised": False,
        "announcement": None,
        "why": "",
    }
    if seen.state is not SessionState.ESTABLISHED:
        return said | {"why": f"the session is not Established: {seen.state}: {seen.reason}"}
    if sent:
        return said | {"advertised": True, "announcement": _announcement(peering, sent)}
    if prefix.version not in spec.families:
        return said | {"why": f"the session does not carry IPv{prefix.version}"}
    chosen = desired.loc_rib.best.get(prefix)
    out = export.adj_rib_out(peering, desired.own, desired.routing.policy, {prefix: chosen} if chosen else {})
    return said | {"why": out.refused.get(prefix, "there is no path to it, and it is not this node's own")}


def route_json(found: Route) -> Json:
    """Return a route as the kernel has it."""
    return {
        "prefix": str(found.key.prefix),
        "metric": found.key.metric,
        "type": "blackhole" if found.blackhole else "unicast",
        "next_hops": sorted(
            ({"address": str(h.gateway or ""), "device": h.device or ""} for h in found.next_hops),
            key=lambda hop: sorted(hop.items()),
        ),
    }


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
        "originator_id": str(path.originator_id or ""),
        "cluster_list": list(map(str, path.cluster_list)),
    }


def _inside(prefix: Prefix, other: Prefix) -> bool:
    """`prefix` is `other` or part of it."""
    return (
        prefix.version == other.version
        and prefix.prefixlen >= other.prefixlen
        and prefix.network_address in other
    )


def _order(path: Path) -> tuple[int, ...]:
    return *address_order(path.peer), *prefix_order(path.prefix)
