"""Which datastore a command asks: seen by the endpoint that its refusal names. Nobody listens on port 1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("args", "env", "asked"),
    [
        (["get", "nodes"], {}, "http://127.0.0.1:1"),
        (["get", "nodes"], {"ETCD_ENDPOINTS": "127.0.0.2:1"}, "http://127.0.0.2:1"),
        (["--etcd", "127.0.0.3:1", "get", "nodes"], {"ETCD_ENDPOINTS": "127.0.0.2:1"}, "http://127.0.0.3:1"),
        (["--etcd", "https://127.0.0.3:1,127.0.0.4:1", "node", "list"], {}, "https://127.0.0.3:1"),
        (["--config", "calicoctl.cfg", "get", "nodes"], {}, "https://127.0.0.5:1"),
    ],
)
def test_the_file_the_environment_and_the_root_options_say_where_etcd_is(
    tmp_path: Path, args: list[str], env: dict[str, str], asked: str
) -> None:
    file = tmp_path / "fabricctl.cfg"
    file.write_text("etcd: [127.0.0.1:1]\n")
    (tmp_path / "calicoctl.cfg").write_text(
        "kind: CalicoAPIConfig\nspec: {etcdEndpoints: 'https://127.0.0.5:1'}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "fabric.cli.main", *args],
        env={"PATH": os.environ["PATH"], "FABRICCTL_CONFIG": str(file), **env},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"etcd {asked}: Connection refused; " in done.stderr
    assert "nothing was read; try again" in done.stderr
