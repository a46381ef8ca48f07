"""What is kept and what is flushed when a session is lost, by us and by FRR and BIRD (RFC 4724).

Both routers are there at once, so each row holds for both. "We receive": a router is lost, and the paths are the
speaker's. "We restart": our end is lost, and the routes are the routers'.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address, ip_network

from bgp.rib import Announcement, Attributes, Prefix, SessionSpec, SessionState
from bgp.speaker.seam import SessionChanged, Update, Wanted
from tests.contract.speaker_rig import (
    END_OF_RIB,
    KEEPALIVE,
    MORE,
    OURS,
    SPEC,
    THEIRS,
    Agent,
    Bird,
    Frr,
    Process,
    agent_of,
    bird_config,
    by_hand,
    directory,
    frr_config,
    graceful,
    hello,
    linked_nodes,
    speaker_in,
    until,
    update,
    wanting,
)

HOLD = 3
AT_FRR = replace(SPEC, hold_time=HOLD)
AT_BIRD = replace(AT_FRR, peer=ip_address("10.0.0.3"))
BOTH = (AT_FRR, AT_BIRD)
A, B = OURS[:2]
ANOTHER = ip_network("203.0.113.0/24")
FRR_TEXT = frr_config().replace(
    " bgp graceful-restart\n",
    " bgp graceful-restart\n bgp graceful-restart preserve-fw-state\n bgp graceful-restart restart-time SECONDS\n",
)
BIRD_TEXT = bird_config(neighbor="strict bind on; graceful restart time SECONDS;", local=str(AT_BIRD.peer))


@dataclass
class Lab:
    """The speaker between FRR and BIRD."""

    process: Process
    agent: Agent
    frr: Frr
    bird: Bird

    @property
    def routers(self) -> dict[SessionSpec, Frr | Bird]:
        return {AT_FRR: self.frr, AT_BIRD: self.bird}

    async def announce(self, *announcements: Announcement, restart_time: int = 30, limit: int = 0) -> None:
        """Have all sessions, and these announced on them."""
        specs = [replace(spec, restart_time=restart_time) for spec in BOTH]
        limits = {spec.peer: limit for spec in specs if limit}
        out = {spec.peer: frozenset(announcements) for spec in specs}
        await self.agent.speaker.want(Wanted(frozenset(specs), out, limits))

    async def sees(self, what: Callable[[Agent, SessionSpec], bool], seconds: float = 15.0) -> None:
        await self.agent.sees(lambda agent: all(what(agent, spec) for spec in BOTH), seconds)

    async def have(self, *prefixes: Prefix, seconds: float = 15.0) -> None:
        """Both routers come to have exactly `prefixes` of ours."""

        async def holds() -> bool:
            return all([await router.table() == set(prefixes) for router in self.routers.values()])

        await until(holds, f"both routers have exactly {prefixes}", seconds)

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[int]:
        """Nothing of ours does anything, and nothing is restarted; yields ExaBGP's pid."""
        pids = [self.process.popen.pid, self.process.exabgp(), *self.process.children("pump.py")]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield pids[1]
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def lab(*, their_restart: int = 30, restart_time: int = 30) -> AsyncIterator[Lab]:
    """All sessions up, A and B at both routers, THEIRS learned from both."""
    with directory() as files, linked_nodes() as (ours, theirs), speaker_in(ours, files) as process:
        theirs.run("ip", "addr", "add", f"{AT_BIRD.peer}/24", "dev", "eth0")
        texts = [text.replace("SECONDS", str(their_restart)) for text in (FRR_TEXT, BIRD_TEXT)]
        frr = Frr(theirs, files / "frr.conf", texts[0], "-l", str(AT_FRR.peer))
        bird = Bird(theirs, files / "bird.conf", texts[1])
        async with agent_of(process) as agent:
            lab = Lab(process, agent, frr, bird)
            await lab.announce(Announcement(A), Announcement(B), restart_time=restart_time)
            await lab.sees(lambda agent, spec: agent.synced(spec.peer) and THEIRS in agent.learned(spec.peer))
            await lab.have(A, B)
            yield lab


