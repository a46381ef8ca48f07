"""Parse the option values that several commands share; a bad one is a usage error, exit status 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from fabric.cli.output import Format

Output = Annotated[Format, typer.Option("-o", "--output", help="How to print the answer.")]
Namespace = Annotated[str, typer.Option("-n", "--namespace", help="Namespace of the object.")]
Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label; may be repeated.")
]
Etcd = Annotated[
    list[str] | None,
    typer.Option("--etcd", metavar="HOST:PORT", help="An etcd endpoint; may be repeated or comma-separated."),
]


def pairs(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """Return `KEY=VALUE` texts as a mapping."""
    found = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f'"{text}" is not KEY=VALUE', param_hint=option)
        found[key] = value
    return found


def split(texts: Sequence[str] | None) -> list[str]:
    """Return the values of a repeatable option whose values may be comma-separated."""
    return [part for text in texts or () for part in text.split(",") if part]


def without_dashes(command: list[str]) -> list[str]:
    """Return a command less the customary "--" before it, which is left to us where options end earlier."""
    return command[1:] if command[:1] == ["--"] else command
