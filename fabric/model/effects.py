"""Say what of a resource is kept and changes nothing here: what acts is listed, so a new field counts as inert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from pydantic.fields import FieldInfo

from fabric.model import extensions
from fabric.model.base import Means, Model, Resource
from fabric.model.bgp import BGPConfiguration, BGPPeer
from fabric.model.bgpfilter import BGPFilter
from fabric.model.caliconodestatus import CalicoNodeStatus
from fabric.model.clusterinformation import ClusterInformation
from fabric.model.felixconfiguration import ActingSettings, FelixConfiguration
from fabric.model.hostendpoint import HostEndpoint
from fabric.model.ipamconfiguration import IPAMConfiguration
from fabric.model.ippool import IPPool
from fabric.model.ipreservation import IPReservation
from fabric.model.namespaces import NAMESPACE_PROFILE
from fabric.model.networkset import GlobalNetworkSet, NetworkSet
from fabric.model.node import Node
from fabric.model.policy import (
    GlobalNetworkPolicy,
    NetworkPolicy,
    StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy,
    StagedNetworkPolicy,
)
from fabric.model.profile import Profile
from fabric.model.tier import Tier
from fabric.model.workloadendpoint import WorkloadEndpoint

_POLICY: Final = frozenset(
    {
        "spec.tier",
        "spec.order",
        "spec.ingress",
        "spec.egress",
        "spec.selector",
        "spec.types",
        "spec.serviceAccountSelector",
    }
)
_GLOBAL_POLICY: Final = _POLICY | {
    "spec.namespaceSelector",
    "spec.doNotTrack",
    "spec.preDNAT",
    "spec.applyOnForward",
}

# A kind that is not here acts on nothing. A path stands for everything below it.
ACTING: Final[Mapping[type[Resource], frozenset[str]]] = {
    # What bindMode: NodeIP asks for is done anyway: each session listens on its own source address.
    BGPConfiguration: frozenset(
        {
            "spec.nodeToNodeMeshEnabled",
            "spec.asNumber",
            "spec.communities",
            "spec.prefixAdvertisements",
            "spec.listenPort",
            "spec.nodeMeshPassword",
            "spec.nodeMeshMaxRestartTime",
            "spec.bindMode",
            "spec.ipv4NormalRoutePriority",
            "spec.ipv6NormalRoutePriority",
        }
    ),
    BGPFilter: frozenset({"spec.exportV4", "spec.importV4", "spec.exportV6", "spec.importV6"}),
    BGPPeer: frozenset(
        {
            "spec.node",
            "spec.nodeSelector",
            "spec.peerIP",
            "spec.asNumber",
            "spec.peerSelector",
            "spec.localASNumber",
            "spec.keepOriginalNextHop",
            "spec.nextHopMode",
            "spec.password",
            "spec.sourceAddress",
            "spec.maxRestartTime",
            "spec.keepaliveTime",
            "spec.numAllowedLocalASNumbers",
            "spec.ttlSecurity",
            "spec.reachableBy",
            "spec.filters",
            "spec.reversePeering",
        }
    ),
    CalicoNodeStatus: frozenset({"spec.node", "spec.classes", "spec.updatePeriodSeconds"}),
    ClusterInformation: frozenset(
        {"spec.clusterGUID", "spec.clusterType", "spec.calicoVersion", "spec.datastoreReady", "spec.variant"}
    ),
    FelixConfiguration: frozenset(f"spec.{field.alias}" for field in ActingSettings.model_fields.values()),
    GlobalNetworkPolicy: _GLOBAL_POLICY,
    GlobalNetworkSet: frozenset({"spec.nets"}),
    HostEndpoint: frozenset(
        {"spec.node", "spec.interfaceName", "spec.expectedIPs", "spec.profiles", "spec.ports"}
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
            "spec.ipipMode",
            "spec.vxlanMode",
            "spec.natOutgoing",
            "spec.disabled",
            "spec.disableBGPExport",
            "spec.nodeSelector",
            "spec.namespaceSelector",
            "spec.allowedUses",
            "spec.assignmentMode",
        }
    ),
    IPReservation: frozenset({"spec.reservedCIDRs"}),
    NetworkPolicy: _POLICY,
    NetworkSet: frozenset({"spec.nets"}),
    Node: frozenset(
        {
            "spec.bgp.asNumber",
            "spec.bgp.ipv4Address",
            "spec.bgp.ipv6Address",
            "spec.bgp.routeReflectorClusterID",
            "spec.bgp.ipv4IPIPTunnelAddr",
            "spec.ipv4VXLANTunnelAddr",
            "spec.vxlanTunnelMACAddr",
            "spec.ipv6VXLANTunnelAddr",
            "spec.vxlanTunnelMACAddrV6",
            "spec.interfaces",
        }
    ),
    Profile: frozenset({"spec.ingress", "spec.egress", "spec.labelsToApply"}),
    StagedGlobalNetworkPolicy: _GLOBAL_POLICY | {"spec.stagedAction"},
    StagedKubernetesNetworkPolicy: frozenset(
        {"spec.stagedAction", "spec.podSelector", "spec.ingress", "spec.egress", "spec.policyTypes"}
    ),
    StagedNetworkPolicy: _POLICY | {"spec.stagedAction"},
    Tier: frozenset({"spec.order", "spec.defaultAction"}),
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
            "spec.serviceAccountName",
            "spec.profiles",
            "spec.ports",
            "spec.allowSpoofedSourcePrefixes",
        }
    ),
}

# Of a BGPConfiguration named node.<name>; whatever it says of the mesh, which is the cluster's, is not done.
_ACTING_ON_A_NODE: Final = frozenset({"spec.listenPort", "spec.prefixAdvertisements", "spec.communities"})

WHOLE: Final = ""
KEPT: Final = "kept, not used"  # what comes of a field that `not_used` names


def not_used(resource: Resource) -> tuple[str, ...]:
    """Return the paths of what is given in `resource`, differs from its default, and changes nothing here.

    The path WHOLE alone means that nothing acts on the resource at all: on its kind, or on one of its name.
    """
    kind = type(resource)
    if kind not in ACTING or _nobody_reads(resource):
        return (WHOLE,)
    spec: Model = getattr(resource, "spec")  # noqa: B009
    said = resource.metadata.annotations
    if isinstance(resource, BGPConfiguration) and resource.metadata.name != "default":
        mesh = "spec.nodeToNodeMeshEnabled"
        given = [mesh] if resource.spec.node_to_node_mesh_enabled is not None else []
        inert = [*given, *_inert(spec, "spec", _ACTING_ON_A_NODE | {mesh})]
        ours = [key for key in said if key.startswith(extensions.PREFIX)]
    else:
        inert = list(_inert(spec, "spec", ACTING[kind]))
        ours = extensions.unknown(resource.kind, said)
        if isinstance(resource, Profile) and not resource.metadata.name.startswith(NAMESPACE_PROFILE):
            ours += [extensions.DROP_LOG] * (extensions.DROP_LOG in said)
        if isinstance(resource, IPPool) and resource.spec.ipip_mode == "Never":
            ours += [extensions.TUNNEL_FALLBACK] * (extensions.TUNNEL_FALLBACK in said)
    return (*(f"metadata.annotations.{key}" for key in ours), *inert)


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


def _inert(model: Model, prefix: str, acting: frozenset[str]) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        path, value = f"{prefix}.{field.alias or name}", getattr(model, name)
        if any(_covers(known, path) for known in acting) or _asks_nothing(value, field):
            continue
        if isinstance(value, Model) and any(_covers(path, known) for known in acting):
            yield from _inert(value, path, acting)
        else:
            yield path


def _asks_nothing(value: object, field: FieldInfo) -> bool:
    means = [note.value for note in field.metadata if isinstance(note, Means)]
    return value is None or value in means or value == field.get_default(call_default_factory=True)


def _covers(path: str, other: str) -> bool:
    return other == path or other.startswith(f"{path}.")
