"""Run a containerlab topology in namespaces: bring it up, enter it, look at it, take it down."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from fabric.errors import ConfigError, LabError, NotFound, Taken
from fabric.lab import cgroups, publish, wires, wiring
from fabric.lab import node as nodes
from fabric.lab import topology as topologies
from fabric.lab.boot import Boot
from fabric.lab.home import BACKPLANE, HELD, OFF, Home, Record, homes
from fabric.lab.node import Birth, NodeProcess, Process
from fabric.lab.profiles import PLAIN
from fabric.lab.topology import Node, Port, Topology


def _quiet(_: str) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node as it is now; `pid` is its first process's, None when the node is not running.

    `state` is "running", "stopped" (it never was, or ended by itself), "broken" (by `lab break`: the node,
    or its daemons). `addresses` are those on the management network.
    """

    name: str
    container: str
    image: str
    profile: str
    state: str
    pid: int | None
    addresses: tuple[str, ...]
    labels: dict[str, str]
    links: tuple[str, ...]  # "eth1 tor:eth4", as the topology has them, and (cut) if it is broken


class Lab:
    """One lab; every method may be called by another process than the one that called `up`.

    As a context manager it is up inside and gone after.
    """

    def __init__(self, file: Path, topology: Topology, *, renamed: bool = False) -> None:
        self.file, self.topology, self.home, self._renamed = file, topology, Home(topology.name), renamed
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
            topology = replace(topology, name=name)
        return cls(file.resolve(), topology, renamed=bool(name))

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
        with self.locked():
            if self._stands():
                return False
            self._destroy()
            with ExitStack() as undo:
                undo.callback(self._destroy)
                try:
                    self._build(progress)
                except (LabError, Taken) as err:
                    raise type(err)(
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
        need_root()
        if not self.home.path.exists():
            self._reap()  # another process took it down
            return False
        with self.locked():
            self._destroy()
        return True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other command that changes this lab away."""
        need_root()
        with self.home.locked():
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """Like `locked`, of a lab that is up as the file has it: what is numbered by the file is what runs.

        Raises:
            NotFound: it is not up.
            LabError: `up` has not come to its end, or the file has changed since.
        """
        with self.locked():
            record = self.home.recorded()
            if not record:
                raise NotFound(f"lab {self.name} is not up; nothing was changed; bring it up first")
            if not record.complete:
                raise LabError(
                    f"lab {self.name}: its `up` was killed half-way; take it down and bring it up again"
                )
            self._check_same(record)
            self.home.backplane()
            yield

    def pid(self, node: str) -> int:
        """Return the host's pid of the node's first process."""
        return self._process(node).pid

    def command(self, node: str, argv: Sequence[str]) -> list[str]:
        """Return the host's command that runs `argv` in the node; give it `environment(node)`."""
        it = self.node(node)
        return [*cgroups.joining(self.name, it), *nodes.enter(self._process(node), argv, it.user)]

    def environment(self, node: str) -> dict[str, str]:
        """Return what a command in the node sees."""
        return nodes.environment(self.node(node).env)

    def popen(self, node: str, argv: Sequence[str], **options: Any) -> NodeProcess:
        """Start `argv` in the node; `options` are subprocess.Popen's. Text, not bytes."""
        return NodeProcess(
            self.command(node, argv),
            env=self.environment(node),
            text=True,
            errors="replace",
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

    @property
    def stale(self) -> bool:
        """Whether the file has changed since the lab came up."""
        record = self.home.recorded()
        return record is not None and record.digest != self._digest()

    @property
    def damaged(self) -> bool:
        """Whether nodes run and their backplane does not."""
        return bool(self.home.nodes()) and not self.home.running(BACKPLANE)

    def log(self, node: str) -> Path:
        """Return where the host finds what the node's daemons and `exec` commands printed."""
        self.node(node)
        return self.home.log(node)

    def save(self) -> list[Path]:
        """Write the configuration that each running router has to clab-NAME/NODE/ beside the topology's file.

        Returns:
            The files written. A node whose image has no configuration to save is left out.

        Raises:
            NotFound: no node runs.
        """
        if not any(self.home.running(node.name) for node in self.topology.nodes):
            raise NotFound(f"lab {self.name} is not up; nothing was saved; bring it up first")
        saved = []
        for node in self.topology.nodes:
            profile = node.profile
            if not profile or not profile.save or not self.home.running(node.name):
                continue
            text = self.exec(node.name, profile.save.command).stdout
            path = self.file.parent / f"clab-{self.name}" / node.name / profile.save.file
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            except OSError as err:
                raise LabError(f"node {node.name}: {path} cannot be written: {err.strerror}") from err
            saved.append(path)
        return saved

    def start(self, names: Sequence[str], progress: Callable[[str], None] = _quiet) -> None:
        """Start nodes that do not run, of a lab that does; the caller holds the lock.

        Raises:
            LabError: one failed; it is not running then.
        """
        Boot(self.home, self.topology, names, progress).start()

    # Building and ending

    def _stands(self) -> bool:
        record = self.home.recorded()
        if not record or not record.complete:
            return False
        self._check_same(record)
        self.home.backplane()
        states = self.inspect()
        broken = [state.name for state in states if state.state == "broken"]
        broken += [
            f"{link.a}-{link.b}" for i, link in enumerate(self.topology.links) if self.home.wire_marks(i)
        ]
        if broken:
            raise LabError(
                f"lab {self.name}: {', '.join(broken)} broken by `lab break`; `lab restore` it first"
            )
        if gone := [state.name for state in states if state.state == "stopped"]:
            raise LabError(f"lab {self.name}: {', '.join(gone)} ended since it came up; take it down first")
        return True

    def _check_same(self, record: Record) -> None:
        if record.digest != self._digest():
            raise LabError(
                f"lab {self.name} runs another version of {record.file} than {self.file} is now;"
                " it was left alone; take it down first"
            )

    def _build(self, progress: Callable[[str], None]) -> None:
        file = f"{self.file} as {self.name}" if self._renamed else str(self.file)
        record = Record(file, self._digest(), complete=False, host_links=wiring.check_free(self.topology))
        self.home.record(record)
        for node in self.topology.nodes:
            if not node.profile:
                progress(f"node {node.name}: no profile for {node.image}; it runs as plain Linux")
        with ExitStack() as owned:
            backplane = self._lay_backplane(owned)
            self.start([node.name for node in self.topology.nodes], progress)
            backplane.go()
        self.home.record(replace(record, complete=True))

    def _lay_backplane(self, owned: ExitStack) -> Birth:
        """Start what lies between the nodes; it has no wires yet."""
        listening = [
            (owned.enter_context(_listen(self.name, node.name, port)), node, port)
            for node in self.topology.nodes
            for port in node.ports
        ]
        self.home.prepare(BACKPLANE)
        self.home.prepare(self.home.disks.name)
        birth, popen = nodes.bear_backplane(
            self.home.log(BACKPLANE), [each.fileno() for each, _, _ in listening]
        )
        owned.callback(birth.close)
        self._unreaped.append(popen)
        self.home.keep(BACKPLANE, birth.born())
        published = [
            publish.Published(
                fd=each.fileno(), protocol=port.protocol, address=str(node.addresses[0].ip), port=port.port
            )
            for each, node, port in listening
        ]
        program = [sys.executable, "-I", "-S", str(publish.__file__), json.dumps(published)]
        birth.order(
            {
                "disks": str(self.home.disks),
                "wires": [wires.wire(i) for i, link in enumerate(self.topology.links) if wires.is_wire(link)],
                "publish": program if published else [],
            }
        )
        wiring.lay(self.home, self.topology)
        return birth

    def _digest(self) -> str:
        return hashlib.sha256(repr(self.topology).encode()).hexdigest()

    def _destroy(self) -> None:
        # An impatient second Ctrl-C would leave half of it behind: it waits until all is gone.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self.home.end()
            self._reap()
            cgroups.remove(self.name)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _reap(self) -> None:
        for popen in self._unreaped:
            popen.wait(10)
        self._unreaped.clear()

    # Nodes

    def node(self, name: str) -> Node:
        """Return the node called `name`.

        Raises:
            NotFound: the topology has none.
        """
        for node in self.topology.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.topology.nodes)
        raise NotFound(f'lab {self.name} has no node "{name}"; it has {known}')

    def _process(self, name: str) -> Process:
        self.node(name)
        if process := self.home.running(name):
            return process
        cure = "`lab restore` it" if self.home.mark(name, OFF).exists() else "bring the lab up"
        raise NotFound(f"lab {self.name}: node {name} is not running; {cure}")

    def _state(self, node: Node) -> NodeState:
        process = self.home.running(node.name)
        broken = any(self.home.mark(node.name, what).exists() for what in (OFF, HELD))
        links = tuple(
            " ".join([near.interface, str(far), *(f"({what})" for what in self.home.wire_marks(i))])
            for i, link in enumerate(self.topology.links)
            for near, far in ((link.a, link.b), (link.b, link.a))
            if near.node == node.name
        )
        return NodeState(
            name=node.name,
            container=self.topology.container(node.name),
            image=node.image,
            profile=node.profile.name if node.profile else PLAIN,
            state="broken" if broken else "running" if process else "stopped",
            pid=process.pid if process else None,
            addresses=tuple(str(address.ip) for address in node.addresses),
            labels=dict(node.labels),
            links=links,
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """A lab that something is left of.

    `state` is "up", "broken" where `lab break` has broken something, "half-way" where an `up` has not ended well,
    or "damaged" where its backplane is gone, and so all its links.
    """

    name: str
    state: str
    running: int
    nodes: int
    file: str


def standing() -> list[Standing]:
    """Return the labs of this host, by name."""
    found = []
    for home in homes():
        record = home.recorded()
        names = home.nodes()
        state = "broken" if home.marked() else "up"
        if not record or not record.complete:
            state = "half-way"
        elif not home.running(BACKPLANE):
            state = "damaged"
        found.append(
            Standing(
                name=home.name,
                state=state,
                running=sum(home.running(name) is not None for name in names),
                nodes=len(names),
                file=record.file if record else "",
            )
        )
    return found


def down(file: Path) -> list[str]:
    """Take down what stands of the lab in `file`, under whatever name it came up; return the names.

    Raises:
        ConfigError: the file cannot be read, and nothing stands that came from it.
    """
    need_root()
    path = str(file.resolve())
    labs = [Lab(file, Topology(each.name, ())) for each in standing() if each.file == path]
    try:
        lab = Lab.load(file)
    except ConfigError:
        if not labs:
            raise
    else:
        labs = [lab, *(each for each in labs if each.name != lab.name)]
    return [each.name for each in labs if each.down()]


def _listen(lab: str, node: str, port: Port) -> socket.socket:
    """Return a socket at the host's side of a published port; its descriptor may be inherited."""
    address = str(port.host_ip or "::")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
    listener = None
    try:
        listener = socket.socket(family, kind)
        if port.protocol == "tcp":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port.host_port))
        if port.protocol == "tcp":
            listener.listen()
    except OSError as err:
        if listener:
            listener.close()
        raise Taken(
            f"lab {lab}: node {node}: port {port.host_port}/{port.protocol} of the host: {err.strerror};"
            " publish another one"
        ) from err
    return listener


def need_root() -> None:
    if os.geteuid():
        raise LabError("labs make namespaces, which takes root; nothing was changed; run it with sudo")
