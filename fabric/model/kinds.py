"""Decide which kinds exist, what they are called in keys and on the command line, and their classes.

A kind is added with its file and one line here; a kind without a class is kept untouched as `Unknown`.
Those of Kubernetes' own API are in files only: `fabric.model.convert` says what is stored for each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from typing import Final

from fabric.errors import ConfigError
from fabric.model.base import API_VERSION, Resource, Unknown

K8S_API_VERSION: Final = "networking.k8s.io/v1"  # of Kubernetes' own network policies
CORE_API_VERSION: Final = "v1"  # of its namespaces and service accounts


@dataclass(frozen=True, slots=True)
class Kind:
    """`plural` is the word in etcd keys; `aliases` are the short forms calicoctl takes as well.

    `module` has the class, imported when it is first asked for: one command needs few of them, and all
    of them cost it 60 ms.
    """

    name: str
    plural: str
    module: str = ""
    namespaced: bool = False
    aliases: tuple[str, ...] = ()
    api_version: str = API_VERSION

    @property
    def cls(self) -> type[Resource]:
        """The class of its resources; `Unknown` for a kind that is not modelled."""
        prefix = "" if self.api_version == API_VERSION else "Kubernetes"
        return _class(self.module, prefix + self.name) if self.module else Unknown

    @property
    def word(self) -> str:
        """The word for it that means no other kind: that of another API with the API's group, as kubectl has it."""
        group = self.api_version.partition("/")[0]
        return self.name if self.api_version == API_VERSION else f"{self.name}.{group}"


@cache
def _class(module: str, name: str) -> type[Resource]:
    found: type[Resource] = getattr(import_module(f"fabric.model.{module}"), name)
    return found


KINDS = (
    Kind("BGPConfiguration", "bgpconfigurations", "bgp", aliases=("bgpconfig", "bgpconfigs")),
    Kind("BGPFilter", "bgpfilters", "bgpfilter", aliases=("bgpf", "bgpfs", "bf", "bfs")),
    Kind("BGPPeer", "bgppeers", "bgp", aliases=("bgpp", "bgpps", "bp", "bps")),
    Kind("BlockAffinity", "blockaffinities"),
    Kind(
        "CalicoNodeStatus", "caliconodestatuses", "caliconodestatus", aliases=("nodestatus", "nodestatuses")
    ),
    Kind(
        "ClusterInformation",
        "clusterinformations",
        "clusterinformation",
        aliases=("clusterinfo", "clusterinfos"),
    ),
    Kind(
        "FelixConfiguration",
        "felixconfigurations",
        "felixconfiguration",
        aliases=("felixconfig", "felixconfigs"),
    ),
    Kind("GlobalNetworkPolicy", "globalnetworkpolicies", "policy", aliases=("gnp", "gnps")),
    Kind("GlobalNetworkSet", "globalnetworksets", "networkset", aliases=("gnetsets",)),
    Kind("HostEndpoint", "hostendpoints", "hostendpoint", aliases=("hep", "heps")),
    Kind(
        "IPAMConfiguration", "ipamconfigurations", "ipamconfiguration", aliases=("ipamconfig", "ipamconfigs")
    ),
    Kind("IPAMBlock", "ipamblocks"),
    Kind("IPAMHandle", "ipamhandles"),
    Kind("IPPool", "ippools", "ippool", aliases=("ipp", "ipps", "pool", "pools")),
    Kind("IPReservation", "ipreservations", "ipreservation", aliases=("reservation", "reservations")),
    Kind(
        "KubeControllersConfiguration",
        "kubecontrollersconfigurations",
        aliases=("kubecontrollersconfig", "kubecontrollersconfigs"),
    ),
    Kind("LiveMigration", "livemigrations", namespaced=True),
    Kind(
        "NetworkPolicy",
        "networkpolicies",
        "policy",
        namespaced=True,
        aliases=("policy", "policies", "np", "nps", "pol", "pols"),
    ),
    Kind("NetworkSet", "networksets", "networkset", namespaced=True, aliases=("netset", "netsets")),
    Kind("Node", "nodes", "node", aliases=("no", "nos")),
    Kind("Profile", "profiles", "profile", aliases=("pro", "pros")),
    Kind(
        "StagedGlobalNetworkPolicy",
        "stagedglobalnetworkpolicies",
        "policy",
        aliases=("sgnp", "sgnps"),
    ),
    Kind(
        "StagedKubernetesNetworkPolicy",
        "stagedkubernetesnetworkpolicies",
        "policy",
        namespaced=True,
        aliases=("stagedkubernetespolicy", "stagedkubernetespolicies", "sknp", "skpol", "skpols"),
    ),
    Kind(
        "StagedNetworkPolicy",
        "stagednetworkpolicies",
        "policy",
        namespaced=True,
        aliases=("stagedpolicy", "stagedpolicies", "snp", "snps", "spol", "spols"),
    ),
    Kind("Tier", "tiers", "tier"),
    Kind("WorkloadEndpoint", "workloadendpoints", "workloadendpoint", True, ("wep", "weps")),
)

