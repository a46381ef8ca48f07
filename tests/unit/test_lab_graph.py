"""A lab as a graph: the DOT of a topology and of what its nodes said, and which node a peer's address is."""

import subprocess
import sys
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from fabric.lab.graph import Line, dot, lines, originated
from fabric.lab.profiles import builtin
from fabric.lab.routers import Session, Table
from fabric.lab.survey import Interface, Seen, read_interfaces, runs_etcd
from fabric.lab.topology import HOST, MGMT, Endpoint, Link, Node, Topology

GOLDEN = Path(__file__).with_name("golden") / "graph"
FRR, BIRD, OURS = "quay.io/frrouting/frr:8.4.1", "ghcr.io/srl-labs/bird:2.13", "fabricctl/node"


def node(name: str, image: str, *addresses: str, network: str = "none", cmd: str = "") -> Node:
    return Node(
        name=name,
        image=image,
        network=network,
        addresses=tuple(map(ip_interface, addresses)),
        cmd=tuple(cmd.split()),
        profile=builtin().of(image),
    )


def link(a: str, b: str, mtu: int = 9500) -> Link:
    near, far = (Endpoint(name, interface) for name, interface in (a.split(":"), b.split(":")))
    return Link(near, far, mtu)


RACK = Topology(
    name="rack",
    nodes=(
        node("rr", FRR, "172.20.20.2/24", network="mgmt"),
        node("tor1", FRR),
        node("tor2", BIRD),
        node("node1", OURS),
        node("node2", OURS),
        node("node3", OURS),
        node("etcd", OURS, cmd="etcd --name etcd"),
        node("tool", "alpine", network="container:node1"),
        node("lone", "strange/thing"),
    ),
    links=(
        link("node1:eth1", "tor1:eth1"),
        link("node2:eth1", "tor1:eth2", 1400),
        link("node2:eth2", "tor2:eth1"),
        link("node3:eth1", "tor2:eth2"),
        link("tor1:eth3", "rr:eth1"),
        link("tor2:eth3", "rr:eth2"),
        link("etcd:eth1", "tor1:eth4"),
        link("rr:up", f"{HOST}:lab-up", 1500),
        link("lone:eth1", f"{MGMT}:lone-eth1"),
    ),
)
TO_NODE1, TO_NODE2, TO_NODE2_TOO, TO_NODE3, TO_RR = RACK.links[:5]


def interface(name: str, *addresses: str, carrier: bool = True) -> Interface:
    return Interface(name, tuple(map(ip_interface, addresses)), carrier)


def up(peer: str, received: int) -> Session:
    return Session(peer, "Established", 65000, received)


def down(peer: str, state: str = "Active") -> Session:
    return Session(peer, state, 65000, 0)


INTERFACES = {
    "rr": (
        *(
            interface("eth1", "10.0.1.1/24"),
            interface("eth2", "10.0.2.1/24"),
            interface("lo", "192.0.2.9/32"),
        ),
        interface("up", "10.9.0.1/24"),
    ),
    "tor1": (
        *(interface("eth1", "10.1.1.1/24"), interface("eth2", "10.1.2.1/24", "fe80::2/64")),
        *(interface("eth3", "10.0.1.2/24"), interface("eth4")),
    ),
    "tor2": (
        *(interface("eth1", "10.2.1.1/24"), interface("eth2", "10.2.2.1/24", carrier=False)),
        interface("eth3", "10.0.2.2/24"),
    ),
    "node1": (interface("eth1", "10.1.1.2/24"),),
    "node2": (interface("eth1", "10.1.2.2/24", "fe80::1/64"), interface("eth2", "10.2.1.2/24")),
    "etcd": (interface("eth1"),),
    "tool": (),
    "lone": (interface("eth1"),),
}
MANY = ["10.77.0.0/26", "10.77.0.64/26", "10.77.0.128/26", "10.77.0.192/26", "10.77.1.0/26"]


def table(**routes: list[str]) -> Table:
    """Return a table: next hop, with _ for dots, and what goes there."""
    return {
        ip_network(prefix): frozenset({next_hop.strip("_").replace("_", ".")})
        for next_hop, prefixes in routes.items()
        for prefix in prefixes
    }


SEEN = Seen(
    INTERFACES,
    states={"node3": "broken"},
    sessions={
        "tor1": (up("10.1.1.2", 1), up("10.1.2.2", 5), up("10.0.1.1", 9)),
        "node1": (up("10.1.1.1", 1), up("192.0.2.9", 4)),
        "node2": (up("10.1.2.1", 1), down("10.2.1.1")),
        "tor2": (down("10.2.1.2", "Connect"), down("10.2.2.2"), down("203.0.113.7", "Idle")),
    },
    tables={"tor1": table(_10_1_2_2=MANY, _10_1_1_2=["10.78.0.0/26"]), "node1": {}, "node2": {}},
    silent=frozenset({"rr"}),
)