def kept(agent: Agent, spec: SessionSpec) -> bool:
    return not agent.up(spec.peer) and THEIRS in agent.learned(spec.peer)


def flushed(agent: Agent, spec: SessionSpec) -> bool:
    return not agent.up(spec.peer) and not agent.learned(spec.peer)


def told(agent: Agent, spec: SessionSpec) -> list[str]:
    """The story of a session: "up", "flush" (THEIRS goes), "whole"."""
    story = []
    for event in agent.deltas:
        match event:
            case SessionChanged(spec.peer, status) if status.state is SessionState.ESTABLISHED:
                story.append("whole" if status.synced else "up")
            case Update(spec.peer, _, withdrawn) if THEIRS in withdrawn:
                story.append("flush")
    return story


async def test_4_2_we_receive_a_fin_keeps_until_end_of_rib() -> None:
    async with lab() as it:
        it.agent.deltas.clear()
        for router in it.routers.values():
            router.config.write_text(router.config.read_text().replace(str(THEIRS), str(MORE)))
            router.kill("KILL")
        await it.sees(kept)
        for router in it.routers.values():
            router.start()
        await it.sees(lambda agent, spec: agent.synced(spec.peer) and agent.learned(spec.peer) == {MORE})
        assert {spec.peer: told(it.agent, spec) for spec in BOTH} == {
            spec.peer: ["up", "flush", "whole"] for spec in BOTH
        }


async def test_4_2_we_receive_an_rst_keeps_until_the_restart_time_is_over() -> None:
    async with lab(their_restart=2) as it:
        for router in it.routers.values():
            router.kill("STOP")
        await it.announce(
            Announcement(A)
        )  # what is not read when the process ends makes its kernel send an RST
        await it.sees(lambda agent, spec: agent.traffic[spec.peer].updates_out >= 3)
        lost = time.monotonic()
        for router in it.routers.values():
            router.kill("KILL")
        await it.sees(kept)
        await it.sees(flushed)
        assert 1.5 < time.monotonic() - lost < 5, "their restart time is 2 s"


async def test_we_receive_a_hold_timer_that_expires_flushes() -> None:
    """RFC 4271 §6.5: it ends with a NOTIFICATION, so RFC 4724 §4.2 keeps nothing."""
    async with lab() as it:
        for router in it.routers.values():
            router.kill("STOP")
        await it.sees(flushed)
        assert {it.agent.reason(spec.peer) for spec in BOTH} == {"notification sent (4,0) hold timer expired"}
        assert [s.notification and s.notification.sent_by_us for s in it.agent.sessions.values()] == [
            True,
            True,
        ]


async def test_we_receive_a_notification_flushes() -> None:
    """RFC 4724 §4.2 keeps routes where TCP ends without one; RFC 8538 is not negotiated."""
    async with lab() as it:
        it.agent.deltas.clear()
        for router in it.routers.values():
            await router.shut()
        await it.sees(lambda agent, spec: agent.sessions[spec.peer].flaps == 1 and agent.synced(spec.peer))
        assert {spec.peer: told(it.agent, spec) for spec in BOTH} == {
            spec.peer: ["flush", "up", "whole"] for spec in BOTH
        }
        assert [s.notification and s.notification.sent_by_us for s in it.agent.sessions.values()] == [
            False,
            False,
        ]


def slow(router: Frr | Bird) -> str:
    """Its configuration without THEIRS, and with enough to send that its End-of-RIB takes a second."""
    prefixes = [f"{20 + (n >> 16)}.{n >> 8 & 255}.{n & 255}.0/24" for n in range(20000)]
    text = router.config.read_text().replace(str(THEIRS), str(MORE))
    if isinstance(router, Frr):
        networks = "".join(f"  network {prefix}\n" for prefix in prefixes[:10])
        return text.replace(f"  network {MORE}\n", f"  network {MORE}\n{networks}")
    routes = "".join(f"route {prefix} blackhole {{ bgp_med = {n}; }};" for n, prefix in enumerate(prefixes))
    return text + f"protocol static slow {{ ipv4; {routes} }}\n"


