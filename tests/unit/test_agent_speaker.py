"""What the agent says to the speaker, and makes of its silence, over a node in memory."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_interface

import pytest

from bgp.peering import Here, Uplink
from bgp.rib import SessionState, SessionStatus
from bgp.speaker.seam import Event, Reset, Wanted
from fabric.agent import speaker as speakers
from fabric.agent.routing import Host
from fabric.agent.speaker import SpeakerLink
from fabric.errors import SpeakerError
from tests.fakes.node import FakeNode, MuteEtcd, pool, put, running, worked_out
from tests.unit.test_agent_sessions import A, B, peer

UP = SessionStatus(SessionState.ESTABLISHED, 5.0, synced=True)


class Speaker:
    """Takes what it is told, unless it is deaf; one that `dies` is lost while it does."""

    def __init__(self) -> None:
        self.told: list[Wanted] = []
        self.resets: list[Reset] = []
        self.deaf = False
        self.dies: SpeakerLink | None = None

    async def want(self, wanted: Wanted) -> None:
        self._hear()
        self.told.append(wanted)
        if self.dies:
            self.dies.speaker = self.dies.told = None

    async def reset(self, reset: Reset) -> None:
        self._hear()
        self.resets.append(reset)

    def _hear(self) -> None:
        if self.deaf:
            raise SpeakerError("no answer")

    async def events(self) -> AsyncIterator[Event]:
        raise SpeakerError("the connection ended")
        yield

    async def close(self) -> None:
        return


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    kv = MuteEtcd()
    await put(kv, pool("10.0.0.0/24"))
    for name, address in (("tor-a", A), ("tor-b", B)):
        await put(kv, peer(name, address))
    async with running(kv) as node:
        node.link.speaker = Speaker()
        node.state.update(host=host(carrier=True), ribs=replace(node.state.ribs, sessions={A: UP, B: UP}))
        worked_out(node.state)
        yield node


def host(*, carrier: bool) -> Host:
    return Host(here=Here(uplinks=(Uplink("eth0", ip_interface("192.0.2.1/24"), carrier),)))


def speaker(node: FakeNode) -> Speaker:
    assert isinstance(node.link.speaker, Speaker)
    return node.link.speaker


async def test_a_lost_carrier_ends_its_sessions_once_and_again_when_it_is_lost_again(node: FakeNode) -> None:
    for carrier, resets in ((True, 0), (False, 2), (False, 2), (True, 2), (False, 4)):
        node.state.update(host=host(carrier=carrier))
        await speakers.fail_over(node.state, node.link)
        assert len(speaker(node).resets) == resets
    assert {reset.peer for reset in speaker(node).resets} == {A, B}


async def test_a_session_that_the_speaker_did_not_end_is_ended_next_time(node: FakeNode) -> None:
    node.state.update(host=host(carrier=False))
    speaker(node).deaf = True
    await speakers.fail_over(node.state, node.link)
    speaker(node).deaf = False
    await speakers.fail_over(node.state, node.link)
    assert [reset.peer for reset in speaker(node).resets] == [A, B]


async def test_without_a_speaker_a_loss_waits_for_one(node: FakeNode) -> None:
    there, node.link.speaker = speaker(node), None
    node.state.update(host=host(carrier=False))
    await speakers.fail_over(node.state, node.link)
    node.link.speaker = there
    await speakers.fail_over(node.state, node.link)
    assert len(there.resets) == 2


async def test_what_is_wanted_is_handed_down_when_it_changed_and_whole_alone(node: FakeNode) -> None:
    await speakers.hand_down(node.state.desired, node.link)
    await speakers.hand_down(node.state.desired, node.link)
    assert [len(wanted.sessions) for wanted in speaker(node).told] == [2]
    node.state.update(snapshot=replace(node.state.snapshot, resources={}, in_sync=False))
    worked_out(node.state)
    await speakers.hand_down(node.state.desired, node.link)
    assert len(speaker(node).told) == 1  # nothing is withdrawn, no session ends
    node.state.update(snapshot=replace(node.state.snapshot, in_sync=True))
    worked_out(node.state)
    await speakers.hand_down(node.state.desired, node.link)
    assert speaker(node).told[-1] == Wanted()


async def test_what_the_speaker_did_not_take_is_handed_down_again(node: FakeNode) -> None:
    speaker(node).deaf = True
    await speakers.hand_down(node.state.desired, node.link)
    speaker(node).deaf = False
    await speakers.hand_down(node.state.desired, node.link)
    assert [wanted == node.state.desired.wanted for wanted in speaker(node).told] == [True]


async def test_what_one_speaker_took_before_it_was_lost_the_next_one_is_told_as_well(node: FakeNode) -> None:
    old, node.link.told = speaker(node), None
    old.dies = node.link
    await speakers.hand_down(node.state.desired, node.link)
    assert node.link.told is None
    node.link.speaker = Speaker()
    await speakers.hand_down(node.state.desired, node.link)
    assert speaker(node).told == [node.state.desired.wanted]