@pytest.mark.parametrize(("name", "seen"), [("topology", None), ("running", SEEN)])
def test_the_graph_is_the_golden_one(name: str, seen: Seen | None) -> None:
    assert dot(RACK, seen) == (GOLDEN / f"{name}.dot").read_text()


def test_nothing_is_drawn_that_the_topology_does_not_have() -> None:
    alone = dot(Topology(name="alone", nodes=(node("a", "alpine"),)))
    assert "management" not in alone
    assert "this host" not in alone


@pytest.mark.parametrize(
    ("of", "peer", "want"),
    [
        pytest.param("tor1", "10.1.1.2", ("node1", TO_NODE1), id="the far end of a link"),
        pytest.param("node1", "192.0.2.9", ("rr", None), id="an address elsewhere in the lab"),
        pytest.param("tor1", "10.2.1.2", ("node2", None), id="another node's, but not over this link"),
        pytest.param("tor2", "10.2.2.2", ("node3", TO_NODE3), id="a node that does not run, by its network"),
        pytest.param("tor2", "eth1", ("node2", TO_NODE2_TOO), id="unnumbered: the interface's name"),
        pytest.param("node2", "fe80::9%eth2", ("tor2", TO_NODE2_TOO), id="link-local, unknown"),
        pytest.param("tor1", "fe80::1%eth2", ("node2", TO_NODE2), id="link-local"),
        pytest.param("tor1", "fe80::1%eth3", ("rr", TO_RR), id="link-local, of another link's name"),
        pytest.param("tor1", "203.0.113.7", ("203.0.113.7", None), id="none of this lab's"),
    ],
)
def test_a_session_leads_to_the_node_that_has_the_peer_s_address(
    of: str, peer: str, want: tuple[str, Link | None]
) -> None:
    (line,) = lines(RACK, Seen(INTERFACES, sessions={of: (up(peer, 3),)}))
    assert ({line.a, line.b}, line.link) == ({of, want[0]}, want[1])


def test_both_ends_of_a_session_are_one_line() -> None:
    seen = Seen(
        INTERFACES,
        sessions={"tor1": (up("10.1.1.2", 2),), "node1": (up("10.1.1.1", 7), down("fe80::2%eth1"))},
    )
    assert lines(RACK, seen) == [
        Line("node1", "tor1", TO_NODE1, ("Active", "Established"), (("node1", 7), ("tor1", 2)))
    ]


@pytest.mark.parametrize(
    ("tables", "want"),
    [
        pytest.param(
            {"tor1": table(_10_1_1_2=MANY[:2]), "node1": {}}, {"node1": MANY[:2]}, id="its peer's word"
        ),
        pytest.param(
            {
                "tor1": table(_10_1_1_2=MANY[:1]),
                "node1": {},
                "node2": table(_10_1_2_1=MANY[:1]),
            },
            {"node1": MANY[:1]},
            id="who passes it on has it from another",
        ),
        pytest.param({"tor1": table(_10_1_1_2=MANY[:1])}, {}, id="who does not answer may have it so too"),
        pytest.param({"tor1": table(_203_0_113_7=MANY[:1])}, {}, id="nobody of this lab"),
    ],
)
def test_a_prefix_is_of_whom_others_have_it_from_and_who_has_it_from_nobody(
    tables: dict[str, Table], want: dict[str, list[str]]
) -> None:
    assert originated(Seen(INTERFACES, tables=tables)) == want


def test_interfaces_are_read_with_their_addresses_and_carrier() -> None:
    text = """[
      {"ifname": "lo", "flags": ["LOOPBACK", "UP", "LOWER_UP"], "addr_info": []},
      {"ifname": "eth1", "flags": ["BROADCAST", "NO-CARRIER", "UP"], "addr_info": [
        {"local": "10.1.1.2", "prefixlen": 24}, {"local": "fe80::1", "prefixlen": 64}, {}]}
    ]"""
    assert read_interfaces(text) == (
        interface("lo"),
        interface("eth1", "10.1.1.2/24", "fe80::1/64", carrier=False),
    )


@pytest.mark.parametrize(
    ("image", "cmd", "want"),
    [
        ("quay.io/coreos/etcd:v3.5.9", "", True),
        (OURS, "/usr/bin/etcd --name etcd", True),
        (OURS, "", False),
        ("alpine", "sleep 1", False),
    ],
)
def test_a_node_is_a_store_by_what_it_runs(image: str, cmd: str, want: bool) -> None:
    assert runs_etcd(node("x", image, cmd=cmd)) is want


def test_without_graphviz_its_package_is_named() -> None:
    script = (
        "from fabric.errors import LabError\n"
        "from fabric.lab.graph import svg\n"
        "try: svg('graph {}')\n"
        "except LabError as err: print(err)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PATH": ""}, capture_output=True, text=True, check=True
    )
    assert "apt-get install graphviz" in done.stdout
    assert "-o dot" in done.stdout