# Before the name of a Kubernetes policy that is stored as a NetworkPolicy; nobody else names one so.
KUBERNETES_NAME: Final = "knp.default."
KUBERNETES_POLICY: Final = Kind(
    "NetworkPolicy",
    "networkpolicies",
    "k8s",
    namespaced=True,
    aliases=("netpol", "netpols", "networkpolicy.networking.k8s.io", "networkpolicies.networking.k8s.io"),
    api_version=K8S_API_VERSION,
)
KUBERNETES = (
    KUBERNETES_POLICY,
    Kind("Namespace", "namespaces", "k8s", api_version=CORE_API_VERSION),
    Kind("ServiceAccount", "serviceaccounts", "k8s", namespaced=True, api_version=CORE_API_VERSION),
)

_BY_NAME = {(kind.api_version, kind.name): kind for kind in (*KINDS, *KUBERNETES)}
_BY_WORD = {word: kind for kind in KINDS for word in (kind.name.lower(), kind.plural, *kind.aliases)}
_BY_WORD.update(dict.fromkeys(KUBERNETES_POLICY.aliases, KUBERNETES_POLICY))
_LABELS_ONLY = {
    "namespace": "a Namespace", "namespaces": "a Namespace", "ns": "a Namespace",
    "serviceaccount": "a ServiceAccount", "serviceaccounts": "a ServiceAccount", "sa": "a ServiceAccount",
}  # fmt: skip


def named(kind: str, api_version: str = API_VERSION) -> Kind | None:
    """Return the kind spelled exactly so in a resource's `kind` field, or None."""
    return _BY_NAME.get((api_version, kind))


def lookup(word: str) -> Kind:
    """Return the kind an operator means by `word`: its name in any case, its plural or an alias.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind := _BY_WORD.get(word.lower()):
        return kind
    if "," in word:
        raise ConfigError(f'kind "{word}": one kind at a time; run the command once for each')
    first, slash, name = word.partition("/")
    if slash and first.lower() in _BY_WORD:
        raise ConfigError(f'kind "{word}": kind and name are two words; give `{first} {name or "NAME"}`')
    if stored := _LABELS_ONLY.get(word.lower()):
        raise ConfigError(
            f'kind "{word}": {stored} is stored as a profile; `fabricctl get profiles` shows it'
        )
    hint = did_you_mean(word, _BY_WORD) or "; `fabricctl get --help` lists the kinds"
    raise ConfigError(f'kind "{word}" is not known{hint}')


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean …?" with the one of `known` that is close to `word`, "" where none is."""
    spelled = {each.lower(): each for each in known}
    close = get_close_matches(word.lower(), spelled, n=1, cutoff=0.75)
    return f"; did you mean {spelled[close[0]]}?" if close else ""


def resource_class(kind: str, api_version: str = API_VERSION) -> type[Resource]:
    """Return the class of `kind`; `Unknown` for what is not modelled, or is of another API group."""
    known = named(kind, api_version)
    return known.cls if known else Unknown
