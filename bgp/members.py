"""Decide what each node is to BGP: its AS, its addresses, its port, the cluster that it reflects for.

From Node and BGPConfiguration (calico-semantics §7, Node basics). Of a BGPConfiguration named node.NAME only the
listen port counts here; everything else is the cluster's, in the one named default.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_interface
from typing import TypeAlias

from bgp.peering import Here, Uplink
from bgp.rib import Address
from fabric.model import extensions
from fabric.model.bgp import BGPConfiguration, BGPConfigurationSpec
from fabric.model.fields import valid_as_number
from fabric.model.node import Node

DEFAULT_AS = 64512  # Calico's, for nodes and clusters that name none
DEFAULT_PORT = 179

# An AS number, or why there is none.
ASNumber: TypeAlias = int | str


@dataclass(frozen=True)
class Member:
    """What one node is to BGP; `addresses` by IP version."""

    name: str
    labels: Mapping[str, str]
    as_number: ASNumber
    addresses: Mapping[int, Address]
    port: int = DEFAULT_PORT
    cluster_id: IPv4Address | None = None

    @property
    def router_id(self) -> IPv4Address:
        """Its IPv4 address, or without one an id that is made of its name."""
        own = self.addresses.get(4)
        return own if isinstance(own, IPv4Address) else hashed_id(self.name)


@dataclass(frozen=True)
class Members:
    """The cluster's settings, and its nodes that take part, by name and by address.

    `silent` names the nodes that take none, though they have addresses: with those nobody has a session.
    """

    settings: BGPConfigurationSpec
    annotations: Mapping[str, str]
    by_name: Mapping[str, Member]
    by_address: Mapping[Address, Member] = field(default_factory=dict)
    silent: Mapping[Address, str] = field(default_factory=dict)


def members(nodes: Iterable[Node], configurations: Iterable[BGPConfiguration]) -> Members:
    """Return the nodes that have a BGP part, in the order of their names."""
    by_name = {c.metadata.name: c for c in configurations}
    cluster = by_name.get("default")
    settings = cluster.spec if cluster else BGPConfigurationSpec()
    said = cluster.metadata.annotations if cluster else {}
    found: dict[str, Member] = {}
    silent: dict[Address, str] = {}
    for node in sorted(nodes, key=lambda n: n.metadata.name):
        if (bgp := node.spec.bgp) is None:
            continue
        if is_silent(node):
            silent |= {held.ip: node.metadata.name for held in node.addresses}
            continue
        own = by_name.get(f"node.{node.metadata.name}")
        found[node.metadata.name] = Member(
            name=node.metadata.name,
            labels=node.metadata.labels,
            as_number=bgp.as_number or _cluster_as(settings, said, node),
            addresses={interface.version: interface.ip for interface in node.addresses},
            port=(own and own.spec.listen_port) or settings.listen_port or DEFAULT_PORT,
            cluster_id=bgp.route_reflector_cluster_id,
        )
    by_address: dict[Address, Member] = {}
    for member in found.values():
        for address in member.addresses.values():
            by_address.setdefault(address, member)
    silent = {address: name for address, name in silent.items() if address not in by_address}
    return Members(settings, said, found, by_address, silent)


def is_silent(node: Node) -> bool:
    """Whether the node has no session, by `bgp: off` in its configuration, which it notes."""
    return not extensions.value(node.metadata.annotations, extensions.BGP, extensions.switch, default=True)


def as_told(node: Node) -> tuple[Here, tuple[str, ...]]:
    """Return what a Node says of its host's links, for who is not there, and what of that cannot be read."""
    uplinks, loopback, wrong = [], set(), []
    for link in node.spec.interfaces:
        for text in link.addresses:
            try:
                address = ip_interface(text)
            except ValueError:
                wrong.append(f'spec.interfaces: {link.name}: "{text}" is no address with a prefix length')
                continue
            if link.name != "lo":
                uplinks.append(Uplink(link.name, address))
            elif address.network.prefixlen == address.max_prefixlen:
                loopback.add(address.ip)
    return Here(tuple(uplinks), loopback=frozenset(loopback)), tuple(wrong)


def hashed_id(name: str) -> IPv4Address:
    """Return the router id that Calico's CALICO_ROUTER_ID=hash makes of a node's name; never zero."""
    octets = hashlib.sha256(name.encode()).digest()[:4]
    first = octets[0] if octets[0] < 224 else octets[0] - 32  # some routers refuse a multicast one
    return IPv4Address(int.from_bytes([first, *octets[1:]]) or 1)


def as_of_label(labels: Mapping[str, str], key: str) -> ASNumber:
    """Return the AS number that the label `key` of a node holds, or why it holds none."""
    if key not in labels:
        return f"the node has no label {key}"
    try:
        return valid_as_number(labels[key])
    except ValueError:
        return f'the node\'s label {key}, "{labels[key]}", is no AS number'


def _cluster_as(settings: BGPConfigurationSpec, said: Mapping[str, str], node: Node) -> ASNumber:
    key = extensions.value(said, extensions.AS_LABEL, extensions.label_key, "")
    if extensions.AS_LABEL not in said:
        return settings.as_number or DEFAULT_AS
    return as_of_label(node.metadata.labels, key) if key else f"{extensions.AS_LABEL} names no label"
