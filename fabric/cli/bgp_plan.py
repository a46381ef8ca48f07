"""`fabricctl bgp plan`: what a node's BGP would be, from files; it touches neither etcd nor the agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fabric.cli import completion, output
from fabric.cli.options import Files, Output, Recursive
from fabric.cli.output import Format

if TYPE_CHECKING:
    from typing import Any


def plan(
    filename: Files,
    node: Annotated[str, typer.Option("--node", metavar="NAME", help="The node to plan for.")],
    recursive: Recursive = False,
    blocks: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            click_type=completion.FILE,
            help="The blocks there are, a list of {cidr, node, state} in YAML or JSON.",
        ),
    ] = "",
    form: Output = Format.TABLE,
) -> None:
    """Show what a node would do: its sessions, what it would announce. From files alone: nothing is asked of etcd.

    Example: fabricctl bgp plan --node rack1-a -f fabric/ -o json

    Example: fabricctl bgp plan --node rack1-a -f fabric.yaml --blocks blocks.json
    """
    from fabric.ops import bgp_plan

    found = bgp_plan.read(node, filename, recursive=recursive, blocks=blocks)
    for name, why in found.problems.items():
        output.note(f"warning: {name}: {why}")
    document = bgp_plan.document(found)
    if form is not Format.TABLE:
        output.document(document, form)
        return
    output.table(
        [
            "PEER",
            "NAME",
            "AS",
            "LOCAL AS",
            "SOURCE",
            "CONNECTS",
            "CLIENT",
            "NEXT HOP",
            "IMPORT",
            "EXPORT",
            "MAX",
        ],
        [_row(session) for session in document["sessions"]],
    )
    print()
    held = [(prefix, _what(prefix, document)) for prefix in _all(document)]
    output.table(["PREFIX", "WHAT"], held)


def _row(session: dict[str, Any]) -> tuple[object, ...]:
    port = f" port {session['port']}" if session["port"] != 179 else ""
    return (
        session["peer_ip"],
        session["name"] or "(mesh)",
        session["remote_as"],
        session["local_as"],
        session["source"] or "(by link)",
        "the peer" if session["passive"] else f"this node{port}",
        f"of cluster {session['cluster_id']}" if session["rr_client"] else "-",
        session["next_hop"],
        ", ".join([*session["import_filters"], session["import"]]),
        ", ".join([*session["export_filters"], session["export"]]),
        session["max_prefix"] or "-",
    )


def _all(document: dict[str, Any]) -> list[str]:
    """Every prefix once, what is announced first."""
    return list(dict.fromkeys([*document["announce"], *document["aggregates"]]))


def _what(prefix: str, document: dict[str, Any]) -> str:
    said = {
        "announced": prefix in document["announce"],
        "not announced": prefix not in document["announce"],
        "own block": prefix in document["aggregates"],
        "blackhole": prefix in document["blackholes"],
    }
    return ", ".join(what for what, so in said.items() if so)
