"""The documents run as written: every `sh` block of a page, in order, in one shell.

In a folder of its own, with labs under other names, so that a lab that somebody has up is left alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.lab.lab import Lab

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A project's folder as the page finds it; its labs are ended also when the page stops half-way."""
    shutil.copytree(ROOT / "containerlab", tmp_path / "containerlab")
    files = sorted(tmp_path.glob("containerlab/*.clab.yml"))
    for file in files:
        text, count = re.subn(r"^name: ", f"name: docs-{os.getpid()}-", file.read_text(), flags=re.MULTILINE)
        assert count == 1
        file.write_text(text)
    yield tmp_path
    for file in files:
        Lab.load(file).down()


def commands(page: Path) -> str:
    """Return the page's `sh` blocks without its set-up, which is how the tests came to run."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return "".join(blocks).replace("make setup\n", "")


@pytest.mark.parametrize(
    "page", ["quickstart", "labs", "resources", "ipam", "cli", "bgp", "policy", "tunnels", "nat"]
)
def test_the_page_runs_as_written(folder: Path, page: str) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", commands(ROOT / "docs" / f"{page}.md")],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert set(re.findall(r"(\S+)% packet loss", done.stdout)) <= {"0"}
