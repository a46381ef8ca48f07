"""Decide which addresses a node should have a session with, and who asks for each (calico-semantics §7).

BGPPeers and the mesh make claims. Of several for one address the first stands, in this order: global BGPPeers,
those meant for this node, the reverse of those meant for other nodes, the mesh; and by name. A claim that cannot
become a session keeps its address, so that nothing weaker, such as a mesh without a password, takes its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from bgp.members import DEFAULT_AS, DEFAULT_PORT, ASNumber, Member, Members, as_of_label
from bgp.peering import Gateway, Source
from bgp.rib import Address, address_order
from fabric.model import extensions
from fabric.model.bgp import BGPPeer
from policy import selector


@dataclass(frozen=True)
class Claim:
    """One session that `peer`, or for None the mesh, asks for; `other` is the node at its other end, if it is one's.

    `reverse`: the BGPPeer is meant for the other end, which wants the session with this node.
    """

    address: Address
    port: int
    peer: BGPPeer | None
    source: Source
    local_as: ASNumber
    peer_as: ASNumber
    other: Member | None = None
    reverse: bool = False


@dataclass(frozen=True)
class Claims:
    """The claims that stand, by address; `problems` says by BGPPeer why one that is meant for this node makes none."""

    standing: Mapping[Address, Claim]
    problems: Mapping[str, str]


def claims(me: Member, all_members: Members, peers: Iterable[BGPPeer], gateways: Iterable[Gateway]) -> Claims:
    """Return what is claimed on the node `me`; the order of `peers` does not matter."""
    ordered = sorted(peers, key=lambda p: (not is_global(p), p.metadata.name))
    meant = [peer for peer in ordered if selects(peer, me)]
    problems: dict[str, str] = {}
    found: dict[Address, Claim] = {}

    def stake(claim: Claim) -> None:
        standing = found.setdefault(claim.address, claim)
        if standing.peer and claim.peer and standing.port != claim.port and not claim.reverse:
            problems[claim.peer.metadata.name] = (
                f"port {claim.port} of {claim.address} has no session: BGPPeer {standing.peer.metadata.name} "
                f"asks for port {standing.port}, and there is one an address"
            )

    for peer in meant:
        made = _forward(peer, me, all_members, gateways)
        if isinstance(made, str):
            problems[peer.metadata.name] = made
            continue
        for claim in made:
            stake(claim)
    for peer in sorted(ordered, key=lambda p: p.metadata.name):
        for claim in _reverse(peer, me, all_members):
            stake(claim)
    for claim in _mesh(me, all_members):
        stake(claim)
    return Claims(found, problems)


def is_global(peer: BGPPeer) -> bool:
    """Whether it is meant for every node."""
    return not peer.spec.node and not peer.spec.node_selector


def selects(peer: BGPPeer, node: Member) -> bool:
    """Whether `peer` is meant for `node`: named, selected, or global (neither is given)."""
    if peer.spec.node:
        return peer.spec.node == node.name
    return not peer.spec.node_selector or selector.parse(peer.spec.node_selector).matches(node.labels)


def _forward(peer: BGPPeer, me: Member, found: Members, gateways: Iterable[Gateway]) -> list[Claim] | str:
    """The claims of a BGPPeer that is meant for `me`, or why it makes none."""
    spec, said = peer.spec, peer.metadata.annotations
    source = Source.GLOBAL if is_global(peer) else Source.NODE
    local_as = _local_as(peer, me)
    if spec.local_workload_selector:
        return "localWorkloadSelector: peering with workloads is not supported: no session"
    if spec.peer_selector:
        return [
            Claim(address, other.port, peer, source, local_as, _presented(peer, other), other)
            for other in _selected(peer, me, found)
            for address in _shared(me, other)
        ]
    if spec.peer_ip:
        address, port = parse_peer_ip(spec.peer_ip)
        if address in me.addresses.values():
            return []
        if not _names_one_host(address):
            return f"peerIP {address} is not the address of one host, whichever link it is on: no session"
        if address in found.silent:
            return f"peerIP {address} is node {found.silent[address]}'s, on which BGP is off: no session"
        other = found.by_address.get(address)
        peer_as = _peer_as(peer, me, found, other)
        listens = other.port if other and other.as_number == peer_as else DEFAULT_PORT
        return [Claim(address, port or listens, peer, source, local_as, peer_as, other)]
    if said.get(extensions.PEER) == extensions.AUTO_GATEWAY:
        ways = {gateway.address for gateway in gateways if not gateway.address.is_link_local}
        if not ways:
            return "the host has no default gateway, apart from BGP's own: no session"
        peer_as = _peer_as(peer, me, found)
        return [
            Claim(way, DEFAULT_PORT, peer, source, local_as, peer_as, found.by_address.get(way))
            for way in sorted(ways - found.silent.keys(), key=address_order)
        ]
    return f"names no peer: neither peerIP nor peerSelector nor {extensions.PEER}: {extensions.AUTO_GATEWAY}"


def _names_one_host(address: Address) -> bool:
    if address.is_unspecified or address.is_multicast:
        return False
    return address.version == 4 or not (address.is_link_local or address.ipv4_mapped)


def _reverse(peer: BGPPeer, me: Member, found: Members) -> Iterator[Claim]:
    """The claims on `me` of a BGPPeer that leads other nodes here, so that it need not be written twice."""
    spec = peer.spec
    if spec.reverse_peering == "Manual" or spec.local_workload_selector:
        return
    address, port = parse_peer_ip(spec.peer_ip) if spec.peer_ip else (None, 0)
    if spec.peer_selector:
        if not selector.parse(spec.peer_selector).matches(me.labels):
            return
    elif address not in me.addresses.values() or port not in (0, me.port):
        return
    # Where an address is named, asNumber says what is expected of it.
    local_as = _presented(peer, me) if spec.peer_selector else me.as_number
    for other in found.by_name.values():
        if other.name == me.name or not selects(peer, other):
            continue
        if not spec.peer_selector and _peer_as(peer, other, found, me) != local_as:
            continue
        peer_as = _presented(peer, other)
        for theirs in _shared(me, other):
            if address is None or theirs.version == address.version:
                yield Claim(theirs, other.port, peer, Source.NODE, local_as, peer_as, other, reverse=True)


def _mesh(me: Member, found: Members) -> Iterator[Claim]:
    if found.settings.node_to_node_mesh_enabled is False or me.cluster_id:
        return
    for other in found.by_name.values():
        if other.name != me.name and not other.cluster_id:
            for theirs in _shared(me, other):
                yield Claim(theirs, other.port, None, Source.MESH, me.as_number, other.as_number, other)


def _selected(peer: BGPPeer, me: Member, found: Members) -> Iterator[Member]:
    wanted = selector.parse(peer.spec.peer_selector)
    return (m for m in found.by_name.values() if m.name != me.name and wanted.matches(m.labels))


def _shared(me: Member, other: Member) -> list[Address]:
    """The other's addresses, of those families that both have, so that either both have the session or none.

    None where it has no AS number: it has no session then, whatever it is asked for.
    """
    if isinstance(other.as_number, str):
        return []
    return [
        address
        for version, address in sorted(other.addresses.items())
        if version in me.addresses and address not in me.addresses.values()
    ]


def _local_as(peer: BGPPeer, node: Member) -> ASNumber:
    """The AS that `node` presents in the sessions of a BGPPeer that is meant for it."""
    if peer.spec.local_as_number:
        return peer.spec.local_as_number
    key = _label(peer, extensions.LOCAL_AS_LABEL)
    return as_of_label(node.labels, key) if key else node.as_number


def _presented(peer: BGPPeer, other: Member) -> ASNumber:
    """The AS that the node `other` presents in sessions of `peer`, which may be meant for it as well."""
    return _local_as(peer, other) if selects(peer, other) else other.as_number


def _peer_as(peer: BGPPeer, node: Member, found: Members, owner: Member | None = None) -> ASNumber:
    """The AS that `node` expects of the address in `peer`, which may be that of the node `owner`."""
    if peer.spec.as_number:
        return peer.spec.as_number
    if key := _label(peer, extensions.AS_LABEL):
        return as_of_label(node.labels, key)
    # As in Calico, where it is of a node: the cluster's.
    if owner and owner.as_number == (found.settings.as_number or DEFAULT_AS):
        return owner.as_number
    return "asNumber is missing"


def _label(peer: BGPPeer, key: str) -> str:
    return extensions.value(peer.metadata.annotations, key, extensions.label_key, "")


def parse_peer_ip(text: str) -> tuple[Address, int]:
    """Split Calico's `peerIP`, `ADDRESS`, `A.B.C.D:PORT` or `[V6]:PORT`, into address and port, 0 where none is given.

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
    return ip_address(host), int(port) if port else 0
