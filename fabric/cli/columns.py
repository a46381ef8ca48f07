"""Decide which columns `get` shows of each kind: calicoctl's, by default and wide.

Cells are computed from the tree that `-o json` prints, so a kind that is not modelled has a table too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Tree = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """`path` is dotted; `cell` computes what a path cannot say; `absent` stands where there is nothing."""

    heading: str
    path: str = ""
    absent: str = ""
    wide: bool = False
    cell: Callable[[Tree], object] | None = None

    def of(self, tree: Tree) -> str:
        value = self.cell(tree) if self.cell else _at(tree, self.path)
        text = _shown(value)
        return text if text else self.absent


def table(
    kind: str, trees: Sequence[Tree], *, wide: bool, namespaces: bool
) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows for resources of one kind, as JSON values."""
    columns = [c for c in COLUMNS.get(kind, (NAME,)) if wide or not c.wide]
    if namespaces:
        columns = [NAMESPACE, *columns]
    return [c.heading for c in columns], [[c.of(tree) for c in columns] for tree in trees]


def _at(tree: object, path: str) -> object:
    for step in path.split("."):
        tree = tree.get(step) if isinstance(tree, Mapping) else None
    return tree


def _shown(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float() if value.is_integer():
            return str(int(value))
        case Mapping():
            return ",".join(sorted(f"{key}={_shown(item)}" for key, item in value.items()))
        case list() | tuple():
            return ",".join(map(_shown, value))
        case _:
            return str(value)


def _length(*paths: str) -> Callable[[Tree], object]:
    return lambda tree: str(sum(len(found) for path in paths if isinstance(found := _at(tree, path), list)))


def _peer_of(tree: Tree) -> object:
    return _at(tree, "spec.node") or _at(tree, "spec.nodeSelector") or "(global)"


def _workload(tree: Tree) -> object:
    return _at(tree, "spec.workload") or _at(tree, "spec.pod")


def _nats(tree: Tree) -> object:
    nats = _at(tree, "spec.ipNATs")
    return [f"{n.get('internalIP')}={n.get('externalIP')}" for n in nats] if isinstance(nats, list) else None


def _pods(tree: Tree) -> object:
    """A Kubernetes selector as kubectl writes it, as far as it has equalities; the rest by its operators."""
    labels, wanted = _at(tree, "spec.podSelector.matchLabels"), _at(tree, "spec.podSelector.matchExpressions")
    terms = [f"{key}={value}" for key, value in labels.items()] if isinstance(labels, Mapping) else []
    for term in wanted if isinstance(wanted, list) else []:
        values = f" ({','.join(term['values'])})" if term.get("values") else ""
        terms.append(f"{term['key']} {term['operator'].lower()}{values}")
    return terms or "<none>"


NAMESPACE = Column("NAMESPACE", "metadata.namespace", "default")
NAME = Column("NAME", "metadata.name")
_POLICY = (
    NAME,
    Column("TIER", "spec.tier", "default"),
    Column("ORDER", "spec.order", wide=True),
    Column("SELECTOR", "spec.selector", wide=True),
)
_NETS = (NAME, Column("NETS", "spec.nets", wide=True))

COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "BGPConfiguration": (
        NAME,
        Column("LOGSEVERITY", "spec.logSeverityScreen"),
        Column("MESHENABLED", "spec.nodeToNodeMeshEnabled", "-"),
        Column("ASNUMBER", "spec.asNumber", "-"),
    ),
    "BGPFilter": (
        NAME,
        Column("NUMEXPORT", cell=_length("spec.exportV4", "spec.exportV6")),
        Column("NUMIMPORT", cell=_length("spec.importV4", "spec.importV6")),
    ),
    "BGPPeer": (
        NAME,
        Column("PEERIP", "spec.peerIP"),
        Column("NODE", cell=_peer_of),
        Column("ASN", "spec.asNumber"),
    ),
    "BlockAffinity": (
        NAME,
        Column("CIDR", "spec.cidr"),
        Column("NODE", "spec.node"),
        Column("STATE", "spec.state"),
    ),
    "CalicoNodeStatus": (NAME, Column("NODE", "spec.node"), Column("CLASSES", "spec.classes", wide=True)),
    "ClusterInformation": (
        NAME,
        Column("CLUSTERGUID", "spec.clusterGUID"),
        Column("CLUSTERTYPE", "spec.clusterType"),
        Column("CALICOVERSION", "spec.calicoVersion"),
        Column("DATASTOREREADY", "spec.datastoreReady"),
    ),
    "GlobalNetworkPolicy": _POLICY,
    "GlobalNetworkSet": _NETS,
    "HostEndpoint": (
        NAME,
        Column("NODE", "spec.node"),
        Column("INTERFACE", "spec.interfaceName", wide=True),
        Column("IPS", "spec.expectedIPs", wide=True),
        Column("PROFILES", "spec.profiles", wide=True),
    ),
    "IPAMConfiguration": (
        NAME,
        Column("STRICTAFFINITY", "spec.strictAffinity", "false"),
        Column("AUTOALLOCATEBLOCKS", "spec.autoAllocateBlocks", "false"),
        Column("MAXBLOCKSPERHOST", "spec.maxBlocksPerHost", "0", wide=True),
    ),
    "IPAMBlock": (NAME, Column("CIDR", "spec.cidr"), Column("AFFINITY", "spec.affinity")),
    "IPPool": (
        NAME,
        Column("CIDR", "spec.cidr"),
        Column("NAT", "spec.natOutgoing", "false", wide=True),
        Column("IPIPMODE", "spec.ipipMode", "Never", wide=True),
        Column("VXLANMODE", "spec.vxlanMode", "Never", wide=True),
        Column("DISABLED", "spec.disabled", "false", wide=True),
        Column("DISABLEBGPEXPORT", "spec.disableBGPExport", "false", wide=True),
        Column("SELECTOR", "spec.nodeSelector"),
    ),
    "IPReservation": (NAME, Column("CIDRS", "spec.reservedCIDRs", wide=True)),
    "NetworkPolicy": _POLICY,
    "NetworkPolicy.networking.k8s.io": (NAME, Column("POD-SELECTOR", cell=_pods)),
    "NetworkSet": _NETS,
    "Node": (
        NAME,
        Column("ASN", "spec.bgp.asNumber", "(default)", wide=True),
        Column("IPV4", "spec.bgp.ipv4Address", wide=True),
        Column("IPV6", "spec.bgp.ipv6Address", wide=True),
    ),
    "Profile": (NAME, Column("LABELS", "spec.labelsToApply", wide=True)),
    "StagedGlobalNetworkPolicy": _POLICY,
    "StagedKubernetesNetworkPolicy": (NAME, Column("PODSELECTOR", "spec.podSelector.matchLabels", wide=True)),
    "StagedNetworkPolicy": _POLICY,
    "Tier": (
        NAME,
        Column("ORDER", "spec.order"),
        Column("DEFAULTACTION", "spec.defaultAction", wide=True),
    ),
    "WorkloadEndpoint": (
        Column("NAME", "metadata.name", wide=True),
        Column("WORKLOAD", cell=_workload),
        Column("NODE", "spec.node"),
        Column("NETWORKS", "spec.ipNetworks"),
        Column("INTERFACE", "spec.interfaceName"),
        Column("PROFILES", "spec.profiles", wide=True),
        Column("NATS", cell=_nats, wide=True),
    ),
}
