"""The main job on real routers: nodes join, containers attach, the router learns, everybody reaches everybody."""

import json
import sys
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest
import yaml

from tests.scenarios.fabric import (
    BIRD,
    FRR,
    NODE1,
    NODE2,
    OUTSIDE,
    OUTSIDE_ADDRESS,
    POOL,
    ROUTERS,
    Fabric,
    Router,
    in_pool,
    until,
    up,
)

V6_POOL = """
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: six}
spec: {cidr: "fd77::/48", blockSize: 122}
"""
PEER = """
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: spare}
spec: {node: nobody, peerIP: 192.0.2.1, asNumber: 64999}
"""


@pytest.fixture(scope="module", params=ROUTERS, ids=[router.name for router in ROUTERS])
def fabric(request: pytest.FixtureRequest) -> Iterator[Fabric]:
    """Two nodes with containers: web and api on the first, db on the second."""
    router: Router = request.param
    with up(router, "quickstart") as fabric:
        fabric.join(NODE1, NODE2)
        for node, name in (("node1", "web"), ("node1", "api"), ("node2", "db")):
            fabric.attach(node, name)
        until(lambda: settled(fabric))
        yield fabric


@pytest.fixture
def single() -> Iterator[Fabric]:
    """A lab of the test's own, where the first node has joined."""
    with up(FRR, "single") as fabric:
        fabric.join(NODE1)
        yield fabric


def settled(fabric: Fabric) -> bool:
    """Every block is in the router and in the other node."""
    blocks = {node: fabric.blocks(node) for node in ("node1", "node2")}
    return (
        fabric.established("node1", "node2")
        and all(block in fabric.table() for block in [*blocks["node1"], *blocks["node2"]])
        and all(block in fabric.routes("node2") for block in blocks["node1"])
        and all(block in fabric.routes("node1") for block in blocks["node2"])
    )


def address(fabric: Fabric, node: str, name: str) -> str:
    found: str = fabric.workloads(node)[name]["addresses"][0]
    return found


def test_both_nodes_are_members_with_sessions_up_on_both_sides(fabric: Fabric) -> None:
    nodes = fabric.ask("node1", "node", "list")
    assert [node["metadata"]["name"] for node in nodes] == ["node1", "node2"]
    for member in (NODE1, NODE2):
        (session,) = fabric.sessions(member.name)
        assert (session["state"], session["peer"], session["source"]) == (
            "Established",
            member.router,
            member.address,
        )
        assert fabric.router.up(fabric.lab, member)
        assert fabric.ask(member.name, "node", "status")["ready"]


def test_a_block_is_in_the_routers_table_and_in_the_other_nodes_kernel(fabric: Fabric) -> None:
    for mine, other in ((NODE1, NODE2), (NODE2, NODE1)):
        (block,) = fabric.blocks(mine.name)
        assert ip_network(block).subnet_of(POOL)  # type: ignore[arg-type]  # both are IPv4
        assert fabric.table()[block] == [mine.address]
        assert fabric.routes(mine.name)[block] == "blackhole"
        assert fabric.routes(other.name)[block] == "eth1"
        assert fabric.routes(mine.name)["default"] == "eth1"


def test_everybody_reaches_everybody_by_container_address(fabric: Fabric) -> None:
    held = {
        name: (node, address(fabric, node, name))
        for node, name in (("node1", "web"), ("node1", "api"), ("node2", "db"))
    }
    assert [at for _, at in held.values() if in_pool(at)]
    for source, (node, _) in held.items():
        for target in [at for name, (_, at) in held.items() if name != source] + [OUTSIDE_ADDRESS]:
            assert fabric.pings(node, target, source), f"{source} does not reach {target}"
    for name, (_, at) in held.items():
        assert fabric.pings(OUTSIDE, at), f"the outside host does not reach {name}"
    for node, name in (("node1", "web"), ("node2", "db")):
        assert fabric.pings(node, held[name][1]), f"{node} does not reach its own {name}"


