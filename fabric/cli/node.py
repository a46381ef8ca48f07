"""`fabricctl node`: join, start, check, leave, status, list."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, replace
from enum import StrEnum
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fabric import config as configuration
from fabric.cli import output
from fabric.cli.options import (
    Etcd,
    EtcdCa,
    EtcdCert,
    EtcdKey,
    EtcdPasswordFile,
    EtcdUser,
    Labels,
    Output,
    etcd_flags,
    pairs,
    split,
)
from fabric.cli.output import Format
from fabric.errors import AgentError, FabricError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fabric.ops.findings import Finding
    from fabric.ops.join import Peer

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Join this host to the fabric, look at it, take it out again.\n\nExample: fabricctl node status",
)


class Switch(StrEnum):
    """`--bgp`."""

    ON = "on"
    OFF = "off"


check_app = typer.Typer(add_completion=False, rich_markup_mode=None, invoke_without_command=True)
app.add_typer(check_app, name="check")


@app.command()
def join(
    etcd: Etcd = None,
    etcd_ca: EtcdCa = None,
    etcd_cert: EtcdCert = None,
    etcd_key: EtcdKey = None,
    etcd_user: EtcdUser = None,
    etcd_password_file: EtcdPasswordFile = None,
    name: Annotated[str, typer.Option(help="The node's name.", show_default="the host name")] = "",
    ip: Annotated[str, typer.Option(help="The node's address, or auto.")] = "auto",
    as_number: Annotated[int | None, typer.Option("--as", help="Its AS number; else the cluster's.")] = None,
    label: Labels = None,
    peer: Annotated[
        list[str] | None, typer.Option(metavar="IP=AS", help="A BGP peer of this node; may be repeated.")
    ] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(metavar="PREFIX", help="The first pool of a new cluster.", show_default="a free one"),
    ] = None,
    bgp: Annotated[
        Switch | None,
        typer.Option(help="Whether this node has BGP sessions.", show_default="as it was; at first on"),
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay attached, for a service manager.")
    ] = False,
) -> None:
    """Check this host, register it as a node, start its agent and BGP speaker.

    Example: fabricctl node join --etcd 192.0.2.10:2379 --as 65001 --peer 192.0.2.1=65000
    """
    from fabric.cli.store import configured, with_store
    from fabric.ops import join as op
    from fabric.ops import start
    from fabric.ops.check import need_root

    need_root()  # what this host was told before is root's to read
    flags = etcd_flags(etcd, etcd_ca, etcd_cert, etcd_key, etcd_user, etcd_password_file)
    config = replace(
        configuration.required(configured(flags)),
        node=name or socket.gethostname(),
        bgp=bgp is Switch.ON if bgp else configuration.saved().bgp,
    )
    request = op.Request(
        name=config.node,
        etcd=config.etcd,
        ip=ip,
        as_number=None if as_number is None else _as_number(as_number),
        labels=pairs(label, "--label"),
        peers=tuple(_peer(text) for text in split(peer)),
        pools=tuple(_pool(text) for text in split(pool)),
        bgp=config.bgp,
    )
    if request.peers and not request.bgp:
        raise typer.BadParameter(
            "a node without BGP has no peers; give --bgp on with it", param_hint="--peer"
        )
    output.note(f"checking this host and registering node {config.node} ...")
    try:
        registered = with_store(lambda kv: op.register(request, kv), config)
    except StoreError as err:
        if configuration.saved() != config:
            raise
        raise StoreError(
            f"{err}; this host is node {config.node} already: `fabricctl node start` needs no etcd"
        ) from err
    for warning in registered.warnings:
        output.note(f"warning: {warning}")
    for change in registered.changes or ("nothing to change in the datastore",):
        print(change)
    process = start.start(config, foreground=foreground)
    output.note("waiting for agent, speaker and sessions ..." if process else "agent and speaker run already")
    asked_for = {str(peer.address) for peer in request.peers}
    status = start.wait_ready(process, asked_for)
    print(f"node {status['node']} ({status['address']}) {_readiness(status)}")
    _print_sessions(status["sessions"])
    waited_for = [s for s in status["sessions"] if s["type"] != "NodeMesh"]
    dead = _dead_sessions(s for s in waited_for if s["peer"] in asked_for)
    others = _dead_sessions(s for s in waited_for if s["peer"] not in asked_for)
    for why in filter(None, (others, dead if foreground and process else "")):
        output.note(f"warning: {why}")
    if foreground and process:
        _stay(process)
    elif dead:
        raise FabricError(dead)
    elif not status["ready"]:
        raise FabricError(f"node {status['node']}: {_readiness(status)}; `fabricctl node status` says more")


@app.command()
def start(
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay attached, for a service manager.")
    ] = False,
) -> None:
    """Start agent and BGP speaker of a host that has joined, as after a reboot.

    Needs no etcd: while that is away, the node works from its copy of the datastore.

    Example: fabricctl node start --foreground
    """
    from fabric.ops import start as op

    config = op.joined(configuration.saved())
    process = op.start(config, foreground=foreground)
    if foreground and process:
        _stay(process)
        return
    output.note("waiting for agent and speaker ..." if process else "agent and speaker run already")
    status = op.wait_working(process)
    store = status["datastore"]
    away = "" if store["in_sync"] and not store["locked"] else f"works; its datastore is {_datastore(store)}"
    print(f"node {config.node} {away or _readiness(status)}")


def _readiness(status: Mapping[str, Any]) -> str:
    return "is ready" if status["ready"] else f"runs, and is not ready: {'; '.join(status['missing'])}"


def _stay(process: subprocess.Popen[bytes]) -> None:
    """Live and end with the supervisor; pass on the signals that a service manager sends."""

    def pass_on(number: int, _: Any) -> None:
        process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    if status := process.wait():
        raise FabricError(f"supervisor: ended with status {status}; see {configuration.LOG}")


def _dead_sessions(sessions: Iterable[Mapping[str, Any]]) -> str:
    """Return what to say of the sessions that are not up, "" where all are."""
    dead = [s for s in sessions if s["state"] != "Established"]
    if not dead:
        return ""
    why = "\n".join(
        f"  {s['peer']} (AS {s['peer_as']}): {s['state']}: {s['reason'] or 'no answer'}" for s in dead
    )
    return (
        f"session not established:\n{why}\nthe node has joined and keeps trying; until then nothing is announced "
        "there; compare address and AS with the router's configuration"
    )


def _peer(text: str) -> Peer:
    from fabric.ops.join import Peer

    address, _, number = text.rpartition("=")
    try:
        return Peer(ip_address(address), _as_number(int(number)))
    except ValueError as err:
        raise typer.BadParameter(
            f'"{text}" is not IP=AS, such as 192.0.2.1=65000', param_hint="--peer"
        ) from err


def _as_number(number: int) -> int:
    """AS 0 is nobody's (RFC 7607)."""
    if not 1 <= number <= 0xFFFFFFFF:
        raise typer.BadParameter(f"{number} is not an AS number, 1 to 4294967295", param_hint="AS")
    return number


