"""GTSM (RFC 5082) and TCP MD5 (RFC 2385): what they let in and what not, as listener and as initiator, by capture."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address

import pytest

from bgp.rib import SessionSpec
from bgp.speaker.exabgp_config import secret
from bgp.speaker.seam import Wanted
from tests.contract.speaker_rig import (
    ACK,
    OURS,
    SPEC,
    SPEC6,
    SYN,
    THEIRS,
    Agent,
    Capture,
    Node,
    Process,
    agent_of,
    bird_config,
    directory,
    frr_config,
    knock,
    linked_nodes,
    real,
    speaker_in,
    until,
    wanting,
)

PASSWORD = 'a "secret"; # word'
NEAR = replace(SPEC, ttl_security=1)
SIGNED = replace(SPEC, password=PASSWORD)
NEAR6 = replace(SPEC6, ttl_security=1)
BOTH = replace(NEAR, password=PASSWORD)
OTHER = replace(SPEC, peer=ip_address("10.0.0.3"))
ROUTERS = {
    ("frr", "connects"): frr_config(
        neighbor="neighbor 10.0.0.1 ttl-security hops 1\n neighbor 10.0.0.1 password key"
    ),
    ("frr", "listens"): frr_config(
        neighbor="neighbor 10.0.0.1 ttl-security hops 1\n neighbor 10.0.0.1 password key\n neighbor 10.0.0.1 passive"
    ),
    ("bird", "connects"): bird_config(neighbor='ttl security on; password "key";'),
    ("bird", "listens"): bird_config(neighbor='ttl security on; password "key"; passive on;'),
}


@pytest.mark.parametrize(("router", "role"), ROUTERS)
async def test_a_session_with_both_is_up_and_every_segment_of_ours_is_signed_and_sent_with_255(
    router: str, role: str
) -> None:
    spec = replace(BOTH, password="key", passive=role == "connects")
    with real(router, ROUTERS[router, role]) as rig, Capture(rig.process.node) as capture:
        async with agent_of(rig) as agent:
            await agent.speaker.want(wanting(OURS[0], spec=spec))
            await agent.sees(lambda agent: agent.learned() == {THEIRS})
            await rig.has(OURS[0])
        seen = capture.segments()
    syn = next(segment for segment in seen if segment.flags == SYN)
    assert syn.source == str(SPEC.peer if role == "connects" else SPEC.source)
    ours = {(segment.ttl, segment.signed) for segment in seen if segment.source == str(SPEC.source)}
    assert ours == {(255, True)}


@asynccontextmanager
async def listening(*specs: SessionSpec) -> AsyncIterator[tuple[Agent, Process, Node]]:
    """The speaker with these sessions, up to its listening socket; nobody speaks BGP on the other side."""
    with directory() as files, linked_nodes() as (ours, theirs), speaker_in(ours, files) as process:
        theirs.run("ip", "addr", "add", f"{OTHER.peer}/24", "dev", "eth0")
        async with agent_of(process) as agent:
            await agent.speaker.want(Wanted(frozenset(specs)))

            async def listens() -> bool:
                return ":179" in await ours.ask("ss", "-Hltn")

            await until(listens, "our end listens")
            yield agent, process, theirs


async def reloaded(agent: Agent, process: Process, specs: frozenset[SessionSpec]) -> None:
    """Hand down the sessions, and wait until ExaBGP has them."""
    before = process.log.read_text().count("ExaBGP reloaded")
    await agent.speaker.want(Wanted(specs))

    async def done() -> bool:
        return process.log.read_text().count("ExaBGP reloaded") > before

    await until(done, "ExaBGP has the new sessions")


# The sessions on our one listening socket; who knocks, from how far and with which password; whether it is let in.
CASES = {
    "GTSM, from next door": ([NEAR], ("10.0.0.2", 255, ""), True),
    "GTSM, from one hop further": ([NEAR], ("10.0.0.2", 254, ""), False),
    "GTSM beside a session without": ([NEAR, OTHER], ("10.0.0.2", 254, ""), False),
    "no GTSM, beside a session with": ([NEAR, OTHER], ("10.0.0.3", 64, ""), True),
    "GTSM no more": ([SPEC], ("10.0.0.2", 64, ""), True),
    "three hops of three": ([replace(NEAR, ttl_security=3)], ("10.0.0.2", 253, ""), True),
    "four hops of three": ([replace(NEAR, ttl_security=3)], ("10.0.0.2", 252, ""), False),
    "MD5, signed": ([SIGNED], ("10.0.0.2", 64, PASSWORD), True),
    "MD5, unsigned": ([SIGNED], ("10.0.0.2", 64, ""), False),
    "MD5, another password": ([SIGNED], ("10.0.0.2", 64, "another"), False),
    "MD5, a new password": ([replace(SIGNED, password="new")], ("10.0.0.2", 64, "new"), True),
    "MD5, the old password": ([replace(SIGNED, password="new")], ("10.0.0.2", 64, PASSWORD), False),
    "MD5 beside a session without, unsigned": ([SIGNED, OTHER], ("10.0.0.2", 64, ""), False),
    "no MD5, beside a session with": ([SIGNED, OTHER], ("10.0.0.3", 64, ""), True),
    "MD5 no more": ([SPEC], ("10.0.0.2", 64, ""), True),
    "both, signed, from afar": ([BOTH], ("10.0.0.2", 64, PASSWORD), False),
    "both, unsigned, from next door": ([BOTH], ("10.0.0.2", 255, ""), False),
    "both, signed, from next door": ([BOTH], ("10.0.0.2", 255, PASSWORD), True),
    "IPv6, from next door": ([NEAR6], ("2001:db8::2", 255, ""), True),
    "IPv6, from one hop further": ([NEAR6], ("2001:db8::2", 254, ""), False),
}


async def test_as_listener_a_syn_is_answered_only_to_whom_it_may_be_whatever_was_before() -> None:
    # All are passive, so that what is captured is what the other side began.
    before = frozenset({replace(SPEC, passive=True)})
    async with listening(*before) as (agent, process, theirs):
        exabgp = process.exabgp()
        for case, (specs, (source, ttl, password), welcome) in CASES.items():
            own = next(spec for spec in specs if str(spec.peer) == source)
            wanted = frozenset(replace(spec, passive=True) for spec in specs)
            if wanted != before:
                await reloaded(agent, process, wanted)
                before = wanted
            with Capture(theirs) as capture:
                made = await asyncio.to_thread(
                    knock, theirs, source, ttl=ttl, password=password, target=str(own.source)
                )
                seen = capture.segments()
            assert [s.ttl for s in seen if s.flags == SYN and s.source == source], case
            answers = [s for s in seen if s.flags == SYN | ACK and s.target == source]
            assert (made, bool(answers)) == (welcome, welcome), f"{case}: {seen}"
            assert not own.ttl_security or {s.ttl for s in answers} <= {255}, case
            assert {s.signed for s in answers} <= {bool(own.password)}, case
        assert process.exabgp() == exabgp, "each of them was a reload"


@pytest.mark.parametrize(
    ("spec", "ttl", "taken"),
    [
        pytest.param(SPEC, 64, True, id="neither"),
        pytest.param(NEAR, 255, True, id="GTSM, from next door"),
        pytest.param(NEAR, 254, False, id="GTSM, from one hop further"),
        pytest.param(SIGNED, 255, False, id="MD5, unsigned"),
    ],
)
async def test_as_initiator_a_syn_ack_is_taken_only_from_whom_it_may_be(
    spec: SessionSpec, ttl: int, taken: bool
) -> None:
    """The answer is made by hand: a kernel that has no key answers no signed SYN."""
    with directory() as files, linked_nodes() as (ours, theirs), speaker_in(ours, files) as process:
        theirs.run("iptables", "-A", "OUTPUT", "-p", "tcp", "--tcp-flags", "RST", "RST", "-j", "DROP")
        with theirs.inside(raw_tcp) as raw, Capture(theirs) as capture:
            async with agent_of(process) as agent:
                await agent.speaker.want(wanting(spec=spec))
                raw.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
                await asyncio.to_thread(answer, raw)
                seen: list[int] = []

                async def answered() -> bool:
                    seen.extend(s.flags for s in capture.segments() if s.source == str(spec.source))
                    return seen.count(SYN) > 1 if not taken else ACK in seen

                await until(answered, "it takes the answer, or asks again")
                assert (ACK in seen) == taken


def raw_tcp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    sock.settimeout(10.0)
    return sock


def answer(raw: socket.socket) -> None:
    """Answer the first SYN to port 179 with a SYN-ACK without options."""
    while True:
        packet = raw.recv(2000)
        source, target, tcp = packet[12:16], packet[16:20], packet[4 * (packet[0] & 15) :]
        port, to, sequence = struct.unpack("!HHI", tcp[:8])
        if (to, tcp[13]) == (179, SYN):
            break
    header = struct.pack(
        "!HHIIBBHHH", 179, port, 1, (sequence + 1) & 0xFFFFFFFF, 5 << 4, SYN | ACK, 65535, 0, 0
    )
    total = sum(struct.unpack("!16H", target + source + struct.pack("!BBH", 0, 6, len(header)) + header))
    checksum = ~(total + (total >> 16) & 0xFFFF) & 0xFFFF
    raw.sendto(header[:16] + struct.pack("!H", checksum) + header[18:], (socket.inet_ntoa(source), 0))


async def test_a_password_is_in_no_log_and_its_file_is_for_us_alone() -> None:
    bad = replace(SIGNED, peer=OTHER.peer, password="x" * 81)
    async with listening(SIGNED) as (agent, process, _):
        await agent.speaker.want(Wanted(frozenset([SIGNED, bad])))
        await agent.sees(lambda agent: "no larger than 80" in agent.reason(bad.peer))
        config = process.run_dir / "exabgp.conf"
        assert secret(SIGNED) in config.read_text()
        assert config.stat().st_mode & 0o777 == 0o600
        said = process.log.read_text() + str(agent.sessions) + repr(SIGNED)
        for spec in (SIGNED, bad):
            assert spec.password not in said
            assert secret(spec) not in said