def test_the_outside_host_sees_the_containers_own_address(fabric: Fabric) -> None:
    with fabric.echo(OUTSIDE), fabric.sender("node1", "/run/netns/web", OUTSIDE_ADDRESS) as finish:
        assert finish().seen_as == [address(fabric, "node1", "web")]


def test_a_container_sees_the_outside_hosts_own_address(fabric: Fabric) -> None:
    with (
        fabric.echo("node2", "/run/netns/db"),
        fabric.sender(OUTSIDE, "", address(fabric, "node2", "db")) as finish,
    ):
        assert finish().seen_as == [OUTSIDE_ADDRESS]


def test_joining_twice_changes_nothing(fabric: Fabric) -> None:
    before = fabric.revisions(), fabric.host_state("node1"), since(fabric)
    said = fabric.ctl("node1", *fabric.join_arguments(NODE1))
    assert "nothing to change" in said
    assert (fabric.revisions(), fabric.host_state("node1"), since(fabric)) == before


def since(fabric: Fabric) -> list[Any]:
    return [session["since"] for node in ("node1", "node2") for session in fabric.sessions(node)]


def test_joining_again_with_a_label_updates_the_node_and_keeps_the_session(fabric: Fabric) -> None:
    before = since(fabric)
    said = fabric.ctl("node2", *fabric.join_arguments(NODE2, "--label", "rack=r1"))
    assert "Node node2: configured" in said
    assert fabric.ask("node1", "get", "node", "node2")["metadata"]["labels"] == {"rack": "r1"}
    assert since(fabric) == before


def test_joining_again_keeps_what_an_operator_set_on_the_node(fabric: Fabric) -> None:
    edited = fabric.ask("node1", "get", "node", "node1")
    edited["metadata"]["annotations"]["example.com/owner"] = "me"
    edited["metadata"]["labels"] = {"rack": "r9"}
    edited["spec"]["bgp"]["routeReflectorClusterID"] = "192.0.2.99"
    assert "configured" in fabric.ctl("node1", "apply", "-f", "-", stdin=json.dumps(edited))
    before = fabric.revisions()
    fabric.ctl("node1", *fabric.join_arguments(NODE1))
    assert fabric.revisions() == before


def test_bgp_routes_show_received_best_and_advertised(fabric: Fabric) -> None:
    (mine,), (theirs,) = fabric.blocks("node1"), fabric.blocks("node2")
    received = {path["prefix"]: path for path in fabric.ask("node1", "bgp", "routes", "received")}
    assert received[theirs]["as_path"] == [65000, 65002]
    assert received[theirs]["refused"] == ""
    best = {path["prefix"]: path["next_hops"] for path in fabric.ask("node1", "bgp", "routes", "best")}
    assert best[theirs] == best["0.0.0.0/0"] == [{"address": NODE1.router, "device": "eth1"}]
    assert mine not in best
    (sent,) = fabric.ask("node1", "bgp", "routes", "advertised")
    assert {key: sent[key] for key in ("peer", "prefix", "next_hop", "as_path")} == {
        "peer": NODE1.router,
        "prefix": mine,
        "next_hop": NODE1.address,
        "as_path": [NODE1.as_number],
    }


@pytest.mark.parametrize(
    "command",
    [
        "node list",
        "node status",
        "bgp peers",
        "bgp routes received",
        "bgp routes best",
        "bgp routes advertised",
        "workload list",
        "get ippools",
        "get nodes node1",
        "get wep",
    ],
)
def test_every_answer_is_the_same_as_json_and_as_yaml(fabric: Fabric, command: str) -> None:
    as_json = fabric.ask("node1", *command.split())
    assert as_json
    as_yaml = yaml.safe_load(fabric.ctl("node1", *command.split(), "-o", "yaml"))
    assert json.loads(json.dumps(_still(as_yaml))) == _still(as_json)
    assert fabric.ctl("node1", *command.split())


