"""Labs of BGP on a shared LAN and in both families: what stands beside each, and what that cannot say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from fabric.lab import faults, routers
from fabric.lab.expect import Endpoint
from fabric.lab.lab import Lab
from tests.scenarios.fabric import until
from tests.scenarios.shipped import cost, missed, outage, shipped

# Every node's block of the container pool, and the node's own address, which is its next hop.
MESH = {f"10.77.{i}.0/26": f"10.10.1.1{i}" for i in range(1, 5)}
REFLECTED = {f"10.77.{i}.0/26": f"10.10.1.1{i}" for i in range(1, 9)}
MEMBERS = {f"10.77.{i}.0/26": f"10.10.1.1{i}" for i in range(1, 4)}
REFLECTORS = ("node1", "node2")
CLIENTS = tuple(f"node{i}" for i in range(3, 9))
# Between containers of a reflector and two clients; more of them would tell no more.
FLOWS = tuple(Endpoint(f"c{i}", f"node{i}", f"c{i}") for i in (2, 5, 8))


def ask(lab: Lab, node: str, *arguments: str) -> Any:
    return json.loads(lab.exec(node, ["fabricctl", *arguments, "-o", "json"]).stdout)


def vtysh(lab: Lab, node: str, command: str) -> Any:
    return json.loads(lab.exec(node, ["vtysh", "-c", f"{command} json"]).stdout)


def patch(lab: Lab, kind: str, name: str, spec: dict[str, object]) -> None:
    lab.exec("node1", ["fabricctl", "patch", kind, name, "-p", json.dumps({"spec": spec})])


def peers(lab: Lab, node: str) -> dict[str, Any]:
    """Return the node's sessions by peer."""
    return {session["peer"]: session for session in ask(lab, node, "bgp", "peers")}


def up(lab: Lab, node: str) -> list[str]:
    return [peer for peer, session in peers(lab, node).items() if session["state"] == "Established"]


def received(lab: Lab, node: str) -> list[Any]:
    paths: list[Any] = ask(lab, node, "bgp", "routes", "received")
    return paths


def astray(lab: Lab, node: str, homes: dict[str, str]) -> dict[str, Sequence[str]]:
    """Return the blocks of others that the node's kernel does not send straight to the node whose they are."""
    table = routers.kernel_table(lab, node)
    hops = {block: sorted(table.get(ip_network(block), ())) for block in homes}
    return {block: hops[block] for block, home in homes.items() if hops[block] not in ([home], ["blackhole"])}


# mesh


@pytest.fixture(scope="module")
def mesh() -> Iterator[Lab]:
    with shipped("mesh") as lab:
        assert missed(lab) == []
        yield lab


def test_in_a_mesh_every_node_sends_straight_to_every_other(mesh: Lab) -> None:
    for i in range(1, 5):
        assert astray(mesh, f"node{i}", MESH) == {}
        # One connection a pair: of two nodes one waits for the other.
        shown = mesh.exec(
            f"node{i}", ["ss", "-Htn", "state", "established", "( sport = :179 or dport = :179 )"]
        )
        assert len(shown.stdout.splitlines()) == 3, shown.stdout


def test_a_node_that_leaves_a_mesh_or_changes_its_as_touches_no_session_between_others(mesh: Lab) -> None:
    others = {f"node{i}": [f"10.10.1.1{k}" for k in range(1, 4) if k != i] for i in range(1, 4)}
    before = {node: peers(mesh, node) for node in others}
    # In another AS its sessions are external, and all of it holds again.
    patch(mesh, "node", "node4", {"bgp": {"asNumber": 64513}})
    until(lambda: all(s["local_as"] == 64513 for s in peers(mesh, "node4").values()))
    assert missed(mesh) == []
    mesh.exec("node4", ["fabricctl", "workload", "del", "cache"])
    mesh.exec("node4", ["fabricctl", "node", "leave"])
    for node, rest in others.items():
        until(lambda node=node, rest=rest: up(mesh, node) == rest == [*peers(mesh, node)])  # type: ignore[misc]
        until(lambda node=node: ip_network("10.77.4.0/26") not in routers.kernel_table(mesh, node))  # type: ignore[misc]
        after = peers(mesh, node)
        assert [after[peer]["since"] for peer in rest] == [before[node][peer]["since"] for peer in rest]
    mesh.exec("node4", ["fabricctl", "node", "join", "--etcd", "10.10.1.2:2379"])
    mesh.exec("node4", ["fabricctl", "workload", "add", "cache", "--netns", "cache", "--ip", "10.77.4.1"])
    assert missed(mesh) == []


