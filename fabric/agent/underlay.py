"""Decide what the host's own routes reach, by links that have a carrier. Pure.

Tunnels of ours are no links here: what goes into them comes out under a route again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_network

from bgp.nexthop import Reach, Underlay
from bgp.peering import Here
from bgp.rib import Address
from fabric.plan.encap import DEVICES
from fabric.plan.routes import Route

LINK_LOCAL = ip_network("fe80::/10")  # on every link, so that no route says on which


def hops(routes: Iterable[Route]) -> Iterator[Underlay]:
    """Yield what `routes` say of links, one a next hop."""
    for route in routes:
        if route.key.prefix.version == 6 and route.key.prefix.network_address in LINK_LOCAL:
            continue
        for hop in route.next_hops:
            if hop.device and hop.device not in DEVICES:
                yield Underlay(route.key.prefix, hop.gateway, hop.device, route.key.metric)


def live(routes: Iterable[Route], here: Here) -> list[Underlay]:
    """Return what `routes` say of links that have a carrier."""
    dead = _dead(here)
    return [hop for hop in hops(routes) if hop.device not in dead]


def cut_off(addresses: Iterable[Address], routes: Iterable[Route], here: Here) -> frozenset[Address]:
    """Return those of `addresses` to which, by `routes`, links lead, and every one of them is without carrier.

    A default route leads to all of them.
    """
    if not (dead := _dead(here)):
        return frozenset()
    every = list(hops(routes))
    alive = [hop for hop in every if hop.device not in dead]
    near, anyhow = Reach(alive), Reach(every)
    with_default = [{hop.prefix.version for hop in of if not hop.prefix.prefixlen} for of in (alive, every)]
    return frozenset(
        address
        for address in addresses
        if not (near.resolve(address) or address.version in with_default[0])
        and (anyhow.resolve(address) or address.version in with_default[1])
    )


def _dead(here: Here) -> frozenset[str]:
    return frozenset(uplink.device for uplink in here.uplinks if not uplink.carrier)


def displacing_nobody(ours: Iterable[Route], foreign: Iterable[Route]) -> tuple[Route, ...]:
    """Leave out what has a stranger's prefix and metric: ours would replace it, so it keeps its place."""
    held = {route.key for route in foreign}
    return tuple(route for route in ours if route.key not in held)
