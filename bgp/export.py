"""Decide what this node announces on each session, and with which attributes.

What is its own: confirmed blocks, workload addresses outside them, its own address on lo. What it passes on of what it
learned: on a reflector what RFC 4456 asks for, under `calico` also what lies inside the pools, and what a BGPFilter
accepts; under `safe` nothing else, so that no node is transit by accident.

The order is Calico's (calico-semantics §7, "Export filter"): BGPFilters, whose accept passes over all that follows, the
communities of prefixAdvertisements too; pools with disableBGPExport; own blocks; pools. Before all of it stand the
rules of BGP that no filter lifts: never back to where it came from, never from one internal peer to another without
reflection, never where a well-known community forbids it (RFC 1997).

A path with the peer's AS in it is sent all the same, as BIRD and FRR do: the peer may allow it, and does where there is
one AS everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import ip_network
from typing import NamedTuple

from bgp import rules
from bgp.decision import DEFAULT_LOCAL_PREF, Best, Candidate
from bgp.filters import GRACEFUL_SHUTDOWN
from bgp.peering import NextHopMode, Peering, Policy
from bgp.prefixes import Cover
from bgp.rib import Address, AdjRibOut, Announcement, Attributes, Path, Prefix
from bgp.rules import HIGHEST_PRIORITY, RuleId, Seen, with_communities

NO_ADVERTISE = "65535:65282"
STAYS_INSIDE = frozenset({"65535:65281", "65535:65283"})  # NO_EXPORT and, without confederations, …_SUBCONFED


class Standing(NamedTuple):
    """One route of this node's own, with the link that leads to it.

    A workload's goes out only inside a pool, and not where an own block, `within`, says it already.
    """

    prefix: Prefix
    device: str
    workload: bool = False
    within: Prefix | None = None


@dataclass(frozen=True)
class Own:
    """What is this node's own.

    `blocks` are confirmed, single addresses among them; `workloads` has each address of a local workload (/32, /128)
    with the link that leads to it; `loopback` the node's own addresses, where they are single ones on lo.
    """

    blocks: frozenset[Prefix] = frozenset()
    workloads: Mapping[Prefix, str] = field(default_factory=dict)
    loopback: frozenset[Address] = frozenset()

    @cached_property
    def routes(self) -> Mapping[Prefix, Standing]:
        """All of it, worked out once for all sessions."""
        blocks = Cover(self.blocks)
        found = {p: Standing(p, link, True, blocks.of(p)) for p, link in self.workloads.items()}
        found |= {node: Standing(node, "lo") for node in map(_host, self.loopback)}
        return found | {block: Standing(block, self.workloads.get(block, "")) for block in self.blocks}


@dataclass(frozen=True)
class ExportPolicy:
    """What holds for all sessions of this node.

    `pools` may be exported, `closed` are those whose disableBGPExport is set. `advertisements` are prefixes with the
    communities (values, not names) that routes inside them get. `priorities` is the normal route priority by family.
    """

    pools: frozenset[Prefix] = frozenset()
    closed: frozenset[Prefix] = frozenset()
    advertisements: tuple[tuple[Prefix, tuple[str, ...]], ...] = ()
    priorities: Mapping[int, int] = field(default_factory=lambda: {4: 1024, 6: 1024})


@dataclass(frozen=True)
class Exported:
    """One adj-RIB-out. `refused` says why a prefix that is there does not go out; `hits` counts by rule."""

    announcements: AdjRibOut = frozenset()
    refused: Mapping[Prefix, str] = field(default_factory=dict)
    hits: Mapping[RuleId, int] = field(default_factory=dict)


class Outcome(NamedTuple):
    """What becomes of one prefix on one session: sent, or `why` not; `rule` is the rule of a BGPFilter that decided."""

    prefix: Prefix
    sent: Announcement | None
    why: str = ""
    rule: RuleId | None = None


def adj_rib_out(peering: Peering, own: Own, policy: ExportPolicy, loc_rib: Mapping[Prefix, Best]) -> Exported:
    """Return what goes out on the session of `peering`, and why the rest of what it could carry does not."""
    session = _Session(peering, own.blocks, policy)
    learned = (session.learned(best) for prefix, best in loc_rib.items() if prefix not in own.routes)
    return _joined([originated(peering, own, policy), _exported(filter(None, learned))])


def originated(peering: Peering, own: Own, policy: ExportPolicy) -> Exported:
    """Return the part of an adj-RIB-out that is this node's own."""
    session = _Session(peering, own.blocks, policy)
    return _exported(filter(None, map(session.own, own.routes.values())))


