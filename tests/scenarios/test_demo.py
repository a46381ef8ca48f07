"""The demo and the benchmark do what the README says of them, and leave nothing, also when interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fabric.lab.home import RUN
from fabric.lab.lab import Lab

pytestmark = pytest.mark.alone  # the demo's lab has one name, and a benchmark wants the machine to itself

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "tests.demo"]
LAB = "two-racks"
FIGURE = {"min", "median", "max"}


@pytest.fixture(autouse=True)
def nobody_elses() -> None:
    """A lab that somebody has up would be in the way, and is not ours to end."""
    assert not (RUN / LAB).exists(), f"lab {LAB} is up: take it down first"


def test_the_demo_reaches_everybody_measures_two_faults_polices_and_leaves_nothing() -> None:
    done = subprocess.run(DEMO, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
    assert "everything was reached" in done.stdout
    assert "denied by NetworkPolicy default/db ingress rule 1" in done.stdout
    for report in ("link-cut", "tor-killed"):
        folder = ROOT / "build" / "demo" / report
        found = json.loads((folder / "report.json").read_text())
        assert found["valid"], found["invalid"]
        assert all(flow["back"] for flow in found["flows"])
        assert "<svg" in (folder / "timeline.svg").read_text()
    assert not (RUN / LAB).exists()


@pytest.mark.parametrize("sign", ["lab up", "[1/11] node", "lab verify", "lab break"])
def test_an_interrupted_demo_leaves_nothing(sign: str) -> None:
    with subprocess.Popen(
        DEMO, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as demo:
        assert demo.stdout
        assert any(sign in line for line in demo.stdout)
        os.killpg(demo.pid, signal.SIGINT)
        rest = demo.stdout.read()
        assert demo.wait(30) == 130, rest
    assert "interrupted; everything was taken down" in rest
    assert not (RUN / LAB).exists()


def test_the_demo_leaves_a_lab_alone_that_somebody_has_up() -> None:
    file = ROOT / "containerlab" / f"{LAB}.clab.yml"
    with Lab.load(file) as lab:
        done = subprocess.run(DEMO, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, "left alone" in done.stderr) == (1, True)
        assert not [state for state in lab.inspect() if not state.pid]


def test_the_attach_benchmark_measures_and_says_so_in_json(tmp_path: Path) -> None:
    report = tmp_path / "attach.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.attach", "--rounds", "1", "--json", str(report)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
    rows = json.loads(report.read_text())
    assert all(row.keys() == {"name", "unit", "ours", "peer", "peer_name", "ratio"} for row in rows)
    assert all(row[part].keys() == FIGURE for row in rows for part in ("ours", "peer", "ratio") if row[part])
    assert {"ptp + host-local", "ip -batch"} <= {row["peer_name"] for row in rows if row["name"] == "attach"}
