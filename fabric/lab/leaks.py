"""Find what a lab has left where nothing of it should stand: the host, its fabric nodes, their IPAM.

What is looked at: in the host's network namespace, links that lead into one of the lab's, processes of the
lab (known by their pid namespace), and ports at which the lab's processes listen there; on a node of the
fabric, host ends of containers (`fab` and a hash) and their host routes; the addresses given out, as
`fabricctl ipam check` compares them with their users. What the topology asks for is no leak: host links,
published ports, nodes that share the host's network.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric.errors import LabError, NotFound
from fabric.lab.expect import IPAM, of_the_fabric
from fabric.lab.home import BACKPLANE
from fabric.lab.lab import Lab
from fabric.lab.topology import CONTAINER, HOST, MGMT, Node, Topology

ASK = 5.0  # seconds for one command
OUR_ROUTES = ("proto", "143")
_HOST_END = re.compile(r"fab[0-9a-f]{12}")

LISTENS = (
    "0A",
    "07",
)  # TCP_LISTEN, and TCP_CLOSE, which is what a bound UDP socket says (linux/tcp_states.h)
RTM_NEWNSID, RTM_GETNSID, NLMSG_ERROR = 88, 90, 2  # linux/rtnetlink.h, netlink.h
NETNSA_NSID, NETNSA_PID = 1, 2  # linux/net_namespace.h


def leaks(lab: Lab, place: str) -> list[str]:
    """Return what is left at `place`, in words: HOST, IPAM, or a node of the fabric.

    Raises:
        LabError: a command that tells could not be run.
        NotFound: the node is not running.
    """
    if place == HOST:
        return _in_host(lab)
    return _in_ipam(lab) if place == IPAM else _in_node(lab, place)


# The host


def _in_host(lab: Lab) -> list[str]:
    topology = lab.topology
    first = {
        name: process
        for name in (BACKPLANE, *(node.name for node in topology.nodes))
        if (process := lab.home.running(name))
    }
    links = [link for link in topology.links if {link.a.node, link.b.node} & {HOST, MGMT}]
    asked_for = {end.interface for link in links for end in (link.a, link.b) if end.node in (HOST, MGMT)}
    guests = {node.name for node in topology.nodes if _shares_the_hosts(topology, node)}
    members = _members({name: process.pid for name, process in first.items() if name not in guests})
    published = {(port.protocol, port.host_port) for node in topology.nodes for port in node.ports}
    return [
        *links_into(namespace_ids([process.pid for process in first.values()]), _host_links(), asked_for),
        *strays(members, _namespace("self", "net")),
        *ports_beyond(published, _listening(), members),
    ]


def _host_links() -> list[dict[str, Any]]:
    done = subprocess.run(["ip", "-j", "link"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"links of the host: ip -j link: exit status {done.returncode}: {done.stderr.strip()}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def _shares_the_hosts(topology: Topology, node: Node) -> bool:
    owner = node.network.removeprefix(CONTAINER)
    return node.network == "host" or any(
        each.name == owner and _shares_the_hosts(topology, each) for each in topology.nodes
    )


@dataclass(frozen=True, slots=True)
class Member:
    """A process in the pid namespace of a node; `net` names its network namespace, `sockets` are inodes."""

    node: str
    pid: int
    command: str
    net: str | None
    sockets: frozenset[str]

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}) of {self.node.removeprefix('.')}"


def _members(first: Mapping[str, int]) -> list[Member]:
    """Return all processes in the pid namespaces of these first processes, by the name that each goes by."""
    names = {_namespace(str(pid), "pid"): name for name, pid in first.items()}
    names.pop(None, None)
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        if node := names.get(_namespace(path.name, "pid")):
            with suppress(OSError):  # it has just gone
                command, net = (path / "comm").read_text().strip(), _namespace(path.name, "net")
                found.append(Member(node, int(path.name), command, net, _sockets(path / "fd")))
    return found


def _namespace(pid: str, kind: str) -> str | None:
    """Return what names a namespace of a process, None if that has ended."""
    try:
        return str(Path("/proc", pid, "ns", kind).readlink())
    except OSError:
        return None


def _sockets(descriptors: Path) -> frozenset[str]:
    found = set()
    for descriptor in descriptors.iterdir():
        with suppress(OSError):  # it was closed meanwhile
            found.add(str(descriptor.readlink()))
    return frozenset(each[len("socket:[") : -1] for each in found if each.startswith("socket:["))


def _listening() -> dict[str, tuple[str, int]]:
    """Return where somebody listens in our network namespace: protocol and port, by the socket's inode."""
    found = {}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        path = Path("/proc/self/net", table)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] in LISTENS:
                found[fields[9]] = table.removesuffix("6"), int(fields[1].rpartition(":")[2], 16)
    return found


