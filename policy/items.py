"""Decide what of an endpoint or of a network set policy goes by: labels, addresses, ports, and who may send for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import TypeAlias

from fabric.model.base import Resource
from fabric.model.hostendpoint import HostEndpoint
from fabric.model.kinds import named
from fabric.model.namespaces import profile_name
from fabric.model.networkset import GlobalNetworkSet, NetworkSet
from fabric.model.workloadendpoint import (
    NAMESPACE_LABEL,
    ORCHESTRATOR_LABEL,
    SERVICE_ACCOUNT_LABEL,
    WorkloadEndpoint,
    WorkloadEndpointSpec,
    name_fields,
)
from policy.form import Endpoint, Key, Labels, NamedPort, Prefix
from policy.labels import effective
from policy.rules import ProfileForm, number_of

Selectable: TypeAlias = WorkloadEndpoint | HostEndpoint | NetworkSet | GlobalNetworkSet
Container: TypeAlias = tuple[str, str, str, str]  # namespace, node, orchestrator and its own name

DEFAULT_NAMESPACE = "default"


def key(resource: Resource) -> Key:
    """Return the key of `resource`; a namespaced one that names no namespace is of "default"."""
    kind = named(resource.kind)
    namespace = (resource.metadata.namespace or DEFAULT_NAMESPACE) if kind and kind.namespaced else ""
    return Key(resource.kind, namespace, resource.metadata.name)


@dataclass(frozen=True, slots=True)
class Item:
    """What selectors select: an endpoint, or a network set. `profiles` and `node` have handed on to it."""

    resource: Selectable
    labels: Labels
    nets: frozenset[Prefix]
    profiles: tuple[str, ...]
    node: str = ""
    container: Container | None = None
    endpoint: Endpoint | None = None

    @property
    def offers(self) -> object:
        """What it adds to the sets that it is in."""
        return self.nets, self.endpoint.ports if self.endpoint else ()

    def with_siblings(self, nets: Iterable[Prefix]) -> Item:
        """Return it where the rest of its container has `nets`: the container's every address is its own."""
        if not self.endpoint:
            return self
        others = set(nets) - self.nets
        shared = tuple(sorted(others, key=lambda net: (net.version, net.network_address, net.prefixlen)))
        if shared == self.endpoint.shared:
            return self
        return replace(self, endpoint=replace(self.endpoint, shared=shared))


def item(resource: Selectable, profiles: Mapping[str, ProfileForm], logging_nodes: frozenset[str]) -> Item:
    """Return what of `resource` counts; `logging_nodes` are those that have all drops named."""
    found = key(resource)
    # A set is given its namespace's labels without naming the profile.
    space = (profile_name(found.namespace),) if found.namespace else ()
    if isinstance(resource, NetworkSet | GlobalNetworkSet):
        labels = _labels(resource, found, space, profiles)
        return Item(resource, labels, frozenset(resource.spec.nets), space)
    spec = resource.spec
    labels = _labels(resource, found, spec.profiles, profiles)
    if isinstance(spec, WorkloadEndpointSpec):
        nets, container, spoofed = (
            spec.ip_networks,
            _container(found.namespace, spec),
            spec.allow_spoofed_source_prefixes,
        )
    else:
        nets, container, spoofed = tuple(map(ip_network, spec.expected_ips)), None, ()
    logged = spec.node in logging_nodes or any(name in profiles and profiles[name].drop_log for name in space)
    endpoint = Endpoint(
        key=found,
        node=spec.node,
        interface=spec.interface_name or "",
        addresses=frozenset(net.network_address for net in nets),
        labels=labels,
        profiles=spec.profiles,
        # A port without a name is only mapped to one of the host.
        ports=tuple(
            NamedPort(port.name, number_of(port.protocol), port.port) for port in spec.ports if port.name
        ),
        spoofed=spoofed,
        drop_log=logged,
    )
    return Item(resource, labels, frozenset(nets), (*spec.profiles, *space), spec.node, container, endpoint)


def _labels(
    resource: Selectable, found: Key, inherited: Iterable[str], profiles: Mapping[str, ProfileForm]
) -> dict[str, str]:
    derived = {NAMESPACE_LABEL: found.namespace} if found.namespace else {}
    if isinstance(resource, WorkloadEndpoint):
        # Also where it is empty: that is what tells a workload from a set.
        derived[ORCHESTRATOR_LABEL] = resource.spec.orchestrator
        if resource.spec.service_account_name:
            derived[SERVICE_ACCOUNT_LABEL] = resource.spec.service_account_name
    handed_on = [profiles[name].labels for name in inherited if name in profiles]
    return effective(resource.metadata.labels, derived, handed_on, in_namespace=bool(found.namespace))


def _container(namespace: str, spec: WorkloadEndpointSpec) -> Container | None:
    """Return whose endpoint it is; None where its name does not tell."""
    told = {"pod": spec.pod, "containerID": spec.container_id, "workload": spec.workload}
    name = told.get(name_fields(spec.orchestrator)[-2])
    return (namespace, spec.node, spec.orchestrator, name) if name else None
