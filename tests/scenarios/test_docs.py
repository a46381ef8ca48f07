"""The documents run as written: every `sh` block of a page, in order, in one shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.lab.lab import Lab

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "containerlab" / "quickstart.clab.yml"


@pytest.fixture
def lab_of_the_page() -> Iterator[None]:
    """The page takes its lab down itself; this does when the page fails half-way."""
    lab = Lab.load(QUICKSTART)
    if lab.down():
        raise AssertionError(
            "the lab quickstart was up before the test; it has been taken down: run it again"
        )
    yield
    lab.down()


def commands(page: Path) -> str:
    """Return the page's `sh` blocks without its set-up, which is how the tests came to run."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return "".join(blocks).replace("make setup\n", "")


@pytest.mark.usefixtures("lab_of_the_page")
def test_the_quickstart_runs_as_written() -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", commands(ROOT / "docs" / "quickstart.md")],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert " 0% packet loss" in done.stdout
    assert "100% packet loss" not in done.stdout
