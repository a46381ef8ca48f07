"""Plan a node's BGP from files alone: its sessions, and what it would announce. Reads files, touches nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Literal, TypeVar

from bgp import policies
from bgp.export import Own, originated
from bgp.members import as_told
from bgp.peering import Gateway, Here, Peering
from bgp.rib import Address, Prefix, SessionSpec, prefix_order
from bgp.sessions import Resources, by_links, peerings, secret_refs
from fabric.errors import ConfigError
from fabric.model import extensions
from fabric.model.base import Resource
from fabric.model.bgp import BGPConfiguration, BGPPeer
from fabric.model.bgpfilter import BGPFilter
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from fabric.ops import blocks as blocks_file
from fabric.ops import files
from fabric.ops.blocks import Block

R = TypeVar("R", bound=Resource)

# Stand for a default gateway, which no file tells.
_GATEWAYS: Mapping[int, Address] = {4: IPv4Address(0), 6: IPv6Address(0)}
# Carries both families, with no filter and no policy but the default.
_PLAIN = Peering(SessionSpec(IPv6Address(0), 0, IPv6Address(0), 1, IPv4Address(0), extended_next_hop=True))


@dataclass(frozen=True)
class Plan:
    """What a node would do. `problems` says by object what it would not do of what is asked, and why.

    `unknown_sources` are the peers of sessions whose source a link decides that no file tells.
    """

    peerings: tuple[Peering, ...]
    blackholes: tuple[Prefix, ...]
    aggregates: tuple[Prefix, ...]
    announce: tuple[Prefix, ...]
    problems: Mapping[str, str] = field(default_factory=dict)
    unknown_sources: frozenset[Address] = frozenset()


def read(node: str, names: Sequence[str], *, recursive: bool = False, blocks: str = "") -> Plan:
    """Return the plan of `node` from the resources in files, and from a file of blocks, if it is named.

    Raises:
        ConfigError: a file has mistakes, all of which are named, or no Node of that name is in them.
    """
    resources = files.sound(names, recursive=recursive)
    return plan(node, resources, blocks_file.read(blocks) if blocks else ())


def plan(node: str, found: Iterable[Resource], blocks: Iterable[Block]) -> Plan:
    """Return what `node` would do.

    What it announces is what at least one session would carry, or where there is none what the default policy lets out;
    nothing where it has no part in BGP.

    Raises:
        ConfigError: there is no Node of that name.
    """
    found = list(found)
    nodes = _of(Node, found)
    me = next((n for n in nodes if n.metadata.name == node), None)
    if me is None:
        there = ", ".join(sorted(n.metadata.name for n in nodes)) or "none"
        raise ConfigError(f'node "{node}": no Node of that name is in the files; those in them: {there}')
    configurations = _of(BGPConfiguration, found)
    resources = Resources(node, nodes, configurations, _of(BGPPeer, found), _of(BGPFilter, found))
    here, unreadable = _here(me, resources)
    bgp = peerings(resources, here)
    confirmed = frozenset(block.prefix for block in blocks if block.node == node and block.confirmed)
    own = Own(blocks=confirmed, loopback=here.loopback & {held.ip for held in me.addresses})
    policy = policies.export_policy(node, _of(IPPool, found), configurations)
    announced = {
        announcement.prefix
        for peering in bgp.peerings or ((_PLAIN,) if me.spec.bgp else ())
        for announcement in originated(peering, own, policy).announcements
    }
    unknown = _unknown_sources(me, resources, bgp.peerings)
    whys = (
        "" if me.spec.bgp else "it has no spec.bgp: no session",
        bgp.problems.get(f"Node {node}"),
        *unreadable,
        _of_unknown(unknown, me),
    )
    of_node = "; ".join(filter(None, whys))
    problems = {**bgp.problems, **({f"Node {node}": of_node} if of_node else {})}
    return Plan(
        bgp.peerings,
        _sorted(p for p in confirmed if p.prefixlen < p.max_prefixlen),
        _sorted(confirmed),
        _sorted(announced),
        problems,
        frozenset(peering.spec.peer for peering in unknown),
    )


def document(found: Plan) -> dict[str, Any]:
    """Return the plan as JSON values."""
    return {
        "sessions": [
            {**_session(peering), "source": None}
            if peering.spec.peer in found.unknown_sources
            else _session(peering)
            for peering in found.peerings
        ],
        "blackholes": list(map(str, found.blackholes)),
        "aggregates": list(map(str, found.aggregates)),
        "announce": list(map(str, found.announce)),
    }


def _session(peering: Peering) -> dict[str, Any]:
    spec = peering.spec
    return {
        "name": peering.name,
        "peer_ip": extensions.AUTO_GATEWAY if spec.peer in _GATEWAYS.values() else str(spec.peer),
        "port": spec.port,
        "remote_as": spec.peer_as,
        "local_as": spec.local_as,
        "source": str(spec.source),
        "passive": spec.passive,
        "rr_client": peering.reflector_client,
        "cluster_id": str(peering.cluster_id) if peering.reflector_client else None,
        "ttl_security": spec.ttl_security,
        "next_hop": str(peering.next_hop),
        "allow_own_as": peering.allow_own_as,
        "restart_time": spec.restart_time,
        "keepalive": spec.hold_time // 3,
        "import_filters": _filters(peering, "import"),
        "export_filters": _filters(peering, "export"),
        "import": str(peering.import_policy),
        "export": str(peering.export_policy),
        "max_prefix": peering.max_prefixes,
        "required": peering.required,
    }


def _filters(peering: Peering, direction: Literal["import", "export"]) -> list[str]:
    """The names of the filters that have rules in that direction for what the session carries, in order."""
    lists = [f"{direction}_v{version}" for version in peering.spec.families]
    return [f.metadata.name for f in peering.filters if any(getattr(f.spec, rules) for rules in lists)]


def _here(me: Node, resources: Resources) -> tuple[Here, tuple[str, ...]]:
    """What the Node says of its host, and what of that cannot be read; every secret is taken to be there."""
    told, wrong = as_told(me)
    bgp = me.spec.bgp
    version = 6 if bgp and bgp.ipv6_address and not bgp.ipv4_address else 4
    secrets = dict.fromkeys(secret_refs(resources), "?")
    return replace(told, gateways=(Gateway(_GATEWAYS[version], ""),), secrets=secrets), wrong


def _unknown_sources(me: Node, resources: Resources, made: Iterable[Peering]) -> list[Peering]:
    """The sessions whose source a link decides, where nothing tells the host's links, or its gateways."""
    on_link = by_links(made, resources.peers)
    return [p for p in on_link if not me.spec.interfaces or p.spec.peer in _GATEWAYS.values()]


def _of_unknown(unknown: Iterable[Peering], me: Node) -> str:
    names = ", ".join(sorted({peering.name for peering in unknown}))
    if not names:
        return ""
    if me.spec.interfaces:
        return f"the host's gateways are not known, nor the source of {names}"
    return f"spec.interfaces is empty, so the source of {names} is not known; `fabricctl node join` writes it"


def _of(kind: type[R], found: Iterable[Resource]) -> tuple[R, ...]:
    return tuple(resource for resource in found if isinstance(resource, kind))


def _sorted(prefixes: Iterable[Prefix]) -> tuple[Prefix, ...]:
    return tuple(sorted(prefixes, key=prefix_order))
