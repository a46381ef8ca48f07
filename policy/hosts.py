"""Decide which host endpoint stands for which link of a node (calico-semantics §4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from policy.form import Address, Endpoint
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


def _links_of(host: Endpoint, links: Mapping[str, frozenset[Address]]) -> list[str]:
    if host.interface == EVERY_LINK:
        return [EVERY_LINK]
    if host.interface:
        return [host.interface] if host.interface in links else []
    return [link for link, addresses in links.items() if not addresses.isdisjoint(host.addresses)]
