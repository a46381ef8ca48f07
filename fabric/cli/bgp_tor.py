"""`fabricctl bgp tor-config`: the router's side of the sessions that the resources define."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated

import typer

from fabric.cli import output
from fabric.cli.options import MaybeFiles, Recursive

if TYPE_CHECKING:
    from bgp.rib import Address


class Vendor(StrEnum):
    """Whose router; those of `fabric.ops.tor_config.RENDER`."""

    FRR = "frr"
    BIRD = "bird"
    GOBGP = "gobgp"


def tor_config(
    vendor: Annotated[Vendor, typer.Option(help="Whose configuration.")],
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="The router that has this address; given again, one that has these. By default every router.",
        ),
    ] = None,
    filename: MaybeFiles = None,
    recursive: Recursive = False,
) -> None:
    """Print a router's side of the sessions that the resources define: those in files, or else in the datastore.

    A secret is not in it: a text that says which one stands in its place.

    Example: fabricctl bgp tor-config --vendor frr --peer 10.10.11.1
    """
    one = _addresses(peer or ())
    from fabric.ops import tor_config as op

    if filename:
        given = op.from_files(filename, recursive=recursive)
    else:
        from fabric.cli.store import with_store

        given = with_store(op.from_store)
    made = op.make(given, vendor, one)
    for line in made.notes:
        output.note(f"warning: {line}")
    print("\n".join(made.texts), end="")


def _addresses(texts: Sequence[str]) -> list[Address]:
    try:
        return [ip_address(text) for text in texts]
    except ValueError as err:
        raise typer.BadParameter(str(err), param_hint="--peer") from None
