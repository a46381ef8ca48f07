"""The address types of this package; values are `ipaddress` objects from the edge inwards."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Prefix: TypeAlias = IPv4Network | IPv6Network


def order(prefix: Prefix) -> tuple[int, int, int]:
    """Return what prefixes of both families sort by; `ipaddress` refuses to compare v4 with v6."""
    return prefix.version, int(prefix.network_address), prefix.prefixlen