def _pool(text: str) -> Any:
    try:
        return ip_network(text)
    except ValueError as err:
        raise typer.BadParameter(f'"{text}" is not a prefix: {err}', param_hint="--pool") from err


@check_app.callback()
def check(context: typer.Context, form: Output = Format.TABLE) -> None:
    """Look for what keeps this host from being a node, or may hurt it. Exit status 1 on a finding.

    Changes nothing. Each finding has an id that stays the same; docs/reference/findings.md has them all.

    Example: fabricctl node check

    Example: fabricctl --etcd 192.0.2.10:2379 node check -o json
    """
    if context.invoked_subcommand:
        return
    import asyncio

    from fabric.api import client
    from fabric.cli.store import configured, with_store
    from fabric.ops import check as op
    from fabric.ops import findings

    op.need_root()
    config, node, cluster, found = configured(), configuration.saved().node, None, []
    if config.etcd:
        try:
            cluster = with_store(lambda kv: op.read_cluster(kv, node), config)
        except StoreError as err:
            found.append(findings.unreachable(str(err)))
    with output.progress("host"):
        found = asyncio.run(op.findings_here(cluster, node, config.etcd)) + found
    with suppress(AgentError):  # none runs
        status = client.call("GET", "/v1/status")
        found += [*findings.of_sessions(status["sessions"]), *findings.of_resources(status["bgp_problems"])]
    if not config.etcd:
        output.note(
            "the datastore was not looked at: no etcd endpoint is configured; give --etcd before `node`"
        )
    if form is Format.TABLE:
        _print_findings(found)
    else:
        keys = ("id", "severity", "title", "cause", "cure")
        output.document([{key: str(getattr(f, key)) for key in keys} for f in found], form)
    raise typer.Exit(1 if found else 0)


