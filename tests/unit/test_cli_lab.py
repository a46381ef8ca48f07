"""`fabricctl lab` as far as it needs no namespaces."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

LAB = "name: NAME\ntopology:\n  nodes:\n    a: {kind: linux, image: alpine}\n"


@pytest.mark.parametrize(
    ("form", "read"), [("json", json.loads), ("yaml", yaml.safe_load)], ids=["json", "yaml"]
)
def test_inspect_prints_what_every_command_can_print(tmp_path: Path, form: str, read: object) -> None:
    assert callable(read)
    assert read(inspect(tmp_path, "-o", form))["nodes"][0]["name"] == "a"


def test_inspect_prints_a_table_by_default(tmp_path: Path) -> None:
    heading, row = inspect(tmp_path).splitlines()
    assert heading.split() == ["NODE", "PROFILE", "STATE", "PID", "ADDRESSES", "LINKS"]
    assert row.split()[0] == "a"
    assert "stopped" in row


def inspect(folder: Path, *options: str) -> str:
    file = folder / "x.clab.yml"
    file.write_text(LAB.replace("NAME", folder.name.replace("_", "-")))
    argv = [sys.executable, "-m", "fabric.cli.main", "lab", "inspect", str(file), *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
