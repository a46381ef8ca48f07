"""Decide between whom a change of policy changes verdicts: what `diff` tells beside the text. Pure.

Asked are the protocols and ports that the policies which change name, before and after, and one port that none of
them names; and the failsafe ports of nodes whose host endpoints or settings change. Between endpoints that they decide
for, and every other endpoint, the nodes themselves, the prefixes that their rules name, and an address outside. That
grows with the square of a cluster, so it ends after MOST verdicts, and says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import chain, islice, product, zip_longest
from typing import Final

from fabric.errors import ConfigError
from policy import words
from policy.evaluate import Passage
from policy.form import (
    DIRECTIONS,
    ICMP,
    ICMPV6,
    TCP,
    Address,
    Direction,
    Hook,
    Icmp,
    Key,
    Policy,
    Prefix,
    Rule,
)
from policy.scene import ECHO, PORTED, Asking, Scene, Who, hosts, in_order, packet, sent_by, titles

MOST: Final = 10_000  # verdicts, each before and after: some seconds
_MOST_ASKED: Final = 20
_HOOKS: Final[tuple[Hook, ...]] = ("normal", "forward", "pre-dnat", "untracked")


@dataclass(frozen=True, slots=True, eq=False)
class _End:
    """One of those between whom is asked; `node` is "" for what is outside of the cluster."""

    who: Who
    node: str = ""
    is_host: bool = False


_OUTSIDE: Final = _End(Who("outside", None, (ip_address("192.0.2.1"), ip_address("2001:db8::1"))))


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
    """What changes, what was asked for, and how many `of` so many pairs were looked at.

    `untold` are the host endpoints that nothing tells the addresses of: they are not among the pairs.
    """

    changed: tuple[Changed, ...]
    asked: tuple[str, ...]
    pairs: int
    of: int
    untold: tuple[str, ...] = ()


def compared(before: Scene, after: Scene, keys: Collection[Key] | None, most: int = MOST) -> Found:
    """Return what changes; `keys` are the policies that do, None where more than policies does."""
    policies = [policy for scene in (before, after) for policy in _policies(scene, keys)]
    rules = [rule for policy in policies for rule in (*(policy.ingress or ()), *(policy.egress or ()))]
    nodes = _other_nodes(before, after)
    asked = _asked(after, rules, _failsafes(before, after, nodes))
    hosts, untold = _hosts(before, after, nodes)
    hosts.sort(key=lambda one: one.node not in nodes)
    pairs = _pairs(
        before, after, hosts, [*_endpoints(before, after), *_prefixes(rules), _OUTSIDE], nodes, keys
    )
    looked = list(islice(pairs, most // len(asked)))
    changed = [one for pair in looked for one in _changed(before, after, pair, asked)]
    return Found(
        tuple(changed), tuple(asked), len(looked), len(looked) + sum(1 for _ in pairs), tuple(untold)
    )


def _other_nodes(before: Scene, after: Scene) -> set[str]:
    """Return the nodes on which other host endpoints are, or that have other settings or links."""
    return {
        node
        for node in before.sites.keys() & after.sites.keys()
        if before.sites[node] != after.sites[node] or before.world.hosts(node) != after.world.hosts(node)
    }


def _policies(scene: Scene, keys: Collection[Key] | None) -> Iterator[Policy]:
    for tier in scene.world.tiers:
        for policy in tier.policies:
            if not policy.staged and (keys is None or policy.key in keys):
                yield policy


def _asked(scene: Scene, rules: Iterable[Rule], failsafes: Iterable[Asking]) -> dict[str, Asking]:
    """Return what to ask for, by how it is called: the ends of each range of ports, `failsafes`, what is in none."""
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
    named = {str(one): one for one in (*islice(found, _MOST_ASKED), *islice(failsafes, _MOST_ASKED))}
    ranges += [(one.protocol, one.port, one.port) for one in named.values() if one.port]
    for number in sorted(numbers):
        if number in ECHO:
            named.setdefault(words.protocol(number), Asking(number, icmp=Icmp(ECHO[number], 0)))
        elif number in PORTED:
            named[f"any other {words.protocol(number)} port"] = Asking(number, _in_none(number, ranges))
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


def _failsafes(before: Scene, after: Scene, nodes: Iterable[str]) -> list[Asking]:
    """Return the ports that are always open on one of `nodes`, before or after."""
    sites = [scene.sites[node] for node in nodes for scene in (before, after)]
    ports = {(one.protocol, one.port) for site in sites for one in (*site.failsafe_in, *site.failsafe_out)}
    return [Asking(number, port) for number, port in sorted(ports) if number in PORTED]


def _endpoints(before: Scene, after: Scene) -> list[_End]:
    """Return the workloads that there are before and after, and have an address."""
    names = titles(after)
    found = [
        _End(Who(names[key], key, in_order(one.addresses)), one.node)
        for key, one in after.world.endpoints.items()
        if key in before.world.endpoints and one.addresses and not one.is_host
    ]
    return sorted(found, key=lambda one: one.who.name)


def _hosts(before: Scene, after: Scene, nodes: Collection[str]) -> tuple[list[_End], list[str]]:
    """Return the nodes that there are before and after, by each of their addresses once, and what changes and has none.

    An address is that of its host endpoint, if there is one after or before, and else the node's.
    """
    found, untold = [], []
    for node in sorted(before.sites.keys() & after.sites.keys()):
        taken: set[Address] = set()
        known = [one for scene in (after, before) for one in hosts(scene, node)]
        for one in sorted(known, key=lambda one: one.key is None):
            if one.key and not one.addresses and (node in nodes or _is_another(before, after, one.key)):
                untold.append(one.name)
            if left := in_order(set(one.addresses) - taken):
                found.append(_End(Who(one.name, None, left), node, is_host=True))
                taken.update(left)
    return found, list(dict.fromkeys(untold))


def _prefixes(rules: Iterable[Rule]) -> list[_End]:
    """Return an address of each prefix that is named; a whole family is what `_OUTSIDE` is of."""
    nets = dict.fromkeys(
        net
        for rule in rules
        for end in (rule.source, rule.destination)
        for net in (*end.nets, *end.not_nets)
        if net.prefixlen
    )
    return [_End(Who(str(net), None, (_address(net, nets),))) for net in nets]


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
    before: Scene,
    after: Scene,
    hosts: Sequence[_End],
    others: Sequence[_End],
    nodes: Collection[str],
    keys: Collection[Key] | None,
) -> Iterator[tuple[_End, _End]]:
    """Yield those between whom something may change: the list that decides at one of them is another.

    On `nodes` more than lists is. Where there are any, hosts with what is outside and with their own workloads come
    first, one workload of each node before a second one.
    """

    def touched(direction: Direction) -> set[_End]:
        asked, forwards = set(nodes), set(nodes)  # the nodes themselves, and what their links let through
        for one in after.world.endpoints.values():
            if one.is_host and one.key in before.world.endpoints:
                asked |= {one.node} if _differs(before, after, one.key, direction, _HOOKS) else set()
                forwards |= {one.node} if _differs(before, after, one.key, direction, _HOOKS[1:]) else set()
        return {
            end
            for end in (*hosts, *others)
            if (keys is None and end.node)
            or end.node in (asked if end.is_host else forwards)
            or (end.who.key and _differs(before, after, end.who.key, direction, _HOOKS[:1]))
        }

    sends, receives = touched("Egress"), touched("Ingress")
    everybody = (*others, *hosts)
    near = list(_near(hosts, others)) if nodes else []
    told = set(near)
    for source, destination in chain(
        near, (pair for pair in product(everybody, everybody) if pair not in told)
    ):
        if source is not destination and (source in sends or destination in receives):
            yield source, destination


def _near(hosts: Sequence[_End], others: Sequence[_End]) -> Iterator[tuple[_End, _End]]:
    """Yield hosts with what is outside, and with their own workloads, both ways."""
    own: dict[str, list[_End]] = defaultdict(list)
    for end in others:
        own[end.node].append(end)
    for host, end in product(hosts, own.pop("", ())):
        yield from ((end, host), (host, end))
    for row in zip_longest(*([(host, end) for end in own[host.node]] for host in hosts)):
        for host, end in filter(None, row):
            yield from ((end, host), (host, end))


def _is_another(before: Scene, after: Scene, host: Key) -> bool:
    return any(_differs(before, after, host, direction, _HOOKS) for direction in DIRECTIONS)


def _differs(before: Scene, after: Scene, key: Key, direction: Direction, hooks: Iterable[Hook]) -> bool:
    return any(
        before.world.applied(key, direction, hook) != after.world.applied(key, direction, hook)
        for hook in hooks
    )


def _changed(
    before: Scene, after: Scene, pair: tuple[_End, _End], asked: Mapping[str, Asking]
) -> Iterator[Changed]:
    """Yield what is allowed now, and what is denied now, each with all that it is so for."""
    by: dict[bool, dict[str, list[str]]] = {True: {}, False: {}}
    source, destination = (end.who for end in pair)
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
