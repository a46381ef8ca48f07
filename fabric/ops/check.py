"""Read this host for the checks of `node check` and `node join`, and refuse a join that would collide with others.

What is wrong with a host is judged in `fabric.ops.findings`; here is what reads the facts, and what refuses.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from pathlib import Path
from typing import TypeAlias

from fabric import config as configuration
from fabric.config import ENDPOINT
from fabric.errors import ConfigError, Taken
from fabric.ipam.types import Address, Prefix
from fabric.kernel import facts, probe, tables
from fabric.kernel.facts import HostAddress
from fabric.kernel.routes import NetlinkFib
from fabric.model.bgp import BGPConfiguration, BGPPeer
from fabric.model.clusterinformation import ClusterInformation
from fabric.model.felixconfiguration import FelixConfiguration
from fabric.model.ippool import IPPool
from fabric.model.kinds import lookup
from fabric.model.node import Node
from fabric.model.workloadendpoint import EndpointPort
from fabric.ops import findings, managers, resources, supervise
from fabric.ops.findings import Cluster, Finding, Host, Severity
from fabric.plan import publish
from fabric.plan.encap import Kind
from fabric.plan.routes import Route
from fabric.store.kv import KeyValueStore

Interface: TypeAlias = IPv4Interface | IPv6Interface

_SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/neigh/default/gc_thresh3",
    "net/ipv6/neigh/default/gc_thresh3",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
)
_DNS = 3.0  # seconds
_LINK_SYSCTLS = ("net/ipv4/conf/{}/rp_filter", "net/ipv6/conf/{}/accept_ra")


async def read_host(asked: Cluster | None, root: Path = Path("/"), etcd: Iterable[str] = ()) -> Host:
    """Read what is judged of this host; nothing is changed, but that the kernel loads the tunnels `asked` for.

    NetworkManager's and systemd-networkd's files are looked for below `root`; `etcd` are its endpoints.
    """
    addresses = tuple(await facts.addresses())
    with NetlinkFib() as fib:
        own = await fib.owned_routes()
    stands_on = await read_tunnels(asked or Cluster(), addresses)
    of_links = [name.format(link) for link in findings.uplinks(addresses) for name in _LINK_SYSCTLS]
    running = supervise.running() is not None
    return replace(
        stands_on,
        routes=_links(stands_on.foreign_routes),
        missing_features=await probe.missing_features(),
        tcp_md5=await probe.has_tcp_md5(),
        tools=frozenset(filter(shutil.which, (*findings.NODE_TOOLS, *findings.POLICY_TOOLS))),
        port_holders=() if running else tuple(await facts.listeners(findings.BGP_PORT)),
        clock=await facts.clock(),
        now=datetime.now(UTC),
        sysctls=facts.sysctls([*_SYSCTLS, *of_links]),
        saved=await tables.saved(),
        native=await tables.native(),
        daemons=facts.running(findings.DAEMONS),
        files=facts.files(managers.FILES, root),
        advertised_defaults=facts.advertised_defaults(),
        running=running,
        own_routes=tuple(own),
        etcd={endpoint: await _addresses_of(endpoint) for endpoint in etcd},
    )


async def read_tunnels(asked: Cluster, addresses: Sequence[HostAddress] | None = None) -> Host:
    """Read of this host, whose addresses may be known, only what the tunnels `asked` for stand on."""
    with NetlinkFib() as fib:
        foreign = await fib.foreign_routes()
    holders = await facts.listeners(asked.vxlan_port, "udp") if "vxlan" in asked.tunnels else ()
    return Host(
        addresses=tuple(await facts.addresses() if addresses is None else addresses),
        missing_tunnels=await _missing_tunnels(asked.tunnels),
        vxlans=tuple(await facts.vxlans()),
        vxlan_holders=tuple(holders),
        foreign_routes=tuple(foreign),
    )


async def unpublishable(node: str, port: EndpointPort) -> str:
    """Return why `port`, which can be published, cannot be on this host, the node `node`; "" where it can."""
    local = {held.address.ip for held in await facts.addresses()}
    at, protocol = publish.host_address(port), publish.protocol_name(port)
    held = await facts.listeners(port.host_port, protocol, at)
    return publish.strange(port, node, local) or publish.occupied(port, node, map(str, held))


async def _missing_tunnels(asked: frozenset[Kind]) -> dict[Kind, str]:
    """A kernel without IPIP is asked for VXLAN as well, which could take its place."""
    missing = await probe.missing_tunnels(asked)
    if "ipip" in missing and "vxlan" not in asked:
        missing |= await probe.missing_tunnels({"vxlan"})
    return missing


async def routes() -> tuple[tuple[Prefix, str], ...]:
    """Return prefix and link of every route of the main table that is not ours."""
    with NetlinkFib() as fib:
        return _links(await fib.foreign_routes())


async def _addresses_of(endpoint: str) -> tuple[Address, ...]:
    """The addresses behind an endpoint, none where its name has none: whoever connects there says so."""
    match = ENDPOINT.fullmatch(endpoint)
    host = match["host"].strip("[]") if match else ""
    try:
        async with asyncio.timeout(_DNS):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # no answer in time is the first, what can be no name the second
        return ()
    return tuple(dict.fromkeys(ip_address(str(name[0]).partition("%")[0]) for *_, name in found))


def _links(found: Iterable[Route]) -> tuple[tuple[Prefix, str], ...]:
    return tuple((route.key.prefix, hop.device or "") for route in found for hop in route.next_hops)


async def read_cluster(kv: KeyValueStore, node: str = "") -> Cluster:
    """Read what the datastore asks of a host, which is `node` if it has joined.

    An object that cannot be read asks nothing.

    Raises:
        StoreError: etcd did not answer.
    """
    made = (await resources.listing(kv, ClusterInformation, lookup("clusterinformation"))).resources
    peers = (await resources.listing(kv, BGPPeer, lookup("bgppeer"))).resources
    settings = (await resources.listing(kv, BGPConfiguration, lookup("bgpconfiguration"))).resources
    nodes = (await resources.listing(kv, Node, lookup("node"))).resources
    felix = (await resources.listing(kv, FelixConfiguration, lookup("felixconfiguration"))).resources
    return Cluster(
        pools=(await resources.listing(kv, IPPool, lookup("ippool"))).resources,
        node=next((one for one in nodes if one.metadata.name == node), None),
        far=tuple(a.ip for one in nodes if one.metadata.name != node for a in one.addresses),
        felix=felix,
        born=made[0].metadata.creation_timestamp if made else None,
        passwords=any(p.spec.password for p in peers) or any(c.spec.node_mesh_password for c in settings),
    )


async def findings_here(asked: Cluster | None, node: str, etcd: Iterable[str]) -> list[Finding]:
    """Return all that is wrong with this host; before it has joined (`node` ""), also what a join could not choose."""
    host = await read_host(asked, etcd=etcd)
    return [*findings.judge(host, asked), *([] if node else findings.choices(host, asked))]


def this_node() -> str:
    """Return the name of the node that this host is; "" where it has not joined, or where only root may know."""
    return "" if os.geteuid() else configuration.saved().node


def need_root() -> None:
    """Refuse at once: without root not even our own files can be read.

    Raises:
        ConfigError: this is not root.
    """
    if os.geteuid() != 0:
        raise ConfigError("not root; nothing was changed; run this as root")


def choose_address(wanted: str, addresses: Sequence[HostAddress], version: int = 4) -> Interface:
    """Return the node's address with its prefix length.

    Args:
        wanted: "auto", or an address that the host has.
        addresses: what the host has.
        version: the family that "auto" looks for.

    Raises:
        ConfigError: `wanted` is not an address of this host, or "auto" finds none, or more than one.
    """
    if wanted != "auto":
        return _given(wanted, addresses)
    if finding := findings.address_choice(addresses, version):
        raise ConfigError(finding.refusal)
    return findings.candidates(addresses, version)[0].address


def _given(wanted: str, addresses: Sequence[HostAddress]) -> Interface:
    try:
        address = ip_address(wanted)
    except ValueError as err:
        raise ConfigError(f'--ip "{wanted}": neither "auto" nor an address; nothing was changed') from err
    if address.is_loopback or address.is_link_local:
        raise ConfigError(f"--ip {wanted}: no other host can reach it; nothing was changed; choose another")
    for a in addresses:
        if a.address.ip == address:
            return a.address
    has = ", ".join(str(a.address.ip) for a in addresses if not a.address.is_loopback) or "none"
    raise ConfigError(
        f"--ip {wanted}: on no link of this host (it has {has}); nothing was changed; add it or choose another"
    )


def peer_problems(peers: Sequence[Address], addresses: Sequence[HostAddress]) -> None:
    """Refuse a peer that is this host, or that is given twice.

    Raises:
        ConfigError: naming it.
    """
    own = {a.address.ip for a in addresses}
    for peer in peers:
        if peer in own:
            raise ConfigError(
                f"--peer {peer}: is an address of this host; nothing was changed; name the router's"
            )
        if peers.count(peer) > 1:
            raise ConfigError(
                f"--peer {peer}: given more than once; nothing was changed; name each router once"
            )


def claim_problems(name: str, node_id: str, address: Interface, node: Node, id_annotation: str) -> None:
    """Refuse a name or an address that `node`, another one, has.

    Raises:
        Taken: both claimants are named.
    """
    if node.metadata.name == name:
        name_problem(node, node_id, id_annotation)
        return
    if address.ip in {held.ip for held in node.addresses}:
        theirs = node.metadata.annotations.get(id_annotation, "none")
        raise Taken(
            f"address {address.ip}: node {node.metadata.name} (id {theirs}) has it already, this host "
            f"has id {node_id}; nothing was changed; give one of the two another address, or delete that Node"
        )


def name_problem(node: Node, node_id: str, id_annotation: str) -> None:
    """Refuse a Node of the wanted name that is not this host's.

    Raises:
        Taken: both claimants are named.
    """
    theirs = node.metadata.annotations.get(id_annotation, "")
    if theirs != node_id:
        raise Taken(
            f'node name "{node.metadata.name}": taken by the node with id {theirs or "(none: not a fabricctl node)"}, '
            f"this host has id {node_id}; its Node was left alone; join with another --name, or delete that Node if it "
            "is gone"
        )


def default_pool(addresses: Iterable[HostAddress], routes: Iterable[Prefix]) -> Prefix:
    """Return the first of Calico's default prefixes that meets no address or route of this host.

    Raises:
        ConfigError: all of them do.
    """
    if (pool := findings.free_pool(addresses, routes)) is None:
        raise ConfigError(findings.no_free_pool().refusal)
    return pool


def refuse(found: Iterable[Finding]) -> list[str]:
    """Return the warnings among `found`, a text each.

    Raises:
        ConfigError: there are errors among them; all of those are in the message.
    """
    found = list(found)
    if errors := [finding for finding in found if finding.severity is Severity.ERROR]:
        listed = "\n".join(f"  - {finding}" for finding in errors)
        raise ConfigError(f"this host cannot join yet; nothing was changed:\n{listed}")
    return [str(finding) for finding in found]
