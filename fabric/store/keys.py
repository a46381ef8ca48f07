"""Decide where an object lives in etcd, and what a key found there names: Calico's paths, both ways.

`parse(key.path) == key` for every key here. A key that parses to None is not ours to understand:
leave it alone. Which plural is which kind is `fabric.model`'s to know.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TypeAlias

Prefix: TypeAlias = IPv4Network | IPv6Network

CALICO = "/calico/"
RESOURCES = "/calico/resources/v3/projectcalico.org/"
IPAM = "/calico/ipam/v2/"
BLOCKS = f"{IPAM}assignment/"
AFFINITIES = f"{IPAM}host/"
HANDLES = f"{IPAM}handle/"
IPAM_CONFIG = f"{IPAM}config"
PUBLISHED = "/fabric/v1/bgp/"  # ours: what each node says of its sessions, by its name

NAMESPACED = frozenset(
    {
        "networkpolicies",
        "networksets",
        "stagedkubernetesnetworkpolicies",
        "stagednetworkpolicies",
        "workloadendpoints",
    }
)


@dataclass(frozen=True, slots=True)
class ResourceKey:
    """A Calico v3 resource; `namespace` is None exactly when its plural is not in NAMESPACED."""

    plural: str
    namespace: str | None
    name: str

    @property
    def path(self) -> str:
        return RESOURCES + "/".join(filter(None, [self.plural, self.namespace, self.name]))


@dataclass(frozen=True, slots=True)
class BlockKey:
    prefix: Prefix

    @property
    def path(self) -> str:
        return f"{BLOCKS}{_block(self.prefix)}"


@dataclass(frozen=True, slots=True)
class AffinityKey:
    """The claim of `node` on the block `prefix`."""

    node: str
    prefix: Prefix

    @property
    def path(self) -> str:
        return f"{AFFINITIES}{self.node}/{_block(self.prefix)}"


@dataclass(frozen=True, slots=True)
class HandleKey:
    id: str

    @property
    def path(self) -> str:
        return HANDLES + self.id


Key: TypeAlias = ResourceKey | BlockKey | AffinityKey | HandleKey


def resources(plural: str) -> str:
    """Return the prefix that lists one kind and no other ("networksets" begins "networksetsx")."""
    return f"{RESOURCES}{plural}/"


def parse(key: str) -> Key | None:
    """Return what `key` names, or None for what is not ours.

    Only the spelling we would write ourselves is accepted: 10.0.0.1-26 has host bits, and taking it
    for the block 10.0.0.0/26 would give one block two keys.
    """
    found = _read(key)
    return found if found is not None and found.path == key else None


def is_garbled(key: str, plurals: Container[str]) -> bool:
    """Whether `key` stands where a key of ours would, and parses to none; `plurals` are those of known kinds.

    What else Calico keeps there is not garbled: /calico/ipam/v2/host/NODE was a host's own key.
    """
    if parse(key):
        return False
    if key.startswith(RESOURCES):
        return key.removeprefix(RESOURCES).split("/")[0] in plurals
    return key.startswith((BLOCKS, HANDLES)) or (
        key.startswith(AFFINITIES) and "/" in key.removeprefix(AFFINITIES)
    )


def _read(key: str) -> Key | None:
    match key.split("/"):
        case ["", "calico", "resources", "v3", "projectcalico.org", plural, namespace, name] if (
            plural in NAMESPACED and namespace and name
        ):
            return ResourceKey(plural, namespace, name)
        case ["", "calico", "resources", "v3", "projectcalico.org", plural, name] if (
            plural and plural not in NAMESPACED and name
        ):
            return ResourceKey(plural, None, name)
        case ["", "calico", "ipam", "v2", "assignment", _, "block", text] if prefix := _prefix(text):
            return BlockKey(prefix)
        case ["", "calico", "ipam", "v2", "host", node, _, "block", text] if node and (
            prefix := _prefix(text)
        ):
            return AffinityKey(node, prefix)
        case ["", "calico", "ipam", "v2", "handle", handle] if handle:
            return HandleKey(handle)
    return None


def _block(prefix: Prefix) -> str:
    # Calico replaces the slash only: the colons of an IPv6 prefix stay.
    return f"ipv{prefix.version}/block/{str(prefix).replace('/', '-')}"


def _prefix(text: str) -> Prefix | None:
    if "%" in text:  # `ipaddress` takes a scope id; no block has one
        return None
    try:
        return ip_network(text.replace("-", "/", 1))
    except ValueError:
        return None
