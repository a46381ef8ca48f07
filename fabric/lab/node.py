"""Touch the processes of lab nodes: start a first process, recognise it later, enter it, end it.

Ownership: a node is known by its first process and the one that waits for it, each by pid and start
time. A recycled pid has another start time, so a stranger is never signalled.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from fabric.errors import LabError
from fabric.lab import backplane, init

NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")
INIT = str(init.__file__)
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Process:
    """One process for good: `started` is in clock ticks since boot (field 22 of proc_pid_stat(5))."""

    pid: int
    started: int

    @classmethod
    def find(cls, pid: int) -> Process | None:
        """Return the process that has `pid` now; a zombie counts as gone."""
        try:
            # The name before the last ")" may hold anything, brackets and blanks included.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    @property
    def alive(self) -> bool:
        return Process.find(self.pid) == self

    def send(self, sent: int) -> None:
        """Send a signal; gone already is no error."""
        with self._held() as fd:
            if fd is not None:
                with suppress(ProcessLookupError):  # it ended between the look and the signal
                    signal.pidfd_send_signal(fd, sent)

    def kill(self) -> None:
        """Send SIGKILL and do not wait."""
        self.send(signal.SIGKILL)

    def gone(self, within: float) -> bool:
        """Return whether it ends, or has ended, within so many seconds."""
        with self._held() as fd:
            return fd is None or bool(select.select([fd], [], [], within)[0])

    def end(self, within: float = 10.0) -> None:
        """Kill it and return once it is gone; gone already is no error."""
        self.kill()
        if not self.gone(within):
            raise LabError(f"process {self.pid} outlived SIGKILL by {within:.0f} s; try again")

    @contextmanager
    def _held(self) -> Iterator[int | None]:
        """Give a pidfd of this very process, or None if it is gone."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            yield fd if self.alive else None  # judged while the pidfd holds the pid's meaning still
        finally:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class FirstProcess:
    """What a node stands and falls with, and its parent, which waits for it and holds namespaces too."""

    init: Process
    parent: Process

    @classmethod
    def read(cls, path: Path) -> FirstProcess | None:
        """Return what `path` says, or None where no node was recorded before its runner died."""
        try:
            data = json.loads(path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return cls(Process(**data["init"]), Process(**data["parent"]))

    def end(self) -> None:
        """Kill it and return once it is gone."""
        self.init.end()
        if not self.parent.gone(within=1.0):  # it reaps its child, and ends
            self.parent.end()


class Nursery:
    """Where first processes of nodes come from, those of one start; fabric/lab/init.py is its other side."""

    def __init__(self, backplane: Process, log: Path) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._turn = threading.Lock()
        with theirs, log.open("a+b") as sink:
            self._popen = subprocess.Popen(
                [*_within(backplane), sys.executable, "-I", "-S", INIT],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=sink,
                start_new_session=True,
            )

    def bear(self, name: str, log: Path, network: bytes, join: Process | None = None) -> Birth:
        """Return the birth of a node whose network is one of init.py's kinds; with JOIN, that of `join`."""
        net = [os.open(f"/proc/{join.pid}/ns/net", os.O_RDONLY)] if join else []
        stdin, near = os.pipe()
        far, stdout = os.pipe()
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        theirs = [stdin, stdout, sink, *net]
        try:
            with self._turn:
                socket.send_fds(self._channel, [network], theirs)
                answer = self._channel.recv(16)
        except OSError:
            answer = b""
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        if not answer:
            os.close(near)
            os.close(far)
            raise LabError(f"node {name}: its namespaces cannot be made{tail(log)}")
        return Birth(name, log, int(answer), os.fdopen(near, "wb", 0), os.fdopen(far, "rb", 0))

    def close(self) -> None:
        """End it; what it bore lives on."""
        self._channel.close()
        self._popen.wait()


def bear_backplane(log: Path, descriptors: Sequence[int]) -> tuple[Birth, subprocess.Popen[bytes]]:
    """Start a backplane, which inherits `descriptors`; the process is to be reaped by the caller."""
    unshare = (
        "unshare",
        *NAMESPACES,
        "--fork",
        "--kill-child=KILL",
        "--mount-proc",
        "--propagation",
        "private",
    )
    with log.open("a+b") as sink:
        popen = subprocess.Popen(
            [*unshare, "--", sys.executable, "-I", "-S", backplane.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            bufsize=0,
            pass_fds=descriptors,
            start_new_session=True,  # the terminal's Ctrl-C is for the runner
        )
    assert popen.stdin
    assert popen.stdout
    return Birth("backplane", log, popen.pid, popen.stdin, popen.stdout), popen


class Birth:
    """A first process from its start until it has reported; `pid` is of the one that waits for it.

    fabric/lab/init.py and backplane.py have the conversation.
    """

    def __init__(self, name: str, log: Path, pid: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.name, self.log, self.pid = name, log, pid
        self._stdin, self._stdout, self._heard = stdin, stdout, b""
        self._first: FirstProcess | None = None

    def born(self) -> FirstProcess:
        """Return the process and its parent; it does nothing until it gets orders, and ends if none come."""
        self._line("start")
        child = int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text())
        first, parent = Process.find(child), Process.find(self.pid)
        if not first or not parent:
            raise self._lost("start")
        self._first = FirstProcess(first, parent)
        return self._first

    def order(self, orders: Mapping[str, object]) -> None:
        """Hand over the orders and return once they are carried out: its files are its own."""
        self._step(json.dumps(orders), "ready", "get its files")

    def link(self) -> None:
        """Return once its links are up."""
        self._step("link", "linked", "set its links up")

    def go(self) -> None:
        self._send("go", "start")

    def report(self, progress: Callable[[str], None]) -> init.Report:
        """Return how the start went; there is no deadline, since an `exec` may take its time."""
        report: init.Report = json.loads(
            self._line("run its daemons and exec commands", progress, within=None)
        )
        return report

    def kill(self) -> None:
        """End it, so that whoever waits for its next line is told."""
        first = self._first.init if self._first else Process.find(self.pid)
        if first:
            first.kill()

    def close(self) -> None:
        """Give the pipes back; one that got no (go) ends by it."""
        self._stdin.close()
        self._stdout.close()

    def _step(self, line: str, done: str, what: str) -> None:
        self._send(line, what)
        if (answer := self._line(what)) != done:
            raise LabError(f"node {self.name}: {json.loads(answer)['fault']}{tail(self.log)}")

    def _send(self, line: str, what: str) -> None:
        try:
            self._stdin.write(line.encode() + b"\n")
        except BrokenPipeError as err:
            raise self._lost(what) from err

    def _line(
        self, what: str, progress: Callable[[str], None] | None = None, within: float | None = 20
    ) -> str:
        began, due = time.monotonic(), 1.0  # seconds until the next word of it
        while b"\n" not in self._heard:
            if select.select([self._stdout], [], [], 1)[0]:
                chunk = self._stdout.read(65536)
                if not chunk:
                    raise self._lost(what)
                self._heard += chunk
                continue
            elapsed = time.monotonic() - began
            if progress and elapsed >= due:
                progress(f"node {self.name}: waiting for it to {what} ({elapsed:.0f} s)")
                due *= 2
            if within and elapsed > within:
                raise LabError(f"node {self.name}: did not {what} within {within:.0f} s{tail(self.log)}")
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def _lost(self, what: str) -> LabError:
        return LabError(f"node {self.name}: ended before it could {what}{tail(self.log)}")


def tail(log: Path, at: int = 0, lines: int = 20) -> str:
    """Return the last lines of `log` from byte `at` on, indented, to stand below a message."""
    try:
        text = log.read_bytes()[at:].decode(errors="replace")
    except FileNotFoundError:
        text = ""
    return "".join(f"\n    {line}" for line in text.splitlines()[-lines:])


def _within(backplane: Process) -> list[str]:
    """Return what a command begins with that is to see the disks in the backplane."""
    return ["nsenter", f"--mount=/proc/{backplane.pid}/ns/mnt", "--"]


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return what a node's processes see: a container's clean environment, and this Python's commands."""
    kept = {key: os.environ[key] for key in ("TERM", "LANG") if key in os.environ}
    path = f"{Path(sys.executable).parent}:{SYSTEM_PATH}:{init.TOOLS}"
    return {"PATH": path, "HOME": "/root", **kept, **own}


def enter(process: Process, argv: Sequence[str], user: str = "") -> list[str]:
    """Return the command that runs `argv` in the node of `process` as `user`, with `argv`'s exit status.

    nsenter forks, and its own death would leave the command behind: hence the parent-death signal.

    Raises:
        LabError: there is no such user.
    """
    try:
        become = init.become(user)
    except init.StartError as err:
        raise LabError(f"{' '.join(argv)}: {err}; name another one in the node's `user`") from err
    return [
        *("nsenter", "--target", str(process.pid), *NAMESPACES, "--"),
        *become,
        *("setpriv", "--pdeathsig", "KILL", "--", *argv),
    ]


class NodeProcess(subprocess.Popen[str]):
    """A command in a node; signals reach the command itself, not the nsenter in front of it."""

    def send_signal(self, sig: int) -> None:
        if self.poll() is not None:
            return
        if sig == signal.SIGKILL:
            # With everything it started: what holds its pipes open would hang communicate().
            os.killpg(self.pid, signal.SIGKILL)
            return
        for pid in self._inner():
            os.kill(pid, sig)
        if sig == signal.SIGCONT:
            super().send_signal(sig)  # nsenter stops itself when the command is stopped

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind:  # or the wait for its end would hide why the block was left
            self.kill()
        super().__exit__(kind, error, trace)

    def _inner(self) -> list[int]:
        """Return the command's pid, once nsenter has forked, or nothing if that has ended."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        while self.poll() is None:
            if pids := children.read_text().split():
                return [int(pid) for pid in pids]
            time.sleep(0.001)
        return []
