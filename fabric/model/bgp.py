"""Decide which BGP settings and peers are valid (Calico's BGPConfiguration and BGPPeer)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fabric.model.base import Model, Resource
from fabric.model.fields import (
    AnyAddress,
    AnyPrefix,
    ASNumber,
    Community,
    Duration,
    Flag,
    Int,
    IPv4,
    IPv6,
    Name,
    SelectorText,
)

ListenPort = Annotated[int, Field(strict=True, ge=1, le=65535)]


class CIDRBlock(Model):
    """One prefix that service addresses may be announced from."""

    cidr: AnyPrefix


class NamedCommunity(Model):
    name: str
    value: Community


class PrefixAdvertisement(Model):
    """`communities` are values, or names that the configuration's `communities` define."""

    cidr: AnyPrefix
    communities: tuple[str, ...] = ()


class Password(Model):
    secret_key_ref: Mapping[str, Any] | None = None


class BGPConfigurationSpec(Model):
    log_severity_screen: Literal["Debug", "Info", "Warning", "Error", "Fatal"] = "Info"
    node_to_node_mesh_enabled: Flag | None = None
    as_number: ASNumber | None = None
    service_load_balancer_ips: tuple[CIDRBlock, ...] = Field(default=(), alias="serviceLoadBalancerIPs")
    service_external_ips: tuple[CIDRBlock, ...] = Field(default=(), alias="serviceExternalIPs")
    service_cluster_ips: tuple[CIDRBlock, ...] = Field(default=(), alias="serviceClusterIPs")
    service_load_balancer_aggregation: Literal["Enabled", "Disabled"] = "Enabled"
    communities: tuple[NamedCommunity, ...] = ()
    prefix_advertisements: tuple[PrefixAdvertisement, ...] = ()
    listen_port: ListenPort | None = None
    node_mesh_password: Password | None = None
    node_mesh_max_restart_time: Duration | None = None
    bind_mode: Literal["None", "NodeIP"] | None = None
    ignored_interfaces: tuple[str, ...] = ()
    local_workload_peering_ipv4: IPv4 | None = Field(default=None, alias="localWorkloadPeeringIPV4")
    local_workload_peering_ipv6: IPv6 | None = Field(default=None, alias="localWorkloadPeeringIPV6")
    program_cluster_routes: Literal["Enabled", "Disabled", "EnabledIPIPOnly", "EnabledNoEncapOnly"] | None = (
        None
    )
    ipv4_normal_route_priority: Int | None = None
    ipv6_normal_route_priority: Int | None = None


class BGPConfiguration(Resource):
    """Named `default`, or `node.<name>` for one node's own (which may set only a few of these)."""

    kind: Literal["BGPConfiguration"] = "BGPConfiguration"
    spec: BGPConfigurationSpec = Field(default_factory=BGPConfigurationSpec)


def _peer_ip(text: str) -> str:
    rule = "must be ADDRESS, A.B.C.D:PORT or [V6]:PORT, with a port of 1 to 65535"
    found = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](?::([0-9]{1,5}))?|([0-9.]+):([0-9]{1,5})|(.+)", text)
    if not found:
        raise ValueError(rule)
    if "%" in text:
        raise ValueError(f'{rule}, and without a scope id ("%")')
    try:
        address = ip_address(found[1] or found[3] or found[5])
    except ValueError:
        raise ValueError(rule) from None
    port = found[2] or found[4]
    if (found[1] and not (port and address.version == 6)) or (port and not 1 <= int(port) <= 65535):
        raise ValueError(rule)
    return text


class BGPPeerSpec(Model):
    """`peer_ip` stays text, since it may carry a port. An absent `source_address` means UseNodeIP."""

    node: str = ""
    node_selector: SelectorText = ""
    peer_ip: Annotated[str, AfterValidator(_peer_ip)] | None = Field(default=None, alias="peerIP")
    as_number: ASNumber | None = None
    peer_selector: SelectorText = ""
    local_workload_selector: SelectorText = ""
    local_as_number: ASNumber | None = Field(default=None, alias="localASNumber")
    keep_original_next_hop: Flag = False
    next_hop_mode: Literal["Auto", "Self", "Keep"] | None = None
    password: Password | None = None
    source_address: Literal["UseNodeIP", "None"] | None = None
    max_restart_time: Duration | None = None
    keepalive_time: Duration | None = None
    num_allowed_local_as_numbers: Int | None = Field(default=None, alias="numAllowedLocalASNumbers")
    ttl_security: Annotated[int, Field(strict=True, ge=0, le=255)] | None = None
    reachable_by: AnyAddress | None = None
    filters: tuple[Name, ...] = ()
    reverse_peering: Literal["Auto", "Manual"] | None = None

    @model_validator(mode="after")
    def _names_one_peer(self) -> Self:
        if self.node and self.node_selector:
            raise ValueError("node and nodeSelector exclude each other")
        by_address = self.peer_ip is not None or self.as_number is not None
        if self.peer_selector and by_address:
            raise ValueError("peerSelector excludes peerIP and asNumber, which come from the nodes selected")
        if self.local_workload_selector and self.as_number is None:
            raise ValueError("localWorkloadSelector needs asNumber")
        gateway = self.reachable_by
        if gateway and self.peer_ip and (gateway.version == 6) != (self.peer_ip.count(":") > 1):
            raise ValueError(f"reachableBy {gateway} is not of the family of peerIP {self.peer_ip}")
        return self


class BGPPeer(Resource):
    kind: Literal["BGPPeer"] = "BGPPeer"
    spec: BGPPeerSpec = Field(default_factory=BGPPeerSpec)
