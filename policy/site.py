"""Decide what of a node, beside the policy itself, decides about its packets: settings, failsafe ports, links. Pure.

Settings are Calico's FelixConfiguration, setting by setting: `node.<name>`, else the one whose nodeSelector matches the
node, else `default`. Where several match, the oldest counts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TypeVar

from fabric.model.felixconfiguration import (
    FAILSAFE_IN,
    FAILSAFE_OUT,
    ActingSettings,
    FelixConfiguration,
    ProtoPort,
)
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from policy import selector
from policy.form import PROTOCOLS, Address, Failsafe, Site

T = TypeVar("T")


def layers(
    name: str, labels: Mapping[str, str] | None, configurations: Iterable[FelixConfiguration]
) -> tuple[ActingSettings, ...]:
    """Return the settings that apply to a node, the nearest first; `labels` are None where it has no Node."""
    found = list(configurations)
    by_name = {one.metadata.name: one for one in found}
    matching = [
        one
        for one in found
        if labels is not None
        and one.spec.node_selector
        and selector.parse(one.spec.node_selector).matches(labels)
    ]
    chosen = (by_name.get(f"node.{name}"), min(matching, key=_age, default=None), by_name.get("default"))
    return tuple(one.spec for one in chosen if one)


def first(of: Iterable[ActingSettings], field: Callable[[ActingSettings], T | None], default: T) -> T:
    """Return the nearest setting that is given, or else `default`."""
    return next((value for one in of if (value := field(one)) is not None), default)


def site(
    name: str,
    settings: Iterable[ActingSettings],
    nodes: Iterable[Node],
    pools: Iterable[IPPool],
    *,
    links: Mapping[str, frozenset[Address]],
    routed_before: bool = True,
) -> Site:
    """Return what holds on the node `name`, whose links are `links`."""
    layered = tuple(settings)
    return Site(
        node=name,
        links=links,
        nodes=frozenset(held.ip for node in nodes for held in node.addresses),
        pools=frozenset(pool.spec.cidr for pool in pools),
        to_host=first(layered, lambda s: s.default_endpoint_to_host_action, "Drop"),
        failsafe_in=_failsafes(first(layered, lambda s: s.failsafe_inbound_host_ports, FAILSAFE_IN)),
        failsafe_out=_failsafes(first(layered, lambda s: s.failsafe_outbound_host_ports, FAILSAFE_OUT)),
        vxlan_port=first(layered, lambda s: s.vxlan_port, 4789),
        vxlan_from_workloads=first(layered, lambda s: s.allow_vxlan_packets_from_workloads, False),
        ipip_from_workloads=first(layered, lambda s: s.allow_ipip_packets_from_workloads, False),
        spoofing=first(layered, lambda s: s.workload_source_spoofing, "Disabled") == "Any",
        drop_invalid=not first(layered, lambda s: s.disable_conntrack_invalid_check, False),
        routed_before=routed_before,
        mark_mask=first(layered, lambda s: s.iptables_mark_mask, 0xFFFF0000),
    )


def _failsafes(ports: Iterable[ProtoPort]) -> tuple[Failsafe, ...]:
    return tuple(Failsafe(PROTOCOLS[one.protocol], one.port, one.net) for one in ports)


def _age(found: FelixConfiguration) -> tuple[datetime, str]:
    return found.metadata.creation_timestamp or datetime.max.replace(tzinfo=UTC), found.metadata.name
