"""Labs of address translation: what leaves the fabric, what comes in by published ports, and what is never touched."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from fabric.lab.lab import Lab
from fabric.lab.node import NodeProcess
from tests.scenarios.fabric import FLOW, PORT, until
from tests.scenarios.shipped import missed, shipped, unmet


@contextmanager
def applied(lab: Lab, kind: str, name: str, spec: object, **metadata: object) -> Iterator[None]:
    """This resource is there while the block runs."""
    text = json.dumps(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": kind,
            "metadata": {"name": name, **metadata},
            "spec": spec,
        }
    )
    lab.exec("node1", ["fabricctl", "apply", "-f", "-"], input=text)
    try:
        yield
    finally:
        lab.exec("node1", ["fabricctl", "delete", "-f", "-"], input=text)


def refused(lab: Lab, node: str, *arguments: str, status: int = 1) -> str:
    """Return the message of a `fabricctl` that must fail, as an operator's mistake and not as a crash."""
    done = lab.exec(node, ["fabricctl", *arguments], check=False)
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr
    return done.stderr


# nat


@pytest.fixture(scope="module")
def nat() -> Iterator[Lab]:
    """One lab for all of the tests below, each of which leaves it whole."""
    with shipped("nat") as lab:
        assert missed(lab) == []
        yield lab


def test_hosts_of_the_fabric_may_be_excepted(nat: Lab) -> None:
    with applied(nat, "FelixConfiguration", "default", {"natOutgoingExclusions": "IPPoolsAndHostIPs"}):
        text = (
            "translated:\n- {from: web, to: node2, tcp: 22, as: 10.77.1.1}\n"
            "- {from: web, to: outside, tcp: 80, as: 10.10.1.11}\nuntranslated: [{from: web, to: node2}]\n"
        )
        assert unmet(nat, text) == []
    assert missed(nat) == []


def test_another_address_of_the_node_may_be_given(nat: Lab) -> None:
    nat.exec("node1", ["ip", "address", "replace", "10.10.1.21/24", "dev", "eth1"])
    with applied(nat, "FelixConfiguration", "node.node1", {"natOutgoingAddress": "10.10.1.21"}):
        assert unmet(nat, "translated: [{from: web, to: outside, tcp: 80, as: 10.10.1.21}]") == []
    nat.exec("node1", ["ip", "address", "del", "10.10.1.21/24", "dev", "eth1"])
    assert missed(nat) == []


def test_traffic_inside_the_fabric_is_never_translated_also_in_a_tunnel(nat: Lab) -> None:
    """Seen by capture at both ends and at every node and router on the way."""
    inside = (
        "untranslated:\n- {from: [web, bare], to: [api, plain]}\n- {from: [api, plain], to: [web, bare], tcp: 80}\n"
        "- {from: web, to: bare, udp: 53}\n"
    )
    for mode, mtu in (("Always", 1450), ("Never", 1500)):
        nat.exec(
            "node1", ["fabricctl", "patch", "ippool", "inside", "-p", f"{{spec: {{vxlanMode: {mode}}}}}"]
        )
        way = "native" if mode == "Never" else "vxlan"
        assert unmet(nat, f"{inside}encapsulated: [{{from: web, to: api, as: {way}, on: 'lan:eth1'}}]") == []
        # Its other family needs no tunnel: the device has its size, and the route of this one says less.
        assert sizes(nat, "web") == (1500, mtu)
    assert missed(nat) == []


def sizes(lab: Lab, netns: str) -> tuple[int, int]:
    """Return what a workload of node1 sends at most: its device's MTU, and that of its IPv4 route."""
    inside = ["nsenter", f"--net=/run/netns/{netns}", "ip", "-j"]
    (link,) = json.loads(lab.exec("node1", [*inside, "link", "show", "dev", "eth0"]).stdout)
    (route,) = json.loads(lab.exec("node1", [*inside, "route", "show", "default"]).stdout)
    locked = {key: value for each in route.get("metrics", ()) for key, value in each.items()}
    return link["mtu"], locked.get("mtu", link["mtu"])


