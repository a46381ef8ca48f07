"""What a producer of rules other than policy wants of one family: plain values, which the agent's composer merges.

Chains begin with "fab-" and have at most 28 characters, ipsets with "fab4-" or "fab6-" and at most 31.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple, TypeAlias

from fabric.plan.ipsets import IPSet
from fabric.plan.tables import Place, Version

Address: TypeAlias = IPv4Address | IPv6Address
Prefix: TypeAlias = IPv4Network | IPv6Network

LINKS = "fab+"  # the host's ends of workloads' links, as iptables writes it


@dataclass(frozen=True)
class Produced:
    """`chains` are whole chains of ours, `first` is for the top of built-in ones, `sets` are what they match by."""

    version: Version
    chains: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)
    first: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)
    sets: Mapping[str, IPSet] = field(default_factory=dict)


class Hook(NamedTuple):
    """The rules of one chain of ours, and the built-in chain that sends what matches there."""

    table: str
    at: str
    chain: str
    lines: tuple[str, ...]
    match: str = ""


def produced(version: Version, hooks: Iterable[Hook], sets: Mapping[str, IPSet]) -> Produced:
    """Return the chains of `hooks` and the jumps into them; one without rules is left out, jump and all."""
    found = [hook for hook in hooks if hook.lines]
    first: dict[Place, tuple[str, ...]] = {}
    for hook in found:
        place = Place(hook.table, hook.at)
        first[place] = (*first.get(place, ()), f"{hook.match} -j {hook.chain}".lstrip())
    return Produced(version, {Place(h.table, h.chain): h.lines for h in found}, first, sets)


def nets(version: Version, prefixes: Iterable[Prefix | Address]) -> IPSet:
    """Return the set of those of `prefixes` that are of this family."""
    return IPSet("hash:net", version, frozenset(_text(net) for net in prefixes if net.version == version))


def _text(net: Prefix | Address) -> str:
    single = isinstance(net, Prefix) and net.prefixlen == net.max_prefixlen
    return str(net.network_address) if isinstance(net, Prefix) and single else str(net)
