"""Drives labs of containerlab/ in a user-mode kernel, whose one processor they are too much for as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

from fabric.errors import LabError
from fabric.lab import expect, verify
from fabric.lab.expect import Encapsulated, Expectations, Reach, Untranslated
from fabric.lab.lab import Lab
from tests.scenarios.shipped import shipped
from tests.uml.kernel import OUT

# What is asked at the same time. Captures are made for all who need one; knocks and those would starve each other.
TOGETHER = (Reach, Encapsulated | Untranslated)


@contextmanager
def up(name: str) -> Iterator[Lab]:
    """Bring a shipped lab up; what its nodes have written by the end comes out with the results."""
    with _one_by_one(shipped(name)) as lab:
        try:
            yield lab
        finally:
            _keep_logs(lab)


def _one_by_one(lab: Lab) -> Lab:
    """Have the nodes join one after another: all at once they take longer than any waits for."""
    chosen = {node.name: node for node in lab.topology.nodes if expect.of_the_fabric(node)}
    joining = [name for name in chosen if name != "etcd"]
    for before, name in pairwise(joining):
        configure = chosen[name].stages["configure"]
        later = replace(configure, wait_for=(*configure.wait_for, (before, "configure")))
        chosen[name] = replace(chosen[name], stages={**chosen[name].stages, "configure": later})
    nodes = tuple(chosen.get(node.name, node) for node in lab.topology.nodes)
    return Lab(lab.file, replace(lab.topology, nodes=nodes), renamed=True)


def _keep_logs(lab: Lab) -> None:
    for node in lab.topology.nodes:
        place = OUT / "labs" / lab.name / node.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(lab.log(node.name), place / "log")
        with suppress(LabError):
            log = lab.exec(node.name, ["cat", "/var/lib/fabricctl/node.log"]).stdout
            (place / "node.log").write_text(log)


def missed(lab: Lab) -> list[str]:
    """Return the expectations that the lab does not meet, asked for in parts: each asks with processes."""
    expected = expect.load(lab.file, lab.topology)
    results = [result for part in _parts(expected) for result in verify.verify(lab, part)]
    return [f"{r.expectation.what} {r.expectation.where}: {r.found}" for r in results if not r.holds]


def _parts(expected: Expectations) -> Iterator[Expectations]:
    rest = expected.all
    for kinds in TOGETHER:
        yield replace(expected, all=tuple(each for each in rest if isinstance(each, kinds)))
        rest = tuple(each for each in rest if not isinstance(each, kinds))
    yield replace(expected, all=rest)


def shown(lab: Lab, node: str, *words: str) -> list[Any]:
    """Return what `ip` says in a node."""
    found: list[Any] = json.loads(lab.exec(node, ["ip", "-d", "-j", *words]).stdout)
    return found
