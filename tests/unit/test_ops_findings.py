"""What is a finding on a host, and what is not; every id has its section in the reference."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from fabric.kernel.facts import Clock, HostAddress, Listener, Vxlan
from fabric.kernel.tables import Saved
from fabric.model.felixconfiguration import FelixConfiguration
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from fabric.ops.findings import (
    CATALOGUE,
    DAEMONS,
    Cluster,
    Finding,
    Host,
    choices,
    judge,
    of_resources,
    unreachable,
)
from fabric.ops.managers import LINK_SNIPPET, NETWORKD_SNIPPET, NM_SNIPPET
from fabric.plan.routes import NextHop, Route, RouteKey

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "findings.md"
BORN = datetime(2026, 11, 21, 5, 0, tzinfo=UTC)


def on(link: str, address: str, mtu: int = 1500) -> HostAddress:
    return HostAddress(link, ip_interface(address), True, "", mtu)


def pool(cidr: str, **spec: Any) -> IPPool:
    return IPPool.model_validate({"metadata": {"name": "p"}, "spec": {"cidr": cidr, **spec}})


def at_need(pool: IPPool) -> IPPool:
    """The same with a fallback to VXLAN."""
    said = {"fabricctl.io/tunnel-fallback": "vxlan"}
    return pool.model_copy(update={"metadata": pool.metadata.model_copy(update={"annotations": said})})


def node(name: str, address: str, **labels: str) -> Node:
    spec = {"bgp": {"ipv4Address": address}}
    return Node.model_validate({"metadata": {"name": name, "labels": labels}, "spec": spec})


def settings(**spec: Any) -> FelixConfiguration:
    return FelixConfiguration.model_validate({"metadata": {"name": "default"}, "spec": spec})


def filter_table(*lines: str, version: int = 4, backend: str = "nft") -> Saved:
    return Saved(backend, version, "\n".join(["*filter", *lines, "COMMIT"]))


ETH0, V6 = on("eth0", "192.0.2.1/24"), on("eth0", "2001:db8::1/64")
SOUND = Host(addresses=(on("lo", "127.0.0.1/8"), ETH0))
POOL = pool("10.77.0.0/16")
PLAIN = Cluster(pools=(POOL,), born=BORN)
IPIP = Cluster(pools=(pool("10.77.0.0/16", ipipMode="Always"),))
V6_POOL = Cluster(pools=(pool("2001:db8:77::/64"),))
VXLAN = Cluster(pools=(pool("10.77.0.0/16", vxlanMode="CrossSubnet"),))
V6_VXLAN = Cluster(pools=(pool("2001:db8:77::/64", vxlanMode="Always"),))
FALLBACK = Cluster(pools=(at_need(IPIP.pools[0]),))
FLANNEL = replace(VXLAN, felix=(settings(vxlanVNI=1, vxlanPort=8472),))
ELSEWHERE = pool("10.77.0.0/16", ipipMode="Always", nodeSelector="rack == 'r2'")
NO_IPIP = {"ipip": "Operation not supported"}
RP, RA = "net/ipv4/conf/{}/rp_filter", "net/ipv6/conf/eth0/accept_ra"
GC, CT = "net/ipv4/neigh/default/gc_thresh3", "net/netfilter/nf_conntrack_"
CLOSED = (":INPUT DROP [0:0]", ":FORWARD ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]")
NM, NETWORKD, FIREWALLD = DAEMONS
# As our rules are on a host without a workload: what comes from a link of ours is dropped.
OURS = (
    ":fab-FORWARD - [0:0]", ":fab-INPUT - [0:0]", ":fab-from-wl - [0:0]",
    '-A FORWARD -m comment --comment "fab:01" -j fab-FORWARD', '-A INPUT -m comment --comment "fab:02" -j fab-INPUT',
    '-A fab-FORWARD -i fab+ -m comment --comment "fab:03" -j fab-from-wl',
    '-A fab-from-wl -m comment --comment "fab:04" -j DROP', '-A fab-INPUT -m comment --comment "fab:05" -j DROP',
)  # fmt: skip
OURS_LEGACY = filter_table(":fab-FORWARD - [0:0]", backend="legacy")
WANTS = "/etc/systemd/system/sysinit.target.wants/nftables.service"
_FILTER = {"family": "inet", "table": "filter"}
NFT_FORWARD = (
    {
        "chain": {
            **_FILTER,
            "name": "forward",
            "type": "filter",
            "hook": "forward",
            "prio": 0,
            "policy": "drop",
        }
    },
)
NFT_OPEN = (
    *NFT_FORWARD,
    *({"rule": {**_FILTER, "chain": "forward", "handle": 1, "expr": [
        {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": "fab*"}}, {"accept": None},
    ]}} for key in ("iifname", "oifname")),
)  # fmt: skip
MATCH_ALL = {"/etc/systemd/network/50.network": "[Match]\nName=*\n"}


def way(prefix: str, *vias: str, metric: int = 1024, device: str = "eth0") -> Route:
    hops = frozenset(NextHop(ip_address(via), device) for via in vias) or frozenset({NextHop(None, device)})
    return Route(RouteKey(ip_network(prefix), metric), hops)


ETCD = {"etcd.example:2379": (ip_address("10.9.0.5"),)}
BGP_DEFAULT, DHCP_DEFAULT = way("0.0.0.0/0", "192.0.2.254"), way("0.0.0.0/0", "192.0.2.253", metric=100)


def test_a_sound_host_has_no_findings() -> None:
    assert judge(SOUND, PLAIN) == judge(SOUND, None) == choices(SOUND, None) == []


@pytest.mark.parametrize(
    ("change", "cluster", "id_", "said"),
    [
        ({"missing_features": ("veth pairs (CONFIG_VETH): Operation not supported",)}, None, "FAB1001", "CONFIG_VETH"),
        ({"missing_tunnels": NO_IPIP}, IPIP, "FAB1002",
         "pool p has ipipMode, and the kernel of this host no module ipip (Operation not supported)"),
        ({"missing_tunnels": {**NO_IPIP, "vxlan": "no"}}, FALLBACK, "FAB1002", "no module ipip"),
        ({"missing_tunnels": {"vxlan": "no"}}, VXLAN, "FAB1002", "pool p has vxlanMode"),
        ({"vxlan_holders": (Listener(812, "openvpn"),)}, VXLAN, "FAB1102", "port 4789 is held by openvpn (pid 812)"),
        ({"vxlan_holders": (Listener(812, "openvpn"),)}, FALLBACK, "FAB1102", "udp port 4789"),
        ({"vxlans": (Vxlan("vxlan_sys_4789", 0, 4789, 0, shares=False),)}, VXLAN, "FAB1102",
         "held by the VXLAN device vxlan_sys_4789, which shares it with no other"),
        ({"vxlans": (Vxlan("vxlan.calico", 4096, 4789, 4, shares=True),)}, VXLAN, "FAB1103",
         "VNI 4096 on udp port 4789 is held by the device vxlan.calico"),
        ({"vxlans": (Vxlan("flannel.1", 1, 8472, 4, shares=True),)}, FLANNEL, "FAB1103",
         "VNI 1 on udp port 8472 is held by the device flannel.1"),
        ({"tools": SOUND.tools - {"setpriv"}}, None, "FAB1003", "setpriv: not found"),
        ({"tools": SOUND.tools - {"ip6tables-restore"}}, None, "FAB1004", "ip6tables-restore: not found"),
        ({"tcp_md5": False}, Cluster(passwords=True), "FAB1005", "TCP_MD5SIG"),
        ({"port_holders": (Listener(812, "bird"),)}, None, "FAB1101", "held by bird (pid 812)"),
        ({"port_holders": (Listener(0, ""),)}, None, "FAB1101", "held by a process (pid unknown)"),
        ({"clock": Clock(False, 0)}, None, "FAB1201", "adjtimex"),
        ({"now": BORN - timedelta(seconds=1)}, PLAIN, "FAB1202", "made at 2026-11-21T05:00:00Z"),
        ({"sysctls": {RP.format("all"): "1"}}, None, "FAB1301", "net/ipv4/conf/all/rp_filter = 1"),
        ({"sysctls": {RP.format("eth0"): "1"}}, None, "FAB1301", "net/ipv4/conf/eth0/rp_filter = 1"),
        ({"sysctls": {"net/ipv4/ip_forward": "0"}, "running": True}, None, "FAB1302", "ip_forward = 0"),
        ({"sysctls": {GC: "512"}}, None, "FAB1303", f"{GC} = 512"),
        ({"sysctls": {f"{CT}count": "950", f"{CT}max": "1000"}}, None, "FAB1304", "950 of 1000"),
        ({"sysctls": {RA: "1"}, "advertised_defaults": frozenset({"eth0"}), "running": True}, V6_POOL, "FAB1305",
         f"{RA} = 1"),
        ({"saved": (filter_table(":FORWARD DROP [0:0]"), OURS_LEGACY)}, None, "FAB1401",
         "iptables-nft filter table: policy DROP of FORWARD"),
        ({"native": NFT_FORWARD}, None, "FAB1401", "nft table inet filter: policy DROP of forward"),
        ({"daemons": frozenset({FIREWALLD})}, None, "FAB1405", "firewalld: what its own chains reject"),
        ({"saved": (filter_table(":ufw-user-input - [0:0]"),)}, None, "FAB1405", "ufw: it decides"),
        ({"files": {WANTS: ""}}, None, "FAB1405", "nftables.service: what its own chains drop stays dropped"),
        ({"files": {WANTS: "", "/etc/nftables.conf": "#!/usr/sbin/nft -f\n\nflush ruleset\n"}}, None, "FAB1405",
         "its reload removes every rule, ours too"),
        ({"saved": (filter_table(*CLOSED),)}, PLAIN, "FAB1402", "policy DROP of INPUT"),
        ({"saved": (filter_table("-A OUTPUT -p tcp --dport 179 -j REJECT", ":OUTPUT ACCEPT [0:0]"),)}, PLAIN,
         "FAB1402", "-A OUTPUT -p tcp --dport 179 -j REJECT"),
        ({"saved": (filter_table(*CLOSED, "-A INPUT -p tcp -j ACCEPT"),)}, IPIP, "FAB1403", "IPIP packet (protocol 4)"),
        ({"saved": (filter_table("-A X -j RETURN"), filter_table("-A Y -j RETURN", backend="legacy"))}, None,
         "FAB1404", "IPv4: legacy has 1 rules (filter); nft has 1 rules (filter)"),
        ({"etcd": ETCD, "own_routes": (BGP_DEFAULT,)}, None, "FAB1702",
         "etcd.example:2379 (10.9.0.5) is reached by 0.0.0.0/0 via 192.0.2.254, which BGP made"),
        ({"etcd": ETCD, "own_routes": (way("10.9.0.0/26", "192.0.2.1", "192.0.2.2"),),
          "foreign_routes": (DHCP_DEFAULT,)}, None, "FAB1702", "10.9.0.0/26 via 192.0.2.1, 192.0.2.2"),
        ({"etcd": {"10.77.1.1:2379": (ip_address("10.77.1.1"),)}}, PLAIN, "FAB1703", "pool p (10.77.0.0/16)"),
        ({"daemons": frozenset({NM})}, None, "FAB1501", "fab*"),
        ({"daemons": frozenset({NETWORKD})}, None, "FAB1502", "ManageForeignRoutes"),
        ({"daemons": frozenset({NETWORKD}), "files": MATCH_ALL | dict([NETWORKD_SNIPPET])}, None, "FAB1503",
         "50.network"),
        ({}, V6_VXLAN, "FAB1607", "pool p has vxlanMode, and this node no IPv6 address to send from"),
        ({"addresses": (ETH0, V6)}, replace(V6_VXLAN, node=node("n1", "192.0.2.1/24")), "FAB1607", "this node no IPv6"),
        ({"addresses": (ETH0, on("eth1", "10.77.1.1/24"))}, PLAIN, "FAB1606",
         "p (10.77.0.0/16) meets 10.77.1.0/24 on eth1"),
        ({"addresses": (on("eth0", "10.1.1.1/8"),)}, PLAIN, "FAB1606", "meets 10.0.0.0/8 on eth0"),
        ({"addresses": (ETH0, on("eth1", "10.77.1.1/24"))}, Cluster(pools=(pool("10.77.0.0/16", disabled=True),)),
         "FAB1603", "meets 10.77.1.0/24 on eth1"),
        ({"routes": ((ip_network("10.77.1.0/24"), "eth0"),)}, PLAIN, "FAB1603", "meets 10.77.1.0/24 on eth0"),
        ({"addresses": (ETH0, on("eth1", "198.51.100.1/24", 9000))}, None, "FAB1604", "eth0 1500, eth1 9000"),
        ({"addresses": (on("eth0", "192.0.2.1/24", 1200),)}, None, "FAB1605", "eth0 has 1200"),
    ],
)  # fmt: skip
def test_what_hurts_a_node_is_found(
    change: dict[str, Any], cluster: Cluster | None, id_: str, said: str
) -> None:
    [finding] = judge(replace(SOUND, **change), cluster)
    assert finding.id == id_
    assert said in finding.cause
    assert finding.cure


@pytest.mark.parametrize(
    ("change", "cluster"),
    [
        pytest.param({"tcp_md5": False}, PLAIN, id="no MD5, and no peer with a password"),
        pytest.param({"now": BORN}, PLAIN, id="a cluster made this second"),
        pytest.param({"sysctls": {RP.format("all"): "1", RP.format("eth0"): "2"}}, None, id="loose wins"),
        pytest.param({"sysctls": {RP.format("docker0"): "1"}}, None, id="strict where no uplink is"),
        pytest.param({"sysctls": {"net/ipv4/ip_forward": "0"}}, None, id="forwarding is set when the node starts"),
        pytest.param({"sysctls": {RA: "2"}, "advertised_defaults": frozenset({"eth0"}), "running": True}, V6_POOL,
                     id="heeded anyway"),
        pytest.param({"sysctls": {RA: "1"}, "advertised_defaults": frozenset({"eth0"}), "running": True}, PLAIN,
                     id="IPv4 alone"),
        pytest.param({"sysctls": {RA: "1"}, "advertised_defaults": frozenset({"eth0"})}, V6_POOL,
                     id="accept_ra is set when the node starts"),
        pytest.param({"saved": (filter_table(*CLOSED, "-A INPUT -p tcp -j ACCEPT"),)}, PLAIN, id="no pool tunnels"),
        pytest.param({"saved": (filter_table(*CLOSED, version=6),)}, None, id="ip6tables on a host without IPv6"),
        pytest.param({"saved": (filter_table("-A X"), filter_table("-A X", version=6, backend="legacy"))}, None,
                     id="a backend a family"),
        pytest.param({"saved": (filter_table("-A X"), filter_table(":INPUT ACCEPT [0:0]", backend="legacy"))}, None,
                     id="an empty legacy table"),
        pytest.param({"saved": (filter_table(":FORWARD DROP [0:0]"),)}, None, id="Docker's policy, before we join"),
        pytest.param({"saved": (filter_table(":FORWARD DROP [0:0]", *OURS),)}, None, id="Docker's policy beside ours"),
        pytest.param({"saved": (filter_table(*OURS), filter_table(*OURS, version=6))}, None, id="our rules"),
        pytest.param({"native": NFT_OPEN}, None, id="nftables that accepts our links"),
        pytest.param({"files": {"/etc/nftables.conf": "flush ruleset"}}, None, id="nftables.service, not enabled"),
        pytest.param({"daemons": frozenset({NM}), "files": dict([NM_SNIPPET])}, None, id="NetworkManager, cured"),
        pytest.param({"daemons": frozenset({NETWORKD}), "files": dict([NETWORKD_SNIPPET])}, None, id="networkd, cured"),
        pytest.param({"daemons": frozenset({NETWORKD}), "files": MATCH_ALL | dict([NETWORKD_SNIPPET, LINK_SNIPPET])},
                     None, id="networkd's links, cured"),
        pytest.param({"files": MATCH_ALL}, None, id="files of daemons that do not run"),
        pytest.param({"routes": ((ip_network("10.0.0.0/8"), "eth0"), (ip_network("0.0.0.0/0"), "eth0"))}, PLAIN,
                     id="routes around the pool lead out"),
        pytest.param({"routes": ((ip_network("10.77.1.2/32"), "cali12345678901"),)}, PLAIN, id="Calico's workloads"),
        pytest.param({"addresses": (ETH0, on("fab0123456789ab", "10.77.0.1/32", 1450))}, PLAIN, id="our own links"),
        pytest.param({"addresses": (ETH0, on("vxlan.fabric", "10.77.0.1/32", 1450)),
                      "vxlan_holders": (Listener(0, ""),),
                      "vxlans": (Vxlan("vxlan.fabric", 4096, 4789, 4, shares=True),)},
                     VXLAN, id="our own tunnel"),
        pytest.param({"vxlans": (Vxlan("v", 7, 4789, 4, shares=True), Vxlan("w", 4096, 8472, 4, shares=True),
                                 Vxlan("x", 4096, 4789, 6, shares=True))},
                     VXLAN, id="VXLANs with another VNI, port or family"),
        pytest.param({"vxlans": (Vxlan("v", 4096, 4789, 4, shares=True),), "vxlan_holders": (Listener(7, "v"),)},
                     PLAIN, id="what no tunnel of ours needs"),
        pytest.param({"missing_tunnels": NO_IPIP}, FALLBACK, id="no IPIP where VXLAN takes its place"),
        pytest.param({"missing_tunnels": NO_IPIP}, Cluster(pools=(ELSEWHERE,), node=node("n1", "192.0.2.1/24")),
                     id="no IPIP, and a pool for other nodes"),
        pytest.param({"addresses": (ETH0, V6)}, V6_VXLAN, id="an IPv6 address to send from"),
    ],
)  # fmt: skip
def test_what_does_not_is_not(change: dict[str, Any], cluster: Cluster | None) -> None:
    assert judge(replace(SOUND, **change), cluster) == []


@pytest.mark.parametrize(
    ("cluster", "address", "size", "left"),
    [
        (PLAIN, "192.0.2.1/24", 576, ""),
        (PLAIN, "192.0.2.1/24", 575, "eth0 has an MTU of 575: 575 are left to pool p"),
        (IPIP, "192.0.2.1/24", 596, ""),
        (IPIP, "192.0.2.1/24", 595, "eth0 has an MTU of 595, and ipipMode takes 20: 575 are left to pool p"),
        (
            FALLBACK,
            "192.0.2.1/24",
            625,
            "eth0 has an MTU of 625, and ipipMode takes 50: 575 are left to pool p",
        ),
        (VXLAN, "192.0.2.1/24", 626, ""),
        (V6_POOL, "2001:db8::1/64", 1280, ""),
        (V6_VXLAN, "2001:db8::1/64", 1350, ""),
        (
            V6_VXLAN,
            "2001:db8::1/64",
            1349,
            "eth0 has an MTU of 1349, and vxlanMode takes 70: 1279 are left to pool p",
        ),
    ],
)
def test_what_is_left_to_a_pool_is_at_least_its_familys_minimum(
    cluster: Cluster, address: str, size: int, left: str
) -> None:
    found = judge(replace(SOUND, addresses=(on("eth0", address, size),)), cluster)
    assert [finding.cause for finding in found if finding.id == "FAB1608"] == [left] * bool(left)


@pytest.mark.parametrize(("route", "few"), [("192.0.2.0/24", False), ("10.0.0.0/8", True)])
def test_only_the_link_that_leads_to_other_nodes_has_to_carry_them(route: str, few: bool) -> None:
    narrow = (ETH0, on("eth1", "198.51.100.1/24", 600))
    ways = (way("192.0.2.0/24"), way("10.0.0.0/8", device="eth1"))
    host = replace(SOUND, addresses=narrow, foreign_routes=ways)
    far = (ip_network(route).network_address + 9,)
    assert ("FAB1608" in {finding.id for finding in judge(host, replace(VXLAN, far=far))}) == few


@pytest.mark.parametrize(
    ("cluster", "refused", "said"),
    [
        (
            IPIP,
            NO_IPIP,
            "VXLAN is there: set vxlanMode in place of ipipMode on p, or annotate it fabricctl.io/tunnel-",
        ),
        (
            IPIP,
            {**NO_IPIP, "vxlan": "no"},
            "load the module (modprobe ipip) or use a kernel that has it, or set ipipMode:",
        ),
        (
            VXLAN,
            {"vxlan": "no"},
            "load the module (modprobe vxlan) or use a kernel that has it, or set vxlanMode: Never",
        ),
    ],
)
def test_a_kernel_without_ipip_is_told_of_vxlan_only_where_it_has_that(
    cluster: Cluster, refused: Any, said: str
) -> None:
    [finding] = judge(replace(SOUND, missing_tunnels=refused), cluster)
    assert finding.cure.startswith(said)


def test_where_the_datastore_is_not_known_both_tunnels_are_looked_at() -> None:
    host = replace(SOUND, saved=(filter_table(*CLOSED, "-A INPUT -p tcp -j ACCEPT"),))
    assert [finding.cause.partition("every ")[2] for finding in judge(host, None)] == [
        "IPIP packet (protocol 4)",
        "VXLAN packet (udp port 4789)",
    ]


FULL = tuple(
    (ip_network(prefix), "eth0") for prefix in ("192.168.0.0/16", *(f"172.{n}.0.0/16" for n in range(16, 32)))
)


@pytest.mark.parametrize(
    ("host", "cluster", "ids"),
    [
        (SOUND, None, []),
        (replace(SOUND, addresses=(V6,)), None, []),
        (replace(SOUND, addresses=()), None, ["FAB1601"]),
        (replace(SOUND, addresses=(ETH0, on("eth1", "198.51.100.1/24"))), PLAIN, ["FAB1601"]),
        (replace(SOUND, routes=FULL), None, ["FAB1602"]),
        (replace(SOUND, routes=FULL), Cluster(), ["FAB1602"]),
        (replace(SOUND, routes=FULL), PLAIN, []),
    ],
)
def test_a_choice_that_join_cannot_make_is_found_beforehand(
    host: Host, cluster: Cluster | None, ids: list[str]
) -> None:
    assert [finding.id for finding in choices(host, cluster)] == ids


def test_a_datastore_that_is_away_is_an_error_with_its_reason() -> None:
    found = unreachable("etcd 192.0.2.10:2379: Connection refused")
    assert (found.id, found.severity) == ("FAB1701", "error")
    assert "Connection refused" in str(found)


def test_what_the_agent_does_not_do_of_bgp_resources_is_a_warning_each() -> None:
    of_bgp = ["BGPPeer tor-a: no secret: no session", "Node n1: no AS number"]
    found = of_resources(of_bgp)
    assert [(f.id, f.severity, f.cause) for f in found] == [("FAB1805", "warning", why) for why in of_bgp]


def test_every_id_has_its_section_in_the_reference_and_the_reverse() -> None:
    sections = re.findall(r"^## (FAB\d{4}): (.+) \((error|warning)\)$", PAGE.read_text(), re.MULTILINE)
    assert sections == [(id_, title, severity) for id_, (severity, title) in CATALOGUE.items()]


def test_a_finding_tells_id_title_cause_and_cure() -> None:
    finding = Finding("FAB1101", "held by bird", "stop it")
    assert str(finding) == "FAB1101 port 179 is in use: held by bird; stop it"
    assert finding.refusal == "FAB1101 port 179 is in use: held by bird; nothing was changed; stop it"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            {"own_routes": (BGP_DEFAULT,), "foreign_routes": (DHCP_DEFAULT,)}, id="its own has a lower metric"
        ),
        pytest.param(
            {"own_routes": (BGP_DEFAULT,), "foreign_routes": (way("10.9.0.5/32", "192.0.2.9"),)},
            id="its own is narrower",
        ),
        pytest.param(
            {"own_routes": (way("10.9.0.5/32", device="fab0123456789ab"),)}, id="it is a workload here"
        ),
        pytest.param({"own_routes": (way("::/0", "2001:db8::fe"),)}, id="of another family"),
        pytest.param(
            {"etcd": {"127.0.0.1:2379": (ip_address("127.0.0.1"),)}, "own_routes": (BGP_DEFAULT,)}, id="here"
        ),
        pytest.param(
            {"etcd": {"gone.example:2379": ()}, "own_routes": (BGP_DEFAULT,)}, id="without an address"
        ),
    ],
)
def test_etcd_by_a_way_of_the_hosts_own_is_no_finding(change: dict[str, Any]) -> None:
    assert judge(replace(SOUND, **{"etcd": ETCD, **change}), PLAIN) == []
