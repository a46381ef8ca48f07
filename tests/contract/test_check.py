"""`node check` on hosts with one thing wrong each, in a network namespace of their own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from fabric.config import Config
from fabric.errors import DataplaneError
from fabric.kernel import facts, probe
from fabric.kernel.facts import Listener, Vxlan
from fabric.kernel.threads import in_thread
from fabric.model.workloadendpoint import EndpointPort
from fabric.ops import check
from fabric.ops.findings import Cluster, Finding, judge
from fabric.ops.managers import NETWORKD_SNIPPET, NM_SNIPPET
from fabric.plan.encap import Kind
from fabric.store.etcd import connect
from tests.contract.etcd_server import EtcdServer
from tests.contract.netns import Namespace
from tests.contract.whole_node import tcp_server

# What the machine under the namespace is like: not what is tested here.
MACHINE = {"FAB1003", "FAB1004", "FAB1201", "FAB1303", "FAB1304", "FAB1501", "FAB1502", "FAB1503"}
NFT = "table inet fw { chain in { type filter hook input priority 0; policy drop; ct state established accept; }; }"


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A host with one uplink and no firewall."""
    with Namespace() as host:
        host.ip("link", "add", "eth0", "type", "veth", "peer", "name", "veth-far")
        host.ip("link", "set", "eth0", "up")
        host.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
        host.command("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0")
        yield host


def found(host: Namespace, root: Path = Path("/")) -> list[Finding]:
    return judge(host.run(check.read_host(None, root)), Cluster())


def ids(host: Namespace) -> list[str]:
    return [finding.id for finding in found(host) if finding.id not in MACHINE]


def test_a_sound_host_has_no_findings(host: Namespace) -> None:
    assert ids(host) == []


@pytest.mark.parametrize(
    ("commands", "want"),
    [
        (["sysctl -qw net.ipv4.conf.eth0.rp_filter=1"], ["FAB1301"]),
        (["iptables-nft -P FORWARD DROP"], []),
        (["iptables-legacy -P FORWARD DROP"], []),
        (["iptables-legacy -P FORWARD DROP", "iptables-nft -N fab-FORWARD"], ["FAB1401"]),
        (
            ["nft table inet fw { chain through { type filter hook forward priority 0; policy drop; }; }"],
            ["FAB1401"],
        ),
        (["iptables-nft -N ufw-user-input"], ["FAB1405"]),
        (["iptables-nft -A INPUT -p tcp --dport 179 -j DROP"], ["FAB1402"]),
        (["iptables-legacy -P INPUT DROP", "iptables-legacy -A INPUT -i lo -j ACCEPT"], ["FAB1402"]),
        (["nft " + NFT], ["FAB1402"]),
        (["nft " + NFT, "nft add rule inet fw in tcp dport { 22, 179 } accept"], []),
        (["iptables-legacy -A INPUT -j RETURN", "iptables-nft -A INPUT -j RETURN"], ["FAB1404"]),
        (["ip link set eth0 mtu 1200"], ["FAB1605"]),
    ],
    ids=lambda value: "; ".join(value)[:60],
)
def test_what_is_wrong_with_a_host_is_found(host: Namespace, commands: list[str], want: list[str]) -> None:
    for command in commands:
        host.command(*command.split())
    assert ids(host) == want


