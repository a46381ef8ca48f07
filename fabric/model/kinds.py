"""Decide which kinds exist, what they are called in keys and on the command line, and their classes.

A kind is added with its file and one line here; a kind without a class is kept untouched as `Unknown`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.errors import ConfigError
from fabric.model.base import API_VERSION, Resource, Unknown
from fabric.model.bgp import BGPConfiguration, BGPPeer
from fabric.model.clusterinformation import ClusterInformation
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from fabric.model.profile import Profile
from fabric.model.workloadendpoint import WorkloadEndpoint


@dataclass(frozen=True, slots=True)
class Kind:
    """`plural` is the word in etcd keys; `aliases` are the short forms calicoctl takes as well."""

    name: str
    plural: str
    cls: type[Resource] = Unknown
    namespaced: bool = False
    aliases: tuple[str, ...] = ()


KINDS = (
    Kind("BGPConfiguration", "bgpconfigurations", BGPConfiguration, aliases=("bgpconfig", "bgpconfigs")),
    Kind("BGPFilter", "bgpfilters"),
    Kind("BGPPeer", "bgppeers", BGPPeer, aliases=("bgpp", "bgpps", "bp", "bps")),
    Kind("BlockAffinity", "blockaffinities"),
    Kind("CalicoNodeStatus", "caliconodestatuses"),
    Kind(
        "ClusterInformation",
        "clusterinformations",
        ClusterInformation,
        aliases=("clusterinfo", "clusterinfos"),
    ),
    Kind("FelixConfiguration", "felixconfigurations", aliases=("felixconfig", "felixconfigs")),
    Kind("GlobalNetworkPolicy", "globalnetworkpolicies", aliases=("gnp", "gnps")),
    Kind("GlobalNetworkSet", "globalnetworksets"),
    Kind("HostEndpoint", "hostendpoints", aliases=("hep", "heps")),
    Kind("IPAMConfiguration", "ipamconfigurations", aliases=("ipamconfig", "ipamconfigs")),
    Kind("IPPool", "ippools", IPPool, aliases=("ipp", "ipps", "pool", "pools")),
    Kind("IPReservation", "ipreservations"),
    Kind("KubeControllersConfiguration", "kubecontrollersconfigurations"),
    Kind("LiveMigration", "livemigrations", namespaced=True),
    Kind("NetworkPolicy", "networkpolicies", namespaced=True, aliases=("policy", "policies", "np", "nps")),
    Kind("NetworkSet", "networksets", namespaced=True, aliases=("netset", "netsets")),
    Kind("Node", "nodes", Node, aliases=("no", "nos")),
    Kind("Profile", "profiles", Profile, aliases=("pro", "pros")),
    Kind("StagedGlobalNetworkPolicy", "stagedglobalnetworkpolicies", aliases=("sgnp", "sgnps")),
    Kind("StagedKubernetesNetworkPolicy", "stagedkubernetesnetworkpolicies", namespaced=True),
    Kind("StagedNetworkPolicy", "stagednetworkpolicies", namespaced=True, aliases=("snp", "snps")),
    Kind("Tier", "tiers"),
    Kind("WorkloadEndpoint", "workloadendpoints", WorkloadEndpoint, True, ("wep", "weps")),
)

_BY_NAME = {kind.name: kind for kind in KINDS}
_BY_WORD = {word: kind for kind in KINDS for word in (kind.name.lower(), kind.plural, *kind.aliases)}


def named(kind: str) -> Kind | None:
    """Return the kind spelled exactly so in a resource's `kind` field, or None."""
    return _BY_NAME.get(kind)


def lookup(word: str) -> Kind:
    """Return the kind an operator means by `word`: its name in any case, its plural or an alias.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind := _BY_WORD.get(word.lower()):
        return kind
    known = ", ".join(sorted(kind.name.lower() for kind in KINDS))
    raise ConfigError(f'kind "{word}" is not known; the kinds are {known}')


def resource_class(kind: str, api_version: str = API_VERSION) -> type[Resource]:
    """Return the class of `kind`; `Unknown` for what is not modelled, or is of another API group."""
    known = _BY_NAME.get(kind) if api_version == API_VERSION else None
    return known.cls if known else Unknown
