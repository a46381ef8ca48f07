"""Parse the option values that several commands share; a bad one is a usage error, exit status 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from fabric.cli import completion
from fabric.cli.output import Format

Output = Annotated[Format, typer.Option("-o", "--output", help="How to print the answer.")]
Namespace = Annotated[str, typer.Option("-n", "--namespace", help="Namespace of the object.")]
Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label; may be repeated.")
]
_FILE_HELP = "A YAML or JSON file, a directory, or - for standard input; may be repeated."
Files = Annotated[list[str], typer.Option("-f", "--filename", help=_FILE_HELP, click_type=completion.FILE)]
MaybeFiles = Annotated[
    list[str] | None, typer.Option("-f", "--filename", help=_FILE_HELP, click_type=completion.FILE)
]
Recursive = Annotated[bool, typer.Option("-R", "--recursive", help="Take directories within directories.")]
Etcd = Annotated[
    list[str] | None,
    typer.Option("--etcd", metavar="HOST:PORT", help="An etcd endpoint; may be repeated or comma-separated."),
]
EtcdCa = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        click_type=completion.FILE,
        help="The CA that etcd's certificates are checked with (PEM).",
    ),
]
EtcdCert = Annotated[
    str | None,
    typer.Option(metavar="FILE", click_type=completion.FILE, help="Our client certificate (PEM)."),
]
EtcdKey = Annotated[
    str | None,
    typer.Option(metavar="FILE", click_type=completion.FILE, help="The client certificate's key (PEM)."),
]
EtcdUser = Annotated[str | None, typer.Option(metavar="NAME", help="The user to log in to etcd as.")]
EtcdPasswordFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        click_type=completion.FILE,
        help="A file with that user's password; or set ETCD_PASSWORD.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        click_type=completion.FILE,
        help="Settings, ours or a calicoctl.cfg; /etc/fabricctl/fabricctl.cfg.",
    ),
]


@dataclass(frozen=True, slots=True)
class Access:
    """What the root command was told of the datastore: a file, and settings by their key in it."""

    file: Path | None = None
    flags: Mapping[str, str] = field(default_factory=dict)


def etcd_flags(
    etcd: Sequence[str] | None,
    ca: str | None,
    cert: str | None,
    key: str | None,
    user: str | None,
    secret: str | None,
) -> dict[str, str]:
    """Return the settings that were given, an empty one included."""
    given = {
        "etcd": None if not etcd else ",".join(etcd),
        "etcd_ca": ca,
        "etcd_cert": cert,
        "etcd_key": key,
        "etcd_user": user,
        "etcd_password_file": secret,
    }
    return {name: text for name, text in given.items() if text is not None}


def pairs(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """Return `KEY=VALUE` texts as a mapping."""
    found: dict[str, str] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f'"{text}" is not KEY=VALUE', param_hint=option)
        if found.setdefault(key, value) != value:
            raise typer.BadParameter(
                f'"{key}" is given two values, "{found[key]}" and "{value}"', param_hint=option
            )
    return found


def split(texts: Sequence[str] | None) -> list[str]:
    """Return the values of a repeatable option whose values may be comma-separated."""
    return [part for text in texts or () for part in text.split(",") if part]


def without_dashes(command: list[str]) -> list[str]:
    """Return a command less the customary "--" before it, which is left to us where options end earlier."""
    return command[1:] if command[:1] == ["--"] else command
