"""Decide whether this host can be a node, before anything is changed: everything wrong at once, each with its cure."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from datetime import datetime
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_network
from typing import TypeAlias

from fabric.errors import ConfigError, Taken
from fabric.ipam.types import Address, Prefix
from fabric.kernel import facts, probe, tables
from fabric.kernel.facts import HostAddress, Listener
from fabric.model.clusterinformation import ClusterInformation
from fabric.model.node import Node
from fabric.plan.links import is_ours

Interface: TypeAlias = IPv4Interface | IPv6Interface

BGP_PORT = 179
# Calico's list of links that are not the host's own uplinks.
_NOT_UPLINKS = re.compile(
    r"(docker|cbr|dummy|virbr|lxcbr|veth|cali|tunl|flannel|kube-ipvs|cni|vxlan|br-).*|lo"
)
DEFAULT_POOLS = ("192.168.0.0/16", *(f"172.{n}.0.0/16" for n in range(16, 32)))


def need_root() -> None:
    """Refuse at once: without root not even our own files can be read.

    Raises:
        ConfigError: this is not root.
    """
    if os.geteuid() != 0:
        raise ConfigError("not root; nothing was changed; run this as root")


async def host_problems() -> list[str]:
    """Return what keeps this host from being a node; [] where nothing does."""
    problems = [f"kernel: {missing}; use a kernel that has it" for missing in await probe.missing_features()]
    if not shutil.which("setpriv"):
        problems.append("tool setpriv: not found; install util-linux")
    return problems


async def port_problems() -> list[str]:
    """Return who holds the BGP port on this host, which ExaBGP is to listen on."""
    return [port_problem(holder) for holder in await facts.listeners(BGP_PORT)]


def port_problem(holder: Listener) -> str:
    return (
        f"port {BGP_PORT}: held by {holder.name or 'a process'} (pid {holder.pid or 'unknown'}); stop it, or let it "
        "peer from another host: two BGP daemons cannot share the port"
    )


async def warnings() -> list[str]:
    """Return what does not keep this host from being a node, and may still hurt it."""
    return [*await _clock_warnings(), *await _firewall_warnings()]


async def _firewall_warnings() -> list[str]:
    return [
        f"firewall: FORWARD drops by default in the {found.backend} IPv{found.version} filter table, as Docker sets "
        "it: packets to and from containers may die there; accept the pools' prefixes ahead of it"
        for found in await tables.forward_policies()
        if found.policy == "DROP"
    ]


async def _clock_warnings() -> list[str]:
    clock = await facts.clock()
    if clock.synchronised:
        return []
    return [
        "clock: not synchronised; start an NTP client, or times in logs and resources will not match other nodes'"
    ]


def clock_problems(cluster: ClusterInformation | None, now: datetime) -> list[str]:
    """A host that lives before its cluster was made has a wrong clock."""
    made = cluster.metadata.creation_timestamp if cluster else None
    if made is None or now >= made:
        return []
    return [
        f"clock: says {now:%Y-%m-%dT%H:%M:%SZ}, but the cluster was made at {made:%Y-%m-%dT%H:%M:%SZ}; set the clock"
    ]


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
    found = candidates(addresses, version)
    if len(found) == 1:
        return found[0].address
    listed = ", ".join(f"{a.address} on {a.link}" for a in found)
    if found:
        raise ConfigError(
            f"node address: {len(found)} candidates ({listed}); nothing was changed; choose one with --ip "
            f"{found[0].address.ip}"
        )
    raise ConfigError(
        f"node address: no link that is up has an IPv{version} address of its own; nothing was changed; give the host "
        "one, or name it with --ip"
    )


def candidates(addresses: Iterable[HostAddress], version: int) -> list[HostAddress]:
    """Return the addresses that may be the node's: on an uplink, up, reachable from elsewhere."""
    return [
        a
        for a in addresses
        if a.up
        and a.address.version == version
        and not a.address.is_link_local
        and not a.address.is_loopback
        and not is_ours(a.link)
        and not _NOT_UPLINKS.fullmatch(a.link)
    ]


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
    bgp = node.spec.bgp
    if bgp and address.ip in {i.ip for i in (bgp.ipv4_address, bgp.ipv6_address) if i}:
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
    used = [a.address.network for a in addresses] + [r for r in routes if r.prefixlen]
    for text in DEFAULT_POOLS:
        pool = ip_network(text)
        if not any(net.version == pool.version and net.overlaps(pool) for net in used):
            return pool
    raise ConfigError(
        "default pool: 192.168.0.0/16 and every 172.16-31.0.0/16 meet this host's own networks; nothing was changed; "
        "name a free prefix with --pool"
    )


def refuse(problems: Sequence[str]) -> None:
    """Raise one ConfigError for all of `problems`, if there are any."""
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ConfigError(f"this host cannot join yet; nothing was changed:\n{listed}")
