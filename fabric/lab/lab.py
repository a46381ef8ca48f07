"""Run a containerlab topology in namespaces: bring it up, enter it, look at it, take it down.

Everything a lab has hangs on the first processes of its nodes: killing one ends its processes, mounts
and links. What the runner must remember is below RUN/NAME, and enough for `down` by another process:

    lab.json        the file it came from, its digest, and whether `up` came to its end
    NODE/process    the node's first process (pid and start time), written before it gets orders
    NODE/log        what its daemons and `exec` commands printed

A node that was not recorded has no orders and ends with its runner, so nothing is ever left unknown.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from fabric.errors import LabError, NotFound, Taken
from fabric.lab import node as nodes
from fabric.lab import topology as topologies
from fabric.lab.init import Orders
from fabric.lab.node import Birth, FirstProcess, NodeProcess, Process
from fabric.lab.profiles import PLAIN, Profile, profile_of
from fabric.lab.topology import Node, Topology

RUN = Path("/run/fabricctl-lab")


def _quiet(_: str) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node as it is now; `pid` is its first process's, None when the node is not running."""

    name: str
    image: str
    profile: str
    pid: int | None
    links: tuple[str, ...]  # "eth1 tor:eth4", as the topology has them


class Lab:
    """One lab; every method may be called by another process than the one that called `up`.

    As a context manager it is up inside and gone after.
    """

    def __init__(self, file: Path, topology: Topology) -> None:
        self.file, self.topology = file, topology
        self._unreaped: list[subprocess.Popen[bytes]] = []

    @classmethod
    def load(cls, path: Path | str, *, name: str | None = None) -> Lab:
        """Return the lab in a topology file; `name` replaces the file's, so that two copies may run.

        Raises:
            ConfigError: the file is not one, or asks for what namespace labs do not do.
        """
        file = Path(path)
        topology = topologies.load(file)
        if name:
            topology = Topology(name, topology.nodes, topology.links)
        return cls(file.resolve(), topology)

    @property
    def name(self) -> str:
        return self.topology.name

    def __enter__(self) -> Lab:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def up(self, progress: Callable[[str], None] = _quiet) -> bool:
        """Bring the lab up; return False if it is up already, as the file has it.

        What an `up` that was killed left behind is taken down first. If this one fails or is
        interrupted, what it made is taken down.

        Raises:
            LabError: a node, link, daemon or command failed, or the running lab differs from the file.
            Taken: another command is at work on this lab.
        """
        _need_root()
        with self._locked():
            if self._stands():
                return False
            self._destroy()
            with ExitStack() as undo:
                undo.callback(self._destroy)
                try:
                    self._build(progress)
                except LabError as err:
                    raise LabError(
                        f"{err}\nlab {self.name} was taken down; mend the cause and bring it up again"
                    ) from err
                undo.pop_all()
        return True

    def down(self) -> bool:
        """Take the lab down, whatever state it is in; return False if nothing of it was there.

        Raises:
            LabError: a process outlived its kill.
            Taken: another command is at work on this lab.
        """
        _need_root()
        if not self._home.exists():
            return False
        with self._locked():
            self._destroy()
        return True

    def pid(self, node: str) -> int:
        """Return the host's pid of the node's first process."""
        return self._process(node).pid

    def command(self, node: str, argv: Sequence[str]) -> list[str]:
        """Return the host's command that runs `argv` in the node; give it `environment(node)`."""
        return nodes.enter(self._process(node), argv)

    def environment(self, node: str) -> dict[str, str]:
        """Return what a command in the node sees."""
        return nodes.environment(self._node(node).env)

    def popen(self, node: str, argv: Sequence[str], **options: Any) -> NodeProcess:
        """Start `argv` in the node; `options` are subprocess.Popen's. Text, not bytes."""
        return NodeProcess(
            self.command(node, argv),
            env=self.environment(node),
            text=True,
            start_new_session=True,
            **options,
        )

    def exec(
        self,
        node: str,
        argv: Sequence[str],
        *,
        input: str | None = None,  # noqa: A002
        check: bool = True,
        timeout: float | None = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` in the node and return its result, output included; `timeout` is in seconds.

        Raises:
            LabError: `check` and the exit status was not 0, or `timeout` passed; it is then killed.
            NotFound: the node is not in the file, or not running.
        """
        where = f"node {node}: {' '.join(argv)}"
        pipe = subprocess.PIPE
        stdin = pipe if input is not None else subprocess.DEVNULL
        with self.popen(node, argv, stdin=stdin, stdout=pipe, stderr=pipe) as process:
            try:
                out, err = process.communicate(input, timeout)
            except subprocess.TimeoutExpired as slow:
                raise LabError(f"{where}: no end within {timeout} s; it was killed") from slow
            finally:
                process.kill()
        if check and process.returncode:
            raise LabError(f"{where}: exit status {process.returncode}: {(err or out).strip()}")
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def inspect(self) -> list[NodeState]:
        """Return the state of every node, in the order of the file."""
        return [self._state(node) for node in self.topology.nodes]

    def log(self, node: str) -> Path:
        """Return where the host finds what the node's daemons and `exec` commands printed."""
        return self._home / node / "log"

    # State on disk

    @property
    def _home(self) -> Path:
        return RUN / self.name

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lab's directory; it is there inside, and gone after if it was left empty."""
        fd = self._lock()
        try:
            yield
        finally:
            with suppress(OSError):
                self._home.rmdir()
                RUN.rmdir()
            os.close(fd)

    def _lock(self) -> int:
        while True:
            with suppress(FileNotFoundError, FileExistsError):
                RUN.mkdir(exist_ok=True)
                self._home.mkdir(exist_ok=True)
                fd = os.open(self._home, os.O_DIRECTORY)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as err:
                    os.close(fd)
                    raise Taken(f"lab {self.name}: another command is at work on it; wait for it") from err
                # Its last holder may have removed the directory between our open and our lock.
                if self._home.exists() and self._is_home(fd):
                    return fd
                os.close(fd)

    def _is_home(self, fd: int) -> bool:
        return os.path.samestat(os.fstat(fd), self._home.stat())

    def _record(self, *, complete: bool) -> None:
        record = {"file": str(self.file), "digest": self._digest(), "complete": complete}
        (self._home / "lab.json").write_text(json.dumps(record))

    def _digest(self) -> str:
        return hashlib.sha256(repr(self.topology).encode()).hexdigest()

    def _stands(self) -> bool:
        try:
            record = json.loads((self._home / "lab.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        if not record["complete"]:
            return False
        gone = [node.name for node in self.topology.nodes if not self._running(node.name)]
        if record["digest"] != self._digest():
            raise LabError(
                f"lab {self.name} runs another version of {record['file']} than {self.file} is now;"
                " it was left alone; take it down first"
            )
        if gone:
            raise LabError(f"lab {self.name}: {', '.join(gone)} ended since it came up; take it down first")
        return True

    # Building and ending

    def _build(self, progress: Callable[[str], None]) -> None:
        self._record(complete=False)
        with ExitStack() as pipes:
            births = [self._spawn(node, pipes) for node in self.topology.nodes]
            # A node writes to its pipe once and waits: taking them in turn lets all work at once.
            for birth, node in zip(births, self.topology.nodes, strict=True):
                birth.born().write(self._home / node.name / "process")
                birth.order(self._orders(node, progress))
            for birth in births:
                birth.ready()
            self._link()
            for birth in births:
                birth.go()
            for birth in births:
                self._judge(birth, progress)
        if gone := [node.name for node in self.topology.nodes if not self._running(node.name)]:
            raise LabError("\n".join(self._ended(name) for name in gone))
        self._record(complete=True)

    def _spawn(self, node: Node, pipes: ExitStack) -> Birth:
        (self._home / node.name).mkdir()
        birth = Birth(node.name, self.log(node.name))
        pipes.callback(birth.close)
        self._unreaped.append(birth.popen)
        return birth

    def _judge(self, birth: Birth, progress: Callable[[str], None]) -> None:
        report = birth.report(progress)
        if report["fault"]:
            shown = nodes.tail(birth.log, report["at"])
            raise LabError(f"node {birth.name}: {report['fault']}{shown}")

    def _ended(self, name: str) -> str:
        return f"node {name}: its foreground process ended{nodes.tail(self.log(name))}"

    def _orders(self, node: Node, progress: Callable[[str], None]) -> Orders:
        profile = profile_of(node.image)
        if not profile:
            progress(f"node {node.name}: no profile for {node.image}; it runs as plain Linux")
            profile = Profile(PLAIN)
        return Orders(
            name=node.name,
            binds=[(str(bind.source), str(bind.target), bind.read_only) for bind in node.binds],
            scratch=list(profile.scratch),
            interfaces=[
                end.interface
                for link in self.topology.links
                for end in (link.a, link.b)
                if end.node == node.name
            ],
            env=nodes.environment(node.env),
            delay=node.startup_delay,
            start=profile.start,
            main=list(node.cmd or profile.main),
            ready=profile.ready,
            exec=[list(command) for command in node.exec],
        )

    def _link(self) -> None:
        if not self.topology.links:
            return
        batch = "".join(
            f"link add {link.a.interface} mtu {link.mtu} netns {self.pid(link.a.node)} type veth"
            f" peer name {link.b.interface} mtu {link.mtu} netns {self.pid(link.b.node)}\n"
            for link in self.topology.links
        )
        done = subprocess.run(["ip", "-batch", "-"], input=batch, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"lab {self.name}: links: {done.stderr.strip()}")

    def _destroy(self) -> None:
        # An impatient second Ctrl-C would leave half of it behind: it waits until all is gone.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._end_everything()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _end_everything(self) -> None:
        for record in self._home.glob("*/process"):
            if first := FirstProcess.read(record):
                first.end()
        for popen in self._unreaped:
            popen.wait(10)
        self._unreaped.clear()
        for path in self._home.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    # Nodes

    def _node(self, name: str) -> Node:
        for node in self.topology.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.topology.nodes)
        raise NotFound(f'lab {self.name} has no node "{name}"; it has {known}')

    def _running(self, name: str) -> Process | None:
        first = FirstProcess.read(self._home / name / "process")
        return first.init if first and first.init.alive else None

    def _process(self, name: str) -> Process:
        self._node(name)
        if process := self._running(name):
            return process
        raise NotFound(f"lab {self.name}: node {name} is not running; bring the lab up")

    def _state(self, node: Node) -> NodeState:
        process, profile = self._running(node.name), profile_of(node.image)
        links = tuple(
            f"{near.interface} {far}"
            for link in self.topology.links
            for near, far in ((link.a, link.b), (link.b, link.a))
            if near.node == node.name
        )
        return NodeState(
            node.name,
            node.image,
            profile.name if profile else PLAIN,
            process.pid if process else None,
            links,
        )


def _need_root() -> None:
    if os.geteuid():
        raise LabError("labs make namespaces, which takes root; nothing was changed; run it with sudo")
