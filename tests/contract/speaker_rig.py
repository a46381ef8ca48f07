"""Speakers and routers for contract tests: namespaces of their own, FRR, BIRD, a peer by hand, and who follows them.

Two nodes (namespaces of net, mount, uts, ipc, pid) with a veth between them; the speaker runs in one, routers in
the other. Nothing touches the host's own network namespace, and ending a node's first process ends all in it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path as File
from typing import Any, Protocol

from bgp.rib import Address, Announcement, Path, Prefix, SessionSpec, SessionState, SessionStatus, Traffic
from bgp.speaker.client import SpeakerClient
from bgp.speaker.seam import Counted, SessionChanged, SessionGone, Snapshot, Speaker, Update, Wanted
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
SPEC6 = replace(SPEC, peer=ip_address("2001:db8::2"), source=ip_address("2001:db8::1"))
OURS = [ip_network(f"10.1.0.{64 * n}/26") for n in range(4)]
OUR6 = ip_network("2001:db8:1::/64")
THEIRS, MORE = ip_network("192.0.2.0/24"), ip_network("198.51.100.0/24")
THEIR6 = ip_network("2001:db8:5::/48")
DEADLINE = 15.0
TCP_MD5SIG = 14  # linux/tcp.h


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
        self.traffic: dict[Address, Traffic] = {}
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
            case Snapshot(sessions, adj_rib_in, wanted, traffic):
                self.sessions, self.wanted, self.traffic = dict(sessions), wanted, dict(traffic)
                self.paths = {peer: {p.prefix: p for p in paths} for peer, paths in adj_rib_in.items()}
            case SessionChanged(peer, status):
                self.sessions[peer] = status
            case Counted(peer, traffic):
                self.traffic[peer] = traffic
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

    def synced(self, peer: Address = SPEC.peer) -> bool:
        return self.up(peer) and self.sessions[peer].synced

    def reason(self, peer: Address = SPEC.peer) -> str:
        return self.sessions[peer].reason if peer in self.sessions else ""

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

    def inside(self, action: Callable[[], socket.socket]) -> socket.socket:
        """Return the socket that `action` makes when it runs in this node's network namespace."""

        def entered() -> socket.socket:
            with File(f"/proc/{self.pid}/ns/net").open("rb") as namespace:
                enter(namespace.fileno())
            return action()

        with ThreadPoolExecutor(max_workers=1) as pool:
            return pool.submit(entered).result()


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
            add = f"addr add 10.0.0.{number}/24 dev eth0\naddr add 2001:db8::{number}/64 dev eth0 nodad\n"
            here.run("sh", "-c", f"ip -b - <<END\n{add}link set eth0 up\nEND\n")
        yield ours, theirs


def frr_config(expected_as: int = OUR_AS, neighbor: str = "", ipv6: str = "") -> str:
    """FRR as the tests have it: it announces THEIRS and THEIR6, and does graceful restart."""
    return f"""
router bgp {PEER_AS}
 bgp router-id 10.0.0.2
 no bgp ebgp-requires-policy
 no bgp network import-check
 bgp graceful-restart
 neighbor 10.0.0.1 remote-as {expected_as}
 neighbor 10.0.0.1 timers connect 1
 {neighbor}
 neighbor 2001:db8::1 remote-as {OUR_AS}
 neighbor 2001:db8::1 timers connect 1
 neighbor 2001:db8::1 passive
 address-family ipv4 unicast
  network {THEIRS}
  no neighbor 2001:db8::1 activate
 exit-address-family
 address-family ipv6 unicast
  network {THEIR6}
  neighbor 2001:db8::1 activate
  {ipv6}
 exit-address-family
"""


def bird_config(neighbor: str = "", more: str = "", local: str = "10.0.0.2") -> str:
    """BIRD as the tests have it: it announces THEIRS, MORE where that is enabled, and does graceful restart."""
    return f"""
router id {local};
protocol device {{}}
protocol static theirs {{ ipv4; route {THEIRS} blackhole; }}
protocol static more {{ disabled; ipv4; route {MORE} blackhole; }}
protocol bgp node {{
  local {local} as {PEER_AS}; neighbor 10.0.0.1 as {OUR_AS}; graceful restart on;
  connect delay time 1; connect retry time 1; error wait time 1,2;
  {neighbor}
  ipv4 {{ import all; export all; }};
}}
{more}
"""


