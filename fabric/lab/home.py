"""Touches the directory in which a lab is remembered: enough for another process to look at it and end it.

Everything a lab has hangs on its first processes, those of its nodes and that of its backplane: killing one
ends its processes, mounts and links. Below RUN/NAME:

    lab.json             the file it came from, its digest, and whether `up` came to its end
    .disks               in the backplane alone: the nodes' disks
    NODE/process         the first process (pid and start time), written before it gets orders
    NODE/log             what its daemons and `exec` commands printed
    NODE/off, NODE/held  `lab break` has ended the node, or the daemons that are named in it
    .backplane/cut-N, silent-N, slow-N   it has broken the wire of link number N

NODE is .backplane for the backplane. A first process that was not recorded has no orders and ends with its
runner, so nothing is ever left unknown.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fabric.errors import LabError, Taken
from fabric.lab.node import FirstProcess, Process

RUN = Path("/run/fabricctl-lab")
HOST_LINKS_WITHIN = 10.0  # seconds for the kernel to remove them
BACKPLANE = ".backplane"
OFF, HELD = "off", "held"  # marks of nodes
CUT, SILENT, SLOW = "cut", "silent", "slow"  # marks of wires


@dataclass(frozen=True, slots=True)
class Record:
    """lab.json; `host_links` are the interfaces that it puts into the host's namespace."""

    file: str
    digest: str
    complete: bool
    host_links: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Home:
    """The directory of the lab called `name`."""

    name: str

    @property
    def path(self) -> Path:
        return RUN / self.name

    @property
    def disks(self) -> Path:
        return self.path / ".disks"

    def log(self, node: str) -> Path:
        return self.path / node / "log"

    def mark(self, node: str, what: str) -> Path:
        """Return the file that says of a node that it is OFF or HELD."""
        return self.path / node / what

    def wire_mark(self, index: int, what: str) -> Path:
        """Return the file that says of a link's wire that it is CUT, SILENT or SLOW."""
        return self.path / BACKPLANE / f"{what}-{index}"

    def wire_marks(self, index: int) -> list[str]:
        return [what for what in (CUT, SILENT, SLOW) if self.wire_mark(index, what).exists()]

    def marked(self) -> bool:
        """Whether anything is marked as broken."""
        marks = [f"*/{what}" for what in (OFF, HELD)] + [
            f"{BACKPLANE}/{what}-*" for what in (CUT, SILENT, SLOW)
        ]
        return any(True for pattern in marks for _ in self.path.glob(pattern))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory; it is there inside, and gone after if it was left empty.

        Raises:
            Taken: another command is at work on this lab.
        """
        fd = self._lock()
        try:
            yield
        finally:
            with suppress(OSError):
                self.path.rmdir()
                RUN.rmdir()
            os.close(fd)

    def _lock(self) -> int:
        while True:
            with suppress(FileNotFoundError, FileExistsError):
                RUN.mkdir(exist_ok=True)
                self.path.mkdir(exist_ok=True)
                fd = os.open(self.path, os.O_DIRECTORY)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as err:
                    os.close(fd)
                    raise Taken(f"lab {self.name}: another command is at work on it; wait for it") from err
                # Its last holder may have removed the directory between our open and our lock.
                if self.path.exists() and os.path.samestat(os.fstat(fd), self.path.stat()):
                    return fd
                os.close(fd)

    def record(self, record: Record) -> None:
        self._write(self.path / "lab.json", json.dumps(asdict(record)))

    def recorded(self) -> Record | None:
        """Return lab.json, or None where no `up` came far enough to write it, or another version of us did."""
        try:
            return Record(**json.loads((self.path / "lab.json").read_text()))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None

    def prepare(self, node: str) -> None:
        """Make the directory of a node; one that was there keeps its log."""
        try:
            (self.path / node).mkdir(exist_ok=True)
        except OSError as err:
            raise self._unwritable(self.path / node, err) from err

    def keep(self, node: str, process: FirstProcess) -> None:
        """Record a first process: from now on `down` finds it."""
        self._write(self.path / node / "process", json.dumps(asdict(process)))

    def _write(self, path: Path, text: str) -> None:
        try:
            path.write_text(text)
        except OSError as err:
            raise self._unwritable(path, err) from err

    def _unwritable(self, path: Path, err: OSError) -> LabError:
        return LabError(f"lab {self.name}: {path} cannot be written: {err.strerror}; make room there")

    def nodes(self) -> list[str]:
        """Return the nodes that have come to be, by name."""
        names = {path.parent.name for path in self.path.glob("*/process")}
        return sorted(names - {BACKPLANE})

    def first(self, node: str) -> FirstProcess | None:
        return FirstProcess.read(self.path / node / "process")

    def running(self, node: str) -> Process | None:
        first = self.first(node)
        return first.init if first and first.init.alive else None

    def backplane(self) -> Process:
        """Return the backplane's first process.

        Raises:
            LabError: the lab is not up, or its backplane has been killed.
        """
        if process := self.running(BACKPLANE):
            return process
        raise LabError(f"lab {self.name}: its backplane is gone; take the lab down and bring it up again")

    def end(self) -> None:
        """End every first process that is recorded, and forget everything.

        Raises:
            LabError: a process outlives its kill, or an interface in the host's namespace its lab.
        """
        record = self.recorded()
        firsts = [first for path in self.path.glob("*/process") if (first := FirstProcess.read(path))]
        for first in firsts:
            first.init.kill()  # all of them die at the same time
        for first in firsts:
            first.end()
        self._await_host_links(record.host_links if record else [])
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _await_host_links(self, names: Iterable[str]) -> None:
        # The kernel takes a namespace apart, and the far ends of its links, after the last process is gone.
        deadline = time.monotonic() + HOST_LINKS_WITHIN
        while left := [name for name in names if Path("/sys/class/net", name).exists()]:
            if time.monotonic() > deadline:
                raise LabError(
                    f"lab {self.name}: interface {left[0]} is still on the host; every process of the lab is gone;"
                    f" remove it with `ip link del {left[0]}`, and take the lab down again"
                )
            time.sleep(0.01)


def homes() -> list[Home]:
    """Return every lab of this host that anything is left of, by name."""
    return [Home(path.name) for path in sorted(RUN.glob("*")) if path.is_dir()]
