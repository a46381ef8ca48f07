"""Decide through which link a BGP next hop is reached, from routes that BGP did not make.

An input to the decision process, not a step after it (RFC 4271 §9.1.2): a path whose next hop cannot
be reached is no candidate. A next hop never resolves through a default route: that would send the
packets of every remote prefix to wherever the default points when a link is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bgp.rib import Address, Prefix


@dataclass(frozen=True, slots=True)
class Underlay:
    """One route of the host that is not ours: `gateway` None means directly connected."""

    prefix: Prefix
    gateway: Address | None
    device: str
    metric: int = 0


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where packets for a next hop go: to `gateway`, on link at `device`; `metric` is the interior cost."""

    gateway: Address
    device: str
    metric: int = 0


def resolve(next_hop: Address, underlay: Iterable[Underlay]) -> Resolved | None:
    """Return the link that reaches `next_hop`, or None where only a default route would.

    The longest prefix wins, then the lowest metric, then device and gateway by name, so that the answer does
    not depend on the order in which routes were read.
    """
    covering = [
        route
        for route in underlay
        if route.prefix.version == next_hop.version and route.prefix.prefixlen and next_hop in route.prefix
    ]
    if not covering:
        return None
    route = min(covering, key=lambda r: (-r.prefix.prefixlen, r.metric, r.device, str(r.gateway or "")))
    return Resolved(route.gateway or next_hop, route.device, route.metric)
