"""Print fabricctl.1, the man page, from the help texts of the command line: `python -m fabric.cli.manual`.

Source of the markup: man(7).
"""

from __future__ import annotations

from collections.abc import Iterator

import click
import typer

from fabric import config
from fabric.cli.completion import PROGRAM
from fabric.cli.main import app

EXIT_STATUS = {
    "0": "Done; for diff: no difference; for a check: no finding; for policy trace: allowed.",
    "1": (
        "It failed, and standard error says why; for diff: there are differences; for a check: there are findings; "
        "for policy trace: denied; for policy test: a case came out otherwise."
    ),
    "2": "The command line is wrong; for diff and policy trace: it failed.",
}
_SECRET = {"etcd_password"}  # has no flag
ENVIRONMENT = {
    "FABRICCTL_CONFIG": "The configuration file.",
    **{
        name: f"As --{key.replace('_', '-')}, which wins."
        if key not in _SECRET
        else "The password of ETCD_USERNAME."
        for key, (_, name) in config.SETTINGS.items()
    },
    "NO_COLOR": "If set, no colour on a terminal either.",
}
FILES = {
    str(config.CONFIG): "Where etcd is and how to log in; written by node join.",
    "~/.config/fabricctl/fabricctl.cfg": "The same, for who may not read that one.",
    str(config.AGENT_SOCKET): "The node's agent answers here.",
    str(config.LOG): "What the node's processes log, unless they run in the foreground.",
    str(config.STATE): "The node's identity, its copy of the datastore, and the sysctls that it changed.",
}


def page() -> str:
    """Return the page as roff."""
    root = typer.main.get_command(app)
    context = click.Context(root, info_name=PROGRAM)
    lines = [
        '.TH FABRICCTL 1 "" fabricctl "User commands"',
        ".SH NAME",
        f"{PROGRAM} \\- {_escaped(_summary(root))}",
        ".SH SYNOPSIS",
        f"{_bold(PROGRAM)} [OPTIONS] COMMAND [ARGS]...",
        ".SH DESCRIPTION",
        *_text(root.help or ""),
        ".SH OPTIONS",
        *_parameters(root, context),
        ".SH COMMANDS",
    ]
    for command, inner in _leaves(root, context):
        lines += [f".SS {_escaped(inner.command_path)}", *_usage(command, inner)]
        lines += [*_text(command.help or ""), *_parameters(command, inner)]
    for title, entries in (("EXIT STATUS", EXIT_STATUS), ("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES)):
        lines += [f".SH {title}", *(line for item in entries.items() for line in _entry(*item))]
    return "\n".join(lines) + "\n"


def _leaves(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """Every command that does something, in the order of the listings."""
    if not isinstance(command, click.Group):
        yield command, context
        return
    for name in command.list_commands(context):
        if (inner := command.get_command(context, name)) and not inner.hidden:
            yield from _leaves(inner, click.Context(inner, info_name=name, parent=context))


def _usage(command: click.Command, context: click.Context) -> list[str]:
    return [
        f".B {_escaped(context.command_path)}",
        _escaped(" ".join(command.collect_usage_pieces(context))),
        ".PP",
    ]


def _text(text: str) -> Iterator[str]:
    """Paragraphs; one that is an example is set as typed."""
    for paragraph in text.split("\n\n"):
        yield ".PP"
        words = " ".join(paragraph.split())
        if words.startswith("Example: "):
            yield from (".RS 4", ".EX", _escaped(words.removeprefix("Example: ")), ".EE", ".RE")
        else:
            yield _escaped(words)


def _parameters(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record and "--help" not in parameter.opts:
            yield from _entry(*record)


def _entry(term: str, text: str) -> tuple[str, str, str]:
    return ".TP", _bold(term), _escaped(text) or "\\&"


def _summary(command: click.Command) -> str:
    return (command.help or "").split("\n\n")[0].strip().rstrip(".")


def _bold(text: str) -> str:
    return f"\\fB{_escaped(text)}\\fR"


def _escaped(text: str) -> str:
    r"""Keep what is typed: "-" is a hyphen to roff, "\" an escape, and "." or "'" at a line's start a request."""
    safe = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{safe}" if safe.startswith((".", "'")) else safe


if __name__ == "__main__":
    print(page(), end="")
