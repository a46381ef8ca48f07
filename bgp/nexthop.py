"""Decide through which links a BGP next hop is reached, from routes that BGP did not make.

An input to the decision process, not a step after it (RFC 4271 §9.1.2): a path whose next hop cannot be reached is no
candidate. A next hop never resolves through a default route: that would send the packets of every remote prefix to
wherever the default points when a link is lost. Nor through what is closed: this node's own blocks and addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from bgp.rib import Address, Prefix

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Underlay:
    """One next hop of a route that BGP did not make: `gateway` None means directly connected.

    Those of one prefix with one metric are the next hops of one route.
    """

    prefix: Prefix
    gateway: Address | None
    device: str
    metric: int = 0


@dataclass(frozen=True, slots=True)
class Hop:
    """Where a packet goes next: to `gateway`, which is on the link `device`."""

    gateway: Address
    device: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where packets for a next hop go: to `gateway`, on link at `device`; `metric` is the interior cost.

    `others` share the load, where the route behind it has more than one next hop. `through` are the BGP prefixes that
    the next hop depends on, the one that covers it first; none where the host's own routes reach it. Then `within`
    is the prefix of the one that does.
    """

    gateway: Address
    device: str
    metric: int = 0
    others: tuple[Hop, ...] = ()
    through: tuple[Prefix, ...] = ()
    within: Prefix | None = None

    @property
    def hops(self) -> tuple[Hop, ...]:
        """Every way to it, the first one first."""
        return (Hop(self.gateway, self.device), *self.others)


class LongestMatch(Generic[V]):
    """Values by prefix, asked for the longest prefix that covers an address; a default route covers nothing here."""

    def __init__(self, values: Mapping[Prefix, V]) -> None:
        tables: dict[tuple[int, int], dict[int, V]] = {}
        for prefix, value in values.items():
            if prefix.prefixlen:
                shift = prefix.max_prefixlen - prefix.prefixlen
                table = tables.setdefault((prefix.version, shift), {})
                table[int(prefix.network_address) >> shift] = value
        self._tables = {
            version: [(shift, table) for (of, shift), table in sorted(tables.items()) if of == version]
            for version in (4, 6)
        }

    def find(self, address: Address) -> V | None:
        number = int(address)
        for shift, table in self._tables[address.version]:
            if (value := table.get(number >> shift)) is not None:
                return value
        return None


class Reach:
    """How this host reaches addresses by routes that BGP did not make; `closed` says why a prefix is no way at all."""

    def __init__(self, underlay: Iterable[Underlay], closed: Mapping[Prefix, str] | None = None) -> None:
        routes: dict[Prefix, list[Underlay]] = {}
        for hop in underlay:
            routes.setdefault(hop.prefix, []).append(hop)
        self._ways: LongestMatch[list[Underlay] | str] = LongestMatch({**routes, **(closed or {})})

    def resolve(self, next_hop: Address) -> Resolved | None:
        """Return the link that reaches `next_hop`, or None where only a default route would.

        The longest prefix wins, then the lowest metric, then device and gateway by name, so that the answer does not
        depend on the order in which routes were read.

        To be on a link costs nothing: the metric of a link's own prefix says which of two links the host prefers, and
        managers of hosts number their links by it; ToRs on two of them are equally near all the same.
        """
        found = self._ways.find(next_hop)
        if not found or isinstance(found, str):
            return None
        least = min(hop.metric for hop in found)
        first, *others = sorted((hop for hop in found if hop.metric == least), key=_order)
        if first.gateway is None:
            return Resolved(next_hop, first.device, within=first.prefix)
        shared = tuple(Hop(hop.gateway, hop.device) for hop in others if hop.gateway)
        return Resolved(first.gateway, first.device, least, shared, within=first.prefix)

    def why_closed(self, next_hop: Address) -> str:
        """Return why no route may lead to `next_hop`, "" where one may."""
        found = self._ways.find(next_hop)
        return found if isinstance(found, str) else ""


def _order(hop: Underlay) -> tuple[bool, str, str]:
    return hop.gateway is not None, hop.device, str(hop.gateway)
