"""Brings nodes of one lab from nothing to running: each through its stages, all at once, as far as they wait.

A thread a node takes it through create, create-links, configure and healthy in turn; a stage begins when
those that it waits for have ended (fabric/lab/stages.py). What fails first ends them all, and is told.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from fabric.errors import LabError
from fabric.lab import cgroups, init, stages, wires
from fabric.lab import node as nodes
from fabric.lab.home import BACKPLANE, Home
from fabric.lab.init import Interface, Orders
from fabric.lab.node import Birth, FirstProcess, Nursery
from fabric.lab.profiles import PLAIN, Profile
from fabric.lab.topology import CONTAINER, HOST, STAGES, Node, Stage, StageCommand, Topology
from fabric.lab.wiring import Wiring

POLL = 0.1  # seconds between two looks for an ended node, where another waits for that


class _Abandoned(Exception):
    """Another node has failed, or the runner was interrupted."""


class Boot:
    """One start of the nodes called `names`; all others of the topology run already."""

    def __init__(
        self,
        home: Home,
        topology: Topology,
        names: Sequence[str],
        progress: Callable[[str], None],
    ) -> None:
        self._home, self._topology, self._told = home, topology, progress
        self._telling = threading.Lock()
        self._chosen = [node for node in topology.nodes if node.name in names]
        others = [node.name for node in topology.nodes if node.name not in names]
        self._changed = threading.Condition()
        self._done = {(name, stage) for name in others for stage in STAGES}
        self._failed: BaseException | None = None
        self._births: list[Birth] = []
        self._commands: set[subprocess.Popen[bytes]] = set()
        self._nursery = Nursery(home.backplane(), home.log(BACKPLANE))
        running = [name for name in others if home.running(name)]
        self._wiring = Wiring(home, topology, {*running, HOST})

    def start(self) -> None:
        """Start the nodes and return when all of them run.

        Raises:
            LabError: one could not be started, with what its log says. Others may run.
        """
        threads = [threading.Thread(target=self._guarded, args=(node,)) for node in self._chosen]
        try:
            for thread in threads:
                thread.start()
            with self._changed:
                self._changed.wait_for(lambda: self._failed or self._all_up())
        except BaseException as err:
            self._fail(err)
            raise
        finally:
            self._finish(threads)
        if self._failed:
            raise self._failed
        exits = {need for node in self._chosen for stage in STAGES for need in self._needs(node, stage)}
        gone = [node.name for node in self._chosen if not self._home.running(node.name)]
        if lost := [name for name in gone if (name, "exit") not in exits]:
            raise LabError("\n".join(ended(self._home, name) for name in lost))

    def _progress(self, line: str) -> None:
        with self._telling:  # or two lines are written into one another
            self._told(line)

    def _all_up(self) -> bool:
        return all((node.name, "healthy") in self._done for node in self._chosen)

    def _finish(self, threads: Iterable[threading.Thread]) -> None:
        if self._failed:
            # Whoever waits for a line or for a command is told by its end.
            with self._changed:
                for birth in self._births:
                    birth.kill()
                for command in self._commands:
                    os.killpg(command.pid, signal.SIGKILL)
        for thread in threads:
            if thread.ident:
                thread.join()
        for birth in self._births:
            birth.close()
        self._nursery.close()

    # One node, in a thread of its own

    def _guarded(self, node: Node) -> None:
        with suppress(_Abandoned):
            try:
                self._live(node)
            except Exception as err:  # noqa: BLE001  raised by the thread that waits for this one
                self._fail(err)

    def _live(self, node: Node) -> None:
        began = time.monotonic()
        with self._stage(node, "create"):
            birth, first = self._create(node)
        with self._stage(node, "create-links"):
            self._wiring.attach(node.name, first.init.pid)
            birth.link()
        with self._stage(node, "configure"):
            birth.go()
            report = birth.report(self._progress)
            if report["fault"]:
                raise LabError(f"node {node.name}: {report['fault']}{nodes.tail(birth.log, report['at'])}")
        with self._stage(node, "healthy"):
            taken = time.monotonic() - began
        up = sum((each.name, "healthy") in self._done for each in self._topology.nodes)
        self._progress(f"[{up}/{len(self._topology.nodes)}] node {node.name}: up after {taken:.1f} s")

    @contextmanager
    def _stage(self, node: Node, stage: str) -> Iterator[None]:
        plan = node.stages.get(stage, Stage())
        self._await(node, stage)
        self._run(node, stage, plan.on_enter)
        yield
        self._run(node, stage, plan.on_exit)
        with self._changed:
            self._done.add((node.name, stage))
            self._changed.notify_all()

    def _needs(self, node: Node, stage: str) -> set[tuple[str, str]]:
        return set(stages.needs(self._topology, node.name, stage))

    def _await(self, node: Node, stage: str) -> None:
        """Return once what the stage waits for has ended; say now and then what that is."""
        needs = self._needs(node, stage)
        exits = {name for name, stage in needs if stage == "exit"}
        began, due = time.monotonic(), 1.0  # seconds until the next word of it
        with self._changed:
            while not self._failed:
                for name in exits:
                    # Before it has run its end is still to come.
                    if (name, "create") in self._done and not self._home.running(name):
                        self._done.add((name, "exit"))
                if needs <= self._done:
                    return
                self._changed.wait(POLL if exits else 1.0)
                if (elapsed := time.monotonic() - began) >= due:
                    due *= 2
                    missing = ", ".join(f"{name} ({stage})" for name, stage in sorted(needs - self._done))
                    self._progress(
                        f"node {node.name}: waiting for {missing} before {stage} ({elapsed:.0f} s)"
                    )
            raise _Abandoned

    def _fail(self, err: BaseException) -> None:
        with self._changed:
            self._failed = self._failed or err
            self._changed.notify_all()

    def _create(self, node: Node) -> tuple[Birth, FirstProcess]:
        self._home.prepare(node.name)
        network, join = init.OWN_NET, None
        if node.network == "host":
            network = init.SHARED
        elif node.network.startswith(CONTAINER):
            name = node.network.removeprefix(CONTAINER)
            network, join = init.JOIN, self._home.running(name)
            if not join:
                raise LabError(f"node {node.name}: node {name}, whose network it shares, does not run")
        with self._changed:
            if self._failed:
                raise _Abandoned
            birth = self._nursery.bear(node.name, self._home.log(node.name), network, join)
            self._births.append(birth)
        first = birth.born()
        self._home.keep(node.name, first)
        for warning in cgroups.confine(self._topology.name, node, (first.parent.pid, first.init.pid)):
            self._progress(f"node {node.name}: {warning}")
        birth.order(orders(self._home, self._topology, node))
        return birth, first

    def _run(self, node: Node, stage: str, commands: Sequence[StageCommand]) -> None:
        for command in commands:
            what = f"node {node.name}: stage {stage}: {' '.join(command.argv)!r}"
            # On the host as well: it ends with the runner, unless it has gone into the background.
            argv = ["setpriv", "--pdeathsig", "KILL", "--", *command.argv]
            if not command.on_host:
                process = self._home.running(node.name)
                if not process:
                    raise LabError(f"{what}: the node does not run then")
                argv = nodes.enter(process, command.argv, node.user)
            log = self._home.log(node.name)
            with log.open("ab") as sink:
                at = sink.tell()
                with self._changed:
                    if self._failed:
                        raise _Abandoned
                    started = subprocess.Popen(
                        argv,
                        env=None if command.on_host else nodes.environment(node.env),
                        stdin=subprocess.DEVNULL,
                        stdout=sink,
                        stderr=sink,
                        start_new_session=True,
                    )
                    self._commands.add(started)
            status = started.wait()
            with self._changed:
                self._commands.discard(started)
            if status:
                raise LabError(f"{what}: exit status {status}{nodes.tail(log, at)}")


def ended(home: Home, name: str) -> str:
    """Return what to say of a node that has ended by itself."""
    return f"node {name}: its foreground process ended{nodes.tail(home.log(name))}"


def orders(home: Home, topology: Topology, node: Node) -> Orders:
    """Return what a node's first process is to do."""
    profile = node.profile or Profile(PLAIN)
    gateways = {interface.version: interface for interface in topology.mgmt.gateways}
    interfaces = [
        Interface(
            name=end.interface,
            addresses=[str(address) for address in end.addresses],
            gateways=[str(gateways[a.version].ip) for a in end.addresses]
            if end.interface == wires.ETH0 and end.bridged
            else [],
        )
        for end in wires.ends(topology, node.name)
    ]
    return Orders(
        name=node.name,
        disk=str(home.disks / node.name),
        binds=[(str(bind.source), str(bind.target), bind.read_only) for bind in node.binds],
        scratch=list(profile.scratch),
        files=node.files,
        hosts=hosts(topology, node),
        sysctls=dict(node.sysctls),
        interfaces=interfaces,
        env=nodes.environment(node.env),
        user=node.user,
        delay=node.startup_delay,
        start=profile.start,
        main=list(node.command),
        ready=profile.ready,
        exec=[list(each) for each in node.exec],
        restart=node.restart,
    )


def hosts(topology: Topology, node: Node) -> list[str]:
    """Return the lines of /etc/hosts by which nodes on the management network know each other."""
    if node.network != "mgmt":
        return []
    return [
        f"{address.ip} {topology.container(each.name)} {each.name}"
        for each in topology.nodes
        if each.name != node.name
        for address in each.addresses
    ]
