"""Fixtures of scenario tests: a topology of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fabric.lab.lab import Lab


@pytest.fixture
def name(tmp_path: Path) -> str:
    return f"{tmp_path.parent.name}-{tmp_path.name}".replace("_", "-")[-60:].strip("-")


@pytest.fixture
def write(tmp_path: Path, name: str) -> Iterator[Callable[[str], Path]]:
    """Write a topology with these nodes (and links); whatever came up of it goes down at the end."""
    file = tmp_path / "test.clab.yml"

    def write(body: str) -> Path:
        file.write_text(
            f"name: {name}\ntopology:\n"
            f"  defaults: {{kind: linux, image: alpine, network-mode: none, env: {{LAB: {name}}}}}\n  nodes:\n{body}"
        )
        return file

    yield write
    if file.exists():
        Lab.load(file).down()
