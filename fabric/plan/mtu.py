"""Decide how large a packet may be: on the links that lead out, in each tunnel, of a workload. Pure.

A tunnel takes its part of each packet (calico-semantics §10). A workload of a pool that may use one must send packets
that still fit: a family at a time, since one pool has one encapsulation and the other family's another, or none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, TypeAlias

from fabric.plan.encap import Address, Encap, Pool, Version, possible
from fabric.plan.routes import Route

# RFC 791 §3.1: what every host can take, and so what others may send; the kernel itself would do with 68.
# RFC 8200 §5: a link with less has no IPv6 at all.
MINIMUM: Final[Mapping[Version, int]] = {4: 576, 6: 1280}

_Bits: TypeAlias = tuple[int, int, int]  # version, prefix length, the prefix's bits


class Mtus(NamedTuple):
    """The largest packet of each family, its header included."""

    v4: int
    v6: int

    def of(self, version: int) -> int:
        return self.v4 if version == 4 else self.v6


def egress(
    routes: Iterable[Route], links: Mapping[str, int], destinations: Iterable[Address], otherwise: int
) -> int:
    """Return the smallest MTU of the links by which `routes` lead to `destinations` and to where a default leads.

    `links` has the MTU of each link that counts: what leads elsewhere, such as into a tunnel, says nothing of the
    way. Of several routes for a prefix the lowest metric is used, of several next hops each. Without any such link it
    is `otherwise`.
    """
    best = _best(routes)
    lengths = sorted({(version, length) for version, length, _ in best}, reverse=True)
    used = [best.get((version, 0, 0)) for version in (4, 6)]
    used += [_longest_match(best, lengths, address) for address in destinations]
    devices = {hop.device or "" for route in used if route for hop in route.next_hops}
    return min((links[device] for device in devices if device in links), default=otherwise)


def _best(routes: Iterable[Route]) -> dict[_Bits, Route]:
    best: dict[_Bits, Route] = {}
    for route in routes:
        prefix = route.key.prefix
        host_bits = prefix.max_prefixlen - prefix.prefixlen
        bits = (prefix.version, prefix.prefixlen, int(prefix.network_address) >> host_bits)
        rival = best.setdefault(bits, route)
        if route.key.metric < rival.key.metric:
            best[bits] = route
    return best


def _longest_match(
    best: Mapping[_Bits, Route], lengths: Iterable[tuple[int, int]], address: Address
) -> Route | None:
    value = int(address)
    for version, length in lengths:
        if version == address.version and (
            route := best.get((version, length, value >> (address.max_prefixlen - length)))
        ):
            return route
    return None


def tunnel(egress: int, encap: Encap) -> int:
    """Return the MTU of that tunnel's device."""
    return egress - encap.overhead


def workload(egress: int, pools: Iterable[Pool]) -> Mtus:
    """Return what workloads may send: what fits into every encapsulation that a pool of the family may use.

    All pools, and not the workload's own alone: a packet between two of them goes by the receiver's pool.
    """
    encaps = {encap for pool in pools for encap in possible(pool)}
    v4, v6 = (
        min((tunnel(egress, encap) for encap in encaps if encap.version == version), default=egress)
        for version in (4, 6)
    )
    return Mtus(v4, max(v6, MINIMUM[6]))
