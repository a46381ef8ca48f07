"""Resources for tests of policy, in few words, read as a stored one is."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import TypeVar

from fabric.model.base import API_VERSION, Resource
from fabric.model.hostendpoint import HostEndpoint
from fabric.model.networkset import GlobalNetworkSet, NetworkSet
from fabric.model.node import Node
from fabric.model.policy import GlobalNetworkPolicy, NetworkPolicy
from fabric.model.profile import Profile
from fabric.model.tier import Tier
from fabric.model.wire import from_tree
from fabric.model.workloadendpoint import WorkloadEndpoint
from policy.form import Address, Key

R = TypeVar("R", bound=Resource)
Labels = Mapping[str, str]

ALLOW = {"action": "Allow"}


def read(cls: type[R], name: str, spec: object, **metadata: object) -> R:
    """Return the resource of that kind, as its JSON would be read from the store."""
    tree = {
        "apiVersion": API_VERSION,
        "kind": cls.__name__,
        "metadata": {"name": name, **metadata},
        "spec": spec,
    }
    found = from_tree(tree)
    assert isinstance(found, cls), found
    return found


def workload(
    name: str,
    *addresses: str,
    namespace: str = "default",
    labels: Labels | None = None,
    node: str = "n1",
    interface: str = "eth0",
    profiles: tuple[str, ...] | None = None,
    ports: Mapping[str, int] | None = None,
    **spec: object,
) -> WorkloadEndpoint:
    """Return the endpoint of one container; `ports` are of TCP."""
    orchestrator = spec.setdefault("orchestrator", "fabricctl")
    return read(
        WorkloadEndpoint,
        f"{node}-{orchestrator}-{name}-{interface}",
        {
            "node": node,
            "workload": name,
            "endpoint": interface,
            "interfaceName": f"fab{name}{interface}",
            "ipNetworks": [str(ip_address(each)) for each in addresses],
            "profiles": [f"kns.{namespace}"] if profiles is None else list(profiles),
            "ports": [{"name": key, "protocol": "TCP", "port": port} for key, port in (ports or {}).items()],
            **spec,
        },
        namespace=namespace,
        labels=dict(labels or {}),
    )


def workload_key(name: str, namespace: str = "default", node: str = "n1", interface: str = "eth0") -> Key:
    """Return the key of what `workload` makes."""
    return Key("WorkloadEndpoint", namespace, f"{node}-fabricctl-{name}-{interface}")


def host(name: str, node: str = "n1", labels: Labels | None = None, **spec: object) -> HostEndpoint:
    return read(HostEndpoint, name, {"node": node, **spec}, labels=dict(labels or {}))


def policy(name: str, namespace: str = "default", **spec: object) -> NetworkPolicy:
    return read(NetworkPolicy, name, spec, namespace=namespace)


def global_policy(name: str, **spec: object) -> GlobalNetworkPolicy:
    return read(GlobalNetworkPolicy, name, spec)


def staged(cls: type[R], name: str, **spec: object) -> R:
    """Return a staged policy of that kind, in the namespace "default" where it is in one."""
    placed = {} if "Global" in cls.__name__ else {"namespace": "default"}
    return read(cls, name, spec, **placed)


def tier(name: str, order: float | None = None, action: str = "Deny") -> Tier:
    return read(Tier, name, {"defaultAction": action, **({} if order is None else {"order": order})})


def profile(
    name: str, labels: Labels | None = None, more: Mapping[str, object] | None = None, **metadata: object
) -> Profile:
    """Return a profile that allows all both ways; `more` is what the rule for what comes in says more."""
    spec = {"ingress": [{**ALLOW, **(more or {})}], "egress": [ALLOW], "labelsToApply": dict(labels or {})}
    return read(Profile, name, spec, **metadata)


def namespace(name: str, **labels: str) -> Profile:
    """Return what a namespace is stored as."""
    return profile(
        f"kns.{name}", {"pcns.projectcalico.org/name": name, **{f"pcns.{k}": v for k, v in labels.items()}}
    )


def net_set(name: str, *nets: str, namespace: str = "default", labels: Labels | None = None) -> NetworkSet:
    return read(NetworkSet, name, {"nets": list(nets)}, namespace=namespace, labels=dict(labels or {}))


def global_net_set(name: str, *nets: str, labels: Labels | None = None) -> GlobalNetworkSet:
    return read(GlobalNetworkSet, name, {"nets": list(nets)}, labels=dict(labels or {}))


def node(name: str, **annotations: str) -> Node:
    return read(
        Node, name, {}, annotations={f"fabricctl.io/{k.replace('_', '-')}": v for k, v in annotations.items()}
    )


def address(text: str) -> Address:
    return ip_address(text)
