"""A peer that sends more prefixes than it may is closed, left alone, and cannot take this node's memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path as File

import pytest

from bgp.rib import SessionSpec, SessionState
from bgp.speaker.seam import Reset, Update, Wanted
from tests.contract.speaker_rig import (
    MORE,
    OURS,
    SPEC,
    THEIRS,
    Agent,
    RealRig,
    Rig,
    agent_of,
    bird_config,
    fake,
    real,
    until,
    wanting,
)

# Keeps the listening socket open while SPEC idles; nobody is there.
OTHER = replace(SPEC, peer=ip_address("10.0.0.9"))
DEFAULT_LIMIT, FLOOD = 10_000, 100_000
PEAK_MB = 100  # of speaker, pump and ExaBGP together, 63 of them without a single route


def limited(limit: int | None, *others: SessionSpec) -> Wanted:
    wanted = wanting(OURS[0])
    limits = {} if limit is None else {SPEC.peer: limit}
    return Wanted(wanted.sessions | {*others}, wanted.announce, limits)


def idle(agent: Agent) -> bool:
    return SPEC.peer in agent.sessions and agent.sessions[SPEC.peer].state is SessionState.IDLE


@pytest.fixture(params=["fake", "frr", "bird"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    if request.param == "fake":
        yield fake()
        return
    with real(request.param) as rig:
        yield rig


async def test_over_its_limit_a_peer_is_closed_and_idles_until_it_is_reset_or_may_send_more(rig: Rig) -> None:
    """RFC 4486 §4: Cease, maximum number of prefixes reached."""
    async with agent_of(rig) as agent:
        await agent.speaker.want(limited(9))
        await agent.sees(Agent.synced)
        await rig.router.announce(MORE)
        await agent.sees(lambda agent: MORE in agent.learned())
        too_few = len(agent.paths[SPEC.peer]) - 1
        before = agent.sessions[SPEC.peer]
        await agent.speaker.want(limited(too_few + 1))
        await agent.speaker.want(limited(too_few + 5))
        assert agent.sessions[SPEC.peer] == before, "a limit that is kept touches no session"
        await agent.speaker.want(limited(too_few))
        await agent.sees(idle)
        status = agent.sessions[SPEC.peer]
        assert f"sent {too_few + 1} prefixes and {too_few} is the limit" in status.reason
        assert status.notification is not None
        assert (status.notification.code, status.notification.subcode) == (6, 1)
        assert status.notification.sent_by_us
        assert status.idle_until - status.since == 900
        assert not agent.paths[SPEC.peer], "what it sent is flushed"
    async with agent_of(rig) as agent:
        await agent.speaker.want(limited(too_few))
        assert agent.sessions[SPEC.peer] == status, "an agent that comes back changes nothing"
        await agent.speaker.reset(Reset(SPEC.peer))
        again = status.flaps + 1
        await agent.sees(lambda agent: idle(agent) and agent.sessions[SPEC.peer].flaps == again)
        await agent.speaker.want(limited(too_few + 5))
        await agent.sees(Agent.synced)
        await agent.sees(lambda agent: MORE in agent.learned())
        await rig.has(OURS[0])


async def test_nothing_reconnects_while_it_idles_from_neither_side() -> None:
    with real("frr") as rig:
        async with agent_of(rig) as agent:
            await agent.speaker.want(limited(None, OTHER))
            await rig.has(OURS[0])
            await agent.sees(lambda agent: agent.learned() == {THEIRS})
            await agent.speaker.want(limited(1, OTHER))
            await agent.sees(lambda agent: len(agent.paths[SPEC.peer]) == 0)
            closed = await refused(rig)

            async def tried_twice() -> bool:
                return await refused(rig) >= closed + 2

            await until(tried_twice, "the router knocks, and is told to go")
            said = (await rig.frr.show("neighbors 10.0.0.1"))["10.0.0.1"]
            assert said["connectionsEstablished"] == 1
            assert idle(agent)
            assert not await rig.router.table()


async def refused(rig: RealRig) -> int:
    said = (await rig.frr.show("neighbors 10.0.0.1"))["10.0.0.1"]
    return int(said["messageStats"]["notificationsRecv"])


def flood(distinct: bool) -> str:
    """FLOOD static routes for BIRD, each with attributes of its own or all with the same."""

    def route(n: int) -> str:
        own = f" {{ bgp_path.prepend({1 + n % 60000}); bgp_med = {n}; }}" if distinct else ""
        return f"route {20 + (n >> 16)}.{n >> 8 & 255}.{n & 255}.0/24 blackhole{own};"

    return "protocol static flood { disabled; ipv4;\n" + "\n".join(map(route, range(FLOOD))) + "\n}\n"


def peak(pid: int) -> int:
    """The most memory that a process has ever had, in kB."""
    (line,) = [line for line in File(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in line]
    return int(line.split()[1])


@pytest.mark.parametrize("distinct", [False, True], ids=["same attributes", "distinct attributes"])
async def test_a_hundred_thousand_routes_cannot_take_the_memory(distinct: bool) -> None:
    with real("bird", bird_config(more=flood(distinct))) as rig:
        async with agent_of(rig) as agent:
            await agent.speaker.want(limited(DEFAULT_LIMIT, OTHER))
            await rig.has(OURS[0])
            exabgp = rig.process.exabgp()
            pids = [rig.process.popen.pid, exabgp, *rig.process.children("pump.py")]
            started = time.monotonic()
            await rig.bird.birdc("enable", "flood")
            await agent.sees(idle, 30.0)
            took = time.monotonic() - started

            async def settled() -> bool:
                return "Established" not in await rig.bird.birdc("show", "protocols", "node")

            await until(settled, "the router has heard of it")
            most = sum(map(peak, pids)) / 1000
            print(f"{FLOOD} routes: closed after {took:.1f} s, {most:.0f} MB at most")
            assert most < PEAK_MB
            heard = sum(len(event.paths) for event in agent.deltas if isinstance(event, Update))
            assert heard <= DEFAULT_LIMIT + 1000, "agents hear no more of it"
            assert rig.process.exabgp() == exabgp
            assert agent.sessions[OTHER.peer].state is SessionState.CONNECT
