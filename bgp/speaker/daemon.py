"""The speaker's process: listens for agents and for the pump, and keeps an ExaBGP running for what is wanted.

Nothing is kept on disk that correctness needs. A speaker that comes back knows nothing, so it starts no
ExaBGP and sends no End-of-RIB until an agent has handed down a Wanted: meanwhile the peers hold our
routes under graceful restart. With a Wanted in hand it goes on alone, agent or not.

Who owns what: `serve` owns the lock, the two sockets and everything below; `_supervise` owns the current
ExaBGP and ends it on every way out, so there is never a second one.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeAlias

from bgp.rib import Address, SessionSpec
from bgp.speaker.client import LINE_LIMIT
from bgp.speaker.codec import decode, encode
from bgp.speaker.exabgp import START_SECONDS, Exabgp, end
from bgp.speaker.exabgp_wire import Heard
from bgp.speaker.rewanted import Rewanted, applied
from bgp.speaker.seam import Event, Reset, SessionChanged, SessionGone, Wanted
from bgp.speaker.tables import Effects, Tables
from fabric.errors import SpeakerError, Taken

log = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

SOCKET = "speaker.sock"
PUMP_SOCKET = "pump.sock"
LOCK = "speaker.lock"

TICK_SECONDS = 1.0
# For withdrawals to leave before their session is removed: 10,000 behind a replay take 7 s. Not for ever:
# a peer that reads nothing holds them up until its hold time is over.
DRAIN_SECONDS = 30.0
RECHECK_SECONDS = 2.0  # for a source address to appear on this node
TCP_MD5SIG = 14  # linux/tcp.h
BACKOFF_FIRST, BACKOFF_MOST = 0.1, 30.0
BACKLOG_BYTES = 1 << 28  # an agent this far behind is cut off; its next connection gets a snapshot


class Daemon:
    """The tables, those who listen to them, and the ExaBGP that fills them."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._tables = Tables()
        self._agents: set[asyncio.StreamWriter] = set()
        self._exabgp: Exabgp | None = None
        self._running: frozenset[SessionSpec] = frozenset()  # what an ExaBGP may have now
        self._sound: frozenset[SessionSpec] = frozenset()  # the last set without faults
        self._faults: dict[SessionSpec, str] = {}  # of wanted sessions, why ExaBGP does not take them
        self._blamed: dict[SessionSpec, str] = {}  # the faults before the last recheck, told already
        self._rewanted = asyncio.Event()  # the set of sessions may have changed
        self._stirred = asyncio.Event()  # ExaBGP said something
        self._pumps: asyncio.Queue[tuple[int, asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def serve(self) -> None:
        """Run until cancelled; ExaBGP is then gone without a word to its peers.

        Raises:
            Taken: another speaker runs on this directory.
        """
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(self._run_dir / LOCK):
            async with (
                _listening(self._run_dir / PUMP_SOCKET, self._on_pump),
                _listening(self._run_dir / SOCKET, self._on_agent),
                asyncio.TaskGroup() as tasks,
            ):
                log.info("listening on %s", self._run_dir / SOCKET)
                tasks.create_task(self._supervise())
                tasks.create_task(self._tick())

    async def _on_agent(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # No await between the snapshot and the set: so no delta is lost or doubled.
        writer.write(encode(self._tables.snapshot()))
        self._agents.add(writer)
        log.info("agent connected")
        wanted: Wanted | None = None  # as this agent said last
        try:
            while line := await reader.readline():
                wanted = self._on_message(line, wanted)
        except (OSError, SpeakerError) as err:
            log.warning("agent: %s", err)
        finally:
            self._agents.discard(writer)
            writer.close()
            log.info("agent left; sessions and announcements stand")

    def _on_message(self, line: bytes, before: Wanted | None) -> Wanted | None:
        match decode(line):
            case Wanted() as wanted:
                self._want(wanted)
                return wanted
            case Rewanted() as change if before is not None:
                self._want(wanted := applied(before, change))
                return wanted
            case Reset() as reset:
                log.info("session %s: to be reset, subcode %d", reset.peer, reset.subcode)
                self._effect(self._tables.reset(reset, time.time()))
                return before
            case message:
                raise SpeakerError(
                    f"got {type(message).__name__} from an agent, which is not the time or the way for it"
                )

    def _want(self, wanted: Wanted) -> None:
        before = self._tables.wanted
        self._effect(self._tables.want(wanted, time.time()))
        if before is None or before.sessions != wanted.sessions:
            log.info("%d sessions wanted", len(wanted.sessions))
            self._faults = {spec: why for spec, why in self._faults.items() if spec in wanted.sessions}
            self._runs(self._running)
            self._rewanted.set()

    def _runs(self, sessions: frozenset[SessionSpec]) -> None:
        """Note that ExaBGP has no session left but `sessions`."""
        self._running = sessions
        self._effect(self._tables.gone(sessions))

    async def _on_pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeting = await reader.readline()
        match greeting.split():
            case [b"pump", pid]:
                await self._pumps.put((int(pid), reader, writer))
            case _:
                writer.close()

    def _effect(self, effects: Effects) -> None:
        if self._exabgp is not None:
            self._exabgp.send(effects.commands)
        if effects.reconfigure:
            self._rewanted.set()
        events = effects.events()
        for event in events:
            if isinstance(event, SessionChanged):
                note = "synced" if event.status.synced else event.status.reason
                log.info("session %s: %s %s", event.peer, event.status.state, note)
            elif isinstance(event, SessionGone):
                log.info("session %s: gone", event.peer)
        self._tell(events)

    def _tell(self, events: Sequence[Event]) -> None:
        lines = b"".join(map(encode, events)) if self._agents else b""
        for writer in self._agents:
            if writer.transport.get_write_buffer_size() > BACKLOG_BYTES:
                writer.transport.abort()
            else:
                writer.write(lines)

    def _hear(self, heard: list[Heard]) -> None:
        self._effect(self._tables.take(heard, time.time()))
        self._stirred.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._effect(self._tables.expire(time.time()))
            self._tell(self._tables.counted())

    async def _supervise(self) -> None:
        backoff = BACKOFF_FIRST
        while True:
            exabgp = Exabgp(self._run_dir, self._run_dir / PUMP_SOCKET, self._hear)
            sessions = await self._startable(exabgp)
            started = time.monotonic()
            reason = await self._run(exabgp, sessions)
            self._effect(self._tables.daemon_lost(reason, time.time()))
            self._runs(frozenset())
            if time.monotonic() - started > BACKOFF_MOST:
                backoff = BACKOFF_FIRST
            # The first restart is near immediate: the peers' restart time is running.
            await asyncio.sleep(backoff * random.uniform(0.5, 1))  # noqa: S311  (jitter, not a secret)
            backoff = min(2 * backoff, BACKOFF_MOST)

    async def _startable(self, exabgp: Exabgp) -> frozenset[SessionSpec]:
        """Wait until there is a session that can be configured."""
        while True:
            sessions = self._configurable(frozenset())
            if not sessions:
                await self._recheck()
            elif await self._taken(exabgp, sessions):
                return sessions

    async def _recheck(self) -> None:
        """Return when the wanted sessions changed, or when it is time to look at left-out ones again."""
        wanted = self._tables.wanted
        try:
            async with asyncio.timeout(RECHECK_SECONDS if wanted and wanted.sessions else None):
                await self._rewanted.wait()
        except TimeoutError:
            return
        finally:
            self._blamed, self._faults = self._faults, {}  # what caused them may have passed
        self._rewanted.clear()

    def _configurable(self, running: frozenset[SessionSpec]) -> frozenset[SessionSpec]:
        """The wanted sessions less those that would keep ExaBGP from starting, whose status says why."""
        wanted = (self._tables.wanted or Wanted()).sessions - self._tables.idle()
        bound = {(spec.source, spec.listen_port) for spec in running}
        refused: dict[Address, str] = {}
        for spec in wanted:
            free = (spec.source, spec.listen_port) not in bound
            if reason := self._faults.get(spec) or _cannot_sign(spec) or (free and _cannot_listen(spec)):
                refused[spec.peer] = reason
        self._effect(self._tables.refuse(refused, time.time()))
        return frozenset(spec for spec in wanted if spec.peer not in refused)

    async def _taken(self, exabgp: Exabgp, sessions: frozenset[SessionSpec]) -> bool:
        """Whether ExaBGP takes `sessions`; those it does not take are not configurable until a recheck.

        Where that is not known, this returns only after the recheck.
        """
        if sessions and sessions != self._sound:
            try:
                faults = await exabgp.faults(sessions, exabgp.sessions | self._sound)
            except SpeakerError as err:
                log.warning("%s; sessions stay as they are; trying again", err)
                await self._recheck()
                return False
            for spec, why in faults.items():
                if self._blamed.get(spec) != why:
                    log.error("session %s is left out: %s", spec.peer, why)
            self._faults |= faults
            if faults:
                return False
            self._sound = sessions
        return True

    async def _run(self, exabgp: Exabgp, sessions: frozenset[SessionSpec]) -> str:
        """Run ExaBGP from start to end; return why it ended, for the sessions' status."""
        self._running = sessions
        process = await exabgp.start(sessions)
        log.info("ExaBGP started, pid %d, %d sessions", process.pid, len(sessions))
        try:
            await self._attend(exabgp, process)
        except* SpeakerError as errors:
            reason = str(errors.exceptions[0])
        else:
            return "no session is wanted"
        finally:
            self._exabgp = None
            await end(process)
        log.error("%s; exit status %s; restarting it, peers hold our routes", reason, process.returncode)
        return reason

    async def _attend(self, exabgp: Exabgp, process: asyncio.subprocess.Process) -> None:
        """Return when no session is wanted any more; raise a group of SpeakerError when it must restart."""
        async with asyncio.TaskGroup() as tasks:
            exited = tasks.create_task(_exited(process))
            reader, writer = await self._pump_of(process.pid)
            exabgp.connected(writer)
            self._exabgp = exabgp
            self._effect(self._tables.in_force(exabgp.sessions, time.time()))
            children = [
                exited,
                tasks.create_task(exabgp.listen(reader)),
                tasks.create_task(exabgp.watch()),
            ]
            try:
                await self._follow(exabgp)
            finally:
                writer.close()
            for child in children:
                child.cancel()

    async def _pump_of(self, pid: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    parent, reader, writer = await self._pumps.get()
                    if parent == pid:
                        return reader, writer
                    writer.close()  # of an ExaBGP that was killed before its pump had connected
        except TimeoutError:
            raise SpeakerError(f"ExaBGP did not start its pump within {START_SECONDS:.0f} s") from None

    async def _follow(self, exabgp: Exabgp) -> None:
        """Keep ExaBGP's sessions equal to the wanted ones; return once none is."""
        while True:
            target = self._target(exabgp)
            if target == exabgp.sessions:
                await self._recheck()
            elif await self._taken(exabgp, target):
                await self._withdrawn()
                if self._target(exabgp) != target:
                    continue  # wanted otherwise meanwhile
                await self._reload(exabgp, target)
                if not target:
                    return

    def _target(self, exabgp: Exabgp) -> frozenset[SessionSpec]:
        return self._configurable(exabgp.sessions) - self._tables.renewed(exabgp.sessions)

    async def _withdrawn(self) -> None:
        """Wait until what removed sessions had announced is withdrawn; not for ever."""
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while self._tables.leaving:
                    self._stirred.clear()
                    await self._stirred.wait()
        except TimeoutError:
            log.warning("withdrawals to %s were not confirmed", sorted(map(str, self._tables.leaving)))

    async def _reload(self, exabgp: Exabgp, target: frozenset[SessionSpec]) -> None:
        self._running |= target
        self._effect(self._tables.in_force(target, time.time()))
        await exabgp.reload(target)
        log.info("ExaBGP reloaded, %d sessions", len(target))
        self._runs(target)


async def _exited(process: asyncio.subprocess.Process) -> None:
    raise SpeakerError(f"ExaBGP ended with exit status {await process.wait()}")


def _cannot_listen(spec: SessionSpec) -> str:
    """Why ExaBGP could not bind to its source, or "". It exits on that at start, with every session."""
    what = f"cannot listen on {spec.source} port {spec.listen_port}"
    with _probe(spec) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((str(spec.source), spec.listen_port))
        except OSError as err:
            return f"{what}: {os.strerror(err.errno or 0)} [{errno.errorcode.get(err.errno or 0, '?')}]"
    return ""


def _cannot_sign(spec: SessionSpec) -> str:
    """Why its segments could not be signed (RFC 2385), or "": not every kernel can."""
    if not spec.password:
        return ""
    with _probe(spec) as probe:
        try:
            # The removal of a key that is not there: struct tcp_md5sig, but for its family all zeros.
            probe.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, struct.pack("=H214x", probe.family))
        except OSError as err:
            if err.errno != errno.ENOENT:
                return f"cannot use its password: this kernel signs no TCP segments: {os.strerror(err.errno or 0)}"
    return ""


def _probe(spec: SessionSpec) -> socket.socket:
    family = socket.AF_INET if spec.source.version == 4 else socket.AF_INET6
    return socket.socket(family, socket.SOCK_STREAM)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold `path` for this process; the kernel lets go of it however the process ends."""
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Taken(
                f"start a BGP speaker in {path.parent}: pid {file.read().strip() or '?'} runs one there; "
                "nothing was changed; stop that one first or choose another --run-dir"
            ) from None
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@asynccontextmanager
async def _listening(path: Path, handler: Handler) -> AsyncIterator[None]:
    """Listen on `path`, replacing the socket of a dead speaker (we hold the lock, so it is dead)."""
    _unlink(path)
    server = await asyncio.start_unix_server(handler, path, limit=LINE_LIMIT)
    os.chmod(path, 0o600)  # noqa: PTH101  (ASYNC240 takes Path.chmod for slow IO; it is one system call)
    try:
        yield
    finally:
        server.close()
        _unlink(path)


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
