"""`fabricctl bgp`: this node's sessions and routes, as its agent has them."""

from __future__ import annotations

import time
from enum import StrEnum

import typer

from fabric.api import client
from fabric.cli import output
from fabric.cli.options import Output
from fabric.cli.output import Format

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Show sessions and routes of this node.\n\nExample: fabricctl bgp peers",
)
routes_app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Show routes received, best, or advertised.\n\nExample: fabricctl bgp routes best",
)
app.add_typer(routes_app, name="routes")


class Table(StrEnum):
    """Which RIB."""

    RECEIVED = "received"
    BEST = "best"
    ADVERTISED = "advertised"


@app.command()
def peers(form: Output = Format.TABLE) -> None:
    """Show this node's sessions.

    Example: fabricctl bgp peers
    """
    sessions = client.call("GET", "/v1/bgp/peers")
    if form is not Format.TABLE:
        output.document(sessions, form)
        return
    now = time.time()
    output.table(
        ["PEER", "AS", "SOURCE", "STATE", "SINCE", "FLAPS", "RECEIVED", "ACCEPTED", "ADVERTISED", "WHY"],
        [
            (
                s["peer"],
                s["peer_as"],
                s["source"],
                s["state"],
                output.age(now - s["since"]) if s["since"] else "-",
                s["flaps"],
                s["received"],
                s["accepted"],
                s["advertised"],
                s["reason"],
            )
            for s in sessions
        ],
    )


@routes_app.command()
def received(form: Output = Format.TABLE) -> None:
    """Show every path the peers sent, and why one is not used.

    Example: fabricctl bgp routes received
    """
    _print(Table.RECEIVED, form)


@routes_app.command()
def best(form: Output = Format.TABLE) -> None:
    """Show the paths in use: what the kernel was given.

    Example: fabricctl bgp routes best -o json
    """
    _print(Table.BEST, form)


@routes_app.command()
def advertised(form: Output = Format.TABLE) -> None:
    """Show what each Established session carries to its peer.

    Example: fabricctl bgp routes advertised
    """
    _print(Table.ADVERTISED, form)


def _print(which: Table, form: Format) -> None:
    routes = client.call("GET", f"/v1/bgp/{which}")
    if form is not Format.TABLE:
        output.document(routes, form)
    elif which is Table.ADVERTISED:
        output.table(
            ["PEER", "PREFIX", "NEXT HOP"], [(r["peer"], r["prefix"], r["next_hop"]) for r in routes]
        )
    elif which is Table.BEST:
        output.table(
            ["PREFIX", "NEXT HOPS", "AS PATH", "FROM"],
            [
                (
                    r["prefix"],
                    ", ".join(f"{h['address']} dev {h['device']}" for h in r["next_hops"]),
                    _as_path(r),
                    r["peer"],
                )
                for r in routes
            ],
        )
    else:
        output.table(
            ["PREFIX", "PEER", "NEXT HOP", "AS PATH", "NOT USED BECAUSE"],
            [(r["prefix"], r["peer"], r["next_hop"], _as_path(r), r["refused"]) for r in routes],
        )


def _as_path(route: dict[str, list[int]]) -> str:
    return " ".join(map(str, route["as_path"]))