class Frr:
    def __init__(self, node: Node, config: File, text: str, *options: str) -> None:
        self.node, self.config, self.options = node, config, options
        config.write_text(text)
        config.chmod(0o644)
        self._run("zebra")
        self.start()

    def start(self) -> None:
        self._run("bgpd", *self.options)

    def _run(self, daemon: str, *options: str) -> None:
        self.node.run(f"/usr/lib/frr/{daemon}", "-d", "-A", "127.0.0.1", "-f", str(self.config), *options)

    async def show(self, what: str) -> Any:
        return json.loads(await self.node.ask("vtysh", "-c", f"show bgp {what} json"))

    async def routes(self, family: str = "ipv4") -> dict[Prefix, dict[str, Any]]:
        said = await self.show(f"{family} unicast")
        return {ip_network(prefix): paths[0] for prefix, paths in said["routes"].items()}

    async def table(self) -> set[Prefix]:
        return {p for p in await self.routes() if p in OURS}

    async def stale(self) -> set[Prefix]:
        return {prefix for prefix, path in (await self.routes()).items() if path.get("stale")}

    async def configure(self, *lines: str, family: str = "ipv4") -> None:
        where = ["configure terminal", f"router bgp {PEER_AS}", f"address-family {family} unicast", *lines]
        await self.node.ask("vtysh", *(word for command in where for word in ("-c", command)))

    async def announce(self, prefix: Prefix) -> None:
        await self.configure(f"network {prefix}")

    async def withdraw(self, prefix: Prefix) -> None:
        await self.configure(f"no network {prefix}")

    def kill(self, signal: str) -> None:
        self.node.run("pkill", f"-{signal}", "bgpd")  # in its own pid namespace

    async def shut(self) -> None:
        """End the session with a Cease, and begin it again."""
        await self.node.ask("vtysh", "-c", "clear bgp 10.0.0.1")


class Bird:
    def __init__(self, node: Node, config: File, text: str) -> None:
        self.node, self.config = node, config
        config.write_text(text)
        self.start()

    def start(self, *options: str) -> None:
        self.node.run("bird", "-c", str(self.config), "-s", "/run/bird.ctl", *options)

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

    def kill(self, signal: str) -> None:
        self.node.run("pkill", f"-{signal}", "bird")  # in its own pid namespace

    async def shut(self) -> None:
        """End the session with a Cease, and begin it again."""
        await self.birdc("restart", "node")


class Process:
    """The speaker's process in `node`, seen from here: pids are ours, not the node's."""

    def __init__(self, node: Node, run_dir: File) -> None:
        self.node, self.run_dir = node, run_dir
        self.log = run_dir.with_suffix(".log")
        self.popen = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        # Without the pid namespace: so that what it starts can be watched and killed by pid from here.
        enter = ["nsenter", "-t", str(self.node.pid), "-n", "-m", "-u", "-i", f"--wdns={File.cwd()}", "--"]
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


async def gone(*pids: int, seconds: float) -> None:
    async def ended() -> bool:
        return not any(map(_alive, pids))

    await until(ended, f"{pids} end", seconds)


@contextmanager
def directory() -> Iterator[File]:
    """A temporary directory that FRR can read, which is not root."""
    with tempfile.TemporaryDirectory() as name:
        File(name).chmod(0o755)
        yield File(name)


@contextmanager
def speaker_in(here: Node, directory: File) -> Iterator[Process]:
    process = Process(here, directory / "run")
    try:
        yield process
    finally:
        process.end()


class Router(Protocol):
    """What the contract asks of a peer."""

    async def table(self) -> set[Prefix]:
        """OURS that it has."""

    async def announce(self, prefix: Prefix) -> None: ...
    async def withdraw(self, prefix: Prefix) -> None: ...


class Rig:
    """A speaker and one router that peers with it."""

    def __init__(self, connect: Callable[[], Awaitable[Speaker]], router: Router) -> None:
        self.connect, self._router = connect, router

    @property
    def router(self) -> Router:
        return self._router

    async def has(self, *prefixes: Prefix) -> None:
        """Wait until the router has exactly `prefixes` of OURS."""

        async def holds() -> bool:
            return await self.router.table() == set(prefixes)

        await until(holds, f"the router has exactly {prefixes}")


class FakeRouter:
    def __init__(self, daemon: FakeDaemon) -> None:
        self.daemon = daemon

    async def table(self) -> set[Prefix]:
        return set(self.daemon.peers[SPEC.peer].table)

    async def announce(self, prefix: Prefix) -> None:
        self.daemon.announce(Path(prefix, SPEC.peer, SPEC.peer, as_path=(PEER_AS,)))

    async def withdraw(self, prefix: Prefix) -> None:
        self.daemon.withdraw(SPEC.peer, prefix)


