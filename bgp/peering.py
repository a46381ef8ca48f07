"""BGP's settings as values: a session with what this node does with the paths on it, and what the host is to BGP.

Kept apart from `bgp.rib`, which the speaker imports too: nothing in here but `spec` needs a session to be reset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from typing import TypeAlias

from bgp.rib import Address, SessionSpec
from fabric.model.bgpfilter import BGPFilter

Interface: TypeAlias = IPv4Interface | IPv6Interface

MAX_PREFIXES = 10_000


class NextHopMode(StrEnum):
    """What becomes of the next hop of a path that is passed on (calico-semantics §7, nextHopMode)."""

    AUTO = "auto"  # BGP's own: kept to internal peers, this node to external ones
    SELF = "self"
    KEEP = "keep"


class Policy(StrEnum):
    """The built-in filter behind a session's own ones."""

    SAFE = "safe"  # in: our pools, and a default route; out: what is this node's own
    CALICO = "calico"  # in: everything; out: everything inside our pools


class Source(StrEnum):
    """What asks for a session; the names are CalicoNodeStatus's."""

    MESH = "NodeMesh"
    NODE = "NodePeer"
    GLOBAL = "GlobalPeer"


@dataclass(frozen=True, slots=True)
class Peering:
    """One session, and what this node does with the paths on it.

    `name` is the BGPPeer that asks for it, "" for the mesh. `filters` come in order, before the built-in policies.
    `reflector_client`: to this peer, paths are reflected with `cluster_id` (RFC 4456); `cluster_id` None: this node
    reflects nothing. `drained`: paths both ways are the last choice (RFC 8326).
    """

    spec: SessionSpec
    name: str = ""
    source: Source = Source.GLOBAL
    reflector_client: bool = False
    cluster_id: IPv4Address | None = None
    allow_own_as: int = 0
    next_hop: NextHopMode = NextHopMode.AUTO
    filters: tuple[BGPFilter, ...] = ()
    import_policy: Policy = Policy.SAFE
    export_policy: Policy = Policy.SAFE
    max_prefixes: int = MAX_PREFIXES
    required: bool = False
    drained: bool = False


@dataclass(frozen=True, slots=True)
class Uplink:
    """One address of one link of the host that is up and not ours; `carrier` False where its cable is out."""

    device: str
    address: Interface
    carrier: bool = True


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where one of the host's default routes leads that BGP did not make."""

    address: Address
    device: str


@dataclass(frozen=True, slots=True)
class StaticRoute:
    """A peer's address (/32 or /128) is behind `gateway` (Calico's reachableBy)."""

    peer: Address
    gateway: Address


@dataclass(frozen=True)
class Here:
    """What this host is to BGP, read from its kernel and its files.

    `loopback` are its single addresses (/32, /128) on lo, no 127.0.0.1 among them. `secrets` are by name and key.
    """

    uplinks: tuple[Uplink, ...] = ()
    gateways: tuple[Gateway, ...] = ()
    loopback: frozenset[Address] = frozenset()
    secrets: Mapping[tuple[str, str], str] = field(default_factory=dict, repr=False)