def _still(answer: Any) -> Any:
    """Without what may move between two questions."""
    if isinstance(answer, dict):
        return {key: _still(value) for key, value in answer.items() if key != "revision"}
    return [_still(value) for value in answer] if isinstance(answer, list) else answer


def test_applying_twice_changes_once(fabric: Fabric) -> None:
    assert "created" in fabric.ctl("node1", "apply", "-f", "-", stdin=PEER)
    before = fabric.revisions()
    assert "unchanged" in fabric.ctl("node1", "apply", "-f", "-", stdin=PEER)
    assert fabric.revisions() == before
    assert fabric.ask("node2", "get", "bgppeer", "spare")["spec"]["peerIP"] == "192.0.2.1"


def test_metrics_are_served_on_the_socket(fabric: Fabric) -> None:
    scrape = "from fabric.api.client import fetch; print(fetch('GET', '/metrics'))"
    text = fabric.run("node1", sys.executable, "-c", scrape).stdout
    lines = text.splitlines()
    assert "fabricctl_ready 1.0" in lines
    assert f'fabricctl_bgp_session_up{{peer="{NODE1.router}"}} 1.0' in lines


def test_a_command_run_as_a_workload_decides_the_exit_status_and_leaves_nothing(fabric: Fabric) -> None:
    before = traces(fabric, "node1")
    shell = f"ping -nc1 -W2 {OUTSIDE_ADDRESS} >&2 && exit 7"
    done = fabric.run("node1", "fabricctl", "workload", "add", "job", "--run", "sh", "-c", shell, check=False)
    assert done.returncode == 7, done
    assert traces(fabric, "node1") == before


def test_a_family_whose_only_pool_is_disabled_is_warned_of(fabric: Fabric) -> None:
    path = fabric.netns("node1", "four")
    add = ["fabricctl", "workload", "add", "four", "--netns", path]
    assert fabric.run("node1", *add).stderr == ""
    closed = (
        V6_POOL.replace("six", "closed").replace("fd77", "fd78").replace("{cidr", "{disabled: true, cidr")
    )
    fabric.ctl("node1", "apply", "-f", "-", stdin=closed)
    try:
        said = until(lambda: fabric.run("node1", *add).stderr)
        assert said.startswith(
            "warning: workload default/four: no IPv6 address: node node1: no IPv6 pool may serve"
        )
    finally:
        fabric.ctl("node1", "delete", "ippool", "closed")
        fabric.ctl("node1", "workload", "del", "four")


def test_a_workload_has_the_address_and_labels_asked_for_until_it_is_deleted(fabric: Fabric) -> None:
    before = traces(fabric, "node1")
    (block,) = fabric.blocks("node1")
    wanted = str(ip_network(block)[33])
    got = fabric.attach("node1", "exact", "--ip", wanted, "--label", "app=exact", "--label", "tier=one")
    shown = fabric.workloads("node1")["exact"]
    assert (got, shown["labels"]) == (wanted, {"app": "exact", "tier": "one"})
    assert fabric.neighbours("node1")[wanted] == shown["mac"]
    assert fabric.routes("node1")[wanted] == shown["interface"]
    inside = fabric.ctl("node1", "workload", "exec", "exact", "--", "ip", "-o", "-4", "addr", "show", "eth0")
    assert f" {wanted}/32 " in inside
    assert wanted in fabric.ctl("node1", "workload", "del", "exact")
    assert traces(fabric, "node1") == before


def traces(fabric: Fabric, node: str) -> Any:
    """Everything a workload is seen by: keys, held addresses, links, routes, neighbour entries."""
    blocks = fabric.ask(node, "node", "status")["blocks"]
    return [
        sorted(fabric.keys()),
        blocks,
        fabric.links(node),
        fabric.routes(node),
        fabric.neighbours(node),
    ]


