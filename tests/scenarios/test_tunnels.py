"""Labs of tunnels: what stands beside each, what a change of mode costs, and that packets fit.

Those with IPIP take a kernel that has it: tests/uml runs them.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fabric.errors import LabError
from fabric.kernel.probe import missing_tunnels
from fabric.lab import faults
from fabric.lab.expect import Endpoint
from fabric.lab.lab import Lab
from fabric.lab.measure import measure
from fabric.lab.report import Report
from tests.scenarios.fabric import AGENT, until
from tests.scenarios.shipped import RUNS, missed, shipped, unmet

BULK = Path(__file__).with_name("bulk.py")
LABS = ("always", "vxlan-v6")
NODES = ("node1", "node2", "node3")
MEGABYTES = 10_000_000  # bytes
PORT = 7100


def ask(lab: Lab, node: str, *arguments: str) -> Any:
    return json.loads(lab.exec(node, ["fabricctl", *arguments, "-o", "json"]).stdout)


def inside(netns: str, *argv: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{netns}", "--", *argv]


@pytest.mark.parametrize("name", LABS)
def test_a_lab_does_what_stands_beside_it(name: str) -> None:
    with shipped(name) as lab:
        assert missed(lab) == []


def test_without_bgp_nobody_has_a_session_and_a_node_that_joins_or_leaves_is_seen_all_the_same() -> None:
    with shipped("host-gw") as lab:
        assert missed(lab) == []
        assert [ask(lab, node, "bgp", "peers") for node in NODES] == [[], [], []]
        lab.exec("node3", ["fabricctl", "workload", "del", "db"])
        lab.exec("node3", ["fabricctl", "node", "leave"])
        gone = "routes: [{node: node1, absent: [10.77.3.0/26]}, {node: node2, absent: [10.77.3.0/26]}]"
        assert unmet(lab, gone) == []
        lab.exec("node3", ["fabricctl", "node", "join", "--etcd", "10.10.1.2:2379", "--bgp", "off"])
        lab.exec("node3", ["fabricctl", "workload", "add", "db", "--netns", "db", "--ip", "10.77.3.1"])
        assert missed(lab) == []


# cross-subnet-vxlan


@pytest.fixture(scope="module")
def cross() -> Iterator[Lab]:
    """One lab for all of the tests below, each of which leaves it whole."""
    with shipped("cross-subnet-vxlan") as lab:
        assert missed(lab) == []
        yield lab


def test_a_tunnels_end_stands_in_its_node_as_calico_writes_it(cross: Lab) -> None:
    for node in NODES:
        spec = ask(cross, node, "get", "node", node)["spec"]
        (device,) = shown(cross, node, "link", "show", "dev", "vxlan.fabric")
        data = device["linkinfo"]["info_data"]
        assert (data["id"], data["port"], spec["vxlanTunnelMACAddr"]) == (4096, 4789, device["address"])
        (addressed,) = shown(cross, node, "address", "show", "dev", "vxlan.fabric")
        held = [
            (each["local"], each["prefixlen"]) for each in addressed["addr_info"] if each["family"] == "inet"
        ]
        assert held == [(spec["ipv4VXLANTunnelAddr"], 32)]


def test_a_node_says_how_it_reaches_the_others(cross: Lab) -> None:
    status = cross.exec("node1", ["fabricctl", "node", "status"]).stdout
    rows = [line.split() for line in status.splitlines()]
    assert [row[:3] for row in rows if row[2:3] == ["vxlan"]] == [["node3", "IPv4", "vxlan"]], status


def test_a_node_that_leaves_takes_its_tunnel_along(cross: Lab) -> None:
    pmtu = ["sysctl", "-n", "net.ipv4.ip_forward_use_pmtu"]
    assert cross.exec("node3", pmtu).stdout.strip() == "1"
    cross.exec("node3", ["fabricctl", "workload", "del", "db"])
    cross.exec("node3", ["fabricctl", "node", "leave"])
    assert tunnels(cross, "node3") == []
    assert cross.exec("node3", ["ip", "route", "show", "table", "all", "proto", "143"]).stdout == ""
    assert cross.exec("node3", pmtu).stdout.strip() == "0"
    left = [cross.exec("node3", [tool]).stdout for tool in ("iptables-save", "ip6tables-save")]
    assert "fab" not in "".join([*left, cross.exec("node3", ["ipset", "save"]).stdout])
    assert "node3" not in cross.exec("node1", ["fabricctl", "ipam", "check"]).stdout
    until(
        lambda: (
            "10.10.2.11" not in cross.exec("node1", ["bridge", "fdb", "show", "dev", "vxlan.fabric"]).stdout
        )
    )
    cross.exec("node3", ["fabricctl", "node", "join", "--etcd", "10.10.3.2:2379"])
    cross.exec("node3", ["fabricctl", "workload", "add", "db", "--netns", "db", "--ip", "10.77.3.1"])
    assert missed(cross) == []


@pytest.mark.alone
def test_a_restarted_agent_finds_its_tunnels_and_moves_no_packet(cross: Lab) -> None:
    flows = [Endpoint("web", "node1", "web"), Endpoint("db", "node3", "db")]

    def kill() -> str:
        said = faults.kill(cross, "agent", "node1")
        until(lambda: not cross.exec("node1", ["fabricctl", "node", "status"], check=False).returncode)
        return said

    report = measured(cross, flows, kill)
    assert [flow for flow in report.flows if flow.lost] == []
    assert missed(cross) == []


@pytest.mark.alone
def test_an_agent_that_starts_while_etcd_is_away_takes_nothing_of_its_tunnels_away(cross: Lab) -> None:
    flows = [Endpoint("web", "node1", "web"), Endpoint("db", "node3", "db")]
    before = of_tunnels(cross, "node1")
    assert all(before.values()), before
    there: list[Mapping[str, str]] = []

    def restart() -> str:
        cross.exec("etcd", ["iptables", "-I", *NO_ETCD])
        try:
            until(lambda: not agents_status(cross)["datastore"]["in_sync"])
            said = faults.kill(cross, "agent", "node1")
            until(lambda: agents_status(cross)["datastore"]["copied"])
            # A whole pass has been, and nothing was refused.
            until(lambda: "no pass has gone through" not in agents_status(cross)["missing"])
            assert agents_status(cross)["refused"] == []
            there.append(of_tunnels(cross, "node1"))
        finally:
            cross.exec("etcd", ["iptables", "-D", *NO_ETCD])
        until(lambda: agents_status(cross)["ready"])
        return said

    report = measured(cross, flows, restart)
    assert [flow for flow in report.flows if flow.lost] == []
    assert [*there, of_tunnels(cross, "node1")] == [before] * (len(there) + 1)
    assert missed(cross) == []


NO_ETCD = ("INPUT", "-p", "tcp", "--dport", "2379", "-j", "REJECT", "--reject-with", "tcp-reset")


def agents_status(lab: Lab) -> Any:
    """Return what the agent of node1 says of itself, once one answers."""
    answer = ["fabricctl", "node", "status", "-o", "json"]
    return json.loads(until(lambda: lab.exec("node1", answer, check=False).stdout))


def of_tunnels(lab: Lab, node: str) -> dict[str, str]:
    """Return what of tunnels the node's kernel holds: device, far ends, routes, rules and their sets."""
    commands = {
        "device": "ip -d address show dev vxlan.fabric",
        "fdb": "bridge fdb show dev vxlan.fabric",
        "neighbours": "ip neigh show dev vxlan.fabric nud permanent",
        "routes": "ip route show proto 143",
        "rules": "iptables-save",
        "sets": "ipset save",
    }
    held = {what: lab.exec(node, command.split()).stdout for what, command in commands.items()}
    held["rules"] = "\n".join(line for line in held["rules"].splitlines() if line.startswith("-A fab-tunnel"))
    return {what: "\n".join(sorted(text.splitlines())) for what, text in held.items()}


