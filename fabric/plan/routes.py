"""Decide which kernel routes this node should have, and how to get there from those it has.

`merge` is the only place where route sources meet: one route a prefix. `plan` compares that with
what the kernel holds; both are pure (no clock, socket or logging), so every decision is testable
as data. `apply` is the only code here that reaches the kernel, and it decides nothing.

Ownership: a route is ours if its proto is FABRIC_PROTO. Only those are read back, so a restarted
agent with no memory knows what to sweep and never removes a stranger's route.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Protocol, TypeAlias

from fabric.errors import DataplaneError

Address: TypeAlias = IPv4Address | IPv6Address
Prefix: TypeAlias = IPv4Network | IPv6Network

FABRIC_PROTO = 143  # rtm_protocol; must not be a daemon's (BIRD 12, Calico 80, FRR 186-198)
# Always set a metric: the kernel reads an IPv6 metric of 0 back as 1024, so a plan made
# with 0 would find the same difference for ever.
FABRIC_METRIC = 1024


@dataclass(frozen=True, slots=True)
class RouteKey:
    """What the kernel indexes by; two routes with equal keys cannot coexist."""

    prefix: Prefix
    metric: int = FABRIC_METRIC  # kernel priority, lower wins; unrelated to the BGP MED


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where a packet goes next; at least one of the two is given.

    A device alone means the destination itself is on that link (a workload). A gateway alone must be
    on a connected prefix, and the kernel finds the device. Both mean the gateway is taken to be on
    that device whatever the other routes say (`onlink`: tunnels, link-local gateways). The gateway of an
    IPv4 prefix may be an IPv6 address (RFC 8950).
    """

    gateway: Address | None = None
    device: str | None = None

    def __str__(self) -> str:
        parts = [f"via {self.gateway}" if self.gateway else "", f"dev {self.device}" if self.device else ""]
        return " ".join(filter(None, parts))


@dataclass(frozen=True, slots=True)
class Route:
    """One FIB entry; more than one next hop means ECMP with equal weights, a blackhole has none."""

    key: RouteKey
    next_hops: frozenset[NextHop]
    blackhole: bool = False


@dataclass(frozen=True, slots=True)
class Replace:
    """Install `route`, atomically displacing whatever holds its key."""

    route: Route

    @property
    def key(self) -> RouteKey:
        return self.route.key


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove the route at `key`; already gone counts as success."""

    key: RouteKey


Op: TypeAlias = Replace | Delete
RouteSet: TypeAlias = Mapping[RouteKey, Route]


class Fib(Protocol):
    """The seam: `fabric.kernel.routes.NetlinkFib` for the kernel, `tests.fakes.fib.FakeFib` in memory."""

    async def owned_routes(self) -> Iterable[Route]:
        """Return every route of the main table whose proto is FABRIC_PROTO, and no other."""

    async def replace(self, route: Route) -> None:
        """Raise DataplaneError if refused; the previous route must then still be there."""

    async def delete(self, key: RouteKey) -> None:
        """Raise DataplaneError if refused; a missing route is not an error."""


def merge(
    *,
    workloads: Iterable[Route] = (),
    static: Iterable[Route] = (),
    overlay: Iterable[Route] = (),
    bgp: Iterable[Route] = (),
    blackholes: Iterable[Route] = (),
) -> RouteSet:
    """Return one route a prefix: the one of the best class, in the order of the parameters.

    A local workload beats what peers say of its address, as does the static way to a peer; so does what the datastore
    says, which for an overlay is the source. A blackhole only fills what nobody else claims. Two routes of one class
    for one prefix are somebody's mistake; the lower next hop then wins, so that the result does not depend on the
    order in which they were heard.
    """
    chosen: dict[Prefix, Route] = {}
    for source in (workloads, static, overlay, bgp, blackholes):
        best: dict[Prefix, Route] = {}
        for route in source:
            rival = best.setdefault(route.key.prefix, route)
            if rival is not route and _tie_break(route) < _tie_break(rival):
                best[route.key.prefix] = route
        chosen = best | chosen
    return {route.key: route for route in chosen.values()}


def _tie_break(route: Route) -> tuple[int, list[tuple[str, str]]]:
    hops = sorted((hop.device or "", str(hop.gateway or "")) for hop in route.next_hops)
    return route.key.metric, hops


def plan(
    desired: RouteSet, actual: RouteSet, *, in_sync: bool = True, scope: AbstractSet[Prefix] | None = None
) -> list[Op]:
    """Return the operations that turn `actual` into `desired`, in the order to run them.

    Replacements precede deletions: when a /25 becomes two /26s, no address loses its route.
    Nothing is deleted until the datastore is `in_sync`: a route we have not heard of yet
    looks exactly like one no longer wanted. `scope`, when given, limits the plan to these
    prefixes (an attach). Deterministic; after a full apply it is [].
    """
    if scope is not None:
        desired, actual = _within(desired, scope), _within(actual, scope)
    changed = [key for key, route in desired.items() if actual.get(key) != route]
    stale = [key for key in actual if key not in desired] if in_sync else []
    replacements: list[Op] = [Replace(desired[key]) for key in sorted(changed, key=_order)]
    return replacements + [Delete(key) for key in sorted(stale, key=_order)]


def _within(routes: RouteSet, scope: AbstractSet[Prefix]) -> RouteSet:
    return {key: route for key, route in routes.items() if key.prefix in scope}


def _order(key: RouteKey) -> tuple[int, int, int, int]:
    # ipaddress refuses to compare v4 with v6, so the total order is spelled out.
    return key.prefix.version, int(key.prefix.network_address), key.prefix.prefixlen, key.metric


async def apply(ops: Iterable[Op], fib: Fib) -> dict[Op, DataplaneError]:
    """Run `ops` in order and return the refused ones; routes are independent, so go on.

    The next pass plans the refused ones again, from what the kernel then really holds.
    """
    refused: dict[Op, DataplaneError] = {}
    for op in ops:
        try:
            match op:
                case Replace(route):
                    await fib.replace(route)
                case Delete(key):
                    await fib.delete(key)
        except DataplaneError as err:
            refused[op] = err
    return refused
