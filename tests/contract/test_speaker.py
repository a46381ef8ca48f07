"""One contract for the speaker, on the fake and on the real process against FRR and BIRD in namespaces.

The real part: two nodes (namespaces of net, mount, uts, ipc, pid) with a veth between them; the speaker
runs in one, a router in the other. Nothing touches the host's own network namespace, and ending a
node's first process ends everything in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path as File
from typing import Protocol

import pytest

from bgp.rib import Address, Announcement, Path, Prefix, SessionSpec, SessionState, SessionStatus
from bgp.speaker.client import SpeakerClient
from bgp.speaker.seam import SessionChanged, SessionGone, Snapshot, Speaker, Update, Wanted
from fabric.errors import SpeakerError
from fabric.kernel.threads import enter
from tests.fakes.speaker import FakeDaemon, FakePeer, FakeSpeaker

OUR_AS, PEER_AS = 65001, 65002
SPEC = SessionSpec(
    peer=ip_address("10.0.0.2"),
    peer_as=PEER_AS,
    source=ip_address("10.0.0.1"),
    local_as=OUR_AS,
    router_id=IPv4Address("10.0.0.1"),
    hold_time=9,
    restart_time=30,
)
SPEC6 = SessionSpec(
    peer=ip_address("2001:db8::2"),
    peer_as=PEER_AS,
    source=ip_address("2001:db8::1"),
    local_as=OUR_AS,
    router_id=IPv4Address("10.0.0.1"),
    hold_time=9,
    restart_time=30,
)
OURS = [ip_network(f"10.1.0.{64 * n}/26") for n in range(4)]
OUR6 = ip_network("2001:db8:1::/64")
THEIRS, MORE = ip_network("192.0.2.0/24"), ip_network("198.51.100.0/24")
THEIR6 = ip_network("2001:db8:5::/48")
DEADLINE = 15.0


def wanting(*prefixes: Prefix, spec: SessionSpec = SPEC) -> Wanted:
    return Wanted(frozenset([spec]), {spec.peer: frozenset(map(Announcement, prefixes))})


async def until(condition: Callable[[], Awaitable[bool]], what: object, seconds: float = DEADLINE) -> None:
    end = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.05)


class Agent:
    """Follows one connection: what an agent knows from a snapshot and the deltas after it."""

    def __init__(self, speaker: Speaker) -> None:
        self.speaker = speaker
        self.sessions: dict[Address, SessionStatus] = {}
        self.paths: dict[Address, dict[Prefix, Path]] = {}
        self.wanted = Wanted()
        self.deltas: list[object] = []
        self.ended = False

    def __repr__(self) -> str:
        return f"{self.sessions} {self.paths}"

    async def follow(self) -> None:
        try:
            async for event in self.speaker.events():
                self.deltas.append(event)
                self._take(event)
        except SpeakerError:
            self.ended = True

    def _take(self, event: object) -> None:
        match event:
            case Snapshot(sessions, adj_rib_in, wanted):
                self.sessions, self.wanted = dict(sessions), wanted
                self.paths = {peer: {p.prefix: p for p in paths} for peer, paths in adj_rib_in.items()}
            case SessionChanged(peer, status):
                self.sessions[peer] = status
            case SessionGone(peer):
                del self.sessions[peer]
                self.paths.pop(peer, None)
            case Update(peer, paths, withdrawn):
                table = self.paths.setdefault(peer, {})
                table.update({path.prefix: path for path in paths})
                for prefix in withdrawn:
                    table.pop(prefix, None)

    def up(self, peer: Address = SPEC.peer) -> bool:
        return peer in self.sessions and self.sessions[peer].state is SessionState.ESTABLISHED

    def synced(self) -> bool:
        return self.up() and self.sessions[SPEC.peer].synced

    def learned(self, peer: Address = SPEC.peer) -> set[Prefix]:
        # A router sends our own prefixes back; loops are the agent's to filter, not the speaker's.
        return {p for p, path in self.paths.get(peer, {}).items() if OUR_AS not in path.as_path}

    async def sees(self, what: Callable[[Agent], bool], seconds: float = DEADLINE) -> None:
        async def holds() -> bool:
            return what(self)

        await until(holds, self, seconds)


class Connects(Protocol):
    """A speaker."""

    def connect(self) -> Awaitable[Speaker]: ...


class Rig(Connects, Protocol):
    """A speaker and one router that peers with it."""

    async def table(self) -> set[Prefix]:
        """Our prefixes that the router has."""

    async def announce(self, prefix: Prefix) -> None: ...
    async def withdraw(self, prefix: Prefix) -> None: ...


@asynccontextmanager
async def agent_of(rig: Connects) -> AsyncIterator[Agent]:
    agent = Agent(await rig.connect())
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(agent.follow())
        try:
            await agent.sees(lambda agent: bool(agent.deltas))
            yield agent
        finally:
            following.cancel()
            await agent.speaker.close()


class FakeRig:
    def __init__(self) -> None:
        self.daemon = FakeDaemon()
        self.daemon.peers = {SPEC.peer: FakePeer()}

    async def connect(self) -> Speaker:
        return FakeSpeaker(self.daemon)

    async def table(self) -> set[Prefix]:
        return set(self.daemon.peers[SPEC.peer].table)

    async def announce(self, prefix: Prefix) -> None:
        self.daemon.announce(Path(prefix, SPEC.peer, SPEC.peer, as_path=(PEER_AS,)))

    async def withdraw(self, prefix: Prefix) -> None:
        self.daemon.withdraw(SPEC.peer, prefix)


NODE = """
mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /var/log; mkdir -p /run/frr /var/log/frr
chown frr /run/frr /var/log/frr; mount -t sysfs sysfs /sys
hostname node; echo "127.0.0.1 localhost node" >/run/hosts; mount --bind /run/hosts /etc/hosts
ip link set lo up; echo ready; exec sleep infinity
"""


UNSHARE = ("unshare", "-nmuipf", "--kill-child=KILL", "--mount-proc", "--propagation", "private")


class Node:
    """Namespaces of their own, which end with `pid`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def argv(self, *argv: str) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-n", "-m", "-u", "-i", "-p", "--", *argv]

    def run(self, *argv: str) -> str:
        done = subprocess.run(self.argv(*argv), capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    async def ask(self, *argv: str) -> str:
        return await asyncio.to_thread(self.run, *argv)


@contextmanager
def node() -> Iterator[Node]:
    with subprocess.Popen([*UNSHARE, "sh", "-ec", NODE], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            children = File(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield Node(int(children[0]))
        finally:
            process.kill()


@contextmanager
def linked_nodes() -> Iterator[tuple[Node, Node]]:
    with node() as ours, node() as theirs:
        ends = f"netns {ours.pid} type veth peer name eth0 netns {theirs.pid}"
        subprocess.run(["ip", "link", "add", "eth0", *ends.split()], check=True)
        for here, number in ((ours, 1), (theirs, 2)):
            here.run("ip", "addr", "add", f"10.0.0.{number}/24", "dev", "eth0")
            here.run("ip", "addr", "add", f"2001:db8::{number}/64", "dev", "eth0", "nodad")
            here.run("ip", "link", "set", "eth0", "up")
        yield ours, theirs


FRR = f"""
router bgp {PEER_AS}
 bgp router-id 10.0.0.2
 no bgp ebgp-requires-policy
 no bgp network import-check
 bgp graceful-restart
 neighbor 10.0.0.1 remote-as EXPECTED
 neighbor 10.0.0.1 timers connect 1
 neighbor 2001:db8::1 remote-as {OUR_AS}
 neighbor 2001:db8::1 timers connect 1
 address-family ipv4 unicast
  network {THEIRS}
  no neighbor 2001:db8::1 activate
 exit-address-family
 address-family ipv6 unicast
  network {THEIR6}
  neighbor 2001:db8::1 activate
 exit-address-family
"""
BIRD = f"""
router id 10.0.0.2;
protocol device {{}}
protocol static theirs {{ ipv4; route {THEIRS} blackhole; }}
protocol static more {{ disabled; ipv4; route {MORE} blackhole; }}
protocol bgp node {{
  local 10.0.0.2 as {PEER_AS}; neighbor 10.0.0.1 as {OUR_AS}; graceful restart on;
  connect delay time 1; error wait time 1,2;
  ipv4 {{ import all; export all; }};
}}
"""


class Frr:
    def __init__(self, node: Node, config: File, expected_as: int = OUR_AS) -> None:
        self.node = node
        config.write_text(FRR.replace("EXPECTED", str(expected_as)))
        config.chmod(0o644)
        for daemon in ("zebra", "bgpd"):
            node.run(f"/usr/lib/frr/{daemon}", "-d", "-A", "127.0.0.1", "-f", str(config))

    async def routes(self, family: str = "ipv4") -> dict[Prefix, dict[str, object]]:
        said = json.loads(await self.node.ask("vtysh", "-c", f"show bgp {family} unicast json"))
        return {ip_network(prefix): paths[0] for prefix, paths in said["routes"].items()}

    async def table(self) -> set[Prefix]:
        return {p for p in await self.routes() if p in OURS}

    async def stale(self) -> set[Prefix]:
        return {prefix for prefix, path in (await self.routes()).items() if path.get("stale")}

    async def configure(self, line: str) -> None:
        where = ["configure terminal", f"router bgp {PEER_AS}", "address-family ipv4 unicast", line]
        await self.node.ask("vtysh", *(word for command in where for word in ("-c", command)))

    async def announce(self, prefix: Prefix) -> None:
        await self.configure(f"network {prefix}")

    async def withdraw(self, prefix: Prefix) -> None:
        await self.configure(f"no network {prefix}")


class Bird:
    def __init__(self, node: Node, config: File) -> None:
        self.node = node
        config.write_text(BIRD)
        node.run("bird", "-c", str(config), "-s", "/run/bird.ctl")

    async def birdc(self, *words: str) -> str:
        return await self.node.ask("birdc", "-s", "/run/bird.ctl", *words)

    async def table(self) -> set[Prefix]:
        said = await self.birdc("show", "route", "protocol", "node")
        return {prefix for prefix in OURS if f"{prefix} " in said}

    async def announce(self, prefix: Prefix) -> None:
        assert prefix == MORE
        await self.birdc("enable", "more")

    async def withdraw(self, prefix: Prefix) -> None:
        assert prefix == MORE
        await self.birdc("disable", "more")


class Process:
    """The speaker's process in `node`, seen from here: pids are ours, not the node's."""

    def __init__(self, node: Node, run_dir: File) -> None:
        self.node, self.run_dir = node, run_dir
        self.log = run_dir.with_suffix(".log")
        self.popen = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        # Without the pid namespace: so that what it starts can be watched and killed by pid from here.
        enter = [
            "nsenter",
            "-t",
            str(self.node.pid),
            "-n",
            "-m",
            "-u",
            "-i",
            "--wdns=" + str(File.cwd()),
            "--",
        ]
        argv = [*enter, sys.executable, "-m", "bgp.speaker", "--run-dir", str(self.run_dir)]
        with self.log.open("ab") as log:
            return subprocess.Popen(argv, stderr=log, stdout=log)

    def restart(self) -> None:
        self.popen = self._start()

    def children(self, *names: str) -> list[int]:
        """ExaBGP and its pump: the descendants of the speaker whose command line has one of `names`."""
        found, todo = [], [self.popen.pid]
        while todo:
            for pid in _children(todo.pop()):
                todo.append(pid)
                if any(name in _command(pid) for name in names):
                    found.append(pid)
        return found

    def exabgp(self) -> int:
        (pid,) = self.children(" server ")
        return pid

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()

    @property
    def socket(self) -> File:
        return self.run_dir / "speaker.sock"

    async def connect(self) -> Speaker:
        async def listening() -> bool:
            return _accepts(self.socket)

        await until(listening, f"the speaker listens: {self.log.read_text()}")
        return await SpeakerClient.connect(self.socket)


def _accepts(path: File) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in File(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _command(pid: int) -> str:
    try:
        return File(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() + " "
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    try:
        return File(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class RealRig:
    def __init__(self, process: Process, router: Frr | Bird) -> None:
        self.process, self.router = process, router
        self.connect = process.connect
        self.table = router.table
        self.announce = router.announce
        self.withdraw = router.withdraw


@contextmanager
def real(router: str, directory: File, expected_as: int = OUR_AS) -> Iterator[RealRig]:
    with linked_nodes() as (ours, theirs):
        config = directory / "router.conf"
        peer = Frr(theirs, config, expected_as) if router == "frr" else Bird(theirs, config)
        process = Process(ours, directory / "run")
        try:
            yield RealRig(process, peer)
        finally:
            process.end()


@pytest.fixture(name="directory")
def directory_that_frr_can_read() -> Iterator[File]:
    with tempfile.TemporaryDirectory() as name:
        File(name).chmod(0o755)
        yield File(name)


@pytest.fixture(params=["fake", "frr", "bird"])
def rig(request: pytest.FixtureRequest, directory: File) -> Iterator[Rig]:
    if request.param == "fake":
        yield FakeRig()
        return
    with real(request.param, directory) as rig:
        yield rig


@pytest.fixture
def frr(directory: File) -> Iterator[RealRig]:
    with real("frr", directory) as rig:
        yield rig


async def has(rig: Rig, *prefixes: Prefix) -> None:
    async def holds() -> bool:
        return await rig.table() == set(prefixes)

    await until(holds, f"the router has exactly {prefixes}")


async def test_contract(rig: Rig) -> None:
    a, b, c, d = OURS
    async with agent_of(rig) as agent:
        assert agent.deltas == [Snapshot()]
        await agent.speaker.want(wanting(a, b))
        await agent.sees(Agent.synced)
        await has(rig, a, b)
        await rig.announce(MORE)
        await agent.sees(lambda agent: MORE in agent.learned())
        path = agent.paths[SPEC.peer][MORE]
        assert (path.next_hop, path.as_path, path.peer) == (SPEC.peer, (PEER_AS,), SPEC.peer)
        await agent.speaker.want(wanting(b, c, d))
        await has(rig, b, c, d)
        await rig.withdraw(MORE)
        await agent.sees(lambda agent: MORE not in agent.learned())
        before = agent.sessions, agent.learned()
    async with agent_of(rig) as returned:
        assert (returned.sessions, returned.learned()) == before
        assert returned.wanted == wanting(b, c, d)
        assert before[0][SPEC.peer].flaps == 0, "an agent that leaves and returns touches no session"
        await returned.speaker.want(Wanted())
        await returned.sees(lambda agent: not agent.sessions and not agent.learned())
        await has(rig)


async def converged(rig: RealRig, agent: Agent, *prefixes: Prefix) -> None:
    await agent.speaker.want(wanting(*prefixes))
    await agent.sees(Agent.up)
    await has(rig, *prefixes)
    await agent.sees(lambda agent: agent.learned() == {THEIRS})


@asynccontextmanager
async def never_without(rig: RealRig, *prefixes: Prefix) -> AsyncIterator[None]:
    """Fail if the router ever lacks one of `prefixes` while the block runs."""

    async def watch() -> None:
        while True:
            missing = set(prefixes) - await rig.table()
            assert not missing, f"withdrawn at the router: {missing}"

    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()


async def gone(*pids: int, seconds: float) -> None:
    async def ended() -> bool:
        return not any(map(_alive, pids))

    await until(ended, f"{pids} end", seconds)


async def test_exabgp_killed_is_restarted_and_nothing_is_withdrawn(frr: RealRig) -> None:
    async with agent_of(frr) as agent:
        await converged(frr, agent, *OURS[:2])
        agent.deltas.clear()
        async with never_without(frr, *OURS[:2]):
            os.kill(frr.process.exabgp(), signal.SIGKILL)
            await agent.sees(lambda agent: not agent.up())
            await agent.sees(Agent.up)
            await has_no_stale(frr)
            await agent.speaker.want(wanting(*OURS[:3]))
            await has(frr, *OURS[:3])
        lost = [e for e in agent.deltas if isinstance(e, Update) and e.withdrawn]
        assert not lost, "what was learned stands while ExaBGP restarts"
        assert agent.sessions[SPEC.peer].flaps == 1


async def has_no_stale(rig: RealRig) -> None:
    router = rig.router
    assert isinstance(router, Frr)

    async def fresh() -> bool:
        return not await router.stale()

    await until(fresh, "End-of-RIB came after the replay")


async def test_a_pump_killed_is_a_restart_too(frr: RealRig) -> None:
    async with agent_of(frr) as agent:
        await converged(frr, agent, OURS[0])
        (pump,) = frr.process.children("pump.py")
        async with never_without(frr, OURS[0]):
            os.kill(pump, signal.SIGKILL)
            await agent.sees(lambda agent: not agent.up())
            await agent.sees(Agent.up)
            await has_no_stale(frr)


async def test_a_speaker_killed_takes_its_children_along_and_peers_hold(frr: RealRig) -> None:
    async with agent_of(frr) as agent:
        await converged(frr, agent, *OURS[:2])
        children = frr.process.children(" server ", "pump.py")
        assert len(children) == 2
        async with never_without(frr, *OURS[:2]):
            frr.process.end()
            await gone(*children, seconds=1.0)
            await agent.sees(lambda agent: agent.ended)
            frr.process.restart()
            async with agent_of(frr) as returned:
                assert returned.deltas == [Snapshot()], "it knows nothing, and starts nothing"
                assert not frr.process.children(" server ")
                await converged(frr, returned, *OURS[:2])
                await has_no_stale(frr)


async def test_sigterm_ends_it_without_a_word_to_the_peers(frr: RealRig) -> None:
    async with agent_of(frr) as agent:
        await converged(frr, agent, OURS[0])
        children = frr.process.children(" server ", "pump.py")
        async with never_without(frr, OURS[0]):
            frr.process.popen.terminate()
            assert await asyncio.to_thread(frr.process.popen.wait, 5) == 0
            await gone(*children, seconds=1.0)
        assert "Traceback" not in frr.process.log.read_text()


async def test_a_stalled_exabgp_is_found_and_restarted(frr: RealRig) -> None:
    async with agent_of(frr) as agent:
        await converged(frr, agent, OURS[0])
        stalled = frr.process.exabgp()
        async with never_without(frr, OURS[0]):
            os.kill(stalled, signal.SIGSTOP)
            await gone(stalled, seconds=12.0)
            await agent.sees(Agent.up)
            await has_no_stale(frr)
        assert "answered nothing" in frr.process.log.read_text()


async def test_sessions_come_and_go_without_touching_the_others(frr: RealRig) -> None:
    both = Wanted(
        frozenset([SPEC, SPEC6]),
        {SPEC.peer: frozenset([Announcement(OURS[0])]), SPEC6.peer: frozenset([Announcement(OUR6)])},
    )
    async with agent_of(frr) as agent:
        await converged(frr, agent, OURS[0])
        exabgp = frr.process.exabgp()
        await agent.speaker.want(both)
        await agent.sees(lambda agent: agent.up(SPEC6.peer) and agent.learned(SPEC6.peer) == {THEIR6})
        assert isinstance(frr.router, Frr)
        router = frr.router

        async def has6() -> bool:
            return OUR6 in await router.routes("ipv6")

        async def lacks6() -> bool:
            return not await has6()

        await until(has6, f"{OUR6} arrives")
        await agent.speaker.want(wanting(OURS[0]))
        await until(lacks6, f"{OUR6} is withdrawn", 3.0)
        assert agent.sessions[SPEC.peer].flaps == 0
        assert frr.process.exabgp() == exabgp
        await agent.speaker.want(Wanted())
        await has(frr)
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
    router = frr.router
    assert isinstance(router, Frr)

    async def ours() -> int:
        return len(prefixes & set(await router.routes()))

    async def has_all() -> bool:
        return await ours() == len(many)

    async with agent_of(frr) as agent:
        await agent.speaker.want(Wanted(others | {SPEC}, {SPEC.peer: many}))
        await until(has_all, "the router has everything", 30.0)
        await agent.speaker.want(Wanted(others))
        await agent.sees(lambda agent: SPEC.peer not in agent.sessions, 30.0)
        assert await ours() == 0
        assert set(agent.sessions) == {spec.peer for spec in others}


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
        assert "must be of the same family" in agent.sessions[another.peer].reason
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
        await converged(frr, agent, OURS[0])
        await agent.speaker.want(Wanted(others | {SPEC}))
        for spec in others:
            await agent.sees(partial(Agent.up, peer=spec.peer))
        await agent.speaker.want(Wanted(others | meanwhile.sessions))
        await agent.speaker.want(Wanted(others | {SPEC}, wanting(OURS[1]).announce))
        await has(frr, OURS[1])
        await agent.sees(Agent.synced)
        assert set(agent.sessions) == {spec.peer for spec in others | {SPEC}}


def update(prefix: Prefix, *, next_hop: bool) -> bytes:
    """An UPDATE (RFC 4271 §4.3) for a prefix of up to 24 bits, with or without its NEXT_HOP."""
    attributes = b"\x40\x01\x01\x00" + b"\x40\x02\x06\x02\x01" + PEER_AS.to_bytes(4, "big")
    attributes += b"\x40\x03\x04" + SPEC.peer.packed if next_hop else b""
    nlri = bytes([prefix.prefixlen]) + prefix.network_address.packed[:3]
    return message(2, b"\x00\x00" + len(attributes).to_bytes(2, "big") + attributes + nlri)


def message(kind: int, body: bytes = b"") -> bytes:
    return b"\xff" * 16 + (19 + len(body)).to_bytes(2, "big") + bytes([kind]) + body


# Version, AS, hold time 90, router id, then one parameter: IPv4 unicast (1) and four-octet AS (65).
CAPABILITIES = b"\x01\x04\x00\x01\x00\x01" + b"\x41\x04" + PEER_AS.to_bytes(4, "big")
OPTIONS = bytes([2, len(CAPABILITIES)]) + CAPABILITIES
HELLO = message(
    1, b"\x04" + PEER_AS.to_bytes(2, "big") + b"\x00\x5a" + SPEC.peer.packed + bytes([len(OPTIONS)]) + OPTIONS
)


def listening_in(node: Node) -> socket.socket:
    """Return a socket that listens for BGP inside `node`."""

    def inside() -> socket.socket:
        with File(f"/proc/{node.pid}/ns/net").open("rb") as namespace:
            enter(namespace.fileno())
        return socket.create_server((str(SPEC.peer), 179))

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(inside).result()


async def test_a_malformed_update_is_a_withdrawal_and_ends_nothing(directory: File) -> None:
    peers: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO + message(4))
        await peers.put(writer)
        while await reader.read(4096):
            pass
        writer.close()

    with linked_nodes() as (ours, theirs), listening_in(theirs) as listening:
        process = Process(ours, directory / "run")
        try:
            async with (
                await asyncio.start_server(greet, sock=listening),
                agent_of(process) as agent,
            ):
                await agent.speaker.want(wanting(OURS[0]))
                await agent.sees(Agent.up)
                router = await peers.get()
                router.write(update(THEIRS, next_hop=True) + update(MORE, next_hop=True))
                await agent.sees(lambda agent: agent.learned() == {THEIRS, MORE})
                router.write(update(THEIRS, next_hop=False) * 3)
                await agent.sees(lambda agent: agent.learned() == {MORE})
                router.write(update(THEIRS, next_hop=True))
                await agent.sees(lambda agent: agent.learned() == {THEIRS, MORE})
                assert agent.sessions[SPEC.peer].flaps == 0
                said = process.log.read_text()
                assert said.count("cannot read what ExaBGP says") == 1, "once a kind of fault"
                assert "peer 10.0.0.2" in said
                await agent.speaker.want(Wanted())
                await agent.sees(lambda agent: not agent.sessions)
        finally:
            process.end()


async def test_the_wrong_as_is_named_and_told_once(directory: File) -> None:
    with real("frr", directory, expected_as=65099) as rig:
        async with agent_of(rig) as agent:
            await agent.speaker.want(wanting(OURS[0]))
            want = "notification received (2,2) bad peer AS"
            await agent.sees(lambda agent: want in (status.reason for status in agent.sessions.values()))
            told = list(agent.deltas)
            await until_attempts(rig, 3)
            assert agent.deltas == told, "no delta for each attempt"


async def until_attempts(rig: RealRig, count: int) -> None:
    router = rig.router

    async def refused() -> int:
        said = json.loads(await router.node.ask("vtysh", "-c", "show bgp neighbors 10.0.0.1 json"))
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
