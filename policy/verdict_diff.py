"""Decide between whom a change of policy changes verdicts: what `diff` tells beside the text. Pure.

Asked are the protocols and ports that the policies which change name, before and after, and one port that none of
them names; between endpoints that they decide for, and every other endpoint, the prefixes that their rules name, and an
address outside. That grows with the square of a cluster, so it ends after MOST verdicts, and says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import islice
from typing import Final

from fabric.errors import ConfigError
from policy import words
from policy.evaluate import Passage
from policy.form import ICMP, ICMPV6, TCP, Address, Direction, Hook, Icmp, Key, Policy, Prefix, Rule
from policy.scene import ECHO, PORTED, Asking, Scene, Who, packet, sent_by, titles

MOST: Final = 10_000  # verdicts, each before and after: some seconds
_MOST_ASKED: Final = 20
_HOOKS: Final[tuple[Hook, ...]] = ("normal", "forward", "pre-dnat", "untracked")
_OUTSIDE: Final = Who("outside", None, (ip_address("192.0.2.1"), ip_address("2001:db8::1")))


@dataclass(frozen=True, slots=True)
class Changed:
    """What changes from one end to another: `asked` is now `allowed`, by what is named."""

    source: str
    destination: str
    asked: tuple[str, ...]
    allowed: bool
    by: str


@dataclass(frozen=True, slots=True)
class Found:
    """What changes, what was asked for, and how many `of` so many pairs were looked at."""

    changed: tuple[Changed, ...]
    asked: tuple[str, ...]
    pairs: int
    of: int


def compared(before: Scene, after: Scene, keys: Collection[Key] | None, most: int = MOST) -> Found:
    """Return what changes; `keys` are the policies that do, None where more than policies does."""
    policies = [policy for scene in (before, after) for policy in _policies(scene, keys)]
    rules = [rule for policy in policies for rule in (*(policy.ingress or ()), *(policy.egress or ()))]
    asked = _asked(after, rules)
    ends = [*_endpoints(before, after), *_prefixes(rules), _OUTSIDE]
    pairs = list(_pairs(before, after, ends, everything=keys is None))
    looked = pairs[: most // len(asked)]
    changed = [one for pair in looked for one in _changed(before, after, pair, asked)]
    return Found(tuple(changed), tuple(asked), len(looked), len(pairs))


def _policies(scene: Scene, keys: Collection[Key] | None) -> Iterator[Policy]:
    for tier in scene.world.tiers:
        for policy in tier.policies:
            if not policy.staged and (keys is None or policy.key in keys):
                yield policy


def _asked(scene: Scene, rules: Iterable[Rule]) -> dict[str, Asking]:
    """Return what to ask for, by how it is called: the ends of each range of ports, and what is in none."""
    rules = list(rules)
    ranges = [
        (rule.protocol or TCP, low, high)
        for rule in rules
        for end in (rule.source, rule.destination)
        for low, high in (*end.ports, *end.not_ports)
    ]
    numbers = {TCP, *(rule.protocol for rule in rules if rule.protocol is not None)}
    numbers |= {rule.not_protocol for rule in rules if rule.not_protocol is not None}
    ports = {(number, port) for number, low, high in ranges for port in (low, high)}
    ports |= {
        (member.protocol, member.port)
        for rule in rules
        for named in (*rule.destination.named, *rule.destination.not_named)
        for member in scene.world.members(named)
        if not isinstance(member, Prefix)
    }
    icmps = {(rule.protocol, rule.icmp) for rule in rules if rule.protocol in {ICMP, ICMPV6} and rule.icmp}
    found = [Asking(number, port) for number, port in sorted(ports) if number in PORTED]
    found += [
        Asking(number, icmp=Icmp(icmp.type, icmp.code or 0))
        for number, icmp in sorted(icmps, key=str)
        if number is not None
    ]
    named = {str(one): one for one in islice(found, _MOST_ASKED)}
    for number in sorted(numbers):
        if number in ECHO:
            named.setdefault(words.protocol(number), Asking(number, icmp=Icmp(ECHO[number], 0)))
        elif number in PORTED:
            named[f"other {words.protocol(number)}"] = Asking(number, _in_none(number, ranges))
        else:
            named[words.protocol(number)] = Asking(number)
    return named


def _in_none(number: int, ranges: Iterable[tuple[int, int, int]]) -> int:
    """Return a port that no range of the protocol has in it, the highest there is."""
    port = 65535
    for _, low, high in sorted((r for r in ranges if r[0] == number), key=lambda r: -r[2]):
        if low <= port <= high and low > 1:
            port = low - 1
    return port


def _endpoints(before: Scene, after: Scene) -> list[Who]:
    """Return the endpoints that there are before and after, and have an address."""
    names = titles(after)
    found = [
        Who(names[key], key, tuple(sorted(one.addresses, key=lambda a: (a.version, int(a)))))
        for key, one in after.world.endpoints.items()
        if key in before.world.endpoints and one.addresses
    ]
    return sorted(found, key=lambda one: one.name)


def _prefixes(rules: Iterable[Rule]) -> list[Who]:
    """Return an address of each prefix that is named; a whole family is what `_OUTSIDE` is of."""
    nets = dict.fromkeys(
        net
        for rule in rules
        for end in (rule.source, rule.destination)
        for net in (*end.nets, *end.not_nets)
        if net.prefixlen
    )
    return [Who(str(net), None, (_address(net, nets),)) for net in nets]


def _address(net: Prefix, nets: Iterable[Prefix]) -> Address:
    """Return an address of `net` that no narrower one of `nets` has, if that is quickly found."""
    narrower = [one for one in nets if one.version == net.version and one.prefixlen > net.prefixlen]
    behind = (
        one.broadcast_address + 1
        for one in narrower
        if int(one.broadcast_address) < int(net.broadcast_address)
    )
    first = net[min(1, net.num_addresses - 1)]
    free = (a for a in (first, *behind) if a in net and not any(a in one for one in narrower))
    return next(free, first)


def _pairs(
    before: Scene, after: Scene, ends: Sequence[Who], *, everything: bool
) -> Iterator[tuple[Who, Who]]:
    """Yield those between whom something may change: the list that decides at one of them is another."""

    def touched(direction: Direction) -> list[bool]:
        return [
            one.key is not None and (everything or _differs(before, after, one.key, direction))
            for one in ends
        ]

    sends, receives = touched("Egress"), touched("Ingress")
    receivers = [end for end, is_touched in zip(ends, receives, strict=True) if is_touched]
    for source, is_touched in zip(ends, sends, strict=True):
        for destination in ends if is_touched else receivers:
            if source is not destination:
                yield source, destination


def _differs(before: Scene, after: Scene, key: Key, direction: Direction) -> bool:
    return any(
        before.world.applied(key, direction, hook) != after.world.applied(key, direction, hook)
        for hook in _HOOKS
    )


def _changed(
    before: Scene, after: Scene, pair: tuple[Who, Who], asked: Mapping[str, Asking]
) -> Iterator[Changed]:
    """Yield what is allowed now, and what is denied now, each with all that it is so for."""
    by: dict[bool, dict[str, list[str]]] = {True: {}, False: {}}
    source, destination = pair
    for name, one in asked.items():
        try:
            sent = packet(source, destination, one)
        except ConfigError:
            continue  # no address of the family that it is of
        now = sent_by(after, source, sent)
        if now.allowed != sent_by(before, source, sent).allowed:
            by[now.allowed].setdefault(_decided(now), []).append(name)
    for allowed, found in by.items():
        for text, names in found.items():
            yield Changed(source.name, destination.name, tuple(names), allowed, text)


def _decided(passage: Passage) -> str:
    texts = [words.of_origin(one.verdict.origin) for one in passage.decisive if one.verdict.origin]
    return " and ".join(dict.fromkeys(texts))
