"""Runs one ExaBGP process and its pump: start, talk, reload, notice a stall, kill.

ExaBGP is killed with SIGKILL, never asked to stop: a kill sends no NOTIFICATION, so peers with graceful
restart hold our routes. It dies with this process (PR_SET_PDEATHSIG through setpriv), and the pump dies
with either of the two.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

from bgp.rib import Address, SessionSpec
from bgp.speaker import exabgp_config, exabgp_wire
from bgp.speaker.exabgp_wire import (
    Answered,
    Command,
    Down,
    Heard,
    Neighbor,
    Neighbors,
    Teardown,
    Unreadable,
)
from bgp.speaker.outbox import Outbox
from fabric.errors import SpeakerError

log = logging.getLogger(__name__)

START_SECONDS = 20.0  # Python, and 5 s more where the host's name is not in /etc/hosts
TICK_SECONDS = 1.0
# Pings without a sign of life. Counted, not timed: a node that slept must not look like a stall.
# A batch of 1,000 prefixes is parsed in 0.3 s, and the acks of what is queued count as signs.
STALL_TICKS = 6
CONFIRM_SECONDS = 10.0
CONFIRM_EVERY = 0.25
RELOAD_EVERY = 1.0


class Exabgp:
    """One run of ExaBGP. `hear` gets what it says, a batch at a time, on the event loop."""

    def __init__(self, run_dir: Path, pump_socket: Path, hear: Callable[[list[Heard]], None]) -> None:
        self._config = run_dir / "exabgp.conf"
        self._pump_socket = pump_socket
        self._hear = hear
        self.sessions: frozenset[SessionSpec] = frozenset()
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._outbox = Outbox()
        self._shown: asyncio.Queue[Neighbors] = asyncio.Queue()
        self._unanswered = 0
        self._misread: set[tuple[Address | None, str]] = set()

    async def start(self, sessions: frozenset[SessionSpec]) -> asyncio.subprocess.Process:
        """Write the configuration and spawn; the pump then connects to its socket by itself.

        ExaBGP exits on a configuration with `faults`, and with it every session.
        """
        self.sessions = sessions
        _write(self._config, self._render(sessions))
        self._process = await self._spawn("server", self._config)
        return self._process

    def connected(self, writer: asyncio.StreamWriter) -> None:
        """The pump is there: commands go through `writer`."""
        self._writer = writer

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Hand on what ExaBGP says until the stream ends."""
        rest = b""
        while data := await self._read(reader):
            self._unanswered = 0
            *lines, rest = (rest + data).split(b"\n")
            heard = [
                message for line in lines if (message := exabgp_wire.parse(line.decode(errors="replace")))
            ]
            for message in heard:
                self._note(message)
            self._hear(heard)
            self._flush()
            await asyncio.sleep(0)  # a flood must not starve the agents' sockets
        raise SpeakerError("ExaBGP closed its end of the pump")

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.read(1 << 18)
        except OSError as err:  # also of what was written
            raise SpeakerError(f"ExaBGP's pump is gone: {err}") from err

    def _note(self, message: Heard) -> None:
        if isinstance(message, Neighbors):
            self._shown.put_nowait(message)
        elif isinstance(message, Down):
            self._outbox.drop(message.peer)
        elif isinstance(message, Answered):
            self._outbox.answered()
            if not message.done:
                # Harmless where a session ended while its End-of-RIB was on the way; else a bug of ours.
                log.warning("ExaBGP refused a command")
        elif isinstance(message, Unreadable) and (message.peer, message.kind) not in self._misread:
            self._misread.add((message.peer, message.kind))
            state = f"{len(message.withdrawn)} prefixes in it count as withdrawn"
            log.error("peer %s: cannot read what ExaBGP says: %s; %s", message.peer, message.why, state)

    async def watch(self) -> None:
        """Raise SpeakerError once ExaBGP has answered nothing for STALL_TICKS pings."""
        while self._unanswered < STALL_TICKS:
            self._say(exabgp_wire.PING)
            self._unanswered += 1
            await asyncio.sleep(TICK_SECONDS)
        raise SpeakerError(f"ExaBGP answered nothing for {STALL_TICKS * TICK_SECONDS:.0f} s")

    def send(self, commands: Iterable[Command]) -> None:
        """Queue `commands`; without a pump they are dropped, since each `up` sends everything again."""
        if self._writer is None:
            return
        for command in commands:
            if isinstance(command, Teardown):
                self._outbox.drop(command.peer)
                for line in exabgp_wire.render(command):
                    self._say(line)
            else:
                self._outbox.put(command.peer, exabgp_wire.render(command))
        self._flush()

    def _flush(self) -> None:
        for line in self._outbox.take():
            self._write(line)

    def _say(self, line: str) -> None:
        """Have `line` go out before all that waits."""
        if self._writer is not None:
            self._outbox.gone_out()
            self._write(line)

    def _write(self, line: str) -> None:
        if self._writer is not None:
            self._writer.write(line.encode("ascii") + b"\n")

    async def reload(self, sessions: frozenset[SessionSpec]) -> None:
        """Make ExaBGP run exactly `sessions`; those it runs already are not touched.

        One failed reload wedges all later ones: ask for `faults` first. `done` comes before the outcome,
        so it is repeated until `show neighbor` agrees.

        Raises:
            SpeakerError: it took the file and does not show it; only a restart cures that.
        """
        _write(self._config, self._render(sessions))
        self.sessions = sessions
        want = frozenset(Neighbor(spec.peer, exabgp_config.fingerprint(spec)) for spec in sessions)
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                await self._reload_until(want)
        except TimeoutError:
            raise SpeakerError("ExaBGP reloaded its configuration and shows other sessions") from None

    async def _reload_until(self, want: frozenset[Neighbor]) -> None:
        while True:
            self._say(exabgp_wire.RELOAD)
            for _ in range(int(RELOAD_EVERY / CONFIRM_EVERY)):
                await asyncio.sleep(CONFIRM_EVERY)
                if await self._show() == want:
                    return

    async def _show(self) -> frozenset[Neighbor]:
        self._say(exabgp_wire.SHOW)
        return (await self._shown.get()).sessions

    async def faults(
        self, sessions: frozenset[SessionSpec], sound: frozenset[SessionSpec]
    ) -> dict[SessionSpec, str]:
        """Return those of `sessions` that ExaBGP would not take, with its reasons: {} if it takes them all.

        None of `sound` is ever blamed: ExaBGP took those together before.

        Raises:
            SpeakerError: it is not known, or none but `sound` could be blamed.
        """
        if not (whole := await self._validate(sessions)):
            return {}
        if not (new := sessions - sound):
            raise SpeakerError(f"{whole}; it took each of these {len(sessions)} sessions before")
        alone = {spec: await self._validate([spec]) for spec in new}
        return {spec: why for spec, why in alone.items() if why} or dict.fromkeys(new, whole)

    async def _validate(self, sessions: Collection[SessionSpec]) -> str:
        """Return why ExaBGP refuses `sessions`, or ""; raise SpeakerError where it did not get to say."""
        path = self._config.with_suffix(".new")
        try:
            status, out = await self._validated(path, self._render(sessions))
        except OSError as err:
            raise SpeakerError(f"cannot have ExaBGP validate {path}: {err}") from err
        if status < 0:
            raise SpeakerError(f"cannot have ExaBGP validate {path}: signal {-status} ended it")
        said = out.decode(errors="replace").split("\n\n")[-1].strip()
        for spec in sessions:
            said = said.replace(exabgp_config.secret(spec), "...") if spec.password else said
        return f"ExaBGP refuses its configuration: {said}" if status else ""

    async def _validated(self, path: Path, text: str) -> tuple[int, bytes]:
        _write(path, text)
        try:
            process = await self._spawn("validate", path, output=asyncio.subprocess.PIPE)
            try:
                out, _ = await process.communicate()
            finally:
                await end(process)
            return await process.wait(), out
        finally:
            path.unlink()  # noqa: ASYNC240  (one system call)

    async def _spawn(self, verb: str, path: Path, output: int | None = None) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *(sys.executable, "-P", str(Path(__file__).with_name("exabgp_main.py")), verb, str(path)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output or 2,  # both to our stderr: its stdout is nobody's protocol
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **exabgp_config.ENVIRONMENT},
        )

    def _render(self, sessions: Iterable[SessionSpec]) -> str:
        pump = Path(__file__).with_name("pump.py")
        return exabgp_config.render(sessions, f"{sys.executable} -I -S {pump} {self._pump_socket}")


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(text)


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill `process` if it still runs, and wait until it is gone."""
    if process.returncode is None:
        with suppress(ProcessLookupError):  # it ended between the look and the kill
            process.kill()
    await asyncio.shield(process.wait())