def shown(lab: Lab, node: str, *words: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = json.loads(lab.exec(node, ["ip", "-d", "-j", *words]).stdout)
    return found


# Without the module ipip


@pytest.fixture
def without_ipip() -> None:
    if not asyncio.run(missing_tunnels({"ipip"})):
        pytest.skip("this kernel has the module ipip")


def pool(**annotations: str) -> str:
    """Return a pool whose packets go in IPIP."""
    names = {f"fabricctl.io/{name.replace('_', '-')}": value for name, value in annotations.items()}
    spec = {"cidr": "10.79.0.0/16", "ipipMode": "CrossSubnet"}
    metadata = {"name": "mixed", "annotations": names}
    return json.dumps(
        {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": metadata, "spec": spec}
    )


@pytest.mark.usefixtures("without_ipip")
def test_a_node_without_ipip_does_not_join_where_a_pool_wants_it() -> None:
    lab = shipped("cross-subnet")
    with pytest.raises(LabError) as refused, lab:
        pass
    said = str(refused.value)
    assert all(
        word in said
        for word in ("containers has ipipMode", "no module ipip", "vxlanMode", "nothing was changed")
    )


@pytest.mark.usefixtures("without_ipip")
def test_where_ipip_is_missing_a_pool_is_refused_or_pairs_agree_on_vxlan(cross: Lab) -> None:
    done = cross.exec("node1", ["fabricctl", "apply", "-f", "-"], input=pool(), check=False)
    assert done.returncode == 1
    assert all(word in done.stderr for word in ("mixed", "ipip", "node1", "vxlanMode", "tunnel-fallback")), (
        done.stderr
    )
    assert "mixed" not in {
        each["metadata"]["name"] for each in ask(cross, "node1", "get", "ippools")["items"]
    }
    pairs = (("node1", "10.79.1.1"), ("node2", "10.79.2.1"), ("node3", "10.79.3.1"))
    cross.exec("node1", ["fabricctl", "apply", "-f", "-"], input=pool(tunnel_fallback="vxlan"))
    for node, address in pairs:
        cross.exec(node, ["ip", "netns", "add", "mixed"])
        cross.exec(node, ["fabricctl", "workload", "add", "mixed", "--netns", "mixed", "--ip", address])
    text = (
        "encapsulated:\n- {from: m1, to: m2, as: native, on: 'lan:eth1'}\n"
        "- {from: [m1, m2], to: m3, as: vxlan, on: 'router:eth2'}\n"
    )
    mixed = {f"m{n}": {"node": node, "netns": "mixed"} for n, (node, _) in enumerate(pairs, 1)}
    assert unmet(cross, text, **mixed) == []
    status = cross.exec("node1", ["fabricctl", "node", "status"]).stdout
    assert [line for line in status.splitlines() if "node3" in line and "no IPIP" in line], status
    for node, _ in pairs:
        cross.exec(node, ["fabricctl", "workload", "del", "mixed"])
        cross.exec(node, ["ip", "netns", "del", "mixed"])
    cross.exec("node1", ["fabricctl", "delete", "ippool", "mixed"])
    assert missed(cross) == []


# mode-change

CHANGING = [
    Endpoint(name, node, name) for name, node in (("web", "node1"), ("api", "node2"), ("db", "node3"))
]
STEADY = [Endpoint(f"{each.name}-b", each.node, f"{each.name}-b") for each in CHANGING]
ADDRESSES = {"node1": "10.77.1.1", "node2": "10.77.2.1", "node3": "10.77.3.1"}
MODES = ("CrossSubnet", "Always", "Never")


@pytest.fixture(scope="module")
def changing() -> Iterator[Lab]:
    """One lab for all of the tests below, each of which leaves its pool without a tunnel."""
    with shipped("mode-change") as lab:
        assert missed(lab) == []
        yield lab


def set_mode(lab: Lab, mode: str) -> None:
    """Have the changing pool's packets carried so, and return once every node sends them so."""
    patch(lab, mode)
    until(lambda: ways(lab) == {(a, b): way(mode, a, b) for a, b in PAIRS})


def patch(lab: Lab, mode: str) -> None:
    spec = json.dumps({"spec": {"vxlanMode": mode}})
    lab.exec("node1", ["fabricctl", "patch", "ippool", "changing", "-p", spec])


PAIRS = [(a, b) for a in NODES for b in NODES if a != b]


def way(mode: str, a: str, b: str) -> str:
    tunnelled = mode == "Always" or (mode == "CrossSubnet" and "node3" in (a, b))
    return "vxlan.fabric" if tunnelled else "eth1"


def ways(lab: Lab) -> dict[tuple[str, str], str]:
    """Return by which device each node sends to each other's container."""
    return {(a, b): str(shown(lab, a, "route", "get", ADDRESSES[b])[0]["dev"]) for a, b in PAIRS}


def test_packets_go_as_the_mode_says(changing: Lab) -> None:
    for mode in MODES:
        set_mode(changing, mode)
        near, far = (("native", "vxlan")[way(mode, a, "node1") != "eth1"] for a in ("node2", "node3"))
        text = (
            f"encapsulated:\n- {{from: web, to: api, as: {near}, on: 'lan:eth1'}}\n"
            f"- {{from: [web, api], to: db, as: {far}, on: 'router:eth2'}}\n"
            "- {from: [web-b, api-b], to: db-b, as: native, on: 'router:eth2'}\n"
            "untranslated:\n- {from: web, to: [api, db]}\n"
        )
        assert unmet(changing, text) == [], mode


@pytest.mark.alone
def test_nothing_is_lost_while_a_pool_goes_through_the_modes(changing: Lab, record_property: Any) -> None:
    """Control: the flows of a pool that does not change, and the measurement's own veth."""

    def through() -> str:
        for mode in MODES:
            set_mode(changing, mode)
        # What others may still be sending to is taken away later.
        until(lambda: not any(tunnels(changing, node) for node in NODES), within=60)
        return f"pool changing: {', '.join(MODES)}"

    report = measured(changing, [*CHANGING, *STEADY], through)
    loss = {f"{flow.source} to {flow.target}": flow.lost for flow in report.flows}
    sent = sum(flow.sent for flow in report.flows)
    record_property("lost", loss)
    record_property("sent", sent)
    assert {pair: lost for pair, lost in loss.items() if lost} == {}, f"of {sent}; the control lost nothing"
    assert missed(changing) == []


@pytest.mark.alone
def test_a_node_whose_agent_hangs_is_reached_as_before(changing: Lab) -> None:
    """What it does not say that it has is not used with it alone; the others go on."""
    seen: list[dict[tuple[str, str], str]] = []

    def change() -> str:
        (agent,) = changing.exec("node3", ["pgrep", "-f", "--", AGENT]).stdout.split()
        changing.exec("node3", ["kill", "-STOP", agent])
        try:
            patch(changing, "Always")
            until(lambda: "eth1" not in [ways(changing)["node1", "node2"], ways(changing)["node2", "node1"]])
            seen.append(ways(changing))
        finally:
            changing.exec("node3", ["kill", "-CONT", agent])
        until(lambda: "eth1" not in ways(changing).values())
        set_mode(changing, "Never")
        return "agent of node3: held while the mode changed"

    # An end that stands from before would be used.
    until(lambda: not any(tunnels(changing, node) for node in NODES), within=60)
    report = measured(changing, CHANGING, change)
    assert {pair for pair, device in seen[-1].items() if device == "eth1"} == {
        p for p in PAIRS if "node3" in p
    }
    assert [flow for flow in report.flows if flow.lost] == []


def tunnels(lab: Lab, node: str) -> list[str]:
    return [link["ifname"] for link in shown(lab, node, "link", "show", "type", "vxlan") if link]


def measured(lab: Lab, flows: list[Endpoint], act: Any) -> Report:
    """Return what `act` costs, in a run whose control had no gap."""
    for _ in range(RUNS):
        report = measure(lab, flows, act)
        if report.valid:
            return report
    pytest.fail(f"no valid run in {RUNS}: {report.invalid}")


# mtu


@pytest.fixture(scope="module")
def narrow() -> Iterator[Lab]:
    """One lab for all of the tests below, each of which leaves it whole."""
    with shipped("mtu") as lab:
        assert missed(lab) == []
        yield lab


def transferred(lab: Lab, source: tuple[str, str], target: tuple[str, str], address: str) -> int:
    """Send 10 MB from one namespace of a node to another's address, and return how many bytes arrived."""
    argv = [sys.executable, "-I", "-S", str(BULK)]
    with lab.popen(target[0], inside(target[1], *argv, "take", str(PORT)), stdout=subprocess.PIPE) as taking:
        try:
            assert taking.stdout
            assert taking.stdout.readline().strip() == "ready"
            lab.exec(
                source[0], inside(source[1], *argv, "send", address, str(PORT), str(MEGABYTES)), timeout=60
            )
            out, _ = taking.communicate(timeout=30)
        finally:
            taking.kill()
    return int(out)


WAYS = [
    pytest.param(("node1", "web"), ("node2", "api"), "10.77.2.1", id="in VXLAN"),
    pytest.param(("node2", "api"), ("node1", "web"), "10.77.1.1", id="in VXLAN, back"),
    pytest.param(("node1", "bare"), ("node2", "plain"), "10.78.2.1", id="native"),
]


@pytest.mark.parametrize(("source", "target", "address"), WAYS)
def test_10_mb_get_through_the_narrow_link(
    narrow: Lab, source: tuple[str, str], target: tuple[str, str], address: str
) -> None:
    assert transferred(narrow, source, target, address) == MEGABYTES


def test_path_mtu_discovery_works_through_policy(narrow: Lab) -> None:
    """What the router in the middle says of a packet belongs to the connection, whatever policy there is."""
    policy = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "tcp-alone"},
        "spec": {
            "types": ["Ingress", "Egress"],
            "ingress": [{"action": "Allow", "protocol": "TCP"}],
            "egress": [{"action": "Allow", "protocol": "TCP"}],
        },
    }
    narrow.exec("node1", ["fabricctl", "apply", "-f", "-"], input=json.dumps(policy))
    try:
        assert unmet(narrow, "reach: [{from: bare, to: plain, expect: refused}]") == []
        assert transferred(narrow, ("node1", "bare"), ("node2", "plain"), "10.78.2.1") == MEGABYTES
    finally:
        narrow.exec("node1", ["fabricctl", "delete", "-f", "-"], input=json.dumps(policy))


