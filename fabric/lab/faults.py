"""Breaks parts of a running lab on purpose, and mends them: links, nodes, and the daemons in them.

What is broken is remembered in the lab's home, so that any later command can mend it: a file `off` or `held`
with a node, and one for each wire with the backplane. The file comes before the deed: mending what is whole
does no harm, and what is broken must not be forgotten.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fabric.errors import LabError, NotFound
from fabric.lab import wires, wiring
from fabric.lab.boot import CONTAINER
from fabric.lab.home import BACKPLANE
from fabric.lab.init import HOLD, RESUME
from fabric.lab.lab import Lab
from fabric.lab.profiles import PLAIN, Profile

CUT, SILENT, SLOW, OFF, HELD = "cut", "silent", "slow", "off", "held"
WITHIN = 20.0  # seconds for what was broken to be gone, and for what was mended to work
POLL = 0.02


# What `ps` calls those of our own that a supervisor starts again.
ETCD = "etcd"
SUPERVISED = {"agent": "-m fabric.agent", "speaker": "-m bgp.speaker"}


def cut(lab: Lab, name: str, *, silent: bool = False) -> str:
    """Cut the link `name`, END-END; `silent`: drop its frames and leave both carriers up. Say what was done.

    Raises:
        NotFound: the topology has no such link.
    """
    index = _wire(lab, name)
    if silent:
        if not _mark(lab, index, SILENT):
            return f"link {name}: is cut silently already"
        wiring.tc(lab.home.backplane(), wires.silence(index))
        return f"link {name}: every frame is dropped, both carriers are up"
    if not _mark(lab, index, CUT):
        return f"link {name}: is cut already"
    wiring.ip(lab.home.backplane(), wires.cut(index))
    return f"link {name}: cut, both ends have lost their carrier"


def impair(lab: Lab, name: str, delay: str, loss: str) -> str:
    """Delay frames of the link each way, or lose some; both are netem's own words, such as 50ms and 5%.

    Raises:
        LabError: this kernel has no netem.
        NotFound: the topology has no such link.
    """
    index = _wire(lab, name)
    netem = " ".join(filter(None, [delay and f"delay {delay}", loss and f"loss {loss}"]))
    new = _mark(lab, index, SLOW)
    try:
        wiring.tc(lab.home.backplane(), wires.impair(index, netem))
    except LabError as err:
        if new:
            _marker(lab, index, SLOW).unlink()
        if "kind is unknown" not in str(err):
            raise
        raise LabError(
            f"link {name}: {netem}: this kernel has no netem (module sch_netem); nothing was changed;"
            " cut the link instead, or run the lab on a kernel that has it"
        ) from err
    return f"link {name}: {netem}, each way"


def power_off(lab: Lab, name: str) -> str:
    """End everything in the node, and in those that share its network; its links lose their carrier."""
    lab.node(name)
    members = [name, *(n.name for n in lab.topology.nodes if n.network == f"{CONTAINER}{name}")]
    if lab.home.marker(name, OFF).exists():
        return f"node {name}: is off already"
    lab.pid(name)
    for each in members:
        lab.home.marker(each, OFF).touch()
    for each in members:
        if first := lab.home.first(each):
            first.end()
    gone = {end.far for each in members for end in wires.ends(lab.topology, each)}
    _until(
        lambda: not gone & wiring.ends_there(lab.home.backplane()), f"node {name}: its links are still there"
    )
    also = f", with {', '.join(members[1:])}, which share its network" if members[1:] else ""
    return f"node {name}: off{also}"


def kill(lab: Lab, part: str, name: str) -> str:
    """Kill -9 the daemons of a node that are `part`: its "router" or "etcd", or our "agent" or "speaker".

    Raises:
        LabError: there are none in this node.
    """
    lab.pid(name)
    if pattern := SUPERVISED.get(part):
        if lab.exec(name, ["pkill", "-KILL", "-f", "--", pattern], check=False).returncode:
            raise LabError(f"node {name}: no {part} runs there; nothing was killed")
        return f"node {name}: {part} killed; its supervisor starts it again"
    held = lab.home.marker(name, HELD)
    if held.exists():
        return f"node {name}: {held.read_text()} is down already"
    running = _running(lab, name, [ETCD] if part == ETCD else _routers(lab, name))
    if not running:
        raise LabError(f"node {name}: no {part} runs there; nothing was killed")
    held.write_text(" ".join(running))
    os.kill(lab.pid(name), HOLD)
    lab.exec(name, ["pkill", "-KILL", "-x", "|".join(running)])
    return f"node {name}: {', '.join(running)} killed"


def restore(lab: Lab, progress: Callable[[str], None]) -> list[str]:
    """Mend everything that is broken, and say what; nodes first, since links need them.

    Raises:
        LabError: something could not be mended; what was mended before it is.
    """
    home, said = lab.home, []
    off = [node.name for node in lab.topology.nodes if home.marker(node.name, OFF).exists()]
    if off:
        _end(lab, off)  # a restore that was killed may have started some
        lab.start(off, progress)
        for name in off:
            home.marker(name, OFF).unlink()
            home.marker(name, HELD).unlink(missing_ok=True)
            said.append(f"node {name}: on again")
    for index, link in enumerate(lab.topology.links):
        said += [f"link {link.a}-{link.b}: {what}" for what in _mend(lab, index)]
    for node in lab.topology.nodes:
        if (held := home.marker(node.name, HELD)).exists():
            said.append(
                f"node {node.name}: {', '.join(_resume(lab, node.name, held.read_text().split()))} started again"
            )
            held.unlink()
    return said


def _end(lab: Lab, names: Sequence[str]) -> None:
    """End what runs in these nodes and return once their links are gone too."""
    for name in names:
        if first := lab.home.first(name):
            first.end()
    gone = {end.far for name in names for end in wires.ends(lab.topology, name)}
    _until(lambda: not gone & wiring.ends_there(lab.home.backplane()), "their links are still there")


def _mend(lab: Lab, index: int) -> list[str]:
    backplane, said = lab.home.backplane(), []
    if (marker := _marker(lab, index, SLOW)).exists():
        wiring.tc(backplane, wires.impair(index, ""))
        marker.unlink()
        said.append("neither delay nor loss any more")
    if (marker := _marker(lab, index, SILENT)).exists():
        wiring.tc(backplane, wires.join(index))
        marker.unlink()
        said.append("passes frames again")
    if (marker := _marker(lab, index, CUT)).exists():
        wiring.ip(backplane, wires.mend(index))
        marker.unlink()
        said.append("whole again")
    return said


def _resume(lab: Lab, name: str, daemons: Sequence[str]) -> Sequence[str]:
    """Start the daemons of a node again and return their names once they run and are ready."""
    profile = lab.node(name).profile or Profile(PLAIN)
    if profile.start:
        lab.exec(name, ["/bin/sh", "-eu", "-c", profile.start])
    os.kill(lab.pid(name), RESUME)
    ready = ["/bin/sh", "-c", profile.ready or "true"]
    _until(
        lambda: (
            set(daemons) <= set(_running(lab, name, daemons))
            and not lab.exec(name, ready, check=False).returncode
        ),
        f"node {name}: {', '.join(daemons)} not back; see `fabricctl lab logs`: still not",
    )
    return daemons


def _routers(lab: Lab, name: str) -> Sequence[str]:
    profile = lab.node(name).profile
    return [each for each in profile.daemons if each != ETCD] if profile else []


def _running(lab: Lab, name: str, daemons: Sequence[str]) -> list[str]:
    """Return which of these daemons run in the node."""
    if not daemons:
        return []
    listed = lab.exec(name, ["pgrep", "-l", "-x", "|".join(daemons)], check=False).stdout
    return sorted({line.split()[1] for line in listed.splitlines()})


def _wire(lab: Lab, name: str) -> int:
    for index, link in enumerate(lab.topology.links):
        if wires.is_wire(link) and name in (f"{link.a}-{link.b}", f"{link.b}-{link.a}"):
            return index
    known = ", ".join(f"{link.a}-{link.b}" for link in lab.topology.links if wires.is_wire(link))
    raise NotFound(f'lab {lab.name} has no link "{name}"; it has {known or "none"}')


def _marker(lab: Lab, index: int, what: str) -> Path:
    return lab.home.marker(BACKPLANE, f"{what}-{index}")


def _mark(lab: Lab, index: int, what: str) -> bool:
    """Remember it; return False where it was remembered already."""
    marker = _marker(lab, index, what)
    if marker.exists():
        return False
    marker.touch()
    return True


def _until(condition: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + WITHIN
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{complaint} after {WITHIN:.0f} s")
        time.sleep(POLL)
