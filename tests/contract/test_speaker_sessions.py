"""Sessions that come, change and go, one or fifty at once, and leave the others alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_network

import pytest

from bgp.rib import Announcement, Attributes, SessionSpec, SessionState
from bgp.speaker.seam import Reset, Wanted
from tests.contract.speaker_rig import (
    END_OF_RIB,
    KEEPALIVE,
    OUR6,
    OURS,
    PEER_AS,
    SPEC,
    SPEC6,
    THEIR6,
    Agent,
    Bird,
    RealRig,
    agent_of,
    bird_config,
    by_hand,
    directory,
    gone,
    graceful,
    hello,
    linked_nodes,
    real,
    speaker_in,
    until,
    wanting,
)

MANY = 50


@pytest.fixture
def frr() -> Iterator[RealRig]:
    with real("frr") as rig:
        yield rig


async def test_sessions_come_and_go_without_touching_the_others(frr: RealRig) -> None:
    both = Wanted(
        frozenset([SPEC, SPEC6]),
        {SPEC.peer: frozenset([Announcement(OURS[0])]), SPEC6.peer: frozenset([Announcement(OUR6)])},
    )
    async with agent_of(frr) as agent:
        await frr.converged(agent, OURS[0])
        exabgp = frr.process.exabgp()
        await agent.speaker.want(both)
        await agent.sees(lambda agent: agent.up(SPEC6.peer) and agent.learned(SPEC6.peer) == {THEIR6})

        async def has6() -> bool:
            return OUR6 in await frr.frr.routes("ipv6")

        async def lacks6() -> bool:
            return not await has6()

        await until(has6, f"{OUR6} arrives")
        await agent.speaker.want(wanting(OURS[0]))
        await until(lacks6, f"{OUR6} is withdrawn", 3.0)
        assert agent.sessions[SPEC.peer].flaps == 0
        assert frr.process.exabgp() == exabgp
        await agent.speaker.want(Wanted())
        await frr.has()
        await gone(exabgp, seconds=5.0)
        assert not frr.process.children(" server ", "pump.py"), "no session, no ExaBGP"


async def test_a_source_address_that_is_not_here_spares_the_other_sessions(frr: RealRig) -> None:
    stray = SessionSpec(ip_address("10.0.9.2"), 1, ip_address("10.0.9.1"), 2, SPEC.router_id)
    async with agent_of(frr) as agent:
        await agent.speaker.want(Wanted(frozenset([SPEC, stray])))
        await agent.sees(Agent.up)
        status = agent.sessions[stray.peer]
        assert status.state is SessionState.IDLE
        assert "cannot listen on 10.0.9.1 port 179: Cannot assign requested address" in status.reason
        await frr.process.node.ask("ip", "addr", "add", "10.0.9.1/24", "dev", "eth0")
        await agent.sees(lambda agent: agent.sessions[stray.peer].state is SessionState.CONNECT)
        assert agent.sessions[SPEC.peer].flaps == 0


@pytest.mark.parametrize("others", [frozenset(), frozenset([SPEC6])], ids=["the last one", "of two"])
async def test_a_session_is_gone_only_when_the_router_has_nothing_of_it(
    frr: RealRig, others: frozenset[SessionSpec]
) -> None:
    many = frozenset(Announcement(ip_network(f"10.{64 + n // 256}.{n % 256}.0/24")) for n in range(2000))
    prefixes = {announcement.prefix for announcement in many}

    async def ours() -> int:
        return len(prefixes & set(await frr.frr.routes()))

    async def has_all() -> bool:
        return await ours() == len(many)

    async with agent_of(frr) as agent:
        await agent.speaker.want(Wanted(others | {SPEC}, {SPEC.peer: many}))
        await until(has_all, "the router has everything", 30.0)
        await agent.speaker.want(Wanted(others))
        await agent.sees(lambda agent: SPEC.peer not in agent.sessions, 30.0)
        assert await ours() == 0
        assert set(agent.sessions) == {spec.peer for spec in others}


@pytest.mark.parametrize("others", [frozenset(), frozenset([SPEC6])], ids=["the last one", "of two"])
async def test_a_peer_that_is_removed_or_changed_is_told_why(others: frozenset[SessionSpec]) -> None:
    """RFC 4486 §3; without its Cease, a peer with graceful restart would hold what it knew (RFC 4724 §4.2)."""
    async with by_hand(hello(graceful()) + KEEPALIVE) as (process, peer), agent_of(process) as agent:
        await agent.speaker.want(Wanted(others | {SPEC}))
        await agent.sees(Agent.up)
        changed = replace(SPEC, hold_time=12)
        await agent.speaker.want(Wanted(others | {changed}))
        await agent.sees(lambda agent: agent.up() and peer.count == 2)
        assert peer.notifications() == [(6, 6)], "other configuration change"
        await agent.speaker.want(Wanted(others))
        await agent.sees(lambda agent: SPEC.peer not in agent.sessions)

        async def told() -> bool:
            return peer.notifications() == [(6, 6), (6, 3)]

        await until(told, f"peer de-configured: {peer.notifications()}")


async def test_a_session_that_exabgp_refuses_spares_the_others(frr: RealRig) -> None:
    refused = SessionSpec(ip_address("10.0.0.3"), 1, SPEC.source, 2, SPEC.router_id, hold_time=2)
    another = SessionSpec(ip_address("10.0.0.4"), 1, ip_address("2001:db8::1"), 2, SPEC.router_id)
    async with agent_of(frr) as agent:
        await agent.speaker.want(Wanted(frozenset([SPEC, refused])))
        await agent.sees(Agent.up)
        status = agent.sessions[refused.peer]
        assert status.state is SessionState.IDLE
        assert "holdtime must be zero or at least 3 seconds" in status.reason
        exabgp = frr.process.exabgp()
        await agent.speaker.want(Wanted(frozenset([SPEC, SPEC6, refused, another])))
        await agent.sees(lambda agent: agent.up(SPEC6.peer))
        assert "must be of the same family" in agent.reason(another.peer)
        assert agent.sessions[SPEC.peer].flaps == 0
        assert frr.process.exabgp() == exabgp


@pytest.mark.parametrize(
    "meanwhile", [Wanted(), wanting(spec=replace(SPEC, hold_time=12))], ids=["left", "changed"]
)
@pytest.mark.parametrize("others", [frozenset(), frozenset([SPEC6])], ids=["the last one", "of two"])
async def test_a_session_wanted_as_before_at_once_is_up(
    frr: RealRig, meanwhile: Wanted, others: frozenset[SessionSpec]
) -> None:
    async with agent_of(frr) as agent:
        await frr.converged(agent, OURS[0])
        await agent.speaker.want(Wanted(others | {SPEC}))
        for spec in others:
            await agent.sees(partial(Agent.up, peer=spec.peer))
        await agent.speaker.want(Wanted(others | meanwhile.sessions))
        await agent.speaker.want(Wanted(others | {SPEC}, wanting(OURS[1]).announce))
        await frr.has(OURS[1])
        await agent.sees(Agent.synced)
        assert set(agent.sessions) == {spec.peer for spec in others | {SPEC}}


async def test_a_change_waits_for_no_answer_of_a_peer_that_never_opens() -> None:
    """It had to time out, a minute, before ExaBGP took the new configuration: which looked like a failed reload."""
    async with by_hand(b"") as (process, peer), agent_of(process) as agent:
        await agent.speaker.want(wanting())
        await peer.connections.get()
        exabgp = process.exabgp()
        await agent.speaker.want(wanting(spec=replace(SPEC, hold_time=12)))
        await peer.connections.get()
        peer.greeting = hello() + KEEPALIVE
        await agent.speaker.want(wanting(spec=replace(SPEC, hold_time=15)))
        await agent.sees(Agent.up)
        assert process.exabgp() == exabgp


PATIENT = replace(SPEC, hold_time=90)  # the peer by hand sends no keepalives
# More than fits between two sockets of which one is not read.
LONG = (SPEC.local_as, *(64512 + n for n in range(700)))
MUCH = frozenset(
    Announcement(ip_network(f"30.{n >> 8}.{n & 255}.0/24"), None, Attributes(as_path=LONG, med=n))
    for n in range(700)
)


async def stuck(agent: Agent) -> None:
    """Wait until no UPDATE leaves for SPEC any more: counts are told once a second."""
    since, count = time.monotonic(), 0

    async def still() -> bool:
        nonlocal since, count
        now = agent.traffic[SPEC.peer].updates_out if SPEC.peer in agent.traffic else 0
        if now != count:
            since, count = time.monotonic(), now
        return count > 0 and time.monotonic() - since > 2

    await until(still, "nothing leaves any more")
    assert count < len(MUCH)


async def test_a_peer_that_reads_nothing_cannot_keep_its_session_from_ending() -> None:
    async with by_hand() as (process, peer), agent_of(process) as agent:
        peer.reads.clear()
        await agent.speaker.want(Wanted(frozenset([PATIENT]), {SPEC.peer: MUCH}))
        await stuck(agent)
        await agent.speaker.reset(Reset(SPEC.peer))

        async def comes_again() -> bool:
            return peer.count == 2

        await until(comes_again, "the session ends and begins again", 8.0)


async def test_a_reload_during_a_replay_does_not_lose_its_end_of_rib() -> None:
    """RFC 4724 §3: the peer waits for it."""
    other = replace(SPEC, peer=ip_address("10.0.0.9"))
    async with by_hand() as (process, peer), agent_of(process) as agent:
        peer.reads.clear()
        await agent.speaker.want(Wanted(frozenset([PATIENT]), {SPEC.peer: MUCH}))
        await stuck(agent)
        exabgp = process.exabgp()
        await agent.speaker.want(Wanted(frozenset([PATIENT, other]), {SPEC.peer: MUCH}))

        async def reloaded() -> bool:
            return "ExaBGP reloaded, 2 sessions" in process.log.read_text()

        await until(reloaded, "the other session is added while the first one is busy")
        peer.reads.set()

        async def whole() -> bool:
            updates = [body for kind, body in peer.messages() if kind == 2]
            return len(updates) == len(MUCH) + 1 and updates[-1] == END_OF_RIB[19:]

        await until(whole, "everything, and End-of-RIB once and last")
        assert (agent.sessions[SPEC.peer].flaps, process.exabgp()) == (0, exabgp)


async def test_ports_of_ones_own_choice_and_one_socket_for_each_address() -> None:
    with real("bird", bird_config(neighbor="neighbor port 1790;")) as rig:
        spec = replace(SPEC, passive=True, listen_port=1790)
        async with agent_of(rig) as agent:
            await agent.speaker.want(Wanted(frozenset([spec, SPEC6])))
            await agent.sees(Agent.up)
            said = await rig.process.node.ask("ss", "-Hltn")
            assert {line.split()[3] for line in said.splitlines()} == {"10.0.0.1:1790", "[2001:db8::1]:179"}


async def test_fifty_peers_come_and_go_at_once_and_leave_the_first_alone() -> None:
    numbers = range(MANY)
    # BIRD has one session for each address of ours, so we have as many as it.
    sessions = "".join(
        f"protocol bgp p{n} {{ local 10.0.1.{n + 2} as {PEER_AS}; neighbor 10.0.2.{n + 2} as 65001;"
        " graceful restart on; connect delay time 1; error wait time 1,2; ipv4 { import all; export all; }; }\n"
        for n in numbers
    )
    specs = {
        replace(SPEC, peer=ip_address(f"10.0.1.{n + 2}"), source=ip_address(f"10.0.2.{n + 2}"), hold_time=30)
        for n in numbers
    }
    announce = {spec.peer: frozenset(map(Announcement, OURS)) for spec in [SPEC, *specs]}
    with (
        directory() as files,
        linked_nodes() as (ours, theirs),
        speaker_in(ours, files) as process,
    ):
        for here, subnet in ((ours, 2), (theirs, 1)):
            add = "".join(f"addr add 10.0.{subnet}.{n + 2}/16 dev eth0\n" for n in numbers)
            here.run("sh", "-c", f"ip -b - <<END\n{add}END\n")
        bird = Bird(theirs, files / "router.conf", bird_config(more=sessions))
        async with agent_of(process) as agent:
            first = frozenset([SPEC])
            await agent.speaker.want(Wanted(first, announce))
            await agent.sees(Agent.synced)
            exabgp = process.exabgp()
            await agent.speaker.want(Wanted(first | specs, announce))
            await agent.sees(lambda agent: all(agent.synced(spec.peer) for spec in specs), 20.0)

            async def has_all() -> bool:
                said = await bird.birdc("show", "route", "count")
                return f"{len(OURS) * (MANY + 1) + 1} of" in said

            await until(has_all, "BIRD has all of ours from each", 20.0)
            changed = {replace(spec, restart_time=31) for spec in specs}
            await agent.speaker.want(Wanted(first | changed, announce))
            await agent.sees(lambda agent: all(agent.synced(spec.peer) for spec in changed), 20.0)
            await until(has_all, "BIRD has all of ours from each again", 20.0)
            await agent.speaker.want(Wanted(first, announce))
            await agent.sees(lambda agent: set(agent.sessions) == {SPEC.peer}, 20.0)
            said = await bird.birdc("show", "protocols")
            assert said.count("Established") == 1
            assert said.count("Received: Peer de-configured") == MANY
            assert (agent.sessions[SPEC.peer].flaps, process.exabgp()) == (0, exabgp)
            assert await bird.table() == set(OURS)
