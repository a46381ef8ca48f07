"""What an operator does with sessions, on a real router: look from afar, drain, reset, pull a cable."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from fabric.lab import faults
from tests.scenarios.fabric import FRR, NODE1, NODE2, Fabric, until, up

STATUS = """
apiVersion: projectcalico.org/v3
kind: CalicoNodeStatus
metadata: {name: first}
spec: {node: node1, classes: [Agent, BGP, Routes], updatePeriodSeconds: 1}
"""


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with up(FRR, "commands") as fabric:
        fabric.join(NODE1, NODE2)
        for node, name in (("node1", "web"), ("node2", "db")):
            fabric.attach(node, name)
        until(lambda: fabric.established("node1", "node2") and len(best(fabric)) == 2)
        yield fabric


def best(fabric: Fabric) -> dict[str, Any]:
    return {route["prefix"]: route for route in fabric.ask("node1", "bgp", "routes", "best")}


def session(fabric: Fabric) -> Any:
    (found,) = fabric.ask("node1", "bgp", "peers")
    return found


def at_the_router(fabric: Fabric) -> Any:
    """The router's path to node1's block."""
    (block,) = fabric.blocks("node1")
    command = f"show bgp ipv4 unicast {block} json"
    return json.loads(fabric.run("tor", "vtysh", "-c", command).stdout)["paths"][0]


def test_sessions_of_all_nodes_are_read_without_root_where_no_agent_runs(fabric: Fabric) -> None:
    command = ("fabricctl", "--etcd", "127.0.0.1:2379", "bgp", "peers", "--all-nodes")

    def published() -> dict[str, list[tuple[str, str]]]:
        answer = json.loads(fabric.run_as_nobody("etcd", *command, "-o", "json").stdout)
        return {
            node["node"]: [(s["peer"], s["state"]) for s in node["sessions"]]
            for node in answer
            if not node["stale"] and [s["state"] for s in node["sessions"]] == ["Established"]
        }

    until(lambda: len(published()) == 2)
    assert published() == {
        "node1": [(NODE1.router, "Established")],
        "node2": [(NODE2.router, "Established")],
    }
    assert "node2" in fabric.run_as_nobody("etcd", *command).stdout


def test_a_drained_peer_is_the_last_choice_both_ways_until_it_is_undrained(fabric: Fabric) -> None:
    # RFC 8326 §4: the community goes out, and paths that come in get local preference 0.
    assert "drained" in fabric.ctl("node1", "bgp", "drain", NODE1.router)
    (sent,) = fabric.ask("node1", "bgp", "routes", "advertised")
    assert sent["communities"] == ["65535:0"]
    until(lambda: "gracefulShutdown" in at_the_router(fabric).get("community", {}).get("list", []))
    until(lambda: all(route["local_pref"] == 0 for route in best(fabric).values()))
    assert session(fabric)["drained"]
    assert fabric.run("node1", "fabricctl", "node", "status").returncode == 0

    assert "in use again" in fabric.ctl("node1", "bgp", "undrain", session(fabric)["name"])
    until(lambda: "community" not in at_the_router(fabric))
    assert all(route["local_pref"] is None for route in best(fabric).values())


def test_a_reset_session_comes_up_again_at_once(fabric: Fabric) -> None:
    before = session(fabric)
    fabric.ctl("node1", "bgp", "reset", NODE1.router)
    until(lambda: session(fabric)["state"] == "Established" and session(fabric)["since"] > before["since"])
    assert session(fabric)["flaps"] == before["flaps"] + 1
    until(lambda: len(best(fabric)) == 2)


def test_a_prefix_is_explained_from_its_paths_to_its_announcements(fabric: Fabric) -> None:
    (block,) = fabric.blocks("node2")
    found = fabric.ask("node1", "bgp", "route", block)
    assert [(path["use"], path["peer"]) for path in found["paths"]] == [("best", NODE1.router)]
    assert found["kernel"]["route"]["next_hops"][0]["address"] == NODE1.router
    assert [(a["advertised"], a["why"]) for a in found["advertised"]] == [(False, "learned from this peer")]
    assert "blackhole" in fabric.ctl("node1", "bgp", "route", fabric.blocks("node1")[0])


def test_a_calico_node_status_is_kept_up_to_date(fabric: Fabric) -> None:
    fabric.ctl("node1", "apply", "-f", "-", stdin=STATUS)

    def status() -> Any:
        return fabric.ask("node2", "get", "caliconodestatus", "first").get("status", {})

    until(lambda: status().get("bgp", {}).get("numberEstablishedV4") == 1)
    assert status()["agent"]["birdV4"]["state"] == "Ready"
    assert {r["destination"] for r in status()["routes"]["routesV4"]} >= {
        "0.0.0.0/0",
        *fabric.blocks("node2"),
    }
    first = status()["lastUpdated"]
    until(lambda: status()["lastUpdated"] > first)
    fabric.ctl("node1", "delete", "caliconodestatus", "first")


def test_a_pulled_cable_ends_the_session_and_takes_its_routes_at_once(fabric: Fabric) -> None:
    faults.cut(fabric.lab, "tor:eth1-node1:eth1")
    try:
        until(lambda: session(fabric)["state"] != "Established" and not best(fabric))
        assert "its link eth1 has no carrier" in session(fabric)["hints"][0]["cause"]
        assert session(fabric)["advertised"] == 0
    finally:
        faults.restore(fabric.lab, print)
    until(lambda: len(best(fabric)) == 2)
