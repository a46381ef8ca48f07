"""Decide what the management network is, and which address on it is whose: pure.

What is wrong is noted in the source that it was read from, and deciding goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import TypeAlias

from fabric.lab.format import PREFIX4, PREFIX6, MgmtFields
from fabric.lab.source import Place, Source

Address: TypeAlias = IPv4Address | IPv6Address
Interface: TypeAlias = IPv4Interface | IPv6Interface
Network: TypeAlias = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Mgmt:
    """The management network: for each prefix, in the same order, the gateway with the prefix's length."""

    name: str = "clab"
    prefixes: tuple[Network, ...] = (PREFIX4, PREFIX6)
    gateways: tuple[Interface, ...] = (IPv4Interface("172.20.20.1/24"), IPv6Interface("3fff:172:20:20::1/64"))
    mtu: int = 1500


@dataclass(frozen=True, slots=True)
class Member:
    """A node as the management network sees it: what it is on, and what it asks for, with where it does."""

    name: str
    network: str
    asks: tuple[tuple[Place, Address], ...] = ()


def network(fields: MgmtFields, source: Source) -> Mgmt:
    """Return the network that the file has; one without subnets has containerlab's."""
    prefixes, gateways = [], []
    both = not fields.ipv4_subnet and not fields.ipv6_subnet
    for version, default in ((4, PREFIX4), (6, PREFIX6)):
        prefix = getattr(fields, f"ipv{version}_subnet") or (default if both else None)
        gateway, pool = getattr(fields, f"ipv{version}_gw"), getattr(fields, f"ipv{version}_range")
        if not prefix:
            if gateway or pool:
                name = f"ipv{version}-gw" if gateway else f"ipv{version}-range"
                source.fault(("mgmt", name), f"there is no ipv{version}-subnet for it")
            continue
        if prefix.num_addresses < 4:
            source.fault(("mgmt", f"ipv{version}-subnet"), f"{prefix} has no room for nodes")
            continue
        if gateway and not _assignable(gateway, prefix):
            source.fault(("mgmt", f"ipv{version}-gw"), f"{gateway} is no address of {prefix}")
        if pool and not pool.subnet_of(prefix):
            source.fault(("mgmt", f"ipv{version}-range"), f"{pool} is not in {prefix}")
        prefixes.append(prefix)
        gateways.append(_on(gateway or prefix.network_address + 1, prefix))
    return Mgmt(fields.network, tuple(prefixes), tuple(gateways), fields.mtu)


def assigned(
    mgmt: Mgmt, fields: MgmtFields, members: Sequence[Member], source: Source
) -> dict[str, tuple[Interface, ...]]:
    """Return what each has on the network: what it asks for, else in the order given what is free.

    One that is on another network has nothing.
    """
    holders: dict[Address, str] = {gateway.ip: "the gateway" for gateway in mgmt.gateways}
    asked = {member.name: list(_granted(member, mgmt, holders, source)) for member in members}
    free = [_free(prefix, fields, holders) for prefix in mgmt.prefixes]
    found: dict[str, tuple[Interface, ...]] = {}
    full: set[Network] = set()
    for member in members:
        addresses = []
        for prefix, pool in zip(mgmt.prefixes, free, strict=True):
            if member.network != "mgmt":
                continue
            own = next((each for each in asked[member.name] if each.version == prefix.version), None)
            if address := own or next(pool, None):
                addresses.append(_on(address, prefix))
            elif prefix not in full:
                at = ("mgmt", f"ipv{prefix.version}-subnet")
                source.fault(at, f"{prefix} has no address left for node {member.name}")
                full.add(prefix)
        found[member.name] = tuple(addresses)
    return found


def _granted(member: Member, mgmt: Mgmt, holders: dict[Address, str], source: Source) -> Iterator[Address]:
    for at, address in member.asks:
        prefix = next((prefix for prefix in mgmt.prefixes if prefix.version == address.version), None)
        if member.network != "mgmt":
            source.fault(at, f"network-mode {member.network} leaves no place for it; remove it")
        elif not prefix or not _assignable(address, prefix):
            source.fault(at, f"{address} is not in {prefix or 'the management network'}")
        elif address in holders:
            source.fault(at, f"{address} is {holders[address]}'s already")
        else:
            holders[address] = f"node {member.name}"
            yield address


def _free(prefix: Network, fields: MgmtFields, holders: Mapping[Address, str]) -> Iterator[Address]:
    pool = getattr(fields, f"ipv{prefix.version}_range")
    pool = pool if pool and pool.subnet_of(prefix) else prefix
    for number in range(int(pool.network_address), int(pool.broadcast_address) + 1):
        address = type(prefix.network_address)(number)
        if _assignable(address, prefix) and address not in holders:
            yield address


def _assignable(address: Address, prefix: Network) -> bool:
    """Return whether a node may have it: in the prefix, neither its first address nor its broadcast."""
    last = prefix.broadcast_address if prefix.version == 4 else None
    return address in prefix and address not in (prefix.network_address, last)


def _on(address: Address, prefix: Network) -> Interface:
    text = f"{address}/{prefix.prefixlen}"
    return IPv4Interface(text) if prefix.version == 4 else IPv6Interface(text)
