"""Decides the rules of host endpoints: one chain a link and hook, failsafes first (calico-semantics §4).

    raw     PREROUTING, OUTPUT   untracked    Allow is final, and not tracked
    mangle  PREROUTING           pre-DNAT     Allow is final
    filter  FORWARD              forward      only denies: what it lets go is not accepted by it
    filter  INPUT, OUTPUT        normal       ends in profiles and a drop
    mangle  POSTROUTING          normal, of what the host sent and DNAT turned to another link

"Final" is the accept mark: it stays on the packet, and the later hooks of the same endpoint let go what carries it.
Loopback and the links of workloads are never policed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from policy import naming, render_sets
from policy.form import (
    ICMPV6,
    UDP,
    Applied,
    Direction,
    Endpoint,
    Failsafe,
    Hook,
    IPSet,
    Line,
    Origin,
    PortRange,
    Site,
)
from policy.marks import Marks
from policy.render_chains import Frame, clear, drop, having, without
from policy.render_match import Version, ports, protocol
from policy.render_parts import Parts, Place
from policy.world import World

IPIP: Final = 4  # the protocol's number
ESTABLISHED: Final = "-m conntrack --ctstate RELATED,ESTABLISHED"
INVALID: Final = "-m conntrack --ctstate INVALID"
NDP: Final = range(133, 137)  # ICMPv6 types without which a link has no neighbours
_FLAGS: Final[Mapping[Direction, str]] = {"Ingress": "-i", "Egress": "-o"}
_FORWARD: Final[Mapping[Direction, str]] = {"Ingress": "fab-from-host-fw", "Egress": "fab-to-host-fw"}


def ndp(target: str, origin: Origin) -> Iterator[Line]:
    """Return the lines that have neighbour discovery go to `target`."""
    for kind in NDP:
        yield Line(f"{protocol(ICMPV6)} -m icmp6 --icmpv6-type {kind} {target}", origin)


@dataclass(frozen=True)
class HostRules:
    """What host endpoints put where.

    `input` and `output` are for the ends of filter's chains, `forward_in` and `forward_out` go around the workloads'
    part of FORWARD; `chains` are whole ones with their hooks, `sets` what they match by.
    """

    chains: dict[Place, tuple[Line, ...]]
    hooks: dict[Place, tuple[Line, ...]]
    input: tuple[Line, ...]
    output: tuple[Line, ...]
    forward_in: tuple[Line, ...]
    forward_out: tuple[Line, ...]
    sets: dict[str, IPSet]


def host_rules(
    world: World, site: Site, active: Mapping[str, Endpoint], version: Version, marks: Marks, parts: Parts
) -> HostRules:
    """Return the rules of the host endpoints that are `active`, by link; their groups are added to `parts`."""
    return _Hosts(world, site, active, version, marks, parts).rules()


class _Hosts:
    def __init__(
        self,
        world: World,
        site: Site,
        active: Mapping[str, Endpoint],
        version: Version,
        marks: Marks,
        parts: Parts,
    ) -> None:
        self.world, self.site, self.active, self.version = world, site, active, version
        self.marks, self.parts = marks, parts
        self.would_deny = frozenset(tier.name for tier in world.tiers if tier.default == "Deny")
        self.nodes = render_sets.nets(version, site.nodes)
        self.nodes_set = f"fab{version}-nodes"

    def rules(self) -> HostRules:
        chains: dict[Place, tuple[Line, ...]] = {}
        hooks: dict[Place, tuple[Line, ...]] = {}

        def hook(table: str, at: str, head: Iterable[Line], lines: tuple[Line, ...]) -> None:
            if lines:
                chains[table, f"fab-{at}"] = (*head, *lines)
                hooks[table, at] = (Line(f"-j fab-{at}"),)

        accepted, fresh = having(self.marks.accept), without(self.marks.accept)
        raw_in = self._dispatch("raw", "Ingress", "untracked")
        raw_out = self._dispatch("raw", "Egress", "untracked")
        pre_dnat = self._dispatch("mangle", "Ingress", "pre-dnat")
        own_in, own_out = Line(f"-i {naming.LINKS} -j RETURN"), Line(f"-o {naming.LINKS} -j RETURN")
        # A mark of ours that others left, or that a packet in a tunnel brought along, says nothing.
        hook("raw", "PREROUTING", (clear(self.marks.all), own_in), raw_in)
        hook("raw", "OUTPUT", (clear(self.marks.all), own_out), raw_out)
        first = Line(f"{accepted} -j RETURN") if raw_in else clear(self.marks.all)
        hook("mangle", "PREROUTING", (first, own_in, Line(f"{ESTABLISHED} -j RETURN")), pre_dnat)
        output = self._dispatch("filter", "Egress", "normal")
        if output:
            # The link that the packet leaves by is known here only, and only the host's own have a local source.
            sent = ("-m conntrack ! --ctstate DNAT", ESTABLISHED, "-m addrtype ! --src-type LOCAL")
            head = (own_out, *(Line(f"{match} -j RETURN") for match in sent))
            hook("mangle", "POSTROUTING", head, self._dispatch("mangle", "Egress", "normal"))
            output = (Line("-m conntrack --ctstate DNAT -j RETURN"), *output)
        if output and raw_out:
            output = (Line(f"{accepted} -j ACCEPT"), *output)
        entered = self._dispatch("filter", "Ingress", "normal")
        if entered and (raw_in or pre_dnat):
            entered = (Line(f"{accepted} -j ACCEPT"), *entered)
        around = {}
        for direction, name in _FORWARD.items():
            lines = self._dispatch("filter", direction, "forward")
            if lines:
                chains["filter", name] = lines
            decided = direction == "Ingress" and (raw_in or pre_dnat)
            around[direction] = (Line(f"{fresh} -j {name}" if decided else f"-j {name}"),) if lines else ()
        used = {self.nodes_set: self.nodes} if (output or entered or raw_in or raw_out or pre_dnat) else {}
        return HostRules(chains, hooks, entered, output, around["Ingress"], around["Egress"], used)

    def _dispatch(self, table: str, direction: Direction, hook: Hook) -> tuple[Line, ...]:
        """Return the lines that send each link's packets to its endpoint's group; none where nobody asks here."""
        groups = {
            link: self._group(table, endpoint, applied, direction, hook)
            for link, endpoint in self.active.items()
            if ((applied := self.world.applied(endpoint.key, direction, hook)).tiers or hook == "normal")
            and not (link == "*" and hook == "untracked")
        }
        flag, every = _FLAGS[direction], groups.pop("*", "")
        lines = [Line(f"{flag} {link} -g {group}") for link, group in sorted(groups.items())]
        if every:
            others = sorted(self.active.keys() - groups.keys() - {"*"})
            # At the other hooks the workloads' links have been let go before.
            exempt = [*others, naming.LINKS] if hook == "forward" else [*others, "lo"]
            lines += [Line(f"{flag} {link} -j RETURN") for link in exempt]
            lines.append(Line(f"-g {every}"))
        return tuple(lines)

    def _group(
        self, table: str, endpoint: Endpoint, applied: Applied, direction: Direction, hook: Hook
    ) -> str:
        name = f"fab-{naming.group(applied, endpoint, direction, hook)}"
        frame = self._frame(table, direction, hook)
        self.parts.group((table, name), applied, direction, frame, endpoint.drop_log)
        return name

    def _frame(self, table: str, direction: Direction, hook: Hook) -> Frame:
        returns = ("-j RETURN",)
        if hook == "forward":
            head = (Line(f"{ESTABLISHED} -j RETURN"), *self._invalid(direction))
            return Frame(self.marks, head, returns, False, self.would_deny)
        if hook != "normal":
            # Only this hook lets them go, so that whoever sends from such a port is still asked for at the later ones.
            head = tuple(self._failsafes(direction, "-j RETURN", back=hook == "untracked"))
            untracked = ("-j CT --notrack", *returns) if hook == "untracked" else returns
            return Frame(self.marks, head, untracked, False, frozenset())
        if table == "mangle":
            return Frame(
                self.marks, tuple(self._failsafes(direction, "-j RETURN")), returns, True, self.would_deny
            )
        head = (
            Line(f"{ESTABLISHED} -j ACCEPT"),
            *self._invalid(direction),
            *self._failsafes(direction, "-j ACCEPT"),
        )
        return Frame(self.marks, head, ("-j ACCEPT",), True, self.would_deny)

    def _invalid(self, direction: Direction) -> Iterator[Line]:
        if self.site.drop_invalid:
            yield from drop(INVALID, Origin("invalid", "", direction), False)

    def _failsafes(self, direction: Direction, target: str, *, back: bool = False) -> Iterator[Line]:
        """Return what is always open; `back` has the answers of the other direction's, where nothing tracks them."""
        origin = Origin("failsafe", "", direction)
        inwards = direction == "Ingress"
        far, end = ("-s", "src") if inwards else ("-d", "dst")
        own, other = (
            (self.site.failsafe_in, self.site.failsafe_out)
            if inwards
            else (self.site.failsafe_out, self.site.failsafe_in)
        )
        if self.version == 6:
            yield from ndp(target, origin)
        yield from self._open(own, "dports", far, target, origin)
        if back:
            yield from self._open(other, "sports", far, target, origin)
        if own and self.nodes.members:  # a list that is empty on purpose opens nothing
            known = f"-m set --match-set {self.nodes_set} {end}"
            if self.version == 4:
                yield Line(f"{protocol(IPIP)} {known} {target}", origin)
            vxlan = f"{protocol(UDP)} -m multiport --dports {self.site.vxlan_port}"
            yield Line(f"{vxlan} {known} {target}", origin)

    def _open(
        self, failsafes: tuple[Failsafe, ...], word: str, far: str, target: str, origin: Origin
    ) -> Iterator[Line]:
        open_ports: dict[tuple[int, str], set[int]] = {}
        for one in failsafes:
            if one.net is None or one.net.version == self.version:
                net = f" {far} {one.net}" if one.net else ""
                open_ports.setdefault((one.protocol, net), set()).add(one.port)
        for (number, net), wanted in sorted(open_ports.items()):
            for match in ports(word, tuple(PortRange(port, port) for port in sorted(wanted))):
                yield Line(f"{protocol(number)}{net} -m multiport {match} {target}", origin)
