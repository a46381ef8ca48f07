"""`fabricctl workload`: add, del, list, exec."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from fabric.api import client
from fabric.cli import output
from fabric.cli.options import Labels, Namespace, Output, pairs, without_dashes
from fabric.cli.output import Format
from fabric.errors import ConfigError, FabricError, NotFound

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Attach containers and namespaces of this node.\n\nExample: fabricctl workload list",
)

RUN = "--run"
NAMED = Path("/run/netns")


class _RunCommand(TyperCommand):
    """Everything after --run belongs to the command that is run, its options included."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if RUN in args:
            at = args.index(RUN)
            ctx.meta[RUN] = without_dashes(args[at + 1 :])
            args = args[: at + 1]
        return super().parse_args(ctx, args)


@app.command(cls=_RunCommand)
def add(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="The workload's name on this node.")],
    netns: Annotated[
        str, typer.Option(help="Path of its network namespace, or its name for `ip netns`.")
    ] = "",
    run: Annotated[
        bool, typer.Option(RUN, help="Run the command that follows in a namespace of its own.")
    ] = False,
    label: Labels = None,
    ip: Annotated[str, typer.Option(help="The address to give it.", show_default="the next free one")] = "",
    pool: Annotated[
        list[str] | None,
        typer.Option(help="Take the address from this pool (name or prefix); may be given several times."),
    ] = None,
    publish: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[HOSTIP:]HOSTPORT:PORT[/PROTOCOL]",
            help="Lead this port of the node to the workload's; tcp unless it says udp or sctp; may be repeated.",
        ),
    ] = None,
    namespace: Namespace = "default",
    form: Output = Format.TABLE,
) -> None:
    """Give a container its address, link and route; returns when they are in.

    With --run, which comes last, the workload lives as long as its command; the exit status is the command's.

    Example: fabricctl workload add web --netns /run/netns/web --label app=web

    Example: fabricctl workload add web --label app=web --run python3 -m http.server 80

    Example: fabricctl workload add dns --netns dns --publish 10.10.1.2:53:5353/udp --publish 53:5353
    """
    command = ctx.meta.get(RUN, [])
    if bool(netns) == run or run != bool(command):
        raise typer.BadParameter(
            "give either --netns PATH, or --run and a command", param_hint="'--netns' / '--run'"
        )
    _check_ports(publish or [])
    request = {
        "name": name,
        "namespace": namespace,
        "labels": pairs(label, "--label"),
        "address": ip or None,
        "pools": pool or [],
        "publish": publish or [],
    }
    if run:
        raise typer.Exit(_run(request, command))
    # A bare name is one of `ip netns`, as it is for `ip`.
    path = Path(netns).absolute() if "/" in netns else NAMED / netns
    made = _attach(request, path)
    wide = form is Format.TABLE and made["ports"]
    _print([made], WorkloadsFormat.WIDE if wide else WorkloadsFormat(form))


def _check_ports(written: list[str]) -> None:
    if written:
        from fabric.plan import publish

        try:
            for text in written:
                publish.parse(text)
        except ConfigError as err:
            raise typer.BadParameter(str(err), param_hint="'--publish'") from err


def _attach(request: dict[str, Any], netns: Path) -> dict[str, Any]:
    answer: dict[str, Any] = client.call("POST", "/v1/workloads", request | {"netns": str(netns)})
    for warning in answer["warnings"]:
        output.note(f"warning: workload {answer['namespace']}/{answer['name']}: {warning}")
    return answer


def _run(request: dict[str, Any], command: list[str]) -> int:
    """Run `command` in a new namespace, attached while it runs; return its exit status.

    The namespace is held open here, so that it lives exactly as long as this process, and its path leads
    through this process's files.
    """
    from fabric.kernel.threads import new_namespace

    namespace = new_namespace()
    # A signal between the attach and the `try` would leave the workload behind; it waits that long.
    for number in _endings():
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_endings(), signal.SIGINT})
    attached = _attach(request, Path(f"/proc/{os.getpid()}/fd/{namespace}"))
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_endings(), signal.SIGINT})
        output.note(
            f"{attached['name']}: {', '.join([*attached['addresses'], *map(_port, attached['ports'])])}"
        )
        return _run_inside(namespace, command)
    finally:
        with suppress(NotFound):  # somebody has removed it already
            client.call("DELETE", _path(attached["namespace"], attached["name"]))


