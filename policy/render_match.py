"""Decides how iptables writes what a rule matches, in one family.

One line where it can be: what iptables takes one of a kind (a prefix, 15 ports) becomes an ipset or, for ports, several
lines of which a packet meets one. A rule that can match nothing in this family has no line (calico-semantics §2.6).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Literal, TypeAlias

from policy import naming
from policy.form import (
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    UDPLITE,
    AddressSet,
    End,
    Icmp,
    PortRange,
    PortSet,
    Prefix,
    Rule,
)

Version: TypeAlias = Literal[4, 6]
# What an ipset holds, by the ipset's name: a selector's addresses, named ports, or prefixes as they are.
Wanted: TypeAlias = dict[str, AddressSet | PortSet | frozenset[Prefix]]

PROTOCOL: Final = {
    ICMP: "icmp",
    TCP: "tcp",
    UDP: "udp",
    ICMPV6: "ipv6-icmp",
    SCTP: "sctp",
    UDPLITE: "udplite",
}
_WITH_PORTS: Final = {TCP, UDP, SCTP, UDPLITE}
_OWN_ICMP: Final = {4: (ICMP, "-m icmp", "--icmp-type"), 6: (ICMPV6, "-m icmp6", "--icmpv6-type")}
_SLOTS: Final = 15  # of a multiport match; a range takes two
_NOTE_LIMIT: Final = 255


def lines(rule: Rule, version: Version, wanted: Wanted) -> tuple[str, ...]:
    """Return the matches of `rule`: one text a line, none where nothing can match.

    The sets that they go by are added to `wanted`.
    """
    ends = (_End(rule.source, "s", "src"), _End(rule.destination, "d", "dst"))
    if not _possible(rule, version) or not all(end.possible(version) for end in ends):
        return ()
    protocol = _protocol(rule)
    icmp = _icmp(rule, version)
    addresses = [part for end in ends for part in end.addresses(version, wanted)]
    refused = [part for end in ends for part in end.refused_ports(version, wanted)]
    notes = [f'-m comment --comment "{_plain(note)}"' for note in rule.note]
    return tuple(
        " ".join(filter(None, [*protocol, *icmp, *addresses, source, destination, *refused, *notes]))
        for source in ends[0].ports(version, wanted)
        for destination in ends[1].ports(version, wanted)
    )


def protocol(number: int) -> str:
    """Return the match of a protocol."""
    return f"-p {PROTOCOL.get(number, number)}"


def ports(word: str, wanted: tuple[PortRange, ...]) -> Iterator[str]:
    """Return what matches any of `wanted`, in as many matches as it takes."""
    chunk: list[str] = []
    room = _SLOTS
    for low, high in wanted:
        slots = 1 if low == high else 2
        if slots > room:
            yield f"--{word} {','.join(chunk)}"
            chunk, room = [], _SLOTS
        chunk.append(str(low) if low == high else f"{low}:{high}")
        room -= slots
    if chunk:
        yield f"--{word} {','.join(chunk)}"


def _possible(rule: Rule, version: Version) -> bool:
    """Whether all but the ends can hold; a rule that iptables would refuse matches nothing."""
    if rule.version not in (None, version):
        return False
    if rule.protocol is not None and rule.protocol == rule.not_protocol:
        return False
    if rule.icmp or rule.not_icmp:
        return rule.protocol == _OWN_ICMP[version][0]
    numbered = any(end.ports or end.not_ports for end in (rule.source, rule.destination))
    return not numbered or rule.protocol in _WITH_PORTS


def _protocol(rule: Rule) -> list[str]:
    if rule.protocol is not None:
        return [protocol(rule.protocol)]
    return [f"! {protocol(rule.not_protocol)}"] if rule.not_protocol is not None else []


def _icmp(rule: Rule, version: Version) -> list[str]:
    _, match, option = _OWN_ICMP[version]

    def kind(icmp: Icmp) -> str:
        return f"{icmp.type}" if icmp.code is None else f"{icmp.type}/{icmp.code}"

    parts = [f"{match} {option} {kind(rule.icmp)}"] if rule.icmp else []
    return parts + ([f"{match} ! {option} {kind(rule.not_icmp)}"] if rule.not_icmp else [])


class _End:
    """One end of a rule; `flag` and `way` are what iptables and ipset call it."""

    def __init__(self, end: End, flag: Literal["s", "d"], way: Literal["src", "dst"]) -> None:
        self.end, self.flag, self.way = end, flag, way

    def possible(self, version: Version) -> bool:
        nots = _of(version, self.end.not_nets)
        if any(net.prefixlen == 0 for net in nots):
            return False
        return bool(_of(version, self.end.nets) or not self.end.nets) and bool(nots or not self.end.not_nets)

    def addresses(self, version: Version, wanted: Wanted) -> Iterator[str]:
        end = self.end
        nets, nots = _of(version, end.nets), _of(version, end.not_nets)
        if len(nets) == 1:
            yield f"-{self.flag} {nets[0]}"
        elif nets:
            yield self._set("", self._nets(version, nets, wanted))
        if len(nots) == 1 and len(nets) != 1:  # iptables takes one prefix an end
            yield f"! -{self.flag} {nots[0]}"
        elif nots:
            yield self._set("! ", self._nets(version, nots, wanted))
        for sign, selected in (("", end.selected), ("! ", end.not_selected)):
            if selected is not None:
                name = naming.selector_set(version, selected)
                wanted[name] = selected
                yield self._set(sign, name)

    def ports(self, version: Version, wanted: Wanted) -> list[str]:
        """Return the alternatives: [""] where any port will do."""
        numbers = [f"-m multiport {match}" for match in ports(f"{self.flag}ports", self.end.ports)]
        names = [self._set("", self._named(version, one, wanted), 2) for one in self.end.named]
        return numbers + names or [""]

    def refused_ports(self, version: Version, wanted: Wanted) -> Iterator[str]:
        for match in ports(f"{self.flag}ports", self.end.not_ports):
            yield f"-m multiport ! {match}"
        for one in self.end.not_named:
            yield self._set("! ", self._named(version, one, wanted), 2)

    def _set(self, sign: str, name: str, dimensions: int = 1) -> str:
        return f"-m set {sign}--match-set {name} {','.join([self.way] * dimensions)}"

    def _nets(self, version: Version, nets: tuple[Prefix, ...], wanted: Wanted) -> str:
        name = naming.net_set(version, nets)
        wanted[name] = frozenset(nets)
        return name

    def _named(self, version: Version, one: PortSet, wanted: Wanted) -> str:
        name = naming.port_set(version, one)
        wanted[name] = one
        return name


def _of(version: Version, nets: tuple[Prefix, ...]) -> tuple[Prefix, ...]:
    return tuple(net for net in nets if net.version == version)


def _plain(note: str) -> str:
    # Neither a quote nor what could be taken for our own mark, "fab:…".
    return re.sub(r"[^A-Za-z0-9 =._/,@+-]", "_", note)[:_NOTE_LIMIT]
