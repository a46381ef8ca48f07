"""Decides the lab in which BGP is measured: a router, two nodes of ours, two with BIRD in our place, a crowd of peers.

tor ─┬─ a ─────┐           a and b are ours, abird and bbird have BIRD;
     ├─ b      ├─ crowd    the crowd is many BIRDs, each with an address of its own
     ├─ abird ─┘
     └─ bbird
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path

BIRD, NODE = "ghcr.io/srl-labs/bird:2.13", "fabricctl/node"
ETCD = "10.10.8.1:2379"
# The pools: of blocks, and of what the router sends.
OWN, FED = IPv4Network("10.77.0.0/16"), IPv4Network("10.96.0.0/11")
BIRDS_OWN = IPv4Network("10.78.0.0/16")
OURS, PEER = "fabricctl", "BIRD"
SENDER, RECEIVER = {OURS: "a", PEER: "abird"}, {OURS: "b", PEER: "bbird"}
AS_NUMBERS = {"tor": 65000, "a": 65001, "b": 65002, "abird": 65003, "bbird": 65004, "crowd": 65100}
LINKS = {"a": "10.10.1", "b": "10.10.2", "abird": "10.10.3", "bbird": "10.10.4"}  # to the router, which is .1
CROWDS = {OURS: "10.61.0", PEER: "10.62.0"}  # each with a link to the crowd, whose addresses are .1 and so on

CROWD_LOG = "/run/crowd.log"  # of all of them


def topology(folder: Path, routes: Sequence[int], peers: int) -> Path:
    """Write the lab's file and its BIRDs' configurations."""
    (folder / "tor.conf").write_text(_tor(routes))
    (folder / "crowd").mkdir()
    for number in range(1, peers + 1):
        (folder / "crowd" / f"{number}.conf").write_text(_one_of_crowd(number))
    for node in ("abird", "bbird"):
        (folder / f"{node}.conf").write_text(bird_node(node, ()))
    nodes: dict[str, object] = {
        "etcd": {
            "image": "quay.io/coreos/etcd:v3.4.33",
            "cmd": f"etcd --data-dir /var/lib/etcd --listen-client-urls http://0.0.0.0:2379 "
            f"--advertise-client-urls http://{ETCD}",
            "exec": ["ip address add 10.10.8.1/24 dev eth1", "ip address add 10.10.9.1/24 dev eth2"],
        }
    }
    nodes["crowd"] = {
        "image": "alpine",
        "binds": ["crowd:/etc/crowd:ro"],
        "exec": [
            *_addresses("crowd", peers),
            *(
                f"bird -c /etc/crowd/{number}.conf -s /run/crowd-{number}.ctl"
                for number in range(1, peers + 1)
            ),
        ],
    }
    for node in ("tor", "abird", "bbird"):
        nodes[node] = {
            "image": BIRD,
            "binds": [f"{node}.conf:/etc/bird.conf:ro"],
            "exec": _addresses(node, peers),
        }
    for node in ("a", "b"):
        nodes[node] = {"image": NODE, "exec": _addresses(node, peers)}
    links = [[f"tor:eth{at}", f"{node}:eth1"] for at, node in enumerate(LINKS, 1)]
    links += [["etcd:eth1", "a:eth2"], ["etcd:eth2", "b:eth2"]]
    links += [["crowd:eth1", "a:eth3"], ["crowd:eth2", "abird:eth2"]]
    body = {
        "defaults": {"kind": "linux", "network-mode": "none"},
        "nodes": nodes,
        "links": [{"endpoints": ends} for ends in links],
    }
    file = folder / "bench-bgp.clab.yml"
    file.write_text(json.dumps({"name": f"bench-bgp-{os.getpid()}", "topology": body}))
    return file


def _addresses(node: str, peers: int) -> list[str]:
    given = {
        "tor": [(f"{link}.1/24", f"eth{at}") for at, link in enumerate(LINKS.values(), 1)],
        "crowd": [
            (f"{link}.{number}/24", f"eth{at}")
            for at, link in enumerate(CROWDS.values(), 1)
            for number in range(1, peers + 1)
        ],
        "a": [("10.10.1.2/24", "eth1"), ("10.10.8.2/24", "eth2"), (f"{CROWDS[OURS]}.254/24", "eth3")],
        "b": [("10.10.2.2/24", "eth1"), ("10.10.9.2/24", "eth2")],
        "abird": [("10.10.3.2/24", "eth1"), (f"{CROWDS[PEER]}.254/24", "eth2")],
        "bbird": [("10.10.4.2/24", "eth1")],
    }
    return [f"ip address add {address} dev {link}" for address, link in given[node]]


def _session(name: str, ours: str, node: str, theirs: str, peer: str, channel: str, more: str = "") -> str:
    return (
        f"protocol bgp {name} {{ local {ours} as {AS_NUMBERS[node]}; neighbor {theirs} as {AS_NUMBERS[peer]}; {more}"
        "connect delay time 1; error wait time 1, 2; graceful restart on; "
        f"ipv4 {{ import all; {channel} }}; }}"
    )


def _tor(routes: Sequence[int]) -> str:
    lines = [
        "router id 10.10.1.1;",
        "protocol device { }",
        "protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }",
    ]
    for node, link in LINKS.items():
        fed = node in RECEIVER.values()
        export = f'source = RTS_BGP || proto ~ "*_{node}"' if fed else "source = RTS_BGP"
        ends = (f"{link}.1", "tor", f"{link}.2", node)
        lines.append(_session(f"to_{node}", *ends, f"next hop self; export where {export};"))
    for node in RECEIVER.values():
        for count in routes:
            for kind in ("shared", "distinct"):
                lines.append(f"protocol static {kind}{count}_{node} {{ disabled; ipv4;")
                for number, prefix in zip(range(count), FED.subnets(new_prefix=26), strict=False):
                    # Each its own community, so that no two share an UPDATE.
                    own = (
                        f" {{ bgp_community.add(({AS_NUMBERS['tor']}, {number})); }}"
                        if kind == "distinct"
                        else ""
                    )
                    lines.append(f"  route {prefix} blackhole{own};")
                lines.append("}")
    return "\n".join(lines) + "\n"


def _one_of_crowd(number: int) -> str:
    """A BIRD of its own, since one has no two sessions with one neighbour."""
    lines = [
        f"router id {CROWDS[OURS]}.{number};",
        f'log "{CROWD_LOG}" {{ trace }};',
        "timeformat log iso long us;",
        "protocol device { }",
    ]
    for who, link in CROWDS.items():
        ends = (f"{link}.{number}", "crowd", f"{link}.254", SENDER[who])
        more = "passive; strict bind; debug { states }; "
        lines.append(_session(f"{SENDER[who]}_{number}", *ends, "export none;", more))
    return "\n".join(lines) + "\n"


def bird_node(node: str, crowd: Sequence[int]) -> str:
    """A node with BIRD in our place: as Calico's has it, without its filters."""
    lines = [
        f"router id {LINKS[node]}.2;",
        "protocol device { }",
        "protocol kernel { ipv4 { import none; export all; }; merge paths on; }",
        _session(
            "tor", f"{LINKS[node]}.2", node, f"{LINKS[node]}.1", "tor", "export where source = RTS_STATIC;"
        ),
    ]
    for number, prefix in zip(range(256), BIRDS_OWN.subnets(new_prefix=26), strict=False):
        lines.append(f"protocol static block{number} {{ disabled; ipv4; route {prefix} blackhole; }}")
    for number in crowd:
        ends = (f"{CROWDS[PEER]}.254", node, f"{CROWDS[PEER]}.{number}", "crowd")
        lines.append(_session(f"peer{number}", *ends, "export where source = RTS_STATIC;"))
    return "\n".join(lines) + "\n"
