"""The demo and the benchmark do what the README says of them, and leave nothing, also when interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fabric.lab.lab import RUN

pytestmark = pytest.mark.alone  # the demo's lab has one name, and a benchmark wants the machine to itself

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "tests.demo", "bird"]
FIGURE = {"min", "median", "max"}


@pytest.fixture
def own_lab() -> str:
    """Another run of the demo would be in the way, and is not ours to end."""
    name = "demo-bird"
    assert not (RUN / name).exists(), f"lab {name} is up: end that demo first"
    return name


def test_the_demo_reaches_everybody_and_leaves_nothing(own_lab: str) -> None:
    done = subprocess.run(DEMO, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert "everything was reached" in done.stdout
    assert "NO REPLY" not in done.stdout
    assert "From announcement to the first reply outside:" in done.stdout
    assert not (RUN / own_lab).exists()


@pytest.mark.parametrize("sign", ["lab is up", "container web", "== Nodes"])
def test_an_interrupted_demo_leaves_nothing(own_lab: str, sign: str) -> None:
    with subprocess.Popen(
        DEMO, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as demo:
        assert demo.stdout
        assert any(sign in line for line in demo.stdout)
        os.killpg(demo.pid, signal.SIGINT)
        rest = demo.stdout.read()
        assert demo.wait(30) == 130, rest
    assert "interrupted; everything was taken down" in rest
    assert not (RUN / own_lab).exists()


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
