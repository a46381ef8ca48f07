"""`fabricctl bgp`: sessions and routes, this node's as its agent has them, and all nodes' as they publish them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from fabric.api import client
from fabric.cli import bgp_plan, bgp_tor, output
from fabric.cli.options import Output
from fabric.cli.output import Format
from fabric.config import AGENT_SOCKET

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Show sessions and routes of this node, and act on its sessions.\n\nExample: fabricctl bgp peers",
)
routes_app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Show routes received, best, or advertised.\n\nExample: fabricctl bgp routes best",
)
app.add_typer(routes_app, name="routes")
app.command()(bgp_plan.plan)
app.command("tor-config")(bgp_tor.tor_config)

Json = Mapping[str, Any]

PeerName = Annotated[str, typer.Argument(help="The peer's address, or the name of a BGPPeer.")]
OfPeer = Annotated[
    str, typer.Option(metavar="PEER", help="Only of this peer: its address, or a BGPPeer's name.")
]
OfPrefix = Annotated[
    str,
    typer.Option(
        metavar="PREFIX", help="Only what is inside this prefix, or what this address is inside of."
    ),
]


class PeersFormat(StrEnum):
    """`-o` of `bgp peers`."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


@app.command()
def peers(
    all_nodes: Annotated[
        bool,
        typer.Option("--all-nodes", help="Those of every node, as published in etcd; needs no agent here."),
    ] = False,
    form: Annotated[
        PeersFormat, typer.Option("-o", "--output", help="How to print the answer.")
    ] = PeersFormat.TABLE,
) -> None:
    """Show sessions: how each is, why one is down, what is likely wrong with it.

    Example: fabricctl bgp peers

    Example: fabricctl --etcd 192.0.2.10:2379 bgp peers --all-nodes -o json
    """
    if all_nodes:
        _peers_of_all(form)
    else:
        _peers_here(form)


def _peers_here(form: PeersFormat, at: Path = AGENT_SOCKET) -> None:
    if form in (PeersFormat.JSON, PeersFormat.YAML):
        output.document(client.call("GET", "/v1/bgp/peers", at=at), Format(form))
        return
    status = client.call("GET", "/v1/status", at=at)  # which has the sessions too
    _warn(status)
    now = time.time()
    _print_peers([("", now, session) for session in status["sessions"]], form is PeersFormat.WIDE)


def _warn(status: Json) -> None:
    """Say what of BGP's resources is not done, also where no session tells of it."""
    if not status["bgp"]:
        output.note("BGP is off on this node: no sessions; `fabricctl node join --bgp on` turns it on")
    for problem in status["bgp_problems"]:
        output.note(f"warning: {problem}")


def _peers_of_all(form: PeersFormat) -> None:
    from fabric.cli.store import with_store
    from fabric.ops import all_nodes

    published = with_store(all_nodes.sessions)
    now = time.time()
    if form in (PeersFormat.JSON, PeersFormat.YAML):
        output.document([all_nodes.document(found, now) for found in published], Format(form))
        return
    for found in published:
        if why := found.missing(now):
            output.note(f"warning: node {found.node}: {why}")
    rows = [(found.node, found.at, session) for found in published for session in found.sessions]
    _print_peers(rows, form is PeersFormat.WIDE)


