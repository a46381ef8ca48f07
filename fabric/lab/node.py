"""Touch the processes of lab nodes: start a first process, recognise it later, enter it, end it.

Ownership: a node is known by its first process and the `unshare` that waits for it, each by pid and
start time. A recycled pid has another start time, so a stranger is never signalled.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from fabric.errors import LabError
from fabric.lab import init

NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")
UNSHARE = (
    *("unshare", *NAMESPACES, "--fork", "--kill-child=KILL"),
    *("--mount-proc", "--propagation", "private", "--"),
)
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

    def end(self, within: float = 10.0) -> None:
        """Kill it and return once it is gone; gone already is no error."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive:  # judged while the pidfd holds the pid's meaning still
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                if not select.select([fd], [], [], within)[0]:
                    raise LabError(f"process {self.pid} outlived SIGKILL by {within:.0f} s; try again")
        finally:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class FirstProcess:
    """What a node stands and falls with, and its `unshare`, which holds the namespaces too."""

    init: Process
    unshare: Process

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> FirstProcess | None:
        """Return what `path` says, or None where no node was recorded before its runner died."""
        try:
            data = json.loads(path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return cls(Process(**data["init"]), Process(**data["unshare"]))

    def end(self) -> None:
        self.init.end()
        self.unshare.end()


class Birth:
    """A node from its `unshare` until it has reported; fabric/lab/init.py has the conversation."""

    def __init__(self, name: str, log: Path) -> None:
        self.name, self.log, self._heard = name, log, b""
        with log.open("a+b") as sink:
            self.popen = subprocess.Popen(
                [*UNSHARE, sys.executable, "-I", "-S", init.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                bufsize=0,
                start_new_session=True,  # the terminal's Ctrl-C is for the runner
            )

    def born(self) -> FirstProcess:
        """Return the node's processes; it does nothing until it gets orders, and ends if none come."""
        self._line("start")
        pid = self.popen.pid
        child = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        first, unshare = Process.find(child), Process.find(pid)
        if not first or not unshare:
            raise self._lost("start")
        return FirstProcess(first, unshare)

    def order(self, orders: init.Orders) -> None:
        self._send(json.dumps(orders), "take orders")

    def ready(self) -> None:
        """Return once the node's files are its own."""
        if (line := self._line("get its files")) != "ready":
            raise LabError(f"node {self.name}: {json.loads(line)['fault']}")

    def go(self) -> None:
        self._send("go", "start")

    def report(self, progress: Callable[[str], None]) -> init.Report:
        """Return how the start went; there is no deadline, since an `exec` may take its time."""
        report: init.Report = json.loads(self._line("run its daemons", progress, within=None))
        return report

    def close(self) -> None:
        """Give the pipes back; a node that got no (go) ends by it."""
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe:
                pipe.close()

    def _send(self, line: str, what: str) -> None:
        assert self.popen.stdin
        try:
            self.popen.stdin.write(line.encode() + b"\n")
        except BrokenPipeError as err:
            raise self._lost(what) from err

    def _line(
        self, what: str, progress: Callable[[str], None] | None = None, within: float | None = 20
    ) -> str:
        assert self.popen.stdout
        began = time.monotonic()
        while b"\n" not in self._heard:
            if select.select([self.popen.stdout], [], [], 1)[0]:
                chunk = self.popen.stdout.read(65536)
                if not chunk:
                    raise self._lost(what)
                self._heard += chunk
                continue
            elapsed = time.monotonic() - began
            if progress:
                progress(f"node {self.name}: waiting for it to {what} ({elapsed:.0f} s)")
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


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return what a node's processes see: a container's clean environment, and this Python's commands."""
    kept = {key: os.environ[key] for key in ("TERM", "LANG") if key in os.environ}
    path = f"{Path(sys.executable).parent}:{SYSTEM_PATH}"
    return {"PATH": path, "HOME": "/root", **kept, **own}


def enter(process: Process, argv: Sequence[str]) -> list[str]:
    """Return the command that runs `argv` in the node of `process`, with `argv`'s exit status.

    nsenter forks, and its own death would leave the command behind: hence the parent-death signal.
    """
    return [
        *("nsenter", "--target", str(process.pid), *NAMESPACES, "--"),
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
