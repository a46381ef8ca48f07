"""Decide which BGP sessions this node should have, from the resources (calico-semantics §7, BGPPeer).

The agent's alone: it reads Calico's kinds, which the speaker must not import.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface, ip_address
from typing import TypeAlias

from bgp.rib import Address, SessionSpec
from fabric.model.bgp import BGPConfiguration, BGPPeer, BGPPeerSpec
from fabric.model.node import Node
from policy import selector

Interface: TypeAlias = IPv4Interface | IPv6Interface

DEFAULT_AS = 64512  # Calico's, for nodes and clusters that name none
DEFAULT_PORT = 179
# Fields of a BGPPeer that are read, kept, and change nothing yet.
WITHOUT_EFFECT = (
    *("filters", "ttl_security", "local_as_number", "num_allowed_local_as_numbers", "source_address"),
    *("max_restart_time", "keepalive_time", "peer_selector", "next_hop_mode", "reachable_by"),
    *("keep_original_next_hop", "local_workload_selector", "reverse_peering"),
)


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

    A peer with a password gets none: the session would come up without what was to protect it.
    """
    found: dict[Address, SessionSpec] = {}
    for peer in sorted(peers, key=lambda p: p.metadata.name):
        if selects(peer, me) and (spec := _session(peer, me)):
            found.setdefault(spec.peer, spec)
    return frozenset(found.values())


def problems(me: Local, peers: Iterable[BGPPeer]) -> dict[str, str]:
    """Return, by name, what this node does not do of what the peers that select it ask for."""
    found = {peer.metadata.name: _problem(peer.spec) for peer in peers if selects(peer, me)}
    return {name: why for name, why in found.items() if why}


def _problem(spec: BGPPeerSpec) -> str:
    if spec.password is not None:
        return "password is not supported yet: no session"
    fields = type(spec).model_fields
    ignored = [fields[name].alias for name in WITHOUT_EFFECT if getattr(spec, name)]
    return "; ".join(f"{name} has no effect yet" for name in ignored)


def selects(peer: BGPPeer, me: Local) -> bool:
    """`peer` is meant for this node: named, selected, or global (neither is given)."""
    if peer.spec.node:
        return peer.spec.node == me.name
    if peer.spec.node_selector:
        return selector.parse(peer.spec.node_selector).matches(me.labels)
    return True


def _session(peer: BGPPeer, me: Local) -> SessionSpec | None:
    if not peer.spec.peer_ip or peer.spec.as_number is None or peer.spec.password is not None:
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
        router_id=me.ipv4 or _hashed_id(me.name),
        port=port,
    )


def _hashed_id(name: str) -> IPv4Address:
    """Return the router id of a node without an IPv4 address: never zero, as Calico's `hash` makes it."""
    octets = hashlib.sha256(name.encode()).digest()[:4]
    first = octets[0] if octets[0] < 224 else octets[0] - 32  # some routers refuse a multicast one
    return IPv4Address(int.from_bytes([first, *octets[1:]]) or 1)


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
        ValueError: it is none of them, or an address with a scope id.
    """
    if "%" in text:
        raise ValueError(f"{text!r} has a scope id")
    if text.startswith("["):
        host, _, port = text[1:].partition("]:")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, ""
    return ip_address(host), int(port) if port else DEFAULT_PORT