def test_a_published_port_of_a_translated_pool_is_seen_as_its_clients_are(nat: Lab) -> None:
    """A node's address is outside the pools, so who asks for it from there comes as its own node."""
    ports = [{"name": "http", "protocol": "TCP", "port": 80, "hostPort": 8080}]
    name = "node1-fabricctl-web-eth0"
    nat.exec("node1", ["fabricctl", "patch", "wep", name, "-p", json.dumps({"spec": {"ports": ports}})])
    text = (
        "published:\n- {from: [outside, bare, plain, node2], to: 10.10.1.11, tcp: 8080, at: web, port: 80}\n"
        "- {from: api, to: 10.10.1.11, tcp: 8080, at: web, port: 80, sees: 10.10.1.12}\n"
        "- {from: [node1, web], to: 10.10.1.11, tcp: 8080, at: web, port: 80, sees: 10.10.1.11}\n"
    )
    assert unmet(nat, text) == []
    nat.exec("node1", ["fabricctl", "patch", "wep", name, "-p", json.dumps({"spec": {"ports": []}})])
    assert missed(nat) == []


def test_a_pool_that_stops_translating_stops_at_once_and_begins_again(nat: Lab) -> None:
    for value, seen in (("false", "10.77.1.1"), ("true", "10.10.1.11")):
        nat.exec(
            "node1", ["fabricctl", "patch", "ippool", "inside", "-p", f"{{spec: {{natOutgoing: {value}}}}}"]
        )
        # The router sends answers nowhere while containers' own addresses go out.
        nat.exec(
            "router",
            f"ip route replace 10.77.1.0/26 via 10.10.1.11{' metric 7' if value == 'true' else ''}".split(),
        )
        assert unmet(nat, f"translated: [{{from: web, to: outside, tcp: 80, as: {seen}}}]") == []
    nat.exec("router", ["ip", "route", "flush", "10.77.1.0/26"])
    assert missed(nat) == []


# publish


@pytest.fixture(scope="module")
def publish() -> Iterator[Lab]:
    """One lab for all of the tests below, each of which leaves it whole."""
    with shipped("publish") as lab:
        assert missed(lab) == []
        yield lab


def attach(lab: Lab, name: str, *options: str) -> None:
    lab.exec("node1", ["fabricctl", "workload", "add", name, "--netns", name, *options])


AS_BEFORE = ("--ip", "10.77.1.2", "--pool", "v4", "--pool", "v6")
BATCH = "published: [{{from: [outside, node1], to: 10.10.1.11, {port}, at: batch, port: 80{more}}}]"


def test_a_port_is_gone_with_its_workload(publish: Lab) -> None:
    publish.exec("node1", ["fabricctl", "workload", "del", "batch"])
    attach(publish, "batch", *AS_BEFORE, "--publish", "8081:80", "--publish", "8081:80/udp")
    for port in ("tcp: 8081", "udp: 8081"):
        assert unmet(publish, BATCH.format(port=port, more="")) == []
    publish.exec("node1", ["fabricctl", "workload", "del", "batch"])
    attach(publish, "batch", *AS_BEFORE)
    for port in ("tcp: 8081", "udp: 8081"):
        assert unmet(publish, BATCH.format(port=port, more=", expect: refused")) == []
    assert missed(publish) == []


def test_datagrams_follow_a_port_to_its_next_holder(publish: Lab) -> None:
    """From the same socket all the time: what conntrack knows of the last holder does not outlive it."""
    inside = ("nsenter", "--net=/run/netns/late", "--")
    publish.exec("node1", ["ip", "netns", "add", "late"])
    publish.exec("node1", ["fabricctl", "workload", "del", "batch"])
    attach(publish, "batch", *AS_BEFORE, "--publish", f"8081:{PORT}/udp")
    with (
        flow(publish, "node1", "echo", str(PORT), inside=("nsenter", "--net=/run/netns/batch", "--")),
        flow(publish, "outside", "send", "10.10.1.11", "8081") as sender,
    ):
        publish.exec("node1", ["fabricctl", "workload", "del", "batch"])
        attach(publish, "late", "--publish", f"8081:{PORT}/udp")
        with flow(publish, "node1", "echo", str(PORT), inside=inside):
            until(lambda: sent(publish, "late") >= 20)
            sender.terminate()
            report = json.loads(sender.communicate(timeout=10)[0])
    assert max(report["lost"]) < report["sent"] - 5
    assert report["seen_as"] == ["10.10.4.2"]
    publish.exec("node1", ["fabricctl", "workload", "del", "late"])
    publish.exec("node1", ["ip", "netns", "del", "late"])
    attach(publish, "batch", *AS_BEFORE)
    assert missed(publish) == []