# reflector


@pytest.fixture(scope="module")
def reflector() -> Iterator[Lab]:
    """One lab for all of the tests below, each of which leaves it whole."""
    with shipped("reflector") as lab:
        assert missed(lab) == []
        yield lab


def heard_by_clients(lab: Lab) -> None:
    """Every client has each block of the others by both reflectors, and goes straight to it."""
    addresses = {node: f"10.10.1.1{node[-1]}" for node in (*REFLECTORS, *CLIENTS)}
    for client in CLIENTS:
        heard = {(p["prefix"], p["peer"]): p for p in received(lab, client) if not p["refused"]}
        blocks = {block for block, home in REFLECTED.items() if home != addresses[client]}
        assert {*heard} == {(block, addresses[by]) for block in blocks for by in REFLECTORS}
        assert all(path["next_hop"] == REFLECTED[block] for (block, _), path in heard.items())
        assert astray(lab, client, REFLECTED) == {}


def taken_from_each_other(lab: Lab) -> list[int]:
    """Return how many paths either reflector has accepted of the other."""
    return [
        sum(p["peer"] == other and not p["refused"] for p in received(lab, node))
        for node, other in zip(REFLECTORS, ("10.10.1.12", "10.10.1.11"), strict=True)
    ]


@pytest.mark.alone
def test_reflectors_of_one_cluster_end_each_others_reflections(reflector: Lab) -> None:
    """RFC 4456 §7 and §8: each has the other's own block of it, and nothing else."""
    heard_by_clients(reflector)
    assert taken_from_each_other(reflector) == [1, 1]
    assert {p["refused"] for p in received(reflector, "node1") if p["refused"]} == {
        "loop: own id in the cluster list"
    }


@pytest.mark.alone
def test_with_a_cluster_id_each_reflectors_take_each_others_reflections_and_nothing_goes_round(
    reflector: Lab,
) -> None:
    """RFC 4456 §8."""
    patch(reflector, "node", "node2", {"bgp": {"routeReflectorClusterID": "244.0.0.2"}})
    try:
        until(lambda: taken_from_each_other(reflector) == [1 + len(CLIENTS)] * 2)
        assert missed(reflector) == []
        heard_by_clients(reflector)
        for node in (*REFLECTORS, *CLIENTS):
            for path in received(reflector, node):
                assert len(path["cluster_list"]) == len({*path["cluster_list"]}) <= 2, path
    finally:
        patch(reflector, "node", "node2", {"bgp": {"routeReflectorClusterID": "244.0.0.1"}})
    until(lambda: taken_from_each_other(reflector) == [1, 1])
    assert missed(reflector) == []


@pytest.mark.alone
def test_a_reflector_may_lose_its_power(reflector: Lab) -> None:
    def act() -> str:
        said = faults.power_off(reflector, "node1")
        # Until the hold time is over they do not know.
        until(lambda: all(up(reflector, client) == ["10.10.1.12"] for client in CLIENTS))
        return said

    assert outage(cost(reflector, FLOWS, act)) == 0


@pytest.mark.alone
def test_a_reflector_s_speaker_may_die(reflector: Lab) -> None:
    """RFC 4724 §4.2: what only this node announces, its own containers, is kept meanwhile."""
    assert outage(cost(reflector, FLOWS, lambda: faults.kill(reflector, "speaker", "node2"))) == 0


