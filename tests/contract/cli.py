"""Runs `fabricctl` as a process against a real etcd."""

import subprocess
import sys

from tests.contract.etcd_server import EtcdServer


def command(etcd: EtcdServer, *args: str) -> list[str]:
    return [sys.executable, "-m", "fabric.cli.main", "--etcd", etcd.url.removeprefix("http://"), *args]


def fabricctl(etcd: EtcdServer, *args: str, text: str = "") -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    done = subprocess.run(
        command(etcd, *args), input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def ok(etcd: EtcdServer, *args: str, text: str = "") -> str:
    """Standard output of what has to succeed."""
    code, out, err = fabricctl(etcd, *args, text=text)
    assert code == 0, err
    return out
