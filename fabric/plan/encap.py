"""Decide which encapsulation carries the packets of a pool from this node to another, and through which device. Pure.

A pool's ipipMode or vxlanMode, chosen for each next hop: CrossSubnet encapsulates where the next hop is outside the
subnet of this node's own address. Source: calico-semantics §6 (CrossSubnet), §8 (devices, far ends).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Final, Literal, NamedTuple, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Interface: TypeAlias = IPv4Interface | IPv6Interface
Prefix: TypeAlias = IPv4Network | IPv6Network
Kind: TypeAlias = Literal["ipip", "vxlan"]
Mode: TypeAlias = Literal["Never", "Always", "CrossSubnet"]
Version: TypeAlias = Literal[4, 6]


class Encap(NamedTuple):
    """One kind of tunnel; `version` is the family of what it carries, and of what carries it."""

    kind: Kind
    version: Version

    @property
    def device(self) -> str:
        return _DEVICES[self]

    @property
    def overhead(self) -> int:
        """How many bytes of a packet are the tunnel's (calico-semantics §10)."""
        return _OVERHEADS[self]


IPIP: Final = Encap("ipip", 4)
VXLAN: Final = Encap("vxlan", 4)
VXLAN6: Final = Encap("vxlan", 6)
ENCAPS: Final = (IPIP, VXLAN, VXLAN6)

_DEVICES: Final[Mapping[Encap, str]] = {IPIP: "tunl0", VXLAN: "vxlan.fabric", VXLAN6: "vxlan-v6.fabric"}
_OVERHEADS: Final[Mapping[Encap, int]] = {IPIP: 20, VXLAN: 50, VXLAN6: 70}
DEVICES: Final = frozenset(_DEVICES.values())


@dataclass(frozen=True, slots=True)
class Pool:
    """What a pool says of tunnels: `kind` is the one it asks for, None where both modes are Never.

    `fallback` says that pairs of which one lacks IPIP use VXLAN instead.
    """

    prefix: Prefix
    kind: Kind | None = None
    mode: Mode = "Never"
    fallback: bool = False
    name: str = ""

    @property
    def version(self) -> Version:
        return 4 if self.prefix.version == 4 else 6


@dataclass(frozen=True, slots=True)
class Node:
    """What a node says of itself: its own addresses, one a family at most, and where its tunnels end.

    `ends` has the tunnel's address of each encapsulation whose device stands there; `macs` the MAC of each VXLAN's.
    `lacks` are kinds that its kernel has not. `bgp` False: it has no sessions, and the way to its blocks comes from the
    datastore.
    """

    name: str
    addresses: tuple[Interface, ...] = ()
    ends: Mapping[Encap, Address] = field(default_factory=dict)
    macs: Mapping[Encap, str] = field(default_factory=dict)
    lacks: frozenset[Kind] = frozenset()
    bgp: bool = True

    def address(self, version: int) -> Interface | None:
        """Return its own address of that family."""
        return next((held for held in self.addresses if held.version == version), None)


def encapsulation(pool: Pool, here: Node, there: Node, next_hop: Address) -> Encap | None:
    """Return what carries packets for an address in `pool` to the node `there`, None where they go as they are.

    `next_hop` is the node's own address, or that of a router which leads to it.
    """
    if pool.kind is None or pool.mode == "Never":
        return None
    if pool.mode == "CrossSubnet" and same_subnet(here, next_hop):
        return None
    kind = pool.kind
    if kind == "ipip" and pool.fallback and "ipip" in here.lacks | there.lacks:
        kind = "vxlan"
    return Encap(kind, pool.version)


def possible(pool: Pool) -> frozenset[Encap]:
    """Return every encapsulation that packets for `pool` may come to need."""
    if pool.kind is None or pool.mode == "Never":
        return frozenset()
    kinds: set[Kind] = {pool.kind, "vxlan"} if pool.fallback else {pool.kind}
    return frozenset(Encap(kind, pool.version) for kind in kinds)


def lacking(pool: Pool, lacks: AbstractSet[Kind]) -> Kind | None:
    """Return the kind of tunnel that `pool` cannot do without on a node that lacks the kinds `lacks`."""
    return pool.kind if {encap.kind for encap in possible(pool)} <= lacks else None


def same_subnet(here: Node, address: Address) -> bool:
    """Whether `address` is in the subnet of this node's own; a node of a single address is in none with anybody."""
    own = here.address(address.version)
    return own is not None and address in own.network


def mac(node: str, encap: Encap) -> str:
    """Return the MAC of a node's VXLAN device where its Node carries none: Calico's, made of the node's name."""
    text = node if encap.version == 4 else f"{node}-v6"
    return "66:" + hashlib.sha1(text.encode(), usedforsecurity=False).digest()[:5].hex(":")
