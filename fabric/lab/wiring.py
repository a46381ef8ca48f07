"""Touches the kernel's links of a lab, in its backplane's namespace: runs what `wires` decides."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from fabric.errors import LabError, Taken
from fabric.lab import wires
from fabric.lab.home import Home
from fabric.lab.node import Process
from fabric.lab.topology import HOST, Topology


def ip(backplane: Process, lines: Sequence[str]) -> None:
    """Run ip's `lines` in the backplane's namespace, all or up to the first that fails."""
    batch(backplane, ["ip", "-batch", "-"], lines)


def tc(backplane: Process, lines: Sequence[str]) -> None:
    """Run tc's `lines` likewise."""
    batch(backplane, ["tc", "-batch", "-"], lines)


def batch(backplane: Process, program: list[str], lines: Sequence[str]) -> None:
    """Raise LabError with what `program` said about the first line that failed."""
    if not lines:
        return
    done = subprocess.run(
        [*_within(backplane), *program],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said, _, at = done.stderr.strip().replace("Error: ", "").partition("\nCommand failed -:")
        line = lines[int(at) - 1] if at.isdecimal() else lines[0]
        raise LabError(f"backplane: {program[0]} {line}: {said.strip()}")


def ends_there(backplane: Process) -> set[str]:
    """Return the names of the interfaces in the backplane's namespace."""
    done = subprocess.run(
        [*_within(backplane), "ip", "-br", "link"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise LabError(f"backplane: its links cannot be read: {done.stderr.strip()}; is it still there?")
    return {line.split()[0].partition("@")[0] for line in done.stdout.splitlines()}


def _within(backplane: Process) -> list[str]:
    """Return what a command begins with that is to run in the backplane's network."""
    return ["nsenter", f"--net=/proc/{backplane.pid}/ns/net", "--"]


class Wiring:
    """Makes the links of nodes as they come to be: those that wait at the same time share one batch."""

    def __init__(self, home: Home, topology: Topology, present: Iterable[str]) -> None:
        self._home, self._topology = home, topology
        self._present = set(present)  # nodes whose interfaces are there
        self._waiting: dict[str, int] = {}
        self._queue, self._turn = threading.Lock(), threading.Lock()

    def attach(self, node: str, pid: int) -> None:
        """Return once `node`, whose network namespace is that of `pid`, has its interfaces, all of them down.

        A wire is joined when its second end comes to be.
        """
        with self._queue:
            self._waiting[node] = pid
        with self._turn:
            with self._queue:
                taken, self._waiting = self._waiting, {}
            if taken:
                self._attach(taken)

    def _attach(self, taken: dict[str, int]) -> None:
        ends = {name: wires.ends(self._topology, name) for name in taken}
        backplane = self._home.backplane()
        ip(
            backplane,
            [line for name, pid in taken.items() for end in ends[name] for line in wires.attach(end, pid)],
        )
        self._present |= set(taken)
        joins: list[str] = []
        for i, link in enumerate(self._topology.links):
            pair = {link.a.node, link.b.node}
            if wires.is_wire(link) and pair <= self._present and pair & set(taken):
                joins += wires.join(i)
        tc(backplane, joins)


def check_free(topology: Topology) -> list[str]:
    """Return the interfaces that the topology puts into the host's namespace.

    Raises:
        Taken: the host has one of such a name.
    """
    names = [end.interface for end in wires.ends(topology, HOST)]
    for name in names:
        if Path("/sys/class/net", name).exists():
            raise Taken(
                f"lab {topology.name}: the host has an interface {name} already;"
                " name another one in the link, or remove it"
            )
    return names


def lay(home: Home, topology: Topology) -> None:
    """Make what is there before any node: the management network's bridge, and the host's ends of links."""
    backplane = home.backplane()
    if wires.managed(topology):
        ip(backplane, wires.bridge(topology))
    ends = wires.ends(topology, HOST)
    ip(backplane, [line for end in ends for line in wires.attach(end, os.getpid())])
    for end in ends:
        up = ["ip", "link", "set", "dev", end.interface, "up"]
        done = subprocess.run(up, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"host: {' '.join(up)}: {done.stderr.strip()}")
