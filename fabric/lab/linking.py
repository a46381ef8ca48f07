"""Decide which links a file asks for, and which interfaces its nodes and the host get by them: pure.

What is wrong is noted in the source that it was read from, and deciding goes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from fabric.lab.format import CONTAINER, HOST, MGMT, MTU, BriefLink, EndFields, HostLink, LinkFields
from fabric.lab.management import Interface
from fabric.lab.source import Place, Source

# What the backplane, where the management network's bridge is, calls its own (fabric/lab/wires.py).
_BACKPLANES = re.compile(r"mgmt|m[0-9]+|w[0-9]+[ab]")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a link; `node` may be HOST or MGMT, and `interface` is then one of the host's."""

    node: str
    interface: str
    mac: str = ""
    addresses: tuple[Interface, ...] = ()

    def __str__(self) -> str:
        return f"{self.node}:{self.interface}"


@dataclass(frozen=True, slots=True)
class Link:
    """`a` is a node's end, `b` may be HOST's or MGMT's."""

    a: Endpoint
    b: Endpoint
    mtu: int = MTU


def joined(links: Iterable[LinkFields], networks: Mapping[str, str], source: Source) -> Iterator[Link]:
    """Yield the links whose ends are sound; `networks` says for each node what `Node.network` does."""
    seen: set[tuple[str, str]] = set()
    for i, link in enumerate(links):
        ends = _ends(link, ("topology", "links", i), networks, source)
        if len(ends) == 2:
            for place, end in ends:
                name = (HOST if end.node == MGMT else end.node, end.interface)
                if name in seen:
                    source.fault(place, f"{end} is an end of another link already")
                if end.node == MGMT and _BACKPLANES.fullmatch(end.interface):
                    source.fault(
                        place, f"{end}: the management network has an interface of this name; take another"
                    )
                seen.add(name)
            (_, a), (_, b) = sorted(ends, key=lambda each: each[1].node in (HOST, MGMT))
            yield Link(a, b, link.mtu)


def _ends(
    link: LinkFields, at: Place, networks: Mapping[str, str], source: Source
) -> list[tuple[Place, Endpoint]]:
    """Return the ends that are sound, each with where it stands."""
    if isinstance(link, HostLink):
        near = _end(link.endpoint, (*at, "endpoint"), networks, source)
        far = Endpoint(link.type, link.host_interface)
        return [*near, ((*at, "host-interface"), far)]
    special = (HOST, MGMT) if isinstance(link, BriefLink) else ()
    if link.endpoints[0].node in special and link.endpoints[1].node in special:
        source.fault((*at, "endpoints"), "joins no node; one end at least must be a node's")
        return []
    found = []
    for i, end in enumerate(link.endpoints):
        place = (*at, "endpoints", i)
        given = [address for pair in (link.ipv4, link.ipv6) for address in pair[i : i + 1] if address]
        if end.node not in special:
            found += _end(end, place, networks, source, given)
            continue
        if given:
            source.fault(place, f"{end.node}:{end.interface} is the host's, and is given no address here")
        found.append((place, Endpoint(end.node, end.interface)))
    return found


def _end(
    end: EndFields, at: Place, networks: Mapping[str, str], source: Source, given: Iterable[Interface] = ()
) -> list[tuple[Place, Endpoint]]:
    network = networks.get(end.node)
    if network is None:
        also = "; a link of type host reaches the host" if end.node == HOST else ""
        why = f'there is no node "{end.node}"; links join the nodes of this file only{also}'
    elif network == HOST:
        why = f"node {end.node} is in the host's network: write host:{end.interface}"
    elif network.startswith(CONTAINER):
        why = f"node {end.node} has the interfaces of {network.removeprefix(CONTAINER)}: name that"
    elif network == "mgmt" and end.interface == "eth0":
        why = "eth0 is on the management network; take another, or give the node network-mode: none"
    else:
        own = [address for address in (end.ipv4, end.ipv6) if address]
        addresses = tuple(dict.fromkeys([*own, *given]))
        return [(at, Endpoint(end.node, end.interface, end.mac, addresses))]
    source.fault(at, f'"{end.node}:{end.interface}": {why}')
    return []
