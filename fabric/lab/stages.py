"""Decide in which order the nodes of a lab go through their stages: wait-for as a graph over (node, stage).

A stage begins when those it waits for have ended. Besides what the file says, each stage waits for the one
before it of the same node, and a node that shares another's network waits for that one to be created.
`healthy` ends when the node's daemons are ready, `exit` when its foreground process has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from fabric.lab.format import CONTAINER, STAGES

if TYPE_CHECKING:  # topologies ask for cycles
    from fabric.lab.topology import Node, Topology

Step: TypeAlias = tuple[str, str]  # node, stage


def needs(topology: Topology, node: str, stage: str) -> frozenset[Step]:
    """Return the steps that have to end before this one begins."""
    return frozenset(graph(topology.nodes)[node, stage])


def graph(nodes: Iterable[Node]) -> Mapping[Step, tuple[Step, ...]]:
    """Return for each step those that it waits for; what the file says comes first, in its order."""
    found: dict[Step, tuple[Step, ...]] = {}
    for node in nodes:
        shared = node.network.startswith(CONTAINER)
        before = [(node.network.removeprefix(CONTAINER), STAGES[0])] if shared else []
        for stage in STAGES:
            own = node.stages[stage].wait_for if stage in node.stages else ()
            found[node.name, stage] = (*own, *before)
            before = [(node.name, stage)]
    return found


def cycle(nodes: Iterable[Node]) -> tuple[Step, ...]:
    """Return steps each of which waits for the next and the last for the first, or () if all can begin."""
    waits = graph(nodes)
    done: set[Step] = set()
    for start in waits:
        path: list[Step] = []  # from `start` down to where we are, and below it what is left to look at
        pending = [iter([start])]
        while pending:
            step = next((each for each in pending[-1] if each not in done), None)
            if step is None:
                pending.pop()
                if path:
                    done.add(path.pop())
            elif step in path:
                return tuple(path[path.index(step) :])
            else:
                path.append(step)
                pending.append(iter(waits.get(step, ())))
    return ()
