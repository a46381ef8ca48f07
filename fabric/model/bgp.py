"""Decide which BGP settings and peers are valid (Calico's BGPConfiguration and BGPPeer).

Means(…) is what Calico does where the field is absent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fabric.model.base import Means, Model, Resource
from fabric.model.fields import (
    AnyAddress,
    ASNumber,
    Community,
    Duration,
    Flag,
    Int,
    IPv4,
    IPv6,
    LooseNet,
    Name,
    NameOrEmpty,
    PortNumber,
    SelectorText,
    StrictNet,
    broken,
    matching,
    valid_community,
)

IgnoredInterface = Annotated[
    str,
    matching(
        r"(?!\*$)[a-zA-Z0-9_.*-]{1,15}", "must be an interface's name, with * for any text but not alone"
    ),
]
RoutePriority = Annotated[int, Field(strict=True, ge=1, le=2_147_483_646)]


class CIDRBlock(Model):
    """One prefix that service addresses may be announced from."""

    cidr: StrictNet


class NamedCommunity(Model):
    name: Name
    value: Community


def _community_or_name(text: str) -> str:
    return valid_community(text) if ":" in text else text


CommunityOrName = Annotated[str, AfterValidator(_community_or_name)]


class PrefixAdvertisement(Model):
    """`communities` are values, or names that the configuration's `communities` define."""

    cidr: LooseNet
    communities: tuple[CommunityOrName, ...] = ()


class Password(Model):
    secret_key_ref: Mapping[str, Any] | None = None


class BGPConfigurationSpec(Model):
    blank_is_absent: ClassVar = frozenset(
        {"logSeverityScreen", "localWorkloadPeeringIPV4", "localWorkloadPeeringIPV6"}
    )

    log_severity_screen: Literal["Trace", "Debug", "Info", "Warning", "Error", "Fatal"] = "Info"
    node_to_node_mesh_enabled: Annotated[Flag | None, Means(True)] = None
    as_number: Annotated[ASNumber | None, Means(64512)] = None
    service_load_balancer_ips: tuple[CIDRBlock, ...] = Field(default=(), alias="serviceLoadBalancerIPs")
    service_external_ips: tuple[CIDRBlock, ...] = Field(default=(), alias="serviceExternalIPs")
    service_cluster_ips: tuple[CIDRBlock, ...] = Field(default=(), alias="serviceClusterIPs")
    service_load_balancer_aggregation: Literal["Enabled", "Disabled"] = "Enabled"
    communities: tuple[NamedCommunity, ...] = ()
    prefix_advertisements: tuple[PrefixAdvertisement, ...] = ()
    listen_port: Annotated[PortNumber | None, Means(179)] = None
    node_mesh_password: Password | None = None
    node_mesh_max_restart_time: Annotated[Duration | None, Means("120s")] = None
    bind_mode: Annotated[Literal["None", "NodeIP"] | None, Means("None")] = None
    ignored_interfaces: tuple[IgnoredInterface, ...] = ()
    local_workload_peering_ipv4: IPv4 | None = Field(default=None, alias="localWorkloadPeeringIPV4")
    local_workload_peering_ipv6: IPv6 | None = Field(default=None, alias="localWorkloadPeeringIPV6")
    program_cluster_routes: Annotated[
        Literal["Enabled", "Disabled", "EnabledIPIPOnly", "EnabledNoEncapOnly"] | None,
        Means("EnabledNoEncapOnly"),
    ] = None
    ipv4_normal_route_priority: Annotated[RoutePriority | None, Means(1024)] = None
    ipv6_normal_route_priority: Annotated[RoutePriority | None, Means(1024)] = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.node_to_node_mesh_enabled is False:
            for name, value in {
                "nodeMeshPassword": self.node_mesh_password,
                "nodeMeshMaxRestartTime": self.node_mesh_max_restart_time,
            }.items():
                if value:
                    raise broken("needs nodeToNodeMeshEnabled", name)
        if self.communities and not self.prefix_advertisements:
            rule = "are named and no prefixAdvertisements use them"
            raise broken(rule, "communities", needs=("prefixAdvertisements",))
        names = {community.name for community in self.communities}
        for index, advertisement in enumerate(self.prefix_advertisements):
            for text in advertisement.communities:
                if ":" not in text and text not in names:
                    rule = "names no community of this configuration"
                    raise broken(
                        rule,
                        "prefixAdvertisements",
                        index,
                        "communities",
                        value=text,
                        needs=("communities",),
                    )
        return self