def passed_on(
    peerings: Sequence[Peering],
    blocks: frozenset[Prefix],
    policy: ExportPolicy,
    loc_rib: Mapping[Prefix, Best],
) -> Mapping[Address, Exported]:
    """Return for each of `peerings`, by its peer, the part of the adj-RIB-out that is learned.

    `blocks` are this node's; what it announces itself is not in `loc_rib`. `refused` stays empty, since it could be the
    whole table for each session: `adj_rib_out` says it of single prefixes. Sessions that are treated alike are decided
    together, so that fifty clients of a reflector cost as one; one that passes nothing on costs nothing.
    """
    found = {peering.spec.peer: Exported() for peering in peerings}
    alike: dict[Hashable, list[Peering]] = {}
    for peering in peerings:
        if _passes_on(peering):
            alike.setdefault(_treatment(peering), []).append(peering)
    by_source = _by_source(loc_rib.values()) if alike else {}
    for group in alike.values():
        session = _Session(group[0], blocks, policy)
        parts = {
            source: replace(_exported(filter(None, map(session.decided, bests))), refused={})
            for source, bests in by_source.items()
        }
        for peering in group:
            found[peering.spec.peer] = _joined(
                part for source, part in parts.items() if source != peering.spec.peer
            )
    return found


def _passes_on(peering: Peering) -> bool:
    """Whether any learned path can go out on it."""
    reflects = peering.cluster_id is not None and not peering.spec.external
    filtered = any(found.spec.export_v4 or found.spec.export_v6 for found in peering.filters)
    return reflects or peering.export_policy is Policy.CALICO or filtered


def _treatment(peering: Peering) -> Hashable:
    """Equal for two sessions of one node on which a path becomes the same, apart from whom it came from."""
    spec = peering.spec
    return (
        *(spec.local_as, spec.external, spec.families, peering.next_hop, peering.export_policy),
        *(peering.cluster_id, peering.reflector_client, peering.drained),
        tuple(map(id, peering.filters)),  # they cannot be hashed, and come from one snapshot
    )


def _by_source(bests: Iterable[Best]) -> Mapping[Address, list[Best]]:
    found: dict[Address, list[Best]] = {}
    for best in bests:
        found.setdefault(best.best.path.peer, []).append(best)
    return found


def _exported(outcomes: Iterable[Outcome]) -> Exported:
    announcements: set[Announcement] = set()
    refused: dict[Prefix, str] = {}
    hits: Counter[RuleId] = Counter()
    for prefix, sent, why, rule in outcomes:
        if sent is None:
            refused[prefix] = why
        else:
            announcements.add(sent)
        if rule is not None:
            hits[rule] += 1
    return Exported(frozenset(announcements), refused, hits)


def _joined(parts: Iterable[Exported]) -> Exported:
    announcements: set[Announcement] = set()
    refused: dict[Prefix, str] = {}
    hits: Counter[RuleId] = Counter()
    for part in parts:
        announcements |= part.announcements
        refused |= part.refused
        hits.update(part.hits)
    return Exported(frozenset(announcements), refused, hits)


