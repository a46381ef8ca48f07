"""Decide what keeps a node from the tunnels that pools ask for, and its containers from an MTU that will do. Pure.

`fabric.ops.findings` judges this host by it, and `fabric.ops.refuse_tunnels` what a change would ask of every node.
Each function yields the ids of findings with cause and cure; `pools` are those that select the node in question.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, TypeAlias

from fabric.kernel.facts import Listener, Vxlan
from fabric.model import extensions
from fabric.plan import mtu as mtus
from fabric.plan.encap import DEVICES, Kind, Pool, lacking, possible

Trouble: TypeAlias = tuple[str, str, str]

_FIELDS: Final[Mapping[Kind | None, str]] = {"ipip": "ipipMode", "vxlan": "vxlanMode", None: "cidr"}


def kinds(pools: Iterable[Pool]) -> frozenset[Kind]:
    """Return the kinds of tunnel that `pools` may use."""
    return frozenset(encap.kind for pool in pools for encap in possible(pool))


def field(pool: Pool) -> str:
    """Return the field of the pool's spec that asks for a tunnel, `cidr` where none does."""
    return _FIELDS[pool.kind]


def of_kernel(
    pools: Iterable[Pool], refused: Mapping[Kind, str], who: str = "this host"
) -> Iterator[Trouble]:
    """What the kernel has refused, in its words if they are known, counts where a pool cannot do without it."""
    for pool in pools:
        if kind := lacking(pool, refused.keys()):
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
        overhead = max((encap.overhead for encap in possible(pool)), default=0)
        least = mtus.MINIMUM[pool.version]
        if mtu - overhead < least:
            tunnel = f", and {field(pool)} takes {overhead}" if overhead else ""
            cause = f"{link} has an MTU of {mtu}{tunnel}: {mtu - overhead} are left to pool {pool.name}"
            yield (
                "FAB1608",
                cause,
                f"IPv{pool.version} needs {least}: give the link {least + overhead} or more",
            )
