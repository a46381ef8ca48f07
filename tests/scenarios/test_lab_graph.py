"""A lab's graph, drawn while it runs: sessions, prefixes, what is cut and what has ended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fabric.lab import faults, graph, survey
from fabric.lab.lab import Lab
from tests.scenarios import triangle
from tests.scenarios.labs import ran, until

SHIPPED = Path(__file__).parents[2] / "containerlab" / "quickstart.clab.yml"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with triangle.up(tmp_path_factory.mktemp("triangle"), f"graph-{os.getpid()}") as lab:
        yield lab


def found(lab: Lab) -> dict[tuple[str, str], graph.Line]:
    seen = survey.ask(lab)
    assert seen
    return {(line.a, line.b): line for line in graph.lines(lab.topology, seen)}


def test_sessions_prefixes_and_faults_are_seen(lab: Lab) -> None:
    seen = survey.ask(lab)
    assert seen
    assert graph.originated(seen) == {"r1": [str(triangle.P1)], "r2": [str(triangle.P2)]}
    between = found(lab)
    assert between.keys() == {("r1", "r2"), ("r1", "r3"), ("r2", "r3")}
    assert {line.states for line in between.values()} == {("Established",)}
    assert [line.link for line in between.values()] == list(lab.topology.links[:3])
    assert dict(between["r1", "r3"].received)["r1"] == 1

    faults.cut(lab, triangle.DIRECT)
    until(lambda: "Established" not in found(lab)["r1", "r2"].states)
    assert found(lab)["r1", "r3"].colour == graph.UP
    cut = graph.dot(lab.topology, survey.ask(lab))
    (line,) = [line for line in cut.splitlines() if line.startswith("\tr1 -- r2")]
    assert "no carrier" in line
    assert graph.DOWN in line

    faults.power_off(lab, "r3")
    until(lambda: "Established" not in found(lab)["r2", "r3"].states)
    dead = graph.dot(lab.topology, survey.ask(lab))
    (vertex,) = [line for line in dead.splitlines() if line.startswith("\tr3 [")]
    assert "BROKEN" in vertex
    assert "dashed" in vertex


def test_the_command_draws_a_running_lab_as_svg(lab: Lab, tmp_path: Path) -> None:
    to = tmp_path / "graph.svg"
    done = ran("graph", str(lab.file), "--to", str(to))
    assert (done.returncode, done.stdout) == (0, "")
    assert f"running; drawn to {to}" in done.stderr
    root = ElementTree.parse(to).getroot()
    texts = ["".join(text.itertext()).strip() for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert f"lab {lab.name}" in texts
    assert {"r1", "r2", "r3", "h1", "h2"} <= set(texts)


def test_the_command_prints_a_lab_that_does_not_run_as_dot() -> None:
    done = ran("graph", str(SHIPPED), "-o", "dot")
    assert done.returncode == 0, done.stderr
    assert done.stdout == graph.dot(Lab.load(SHIPPED).topology)
