"""Decide which BGP sessions this node should have, from the resources (calico-semantics §7, BGPPeer).

The agent's alone: it reads Calico's kinds, which the speaker must not import.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface, ip_address
from typing import TypeAlias

from bgp.rib import Address, SessionSpec
from fabric.model.bgp import BGPConfiguration, BGPPeer
from fabric.model.node import Node
from policy import selector

Interface: TypeAlias = IPv4Interface | IPv6Interface

DEFAULT_AS = 64512  # Calico's, for nodes and clusters that name none
DEFAULT_PORT = 179


@dataclass(frozen=True, slots=True)
class Local:
    """What sessions need to know of this node; `addresses` are the host's own, with prefix lengths."""

    name: str
    labels: Mapping[str, str]
    as_number: int
    ipv4: IPv4Address | None
    ipv6: Address | None
    addresses: tuple[Interface, ...]


def local(node: Node, configuration: BGPConfiguration | None, addresses: Iterable[Interface]) -> Local | None:
    """Return the facts of `node` that sessions are made of, or None where it takes no part in BGP."""
    if (bgp := node.spec.bgp) is None:
        return None
    cluster_as = configuration.spec.as_number if configuration else None
    return Local(
        name=node.metadata.name,
        labels=node.metadata.labels,
        as_number=bgp.as_number or cluster_as or DEFAULT_AS,
        ipv4=bgp.ipv4_address.ip if bgp.ipv4_address else None,
        ipv6=bgp.ipv6_address.ip if bgp.ipv6_address else None,
        addresses=tuple(sorted(addresses, key=str)),
    )


def sessions(me: Local, peers: Iterable[BGPPeer]) -> frozenset[SessionSpec]:
    """Return this node's sessions: one for each BGPPeer that selects it and has an address of its own.

    An address given twice is one session, whatever the ports, since everything that follows knows a peer
    by its address; the resource whose name sorts first gives the settings.
    """
    found: dict[Address, SessionSpec] = {}
    for peer in sorted(peers, key=lambda p: p.metadata.name):
        if selects(peer, me) and (spec := _session(peer, me)):
            found.setdefault(spec.peer, spec)
    return frozenset(found.values())


def selects(peer: BGPPeer, me: Local) -> bool:
    """`peer` is meant for this node: named, selected, or global (neither is given)."""
    if peer.spec.node:
        return peer.spec.node == me.name
    if peer.spec.node_selector:
        return selector.parse(peer.spec.node_selector).matches(me.labels)
    return True


def _session(peer: BGPPeer, me: Local) -> SessionSpec | None:
    if not peer.spec.peer_ip or peer.spec.as_number is None:
        return None
    address, port = parse_peer_ip(peer.spec.peer_ip)
    source = source_for(address, me)
    if source is None or address in {me.ipv4, me.ipv6, *(interface.ip for interface in me.addresses)}:
        return None
    return SessionSpec(
        peer=address,
        peer_as=peer.spec.as_number,
        source=source,
        local_as=me.as_number,
        router_id=me.ipv4 or IPv4Address(int(me.ipv6 or 0) & 0xFFFFFFFF),
        port=port,
    )


def source_for(peer: Address, me: Local) -> Address | None:
    """Return the session's source and next hop.

    A peer on a link of its own gets that link's address; otherwise the node's address of its family,
    or None where the node has none.
    """
    on_link = [
        interface
        for interface in me.addresses
        if interface.version == peer.version and peer in interface.network and peer != interface.ip
    ]
    if on_link:
        return max(on_link, key=lambda i: i.network.prefixlen).ip
    return me.ipv4 if peer.version == 4 else me.ipv6


def parse_peer_ip(text: str) -> tuple[Address, int]:
    """Split Calico's `peerIP`, `ADDRESS`, `A.B.C.D:PORT` or `[V6]:PORT`, into address and port.

    Raises:
        ValueError: it is none of them.
    """
    if text.startswith("["):
        host, _, port = text[1:].partition("]:")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, ""
    return ip_address(host), int(port) if port else DEFAULT_PORT