def test_an_endpoint_carries_the_profile_of_its_namespace(fabric: Fabric) -> None:
    fabric.attach("node2", "shop", "--namespace", "retail")
    (endpoint,) = fabric.ask("node1", "get", "wep", "-n", "retail")["items"]
    assert endpoint["spec"]["profiles"] == ["kns.retail"]
    allowed = fabric.ask("node1", "get", "profile", "kns.retail")["spec"]
    assert [rule["action"] for rule in (*allowed["ingress"], *allowed["egress"])] == ["Allow", "Allow"]
    fabric.ctl("node2", "workload", "del", "shop", "-n", "retail")


def test_a_workload_whose_namespace_went_away_can_be_deleted(fabric: Fabric) -> None:
    before = traces(fabric, "node2")
    gone = fabric.attach("node2", "ghost")
    fabric.run("node2", "ip", "netns", "del", "ghost")
    until(lambda: gone not in fabric.routes("node2"))  # the veth went with it, in the kernel's own time
    assert gone in fabric.ctl("node2", "workload", "del", "ghost")
    assert traces(fabric, "node2") == before


def test_both_families_work_on_one_node(single: Fabric) -> None:
    single.ctl("node1", "apply", "-f", "-", stdin=V6_POOL)
    until(lambda: len(single.ask("node1", "get", "ippools")["items"]) == 2)
    for name in ("web", "api"):
        single.attach("node1", name)
    held = {name: w["addresses"] for name, w in single.workloads("node1").items()}
    macs = {w["addresses"][1]: w["mac"] for w in single.workloads("node1").values()}
    assert all(ip_network(six).subnet_of(ip_network("fd77::/48")) for _, six in held.values())  # type: ignore[arg-type]
    assert macs.items() <= single.neighbours("node1").items()
    assert {six for _, six in held.values()} <= single.routes("node1").keys()
    inside = single.ctl("node1", "workload", "exec", "web", "--", "ip", "-o", "-6", "addr", "show", "eth0")
    assert f" {held['web'][1]}/128 " in inside
    assert single.pings("node1", held["api"][1], "web")
    assert single.pings("node1", held["web"][1])
    assert single.pings("node1", held["api"][0], "web")

    assert forwarding(single) == ["1", "1"]
    for name in held:
        single.ctl("node1", "workload", "del", name)
    single.ctl("node1", "node", "leave")
    assert forwarding(single) == ["0", "0"]
    assert (single.links("node1"), single.routes("node1")) == ([], {})


def forwarding(fabric: Fabric) -> list[str]:
    names = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
    return fabric.run("node1", "sysctl", "-n", *names).stdout.split()


@pytest.mark.parametrize("router", [FRR, BIRD], ids=["frr", "bird"])
def test_leaving_gives_everything_back(router: Router) -> None:
    with up(router, "leave") as fabric:
        clean = host(fabric)
        fabric.join(NODE1, NODE2)
        fabric.attach("node1", "web")
        (block,) = fabric.blocks("node1")
        until(lambda: block in fabric.table() and block in fabric.routes("node2"))
        assert "default/web" in fabric.refused("node1", "node", "leave")
        fabric.ctl("node1", "workload", "del", "web")
        assert f"block {block}: handed back" in fabric.ctl("node1", "node", "leave")
        until(lambda: block not in fabric.table() and block not in fabric.routes("node2"), within=5)
        fabric.run("node1", "ip", "netns", "del", "web")
        assert host(fabric) == clean
        assert [key for key, value in fabric.keys().items() if "node1" in key + value] == []
        assert [node["metadata"]["name"] for node in fabric.ask("node2", "node", "list")] == ["node2"]


def host(fabric: Fabric) -> Any:
    """The host's state, less the log and the record of what ran, which outlive the node."""
    state = dict(fabric.host_state("node1"))
    return {what: value for what, value in state.items() if what != "files"}