@check_app.command()
def mtu(form: Output = Format.TABLE) -> None:
    """Measure how large packets to every other node may be, in each encapsulation. Exit status 1 if a way is silent.

    Changes nothing. Sends echo requests that nobody may fragment; seconds pass where nobody answers.

    Example: fabricctl node check mtu
    """
    from fabric.cli.store import configured, with_store
    from fabric.ops import check as host
    from fabric.ops import check_mtu as op
    from fabric.ops.start import joined

    host.need_root()
    node = joined(configuration.saved()).node
    found = with_store(lambda kv: op.check(node, kv), configured())
    for warning in found.warnings:
        output.note(f"warning: {warning}")
    if form is Format.TABLE:
        output.table(
            ["NODE", "ADDRESS", "ENCAPSULATION", "USABLE", "IN USE", "HOW"],
            [
                (r.node, r.address, r.encapsulation, r.usable or "-", "yes" if r.used else "no", r.how)
                for r in found.rows
            ],
        )
    else:
        output.document([{**asdict(row), "address": str(row.address)} for row in found.rows], form)
    if not found.rows:
        output.note("there is no other node")
    if found.silent:
        raise FabricError("\n".join(found.silent))


def _print_findings(found: Sequence[Finding]) -> None:
    """A paragraph each: causes and cures are sentences, which cells of a table would tear apart."""
    for finding in found:
        print(f"{finding.id}  {finding.severity}: {finding.title}")
        print(f"  cause: {finding.cause}\n  cure:  {finding.cure}\n")
    errors = sum(finding.severity == "error" for finding in found)
    print(f"errors: {errors}, warnings: {len(found) - errors}" if found else "nothing found")


@app.command()
def leave() -> None:
    """Give back this node's blocks and names, stop its processes, clean the kernel.

    Example: fabricctl node leave
    """
    from fabric.cli.store import with_store
    from fabric.ops import leave as op
    from fabric.ops.start import joined

    config = joined(configuration.saved())
    output.note(f"node {config.node} leaves ...")
    for line in with_store(lambda kv: op.leave(config, kv)).lines:
        print(line)


@app.command()
def status(form: Output = Format.TABLE) -> None:
    """Show this node: readiness, sessions, blocks, what the kernel refused. Exit status 1 unless ready.

    Example: fabricctl node status -o json
    """
    from fabric.api import client

    answer = client.call("GET", "/v1/status")
    if form is Format.TABLE:
        _print_status(answer)
    else:
        output.document(answer, form)
    raise typer.Exit(0 if answer["ready"] else 1)


def _print_status(answer: dict[str, Any]) -> None:
    store = answer["datastore"]
    print(f"node       {answer['node']} ({answer['address'] or 'not registered'})")
    print(f"ready      {'yes' if answer['ready'] else 'no: ' + '; '.join(answer['missing'])}")
    print(f"datastore  {_datastore(store)}, revision {store['revision']}")
    print(f"speaker    {'connected' if answer['speaker']['connected'] else 'not connected'}")
    if not answer["bgp"]:
        print("bgp        off: no sessions; `fabricctl node join --bgp on` turns it on")
    print(f"workloads  {answer['workloads']}")
    print(f"policy     {_policy(answer['policy'])}")
    print()
    _print_sessions(answer["sessions"])
    print()
    output.table(["BLOCK", "HELD", "SIZE"], [(b["prefix"], b["held"], b["size"]) for b in answer["blocks"]])
    _print_tunnels(answer)
    for title, lines in (
        ("refused by the kernel", answer["refused"]),
        ("problems", answer["problems"]),
    ):
        if lines:
            print(f"\n{title}:")
            print("\n".join(f"  {line}" for line in lines))


