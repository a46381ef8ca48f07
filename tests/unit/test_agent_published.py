"""What a node publishes of its sessions, and what is read of all nodes from anywhere."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from bgp.rib import SessionState, SessionStatus, Traffic
from fabric.agent.published import Publisher
from fabric.ops import all_nodes, leave
from fabric.store import keys
from fabric.store.kv import Delete, Put, Txn
from tests.fakes.node import FakeNode, MuteEtcd, put, running, worked_out
from tests.unit.test_agent_sessions import A, peer

KEY = "/fabric/v1/bgp/n1"


@asynccontextmanager
async def publishing() -> AsyncIterator[tuple[FakeNode, Publisher]]:
    kv = MuteEtcd()
    await put(kv, peer("tor-a", A))
    async with running(kv) as node:
        worked_out(node.state)
        yield node, Publisher(node.state, kv)


def comes(node: FakeNode, state: SessionState) -> None:
    """The session with A comes to be in `state`."""
    sessions = {A: SessionStatus(state, 5.0, synced=True)}
    node.state.update(ribs=replace(node.state.ribs, sessions=sessions))


async def said(node: FakeNode) -> list[str]:
    item = await node.kv.get(KEY)
    return [session["state"] for session in json.loads(item.value)["sessions"]] if item else []


async def test_what_changes_is_published_and_what_stays_the_same_once_a_minute() -> None:
    async with publishing() as (node, publisher):
        assert await publisher.look(1000.0)
        assert await said(node) == ["Idle"]
        assert not await publisher.look(1005.0)
        comes(node, SessionState.ESTABLISHED)
        assert await publisher.look(1010.0)
        assert await said(node) == ["Established"]
        done = {at for at in range(1015, 1100, 5) if await publisher.look(float(at))}
        assert done
        assert min(done) >= 1010 + 54
        assert max(done) <= 1010 + 2 * 60


async def test_counters_alone_are_no_change() -> None:
    async with publishing() as (node, publisher):
        assert await publisher.look(1000.0)
        node.state.update(ribs=replace(node.state.ribs, traffic={A: Traffic(5, 5)}))
        assert not await publisher.look(1005.0)


async def test_etcd_that_is_away_is_no_error_and_it_is_published_when_it_is_back() -> None:
    async with publishing() as (node, publisher):
        node.kv.down = True
        assert not await publisher.look(1000.0)
        node.kv.down = False
        async with asyncio.timeout(5):
            await node.state.until(lambda: node.state.snapshot.in_sync)
        assert await publisher.look(1005.0)


async def test_a_node_that_has_left_publishes_nothing_more() -> None:
    async with publishing() as (node, publisher):
        assert await publisher.look(1000.0)
        kv = node.kv
        assert isinstance(kv, MuteEtcd)
        kv.flows.clear()  # it has not heard of that yet
        await leave._forget("n1", kv)
        comes(node, SessionState.ESTABLISHED)
        assert not await publisher.look(1005.0)
        assert await said(node) == []


async def test_all_nodes_are_listed_those_that_publish_nothing_too() -> None:
    kv = MuteEtcd()
    texts = {
        "n1": json.dumps({"at": 1000.0, "sessions": [{"peer": "192.0.2.1"}]}),
        "n2": json.dumps({"at": 500.0, "sessions": []}),
        "n3": "{nonsense",
        "n4": json.dumps({"at": 1000.0, "sessions": ["nonsense"]}),
        "deleted": json.dumps({"at": 1000.0, "sessions": []}),
    }
    for node, text in texts.items():
        await kv.commit(Txn((), (Put(f"{keys.PUBLISHED}{node}", text),)))
        await kv.commit(Txn((), (Put(keys.ResourceKey("nodes", None, node).path, "{}"),)))
    await kv.commit(Txn((), (Delete(keys.ResourceKey("nodes", None, "deleted").path),)))
    found = await all_nodes.sessions(kv)
    assert [all_nodes.document(p, 1030.0) for p in found] == [
        {"node": "n1", "at": 1000.0, "age": 30.0, "stale": False, "sessions": [{"peer": "192.0.2.1"}]},
        {"node": "n2", "at": 500.0, "age": 530.0, "stale": True, "sessions": []},
        {"node": "n3", "at": None, "age": None, "stale": True, "sessions": []},
        {"node": "n4", "at": None, "age": None, "stale": True, "sessions": []},
    ]
    assert [p.missing(1030.0).split(":")[0] for p in found] == [
        "",
        "has published nothing for 530 s",
        "has published nothing yet",
        "has published nothing yet",
    ]
