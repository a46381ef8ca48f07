"""Reset and drain of sessions, over a node in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest

from bgp.speaker.seam import Reset
from fabric.agent.passes import Outcome
from fabric.agent.sessions import Sessions, annotated
from fabric.errors import NotFound, NotInSync, SpeakerError
from fabric.model.bgp import BGPPeer
from fabric.model.extensions import DRAINED
from fabric.model.node import Node
from tests.fakes.node import FakeNode, MuteEtcd, put, running, worked_out

A, B = ip_address("192.0.2.101"), ip_address("192.0.2.102")
HERE = "/calico/resources/v3/projectcalico.org/nodes/n1"


def peer(name: str, address: object) -> BGPPeer:
    return BGPPeer.model_validate(
        {"metadata": {"name": name}, "spec": {"peerIP": str(address), "asNumber": 65000}}
    )


def hand_down(node: FakeNode) -> None:
    """One pass, as the loop makes it."""
    node.link.told = worked_out(node.state).wanted
    node.state.passed(Outcome())


@asynccontextmanager
async def serving(*, passes: bool = True) -> AsyncIterator[FakeNode]:
    async def loop(node: FakeNode) -> None:
        while True:
            await node.state.dirty.wait()
            node.state.dirty.clear()
            hand_down(node)

    async with running(MuteEtcd()) as node, asyncio.TaskGroup() as tasks:
        await put(node.kv, peer("tor-a", A))
        await put(node.kv, peer("tor-b", B))
        await node.caught_up()
        hand_down(node)
        passing = tasks.create_task(loop(node) if passes else asyncio.Event().wait())
        yield node
        passing.cancel()


def drained(node: FakeNode) -> str:
    me = node.state.snapshot.get(Node, "n1")
    assert me
    return me.metadata.annotations.get(DRAINED, "")


async def test_a_drained_session_is_so_in_the_node_and_in_what_was_handed_down() -> None:
    async with serving() as node:
        (found,) = await node.sessions.drain("tor-a", drained=True)
        assert (found.spec.peer, found.drained, drained(node)) == (A, True, str(A))
        assert node.link.told == node.state.desired.wanted
        assert [p.drained for p in node.state.desired.peerings.peerings] == [True, False]
        await node.sessions.drain(str(B), drained=True)
        assert drained(node) == f"{A},{B}"
        await node.sessions.drain("tor-a", drained=False)
        await node.sessions.drain("tor-b", drained=False)
        me = node.state.snapshot.get(Node, "n1")
        assert me
        assert DRAINED not in me.metadata.annotations


async def test_to_drain_what_is_drained_writes_nothing() -> None:
    async with serving() as node:
        await node.sessions.drain("tor-a", drained=True)
        before = node.kv.revision
        await node.sessions.drain("tor-a", drained=True)
        assert node.kv.revision == before


async def test_a_lost_race_for_the_node_is_run_again() -> None:
    async with serving() as node:
        kv = node.kv
        assert isinstance(kv, MuteEtcd)
        kv.contested = HERE
        draining = asyncio.create_task(node.sessions.drain("tor-a", drained=True))
        async with asyncio.timeout(5):
            await kv.refused.wait()
        kv.contested = ""
        await draining
        assert drained(node) == str(A)


async def test_a_speaker_that_does_not_take_it_is_an_error_that_says_how_things_stand() -> None:
    async with serving(passes=False) as node:
        hasty = Sessions(node.state, node.kv, node.link, patience=0.05)
        with pytest.raises(SpeakerError, match="Node n1 says so now, and the speaker has not taken it"):
            await hasty.drain("tor-a", drained=True)
        assert drained(node) == str(A)


async def test_without_the_datastore_nothing_is_drained() -> None:
    async with serving() as node:
        node.kv.down = True
        async with asyncio.timeout(5):
            await node.state.until(lambda: not node.state.snapshot.in_sync)
        with pytest.raises(NotInSync, match="nothing was changed"):
            await node.sessions.drain("tor-a", drained=True)


async def test_a_peer_that_is_not_there_is_refused_with_those_that_are() -> None:
    async with serving() as node:
        with pytest.raises(NotFound, match=r"192\.0\.2\.101 \(tor-a\), 192\.0\.2\.102 \(tor-b\)"):
            await node.sessions.drain("tor-c", drained=True)
        with pytest.raises(NotFound, match="nothing was done"):
            await node.sessions.reset("10.0.0.1")


async def test_a_reset_goes_down_the_seam_and_needs_a_speaker() -> None:
    class Speaker:
        def __init__(self) -> None:
            self.resets: list[Reset] = []

        async def reset(self, reset: Reset) -> None:
            self.resets.append(reset)

    async with serving() as node:
        with pytest.raises(SpeakerError, match="nothing was done"):
            await node.sessions.reset("tor-a")
        speaker = Speaker()
        node.link.speaker = speaker  # type: ignore[assignment]
        await node.sessions.reset("tor-a")
        assert speaker.resets == [Reset(A)]


def test_other_annotations_stay_and_a_list_that_cannot_be_read_is_begun_anew() -> None:
    node = Node.model_validate({"metadata": {"name": "n1", "annotations": {"a/b": "c", DRAINED: "nonsense"}}})
    assert annotated(node, {A}, True).metadata.annotations == {"a/b": "c", DRAINED: str(A)}
    assert annotated(node, {A}, False) is node