# reflector-frr


@pytest.fixture(scope="module")
def reflector_frr() -> Iterator[Lab]:
    """One lab for both tests below, each of which leaves it whole."""
    with shipped("reflector-frr") as lab:
        assert missed(lab) == []
        yield lab


@pytest.mark.alone
def test_frr_reflects_between_nodes_and_is_not_on_their_way(reflector_frr: Lab) -> None:
    lab = reflector_frr
    for i in range(1, 4):
        assert astray(lab, f"node{i}", MEMBERS) == {}
        # FRR sends its clients their own, too.
        reflected = [p for p in received(lab, f"node{i}") if p["prefix"] in MEMBERS and not p["refused"]]
        assert len(reflected) == 2
        for path in reflected:  # RFC 4456 §8
            assert path["originator_id"] == MEMBERS[path["prefix"]]
            assert path["cluster_list"] == ["244.0.0.1"]
    shown = vtysh(lab, "rr", "show bgp ipv4 unicast 10.77.1.0/26")
    # Calico's: own routes are worth 2147483647 less the normal priority, 1024.
    assert [path["locPrf"] for path in shown["paths"]] == [2147482623]


@pytest.mark.alone
def test_when_frr_s_routing_daemons_die_its_clients_go_on_by_what_it_reflected(reflector_frr: Lab) -> None:
    """RFC 4724 §4.2."""
    flows = [
        Endpoint("web", "node1", "web"),
        Endpoint("db", "node3", "db"),
        Endpoint("outside", "outside"),
    ]
    assert outage(cost(reflector_frr, flows, lambda: faults.kill(reflector_frr, "router", "rr"))) == 0


# dual-stack


def test_ipv4_goes_by_ipv6_next_hops_where_links_have_no_ipv4() -> None:
    """RFC 8950 §4."""
    with shipped("dual-stack") as lab:
        assert missed(lab) == []
        neighbor = vtysh(lab, "tor", "show bgp neighbors fd00:10:1::2")["fd00:10:1::2"]
        assert neighbor["neighborCapabilities"]["extendedNexthop"] == "advertisedAndReceived"
        for node, hop in (("node1", "fd00:10:1::1"), ("node2", "fd00:10:2::1"), ("node3", "10.10.3.1")):
            has_ipv4 = "inet " in lab.exec(node, ["ip", "address", "show", "dev", "eth1"]).stdout
            assert has_ipv4 == (node == "node3")
            table = routers.kernel_table(lab, node)
            others = [ip_network(f"10.77.{i}.0/26") for i in range(1, 4) if f"node{i}" != node]
            assert {table[prefix] for prefix in (*others, ip_network("0.0.0.0/0"))} == {frozenset({hop})}
        table = routers.kernel_table(lab, "tor")
        hops = {i: ip_address(*table[ip_network(f"10.77.{i}.0/26")]) for i in range(1, 4)}
        assert [hop.version for hop in hops.values()] == [6, 6, 4]


# route-server


@pytest.fixture(scope="module")
def route_server() -> Iterator[Lab]:
    with shipped("route-server") as lab:
        assert missed(lab) == []
        yield lab


def test_members_of_a_route_server_send_to_each_other_and_nothing_through_it(route_server: Lab) -> None:
    lab = route_server
    for i in range(1, 4):
        assert astray(lab, f"node{i}", MEMBERS) == {}
        assert routers.kernel_table(lab, f"node{i}")[ip_network("10.10.4.0/24")] == {"10.10.1.3"}
        for path in received(lab, f"node{i}"):
            # RFC 7947 §2.2: neither next hop nor AS path are the route server's.
            assert path["next_hop"] != "10.10.1.1"
            assert 65500 not in path["as_path"]
    edge = routers.kernel_table(lab, "edge")
    assert {str(p): [*edge[p]] for p in edge if str(p) in MEMBERS} == {
        "10.77.1.0/26": ["10.10.1.11"],
        "10.77.2.0/26": ["10.10.1.12"],
    }
    counted = lab.exec("rs", ["cat", "/proc/net/snmp"]).stdout.splitlines()
    ip = dict(zip(*(line.split() for line in counted if line.startswith("Ip:")), strict=True))
    assert (ip["ForwDatagrams"], ip["InAddrErrors"]) == ("0", "0"), ip


