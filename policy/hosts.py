"""Decide which host endpoint stands for which link of a node (calico-semantics §4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from policy.form import Address, Endpoint, Key
from policy.world import World

EVERY_LINK: Final = "*"


def active(world: World, node: str, links: Mapping[str, frozenset[Address]]) -> Mapping[str, Endpoint]:
    """Return the one host endpoint of each of `links` that has one of its own; EVERY_LINK is that of the others.

    A link goes by its name, or by an address of its own that an endpoint without a link's name expects. Of several,
    the first by name counts alone.
    """
    found: dict[str, Endpoint] = {}
    for host in world.hosts(node):
        for link in _links_of(host, links):
            found.setdefault(link, host)
    return found


def idle(world: World, node: str, links: Mapping[str, frozenset[Address]]) -> Mapping[Key, str]:
    """Return the host endpoints of `node` that act on no link, and why."""
    used = active(world, node, links)
    acting = {host.key for host in used.values()}
    return {
        host.key: _why_idle(host, node, [used[link] for link in _links_of(host, links)])
        for host in world.hosts(node)
        if host.key not in acting
    }


def _why_idle(host: Endpoint, node: str, instead: list[Endpoint]) -> str:
    if instead:
        return f"{instead[0].key} has the same link, and counts alone: it acts on nothing"
    if host.interface:
        return f"node {node} has no link {host.interface}, or that is a port of a bridge: it acts on nothing"
    return f"node {node} has no link with one of its expectedIPs: it acts on nothing"


def _links_of(host: Endpoint, links: Mapping[str, frozenset[Address]]) -> list[str]:
    if host.interface == EVERY_LINK:
        return [EVERY_LINK]
    if host.interface:
        return [host.interface] if host.interface in links else []
    return [link for link, addresses in links.items() if not addresses.isdisjoint(host.addresses)]