def fake() -> Rig:
    daemon = FakeDaemon()
    theirs = Path(THEIRS, SPEC.peer, SPEC.peer, as_path=(PEER_AS,))
    daemon.peers = {SPEC.peer: FakePeer(paths={THEIRS: theirs})}

    async def connect() -> FakeSpeaker:
        return FakeSpeaker(daemon)

    return Rig(connect, FakeRouter(daemon))


class RealRig(Rig):
    def __init__(self, process: Process, router: Frr | Bird) -> None:
        super().__init__(process.connect, router)
        self.process = process

    @property
    def frr(self) -> Frr:
        assert isinstance(self.router, Frr)
        return self.router

    @property
    def bird(self) -> Bird:
        assert isinstance(self.router, Bird)
        return self.router

    async def has_no_stale(self) -> None:
        async def fresh() -> bool:
            return not await self.frr.stale()

        await until(fresh, "End-of-RIB came after the replay")

    async def converged(self, agent: Agent, *prefixes: Prefix) -> None:
        await agent.speaker.want(wanting(*prefixes))
        await agent.sees(Agent.up)
        await self.has(*prefixes)
        await agent.sees(lambda agent: agent.learned() == {THEIRS})

    @asynccontextmanager
    async def never_without(self, *prefixes: Prefix) -> AsyncIterator[None]:
        """Fail if the router ever lacks one of `prefixes` while the block runs."""

        async def watch() -> None:
            while True:
                missing = set(prefixes) - await self.router.table()
                assert not missing, f"withdrawn at the router: {missing}"

        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch())
            try:
                yield
            finally:
                watching.cancel()


@contextmanager
def real(router: str, config: str = "") -> Iterator[RealRig]:
    """The real speaker with FRR or BIRD, `config` or the one of the tests."""
    with directory() as files, linked_nodes() as (ours, theirs), speaker_in(ours, files) as process:
        file = files / "router.conf"
        if router == "frr":
            yield RealRig(process, Frr(theirs, file, config or frr_config()))
        else:
            yield RealRig(process, Bird(theirs, file, config or bird_config()))


def message(kind: int, body: bytes = b"") -> bytes:
    """A BGP message (RFC 4271 §4.1)."""
    return b"\xff" * 16 + (19 + len(body)).to_bytes(2, "big") + bytes([kind]) + body


KEEPALIVE = message(4)
CEASE = message(3, b"\x06\x02")
END_OF_RIB = message(2, b"\x00\x00\x00\x00")


def hello(*capabilities: bytes, hold_time: int = 90) -> bytes:
    """The peer's OPEN: IPv4 unicast (1), four-octet AS (65), and `capabilities`."""
    basic = (b"\x01\x04\x00\x01\x00\x01", b"\x41\x04" + PEER_AS.to_bytes(4, "big"))
    options = b"".join([*basic, *capabilities])
    head = b"\x04" + PEER_AS.to_bytes(2, "big") + hold_time.to_bytes(2, "big") + SPEC.peer.packed
    return message(1, head + bytes([len(options) + 2, 2, len(options)]) + options)


def graceful(*, restarted: bool = False, forwarding: bool = True) -> bytes:
    """The capability of RFC 4724 §3 for IPv4 unicast, with 120 s."""
    return (
        b"\x40\x06"
        + (0x8000 * restarted + 120).to_bytes(2, "big")
        + b"\x00\x01\x01"
        + bytes([128 * forwarding])
    )


def update(prefix: Prefix, *, next_hop: bool = True) -> bytes:
    """An UPDATE (RFC 4271 §4.3) for a prefix of up to 24 bits, with or without its NEXT_HOP."""
    attributes = b"\x40\x01\x01\x00" + b"\x40\x02\x06\x02\x01" + PEER_AS.to_bytes(4, "big")
    attributes += b"\x40\x03\x04" + SPEC.peer.packed if next_hop else b""
    nlri = bytes([prefix.prefixlen]) + prefix.network_address.packed[:3]
    return message(2, b"\x00\x00" + len(attributes).to_bytes(2, "big") + attributes + nlri)


