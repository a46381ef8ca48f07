"""A node without its datastore, and pools that change under running workloads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from fabric.ipam import block
from fabric.store import keys
from tests.scenarios.fabric import AGENT, FRR, NODE1, NODE2, OURS, SUPERVISOR, Fabric, until, up

pytestmark = pytest.mark.alone

RUNS = 3  # attempts at a valid measurement
LONGEST_PAUSE = 0.2  # seconds without a datagram sent that make a run invalid
SECOND = ip_network("10.99.0.0/24")


@pytest.fixture(scope="module")
def joined() -> Iterator[Fabric]:
    """Two nodes, web on the first and db on the second, which answers."""
    with up(FRR, "datastore") as fabric:
        fabric.join(NODE1, NODE2)
        fabric.attach("node1", "web")
        fabric.attach("node2", "db")
        with fabric.echo("node2", "/run/netns/db"):
            yield fabric


@pytest.fixture
def fabric(joined: Fabric) -> Fabric:
    """The same, healthy again after the test before."""
    until(lambda: healthy(joined))
    return joined


def status(fabric: Fabric, node: str = "node1") -> Any:
    """Return what the node says of itself, None while its agent does not answer."""
    shown = fabric.run(node, "fabricctl", "node", "status", "-o", "json", check=False).stdout
    return json.loads(shown) if shown else None


def healthy(fabric: Fabric) -> bool:
    answers = [status(fabric, node) for node in ("node1", "node2")]
    if not all(a and a["ready"] for a in answers) or not fabric.established("node1", "node2"):
        return False
    (two,) = fabric.blocks("node2")
    return two in fabric.routes("node1") and {*fabric.blocks("node1"), two} <= fabric.table().keys()


def picture(fabric: Fabric) -> Any:
    return fabric.table(), fabric.links("node1"), fabric.routes("node1"), fabric.neighbours("node1")


def killed_without_etcd(fabric: Fabric) -> None:
    """Kill the agent while etcd is away; return when the new one works from its copy."""
    before = fabric.pids("node1", AGENT)
    fabric.kill("node1", AGENT)
    until(lambda: (pids := fabric.pids("node1", AGENT)) and pids != before)
    until(lambda: works_from_its_copy(fabric))


def works_from_its_copy(fabric: Fabric) -> bool:
    answer = status(fabric)
    return bool(answer and answer["datastore"]["copied"])


@contextmanager
def no_etcd(fabric: Fabric) -> Iterator[None]:
    """etcd refuses every connection until the block ends, also those that stand."""
    rule = ["INPUT", "-p", "tcp", "--dport", "2379", "-j", "REJECT", "--reject-with", "tcp-reset"]
    fabric.run("etcd", "iptables", "-I", *rule)
    try:
        yield
    finally:
        fabric.run("etcd", "iptables", "-D", *rule)


def test_an_agent_that_is_killed_while_etcd_is_away_loses_no_datagram_and_says_that_it_is_stale(
    fabric: Fabric,
) -> None:
    before = picture(fabric)
    db = fabric.workloads("node2")["db"]["addresses"][0]
    add = ("workload", "add", "late", "--netns", fabric.netns("node1", "late"))
    with fabric.frozen_etcd():
        for _ in range(RUNS):
            with fabric.sender("node1", "/run/netns/web", db) as finish:
                killed_without_etcd(fabric)
                refused = fabric.refused("node1", *add)
                said = status(fabric)
                report = finish()
            if report.pause < LONGEST_PAUSE:
                break
        else:
            pytest.fail(f"no valid run in {RUNS}: the machine is too busy to measure: {report}")
        shown = fabric.run("node1", "fabricctl", "node", "status", check=False).stdout
        assert report.lost == []
        assert picture(fabric) == before
        assert not said["ready"]
        assert said["datastore"]["stale_since"] > 0
        assert said["workloads"] == 1
        assert "from this node's copy" in shown
        assert "not in sync" in refused
        assert "nothing was attached" in refused
    until(lambda: healthy(fabric))
    assert picture(fabric) == before
    assert status(fabric)["datastore"]["stale_since"] is None
    fabric.ctl("node1", *add)
    fabric.ctl("node1", "workload", "del", "late")
    assert picture(fabric) == before


def test_a_node_that_boots_while_etcd_is_away_comes_up_from_its_copy(fabric: Fabric) -> None:
    fabric.attach("node1", "spare")
    spare = fabric.workloads("node1")["spare"]
    before = picture(fabric)
    with no_etcd(fabric):
        # What a reboot takes from a host.
        fabric.kill("node1", SUPERVISOR)
        until(lambda: not fabric.pids("node1", OURS))
        links = "; ".join(f"ip link del {link}" for link in fabric.links("node1"))
        fabric.run("node1", "sh", "-c", f"{links}; ip route flush proto 143; rm -r /run/fabricctl")
        assert "`fabricctl node start` needs no etcd" in fabric.refused(
            "node1", *fabric.join_arguments(NODE1)
        )
        for _ in range(2):  # the second time it runs already
            assert "from this node's copy" in fabric.ctl("node1", "node", "start")
        until(lambda: picture(fabric) == before)
        assert fabric.pings("node2", spare["addresses"][0], "db")
        assert not status(fabric)["ready"]
    until(lambda: healthy(fabric))
    assert picture(fabric) == before
    fabric.ctl("node1", "workload", "del", "spare")


def test_what_went_while_node_and_etcd_were_apart_goes_when_they_meet(fabric: Fabric) -> None:
    before = fabric.links("node1")
    fabric.attach("node1", "doomed")
    # The agent is kept from seeing it: it stands still, etcd goes on.
    (agent,) = fabric.pids("node1", AGENT)
    fabric.run("node1", "kill", "-STOP", str(agent))
    try:
        endpoint = keys.ResourceKey("workloadendpoints", "default", "node1-fabricctl-doomed-eth0").path
        fabric.run("etcd", "etcdctl", "del", endpoint)
        with no_etcd(fabric):
            killed_without_etcd(fabric)
            until(lambda: len(fabric.links("node1")) == len(before) + 1)
    finally:
        fabric.run("node1", "sh", "-c", f"kill -CONT {agent} 2>/dev/null || true")
    until(lambda: fabric.links("node1") == before)


def test_an_etcd_that_lost_everything_takes_nothing_away_not_even_from_an_agent_that_starts_there(
    fabric: Fabric,
) -> None:
    before, stored = picture(fabric), fabric.keys()
    fabric.run("etcd", "etcdctl", "del", "", "--prefix")
    try:
        until(lambda: "etcd has no cluster" in status(fabric)["datastore"]["lost"])
        killed_without_etcd(fabric)
        assert "etcd has no cluster" in status(fabric)["datastore"]["lost"]
        assert "nothing was changed" in fabric.refused("node1", "node", "leave")
        assert picture(fabric) == before
    finally:
        # Where a node is known, what else is there is all it has: so they come last.
        for key in sorted(stored, key=lambda key: "/nodes/" in key or "/clusterinformations/" in key):
            fabric.run("etcd", "etcdctl", "put", key, "--", stored[key])
    until(lambda: healthy(fabric))
    assert picture(fabric) == before


def test_a_host_whose_forwarding_is_not_ours_to_turn_on_keeps_it_as_it_is(fabric: Fabric) -> None:
    def apply(**spec: str) -> None:
        document = {"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration"}
        document |= {"metadata": {"name": "node.node1"}, "spec": spec}  # type: ignore[dict-item]
        fabric.ctl("node1", "apply", "-f", "-", stdin=json.dumps(document))

    def forwarding() -> str:
        return fabric.run("node1", "sysctl", "-n", "net.ipv4.ip_forward").stdout.strip()

    assert forwarding() == "1"
    apply(ipForwarding="Disabled")
    fabric.run("node1", "sysctl", "-qw", "net.ipv4.ip_forward=0")
    try:
        fabric.kill("node1", AGENT)
        until(lambda: healthy(fabric))
        assert forwarding() == "0"
    finally:
        apply(ipForwarding="Enabled")
    until(lambda: forwarding() == "1")


def test_a_pool_lives_and_dies_under_running_workloads(fabric: Fabric) -> None:
    def pool(**more: object) -> str:
        spec = {"cidr": str(SECOND), "blockSize": 28, "natOutgoing": False} | more
        return json.dumps(
            {
                "apiVersion": "projectcalico.org/v3",
                "kind": "IPPool",
                "metadata": {"name": "second"},
                "spec": spec,
            }
        )

    def apply(document: str) -> str:
        return fabric.run("node1", "fabricctl", "apply", "-f", "-", stdin=document, check=False).stderr

    assert apply(pool()) == ""
    one = fabric.attach("node1", "one", "--pool", "second")
    assert ip_address(one) in SECOND
    assert fabric.pings("node1", one, "web")  # the router lets no prefix of that pool in, so from here

    for changed in ({"blockSize": 29}, {"cidr": "10.99.0.0/25"}):
        refused = apply(pool(**changed))
        assert next(iter(changed)) in refused  # the field
        assert "may not become" in refused
        assert "node1" in refused

    assert apply(pool(disabled=True)) == ""
    late = fabric.netns("node1", "late-pool")
    said = until(
        lambda: (
            fabric.run(
                "node1", *f"fabricctl workload add late --netns {late} --pool second".split(), check=False
            ).stderr
        )
    )
    assert "disabled" in said
    assert fabric.pings("node1", one, "web")

    fabric.ctl("node1", "delete", "ippool", "second")
    assert fabric.pings("node1", one, "web")
    held = blocks_in_second(fabric)
    assert [(b.affinity, len(b.owners) - len(b.free)) for b in held] == [(None, 1)]
    fabric.ctl("node1", "workload", "del", "one")
    assert blocks_in_second(fabric) == []


def blocks_in_second(fabric: Fabric) -> list[block.Block]:
    stored = [block.from_json(v) for key, v in fabric.keys().items() if key.startswith(keys.BLOCKS)]
    return [b for b in stored if b.prefix.overlaps(SECOND)]
