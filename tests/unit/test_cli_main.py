"""The command line as a process: what it imports, and how it ends."""

import json
import subprocess
import sys
from typing import Any

import pytest

HEAVY = {"pydantic", "rich", "pyroute2", "grpc", "aiohttp", "etcd3", "yaml", "structlog"}


def fabricctl(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fabric.cli.main", *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def imported_by(*args: str) -> set[str]:
    """The top-level packages that are loaded when the command line has printed its help."""
    code = (
        "import sys\nfrom fabric.cli.main import main\n"
        f"try:\n    main({list(args)})\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('|', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("|")[2].split())


@pytest.mark.parametrize(
    "args",
    [
        ("--help",),
        ("workload", "--help"),
        ("node", "join", "--help"),
        ("bgp", "routes", "--help"),
        ("get", "-h"),
    ],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(args: tuple[str, ...]) -> None:
    assert imported_by(*args) & HEAVY == set()


@pytest.mark.parametrize(
    "args",
    [
        ("nonsense",),
        ("workload", "add"),
        ("workload", "add", "web"),
        ("workload", "add", "web", "--run"),
        ("workload", "add", "web", "--netns", "/x", "--run", "true"),
        ("workload", "add", "web", "--label", "nolabel", "--netns", "/x"),
        ("workload", "list", "-o", "xml"),
        ("node", "join", "--etcd", "192.0.2.10:2379", "--peer", "tor"),
        ("node", "join", "--etcd", "192.0.2.10:2379", "--pool", "10.0.0.1/24"),
        ("node", "join", "--bogus"),
        ("apply",),
    ],
    ids=" ".join,
)
def test_a_usage_error_is_status_2_with_the_reason_on_stderr(args: tuple[str, ...]) -> None:
    done = fabricctl(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("get", "nosuchkind"), 'fabricctl: kind "nosuchkind" is not known'),
        (("apply", "-f", "/absent.yaml"), "fabricctl: /absent.yaml: No such file or directory; nothing was"),
        (
            ("node", "join", "--etcd", "192.0.2.10"),
            'fabricctl: etcd endpoint "192.0.2.10": must be HOST:PORT',
        ),
    ],
)
def test_an_error_of_ours_is_status_1_and_one_message(args: tuple[str, ...], message: str) -> None:
    done = fabricctl(*args)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_no_arguments_show_the_help() -> None:
    assert "Commands" in fabricctl().stdout + fabricctl().stderr


def parsed(*args: str) -> tuple[dict[str, Any], list[str]]:
    """The parameters of `workload add`, and the command it would run; nothing is run."""
    code = (
        "import json, sys, typer\nfrom fabric.cli import workload\n"
        "context = typer.main.get_command(workload.app).commands['add'].make_context('add', sys.argv[1:])\n"
        "print(json.dumps([context.params, context.meta.get(workload.RUN, [])]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, check=True
    )
    params, command = json.loads(done.stdout)
    return params, command


def test_options_after_run_belong_to_the_command() -> None:
    params, command = parsed("web", "-n", "blue", "--run", "ip", "-n", "x", "--label", "a=b", "--help")
    assert command == ["ip", "-n", "x", "--label", "a=b", "--help"]
    assert (params["name"], params["namespace"], params["run"]) == ("web", "blue", True)
    assert not params["label"]


def test_without_run_nothing_is_run() -> None:
    params, command = parsed("web", "--netns", "/run/netns/web", "--label", "a=b", "--label", "c=d")
    assert (command, params["run"], params["label"]) == ([], False, ["a=b", "c=d"])