async def test_4_2_we_receive_a_second_loss_before_end_of_rib_flushes_what_is_stale() -> None:
    async with lab() as it:
        for router in it.routers.values():
            router.config.write_text(slow(router))
            router.kill("KILL")
        await it.sees(kept)
        it.agent.deltas.clear()
        await asyncio.gather(*(lost_again(it, spec) for spec in BOTH))
        assert {spec.peer: told(it.agent, spec) for spec in BOTH} == {
            spec.peer: ["up", "flush"] for spec in BOTH
        }


async def lost_again(it: Lab, spec: SessionSpec) -> None:
    router = it.routers[spec]
    await asyncio.to_thread(router.start)
    await it.agent.sees(partial(Agent.up, peer=spec.peer))
    router.kill("KILL")
    await it.agent.sees(lambda agent: not agent.up(spec.peer))
    assert THEIRS not in it.agent.learned(spec.peer)


async def test_4_2_by_hand_what_was_sent_again_outlives_the_second_loss() -> None:
    greeting = hello(graceful()) + KEEPALIVE
    async with by_hand(greeting) as (process, peer), agent_of(process) as agent:
        await agent.speaker.want(wanting(A))
        first = await peer.connections.get()
        first.write(update(THEIRS) + update(MORE) + END_OF_RIB)
        await agent.sees(lambda agent: agent.synced() and agent.learned() == {THEIRS, MORE})
        first.close()
        second = await peer.connections.get()
        second.write(update(MORE) + update(ANOTHER))
        await agent.sees(lambda agent: agent.up() and agent.learned() == {THEIRS, MORE, ANOTHER})
        second.close()
        await agent.sees(lambda agent: agent.learned() == {MORE, ANOTHER})
        third = await peer.connections.get()
        await agent.sees(Agent.up)
        assert agent.learned() == {MORE, ANOTHER}
        third.write(END_OF_RIB)
        await agent.sees(lambda agent: not agent.learned())


async def test_3_our_open_claims_graceful_restart_and_no_n_bit() -> None:
    """RFC 4724 §3: R after a restart, F for each family. RFC 8538 §2: N would ask for Hard Resets; it is not set."""
    async with by_hand() as (process, peer), agent_of(process) as agent:
        await agent.speaker.want(wanting(A))
        await agent.sees(Agent.up)
        for restarted in (0x8, 0x0):
            opened = next(body for kind, body in reversed(peer.messages()) if kind == 1)
            capability = capabilities(opened)[64]
            assert capability[0] >> 4 == restarted
            assert int.from_bytes(capability[:2], "big") & 0xFFF == SPEC.restart_time
            assert capability[2:] == b"\x00\x01\x01\x80"
            (await peer.connections.get()).close()
            await agent.sees(lambda agent: not agent.up())
            await agent.sees(Agent.up)


def capabilities(opened: bytes) -> dict[int, bytes]:
    """Code and value of each capability in the body of an OPEN (RFC 5492 §4)."""
    found, parameters = {}, opened[10:]
    while parameters:
        kind, length = parameters[:2]
        values, parameters = parameters[2 : 2 + length], parameters[2 + length :]
        while kind == 2 and values:
            found[values[0]] = values[2 : 2 + values[1]]
            values = values[2 + values[1] :]
    return found


async def test_4_1_we_restart_after_a_fin_and_the_routers_keep_until_our_end_of_rib() -> None:
    async with lab() as it:
        os.kill(it.process.exabgp(), signal.SIGKILL)
        await it.sees(lambda agent, spec: not agent.up(spec.peer))
        await it.announce(Announcement(A))
        kept_at: dict[SessionSpec, bool] = {}
        while not all(it.agent.up(spec.peer) for spec in BOTH):
            for spec, router in it.routers.items():
                there = await router.table()
                assert A in there
                kept_at[spec] = kept_at.get(spec, False) or B in there
        assert kept_at == dict.fromkeys(BOTH, True)
        await it.have(A)
        assert A in await it.frr.routes()


