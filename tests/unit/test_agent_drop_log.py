"""What is said of a denied packet, and how many lines of it there are."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from fabric.agent.drop_log import Quota, event, sender, told, who
from fabric.agent.policing import policing
from fabric.agent.routing import Host
from fabric.agent.snapshot import Snapshot, fold
from fabric.agent.state import State
from fabric.kernel.nflog import Logged
from fabric.model.base import Resource
from fabric.model.hostendpoint import HostEndpoint
from fabric.model.node import Node
from fabric.model.wire import to_json
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.ops.resources import key_of
from fabric.store.kv import Changes, KeyValue
from policy import words
from policy.form import ICMP, TCP, Address, Endpoint, Icmp, Key, Origin, Packet
from policy.naming import prefix

A, B = ip_address("10.0.0.1"), ip_address("10.0.0.2")
DENIED = Origin("policy", "NetworkPolicy shop/db", "Ingress", 2)
SEGMENT = Packet(A, B, TCP, 40000, 5432)


def logged(packet: Packet = SEGMENT, text: str = "fab-deny:x") -> Logged:
    return Logged(text, "fab1", "fab2", packet)


def names(address: Address) -> str:
    return {A: "shop/web", B: "shop/db"}.get(address, "outside")


def test_a_denied_segment() -> None:
    assert told(logged(), DENIED, names, "n1") == {
        "node": "n1",
        "direction": "ingress",
        "source": "10.0.0.1",
        "source_endpoint": "shop/web",
        "destination": "10.0.0.2",
        "destination_endpoint": "shop/db",
        "protocol": "tcp",
        "source_port": 40000,
        "destination_port": 5432,
        "policy": "NetworkPolicy shop/db",
        "rule": 2,
        "by": words.of_origin(DENIED),
        "in_link": "fab1",
        "out_link": "fab2",
    }


def test_a_denied_echo_from_outside_that_no_rule_allowed() -> None:
    packet = Packet(ip_address("203.0.113.7"), B, ICMP, icmp=Icmp(8, 0))
    found = told(Logged("", "eth0", "", packet), Origin("tier", "default", "Ingress"), names, "n1")
    assert (found["source_endpoint"], found["icmp_type"], found["icmp_code"]) == ("outside", 8, 0)
    assert "default" in str(found["by"])
    assert not found.keys() & {"policy", "rule", "source_port", "destination_port", "out_link"}


@pytest.mark.parametrize(
    ("verb", "staged", "want"),
    [
        ("deny", False, "packet denied"),
        ("deny", True, "packet would be denied"),
        ("log", False, "packet logged"),
        ("log", True, "packet logged"),
    ],
)
def test_what_happened_to_it(verb: str, staged: bool, want: str) -> None:
    origin = Origin("policy", "x", staged=staged)
    assert event(logged(text=prefix("deny" if verb == "deny" else "log", origin)), origin) == want


STORED: tuple[Resource, ...] = (
    Node.model_validate({"metadata": {"name": "n1"}, "spec": {"bgp": {"ipv4Address": "192.0.2.1/24"}}}),
    WorkloadEndpoint.model_validate(
        {
            "metadata": {"name": "n1-fabricctl-web-eth0", "namespace": "shop"},
            "spec": {"node": "n1", "orchestrator": "fabricctl", "workload": "web", "endpoint": "eth0",
                     "ipNetworks": ["10.0.0.1/32"], "interfaceName": "fab1"},
        }
    ),
    HostEndpoint.model_validate(
        {"metadata": {"name": "n2-eth0"}, "spec": {"node": "n2", "expectedIPs": ["192.0.2.2"]}}
    ),
)  # fmt: skip


def test_who_has_an_address() -> None:
    puts = tuple(KeyValue(key_of(one), to_json(one), 1) for one in STORED)
    state = State("n1")
    state.snapshot = fold(Snapshot(), Changes(1, puts, ()))
    assert who(state, A) == ""
    host = Host(links={"eth0": frozenset({ip_address("192.0.2.1")})})
    state.policing = policing("n1", state.snapshot, host, None)
    found = [who(state, ip_address(text)) for text in ("10.0.0.1", "192.0.2.1", "192.0.2.2", "203.0.113.7")]
    assert found == ["shop/web", "n1", "host endpoint n2-eth0", "outside"]


def test_a_spoofed_packet_is_of_the_workload_whose_link_it_came_by() -> None:
    endpoints = [
        Endpoint(Key(kind, "shop", kind), "n1", interface, frozenset())
        for kind, interface in (
            ("HostEndpoint", "fab1"),
            ("WorkloadEndpoint", "fab1"),
            ("WorkloadEndpoint", "fab2"),
        )
    ]
    assert sender(logged(), endpoints) == endpoints[1]
    assert sender(Logged("", "fab9", "", SEGMENT), endpoints) is None


def test_a_quota_counts_what_it_leaves_out() -> None:
    quota = Quota(2)
    taken = [quota.take(now) for now in (100.0, 100.5, 100.9, 100.99, 101.0, 101.1, 101.2, 110.0)]
    assert taken == [True, True, False, False, True, True, False, True]
    assert quota.left_out == 3