def test_etcd_behind_a_route_that_bgp_made_is_found_until_the_host_has_its_own(host: Namespace) -> None:
    def told() -> list[str]:
        read = host.run(check.read_host(None, etcd=("198.51.100.9:2379", "localhost:2379")))
        return [finding.cause for finding in judge(read, Cluster()) if finding.id not in MACHINE]

    host.ip("route", "add", "default", "via", "192.0.2.254", "proto", "143", "metric", "1024")
    assert told() == [
        "etcd endpoint 198.51.100.9:2379 is reached by 0.0.0.0/0 via 192.0.2.254, which BGP made"
    ]
    host.ip("route", "add", "198.51.100.9", "via", "192.0.2.254")
    assert told() == []


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1"])
def test_who_holds_the_bgp_port_is_found(host: Namespace, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with host.call(lambda: socket.create_server((address, 179), family=family)):
        [holder] = [finding for finding in found(host) if finding.id == "FAB1101"]
    assert "pytest" in holder.cause or "python" in holder.cause
    assert "FAB1101" not in ids(host)


def test_vxlan_devices_are_told_with_what_keeps_others_from_their_port(host: Namespace) -> None:
    for name, words in (
        ("a", "id 4096 dstport 4789 local 192.0.2.1 nolearning"),
        ("b", "id 4096 dstport 4789 local 2001:db8::1"),
        ("c", "external dstport 4790"),
        ("d", "id 7 dstport 4791 gbp"),
        ("e", "id 7 dstport 4792 udp6zerocsumrx"),
    ):
        host.ip("link", "add", f"vx-{name}", "type", "vxlan", *words.split())
    assert host.run(facts.vxlans()) == [
        Vxlan("vx-a", 4096, 4789, 4, shares=True),
        Vxlan("vx-b", 4096, 4789, 6, shares=True),
        Vxlan("vx-c", 0, 4790, 0, shares=False),
        Vxlan("vx-d", 7, 4791, 4, shares=False),
        Vxlan("vx-e", 7, 4792, 4, shares=False),
    ]
    host.ip("link", "set", "vx-a", "up")
    assert host.run(facts.listeners(4789, "udp")) == [Listener(0, "")], "the kernel's own socket"
    assert host.run(facts.listeners(4790, "udp")) == []


def test_a_port_cannot_be_published_where_a_process_has_it_nor_at_an_address_of_nobody(
    host: Namespace,
) -> None:
    def why(port: int, at: str = "", protocol: str = "TCP") -> str:
        asked = EndpointPort(protocol=protocol, port=80, host_port=port, host_ip=at)
        return host.run(check.unpublishable("n1", asked))

    with tcp_server(host, 9000):
        assert re.fullmatch(
            r"port 9000/tcp is taken on node n1: by \S+ \(pid [0-9]+\); publish another port", why(9000)
        )
        assert [why(9000, protocol="UDP"), why(9000, protocol="SCTP"), why(9001)] == ["", "", ""]
    assert "1.2.3.4 is no address of node n1" in why(9001, "1.2.3.4")
    speaker = (
        "import socket, time; held = socket.create_server(('', 179)); print(flush=True); time.sleep(100)"
    )
    argv = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "nsenter",
        f"--net={host.path}",
        sys.executable,
        "-c",
        speaker,
        "/x/exabgp_main.py",
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            said = why(179)
        finally:
            process.kill()
    assert said.startswith("port 179/tcp is taken on node n1: by fabricctl's own speaker (pid ")


@pytest.mark.parametrize(
    ("daemon", "snippet", "id_"),
    [("NetworkManager", NM_SNIPPET, "FAB1501"), ("systemd-networkd", NETWORKD_SNIPPET, "FAB1502")],
)
def test_a_network_manager_is_told_by_its_process_and_quiet_once_cured(
    host: Namespace, tmp_path: Path, daemon: str, snippet: tuple[str, str], id_: str
) -> None:
    root = tmp_path / "root"
    program = shutil.copy("/bin/sleep", tmp_path / daemon)
    with subprocess.Popen(["setpriv", "--pdeathsig", "KILL", program, "100"]) as process:
        try:
            # setpriv becomes the daemon by and by.
            while not facts.running({daemon}):
                assert process.poll() is None
            before = [finding for finding in found(host, root) if finding.id == id_]
            path = root / snippet[0].lstrip("/")
            path.parent.mkdir(parents=True)
            path.write_text(snippet[1])
            after = [finding for finding in found(host, root) if finding.id == id_]
        finally:
            process.kill()
    assert [snippet[0] in finding.cure for finding in before] == [True]
    assert after == []


def fabricctl(host: Namespace, *args: str) -> tuple[int, list[dict[str, str]]]:
    command = [sys.executable, "-m", "fabric.cli.main", *args, "-o", "json"]
    done = host.call(lambda: subprocess.run(command, capture_output=True, text=True, timeout=60, check=False))
    return done.returncode, json.loads(done.stdout)


def test_the_command_says_what_it_found_and_ends_with_1(host: Namespace) -> None:
    host.ip("addr", "add", "192.0.2.2/24", "dev", "eth0")
    status, told = fabricctl(host, "--etcd", "127.0.0.1:1", "node", "check")
    assert status == 1
    by_id = {finding["id"]: finding for finding in told}
    assert {"FAB1601", "FAB1701"} <= by_id.keys()
    assert by_id["FAB1601"] == {
        "id": "FAB1601",
        "severity": "error",
        "title": "the node address is not clear",
        "cause": "2 candidates (192.0.2.1/24 on eth0, 192.0.2.2/24 on eth0)",
        "cure": "choose one with --ip 192.0.2.1",
    }
    assert "Connection refused" in by_id["FAB1701"]["cause"]


def test_what_the_pools_need_is_read_from_the_datastore(host: Namespace) -> None:
    pool = {
        "kind": "IPPool",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "tunnels"},
        "spec": {"cidr": "192.0.2.0/24", "blockSize": 26, "ipipMode": "Always"},
    }
    with EtcdServer() as etcd:
        etcd.ctl("put", "/calico/resources/v3/projectcalico.org/ippools/tunnels", json.dumps(pool))
        wanted = asyncio.run(_cluster(etcd.url))
    assert wanted.tunnels == {"ipip"}
    told = judge(host.run(check.read_host(wanted)), wanted)
    assert "pool tunnels (192.0.2.0/24) meets 192.0.2.0/24 on eth0" in {finding.cause for finding in told}


@pytest.mark.parametrize("name", ["192.0.2.9", "no-such.invalid", "two..dots"])
def test_an_etcd_whose_name_has_no_address_is_for_its_client_to_complain_of(
    host: Namespace, name: str
) -> None:
    read = host.run(check.read_host(None, etcd=[f"{name}:2379"]))
    assert [list(map(str, found)) for found in read.etcd.values()] == ([[name]] if name[0] == "1" else [[]])


async def _cluster(url: str) -> Cluster:
    kv = connect(Config((url,)))
    try:
        return await check.read_cluster(kv)
    finally:
        await kv.close()


def test_a_rule_that_the_kernel_does_not_know_is_named(
    host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host.run(probe.missing_features()) == ()
    for backend in ("nft", "legacy"):
        tool = tmp_path / f"iptables-{backend}-restore"
        tool.write_text("#!/bin/sh\nif grep -q multiport; then exit 2; fi\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    [said] = host.run(probe.missing_features())
    assert "rule `-p tcp -m multiport --dports 80,443 -j RETURN` in table filter: Invalid argument" in said


async def test_a_kernel_lacks_a_kind_of_tunnel_only_where_it_says_that_it_knows_none() -> None:
    unknown: dict[Kind, Callable[[IPRoute], object]] = {
        "ipip": lambda ip: ip.link("add", ifname="probe9", kind="no-such-kind")
    }
    assert await in_thread(partial(probe.lacking, unknown)) == {"ipip": "Operation not supported"}
    held: dict[Kind, Callable[[IPRoute], object]] = {
        "vxlan": lambda ip: ip.link("add", ifname="lo", kind="dummy")
    }
    with pytest.raises(DataplaneError, match=r"whether the kernel has vxlan: .*EEXIST.*not known yet"):
        await in_thread(partial(probe.lacking, held))