class BGPConfiguration(Resource):
    """`default` is the cluster's; of one named `node.<name>` only prefixAdvertisements, listenPort and
    logSeverityScreen count, for that node; any other name counts for nothing.
    """

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


PeerIP = Annotated[str, AfterValidator(_peer_ip)]


class BGPPeerSpec(Model):
    """`peer_ip` stays text, since it may carry a port. An absent `source_address` means UseNodeIP."""

    blank_is_absent: ClassVar = frozenset({"peerIP", "sourceAddress", "reachableBy"})

    node: NameOrEmpty = ""
    node_selector: SelectorText = ""
    peer_ip: PeerIP | None = Field(default=None, alias="peerIP")
    as_number: ASNumber | None = None
    peer_selector: SelectorText = ""
    local_workload_selector: SelectorText = ""
    local_as_number: Annotated[ASNumber | None, Means("(the node's)")] = Field(
        default=None, alias="localASNumber"
    )
    keep_original_next_hop: Flag = False
    next_hop_mode: Annotated[Literal["Auto", "Self", "Keep"] | None, Means("Auto")] = None
    password: Password | None = None
    source_address: Annotated[Literal["UseNodeIP", "None"] | None, Means("UseNodeIP")] = None
    max_restart_time: Annotated[Duration | None, Means("120s")] = None
    keepalive_time: Annotated[Duration | None, Means("(a third of the hold time)")] = None
    num_allowed_local_as_numbers: Annotated[Int | None, Means(0)] = Field(
        default=None, alias="numAllowedLocalASNumbers"
    )
    ttl_security: Annotated[int, Field(strict=True, ge=0, le=255)] | None = None
    reachable_by: AnyAddress | None = None
    filters: tuple[Name, ...] = ()
    reverse_peering: Annotated[Literal["Auto", "Manual"] | None, Means("Auto")] = None

    @model_validator(mode="after")
    def _names_one_peer(self) -> Self:
        if self.node and self.node_selector:
            raise broken("excludes node", "nodeSelector", value=self.node_selector)
        if self.peer_selector and (self.peer_ip is not None or self.as_number):
            rule = "excludes peerIP and asNumber, which come from the nodes selected"
            raise broken(rule, "peerSelector", value=self.peer_selector)
        if self.local_workload_selector and not self.as_number:
            raise broken("needs asNumber", "localWorkloadSelector", needs=("asNumber",))
        if self.local_workload_selector and (self.peer_ip is not None or self.peer_selector):
            raise broken("excludes peerIP and peerSelector", "localWorkloadSelector")
        if self.keep_original_next_hop and self.next_hop_mode is not None:
            raise broken("excludes nextHopMode; use nextHopMode alone", "keepOriginalNextHop", value=True)
        gateway = self.reachable_by
        if gateway and self.peer_ip is None:
            raise broken("needs peerIP", "reachableBy", value=gateway, needs=("peerIP",))
        if gateway and self.peer_ip and (gateway.version == 6) != (self.peer_ip.count(":") > 1):
            raise broken(f"is not of the family of peerIP {self.peer_ip}", "reachableBy", value=gateway)
        return self


class BGPPeer(Resource):
    kind: Literal["BGPPeer"] = "BGPPeer"
    spec: BGPPeerSpec = Field(default_factory=BGPPeerSpec)
