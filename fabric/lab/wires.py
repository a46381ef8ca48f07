"""Decide what `ip` and `tc` are told so that a lab's links come to be, are cut, and are whole again: pure.

A link is a wire with two ends, and each end a veth: one side is the node's interface, the other lies in the
backplane's namespace, where whatever comes in at one end is redirected out of the other. So both ends can
lose their carrier while the interfaces stay up, as with a cable, and frames can be dropped on the way with
both carriers up. Neither can be had of a single veth between two nodes.

All commands run in the backplane's network namespace; `pid` names the one in which the node's side is made.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface

from fabric.lab.backplane import CUT
from fabric.lab.topology import MGMT, Link, Topology

BRIDGE = "mgmt"
ETH0 = "eth0"  # the interface on the management network
# The far sides' indexes begin where nodes' own do not reach: a veth whose index is that of its other side hears
# of a lost carrier up to a second late, since the kernel takes it for a device without another below.
FIRST = 100_000


@dataclass(frozen=True, slots=True)
class End:
    """One interface of a node: `far` is its other side, in the backplane, a port of the bridge if `bridged`.

    `number` is the interface index of the far side.
    """

    interface: str
    far: str
    number: int
    mtu: int
    mac: str
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    bridged: bool = False


def wire(index: int) -> tuple[str, str]:
    """Return the names of the two ends in the backplane of the topology's link number `index`."""
    return f"w{index}a", f"w{index}b"


def is_wire(link: Link) -> bool:
    """The others end on the management network's bridge."""
    return MGMT not in (link.a.node, link.b.node)


def ends(topology: Topology, node: str) -> list[End]:
    """Return every interface that `node` gets, eth0 first; HOST is a node here."""
    found = []
    for i, each in enumerate(topology.nodes):
        if each.name == node and each.addresses:
            mac = _mac(topology, node, ETH0)
            found.append(End(ETH0, f"m{i}", FIRST + i, topology.mgmt.mtu, mac, each.addresses, bridged=True))
    for i, link in enumerate(topology.links):
        sides = zip((link.a, link.b), (link.b, link.a), wire(i), (2 * i, 2 * i + 1), strict=True)
        for near, far, name, side in sides:
            if near.node == node:
                bridged = far.node == MGMT
                mac = near.mac or _mac(topology, node, near.interface)
                far_name = far.interface if bridged else name
                number = FIRST + len(topology.nodes) + side
                found.append(End(near.interface, far_name, number, link.mtu, mac, near.addresses, bridged))
    return found


def _mac(topology: Topology, node: str, interface: str) -> str:
    """Return an address that the interface keeps when its node is started again: neighbours have cached it."""
    digest = hashlib.sha256(f"{topology.name}/{node}/{interface}".encode()).digest()
    return ":".join(f"{octet:02x}" for octet in (0x02, *digest[:5]))


def attach(end: End, pid: int) -> list[str]:
    """Return ip's lines that make the interface in the namespace of `pid`; it is still down there."""
    peer = f"{end.interface} address {end.mac} mtu {end.mtu} netns {pid}"
    return [
        f"link add dev {end.far} index {end.number} mtu {end.mtu} type veth peer name {peer}",
        f"link set dev {end.far}{f' master {BRIDGE}' if end.bridged else ''} up",
    ]


def join(index: int) -> list[str]:
    """Return tc's lines that make one wire of two ends, also of ends that were part of it before."""
    a, b = wire(index)
    lines = []
    for near, far in ((a, b), (b, a)):
        onward = f"action mirred egress redirect dev {far}"
        lines += [
            f"qdisc replace dev {near} clsact",
            f"filter replace dev {near} ingress protocol all prio 1 handle 800::800 u32 match u32 0 0 {onward}",
        ]
    return lines


def silence(index: int) -> list[str]:
    """Return tc's lines that drop every frame while both carriers stay up; a wire that is silent stays so."""
    return [f"qdisc {verb} dev {end} clsact" for end in wire(index) for verb in ("replace", "del")]


def cut(index: int) -> list[str]:
    """Return ip's lines that take the carrier from both interfaces.

    The group tells the backplane first that this is meant, else it would mend the wire end by end.
    """
    ends = wire(index)
    marks = [f"link set dev {end} group {CUT}" for end in ends]
    return [*marks, *(f"link set dev {end} down" for end in ends)]


def mend(index: int) -> list[str]:
    """Return ip's lines that undo `cut`."""
    ends = wire(index)
    return [*(f"link set dev {end} up" for end in ends), *(f"link set dev {end} group 0" for end in ends)]


def impair(index: int, netem: str) -> list[str]:
    """Return tc's lines for netem on both ways; an empty `netem` takes away what is there, if anything is."""
    if netem:
        return [f"qdisc replace dev {end} root netem {netem}" for end in wire(index)]
    return [
        line
        for end in wire(index)
        for line in (f"qdisc replace dev {end} root pfifo", f"qdisc del dev {end} root")
    ]


def bridge(topology: Topology) -> list[str]:
    """Return ip's lines that make the management network's bridge with its gateways."""
    return [
        f"link add dev {BRIDGE} mtu {topology.mgmt.mtu} type bridge",
        *(
            f"address add {gateway} dev {BRIDGE}{' nodad' if gateway.version == 6 else ''}"
            for gateway in topology.mgmt.gateways
        ),
        f"link set dev {BRIDGE} up",
        "link set dev lo up",
    ]


def managed(topology: Topology) -> bool:
    """Whether anything is on the management network."""
    return any(node.addresses for node in topology.nodes) or not all(map(is_wire, topology.links))