async def test_4_2_we_restart_after_an_rst_and_the_routers_keep_until_the_restart_time_is_over() -> None:
    async with lab(restart_time=3) as it:
        async with it.frozen() as exabgp:
            for router in it.routers.values():
                await router.announce(MORE)
            lost = time.monotonic()
            os.kill(exabgp, signal.SIGKILL)
            await it.have(A, B, seconds=1.0)
            await it.have(seconds=8.0)
            assert time.monotonic() - lost > 2
        await it.have(A, B)


async def test_we_restart_too_late_for_the_hold_timer_and_the_routers_flush() -> None:
    """RFC 4271 §6.5."""
    async with lab() as it:
        async with it.frozen():
            await it.have(seconds=HOLD + 3)
        await it.have(A, B)


async def test_a_cease_of_ours_flushes_at_the_routers() -> None:
    """RFC 4724 §4.2: kept is only what is lost without a NOTIFICATION; here it is for too many prefixes."""
    async with lab() as it:
        for router in it.routers.values():
            await router.announce(MORE)
        await it.sees(lambda agent, spec: MORE in agent.learned(spec.peer))
        await it.announce(Announcement(A), Announcement(B), limit=1)
        await it.have(seconds=5.0)
        await it.sees(flushed)


async def test_4_2_a_second_loss_of_ours_before_end_of_rib_flushes_only_what_was_not_sent_again() -> None:
    """Our own are sent first, so that they are stale for a moment only. How long is printed (pytest -s)."""
    passed_on = Attributes(as_path=(SPEC.local_as, 64512))
    many = [
        Announcement(ip_network(f"{30 + (n >> 8)}.{n & 255}.0.0/16"), None, passed_on) for n in range(6000)
    ]
    last = max(announcement.prefix for announcement in many)
    async with lab() as it:
        await it.announce(Announcement(A), Announcement(B), *many)
        await until(lambda: holds(it, last), "both have everything", 30.0)
        await it.sees(lambda agent, spec: agent.synced(spec.peer))
        before = await imported(it.bird)
        os.kill(it.process.exabgp(), signal.SIGKILL)
        await it.sees(lambda agent, spec: not agent.up(spec.peer))
        await it.sees(lambda agent, spec: agent.up(spec.peer))
        up = time.monotonic()

        async def both_fresh() -> bool:
            return await fresh(it.frr, A) and await fresh(it.frr, B) and await imported(it.bird) > before + 1

        await until(both_fresh, "our own are fresh again")
        print(f"our own were stale for {time.monotonic() - up:.2f} s after the sessions were up")
        async with it.frozen() as exabgp:
            assert not await fresh(it.frr, last), "the others are not yet"
            os.kill(exabgp, signal.SIGKILL)
            await until(lambda: lacks(it, last), "what was stale goes")
            await it.have(A, B, seconds=1.0)
        await until(lambda: holds(it, last), "both have everything", 30.0)


async def imported(bird: Bird) -> int:
    """How many updates BIRD has had from us."""
    said = await bird.birdc("show", "protocols", "all", "node")
    (count,) = re.findall(r"Import updates: +(\d+)", said)
    return int(count)


async def fresh(frr: Frr, prefix: Prefix) -> bool:
    (path,) = (await frr.show(f"ipv4 unicast {prefix}")).get("paths", [{}])
    return bool(path) and not path.get("stale")


async def has(router: Frr | Bird, prefix: Prefix) -> bool:
    if isinstance(router, Frr):
        return bool((await router.show(f"ipv4 unicast {prefix}")).get("paths"))
    return f"{prefix} " in await router.birdc("show", "route", "protocol", "node")


async def holds(it: Lab, prefix: Prefix) -> bool:
    return all([await has(router, prefix) for router in it.routers.values()])


async def lacks(it: Lab, prefix: Prefix) -> bool:
    return not any([await has(router, prefix) for router in it.routers.values()])
