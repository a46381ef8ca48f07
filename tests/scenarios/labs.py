"""What scenario tests of labs share: a lab of the test's own, and what to look for when it is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fabric.lab.home import RUN
from fabric.lab.node import Process

# A user without rights, as a command's beginning.
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--")
CLI = [str(Path(sys.executable).parent / "fabricctl"), "lab"]


def until(condition: Callable[[], object], within: float = 20.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"still not after {within:.0f} s"
        time.sleep(0.02)


def namespace(pid: int) -> str:
    """Return the pid namespace a process runs in, or nothing if it is gone or not ours to look at."""
    with suppress(OSError):
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    return ""


def recorded(name: str) -> list[Process]:
    records = [json.loads(path.read_text()) for path in (RUN / name).glob("*/process")]
    return [Process(**record[key]) for record in records for key in ("init", "parent")]


class Trace:
    """What a running lab consists of, taken while it runs, to look for afterwards."""

    def __init__(self, name: str) -> None:
        self.name, self.processes = name, recorded(name)
        self.namespaces = {namespace(each.pid) for each in self.processes} - {namespace(os.getpid()), ""}
        assert self.namespaces
        # Namespaces' numbers are used again: one that a later lab has is not ours.
        self.taken = float(Path("/proc/uptime").read_text().split()[0]) * os.sysconf("SC_CLK_TCK")

    def assert_nothing_left(self) -> None:
        pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
        inside = [Process.find(pid) for pid in pids if namespace(pid) in self.namespaces]
        left = [process for process in inside if process and process.started <= self.taken]
        assert left == [], left
        assert [process for process in self.processes if process.alive] == []
        assert not (RUN / self.name).exists()
        assert self.name not in Path("/proc/self/mountinfo").read_text()


@contextmanager
def cli(*argv: str) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen([*CLI, *argv], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def ran(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run `fabricctl lab ARGV` to its end."""
    return subprocess.run([*CLI, *argv], capture_output=True, text=True, timeout=60, check=False)
