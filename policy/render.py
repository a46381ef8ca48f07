"""Decides the rules of one node in one family: the chains of the hooks, and which group polices whom.

    filter FORWARD  cut? spoofed? ─▶ established: accept ─▶ host endpoint ─▶ from-wl ─▶ to-wl ─▶ host endpoint ─▶ accept
    filter INPUT    cut? ─▶ from a workload: wl-to-host (its egress, then Site.to_host) ─▶ host endpoint
    filter OUTPUT   cut? ─▶ to an own workload: let go ─▶ host endpoint

Established traffic meets four rules at most: what the lists cost, the first packet of a connection pays. Endpoints
whose one direction the same list decides are a group: one chain, and an ipset of their (address, link) pairs, so that
one that joins a group touches only ipsets. What workloads may send from is such a set too: it closes links without an
endpoint. The last rule of FORWARD keeps the host from becoming a router between its own links.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias, TypeVar, cast

from policy import hosts, naming, render_sets
from policy.form import (
    UDP,
    Applied,
    Direction,
    Endpoint,
    Hook,
    IPSet,
    Key,
    Line,
    Origin,
    PortMember,
    PortSet,
    Prefix,
    Rendered,
    Site,
)
from policy.marks import CUT, marks
from policy.render_chains import Frame, drop, marking, nflog
from policy.render_hosts import ESTABLISHED, INVALID, IPIP, HostRules, host_rules, ndp
from policy.render_match import Version, protocol
from policy.render_parts import Chains, Kept, Lines, Parts, Place
from policy.render_sets import Members
from policy.world import World

_Pairs: TypeAlias = Mapping[int, tuple[Endpoint, tuple[str, ...]]]

K = TypeVar("K")
V = TypeVar("V")

_LINK_LOCAL: Final = "fe80::/10"
_PLAIN_LINK: Final = re.compile(r"[A-Za-z0-9._:@-]{1,15}")


class Listed(NamedTuple):
    """What a group of workloads is made of: the list that decides one direction, and whether its drops are named."""

    applied: Applied
    direction: Direction
    logged: bool


def render(
    world: World,
    site: Site,
    version: Version,
    before: Rendered | None = None,
    also: Iterable[Listed] = (),
) -> Rendered:
    """Return the rules of `site`'s node in one family.

    `before` is what this returned last for the same family: what still holds of it is reused, and is the same object
    again. What is returned does not depend on it. `also` are groups that are there with or without a workload.
    """
    known = _Memory(spoofing=site.spoofing)
    if isinstance(before, _Remembering) and before.version == version:
        known = before.memory if before.memory.spoofing == site.spoofing else known
    return _Node(world, site, version, known, tuple(also)).rendered()


def chain_of(world: World, endpoint: Key, direction: Direction, hook: Hook = "normal") -> str:
    """Return the chain of the group that an endpoint is in, on its own node."""
    found = world.endpoints[endpoint]
    return f"fab-{naming.group(world.applied(endpoint, direction, hook), found, direction, hook)}"


@dataclass(frozen=True, slots=True)
class _Group:
    """The workloads of one group, and how a packet of theirs gets to its chain."""

    endpoints: list[Endpoint]
    name: str
    sets: Mapping[str, IPSet]
    lines: Lines


@dataclass(frozen=True, slots=True)
class _Memory:
    """What a render leaves to the next one; never changed. Endpoints are known by identity, and held for it."""

    kept: Kept = field(default_factory=Kept)
    held: Mapping[str, Members] = field(default_factory=dict)
    wanted: Mapping[str, IPSet] = field(default_factory=dict)
    pairs: _Pairs = field(default_factory=dict)
    groups: Mapping[tuple[str, bool], _Group] = field(default_factory=dict)
    chains: Mapping[Place, Lines] = field(default_factory=dict)
    frame: Mapping[Place, Lines] = field(default_factory=dict)
    sets: Mapping[str, IPSet] = field(default_factory=dict)
    spoofing: bool = False  # the site's, which `pairs` and `groups` follow from


@dataclass(frozen=True)
class _Remembering(Rendered):
    memory: _Memory = field(default_factory=_Memory, repr=False, compare=False)


class _Node:
    def __init__(
        self, world: World, site: Site, version: Version, before: _Memory, also: tuple[Listed, ...]
    ) -> None:
        self.world, self.site, self.version, self.before, self.also = world, site, version, before, also
        self.marks = marks(site.mark_mask)
        self.parts = Parts(version, before.kept)
        self.pairs: dict[int, tuple[Endpoint, tuple[str, ...]]] = {}
        self.workloads = [one for one in world.local(site.node) if not one.is_host]
        deny = frozenset(tier.name for tier in world.tiers if tier.default == "Deny")
        self.frame = Frame(self.marks, (), ("-j RETURN",), True, deny)
        self.own = self._linked("own", [pair for one in self.workloads for pair in self._pairs_of(one)])
        logged = [pair for one in self.workloads if one.drop_log for pair in self._pairs_of(one)]
        self.logged = self._linked("logged", logged) if logged else {}
        self.sets = self.own | self.logged
        self.groups: dict[tuple[str, bool], _Group] = {}

    def rendered(self) -> Rendered:
        active = hosts.active(self.world, self.site.node, self.site.links)
        host = host_rules(self.world, self.site, active, self.version, self.marks, self.parts)
        self.sets |= host.sets
        top: Chains = {
            ("filter", "fab-FORWARD"): tuple(self._forward(host)),
            ("filter", "fab-INPUT"): tuple(self._input(host)),
            ("filter", "fab-OUTPUT"): tuple(self._output(host)),
            ("filter", "fab-from-wl"): (*self._tunnels(), *self._workloads("Egress")),
            ("filter", "fab-to-wl"): tuple(self._workloads("Ingress")),
            ("filter", "fab-wl-to-host"): tuple(self._to_host()),
            ("filter", "fab-forward-end"): tuple(self._forward_end()),
        }
        for table in {"filter"} | {table for table, _ in host.chains}:
            top |= {(table, chain): lines for chain, lines in marking(self.marks).items()}
        kept, known = self.parts.kept(), self.before
        frame, sets = _as_before(top | host.chains, known.frame), _as_before(self.sets, known.sets)
        held, wanted = self._wanted(kept)
        same = kept is known.kept and frame == known.frame
        chains = known.chains if same else {**kept.chains, **frame}
        first = {("filter", at): (Line(f"-j fab-{at}"),) for at in ("FORWARD", "INPUT", "OUTPUT")}
        return _Remembering(
            self.version,
            chains,
            {**first, **host.hooks},
            {("filter", "FORWARD"): (Line("-j fab-forward-end"),)},
            {**wanted, **sets},
            _Memory(kept, held, wanted, self.pairs, self.groups, chains, frame, sets, self.site.spoofing),
        )

    def _workloads(self, direction: Direction) -> Iterator[Line]:
        """Return the lines that send a packet to the group of its workload; their sets are added."""
        listed: dict[tuple[str, bool], tuple[Applied, list[Endpoint]]] = {}
        for endpoint in self.workloads:
            if self._pairs_of(endpoint):
                applied = self.world.applied(endpoint.key, direction)
                listed.setdefault((applied.id, endpoint.drop_log), (applied, []))[1].append(endpoint)
        for one in self.also:
            if one.direction == direction:
                listed.setdefault((one.applied.id, one.logged), (one.applied, []))
        lines: list[Line] = []
        for (content, logged), (applied, endpoints) in listed.items():
            known = self.before.groups.get((content, logged))
            if known is None or known.endpoints != endpoints:
                known = self._group(applied, direction, endpoints, logged)
            self.groups[content, logged] = known
            self.sets |= known.sets
            self.parts.group(("filter", f"fab-{known.name}"), applied, direction, self.frame, logged)
            lines += known.lines
        yield from sorted(lines, key=lambda line: line.text)
        yield from drop("", Origin("unknown-link", "", direction), False)

    def _group(
        self, applied: Applied, direction: Direction, endpoints: list[Endpoint], logged: bool
    ) -> _Group:
        name = naming.workloads(applied, direction, logged)
        sets = self._linked(name, [pair for one in endpoints for pair in self._pairs_of(one)])
        way = "src,src" if direction == "Egress" else "dst,dst"
        lines = tuple(Line(f"-m set --match-set {held} {way} -g fab-{name}") for held in sets)
        return _Group(endpoints, name, sets, lines)

    def _linked(self, name: str, pairs: list[str]) -> dict[str, IPSet]:
        """Return the set of `pairs`, by name; it may have to be several."""
        return {
            f"fab{self.version}-{name}" + (f"-{number}" if number else ""): ipset
            for number, ipset in enumerate(render_sets.linked(self.version, pairs))
        }

    def _pairs_of(self, endpoint: Endpoint) -> tuple[str, ...]:
        key = id(endpoint)
        found = self.pairs.get(key) or self.before.pairs.get(key)
        if found is None:
            found = endpoint, render_sets.pairs(self.version, endpoint, spoofing=self.site.spoofing)
        self.pairs[key] = found
        return found[1]

    def _wanted(self, kept: Kept) -> tuple[dict[str, Members], Mapping[str, IPSet]]:
        """Return who is in the sets that the groups go by, and these as they are written."""
        before, members = self.before, self.world.members
        held = {
            name: wanted if isinstance(wanted, frozenset) else members(wanted)
            for name, wanted in kept.wanted.items()
        }
        if held == before.held:
            return held, before.wanted
        sets = dict(before.wanted)
        for name, now in held.items():
            if before.held.get(name) is not now:
                sets[name] = self._set(name, kept.wanted[name], now)
        return held, sets if len(sets) == len(held) else {name: sets[name] for name in held}

    def _set(self, name: str, wanted: object, now: Members) -> IPSet:
        was, ipset = self.before.held.get(name), self.before.wanted.get(name)
        if isinstance(wanted, PortSet):
            return render_sets.named(self.version, cast("frozenset[PortMember]", now))
        before = (cast("frozenset[Prefix]", was), ipset) if ipset else None
        return render_sets.selected(self.version, cast("frozenset[Prefix]", now), before)

    def _forward(self, host: HostRules) -> Iterator[Line]:
        entering, leaving = f"-i {naming.LINKS}", f"-o {naming.LINKS}"
        yield from self._cut("Ingress")
        yield from self._spoofed(entering)
        for link in (entering, leaving):
            yield Line(f"{link} {ESTABLISHED} -j ACCEPT")
        yield from self._invalid(entering, "Egress")
        yield from self._invalid(leaving, "Ingress")
        yield from host.forward_in
        yield Line(f"{entering} -j fab-from-wl")
        yield Line(f"{leaving} -j fab-to-wl")
        yield from host.forward_out
        # Final: what another firewall's FORWARD does at its end, Docker's for one, is not asked.
        for link in (entering, leaving):
            yield Line(f"{link} -j ACCEPT")

    def _input(self, host: HostRules) -> Iterator[Line]:
        yield from self._cut("Ingress")
        yield Line(f"-i {naming.LINKS} -g fab-wl-to-host")
        yield from host.input

    def _output(self, host: HostRules) -> Iterator[Line]:
        yield from self._cut("Egress")
        yield Line(f"-o {naming.LINKS} -j RETURN", Origin("from-host", "", "Egress"))
        yield from host.output

    def _to_host(self) -> Iterator[Line]:
        if self.version == 6:
            yield from ndp("-j ACCEPT", Origin("failsafe", "", "Ingress"))
            # Multicast reports: nobody asked for them, and they are no attempt to pass for another.
            yield Line(f"-s {_LINK_LOCAL} -j DROP", Origin("to-host", self.site.to_host, "Ingress"))
        yield from self._spoofed("")
        yield Line(f"{ESTABLISHED} -j ACCEPT")
        yield from self._invalid("", "Egress")
        yield Line("-j fab-from-wl")
        origin = Origin("to-host", self.site.to_host, "Ingress")
        if self.site.to_host == "Drop":
            yield from self._drop("", origin)
        else:
            yield Line(f"-j {self.site.to_host.upper()}", origin)

    def _cut(self, direction: Direction) -> Iterator[Line]:
        yield Line(f"-m connmark --mark {CUT:#x}/{CUT:#x} -j DROP", Origin("cut", "", direction))

    def _spoofed(self, link: str) -> Iterator[Line]:
        others = [f"-m set ! --match-set {name} src,src" for name in self.own]
        match, origin = " ".join(filter(None, [link, *others])), Origin("spoofed", "", "Egress")
        yield from drop(match, origin, bool(self.logged))

    def _invalid(self, link: str, direction: Direction) -> Iterator[Line]:
        if self.site.drop_invalid:
            yield from self._drop(f"{link} {INVALID}".strip(), Origin("invalid", "", direction))

    def _tunnels(self) -> Iterator[Line]:
        origin = Origin("tunnel", "", "Egress")
        if not self.site.vxlan_from_workloads:
            yield from self._drop(f"{protocol(UDP)} -m multiport --dports {self.site.vxlan_port}", origin)
        if not self.site.ipip_from_workloads:
            yield from self._drop(protocol(IPIP), origin)

    def _drop(self, match: str, origin: Origin) -> Iterator[Line]:
        """Drop what a workload must not send, or get: named first where it wants that."""
        way = "src,src" if origin.direction == "Egress" or origin.what == "to-host" else "dst,dst"
        for name in self.logged:
            parts = (match, f"-m set --match-set {name} {way}", nflog("deny", origin))
            yield Line(" ".join(filter(None, parts)))
        yield from drop(match, origin, False)

    def _forward_end(self) -> Iterator[Line]:
        pools = render_sets.nets(self.version, self.site.pools)
        if pools.members:
            name = f"fab{self.version}-pools"
            self.sets[name] = pools
            for way in ("src", "dst"):
                yield Line(f"-m set --match-set {name} {way} -j ACCEPT")
        if not self.site.routed_before:
            # A bridge of the host's has its frames seen here, if asked to: they come and go by one link.
            for link in sorted(filter(_PLAIN_LINK.fullmatch, self.site.links)):
                yield Line(f"-i {link} -o {link} -j RETURN")
            yield from drop("", Origin("forward", "", "Ingress"), False)


def _as_before(now: dict[K, V], before: Mapping[K, V]) -> dict[K, V]:
    """Return `now` with the values of `before` that they equal, so that who compares finds the same object."""
    return {key: was if (was := before.get(key)) == value else value for key, value in now.items()}
