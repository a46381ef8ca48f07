"""What a node that leaves takes out of a real kernel, and that what is refused holds up nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from fabric.errors import FabricError
from fabric.kernel.tunnels import NetlinkTunnels
from fabric.ops.leave import sweep
from fabric.plan.encap import VXLAN
from fabric.plan.routes import FABRIC_PROTO
from fabric.plan.tunnels import Tunnel
from tests.contract.netns import Namespace

RULES = "*filter\n:fab-x - [0:0]\n-A fab-x -m comment --comment fab:{0} -j DROP\n"
HOOK = "-A FORWARD -m comment --comment fab:{0} -j fab-x\n-A FORWARD -p tcp -j ACCEPT\nCOMMIT\n"
NO_RECORD = Path("/proc/no-record")


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace() as space:
        yield space


def saved(host: Namespace) -> set[str]:
    texts = [host.command(f"iptables-{backend}-save") for backend in ("nft", "legacy")]
    return {line for text in texts for line in text.splitlines() if line.startswith(("-A", ":fab"))}


def test_rules_of_both_backends_and_sets_go_and_others_stay(host: Namespace) -> None:
    for backend in ("nft", "legacy"):
        text = (RULES + HOOK).format("0123456789abcdef")
        host.command("sh", "-c", f"printf '%s' '{text}' | iptables-{backend}-restore --noflush")
    for name in ("fab4-a", "others"):
        host.command("ipset", "create", name, "hash:net")
    lines = host.run(sweep(NO_RECORD))
    assert saved(host) == {"-A FORWARD -p tcp -j ACCEPT"}
    assert host.command("ipset", "list", "-n").split() == ["others"]
    assert lines == [
        "rules of nft: 1 chains removed",
        "rules of legacy: 1 chains removed",
        "ipset fab4-a: removed",
    ]
    assert host.run(sweep(NO_RECORD)) == []


def test_a_chain_that_a_rule_of_others_jumps_to_is_left_empty_and_named(host: Namespace) -> None:
    host.command("iptables-nft", "-N", "fab-x")
    host.command("iptables-nft", "-A", "fab-x", "-j", "DROP")
    host.command("iptables-nft", "-A", "INPUT", "-j", "fab-x")
    left = "chain fab-x of table filter: emptied, and left: a rule of others jumps to it"
    assert host.run(sweep(NO_RECORD)) == ["rules of nft: 0 chains removed", left]
    assert saved(host) == {":fab-x - [0:0]", "-A INPUT -j fab-x"}


def test_a_set_that_a_rule_of_others_goes_by_is_named_and_the_rest_goes(host: Namespace) -> None:
    for name in ("fab4-a", "fab4-b", "fab4-c"):
        host.command("ipset", "create", name, "hash:net")
    rule = ("INPUT", "-m", "set", "--match-set", "fab4-a", "src", "-j", "ACCEPT")
    host.command("iptables", "-A", *rule)
    with pytest.raises(FabricError, match=r"left over on this host:\n.*fab4-a.*a rule goes by it"):
        host.run(sweep(NO_RECORD))
    assert host.command("ipset", "list", "-n").split() == ["fab4-a"]
    host.command("iptables", "-D", *rule)
    assert host.run(sweep(NO_RECORD)) == ["ipset fab4-a: removed"]


def test_tunnels_go_and_those_of_others_stay(host: Namespace) -> None:
    host.command("ip", "link", "add", "vxlan.calico", "type", "vxlan", "id", "7", "dstport", "4790")
    own = ip_address("192.0.2.1")
    vtep = Tunnel(VXLAN, ip_address("10.0.0.1"), own, 1450, mac="66:00:00:00:00:01", vni=4096, port=4789)
    host.run(NetlinkTunnels().create(vtep))
    assert host.run(sweep(NO_RECORD)) == ["tunnel vxlan.fabric: removed"]
    links = host.command("ip", "-o", "link")
    assert "vxlan.fabric" not in links
    assert "vxlan.calico" in links
    assert host.run(sweep(NO_RECORD)) == []


def test_connections_to_published_ports_are_forgotten_and_those_of_others_go_on(host: Namespace) -> None:
    link = "fab0123456789ab"
    host.ip("link", "add", link, "type", "veth", "peer", "name", "far0")
    host.ip("link", "set", link, "up")
    host.ip("route", "add", "10.0.0.1/32", "dev", link, "proto", str(FABRIC_PROTO))
    for port, to in ((53, "10.0.0.1"), (54, "172.17.0.2")):
        ends = ("-s", "198.51.100.1", "-d", "192.0.2.1", "--sport", "40000", "--dport", str(port))
        host.command("conntrack", "-I", "-p", "udp", *ends, "-g", f"{to}:5353", "-t", "600")
    host.run(sweep(NO_RECORD))
    left = host.command("conntrack", "-L")
    assert "dport=53 " not in left
    assert "dport=54 " in left


def test_a_sysctl_that_cannot_be_put_back_holds_up_nothing_else(host: Namespace, tmp_path: Path) -> None:
    record = tmp_path / "sysctls.json"
    record.write_text('{"net.ipv4.no_such_thing": {"before": "0", "set": "1"}}')
    host.command("ipset", "create", "fab4-a", "hash:net")
    with pytest.raises(FabricError, match=r"left over on this host:\n.*no_such_thing.*ENOENT"):
        host.run(sweep(record))
    assert host.command("ipset", "list", "-n") == ""
