"""What `fabricctl ipam` prints, offline on a dump, and what it refuses before it asks anybody."""

import io
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import calico
from tests.fakes.calico import block, handle, held, pool, sound
from tests.unit.test_ipam_audit import B1, B2, KEY_W1, LEAK, TUNNEL, W1, W2
from tests.unit.test_ops_ipam import dump

STORE = sound() | block(B2, "host:n2", {0: W2, 1: held("k8s.w3", "n1", pod="w3", namespace="blue")})
STORE |= handle("k8s.w3", {B2: 1}) | pool("fd00::/64", "v6") | calico.config(strict_affinity=True)


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """The exit status of `fabricctl ARGS`, and what it printed on stdout and stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # between typer and click
        from fabric.cli.main import main

        try:
            status = main(list(args))
        except SystemExit as ended:
            status = ended.code
    out, err = capsys.readouterr()
    return int(status or 0), out, err


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


@pytest.fixture
def dumped(tmp_path: Path) -> str:
    path = tmp_path / "dump.json"
    path.write_text(json.dumps(dump(STORE)))
    return str(path)


def test_show_prints_a_row_a_pool_in_calicos_columns(capsys: pytest.CaptureFixture[str], dumped: str) -> None:
    status, out, _ = run(capsys, "ipam", "show", "--dump", dumped)
    assert status == 0
    assert out.splitlines() == [
        "GROUPING  CIDR         IPS TOTAL  IPS IN USE  IPS RESERVED  IPS FREE     IPS COOLING",
        "IP Pool   10.0.0.0/28  16         4 (25%)     0 (0%)        12 (75%)     0 (0%)",
        "IP Pool   fd00::/64    2^64       0 (0%)      0 (0%)        2^64 (100%)  0 (0%)",
    ]


@pytest.mark.parametrize(
    ("option", "want"),
    [
        pytest.param(
            "--show-blocks",
            ["Block", B2, "4", "2", "(50%)", "0", "(0%)", "2", "(50%)", "0", "(0%)", "host:n2"],
            id="blocks",
        ),
        pytest.param("--show-nodes", ["n1", "1", "4", "2", "3", "1"], id="nodes"),
        pytest.param("--show-borrowed", ["10.0.0.5", "n1", B2, "n2", "workload", "blue/w3"], id="borrowed"),
        pytest.param("--show-configuration", ["StrictAffinity", "true"], id="configuration"),
        pytest.param("--ip=10.0.0.5", ["Handle", "ID:", "k8s.w3"], id="an address held"),
        pytest.param("--ip=10.0.0.6", ["10.0.0.6", "is", "not", "assigned"], id="an address not held"),
    ],
)
def test_show_by(capsys: pytest.CaptureFixture[str], dumped: str, option: str, want: list[str]) -> None:
    status, out, _ = run(capsys, "ipam", "show", option, "--dump", dumped)
    assert status == 0
    assert want in rows(out)


@pytest.mark.parametrize(
    ("options", "want"),
    [
        (["--show-nodes"], [{"node": "n1", "blocks": 1, "total": 4, "inUse": 2, "held": 3, "borrowed": 1},
                            {"node": "n2", "blocks": 1, "total": 4, "inUse": 2, "held": 1, "borrowed": 0}]),
        (["--show-configuration"], {"strictAffinity": True, "autoAllocateBlocks": False, "maxBlocksPerHost": 0,
                                    "ipCooldownSeconds": 0}),
        (["--ip", "10.0.0.6"], {"ip": "10.0.0.6", "assigned": False, "allocations": []}),
        (["--show-borrowed"], [{"ip": "10.0.0.5", "borrowingNode": "n1", "block": B2, "blockOwner": "n2",
                                "type": "workload", "allocatedTo": "blue/w3"}]),
    ],
)  # fmt: skip
def test_show_as_json(capsys: pytest.CaptureFixture[str], dumped: str, options: list[str], want: Any) -> None:
    _, out, _ = run(capsys, "ipam", "show", *options, "-o", "json", "--dump", dumped)
    assert json.loads(out) == want


def test_show_by_pool_as_json_has_exact_numbers_and_the_blocks(
    capsys: pytest.CaptureFixture[str], dumped: str
) -> None:
    _, out, _ = run(capsys, "ipam", "show", "-o", "json", "--dump", dumped)
    small, large = json.loads(out)
    assert [b["cidr"] for b in small["blocks"]] == [B1, B2]
    assert (large["total"], large["free"]) == (2**64, 2**64)


def test_check_of_a_sound_dump_says_so_and_ends_well(capsys: pytest.CaptureFixture[str], dumped: str) -> None:
    # The borrowed address has no endpoint; it is the only thing wrong.
    text = json.dumps(dump(sound()))
    Path(dumped).write_text(text)
    status, out, _ = run(capsys, "ipam", "check", "--dump", dumped)
    assert (status, out.splitlines()[-1]) == (0, "Check complete; found 0 problems.")


def test_check_names_each_problem_with_its_node_and_cure_and_writes_the_report(
    capsys: pytest.CaptureFixture[str], dumped: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    status, out, err = run(capsys, "ipam", "check", "--dump", dumped, "-o", str(report))
    assert status == 1
    assert "leaked-address (1): release it" in out
    assert "10.0.0.5  n1    held by k8s.w3, and no endpoint or tunnel uses it" in out
    assert out.endswith("Check complete; found 1 problems.\n")
    assert err == f"report written to {report}\n"
    assert json.loads(report.read_text())["findings"][0]["id"] == "leaked-address"


def test_check_on_standard_input_prints_the_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(dump(sound() | LEAK))))
    status, out, _ = run(capsys, "ipam", "check", "--dump", "-", "-o", "json")
    assert status == 1
    assert [f["object"] for f in json.loads(out)["findings"]] == ["10.0.0.3"]


def test_an_attach_in_progress_when_the_dump_was_made_is_no_leak(
    capsys: pytest.CaptureFixture[str], dumped: str
) -> None:
    os.utime(dumped, (1795234600, 1795234600))  # 2026-11-21 04:16:40, 13 s after the addresses were given out
    status, out, _ = run(capsys, "ipam", "check", "--dump", dumped)
    assert status == 0
    assert "10.0.0.5: given out to k8s.w3 on n1 just now" in out


def test_a_long_list_is_cut_unless_all_of_it_is_asked_for(
    capsys: pytest.CaptureFixture[str], dumped: str
) -> None:
    wide = "10.1.0.0/26"
    store = sound() | pool("10.1.0.0/16", "wide", blockSize=26) | calico.affinity("n1", wide)
    owners = {i: held(f"h{i}") for i in range(30)}
    store |= block(wide, "host:n1", owners)
    for i in owners:
        store |= handle(f"h{i}", {wide: 1})
    Path(dumped).write_text(json.dumps(dump(store)))
    _, cut, _ = run(capsys, "ipam", "check", "--dump", dumped)
    assert "10.1.0.9 " in cut
    assert "10.1.0.10 " not in cut
    assert "and 20 more" in cut
    _, whole, _ = run(capsys, "ipam", "check", "--dump", dumped, "--show-problem-ips")
    assert "10.1.0.29 " in whole
    assert "10.0.0.0 " not in whole
    _, everything, _ = run(capsys, "ipam", "check", "--dump", dumped, "--show-all-ips")
    assert ["10.0.0.0", "in", "use", "n1", "k8s.w1", "Workload(default/n1-cni-w1-eth0)"] in rows(everything)


def test_what_show_cannot_read_it_names(capsys: pytest.CaptureFixture[str], dumped: str) -> None:
    Path(dumped).write_text(
        json.dumps(dump(sound() | {KEY_W1: "{"} | block(B1, "host:n1", {0: W1, 1: TUNNEL})))
    )
    status, _, err = run(capsys, "ipam", "show", "--dump", dumped)
    assert status == 0
    assert err.startswith(f"warning: {KEY_W1}: cannot be read")


@pytest.mark.parametrize(
    "args",
    [
        ("show", "--ip", "10.0.0.300"),
        ("show", "--ip", "fe80::1%eth0"),
        ("show", "--show-blocks", "--show-borrowed"),
        ("release",),
        ("release", "--ip", "10.0.0.1", "--from-report", "x"),
        ("release", "--ip", "ten"),
        ("configure",),
        ("configure", "--strictaffinity", "perhaps"),
        ("configure", "--max-blocks-per-host", "-1"),
        ("configure", "--ip-cooldown-seconds", "1201"),
    ],
    ids=" ".join,
)
def test_a_usage_error_is_status_2(capsys: pytest.CaptureFixture[str], args: tuple[str, ...]) -> None:
    status, out, err = run(capsys, "ipam", *args)
    assert (status, out) == (2, "")
    assert "Error" in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ("show", "--dump", "/absent"),
            "fabricctl: /absent: No such file or directory; nothing was changed\n",
        ),
        (("show", "--dump", ""), "fabricctl: : Is a directory"),
        (("check", "--dump", os.devnull), "fabricctl: /dev/null: no dump of etcd"),
        (("release", "--from-report", "/absent"), "fabricctl: /absent: No such file or directory"),
        (("release", "--from-report", os.devnull), "fabricctl: /dev/null: no report of `ipam check`"),
    ],
)
def test_a_file_that_cannot_serve_is_named(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], said: str
) -> None:
    status, out, err = run(capsys, "ipam", *args)
    assert (status, out) == (1, "")
    assert err.startswith(said)
