"""One contract for the speaker, on the fake and on the real process against FRR and BIRD in namespaces.

Sessions that come and go, security, attributes, limits, and what is kept over a loss: in the files beside this one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bgp.rib import Announcement, Attributes
from bgp.speaker.seam import Reset, Snapshot, Update, Wanted
from tests.contract.speaker_rig import (
    MORE,
    OURS,
    PEER_AS,
    SPEC,
    THEIRS,
    Agent,
    RealRig,
    Rig,
    agent_of,
    by_hand,
    fake,
    frr_config,
    gone,
    real,
    until,
    update,
    wanting,
)


@pytest.fixture(params=["fake", "frr", "bird"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    if request.param == "fake":
        yield fake()
        return
    with real(request.param) as rig:
        yield rig


@pytest.fixture
def frr() -> Iterator[RealRig]:
    with real("frr") as rig:
        yield rig


async def test_the_contract(rig: Rig) -> None:
    a, b, c, d = OURS
    async with agent_of(rig) as agent:
        assert agent.deltas == [Snapshot()]
        await agent.speaker.want(wanting(a, b))
        await agent.sees(Agent.synced)
        await rig.has(a, b)
        assert str(agent.sessions[SPEC.peer].peer_id) == "10.0.0.2"
        await rig.router.announce(MORE)
        await agent.sees(lambda agent: MORE in agent.learned())
        path = agent.paths[SPEC.peer][MORE]
        assert (path.next_hop, path.as_path, path.peer) == (SPEC.peer, (PEER_AS,), SPEC.peer)
        await agent.speaker.want(wanting(b, c, d))
        await rig.has(b, c, d)
        await rig.router.withdraw(MORE)
        await agent.sees(lambda agent: MORE not in agent.learned())
        before = agent.sessions, agent.learned()
    async with agent_of(rig) as returned:
        assert (returned.sessions, returned.learned()) == before
        assert returned.wanted == wanting(b, c, d)
        assert before[0][SPEC.peer].flaps == 0, "an agent that leaves and returns touches no session"
        await returned.speaker.want(Wanted())
        await returned.sees(lambda agent: not agent.sessions and not agent.learned())
        await rig.has()


async def test_a_reset_ends_the_session_with_its_cease_and_it_comes_up_again(rig: Rig) -> None:
    """RFC 4486 §3: the subcode says why."""
    async with agent_of(rig) as agent:
        await agent.speaker.want(wanting(OURS[0]))
        await agent.sees(Agent.synced)
        await rig.router.announce(MORE)
        await agent.sees(lambda agent: MORE in agent.learned())
        agent.deltas.clear()
        await agent.speaker.reset(Reset(SPEC.peer, 2))
        await agent.sees(lambda agent: agent.sessions[SPEC.peer].flaps == 1 and agent.synced())
        told = [event for event in agent.deltas if isinstance(event, Update)]
        assert MORE in told[0].withdrawn, "what was learned is flushed at once"
        last = agent.sessions[SPEC.peer].notification
        assert last is not None
        assert (last.code, last.subcode, last.sent_by_us) == (6, 2, True)
        await rig.has(OURS[0])
        await agent.sees(lambda agent: MORE in agent.learned())


async def test_updates_are_counted_both_ways(rig: Rig) -> None:
    async with agent_of(rig) as agent:
        await agent.speaker.want(wanting(OURS[0]))
        await agent.sees(Agent.synced)
        await agent.sees(lambda agent: SPEC.peer in agent.traffic)
        before = agent.traffic[SPEC.peer]
        await rig.router.announce(MORE)
        await agent.speaker.want(wanting(*OURS[:2]))
        await agent.sees(lambda agent: agent.traffic[SPEC.peer].updates_in > before.updates_in)
        await agent.sees(lambda agent: agent.traffic[SPEC.peer].updates_out > before.updates_out)
        async with agent_of(rig) as another:
            assert another.traffic == agent.traffic


async def test_exabgp_killed_is_restarted_and_nothing_is_withdrawn(frr: RealRig) -> None:
    async with agent_of(frr) as agent:
        await frr.converged(agent, *OURS[:2])
        agent.deltas.clear()
        async with frr.never_without(*OURS[:2]):
            os.kill(frr.process.exabgp(), signal.SIGKILL)
            await agent.sees(lambda agent: not agent.up())
            await agent.sees(Agent.up)
            await frr.has_no_stale()
            await agent.speaker.want(wanting(*OURS[:3]))
            await frr.has(*OURS[:3])
        lost = [e for e in agent.deltas if isinstance(e, Update) and e.withdrawn]
        assert not lost, "what was learned stands while ExaBGP restarts"
        assert agent.sessions[SPEC.peer].flaps == 1


async def test_a_pump_killed_is_a_restart_too(frr: RealRig) -> None:
    async with agent_of(frr) as agent:
        await frr.converged(agent, OURS[0])
        (pump,) = frr.process.children("pump.py")
        async with frr.never_without(OURS[0]):
            os.kill(pump, signal.SIGKILL)
            await agent.sees(lambda agent: not agent.up())
            await agent.sees(Agent.up)
            await frr.has_no_stale()


async def test_a_speaker_killed_takes_its_children_along_and_peers_hold(frr: RealRig) -> None:
    async with agent_of(frr) as agent:
        await frr.converged(agent, *OURS[:2])
        children = frr.process.children(" server ", "pump.py")
        assert len(children) == 2
        async with frr.never_without(*OURS[:2]):
            frr.process.end()
            await gone(*children, seconds=1.0)
            await agent.sees(lambda agent: agent.ended)
            frr.process.restart()
            async with agent_of(frr) as returned:
                assert returned.deltas == [Snapshot()], "it knows nothing, and starts nothing"
                assert not frr.process.children(" server ")
                await frr.converged(returned, *OURS[:2])
                await frr.has_no_stale()


async def test_sigterm_ends_it_without_a_word_to_the_peers(frr: RealRig) -> None:
    async with agent_of(frr) as agent:
        await frr.converged(agent, OURS[0])
        children = frr.process.children(" server ", "pump.py")
        async with frr.never_without(OURS[0]):
            frr.process.popen.terminate()
            assert await asyncio.to_thread(frr.process.popen.wait, 5) == 0
            await gone(*children, seconds=1.0)
        assert "Traceback" not in frr.process.log.read_text()


async def test_a_stalled_exabgp_is_found_and_restarted(frr: RealRig) -> None:
    async with agent_of(frr) as agent:
        await frr.converged(agent, OURS[0])
        stalled = frr.process.exabgp()
        async with frr.never_without(OURS[0]):
            os.kill(stalled, signal.SIGSTOP)
            await gone(stalled, seconds=12.0)
            await agent.sees(Agent.up)
            await frr.has_no_stale()
        assert "answered nothing" in frr.process.log.read_text()


async def test_what_is_no_longer_announced_stays_away_when_a_router_comes_back(frr: RealRig) -> None:
    async with agent_of(frr) as agent:
        await frr.converged(agent, *OURS[:2])
        frr.frr.kill("KILL")
        await agent.sees(lambda agent: not agent.up())
        await agent.speaker.want(wanting(OURS[0]))
        frr.frr.start()
        await agent.sees(Agent.synced)
        await frr.has(OURS[0])
        assert await frr.router.table() == {OURS[0]}


async def test_of_many_changes_at_once_the_last_word_counts(frr: RealRig) -> None:
    async with agent_of(frr) as agent:
        await frr.converged(agent, *OURS[:3])
        others = [Announcement(prefix) for prefix in OURS[1:]]
        for med in (5, 6, 5, None, 6, 5):
            mine = Announcement(OURS[0], attributes=Attributes(med=med))
            await agent.speaker.want(Wanted(frozenset([SPEC]), {SPEC.peer: frozenset([mine, *others[:2]])}))
        await agent.speaker.want(Wanted(frozenset([SPEC]), {SPEC.peer: frozenset([mine, *others])}))
        await frr.has(*OURS)
        assert (await frr.frr.routes())[OURS[0]].get("metric") == 5


async def test_a_malformed_update_is_a_withdrawal_and_ends_nothing() -> None:
    async with by_hand() as (process, peer), agent_of(process) as agent:
        await agent.speaker.want(wanting(OURS[0]))
        await agent.sees(Agent.up)
        router = await peer.connections.get()
        router.write(update(THEIRS) + update(MORE))
        await agent.sees(lambda agent: agent.learned() == {THEIRS, MORE})
        router.write(update(THEIRS, next_hop=False) * 3)
        await agent.sees(lambda agent: agent.learned() == {MORE})
        router.write(update(THEIRS))
        await agent.sees(lambda agent: agent.learned() == {THEIRS, MORE})
        assert agent.sessions[SPEC.peer].flaps == 0
        said = process.log.read_text()
        assert said.count("cannot read what ExaBGP says") == 1, "once a kind of fault"
        assert "peer 10.0.0.2" in said
        await agent.speaker.want(Wanted())
        await agent.sees(lambda agent: not agent.sessions)


async def test_the_wrong_as_is_named_and_told_once() -> None:
    with real("frr", frr_config(expected_as=65099)) as rig:
        async with agent_of(rig) as agent:
            await agent.speaker.want(wanting(OURS[0]))
            await agent.sees(lambda agent: agent.reason() == "notification received (2,2) bad peer AS")
            last = agent.sessions[SPEC.peer].notification
            assert last is not None
            assert not last.sent_by_us
            told = list(agent.deltas)
            await until_attempts(rig, 2)
            assert agent.deltas == told, "no delta for each attempt"


async def until_attempts(rig: RealRig, count: int) -> None:
    async def refused() -> int:
        said = await rig.frr.show("neighbors 10.0.0.1")
        return int(said["10.0.0.1"]["messageStats"]["notificationsSent"])

    start = await refused()

    async def enough() -> bool:
        return await refused() >= start + count

    await until(enough, "the router refuses some more attempts")


async def test_a_second_speaker_says_who_holds_the_directory(frr: RealRig) -> None:
    async with agent_of(frr):
        process = frr.process
        argv = [sys.executable, "-m", "bgp.speaker", "--run-dir", str(process.run_dir)]
        done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=10)
        assert done.returncode == 1
        assert f"pid {process.popen.pid} runs one there" in done.stderr
        modes = {path.name: oct(path.stat().st_mode & 0o777) for path in process.run_dir.iterdir()}
        assert set(modes.values()) == {"0o600"}, modes
        assert process.run_dir.stat().st_mode & 0o777 == 0o700