def _endings() -> set[signal.Signals]:
    """The signals that end the workload; under `nohup` a hang-up is ignored, and stays so."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return {signal.SIGTERM} if ignored else {signal.SIGTERM, signal.SIGHUP}


def _run_inside(namespace: int, command: list[str]) -> int:
    process = subprocess.Popen(
        [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--",
            "nsenter",
            f"--net=/proc/self/fd/{namespace}",
            "--",
            *command,
        ],
        pass_fds=(namespace,),
    )
    # Ctrl-C reaches the command by itself, being of the same terminal; a service manager's signal does not.
    signal.signal(signal.SIGINT, lambda *_: None)
    for number in _endings():
        signal.signal(number, lambda number, _: process.send_signal(number))
    status = process.wait()
    return status if status >= 0 else 128 - status


@app.command("del")
def delete(
    name: Annotated[str, typer.Argument(help="The workload's name on this node.")],
    namespace: Namespace = "default",
) -> None:
    """Take a workload's link away and free its address.

    Example: fabricctl workload del web
    """
    gone = client.call("DELETE", _path(namespace, name))
    print(f"workload {namespace}/{name}: removed, {', '.join(gone['addresses'])} released")


class WorkloadsFormat(StrEnum):
    """`-o` of `workload list`."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


@app.command("list")
def list_workloads(
    form: Annotated[
        WorkloadsFormat,
        typer.Option("-o", "--output", help="How to print the answer; wide has published ports."),
    ] = WorkloadsFormat.TABLE,
) -> None:
    """List the workloads of this node.

    Example: fabricctl workload list
    """
    _print(client.call("GET", "/v1/workloads"), form)


@app.command("exec", context_settings={"allow_interspersed_args": False})
def execute(
    name: Annotated[str, typer.Argument(help="The workload's name on this node.")],
    command: Annotated[list[str], typer.Argument(help="What to run in its network namespace.")],
    namespace: Namespace = "default",
) -> None:
    """Run a command in a workload's network namespace; its options are its own.

    Example: fabricctl workload exec web -- ping -c 1 192.0.2.1
    """
    found = [
        w for w in client.call("GET", "/v1/workloads") if (w["namespace"], w["name"]) == (namespace, name)
    ]
    if not found:
        raise NotFound(f"workload {namespace}/{name}: not on this node; see `fabricctl workload list`")
    netns = Path(found[0]["netns"])
    if not netns.exists():
        raise ConfigError(
            f"workload {namespace}/{name}: its network namespace {netns} is gone; remove it with `del`"
        )
    argv = ["nsenter", f"--net={netns}", "--", *without_dashes(command)]
    try:
        os.execvp(argv[0], argv)  # noqa: S606  a shell would split the arguments again
    except OSError as err:
        raise FabricError(f"{argv[0]}: {err.strerror}; nothing was run") from err


def _path(namespace: str, name: str) -> str:
    return f"/v1/workloads/{namespace}/{name}"


def _print(workloads: list[dict[str, Any]], form: WorkloadsFormat) -> None:
    if form in (WorkloadsFormat.JSON, WorkloadsFormat.YAML):
        output.document(workloads, Format(form))
        return
    wide = form is WorkloadsFormat.WIDE
    output.table(
        ["NAMESPACE", "NAME", "ADDRESS", "LINK", "NETNS", *(["PORTS"] if wide else [])],
        [
            (
                *(w["namespace"], w["name"], ",".join(w["addresses"]), w["interface"], w["netns"]),
                *([",".join(map(_port, w["ports"]))] if wide else []),
            )
            for w in workloads
        ],
    )


def _port(port: dict[str, Any]) -> str:
    host = f"[{port['host_ip']}]" if ":" in port["host_ip"] else port["host_ip"]
    return f"{host}{':' if host else ''}{port['host_port']}->{port['port']}/{port['protocol']}"
