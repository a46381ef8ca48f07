"""Decide what keeps a node from the tunnels that pools ask for, and its containers from an MTU that will do. Pure.

`fabric.ops.findings` judges this host by it, and `fabric.ops.refuse_tunnels` what a change would ask of every node.
Each function yields the ids of findings with cause and cure; `pools` are those that select the node in question.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Final, TypeAlias

from fabric.kernel.facts import Listener, Vxlan
from fabric.model import extensions
from fabric.plan import mtu as mtus
from fabric.plan.encap import DEVICES, Encap, Kind, Pool, Version

Trouble: TypeAlias = tuple[str, str, str]

_FIELDS: Final[Mapping[Kind | None, str]] = {"ipip": "ipipMode", "vxlan": "vxlanMode", None: "cidr"}


def kinds(pools: Iterable[Pool]) -> frozenset[Kind]:
    """Return the kinds of tunnel that `pools` may use."""
    found: set[Kind] = set()
    for pool in pools:
        if pool.kind:
            found |= {pool.kind, "vxlan"} if pool.fallback else {pool.kind}
    return frozenset(found)


def field(pool: Pool) -> str:
    """Return the field of the pool's spec that asks for a tunnel, `cidr` where none does."""
    return _FIELDS[pool.kind]


def missing(pool: Pool, lacks: AbstractSet[str]) -> Kind | None:
    """Return the kind of tunnel that `pool` cannot do without on a node that lacks the kinds `lacks`."""
    return pool.kind if pool.kind and kinds([pool]) <= lacks else None


def of_kernel(
    pools: Iterable[Pool], refused: Mapping[Kind, str], who: str = "this host"
) -> Iterator[Trouble]:
    """What the kernel has refused, in its words if they are known, counts where a pool cannot do without it."""
    for pool in pools:
        if kind := missing(pool, refused.keys()):
            said = f" ({refused[kind]})" if refused[kind] else ""
            cause = f"pool {pool.name} has {field(pool)}, and the kernel of {who} no module {kind}{said}"
            yield "FAB1002", cause, _instead(pool, kind, refused)


def _instead(pool: Pool, kind: Kind, refused: Collection[Kind]) -> str:
    cure = f"load the module (modprobe {kind}) or use a kernel that has it"
    if kind == "ipip" and "vxlan" not in refused:
        fallback = f"annotate it {extensions.TUNNEL_FALLBACK}: vxlan"
        return f"VXLAN is there: set vxlanMode in place of ipipMode on {pool.name}, or {fallback}; or {cure}"
    return f"{cure}, or set {field(pool)}: Never"


def of_port(
    pools: Iterable[Pool], vni: int, port: int, devices: Iterable[Vxlan], holders: Iterable[Listener]
) -> Iterator[Trouble]:
    """Whoever holds what a VXLAN of ours needs. The kernel tells devices apart by VNI, port and family."""
    versions = {pool.prefix.version for pool in pools if "vxlan" in kinds([pool])}
    if not versions:
        return
    cure = "set another {} in the FelixConfiguration default, which is every node's, or remove it here"
    for holder in holders:
        if holder.pid:  # else it is the kernel, for one of the devices
            cause = f"udp port {port} is held by {holder.name} (pid {holder.pid})"
            yield "FAB1102", cause, cure.format("vxlanPort")
    for device in devices:
        apart = device.version and device.version not in versions
        if device.name in DEVICES or device.port != port or apart:
            continue
        if not device.shares:
            cause = (
                f"udp port {port} is held by the VXLAN device {device.name}, which shares it with no other"
            )
            yield "FAB1102", cause, cure.format("vxlanPort")
        elif device.vni == vni:
            cause = f"VNI {vni} on udp port {port} is held by the device {device.name}"
            yield "FAB1103", cause, cure.format("vxlanVNI or vxlanPort")


def of_ends(pools: Iterable[Pool], versions: Collection[int], who: str = "this node") -> Iterator[Trouble]:
    """`versions` are the families that the node has an address of its own in."""
    for pool in pools:
        version = pool.prefix.version
        if pool.kind and version not in versions:
            cause = f"pool {pool.name} has {field(pool)}, and {who} no IPv{version} address to send from"
            cure = "give the host one and run `fabricctl node join` there, or leave it out by the pool's nodeSelector"
            yield "FAB1607", cause, cure


def of_room(pools: Iterable[Pool], link: str, mtu: int) -> Iterator[Trouble]:
    """`link`, with `mtu`, is the one that the node's packets leave by, or the smallest of them."""
    for pool in pools:
        version: Version = 4 if pool.prefix.version == 4 else 6
        overhead = max((Encap(kind, version).overhead for kind in kinds([pool])), default=0)
        least = mtus.MINIMUM[version]
        if mtu - overhead < least:
            tunnel = f", and {field(pool)} takes {overhead}" if overhead else ""
            cause = f"{link} has an MTU of {mtu}{tunnel}: {mtu - overhead} are left to pool {pool.name}"
            yield "FAB1608", cause, f"IPv{version} needs {least}: give the link {least + overhead} or more"
