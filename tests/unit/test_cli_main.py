"""The command line as a process: what it imports, and how it ends."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import pytest
import typer

from fabric.cli import workload
from fabric.cli.main import app
from fabric.cli.workload import WorkloadsFormat

HEAVY = {
    "pydantic", "rich", "pyroute2", "iptc", "grpc", "google", "aiohttp", "asyncio", "etcd3", "yaml", "structlog",
    "prometheus_client", "jsonpatch",
}  # fmt: skip


def fabricctl(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fabric.cli.main", *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def loaded_by(code: str) -> set[str]:
    """The modules that are loaded when `code` has run, or has exited with status 0."""
    code = (
        f"import sys\ntry:\n    exec({code!r})\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('|', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("|")[2].split())


def test_help_imports_this_and_no_more() -> None:
    ours = {f"fabric.cli.{name}" for name in ("main", "completion", "options", "output")}
    loaded = loaded_by("from fabric.cli.main import main\nmain(['--help'])")
    assert {name for name in loaded if name.startswith(("fabric.", "bgp.", "policy."))} == {
        *ours,
        "fabric.cli",
        "fabric.errors",
    }
    assert {name.partition(".")[0] for name in loaded} & HEAVY == set()


def test_the_help_of_no_command_imports_anything_heavy() -> None:
    # In one process, and by name: what one of them loads would hide behind the next.
    loaded = loaded_by("from tests.unit.test_cli_main import tree\nfor _, c in tree(): c.command.get_help(c)")
    assert {name.partition(".")[0] for name in loaded} & HEAVY == set()


def tree() -> list[tuple[str, click.Context]]:
    """Every group and command by its path, as `node join`."""
    return list(walk(typer.main.get_command(app), click.Context(typer.main.get_command(app))))


def walk(
    command: click.Command, context: click.Context, path: str = ""
) -> Iterator[tuple[str, click.Context]]:
    yield path.strip(), context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner, name
            yield from walk(inner, click.Context(inner, info_name=name, parent=context), f"{path} {name}")


LEAVES = [(path, context.command) for path, context in tree() if not isinstance(context.command, click.Group)]


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[path for path, _ in LEAVES])
def test_every_command_has_examples_that_parse(path: str, command: click.Command) -> None:
    examples = re.findall(r"^ *Example: (.+?)(?:\n\n|\Z)", command.help or "", re.MULTILINE | re.DOTALL)
    assert examples, "the help has no paragraph that begins with Example:"
    own = [example for example in examples if f"fabricctl {path} " in f"{example} ".replace("\n", " ")]
    assert own, f"no example is of {path} itself"
    for example in own:
        words = shlex.split(example.partition(f"fabricctl {path}")[2].partition(" >")[0].rstrip(")"))
        command.make_context(path, words, resilient_parsing=False)


@pytest.mark.parametrize(
    ("path", "group"),
    [(path, context.command) for path, context in tree() if isinstance(context.command, click.Group)],
)
def test_every_noun_has_an_example(path: str, group: click.Command) -> None:
    assert re.search(rf"^Example: fabricctl .*{path}", group.help or "", re.MULTILINE), group.help


@pytest.mark.parametrize(("path", "context"), tree(), ids=[path or "fabricctl" for path, _ in tree()])
def test_options_that_are_files_and_words_that_are_kinds_are_completed(
    path: str, context: click.Context
) -> None:
    for parameter in context.command.params:
        found = [(item.type, item.value) for item in parameter.shell_complete(context, "")]
        if parameter.metavar == "FILE" or parameter.name in {"file", "filename"}:
            assert [kind for kind, _ in found] == ["file"], parameter.name
        if parameter.name == "kind":
            assert ("plain", "ippool") in found
        if "--output" in parameter.opts and parameter.metavar != "FILE":
            assert {("plain", "json")} <= set(found), parameter.name


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
        ("node", "join", "--etcd", "192.0.2.10:2379", "--bgp", "never"),
        ("node", "join", "--etcd", "192.0.2.10:2379", "--bgp", "off", "--peer", "192.0.2.1=65000"),
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


def test_the_wide_list_has_the_ports_that_are_published(capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("host_ip", "host_port", "port", "protocol")
    ports = [("", 8080, 80, "tcp"), ("10.10.1.2", 53, 5353, "udp"), ("2001:db8::1", 53, 5353, "udp")]
    web = {
        "namespace": "default",
        "name": "web",
        "addresses": ["10.0.0.1"],
        "interface": "fab0",
        "netns": "/x",
    }
    workload._print(
        [{**web, "ports": [dict(zip(keys, p, strict=True)) for p in ports]}], WorkloadsFormat.WIDE
    )
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[-1] == "PORTS"
    assert row.split()[-1] == "8080->80/tcp,10.10.1.2:53->5353/udp,[2001:db8::1]:53->5353/udp"


def test_a_port_that_nobody_can_mean_is_a_mistake_of_the_command_line() -> None:
    done = fabricctl("workload", "add", "web", "--netns", "web", "--publish", "70000:80")
    assert done.returncode == 2
    assert "HOSTPORT must be 1 to 65535" in done.stderr


def test_without_run_nothing_is_run() -> None:
    params, command = parsed("web", "--netns", "/run/netns/web", "--label", "a=b", "--label", "c=d")
    assert (command, params["run"], params["label"]) == ([], False, ["a=b", "c=d"])