def strays(members: Iterable[Member], host: str | None) -> list[str]:
    """Return those of the lab's processes that are in the host's network namespace."""
    return [str(member) for member in members if member.net == host]


def ports_beyond(
    published: Collection[tuple[str, int]],
    listening: Mapping[str, tuple[str, int]],
    members: Iterable[Member],
) -> list[str]:
    """Return the sockets at which the lab's processes listen in the host's namespace and should not."""
    return [
        f"{protocol} port {port} of {member}"
        for member in members
        for inode in sorted(member.sockets & listening.keys())
        for protocol, port in [listening[inode]]
        if (protocol, port) not in published
    ]


def links_into(
    namespaces: Collection[int], links: Iterable[Mapping[str, Any]], asked_for: Collection[str]
) -> list[str]:
    """Return those of `ip -j link` whose other end is in one of these namespaces, by their ids here."""
    return [
        f"link {link['ifname']}"
        for link in links
        if link.get("link_netnsid") in namespaces and link["ifname"] not in asked_for
    ]


def namespace_ids(pids: Iterable[int]) -> set[int]:
    """Return by which numbers this network namespace knows those of `pids`; many it knows by none."""
    found = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        for pid in pids:
            asked = struct.pack("=B3xHHI", socket.AF_UNSPEC, 8, NETNSA_PID, pid)
            netlink.send(struct.pack("=IHHII", 16 + len(asked), RTM_GETNSID, 1, 0, 0) + asked)
            answer = netlink.recv(4096)
            (kind,) = struct.unpack_from("=H", answer, 4)
            if kind != RTM_NEWNSID:  # the process is gone
                continue
            _, attribute, nsid = struct.unpack_from("=HHi", answer, 20)
            if attribute == NETNSA_NSID and nsid >= 0:
                found.add(nsid)
    return found


# A node of the fabric


def _in_node(lab: Lab, node: str) -> list[str]:
    def shown(*argv: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(lab.exec(node, argv, timeout=ASK).stdout or "[]")
        return found

    # Before the workloads: one that is attached meanwhile is no leak.
    links = shown("ip", "-j", "link")
    routes = [
        *shown("ip", "-4", "-j", "route", "show", *OUR_ROUTES),
        *shown("ip", "-6", "-j", "route", "show", *OUR_ROUTES),
    ]
    done = lab.exec(node, ["fabricctl", "workload", "list", "-o", "json"], check=False, timeout=ASK)
    workloads = json.loads(done.stdout) if not done.returncode else []
    left = without_workload(links, routes, workloads)
    # A host that never joined has no agent and nothing that one could tell about.
    return left if not done.returncode or not left else [*left, f"no workloads known: {done.stderr.strip()}"]


def without_workload(
    links: Iterable[Mapping[str, Any]],
    routes: Iterable[Mapping[str, Any]],
    workloads: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Return what stands for a container that `fabricctl workload list` does not know.

    `links` are those of `ip -j link`, `routes` those of ours of `ip -j route`, where a host route has no length.
    """
    interfaces = {workload["interface"] for workload in workloads}
    held = {address for workload in workloads for address in workload["addresses"]}
    names = [link["ifname"] for link in links]
    found = [f"link {name}" for name in names if _HOST_END.fullmatch(name) and name not in interfaces]
    # Others, too, lead to no router: those to far ends of tunnels.
    local = [route["dst"] for route in routes if _HOST_END.fullmatch(route.get("dev", ""))]
    return found + [f"route {dst}" for dst in local if "/" not in dst and dst not in held]


# IPAM


def _in_ipam(lab: Lab) -> list[str]:
    why = "no node of the fabric runs"
    for node in lab.topology.nodes:
        if not of_the_fabric(node):
            continue
        try:
            done = lab.exec(node.name, ["fabricctl", "ipam", "check", "-o", "json"], check=False, timeout=ASK)
        except (LabError, NotFound) as err:
            why = str(err)
            continue
        if done.stdout:  # with an exit status of 1 where there are findings
            return [f"{f['object']}: {f['why']}" for f in json.loads(done.stdout)["findings"]]
        why = f"node {node.name}: {done.stderr.strip()}"
    raise LabError(why)
