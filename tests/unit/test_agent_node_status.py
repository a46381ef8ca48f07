"""CalicoNodeStatus, as calicoctl reads it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from fabric.agent import node_status
from fabric.agent.node_status import status
from fabric.model.caliconodestatus import CalicoNodeStatus
from fabric.store.kv import Put, Txn
from tests.fakes.calico import RESOURCES, resource
from tests.fakes.node import FakeNode, MuteEtcd, running, worked_out
from tests.unit.test_agent_desired import (
    HOST_DEFAULT,
    OWN,
    POOL,
    REMOTE,
    TOR_A,
    TOR_B,
    endpoint,
    node,
    path,
    store,
)
from tests.unit.test_agent_report_bgp import DOWN, NAMED, UP, WORSE, state

NOW = datetime(2026, 11, 29, 15, 0, tzinfo=UTC)
KEY = f"{RESOURCES}/caliconodestatuses/mine"


def routes(of: Any) -> list[tuple[str, str, str, str, str, str]]:
    return [
        (
            r["type"],
            r["destination"],
            r["gateway"],
            r["interface"],
            r["learnedFrom"]["sourceType"],
            r["learnedFrom"].get("peerIP", ""),
        )
        for r in status(of, ["Routes"], NOW)["routes"]["routesV4"]
    ]


def test_sessions_are_counted_and_named_by_family() -> None:
    said = status(state(sessions={TOR_A: UP, TOR_B: DOWN}), ["BGP"], NOW)
    assert said == {
        "lastUpdated": "2026-11-29T15:00:00Z",
        "bgp": {
            "numberEstablishedV4": 1,
            "numberNotEstablishedV4": 1,
            "peersV4": [
                {
                    "peerIP": str(TOR_A),
                    "type": "GlobalPeer",
                    "state": "Established",
                    "since": "1970-01-01T00:15:00Z",
                },
                {
                    "peerIP": str(TOR_B),
                    "type": "GlobalPeer",
                    "state": "Connect",
                    "since": "1970-01-01T00:16:30Z",
                },
            ],
            "numberEstablishedV6": 0,
            "numberNotEstablishedV6": 0,
        },
    }


def test_the_agent_is_ready_while_its_speaker_answers() -> None:
    made = state()
    ready = status(made, ["Agent"], NOW)["agent"]["birdV4"]
    assert (ready["state"], ready["routerID"]) == ("Ready", "192.0.2.1")
    made.ribs = replace(made.ribs, connected=False)
    assert status(made, ["Agent"], NOW)["agent"]["birdV4"]["state"] == "NotReady"


def test_routes_say_whether_packets_follow_them_and_where_they_are_from() -> None:
    made = state(path(REMOTE), WORSE, snapshot=store(node(), POOL, *NAMED, endpoint("10.244.1.5")))
    made.host = replace(made.host, foreign_routes=(*made.host.foreign_routes, HOST_DEFAULT))
    worked_out(made)
    assert set(routes(made)) == {
        ("FIB", "10.1.0.0/31", "N/A", "eth1", "Direct", ""),
        ("FIB", "10.2.0.0/31", "N/A", "eth2", "Direct", ""),
        ("FIB", "0.0.0.0/0", str(TOR_A), "eth1", "Kernel", ""),
        ("FIB", str(OWN), "N/A", "blackhole", "Static", ""),
        ("FIB", "10.244.1.5/32", "N/A", "fab0123456789ab", "Kernel", ""),
        ("FIB", str(REMOTE), str(TOR_A), "eth1", "BGPPeer", str(TOR_A)),
        ("RIB", str(REMOTE), str(TOR_B), "eth2", "BGPPeer", str(TOR_B)),
    }


def test_a_table_too_large_for_etcd_is_cut() -> None:
    many = [path(f"10.244.{n // 64 + 4}.{n % 64 * 4}/30") for n in range(node_status.MOST_ROUTES + 500)]
    assert len(routes(state(*many))) == node_status.MOST_ROUTES


@asynccontextmanager
async def keeping(**spec: Any) -> AsyncIterator[FakeNode]:
    kv = MuteEtcd()
    asked = {"node": "n1", "classes": ["BGP"], "updatePeriodSeconds": 1, **spec}
    for key, text in resource("CalicoNodeStatus", "caliconodestatuses", "mine", asked).items():
        value = json.loads(text) | {"status": {"bgp": {"old": 1}, "agent": {"old": 1}, "ofAnother": 7}}
        await kv.commit(Txn((), (Put(key, json.dumps(value)),)))
    async with running(kv) as node, asyncio.TaskGroup() as tasks:
        worked_out(node.state)
        task = tasks.create_task(node_status.keep(node.state, kv))
        yield node
        task.cancel()


async def stored(node: FakeNode) -> Any:
    item = await node.kv.get(KEY)
    assert item
    return json.loads(item.value)["status"]


async def test_what_is_asked_for_is_written_again_and_again_and_what_is_unknown_stays() -> None:
    async with keeping() as node, asyncio.timeout(10):
        seen: set[str] = set()
        while len(seen) < 2:
            await node.state.until(lambda: node.state.snapshot.revision >= node.kv.revision)
            said = await stored(node)
            seen |= {said["lastUpdated"]} if "lastUpdated" in said else set()
            await asyncio.sleep(0.05)
        assert said.keys() == {"lastUpdated", "bgp", "ofAnother"}
        assert said["bgp"]["numberEstablishedV4"] == 0


@pytest.mark.parametrize(
    "spec", [{"node": "n2"}, {"updatePeriodSeconds": 0}], ids=["another's", "switched off"]
)
async def test_what_is_not_asked_of_this_node_is_left_alone(spec: dict[str, Any]) -> None:
    async with keeping(**spec) as node:
        (found,) = node.state.snapshot.all(CalicoNodeStatus)
        assert not node_status.is_asked(found, node.state)
        assert "lastUpdated" not in await stored(node)


async def test_what_is_asked_for_anew_is_answered_at_once() -> None:
    async with keeping(updatePeriodSeconds=86_400) as node, asyncio.timeout(10):
        for classes in (["BGP"], ["Agent"]):
            await ask(node, classes)
            while classes[0].lower() not in (said := await stored(node)) or "old" in said[classes[0].lower()]:
                await node.state.until(lambda: node.state.snapshot.revision >= node.kv.revision)
                await asyncio.sleep(0.05)


async def ask(node: FakeNode, classes: list[str]) -> None:
    item = await node.kv.get(KEY)
    assert item
    value = json.loads(item.value)
    value["spec"]["classes"] = classes
    await node.kv.commit(Txn((), (Put(KEY, json.dumps(value)),)))
