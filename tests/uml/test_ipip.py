"""The labs of IPIP in a user-mode kernel: real tunl0, real packets of protocol 4, and what a change of mode costs.

One cross-subnet for all that is asked of it, each test of which leaves it whole: a processor this slow takes half a
minute to bring it up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from fabric.lab.expect import Endpoint
from fabric.lab.lab import Lab
from fabric.lab.measure import measure
from tests.scenarios.fabric import until
from tests.scenarios.shipped import RUNS, unmet
from tests.uml.labs import missed, shown, up

pytestmark = pytest.mark.inside

NODES = ("node1", "node2", "node3")
ENDPOINTS = [Endpoint(name, node, name) for name, node in zip(("web", "api", "db"), NODES, strict=True)]
CONTAINERS = {"node1": "10.77.1.1", "node2": "10.77.2.1", "node3": "10.77.3.1"}
PAIRS = [(a, b) for a in NODES for b in NODES if a != b]
WAYS = {"10.77.1.0/26": "10.10.1.11", "10.77.2.0/26": "10.10.1.12", "10.77.3.0/26": "10.10.2.11"}
CROSS_SUBNET = """
encapsulated:
- {from: web, to: api, as: native, on: "lan:eth1"}
- {from: web, to: db, as: ipip, on: "router:eth2"}
"""
Recorder = Callable[[str, object], None]


def test_always_means_on_one_lan_too_whatever_router_bgp_names() -> None:
    with up("always-ipip") as lab:
        assert missed(lab) == []


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with up("cross-subnet") as lab:
        yield lab


def test_within_a_subnet_packets_go_as_they_are_and_across_the_router_in_ipip(lab: Lab) -> None:
    assert missed(lab) == []


def test_a_tunnels_end_stands_in_its_node_as_calico_writes_it(lab: Lab) -> None:
    for node in NODES:
        spec = json.loads(lab.exec(node, ["fabricctl", "get", "node", node, "-o", "json"]).stdout)["spec"]
        (device,) = shown(lab, node, "address", "show", "dev", "tunl0")
        held = [(each["local"], each["prefixlen"]) for each in device["addr_info"]]
        assert (held, device["mtu"]) == ([(spec["bgp"]["ipv4IPIPTunnelAddr"], 32)], 1480)


def test_check_mtu_asks_through_the_tunnel(lab: Lab) -> None:
    rows = lab.exec("node1", ["fabricctl", "node", "check", "mtu"]).stdout.splitlines()
    assert [row for row in rows if {"node3", "1480"} <= {*row.split()} and "ipip" in row.lower()], rows
    assert [row for row in rows if {"node2", "1500"} <= {*row.split()} and "native" in row.lower()], rows


def test_nothing_is_lost_while_the_pool_goes_through_the_modes(lab: Lab, record_property: Recorder) -> None:
    """The control is a veth between two namespaces that nothing touches."""

    def through() -> str:
        for mode in ("Never", "CrossSubnet", "Always", "CrossSubnet"):
            set_mode(lab, mode)
        return "ipipMode through all its values"

    with open_to_containers(lab):
        for _ in range(RUNS):
            report = measure(lab, ENDPOINTS, through)
            if report.valid:
                break
        else:
            pytest.fail(f"no valid run in {RUNS}: {report.invalid}")
    loss = {f"{flow.source} to {flow.target}": flow.lost for flow in report.flows}
    record_property("lost", loss)
    record_property("sent", sum(flow.sent for flow in report.flows))
    assert {pair: lost for pair, lost in loss.items() if lost} == {}
    assert unmet(lab, CROSS_SUBNET) == []


@contextmanager
def open_to_containers(lab: Lab) -> Iterator[None]:
    """Have the router carry packets as they are, which Never takes: it refuses them else, and knows no way."""

    def told(refuse: str, ways: str) -> None:
        for rule in ("-s", "-d"):
            lab.exec("router", ["iptables", refuse, "FORWARD", rule, "10.77.0.0/16", "-j", "DROP"])
        for prefix, node in WAYS.items():
            lab.exec("router", ["ip", "route", ways, prefix, "via", node])

    told("-D", "add")
    try:
        yield
    finally:
        told("-A", "del")


def set_mode(lab: Lab, mode: str) -> None:
    """Have the pool's packets carried so, and return once every node sends them so."""
    spec = json.dumps({"spec": {"ipipMode": mode}})
    lab.exec("node1", ["fabricctl", "patch", "ippool", "containers", "-p", spec])
    until(lambda: all(device(lab, a, b) == wanted(mode, a, b) for a, b in PAIRS))


def wanted(mode: str, a: str, b: str) -> str:
    return "tunl0" if mode == "Always" or (mode == "CrossSubnet" and "node3" in (a, b)) else "eth1"


def device(lab: Lab, a: str, b: str) -> str:
    """Return by which device node `a` sends to the container of `b`."""
    return str(shown(lab, a, "route", "get", CONTAINERS[b])[0]["dev"])