@dataclass
class ByHand:
    """A peer whose every message is the test's: it answers each connection with `greeting`, and keeps what it hears."""

    node: Node
    greeting: bytes = hello() + KEEPALIVE
    connections: asyncio.Queue[asyncio.StreamWriter] = field(default_factory=asyncio.Queue)
    heard: bytearray = field(default_factory=bytearray)
    reads: asyncio.Event = field(default_factory=asyncio.Event)  # cleared, it takes nothing more
    count: int = 0

    def messages(self) -> list[tuple[int, bytes]]:
        """Type and body of what was heard, all connections one after the other."""
        found, rest = [], bytes(self.heard)
        while len(rest) >= 19 and len(rest) >= (length := int.from_bytes(rest[16:18], "big")):
            found.append((rest[18], rest[19:length]))
            rest = rest[length:]
        return found

    def notifications(self) -> list[tuple[int, int]]:
        return [(body[0], body[1]) for kind, body in self.messages() if kind == 3]

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        try:
            writer.write(self.greeting)
            await self.connections.put(writer)
            while await self.reads.wait() and (data := await reader.read(4096)):
                self.heard += data
        except ConnectionError:
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[ByHand]:
        sock = self.node.inside(lambda: socket.create_server((str(SPEC.peer), 179)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.reads.set()
        greeted: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            greeted.add(asyncio.ensure_future(self._greet(reader, writer)))

        async with await asyncio.start_server(connected, sock=sock):
            try:
                yield self
            finally:
                for task in greeted:
                    task.cancel()
                await asyncio.gather(*greeted, return_exceptions=True)


@asynccontextmanager
async def by_hand(greeting: bytes = hello() + KEEPALIVE) -> AsyncIterator[tuple[Process, ByHand]]:
    """The real speaker, and a peer by hand."""
    with directory() as files, linked_nodes() as (ours, theirs), speaker_in(ours, files) as process:
        async with ByHand(theirs, greeting).listening() as peer:
            yield process, peer


@dataclass(frozen=True, slots=True)
class Segment:
    """One TCP segment as it passed; `flags` are those of RFC 9293 §3.1."""

    source: str
    target: str
    ttl: int
    flags: int
    signed: bool


SYN, RST, ACK = 0x02, 0x04, 0x10
MD5_OPTION = 19  # RFC 2385 §3.0
ETH_P_ALL = 3


def _segment(packet: bytes) -> Segment | None:
    ipv4 = packet[0] >> 4 == 4
    protocol, ttl = (packet[9], packet[8]) if ipv4 else (packet[6], packet[7])
    addresses, start = (packet[12:20], 4 * (packet[0] & 15)) if ipv4 else (packet[8:40], 40)
    tcp, half = packet[start:], len(addresses) // 2
    if protocol != socket.IPPROTO_TCP or 179 not in struct.unpack("!HH", tcp[:4]):
        return None
    options, kinds = tcp[20 : 4 * (tcp[12] >> 4)], set()
    while options and options[0]:
        kinds.add(options[0])
        options = options[1:] if options[0] == 1 else options[options[1] :]
    source, target = (str(ip_address(raw)) for raw in (addresses[:half], addresses[half:]))
    return Segment(source, target, ttl, tcp[13], MD5_OPTION in kinds)


class Capture:
    """What passes a node's eth0 to or from port 179."""

    def __init__(self, node: Node) -> None:
        def packets() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
            sock.bind(("eth0", ETH_P_ALL))
            sock.setblocking(False)
            return sock

        self._socket = node.inside(packets)

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def segments(self) -> list[Segment]:
        """What passed since the last call."""
        found = []
        with suppress(BlockingIOError):
            while packet := self._socket.recv(65535):
                found.append(_segment(packet))
        return [segment for segment in found if segment]


def md5_key(peer: str, password: str) -> bytes:
    """struct tcp_md5sig of linux/tcp.h, for a peer's IPv4 address."""
    address = struct.pack("=HH4s120x", socket.AF_INET, 0, ip_address(peer).packed)
    return address + struct.pack("=2xH4x80s", len(password), password.encode())


def knock(
    node: Node, source: str, *, ttl: int = 64, password: str = "", target: str = str(SPEC.source)
) -> bool:
    """Whether a connection from `source` in `node` to a speaker at `target` is made at once."""

    def outgoing() -> socket.socket:
        ipv4 = ":" not in source
        sock = socket.socket(socket.AF_INET if ipv4 else socket.AF_INET6)
        if ipv4:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
        if password:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, md5_key(target, password))
        sock.bind((source, 0))
        sock.settimeout(0.3)
        return sock

    with node.inside(outgoing) as sock:
        try:
            sock.connect((target, 179))
        except OSError:
            return False
        return True
