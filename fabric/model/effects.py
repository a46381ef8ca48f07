"""Say what of a resource is kept and changes nothing here: what acts is listed, so a new field counts as inert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from pydantic.fields import FieldInfo

from fabric.model.base import Means, Model, Resource
from fabric.model.bgp import BGPConfiguration, BGPPeer
from fabric.model.clusterinformation import ClusterInformation
from fabric.model.felixconfiguration import FelixConfiguration
from fabric.model.ipamconfiguration import IPAMConfiguration
from fabric.model.ippool import IPPool
from fabric.model.ipreservation import IPReservation
from fabric.model.node import Node
from fabric.model.workloadendpoint import WorkloadEndpoint

# A kind that is not here acts on nothing. A path stands for everything below it.
ACTING: Final[Mapping[type[Resource], frozenset[str]]] = {
    BGPConfiguration: frozenset({"spec.asNumber"}),
    BGPPeer: frozenset({"spec.node", "spec.nodeSelector", "spec.peerIP", "spec.asNumber"}),
    ClusterInformation: frozenset(
        {"spec.clusterGUID", "spec.clusterType", "spec.calicoVersion", "spec.datastoreReady", "spec.variant"}
    ),
    FelixConfiguration: frozenset(
        {"spec.nodeSelector", "spec.routeRefreshInterval", "spec.ipForwarding", "spec.logSeverityScreen"}
    ),
    IPAMConfiguration: frozenset(
        {
            "spec.strictAffinity",
            "spec.maxBlocksPerHost",
            "spec.autoAllocateBlocks",
            "spec.ipCooldownSeconds",
        }
    ),
    IPPool: frozenset(
        {
            "spec.cidr",
            "spec.blockSize",
            "spec.disabled",
            "spec.disableBGPExport",
            "spec.nodeSelector",
            "spec.namespaceSelector",
            "spec.allowedUses",
            "spec.assignmentMode",
        }
    ),
    IPReservation: frozenset({"spec.reservedCIDRs"}),
    Node: frozenset({"spec.bgp.asNumber", "spec.bgp.ipv4Address", "spec.bgp.ipv6Address"}),
    WorkloadEndpoint: frozenset(
        {
            "spec.orchestrator",
            "spec.workload",
            "spec.node",
            "spec.containerID",
            "spec.pod",
            "spec.endpoint",
            "spec.ipNetworks",
            "spec.interfaceName",
            "spec.mac",
        }
    ),
}

# What asks for no more than is done anyway, where that is not what Calico does when the field is absent.
_DONE_ANYWAY: Final[Mapping[tuple[type[Resource], str], object]] = {
    (BGPConfiguration, "spec.nodeToNodeMeshEnabled"): False,
}

# What acts only in part, and how.
_IN_PART: Final[Mapping[tuple[str, str], str]] = {
    ("IPPool", path): "gives nodes tunnel addresses; traffic is not tunnelled yet"
    for path in ("spec.ipipMode", "spec.vxlanMode")
}

WHOLE = ""


def not_used(resource: Resource) -> tuple[str, ...]:
    """Return the paths of what is given in `resource`, differs from its default, and changes nothing here.

    The path WHOLE alone means that nothing acts on the resource at all: on its kind, or on one of its name.
    """
    kind = type(resource)
    if kind not in ACTING or _nobody_reads(resource):
        return (WHOLE,)
    acting = ACTING[kind]
    spec: Model = getattr(resource, "spec")  # noqa: B009
    if isinstance(resource, BGPConfiguration) and resource.metadata.name != "default":
        mesh = "spec.nodeToNodeMeshEnabled"  # the cluster's alone, so any value asks for what is not done
        inert = _inert(kind, spec, "spec", frozenset({mesh}))
        return (*((mesh,) if resource.spec.node_to_node_mesh_enabled is not None else ()), *inert)
    return tuple(_inert(kind, spec, "spec", acting))


def effect(kind: str, path: str) -> str:
    """Return in words what comes of a field that `not_used` names."""
    return _IN_PART.get((kind, path), "kept, not used")


def acts(kind: type[Resource], path: str) -> bool:
    """Whether anything here acts on the field at `path` of `kind`, or on something above or below it."""
    return any(_covers(known, path) or _covers(path, known) for known in ACTING.get(kind, ()))


def _nobody_reads(resource: Resource) -> bool:
    name = resource.metadata.name
    if name == "default" or name.startswith("node."):
        return False
    match resource:
        case BGPConfiguration():
            return True
        case FelixConfiguration(spec=spec):
            return spec.node_selector is None
    return False


def _inert(kind: type[Resource], model: Model, prefix: str, acting: frozenset[str]) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        path, value = f"{prefix}.{field.alias or name}", getattr(model, name)
        if any(_covers(known, path) for known in acting) or _asks_nothing(kind, path, value, field):
            continue
        if isinstance(value, Model) and any(_covers(path, known) for known in acting):
            yield from _inert(kind, value, path, acting)
        else:
            yield path


def _asks_nothing(kind: type[Resource], path: str, value: object, field: FieldInfo) -> bool:
    if value is None or (kind, path) in _DONE_ANYWAY:
        return value is None or value == _DONE_ANYWAY[kind, path]
    means = [note.value for note in field.metadata if isinstance(note, Means)]
    return value in means or value == field.get_default(call_default_factory=True)


def _covers(path: str, other: str) -> bool:
    return other == path or other.startswith(f"{path}.")
