"""The man page says what the help says, and groff finds nothing wrong with it."""

import re
import subprocess

import click
import typer

from fabric.cli.main import app
from fabric.cli.manual import page


def shown() -> str:
    """The page as a reader sees it, on one line."""
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-rLL=400n", "-P-cbou"],
        input=page(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return " ".join(done.stdout.split())


def test_the_page_has_every_section() -> None:
    titles = re.findall(r"^\.SH (.+)$", page(), re.MULTILINE)
    assert titles == [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "COMMANDS"),
        *("EXIT STATUS", "ENVIRONMENT", "FILES"),
    ]


def test_every_command_its_options_and_its_examples_are_in_it() -> None:
    text = shown().replace("\N{HYPHEN}", "-").replace("\N{MINUS SIGN}", "-")
    for command, context in leaves(typer.main.get_command(app), click.Context(click.Command("fabricctl"))):
        assert context.command_path in text
        for paragraph in (command.help or "").split("\n\n"):
            assert " ".join(paragraph.split()).removeprefix("Example: ") in text
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[-1] in text
            assert " ".join(getattr(parameter, "help", "").split()) in text


def leaves(command: click.Command, context: click.Context) -> list[tuple[click.Command, click.Context]]:
    if not isinstance(command, click.Group):
        return [(command, context)]
    inner = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
    return [
        leaf
        for name, found in inner
        if found
        for leaf in leaves(found, click.Context(found, info_name=name, parent=context))
    ]