@contextmanager
def flow(lab: Lab, node: str, *arguments: str, inside: Sequence[str] = ()) -> Iterator[NodeProcess]:
    """Run tests/scenarios/flow.py while the block runs; it works when the block begins."""
    argv = [*inside, sys.executable, "-I", "-S", str(FLOW), *arguments]
    with lab.popen(node, argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def sent(lab: Lab, netns: str) -> int:
    """Return how many packets a workload of node1 has sent."""
    argv = ["nsenter", f"--net=/run/netns/{netns}", "ip", "-s", "-j", "link", "show", "dev", "eth0"]
    (link,) = json.loads(lab.exec("node1", argv).stdout)
    return int(link["stats64"]["tx"]["packets"])


def test_ports_written_by_others_act_the_same(publish: Lab) -> None:
    name = "node1-fabricctl-batch-eth0"
    ports = [{"name": "http", "protocol": "TCP", "port": 80, "hostPort": 8082, "hostIP": "10.10.1.11"}]
    publish.exec("node2", ["fabricctl", "patch", "wep", name, "-p", json.dumps({"spec": {"ports": ports}})])
    assert unmet(publish, BATCH.format(port="tcp: 8082", more="")) == []
    publish.exec("node2", ["fabricctl", "patch", "wep", name, "-p", json.dumps({"spec": {"ports": []}})])
    assert unmet(publish, BATCH.format(port="tcp: 8082", more=", expect: refused")) == []
    assert missed(publish) == []


def test_a_taken_port_is_refused_and_its_holder_named(publish: Lab) -> None:
    publish.exec("node1", ["ip", "netns", "add", "late"])
    add = ("workload", "add", "late", "--netns", "late", "--publish")
    said = refused(publish, "node1", *add, "8080:80")
    assert "8080" in said
    assert "web" in said
    assert "web" in refused(publish, "node1", *add, "10.10.1.21:8080:81")
    assert "::1" in refused(publish, "node1", *add, "[::1]:8083:80", status=2)
    with publish.popen("node1", ["python3", "-m", "http.server", "8084"]) as server:
        until(lambda: ":8084" in publish.exec("node1", ["ss", "-Hltn"]).stdout)
        said = refused(publish, "node1", *add, "8084:80")
        server.kill()
    assert "python3" in said
    # Another protocol, or another address than the one that it is published on, is free.
    attach(publish, "late", "--publish", "8080:80/udp", "--publish", "10.10.1.11:9090:90")
    publish.exec("node1", ["fabricctl", "workload", "del", "late"])
    publish.exec("node1", ["ip", "netns", "del", "late"])
    assert missed(publish) == []


def test_policy_sees_the_containers_port_and_the_clients_address(publish: Lab) -> None:
    spec = {
        "selector": "all()",
        "ingress": [
            {
                "action": "Allow",
                "protocol": "TCP",
                "source": {"nets": ["10.10.4.2/32"]},
                "destination": {"ports": [80]},
            }
        ],
    }
    with applied(publish, "NetworkPolicy", "outside-alone", spec, namespace="default"):
        text = (
            "published:\n- {from: outside, to: 10.10.1.11, tcp: 8080, at: web, port: 80}\n"
            "- {from: [node2, api], to: 10.10.1.11, tcp: 8080, at: web, port: 80, expect: refused}\n"
            "- {from: outside, to: 10.10.1.21, tcp: 9090, at: web, port: 90, expect: refused}\n"
        )
        assert unmet(publish, text) == []
    assert missed(publish) == []


def test_list_shows_what_is_published(publish: Lab) -> None:
    wide = publish.exec("node1", ["fabricctl", "workload", "list", "-o", "wide"]).stdout
    assert all(port in wide for port in ("8080", "5353", "10.10.1.21:9090")), wide
