"""Decide which addresses an endpoint is known by, of those that `ip` shows in its namespace."""

from __future__ import annotations

import json
from ipaddress import ip_address

from fabric.lab.topology import Topology

SHOW = ("ip", "-j", "address", "show", "scope", "global")


def usable(shown: str, topology: Topology, family: int | None = None) -> list[str]:
    """Return the addresses in what SHOW printed, those of IPv4 first, or those of `family` alone.

    A tentative one is not the endpoint's yet. One of the management network, its own or that of the node
    whose network it shares, leads round the topology that is to be tested.
    """
    managed = {address.ip for node in topology.nodes for address in node.addresses}
    found = [
        ip_address(info["local"])
        for link in json.loads(shown or "[]")
        for info in link.get("addr_info", ())
        # One that was filtered out is left as {}.
        if "local" in info and not info.get("tentative")
    ]
    kept = [each for each in found if each not in managed and family in (None, each.version)]
    return [str(each) for each in sorted(kept, key=lambda each: each.version)]