def _print_peers(rows: Sequence[tuple[str, float, Json]], wide: bool) -> None:
    """Each row is a node ("" for this one), the time at which it said so, and the session."""
    now = time.time()
    columns: dict[str, list[object]] = (
        {"NODE": [node for node, _, _ in rows]} if any(r[0] for r in rows) else {}
    )
    sessions = [session for _, _, session in rows]
    columns |= {
        "PEER": [s["peer"] for s in sessions],
        "NAME": [s["name"] or "(mesh)" for s in sessions],
        "AS": [s["peer_as"] for s in sessions],
        "STATE": [s["state"] + (", drained" if s["drained"] else "") for s in sessions],
        "SINCE": [output.age(now - s["since"]) if s["since"] else "-" for s in sessions],
        "RECEIVED": [s["received"] for s in sessions],
        "ACCEPTED": [s["accepted"] for s in sessions],
        "BEST": [s["best"] for s in sessions],
        "ADVERTISED": [s["advertised"] for s in sessions],
    }
    if wide:
        columns |= {
            "SOURCE": [s["source"] for s in sessions],
            "PEER ID": [s["peer_id"] or "-" for s in sessions],
            "FLAPS": [s["flaps"] for s in sessions],
            "MAX": [s["max_prefixes"] or "-" for s in sessions],
            "UPDATES IN": [s["updates_in"] for s in sessions],
            "UPDATES OUT": [s["updates_out"] for s in sessions],
            "REQUIRED": ["yes" if s["required"] else "no" for s in sessions],
        }
    if "NODE" in columns:
        columns["AGE"] = [output.age(now - at) for _, at, _ in rows]
    columns["WHY"] = [_why(s, now) for s in sessions]
    output.table(list(columns), zip(*columns.values(), strict=True))
    for node, _, session in rows:
        for hint in session["hints"]:
            where = f"{node}: {session['peer']}" if node else session["peer"]
            print(f"\n{where}: {hint['cause']} [{hint['id']}]\n  {hint['cure']}")
    if wide and (hits := [(node, s["peer"], hit) for node, _, s in rows for hit in s["hits"]]):
        print()
        output.table(
            ["PEER", "FILTER", "RULE", "HITS"],
            [
                (
                    " ".join(filter(None, (node, peer))),
                    h["filter"],
                    f"{h['direction']}V{h['version']}[{h['rule']}]",
                    h["hits"],
                )
                for node, peer, h in hits
            ],
        )


def _why(session: Json, now: float) -> str:
    """Why it is not Established, and how it ended last."""
    if session["state"] == "Established":
        return ""
    said = [session["reason"]]
    if until := session["idle_until"]:
        said.append(f"idle for {output.age(until - now)} more")
    if (last := session["notification"]) and "notification" not in session["reason"]:
        who = "this node" if last["sent_by"] == "us" else "the peer"
        code = f"{last['text']} ({last['code']}/{last['subcode']})"
        said.append(f"last notification: {code}, from {who}, {output.age(now - last['at'])} ago")
    return "; ".join(filter(None, said))


@app.command()
def route(
    prefix: Annotated[str, typer.Argument(help="A prefix, or an address in it.")], form: Output = Format.TABLE
) -> None:
    """Show all there is of one prefix: every path and where it lost, the kernel's route, to whom it is announced.

    Example: fabricctl bgp route 10.244.2.0/26

    Example: fabricctl bgp route 10.244.2.7 -o json
    """
    found = client.call("GET", f"/v1/bgp/route?{urlencode({'prefix': prefix})}")
    if form is Format.TABLE:
        _print_route(found)
    else:
        output.document(found, form)


def _print_route(found: Json) -> None:
    kernel = found["kernel"]
    print(f"prefix  {found['prefix']}{', own ' + found['own'] if found['own'] else ''}")
    there = _kernel_route(kernel["route"]) if kernel["route"] else "no route"
    print(f"kernel  {there}{': ' + kernel['why'] if kernel['why'] else ''}\n")
    output.table(
        ["FROM", "NEXT HOP", "AS PATH", "LOCAL PREF", "MED", "USE", "WHY"],
        [
            (
                p["peer"],
                p["next_hop"],
                _as_path(p),
                _number(p["local_pref"]),
                _number(p["med"]),
                p["use"],
                p["why"],
            )
            for p in found["paths"]
        ],
    )
    print()
    output.table(
        ["TO", "ADVERTISED", "NEXT HOP", "AS PATH", "COMMUNITIES", "WHY"],
        [
            (
                a["peer"],
                "yes" if a["advertised"] else "no",
                *_announced(a["announcement"] or {"next_hop": "-", "as_path": [], "communities": []}),
                a["why"],
            )
            for a in found["advertised"]
        ],
    )


