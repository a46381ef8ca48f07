"""The command line's root: which nouns there are, each module imported only when it is used."""

from __future__ import annotations

import errno
import gc
import importlib
import io
import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

import click
import typer
from click.shell_completion import CompletionItem
from typer.core import TyperGroup

from fabric.cli import completion
from fabric.cli.options import (
    Access,
    ConfigFile,
    Etcd,
    EtcdCa,
    EtcdCert,
    EtcdKey,
    EtcdPasswordFile,
    EtcdUser,
    etcd_flags,
)
from fabric.errors import FabricError

# noun or verb -> (module, help). The help stands here so that `--help` imports none of them.
GROUPS = {
    "node": ("fabric.cli.node", "Join this host to the fabric, look at it, take it out again."),
    "workload": ("fabric.cli.workload", "Attach containers and namespaces of this node."),
    "ipam": ("fabric.cli.ipam", "How full pools are, what is wrong with them, and how to put it right."),
    "bgp": ("fabric.cli.bgp", "Sessions and routes of this node."),
    "policy": ("fabric.cli.policy", "Test policy, trace packets through it, stage and promote it."),
    "lab": ("fabric.cli.lab", "Run containerlab topologies in namespaces."),
}
COMMANDS = {
    "get": ("fabric.cli.resources", "Show resources."),
    "apply": ("fabric.cli.resources", "Create or update resources from files."),
    "create": ("fabric.cli.resources", "Create resources from files."),
    "replace": ("fabric.cli.resources", "Replace resources by those in files."),
    "patch": ("fabric.cli.resources", "Change parts of a resource."),
    "label": ("fabric.cli.resources", "Set and remove labels of a resource."),
    "delete": ("fabric.cli.resources", "Delete resources."),
    "diff": ("fabric.cli.resources", "Show what apply would change."),
    "validate": ("fabric.cli.files", "Check the resources in files."),
    "convert": ("fabric.cli.files", "Turn Kubernetes network policies into Calico's."),
    "completion": ("fabric.cli.completion", "Print a completion script for bash, zsh or fish."),
    "version": ("fabric.cli.version", "Show the version of this program and of the cluster."),
}
SETTINGS = {"help_option_names": ["-h", "--help"]}


class LazyGroup(TyperGroup):
    """Loads a noun's module when the noun is used; neither its listing nor completing its name needs it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return [*GROUPS, *COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in GROUPS | COMMANDS:
            return None
        module = importlib.import_module((GROUPS | COMMANDS)[cmd_name][0])
        group = typer.main.get_group(module.app)
        if cmd_name in COMMANDS:
            return group.get_command(ctx, cmd_name)
        group.name = cmd_name
        return group

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        rows = [(name, text) for name, (_, text) in (GROUPS | COMMANDS).items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        names = [
            CompletionItem(name, help=text)
            for name, (_, text) in (GROUPS | COMMANDS).items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings=SETTINGS,
    add_completion=False,
    pretty_exceptions_enable=False,  # they print local variables: passwords, too
)


@app.callback()
def root(
    context: typer.Context,
    config: ConfigFile = None,
    etcd: Etcd = None,
    etcd_ca: EtcdCa = None,
    etcd_cert: EtcdCert = None,
    etcd_key: EtcdKey = None,
    etcd_user: EtcdUser = None,
    etcd_password_file: EtcdPasswordFile = None,
) -> None:
    """A routing fabric for containers: one address each, announced by BGP, no NAT.

    Example: fabricctl --etcd 10.10.3.2:2379 get nodes
    """
    flags = etcd_flags(etcd, etcd_ca, etcd_cert, etcd_key, etcd_user, etcd_password_file)
    context.obj = Access(config, flags)


def main(argv: list[str] | None = None) -> Any:
    """Run the command line; an error of ours is one message on stderr and exit status 1."""
    if asked := os.environ.get(completion.VARIABLE):
        sys.exit(completion.answer(typer.main.get_command(app), asked))
    # A stream that was closed for us takes what is said to it, and it is lost.
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal cannot write must not end a command
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return app(argv, standalone_mode=True)
        finally:
            sys.stdout.flush()
    except FabricError as err:
        print(f"fabricctl: {err}", file=sys.stderr)
        sys.exit(1)
    except OSError as err:
        if err.errno not in {errno.ENOSPC, errno.EPIPE}:
            raise
        if err.errno == errno.ENOSPC:
            print(f"fabricctl: standard output: {err.strerror}; the answer is not whole", file=sys.stderr)
        # Or the interpreter tries to write the rest when it ends, and fails again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def program() -> NoReturn:
    """Run `main` as all that this process does.

    A command lives for a fraction of a second, of which collecting garbage and taking the interpreter and gRPC
    apart at the end would be a third.
    """
    gc.disable()
    status: object = 0
    try:
        main()
    except SystemExit as end:
        status = end.code
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # `main` has reported what can be reported
            stream.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    program()
