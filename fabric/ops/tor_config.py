"""Make the router's side of the nodes' sessions, from resources in files or in the datastore.

A node's links are what its Node says of them. Its secrets are on that node alone, and a text stands for each here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import TypeVar

from bgp import router, sessions
from bgp.claims import parse_peer_ip
from bgp.members import as_told
from bgp.peering import Gateway, Here, Uplink
from bgp.rib import Address
from bgp.router import NodeEnd, Router
from bgp.vendors import bird, frr, gobgp
from fabric.errors import ConfigError
from fabric.model import extensions
from fabric.model.base import Resource
from fabric.model.bgp import BGPConfiguration, BGPPeer
from fabric.model.bgpfilter import BGPFilter
from fabric.model.ippool import IPPool
from fabric.model.kinds import lookup
from fabric.model.node import Node
from fabric.ops import all_nodes, files, resources
from fabric.store.kv import KeyValueStore

R = TypeVar("R", bound=Resource)

KINDS = ("node", "bgpconfiguration", "bgppeer", "bgpfilter", "ippool")
UNKNOWN_LINKS = (
    "Node's spec.interfaces: is empty, so the addresses that a link gives are not known, and what is printed for "
    "them may be another link's; `fabricctl node join` writes it"
)
UNKNOWN_GATEWAY = "which default gateway the session is with is not known here; name that router with --peer"


RENDER = {"frr": frr.render, "bird": bird.render, "gobgp": gobgp.render}  # by vendor


@dataclass(frozen=True)
class Given:
    """What there is to go by. `gateways` are by node the peers of its sessions, as it has published them.

    `notes` says what could not be read.
    """

    resources: tuple[Resource, ...]
    gateways: Mapping[str, frozenset[Address]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def all(self, cls: type[R]) -> tuple[R, ...]:
        return tuple(resource for resource in self.resources if isinstance(resource, cls))


@dataclass(frozen=True)
class Made:
    """One text a router; and a line for each thing that makes no session, or not as asked."""

    texts: tuple[str, ...]
    notes: tuple[str, ...]


def from_files(names: Sequence[str], *, recursive: bool = False) -> Given:
    """Return what files have. Raises ConfigError with every mistake in them."""
    return Given(tuple(files.sound(names, recursive=recursive)))


async def from_store(kv: KeyValueStore) -> Given:
    """Return what the datastore has."""
    listed = [await resources.listing(kv, Resource, lookup(word)) for word in KINDS]
    found = tuple(resource for kind in listed for resource in kind.resources)
    by_gateway = {peer.metadata.name for peer in found if isinstance(peer, BGPPeer) and _by_gateway(peer)}
    gateways = {
        published.node: frozenset(
            ip_address(session["peer"]) for session in published.sessions if session["name"] in by_gateway
        )
        for published in (await all_nodes.sessions(kv) if by_gateway else ())
    }
    return Given(found, gateways, tuple(line for kind in listed for line in kind.warnings))


def make(given: Given, vendor: str, one: Collection[Address] = ()) -> Made:
    """Return the routers' side; `one` are the addresses of one router, and no other is meant.

    Raises:
        ConfigError: no session leads to a router, or to this one; or it would have two AS numbers.
    """
    problems: defaultdict[str, list[str]] = defaultdict(list)
    by_gateway = {f"BGPPeer {peer.metadata.name}" for peer in given.all(BGPPeer) if _by_gateway(peer)}
    nodes = []
    for node in given.all(Node):
        name = node.metadata.name
        here, wrong = _here(given, node, one)
        found = sessions.peerings(_resources(given, name), here)
        for what, why in (*found.problems.items(), *((f"Node {name}", why) for why in wrong)):
            if what not in by_gateway or here.gateways:
                problems[f"{what}: {why}"].append(name)
            elif not one:
                problems[f"{what}: {UNKNOWN_GATEWAY}"].append(name)
        if not node.spec.interfaces and sessions.by_links(found.peerings, given.all(BGPPeer)):
            problems[UNKNOWN_LINKS].append(name)
        nodes.append(NodeEnd(name, frozenset(held.ip for held in node.addresses), here, found.peerings))
    made = router.routers(nodes, given.all(IPPool), one)
    notes = (*given.notes, *(f"{why} (on {', '.join(names)})" for why, names in sorted(problems.items())))
    if not made or (one and len(made) > 1):
        raise ConfigError("\n".join([*notes, _refusal(made, nodes, one)]))
    return Made(tuple(map(RENDER[vendor], made)), notes)


def _refusal(made: Sequence[Router], nodes: Sequence[NodeEnd], one: Collection[Address]) -> str:
    named = " ".join(map(str, one))
    if made:
        numbers = ", ".join(str(found.local_as) for found in made)
        return f"{named}: is one router, with one AS number, of which the nodes' sessions expect {numbers}"
    if not one:
        return "no node has a session with a router; BGPPeer resources with peerIP make them"
    others = sorted({str(p.spec.peer) for node in nodes for p in node.peerings})
    return f"{named}: no node has a session with it; there are sessions with {', '.join(others) or 'nobody'}"


def _resources(given: Given, node: str) -> sessions.Resources:
    return sessions.Resources(
        node,
        nodes=given.all(Node),
        configurations=given.all(BGPConfiguration),
        peers=given.all(BGPPeer),
        filters=given.all(BGPFilter),
    )


def _here(given: Given, node: Node, one: Collection[Address]) -> tuple[Here, tuple[str, ...]]:
    """What the node's host is to BGP, and what of its Node cannot be read."""
    told, wrong = as_told(node)
    # A Node that says nothing of links has that which its address is on, if it is not a single one.
    own = [Uplink("", i) for i in node.addresses if i.network.prefixlen < i.max_prefixlen]
    uplinks = told.uplinks if node.spec.interfaces else tuple(own)
    secrets = sessions.secret_refs(_resources(given, node.metadata.name))
    here = replace(
        told,
        uplinks=uplinks,
        gateways=tuple(Gateway(found, "") for found in _gateways(given, node.metadata.name, uplinks, one)),
        secrets={(name, key): f"SECRET-{name}-{key}"[: sessions.SECRET_BYTES] for name, key in secrets},
    )
    return here, wrong


def _gateways(
    given: Given, node: str, uplinks: Sequence[Uplink], one: Collection[Address]
) -> Sequence[Address]:
    """The default gateways that the node has sessions with, or would have with `one`, where that is on its links."""
    named = {parse_peer_ip(peer.spec.peer_ip)[0] for peer in given.all(BGPPeer) if peer.spec.peer_ip}
    on_link = {address for address in one if any(address in uplink.address.network for uplink in uplinks)}
    return sorted(given.gateways.get(node, frozenset()) | (on_link - named), key=str)


def _by_gateway(peer: BGPPeer) -> bool:
    return peer.metadata.annotations.get(extensions.PEER) == extensions.AUTO_GATEWAY
