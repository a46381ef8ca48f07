"""Mistakes an operator may make: each is named with the state that is left and the way out, and changes nothing."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.scenarios.fabric import ETCD, FRR, NODE1, NODE2, Fabric, until, up

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
# Four blocks of one address each: soon exhausted.
TINY_POOL = """
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: tiny}
spec: {cidr: 10.77.0.0/30, blockSize: 32}
"""
LISTEN = "import socket, sys; s = socket.create_server(('', 179)); print('up', flush=True); sys.stdin.read()"


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    """The first node has joined, with web attached, on a pool of four addresses; the second has not."""
    with up(FRR, "mistakes") as fabric:
        fabric.run("node1", "env", f"ETCD_ENDPOINTS={ETCD}", "fabricctl", "apply", "-f", "-", stdin=TINY_POOL)
        fabric.join(NODE1)
        fabric.attach("node1", "web")
        until(
            lambda: "default" in fabric.routes("node1")
        )  # the router's first word; there is no other to come
        yield fabric


@contextmanager
def nothing_changes(fabric: Fabric) -> Iterator[None]:
    """Hold datastore and both hosts to what they were."""
    before = fabric.revisions(), fabric.host_state("node1"), fabric.host_state("node2")
    yield
    assert (fabric.revisions(), fabric.host_state("node1"), fabric.host_state("node2")) == before


def says(message: str, *parts: str) -> bool:
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in: {message}"
    return True


def join(name: str = "node2", etcd: str = ETCD, *options: str) -> list[str]:
    return [
        "node",
        "join",
        "--name",
        name,
        "--etcd",
        etcd,
        "--as",
        "65002",
        "--peer",
        "10.10.2.1=65000",
        *options,
    ]


@pytest.mark.parametrize("etcd", ["10.10.3.2:1", "10.10.3.99:2379"], ids=["nobody listens", "no such host"])
def test_join_without_etcd(fabric: Fabric, etcd: str) -> None:
    with nothing_changes(fabric):
        message = fabric.refused("node2", *join(etcd=etcd))
    assert says(message, etcd, "nothing was", "try again")


def test_join_on_a_host_without_an_address(fabric: Fabric) -> None:
    def rename(old: str, new: str) -> None:
        fabric.run("node2", "ip", "link", "set", old, "down")
        fabric.run("node2", "ip", "link", "set", old, "name", new, "up")
        fabric.run("node2", "ip", "route", "replace", "10.10.3.0/24", "via", "10.10.2.1")

    rename("eth1", "cni0")  # a name that marks a link as no uplink
    try:
        with nothing_changes(fabric):
            message = fabric.refused("node2", *join())
    finally:
        rename("cni0", "eth1")
    assert says(message, "node address", "no link that is up has an IPv", "nothing was changed", "--ip")


def test_join_on_a_host_with_two_addresses(fabric: Fabric) -> None:
    with another_address(fabric, "10.20.0.2/24"), nothing_changes(fabric):
        message = fabric.refused("node2", *join())
    assert says(message, "2 candidates", "10.10.2.2/24 on eth1", "10.20.0.2/24 on eth1")
    assert says(message, "nothing was changed", "choose one with --ip")


@contextmanager
def another_address(fabric: Fabric, address: str) -> Iterator[None]:
    fabric.run("node2", "ip", "addr", "add", address, "dev", "eth1")
    try:
        yield
    finally:
        fabric.run("node2", "ip", "addr", "del", address, "dev", "eth1")


def test_join_with_an_address_that_the_host_has_not(fabric: Fabric) -> None:
    with nothing_changes(fabric):
        message = fabric.refused("node2", *join("node2", ETCD, "--ip", "10.10.2.77"))
    assert says(
        message, "--ip 10.10.2.77", "on no link of this host", "10.10.2.2", "nothing was changed", "choose"
    )


def test_join_with_the_address_of_another_node(fabric: Fabric) -> None:
    with another_address(fabric, "10.10.1.2/32"), nothing_changes(fabric):
        message = fabric.refused("node2", *join("node2", ETCD, "--ip", "10.10.1.2"))
    assert says(
        message, "address 10.10.1.2", "node node1", node_id(fabric), "nothing was changed", "another address"
    )
    assert len(set(re.findall(UUID, message))) == 2


def node_id(fabric: Fabric) -> str:
    return fabric.run("node1", "cat", "/var/lib/fabricctl/node-id").stdout.strip()


def test_join_with_the_name_of_another_node(fabric: Fabric) -> None:
    with nothing_changes(fabric):
        message = fabric.refused("node2", *join("node1"))
    assert says(message, 'node name "node1"', "taken", node_id(fabric), "left alone", "another --name")
    assert len(set(re.findall(UUID, message))) == 2


def test_join_where_another_daemon_has_the_bgp_port(fabric: Fabric) -> None:
    pipe = subprocess.PIPE
    with fabric.lab.popen("node2", [sys.executable, "-c", LISTEN], stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "up\n"
        (pid,) = fabric.pids("node2", "create_server")
        with nothing_changes(fabric):
            message = fabric.refused("node2", *join())
        holder.kill()
    assert says(
        message,
        "port 179",
        f"held by {Path(sys.executable).name} (pid {pid})",
        "nothing was changed",
        "stop it",
    )


def test_join_as_another_name_on_a_host_that_is_a_node(fabric: Fabric) -> None:
    with nothing_changes(fabric):
        message = fabric.refused("node1", *join("other"))
    assert says(message, '"node1" already', "nothing was changed", "fabricctl node leave")


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_join_without_being_root(fabric: Fabric, node: str) -> None:
    with nothing_changes(fabric):
        done = fabric.run_as_nobody(node, "fabricctl", *join(node), check=False)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    assert says(done.stderr, "not root", "nothing was changed", "run this as root")


@pytest.mark.parametrize(
    "command",
    ["workload list", "node status", "bgp peers", "node leave", "workload add a --netns /run/netns/web"],
)
def test_asking_the_agent_without_being_root(fabric: Fabric, command: str) -> None:
    with nothing_changes(fabric):
        done = fabric.run_as_nobody("node1", "fabricctl", *command.split(), check=False)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    assert says(done.stderr, "nothing was", "root")


@pytest.mark.parametrize("command", ["workload list", "node status", "bgp routes best"])
def test_asking_an_agent_that_does_not_run(fabric: Fabric, command: str) -> None:
    with nothing_changes(fabric):
        message = fabric.refused("node2", *command.split())
    assert says(
        message, "/run/fabricctl/agent.sock", "not running", "nothing was done", "fabricctl node join"
    )


def test_leaving_without_having_joined(fabric: Fabric) -> None:
    with nothing_changes(fabric):
        message = fabric.refused("node2", "node", "leave")
    assert says(message, "not a node", "nothing was changed")


def test_attach_with_no_address_left(fabric: Fabric) -> None:
    more = ["two", "three", "four"]
    for name in more:
        fabric.attach("node1", name)
    path = fabric.netns("node1", "five")
    with nothing_changes(fabric):
        message = fabric.refused("node1", "workload", "add", "five", "--netns", path)
    assert says(
        message, "node node1", "no address left", "tiny (10.77.0.0/30)", "nothing was allocated", "add a pool"
    )
    for name in more:
        fabric.ctl("node1", "workload", "del", name)


def test_attach_with_an_address_that_is_held(fabric: Fabric) -> None:
    held = fabric.workloads("node1")["web"]["addresses"][0]
    path = fabric.netns("node1", "second")
    with nothing_changes(fabric):
        message = fabric.refused("node1", "workload", "add", "second", "--netns", path, "--ip", held)
    assert says(message, f"address {held}", "default.node1-fabricctl-web-eth0 on node1")
    assert says(message, "nothing was allocated", "choose another address")


def test_attach_with_an_address_in_no_pool(fabric: Fabric) -> None:
    path = fabric.netns("node1", "third")
    with nothing_changes(fabric):
        message = fabric.refused("node1", "workload", "add", "third", "--netns", path, "--ip", "192.0.2.1")
    assert says(message, "address 192.0.2.1", "10.77.0.0/30", "nothing was allocated")


def test_attach_with_a_name_that_is_attached_elsewhere(fabric: Fabric) -> None:
    path = fabric.netns("node1", "fourth")
    with nothing_changes(fabric):
        message = fabric.refused("node1", "workload", "add", "web", "--netns", path)
    assert says(
        message, "default/web", "node1", "/run/netns/web", "nothing was changed", "fabricctl workload del web"
    )


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/run/netns/gone", "No such file or directory"),
        ("/etc/hostname", "is not a network namespace"),
        ("/proc/1/ns/mnt", "is not a network namespace"),
        ("/run", "is not a network namespace"),
    ],
)
def test_attach_of_what_is_no_network_namespace(fabric: Fabric, path: str, why: str) -> None:
    with nothing_changes(fabric):
        message = fabric.refused("node1", "workload", "add", "odd", "--netns", path)
    assert says(message, "default/odd", path, why, "nothing was attached")


def test_delete_of_a_workload_that_is_not_there(fabric: Fabric) -> None:
    with nothing_changes(fabric):
        message = fabric.refused("node1", "workload", "del", "nobody")
    assert says(message, "default/nobody", "not on node node1", "nothing was removed")


def test_a_router_with_another_as_for_us_is_named_and_the_session_recovers_when_it_is_mended() -> None:
    def expect(fabric: Fabric, as_number: int) -> None:
        commands = ("configure", "router bgp 65000", f"neighbor {NODE2.address} remote-as {as_number}")
        fabric.run("tor", "vtysh", *(part for command in commands for part in ("-c", command)))

    with up(FRR, "wrong-as") as fabric:
        expect(fabric, 64999)
        message = fabric.refused("node2", *join())
        assert says(
            message,
            "10.10.2.1 (AS 65000)",
            "notification received (2,2) bad peer AS",
            "has joined and keeps trying",
            "compare",
        )
        assert [node["metadata"]["name"] for node in fabric.ask("node2", "node", "list")] == ["node2"]
        expect(fabric, NODE2.as_number)
        until(lambda: fabric.established("node2"))
        assert "nothing to change" in fabric.ctl("node2", *join())