def test_check_mtu_prints_what_the_way_carries(narrow: Lab) -> None:
    sizes = {each["encapsulation"]: each["usable"] for each in ask(narrow, "node1", "node", "check", "mtu")}
    assert sizes == {"native": 1400, "ipip": 1380, "vxlan": 1350}


def mtu(lab: Lab, node: str, netns: str) -> int:
    (link,) = json.loads(lab.exec(node, inside(netns, "ip", "-j", "link", "show", "dev", "eth0")).stdout)
    return int(link["mtu"])


def test_live_workloads_follow_a_link_that_shrinks_and_grows(narrow: Lab) -> None:
    for size in (1400, 1500):
        narrow.exec("node1", ["ip", "link", "set", "dev", "eth1", "mtu", str(size)])
        narrow.exec("r1", ["ip", "link", "set", "dev", "eth1", "mtu", str(size)])
        until(lambda size=size: [mtu(narrow, "node1", w) for w in ("web", "bare")] == [size - 50] * 2)  # type: ignore[misc]
        (tunnel,) = shown(narrow, "node1", "link", "show", "dev", "vxlan.fabric")
        assert tunnel["mtu"] == size - 50
        assert transferred(narrow, ("node1", "web"), ("node2", "api"), "10.77.2.1") == MEGABYTES
    assert missed(narrow) == []
