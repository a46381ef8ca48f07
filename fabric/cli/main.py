"""The command line's root: which nouns there are, each module imported only when it is used."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from fabric.errors import FabricError

# noun or verb -> (module, help). The help stands here so that `--help` imports none of them.
GROUPS = {
    "node": ("fabric.cli.node", "Join this host to the fabric, look at it, take it out again."),
    "workload": ("fabric.cli.workload", "Attach containers and namespaces of this node."),
    "bgp": ("fabric.cli.bgp", "Sessions and routes of this node."),
    "lab": ("fabric.cli.lab", "Run containerlab topologies in namespaces."),
}
COMMANDS = {
    "get": ("fabric.cli.resources", "Show resources."),
    "apply": ("fabric.cli.resources", "Create or update resources from files."),
}
SETTINGS = {"help_option_names": ["-h", "--help"]}


class LazyGroup(TyperGroup):
    """Loads a noun's module when the noun is used; its listing needs none.

    The parameters are click's, which typer carries within itself under a private name.
    """

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return [*GROUPS, *COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in GROUPS | COMMANDS:
            return None
        module = importlib.import_module((GROUPS | COMMANDS)[cmd_name][0])
        group: Any = typer.main.get_group(module.app)
        if cmd_name in COMMANDS:
            return group.get_command(ctx, cmd_name)
        group.name = cmd_name
        return group

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        rows = [(name, text) for name, (_, text) in (GROUPS | COMMANDS).items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings=SETTINGS,
    add_completion=False,
)


@app.callback()
def root() -> None:
    """A routing fabric for containers: one address each, announced by BGP, no NAT."""


def main(argv: list[str] | None = None) -> Any:
    """Run the command line; an error of ours is one message on stderr and exit status 1."""
    try:
        return app(argv, standalone_mode=True)
    except FabricError as err:
        print(f"fabricctl: {err}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
