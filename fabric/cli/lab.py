"""`fabricctl lab`: run a containerlab topology in namespaces; parses, calls fabric.lab, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fabric.cli import completion
from fabric.cli.options import Output, without_dashes
from fabric.cli.output import Format, document, progress, table

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Run a containerlab topology in namespaces, without Docker.\n\n"
    "Example: fabricctl lab up containerlab/quickstart.clab.yml",
)

File = Annotated[
    Path,
    typer.Argument(
        click_type=completion.FILE, help="A containerlab topology (NAME.clab.yml).", show_default=False
    ),
]


@app.command()
def up(file: File) -> None:
    """Bring a lab up; one that is up already is left as it is.

    Example: fabricctl lab up containerlab/quickstart.clab.yml
    """
    import signal

    from fabric.lab.lab import Lab

    # A polite kill cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    lab = Lab.load(file)
    changed = lab.up(progress=lambda line: typer.echo(line, err=True))
    count = len(lab.topology.nodes)
    typer.echo(f"lab {lab.name}: {count} nodes {'up' if changed else 'were up already; nothing changed'}")


@app.command()
def down(file: File) -> None:
    """Take a lab down, whatever state it is in.

    Example: fabricctl lab down containerlab/quickstart.clab.yml
    """
    from fabric.lab.lab import Lab

    lab = Lab.load(file)
    with progress(f"lab {lab.name}: going down"):
        gone = lab.down()
    typer.echo(f"lab {lab.name}: {'down' if gone else 'was not up; nothing changed'}")


@app.command("exec", context_settings={"allow_interspersed_args": False})
def exec_(
    file: File,
    node: Annotated[str, typer.Argument(help="A node of the topology.", show_default=False)],
    command: Annotated[list[str], typer.Argument(help="What to run there.", show_default=False)],
) -> None:
    """Run a command in a node, with its input, output and exit status.

    Example: fabricctl lab exec containerlab/quickstart.clab.yml tor -- vtysh -c "show bgp summary"
    """
    import os

    from fabric.lab.lab import Lab

    lab = Lab.load(file)
    # Options end at NODE, so that the command keeps its own; the customary "--" is then left to us.
    argv = lab.command(node, without_dashes(command))
    os.execvpe(argv[0], argv, lab.environment(node))  # noqa: S606  a shell would split the arguments again


@app.command()
def inspect(file: File, output: Output = Format.TABLE) -> None:
    """Show the nodes of a lab and how they are linked.

    Example: fabricctl lab inspect containerlab/quickstart.clab.yml -o json
    """
    from dataclasses import asdict

    from fabric.lab.lab import Lab

    lab = Lab.load(file)
    states = lab.inspect()
    if output is not Format.TABLE:
        nodes = [{**asdict(state), "links": list(state.links)} for state in states]
        document({"name": lab.name, "nodes": nodes}, output)
        return
    table(
        ("NODE", "PROFILE", "STATE", "PID", "LINKS"),
        [
            (s.name, s.profile, "running" if s.pid else "stopped", s.pid or "-", ", ".join(s.links))
            for s in states
        ],
    )
