"""What a node says of itself: addresses, AS number, tunnels (Calico's Node)."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_interface
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fabric.model.base import Means, Model, Resource, tree
from fabric.model.fields import AddressText, ASNumber, IPv4, IPv4WithPrefix, IPv6, IPv6WithPrefix, Mac


class NodeBGP(Model):
    """`ipv4_address` is the interface's, with the prefix length that CrossSubnet compares by."""

    blank_is_absent: ClassVar = frozenset(
        {"ipv4Address", "ipv6Address", "ipv4IPIPTunnelAddr", "routeReflectorClusterID"}
    )

    as_number: Annotated[ASNumber | None, Means("(the cluster's)")] = None
    ipv4_address: IPv4WithPrefix | None = None
    ipv6_address: IPv6WithPrefix | None = None
    ipv4_ipip_tunnel_addr: IPv4 | None = Field(default=None, alias="ipv4IPIPTunnelAddr")
    route_reflector_cluster_id: IPv4 | None = Field(default=None, alias="routeReflectorClusterID")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not tree(self):
            raise ValueError("must not be empty; leave it out")
        return self


class NodeWireguard(Model):
    blank_is_absent: ClassVar = frozenset({"interfaceIPv4Address", "interfaceIPv6Address"})

    interface_ipv4_address: IPv4 | None = Field(default=None, alias="interfaceIPv4Address")
    interface_ipv6_address: IPv6 | None = Field(default=None, alias="interfaceIPv6Address")


class NodeAddress(Model):
    """One more address of the node; with or without a prefix length, so it stays text."""

    address: AddressText
    type: Literal["CalicoNodeIP", "InternalIP", "ExternalIP"] | None = None


class NodeInterface(Model):
    name: str = ""
    addresses: tuple[AddressText, ...] = ()


class OrchRef(Model):
    node_name: str = ""
    orchestrator: str


class NodeSpec(Model):
    blank_is_absent: ClassVar = frozenset(
        {"ipv4VXLANTunnelAddr", "vxlanTunnelMACAddr", "ipv6VXLANTunnelAddr", "vxlanTunnelMACAddrV6"}
    )

    bgp: NodeBGP | None = None
    ipv4_vxlan_tunnel_addr: IPv4 | None = Field(default=None, alias="ipv4VXLANTunnelAddr")
    vxlan_tunnel_mac_addr: Mac | None = Field(default=None, alias="vxlanTunnelMACAddr")
    ipv6_vxlan_tunnel_addr: IPv6 | None = Field(default=None, alias="ipv6VXLANTunnelAddr")
    vxlan_tunnel_mac_addr_v6: Mac | None = Field(default=None, alias="vxlanTunnelMACAddrV6")
    orch_refs: tuple[OrchRef, ...] = ()
    wireguard: NodeWireguard | None = None
    addresses: tuple[NodeAddress, ...] = ()
    interfaces: tuple[NodeInterface, ...] = ()


class NodeStatus(Model):
    wireguard_public_key: str = ""
    wireguard_public_key_v6: str = Field(default="", alias="wireguardPublicKeyV6")
    pod_cidrs: tuple[str, ...] = Field(default=(), alias="podCIDRs")


class Node(Resource):
    kind: Literal["Node"] = "Node"
    spec: NodeSpec = Field(default_factory=NodeSpec)
    status: NodeStatus = Field(default_factory=NodeStatus)

    @property
    def addresses(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """Its own addresses, IPv4 first; none where it has no part in BGP."""
        bgp = self.spec.bgp
        return tuple(a for a in (bgp.ipv4_address, bgp.ipv6_address) if a) if bgp else ()

    @property
    def sends_from(self) -> frozenset[IPv4Address | IPv6Address]:
        """The addresses that packets of the node itself may come from: its own, and others that it says it has."""
        texts = [one.address for one in self.spec.addresses]
        texts += [text for link in self.spec.interfaces for text in link.addresses]
        named = {held.ip for held in self.addresses}
        for text in texts:
            with suppress(ValueError):  # Calico takes any text there
                named.add(ip_interface(text).ip)
        return frozenset(named)