def _print_tunnels(answer: dict[str, Any]) -> None:
    """Of the ways to nodes only those that are not simply native."""
    if answer["tunnels"]:
        print()
        output.table(
            ["TUNNEL", "ADDRESS", "MTU", "FAR ENDS", "CHECKSUMS", "STATE"],
            [
                (
                    t["device"],
                    t["address"],
                    t["mtu"],
                    "-" if t["far_ends"] is None else t["far_ends"],
                    f"by the {'link' if t['offload'] else 'kernel'}; {t['probed'] or 'not probed yet'}"
                    if t["far_ends"] is not None
                    else "-",
                    t["state"],
                )
                for t in answer["tunnels"]
            ],
        )
    if told := [w for w in answer["ways"] if w["as"] != "native" or w["why"]]:
        print()
        output.table(
            ["NODE", "FAMILY", "ENCAPSULATION", "WHY"],
            [(w["node"], w["family"], w["as"], w["why"] or "-") for w in told],
        )


def _policy(policy: dict[str, Any]) -> str:
    said = [
        f"{policy['enforced']} in force here, {policy['staged']} staged",
        policy["backend"] or "no packet filter yet",
    ]
    if policy["problems"]:
        said.append(f"problems: {policy['problems']}")
    if last := policy["put_back"]:
        first, *others = last["what"]
        more = f" and {len(others)} more" if others else ""
        said.append(f"put back {output.age(time.time() - last['at'])} ago ({first}{more})")
    return ", ".join(said)


def _datastore(store: dict[str, Any]) -> str:
    if store["in_sync"]:
        return "locked (ClusterInformation: datastoreReady is false)" if store["locked"] else "in sync"
    if not store["stale_since"]:
        return store["lost"] or "reading"
    source = ", from this node's copy" if store["copied"] else ""
    return f"stale for {output.age(time.time() - store['stale_since'])}{source} ({store['lost']})"


def _print_sessions(sessions: list[dict[str, Any]]) -> None:
    now = time.time()
    output.table(
        ["PEER", "AS", "STATE", "SINCE", "RECEIVED", "ACCEPTED", "ADVERTISED", "WHY"],
        [
            (
                s["peer"],
                s["peer_as"],
                s["state"],
                output.age(now - s["since"]) if s["since"] else "-",
                s["received"],
                s["accepted"],
                s["advertised"],
                s["reason"],
            )
            for s in sessions
        ],
    )
    for s in sessions:
        for hint in s["hints"]:
            print(f"{s['peer']}: {hint['cause']} [{hint['id']}]")


@app.command("list")
def list_nodes(form: Output = Format.TABLE) -> None:
    """List the nodes of the cluster.

    Example: fabricctl node list
    """
    from bgp.members import members
    from fabric.cli.store import fetch
    from fabric.model.base import tree
    from fabric.model.bgp import BGPConfiguration
    from fabric.model.node import Node

    nodes = [n for n in fetch("node") if isinstance(n, Node)]
    if form is not Format.TABLE:
        output.document([tree(n) for n in nodes], form)
        return
    configurations = [c for c in fetch("bgpconfiguration") if isinstance(c, BGPConfiguration)]
    numbers = {name: found.as_number for name, found in members(nodes, configurations).by_name.items()}
    for name, why in numbers.items():
        if isinstance(why, str):
            output.note(f"warning: Node {name}: {why}: it has no AS number, so no session")
    output.table(
        ["NAME", "ADDRESS", "AS", "LABELS"],
        [
            (
                n.metadata.name,
                (n.spec.bgp and (n.spec.bgp.ipv4_address or n.spec.bgp.ipv6_address)) or "-",
                number if isinstance(number := numbers.get(n.metadata.name), int) else "-",
                ",".join(f"{k}={v}" for k, v in sorted(n.metadata.labels.items())) or "-",
            )
            for n in nodes
        ],
    )