class _Session:
    """What decides on one session, prepared once for all prefixes.

    Of a prefix whose family the session does not carry nothing is to be said: its outcome is None.
    """

    def __init__(self, peering: Peering, blocks: Iterable[Prefix], policy: ExportPolicy) -> None:
        self.peering, self.spec, self.policy = peering, peering.spec, policy
        self.families = peering.spec.families
        self.filters = rules.compiled(peering.filters, "export", external=peering.spec.external)
        self.blocks, self.pools, self.closed = Cover(blocks), Cover(policy.pools), Cover(policy.closed)
        self.advertisements = [(Cover([cidr]), texts) for cidr, texts in policy.advertisements]

    def own(self, standing: Standing) -> Outcome | None:
        """Decide on a route of this node's own."""
        prefix = standing.prefix
        if prefix.version not in self.families:
            return None
        refusal = self._own_refusal(standing)
        if refusal and not self.filters[prefix.version]:
            return Outcome(prefix, None, refusal)
        local_pref = HIGHEST_PRIORITY - self.policy.priorities[prefix.version]
        seen, why, rule = self._judged(Seen(prefix, local_pref, False, standing.device), refusal)
        if why:
            return Outcome(prefix, None, why, rule)
        attributes = Attributes(
            as_path=self._as_path(seen) if seen.as_path else None,
            local_pref=self._local_pref(seen),
            communities=self._communities(seen),
        )
        return Outcome(prefix, Announcement(prefix, None, attributes), "", rule)

    def learned(self, best: Best) -> Outcome | None:
        """Decide on a learned route, which does not go back to where it came from."""
        path = best.best.path
        if path.peer == self.spec.peer and path.prefix.version in self.families:
            return Outcome(path.prefix, None, "learned from this peer")
        return self.decided(best)

    def decided(self, best: Best) -> Outcome | None:
        """Decide on a route that was learned from another peer."""
        candidate, path = best.best, best.best.path
        prefix = path.prefix
        if prefix.version not in self.families:
            return None
        if why := self._never(candidate):
            return Outcome(prefix, None, why)
        refusal = self._learned_refusal(candidate)
        if refusal and not self.filters[prefix.version]:
            return Outcome(prefix, None, refusal)
        local_pref = DEFAULT_LOCAL_PREF if path.local_pref is None else path.local_pref
        device, communities = candidate.via.device, path.communities
        seen = Seen(prefix, local_pref, True, device, path.as_path, path.as_sets, communities)
        seen, why, rule = self._judged(seen, refusal)
        if why:
            return Outcome(prefix, None, why, rule)
        return Outcome(
            prefix, Announcement(prefix, self._next_hop(path), self._attributes(candidate, seen)), "", rule
        )

    def _judged(self, seen: Seen, refusal: str) -> tuple[Seen, str, RuleId | None]:
        """Return the route as it goes out, why it does not, and the rule that decided; `refusal` is the built-in's."""
        verdict = rules.decide(self.filters, seen)
        if verdict is not None:
            return verdict.seen, "" if verdict.accepted else f"rejected by {verdict.rule}", verdict.rule
        added = [text for cidr, texts in self.advertisements if cidr.of(seen.prefix) for text in texts]
        if added and not refusal:
            seen = seen._replace(communities=with_communities(seen.communities, added))
        return seen, refusal, None

    def _own_refusal(self, standing: Standing) -> str:
        if closed := self.closed.of(standing.prefix):
            return _closed(closed)
        if standing.within:
            return _aggregated(standing.within)
        return "in no pool" if standing.workload and not self.pools.of(standing.prefix) else ""

    def _learned_refusal(self, candidate: Candidate) -> str:
        prefix = candidate.path.prefix
        if closed := self.closed.of(prefix):
            return _closed(closed)
        if self.peering.export_policy is Policy.SAFE:
            return "" if self._reflects(candidate) else "learned, which a safe export leaves to BGPFilters"
        if block := self.blocks.of(prefix):
            return _aggregated(block)
        return "" if self.pools.of(prefix) else "in no pool"

    def _never(self, candidate: Candidate) -> str:
        """Say why no filter may let a learned path out."""
        path = candidate.path
        if NO_ADVERTISE in path.communities:
            return "RFC 1997: NO_ADVERTISE"
        if self.spec.external and not STAYS_INSIDE.isdisjoint(path.communities):
            return "RFC 1997: NO_EXPORT"
        if self._from_inside_to_inside(candidate) and not self._reflects(candidate):
            return (
                "learned from an internal peer, and this node reflects nothing"
                if self.peering.cluster_id is None
                else "RFC 4456 §6: neither this peer nor the one it came from is a client"
            )
        hop = self._next_hop(path)
        if hop and hop.version != path.prefix.version and not self.spec.extended_next_hop:
            return "RFC 8950: its next hop is IPv6, which this session does not carry"
        return ""

    def _from_inside_to_inside(self, candidate: Candidate) -> bool:
        return not self.spec.external and not candidate.session.external

    def _reflects(self, candidate: Candidate) -> bool:
        """RFC 4456 §6: what a client sent goes to all internal peers, what another one sent to clients."""
        return (
            self.peering.cluster_id is not None
            and self._from_inside_to_inside(candidate)
            and (self.peering.reflector_client or candidate.peering.reflector_client)
        )

    def _next_hop(self, path: Path) -> Address | None:
        # RFC 4271 §5.1.3. None is the session's source, this node.
        kept = self.peering.next_hop is NextHopMode.KEEP or (
            self.peering.next_hop is NextHopMode.AUTO and not self.spec.external
        )
        return path.next_hop if kept else None

    def _attributes(self, candidate: Candidate, seen: Seen) -> Attributes:
        path = candidate.path
        cluster = self.peering.cluster_id if self._reflects(candidate) else None
        return Attributes(
            origin=path.origin,
            as_path=self._as_path(seen),
            as_sets=seen.as_sets,
            med=None if self.spec.external else path.med,  # RFC 4271 §5.1.4
            local_pref=self._local_pref(seen),
            communities=self._communities(seen),
            # RFC 4456 §8
            originator_id=(path.originator_id or candidate.peer_id) if cluster else None,
            cluster_list=(cluster, *path.cluster_list) if cluster else (),
        )

    def _as_path(self, seen: Seen) -> tuple[int, ...]:
        # RFC 4271 §5.1.2
        return (self.spec.local_as, *seen.as_path) if self.spec.external else seen.as_path

    def _local_pref(self, seen: Seen) -> int | None:
        if self.spec.external:
            return None  # RFC 4271 §5.1.5
        return 0 if self.peering.drained else seen.local_pref

    def _communities(self, seen: Seen) -> tuple[str, ...]:
        if not self.peering.drained:
            return seen.communities
        return with_communities(seen.communities, [GRACEFUL_SHUTDOWN])


def _host(address: Address) -> Prefix:
    return ip_network(address)


def _closed(pool: Prefix) -> str:
    return f"inside pool {pool}, whose disableBGPExport is set"


def _aggregated(block: Prefix) -> str:
    return f"inside own block {block}, which stands for it"
