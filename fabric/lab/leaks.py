"""Find what a lab has left where nothing of it should stand: the host, its fabric nodes, their IPAM.

What is looked at: links in the host's network namespace that lead into one of the lab's; on a node of the
fabric, host ends of containers (`fab` and a hash) and their host routes; the addresses given out, as
`fabricctl ipam check` compares them with their users.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from fabric.errors import LabError, NotFound
from fabric.lab.expect import IPAM, of_the_fabric
from fabric.lab.home import BACKPLANE
from fabric.lab.lab import Lab
from fabric.lab.topology import HOST, MGMT

ASK = 5.0  # seconds for one command
OUR_ROUTES = ("proto", "143")
_HOST_END = re.compile(r"fab[0-9a-f]{12}")

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
    running = [lab.home.running(name) for name in (BACKPLANE, *(n.name for n in lab.topology.nodes))]
    ids = namespace_ids([process.pid for process in running if process])
    links = [link for link in lab.topology.links if {link.a.node, link.b.node} & {HOST, MGMT}]
    asked_for = {end.interface for link in links for end in (link.a, link.b) if end.node in (HOST, MGMT)}
    shown = subprocess.run(["ip", "-j", "link"], capture_output=True, text=True, check=True).stdout
    return links_into(ids, json.loads(shown), asked_for)


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
    local = [route["dst"] for route in routes if "dev" in route and "gateway" not in route]
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