def test_members_mark_prepend_and_filter_what_they_tell_a_route_server(route_server: Lab) -> None:
    lab = route_server
    heard = {path["prefix"]: path for path in received(lab, "node1")}
    plain, marked = heard["10.77.2.0/26"], heard["10.77.3.0/26"]
    assert plain["as_path"] == [65002]
    assert sorted(plain["communities"]) == ["65500:1:77", "65500:77"]  # RFC 1997, RFC 8092
    assert marked["as_path"] == [65003, 65003, 65003]
    assert marked["communities"] == ["65500:0:65200"]
    assert heard["0.0.0.0/0"]["refused"].startswith("rejected by")
    # What GoBGP and FRR make of it.
    (told,) = vtysh(lab, "edge", "show bgp ipv4 unicast 10.77.1.0/26")["paths"]
    assert told["community"]["string"] == "65500:77"
    assert told["largeCommunity"]["string"] == "65500:1:77"
    sent = json.loads(lab.exec("rs", ["gobgp", "-j", "neighbor", "10.10.1.12", "adj-in"]).stdout)
    assert [*sent] == ["10.77.2.0/26"]


def test_sessions_with_a_route_server_are_signed_and_the_password_stays_on_the_node(
    route_server: Lab,
) -> None:
    """RFC 2385."""
    lab, password = route_server, "not-a-secret"
    seen = lab.exec(
        "rs", ["tcpdump", "-nni", "eth1", "-M", password, "-c", "8", "tcp port 179 and host 10.10.1.11"]
    ).stdout
    assert seen.count("md5 valid") == 8, seen
    assert password not in lab.exec("etcd", ["etcdctl", "get", "--prefix", "/"]).stdout
    assert password not in lab.exec("node1", ["fabricctl", "node", "status", "-o", "json"]).stdout
    kept = ["grep", "-rlF", password, "/var/lib/fabricctl", "/var/log", "/etc/fabricctl/fabricctl.cfg"]
    assert lab.exec("node1", kept, check=False).stdout == ""


def test_a_member_with_another_password_is_told_of_md5(route_server: Lab) -> None:
    lab, secrets = route_server, "/etc/fabricctl/secrets/route-server"
    script = f"mkdir -p /tmp/other; echo other >/tmp/other/password; mount --bind /tmp/other {secrets}"
    lab.exec("node1", ["sh", "-c", script])
    try:
        faults.kill(lab, "agent", "node1")  # it reads its secrets when it starts, and at each read-back
        until(lambda: "MD5" in lab.exec("node1", ["fabricctl", "bgp", "peers"], check=False).stdout)
        assert up(lab, "node1") == []
    finally:
        lab.exec("node1", ["umount", secrets])
        faults.kill(lab, "agent", "node1")
        until(lambda: not lab.exec("node1", ["fabricctl", "node", "status"], check=False).returncode)
    assert missed(lab) == []


def test_a_member_without_the_secret_has_no_session_and_is_told_where_to_put_it(route_server: Lab) -> None:
    lab = route_server

    def use(key: str) -> None:
        patch(
            lab,
            "bgppeer",
            "route-server",
            {"password": {"secretKeyRef": {"name": "route-server", "key": key}}},
        )

    use("lost")
    try:
        until(lambda: not up(lab, "node1"))
        problems = until(lambda: ask(lab, "node1", "node", "status")["problems"])
        (told,) = [problem for problem in problems if "route-server" in problem]
        assert "/etc/fabricctl/secrets/route-server/lost" in told
        assert "FABRICCTL_SECRET_ROUTE_SERVER_LOST" in told
    finally:
        use("password")
    assert missed(lab) == []
