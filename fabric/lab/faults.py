"""Breaks parts of a running lab on purpose, and mends them: links, nodes, and the daemons in them.

What is broken is remembered in the lab's home, so that any later command can mend it. The mark comes before
the deed and goes after the mending, and each of both may be done again: whatever was killed half-way is put
right by the next `break` or `restore`. The caller holds the lab (`Lab.held`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import suppress

from fabric.errors import LabError, NotFound
from fabric.lab import wires, wiring
from fabric.lab.home import CUT, HELD, OFF, SILENT, SLOW
from fabric.lab.init import HOLD, RESUME
from fabric.lab.lab import Lab
from fabric.lab.profiles import PLAIN, Profile
from fabric.lab.topology import CONTAINER

WITHIN = 20.0  # seconds for what was broken to be gone, and for what was mended to work
POLL = 0.02
ETCD = "etcd"
# What `ps` calls those of our own that a supervisor starts again.
SUPERVISED = {"agent": "-m fabric.agent", "speaker": "-m bgp.speaker"}


def cut(lab: Lab, name: str, *, silent: bool = False) -> str:
    """Cut the link `name`, END-END; `silent`: drop its frames and leave both carriers up. Say what was done.

    Raises:
        LabError: a node at one of its ends is not running.
        NotFound: the topology has no such link.
    """
    index = _wire(lab, name)
    mark = lab.home.wire_mark(index, SILENT if silent else CUT)
    again = mark.exists()
    mark.touch()
    if silent:
        wiring.tc(lab.home.backplane(), wires.silence(index))
        carriers = "" if lab.home.wire_mark(index, CUT).exists() else ", both carriers are up"
        done = f"every frame is dropped{carriers}"
    else:
        wiring.ip(lab.home.backplane(), wires.cut(index))
        done = "cut, both ends have lost their carrier"
    return f"link {name}: {done}{' (it was before)' if again else ''}"


def impair(lab: Lab, name: str, delay: str, loss: str) -> str:
    """Delay frames of the link each way, or lose some; both are netem's own words, such as 50ms and 5%.

    Raises:
        LabError: this kernel has no netem, or a node at one of its ends is not running.
        NotFound: the topology has no such link.
    """
    index = _wire(lab, name)
    netem = " ".join(filter(None, [delay and f"delay {delay}", loss and f"loss {loss}"]))
    mark = lab.home.wire_mark(index, SLOW)
    mark.touch()
    try:
        wiring.tc(lab.home.backplane(), wires.impair(index, netem))
    except LabError as err:
        wiring.tc(lab.home.backplane(), wires.impair(index, ""))
        mark.unlink()
        raise LabError(
            f"link {name}: {netem}: this kernel refuses netem (module sch_netem): {err}; the link is as it was"
            " without; cut it instead, or run the lab on a kernel that has it"
        ) from err
    return f"link {name}: {netem}, each way"


def power_off(lab: Lab, name: str) -> str:
    """End everything in the node, and in those that share its network; its links lose their carrier.

    Raises:
        NotFound: there is no such node, or it is not running.
    """
    mark = lab.home.mark(name, OFF)
    members = [name, *_sharers(lab, name)]
    running = [each for each in members if lab.home.running(each)]
    if mark.exists() and not running:
        return f"node {name}: is off already"
    lab.pid(name)
    for each in members:
        lab.home.mark(each, OFF).touch()
    _end(lab, members)
    also = f", with {', '.join(members[1:])}, which share its network" if members[1:] else ""
    return f"node {name}: off{also}"


def kill(lab: Lab, part: str, name: str) -> str:
    """Kill -9 the daemons of a node that are `part`: its "router" or "etcd", or our "agent" or "speaker".

    Raises:
        LabError: there are none in this node, or none that could be started again.
    """
    lab.pid(name)
    if pattern := SUPERVISED.get(part):
        if lab.exec(name, ["pkill", "-KILL", "-f", "--", pattern], check=False).returncode:
            raise LabError(f"node {name}: no {part} runs there; nothing was killed")
        return f"node {name}: {part} killed; its supervisor starts it again"
    mark = lab.home.mark(name, HELD)
    names = mark.read_text().split() if mark.exists() else [ETCD] if part == ETCD else _routers(lab, name)
    running = _running(lab, name, names)
    if not running and mark.exists():
        return f"node {name}: {', '.join(names)}: down already"
    if not running:
        raise LabError(
            f"node {name}: no {part} runs there that `lab restore` could start again, as its image's daemon"
            " or as the foreground process; nothing was killed"
        )
    mark.write_text(" ".join(running))
    _signal(lab, name, HOLD)
    lab.exec(name, ["pkill", "-KILL", "-x", "|".join(running)])
    _until(
        lambda: not _running(lab, name, running),
        f"node {name}: {', '.join(running)}: killed, but still there",
    )
    return f"node {name}: {', '.join(running)} killed"


def restore(lab: Lab, progress: Callable[[str], None]) -> list[str]:
    """Mend everything that is broken, and say what; nodes first, since links need them.

    Raises:
        LabError: something could not be mended; what was mended before it is.
    """
    home, said = lab.home, []
    off = [node.name for node in lab.topology.nodes if home.mark(node.name, OFF).exists()]
    if off:
        _end(lab, off)  # a restore that was killed may have started some
        lab.start(off, progress)
        for name in off:
            home.mark(name, HELD).unlink(missing_ok=True)
            home.mark(name, OFF).unlink()
            said.append(f"node {name}: on again")
    for index, link in enumerate(lab.topology.links):
        said += [f"link {link.a}-{link.b}: {what}" for what in _mend(lab, index)]
    for node in lab.topology.nodes:
        if (mark := home.mark(node.name, HELD)).exists():
            daemons = mark.read_text().split()
            _resume(lab, node.name, daemons)
            mark.unlink()
            said.append(f"node {node.name}: {', '.join(daemons)} started again")
    return said


def _end(lab: Lab, names: Sequence[str]) -> None:
    """End what runs in these nodes and return once their links are gone too."""
    for name in names:
        if first := lab.home.first(name):
            first.end()
    gone = {end.far for name in names for end in wires.ends(lab.topology, name)}
    _until(
        lambda: _taken_away(lab, gone),
        f"lab {lab.name}: {', '.join(names)}: ended, but links are still there",
    )


def _taken_away(lab: Lab, gone: Set[str]) -> bool:
    """Delete what is there of these ends of links, and return whether that was nothing.

    A node's go by themselves with its network, which the kernel keeps until the node's connections have had their last
    retries: for minutes, where a link was cut before.
    """
    left = gone & wiring.ends_there(lab.home.backplane())
    with suppress(LabError):  # one that went meanwhile
        wiring.ip(lab.home.backplane(), [f"link delete {end}" for end in sorted(left)])
    return not left


def _mend(lab: Lab, index: int) -> Iterable[str]:
    backplane = lab.home.backplane()
    if lab.home.wire_marks(index):
        link = lab.topology.links[index]
        _check_ends(
            lab, index, f"link {link.a}-{link.b}", "it stays broken; take the lab down and bring it up again"
        )
    if (mark := lab.home.wire_mark(index, SLOW)).exists():
        wiring.tc(backplane, wires.impair(index, ""))
        mark.unlink()
        yield "neither delay nor loss any more"
    if (mark := lab.home.wire_mark(index, SILENT)).exists():
        wiring.tc(backplane, wires.join(index))
        mark.unlink()
        yield "passes frames again"
    if (mark := lab.home.wire_mark(index, CUT)).exists():
        wiring.ip(backplane, wires.mend(index))
        mark.unlink()
        yield "whole again"


def _resume(lab: Lab, name: str, daemons: Sequence[str]) -> None:
    """Start the daemons of a node again and return once they run and are ready."""
    profile = lab.node(name).profile or Profile(PLAIN)
    if profile.start:
        # Some may run: of a restore that was killed, or a break that did not come to its deed.
        lab.exec(name, ["pkill", "-KILL", "-x", "|".join(daemons)], check=False)
        done = lab.exec(name, ["/bin/sh", "-eu", "-c", profile.start], check=False)
        if done.returncode:
            raise LabError(
                f"node {name}: its daemons: exit status {done.returncode}: {done.stderr.strip()};"
                " they are still down; mend the cause and restore again"
            )
    _signal(lab, name, RESUME)
    ready = ["/bin/sh", "-c", profile.ready or "true"]
    _until(
        lambda: (
            set(daemons) <= set(_running(lab, name, daemons))
            and not lab.exec(name, ready, check=False).returncode
        ),
        f"node {name}: {', '.join(daemons)}: started, but not ready (`fabricctl lab logs` says more)",
    )


def _signal(lab: Lab, name: str, sent: int) -> None:
    if process := lab.home.running(name):
        process.send(sent)


def _sharers(lab: Lab, name: str) -> list[str]:
    """Return the nodes that live in the network of `name`, be it through another that does."""
    found = [name]
    for each in lab.topology.nodes * len(lab.topology.nodes):
        if each.name not in found and each.network.removeprefix(CONTAINER) in found:
            found.append(each.name)
    return found[1:]


def _routers(lab: Lab, name: str) -> list[str]:
    profile = lab.node(name).profile
    return [each for each in profile.daemons if each != ETCD] if profile else []


def _running(lab: Lab, name: str, daemons: Sequence[str]) -> list[str]:
    """Return which of these run in the node as children of its first process, and so can be started again."""
    if not daemons:
        return []
    listed = lab.exec(name, ["pgrep", "-P", "1", "-l", "-x", "|".join(daemons)], check=False).stdout
    return sorted({line.split()[1] for line in listed.splitlines()})


def _wire(lab: Lab, name: str) -> int:
    for index, link in enumerate(lab.topology.links):
        if wires.is_wire(link) and name in (f"{link.a}-{link.b}", f"{link.b}-{link.a}"):
            _check_ends(lab, index, f"link {name}", "nothing was changed; restore it first")
            return index
    known = ", ".join(f"{link.a}-{link.b}" for link in lab.topology.links if wires.is_wire(link))
    raise NotFound(f'lab {lab.name} has no link "{name}"; it has {known or "none"}')


def _check_ends(lab: Lab, index: int, what: str, state: str) -> None:
    if set(wires.wire(index)) - wiring.ends_there(lab.home.backplane()):
        raise LabError(f"{what}: a node at its end does not run; {state}")


def _until(condition: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + WITHIN
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{complaint} after {WITHIN:.0f} s; try `fabricctl lab restore` again")
        time.sleep(POLL)