def _kernel_route(found: Json) -> str:
    if found["type"] == "blackhole":
        return "blackhole"
    hops = (
        [f"via {h['address']}"] * bool(h["address"]) + [f"dev {h['device']}"] * bool(h["device"])
        for h in found["next_hops"]
    )
    return ", ".join(" ".join(hop) for hop in hops)


def _announced(announcement: Json) -> tuple[str, str, str]:
    return announcement["next_hop"], _as_path(announcement), " ".join(announcement["communities"])


@app.command()
def reset(peer: PeerName) -> None:
    """End sessions and let them come up again at once, also one that idles for its number of prefixes.

    Example: fabricctl bgp reset 192.0.2.1
    """
    _act(peer, "reset", "reset")


@app.command()
def drain(peer: PeerName) -> None:
    """Make the paths over a peer the last choice, both ways (RFC 8326), before maintenance; it survives a reboot.

    Returns once the announcements that say so were handed to the BGP speaker.

    Example: fabricctl bgp drain tor-a
    """
    _act(peer, "drain", "drained")


@app.command()
def undrain(peer: PeerName) -> None:
    """Use the paths over a peer again.

    Example: fabricctl bgp undrain tor-a
    """
    _act(peer, "undrain", "in use again")


def _act(peer: str, verb: str, done: str, at: Path = AGENT_SOCKET) -> None:
    for found in client.call("POST", f"/v1/bgp/peers/{quote(peer, safe='')}/{verb}", at=at):
        print(f"{found['peer']} ({found['name'] or 'mesh'}): {done}")


@routes_app.command()
def received(peer: OfPeer = "", prefix: OfPrefix = "", form: Output = Format.TABLE) -> None:
    """Show every path the peers sent, and why one is not used.

    Example: fabricctl bgp routes received --peer 192.0.2.1
    """
    routes = _routes("received", peer, prefix)
    if form is not Format.TABLE:
        output.document(routes, form)
        return
    output.table(
        ["PREFIX", "PEER", *ATTRIBUTES, "NOT USED BECAUSE"],
        [(r["prefix"], r["peer"], *_attributes(r), r["refused"]) for r in routes],
    )


@routes_app.command()
def best(peer: OfPeer = "", prefix: OfPrefix = "", form: Output = Format.TABLE) -> None:
    """Show the paths in use: what the kernel was given.

    Example: fabricctl bgp routes best -o json
    """
    routes = _routes("best", peer, prefix)
    if form is not Format.TABLE:
        output.document(routes, form)
        return
    output.table(
        ["PREFIX", "NEXT HOPS", "AS PATH", "FROM"],
        [
            (
                r["prefix"],
                ", ".join(f"{h['address']} dev {h['device']}" for h in r["next_hops"]),
                _as_path(r),
                " ".join(r["peers"]),
            )
            for r in routes
        ],
    )


@routes_app.command()
def advertised(peer: OfPeer = "", prefix: OfPrefix = "", form: Output = Format.TABLE) -> None:
    """Show what each Established session carries to its peer.

    Example: fabricctl bgp routes advertised --prefix 10.244.0.0/16
    """
    routes = _routes("advertised", peer, prefix)
    if form is not Format.TABLE:
        output.document(routes, form)
        return
    output.table(["PEER", "PREFIX", *ATTRIBUTES], [(r["peer"], r["prefix"], *_attributes(r)) for r in routes])


def _routes(table: str, peer: str, prefix: str, at: Path = AGENT_SOCKET) -> list[Json]:
    asked = {name: text for name, text in (("peer", peer), ("prefix", prefix)) if text}
    found: list[Json] = client.call("GET", f"/v1/bgp/{table}{'?' if asked else ''}{urlencode(asked)}", at=at)
    return found


ATTRIBUTES = ("NEXT HOP", "AS PATH", "LOCAL PREF", "MED", "COMMUNITIES")


def _attributes(route: Json) -> Iterable[str]:
    yield route["next_hop"]
    yield _as_path(route)
    yield _number(route["local_pref"])
    yield _number(route["med"])
    yield " ".join(route["communities"])


def _as_path(route: Json) -> str:
    return " ".join(map(str, route["as_path"]))


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
