"""`fabricctl ipam` as an operator runs it, against a real etcd that somebody with Calico's pen has written to."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.etcd_server import EtcdServer
from tests.fakes import calico
from tests.fakes.calico import Store, block, handle, held, pool
from tests.unit.test_ops_ipam import WRECK


@pytest.fixture
def etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


def seed(etcd: EtcdServer, store: Store) -> None:
    """Put the store with etcdctl, 100 keys a transaction."""
    keys = list(store)
    for at in range(0, len(keys), 100):
        puts = "".join(f"put {key} {json.dumps(store[key])}\n" for key in keys[at : at + 100])
        subprocess.run(
            ["etcdctl", "--endpoints", etcd.url, "txn"],
            input=f"\n{puts}\n\n",
            env={"ETCDCTL_API": "3", "PATH": "/usr/bin"},
            check=True, capture_output=True, text=True, timeout=20,
        )  # fmt: skip


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "fabric.cli.main", "ipam", *args]


def environment(etcd: EtcdServer) -> dict[str, str]:
    return {**os.environ, "ETCD_ENDPOINTS": etcd.url, "PYTHONUNBUFFERED": "1"}


def fabricctl(etcd: EtcdServer, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args),
        input=stdin,
        env=environment(etcd),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def started(etcd: EtcdServer, *args: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command(*args), env=environment(etcd), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def problems(done: subprocess.CompletedProcess[str]) -> set[tuple[str, str]]:
    assert "Traceback" not in done.stderr, done.stderr
    return {(f["id"], f["object"]) for f in json.loads(done.stdout)["findings"]}


def test_check_report_release_and_check_again_is_clean(etcd: EtcdServer, tmp_path: Path) -> None:
    seed(etcd, WRECK)
    report = str(tmp_path / "report.json")
    found = fabricctl(etcd, "check", "-o", report)
    assert found.returncode == 1, found.stderr
    assert "leaked-address (4)" in found.stdout
    # The same offline, of a dump: one listing in, the same findings out.
    offline = fabricctl(
        etcd, "check", "--dump", "-", "-o", "json", stdin=etcd.ctl("get", "--prefix", "/calico", "-w", "json")
    )
    assert offline.returncode == 1
    wanted = {(f["id"], f["object"]) for f in json.loads(Path(report).read_text())["findings"]}
    assert problems(offline) == wanted

    freed = fabricctl(etcd, "release", "--from-report", report)
    assert (freed.returncode, freed.stderr) == (0, "")
    assert freed.stdout.endswith(f"mended {len(wanted)}, left 0 as they are\n")
    clean = fabricctl(etcd, "check")
    assert clean.returncode == 0, clean.stdout
    again = fabricctl(etcd, "release", "--from-report", report)
    assert again.returncode == 0
    assert "mended 0" in again.stdout
    assert "10.0.0.3: already free" in again.stdout


def test_a_release_killed_half_way_is_finished_by_the_next(etcd: EtcdServer, tmp_path: Path) -> None:
    store = calico.sound() | pool("10.1.0.0/16", "many")
    for i in range(300):
        cidr = f"10.1.{i // 64}.{i % 64 * 4}/30"
        store |= block(cidr, "host:n1", {1: held(f"k8s.g{i}")}) | calico.affinity("n1", cidr)
        store |= handle(f"k8s.g{i}", {cidr: 1})
    seed(etcd, store)
    report = str(tmp_path / "report.json")
    assert fabricctl(etcd, "check", "-o", report).returncode == 1
    with started(etcd, "release", "--from-report", report) as process:
        assert process.stdout is not None
        assert process.stdout.readline().endswith(": mended\n")
    left = problems(fabricctl(etcd, "check", "-o", "json"))
    assert 0 < len(left) < 300
    assert {kind for kind, _ in left} == {"leaked-address"}
    finished = fabricctl(etcd, "release", "--from-report", report)
    assert f"mended {len(left)}, left {300 - len(left)} as they are" in finished.stdout
    assert fabricctl(etcd, "check").returncode == 0


def test_one_address_is_shown_refused_and_released(etcd: EtcdServer) -> None:
    seed(etcd, WRECK)
    assert "Used by: Workload(default/n1-cni-w1-eth0)" in fabricctl(etcd, "show", "--ip", "10.0.0.0").stdout
    refused = fabricctl(etcd, "release", "--ip", "10.0.0.0")
    assert refused.returncode == 1
    assert refused.stderr.startswith("fabricctl: IP address 10.0.0.0: in use, on n1: Workload(")
    assert (
        fabricctl(etcd, "release", "--ip", "10.0.0.3").stdout == "Successfully released IP address 10.0.0.3\n"
    )
    assert fabricctl(etcd, "show", "--ip", "10.0.0.3").stdout == "10.0.0.3 is not assigned\n"


def test_configure_shows_what_it_wrote(etcd: EtcdServer) -> None:
    done = fabricctl(etcd, "configure", "--strictaffinity=true", "--max-blocks-per-host=4", "-o", "json")
    assert done.returncode == 0, done.stderr
    shown = fabricctl(etcd, "show", "--show-configuration", "-o", "json")
    assert json.loads(done.stdout) == json.loads(shown.stdout) == {
        "strictAffinity": True, "autoAllocateBlocks": True, "maxBlocksPerHost": 4, "ipCooldownSeconds": 0,
    }  # fmt: skip
    refused = fabricctl(etcd, "configure", "--strictaffinity=false")
    assert refused.returncode == 1
    assert "nothing was changed" in refused.stderr
