"""`fabricctl policy`: test it on files, trace a packet through it, stage and promote it, and see what it counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import typer

from fabric.api import client
from fabric.cli import completion, output
from fabric.cli.options import MaybeFiles, Output, Recursive
from fabric.cli.output import Format
from fabric.config import AGENT_SOCKET
from fabric.errors import ConfigError, FabricError, NotFound

if TYPE_CHECKING:
    from fabric.ops.staging import Done

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Test policy, trace packets through it, stage and promote it.\n\n"
    "Example: fabricctl policy trace shop/web shop/db tcp/5432",
)

Json = Mapping[str, Any]

DENIED, TROUBLE = 1, 2  # exit statuses of trace, in the manner of diff

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, say what would be done, write nothing.")
]
InNamespace = Annotated[
    str | None,
    typer.Option(
        "-n",
        "--namespace",
        help="Namespace of the policy; without it a global one is looked for, too.",
        show_default="default",
    ),
]
PolicyName = Annotated[str, typer.Argument(metavar="NAME", help="The policy's name, or KIND/NAME.")]
_END = "A workload as NAMESPACE/NAME, an address, a host endpoint or a node."


class Family(StrEnum):
    """`--family`."""

    V4 = "4"
    V6 = "6"


@app.command("test")
def try_cases(
    cases: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Files with cases; a directory is its *.test.yaml and *.test.yml.",
            click_type=completion.FILE,
        ),
    ],
    filename: MaybeFiles = None,
    recursive: Recursive = False,
    junit: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the outcome as JUnit XML.", click_type=completion.FILE),
    ] = None,
    form: Output = Format.TABLE,
) -> None:
    """Try the cases in files on the policies and endpoints in files; exit status 1 if one comes out otherwise.

    Nothing is asked of etcd or an agent. With -f, those files take the place of the resources that the cases name.

    Example: fabricctl policy test tests/shop.yaml

    Example: fabricctl policy test policies/ -R --junit report.xml
    """
    from fabric.ops import policy_cases

    found = policy_cases.tried(cases, filename or (), recursive=recursive)
    for line in dict.fromkeys(line for one in found for line in policy_cases.problems(one)):
        output.note(f"warning: {line}")
    if junit:
        from fabric.ops import policy_junit

        policy_junit.write(junit, found)
    failed = policy_cases.failed(found)
    if form is Format.TABLE:
        for line in policy_cases.report(found):
            print(line)
        count = sum(len(one.outcomes) for one in found)
        print(f"{count} case{'s' if count != 1 else ''}, {failed} not as expected")
    else:
        output.document(policy_cases.document(found), form)
    raise typer.Exit(1 if failed else 0)


@app.command()
def trace(
    source: Annotated[str, typer.Argument(metavar="FROM", help=_END)],
    destination: Annotated[str, typer.Argument(metavar="TO", help=_END)],
    asked: Annotated[
        str, typer.Argument(metavar="PROTOCOL", help="As tcp/443, udp/53, icmp, icmp/8/0, or a number.")
    ],
    family: Annotated[
        Family | None, typer.Option(help="Of ends that have addresses of both, take these.", show_default="4")
    ] = None,
    form: Output = Format.TABLE,
) -> None:
    """Say what becomes of a packet, tier by tier, and which policy and rule decide at each end.

    The datastore is asked, no node. Exit status 0: it is allowed, 1: it is denied, 2: it cannot be told.

    Example: fabricctl policy trace shop/web shop/db tcp/5432

    Example: fabricctl policy trace 198.51.100.7 shop/web tcp/443 -o json
    """
    from fabric.cli.store import with_store
    from fabric.ops import policy

    version = int(family) if family else None
    try:
        found = with_store(lambda kv: policy.traced(kv, source, destination, asked, version))
    except FabricError as err:
        output.note(f"fabricctl: {err}")
        raise typer.Exit(TROUBLE) from err
    for line in found.warnings:
        output.note(f"warning: {line}")
    if form is Format.TABLE:
        for line in policy.lines(found.trace):
            print(line)
    else:
        output.document(found.trace, form)
    raise typer.Exit(0 if found.allowed else DENIED)


@app.command()
def promote(name: PolicyName, namespace: InNamespace = None, dry_run: DryRun = False) -> None:
    """Enforce a staged policy: it takes the place of the enforced one of its name, and is no longer staged.

    One whose stagedAction is Delete takes the enforced one away. Both in one transaction.

    Example: fabricctl policy promote deny-all -n shop

    Example: fabricctl policy promote stagedglobalnetworkpolicy/deny-all --dry-run
    """
    from fabric.cli.store import with_store
    from fabric.ops import staging

    _told(with_store(lambda kv: staging.promote(kv, name, namespace, dry_run=dry_run)), dry_run)


@app.command()
def stage(name: PolicyName, namespace: InNamespace = None, dry_run: DryRun = False) -> None:
    """Make an enforced policy a staged one: it counts what it would deny, and denies nothing.

    Example: fabricctl policy stage deny-all -n shop
    """
    from fabric.cli.store import with_store
    from fabric.ops import staging

    _told(with_store(lambda kv: staging.stage(kv, name, namespace, dry_run=dry_run)), dry_run)


def _told(done: Sequence[Done], dry_run: bool) -> None:
    for one in done:
        print(f"{one.what}: {one.verb}{' (dry run)' if dry_run else ''}")


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="ENDPOINT",
            help="A workload of this node, as NAMESPACE/NAME, or NAME where one alone has it.",
        ),
    ],
    namespace: Annotated[
        str | None, typer.Option("-n", "--namespace", help="Namespace of the workload.")
    ] = None,
    host: Annotated[bool, typer.Option("--host", help="ENDPOINT is a host endpoint.")] = False,
    form: Output = Format.TABLE,
) -> None:
    """Show what decides for an endpoint of this node, in order, and how many packets each rule has met.

    Counters are the kernel's, since the rules were last written; endpoints that share a list share its counters.

    Example: fabricctl policy show shop/web

    Example: fabricctl policy show --host node1-eth0 -o json
    """
    found = _shown(name, namespace, host)
    if form is Format.TABLE:
        _print_shown(found)
    else:
        output.document(found, form)


def _shown(name: str, namespace: str | None, host: bool, at: Path = AGENT_SOCKET) -> Json:
    asked = {"host": name} if host else {"workload": _workload(name, namespace, at)}
    found: Json = client.call("GET", f"/v1/policy/endpoint?{urlencode(asked)}", at=at)
    return found


def _workload(name: str, namespace: str | None, at: Path) -> str:
    """Return which workload of this node is meant, as NAMESPACE/NAME.

    Raises:
        ConfigError: it is in another namespace than is asked for, or more than one is called so.
        NotFound: none of this node is called so; another node may have it, or none.
    """
    within, slash, bare = name.rpartition("/")
    if slash and namespace not in {None, within}:
        raise ConfigError(f'"{name}" is in namespace {within}, and -n says {namespace}; say one of them')
    wanted = name if slash else f"{namespace}/{name}" if namespace else ""
    here = [f"{one['namespace']}/{one['name']}" for one in client.call("GET", "/v1/workloads", at=at)]
    found = [one for one in here if one == wanted or (not wanted and one.rpartition("/")[2] == bare)]
    if len(found) > 1:
        raise ConfigError(f'"{name}" is more than one: {", ".join(sorted(found))}; say NAMESPACE/NAME')
    if not found:
        close = get_close_matches(wanted or name, here if wanted else [*here, *map(_bare, here)], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise NotFound(
            f'"{wanted or name}" is no workload of this node; it may be on another, which knows its counters, or '
            f"there is none{hint}"
        )
    return found[0]


def _bare(workload: str) -> str:
    return workload.rpartition("/")[2]


def _print_shown(found: Json) -> None:
    held = ", ".join(found["addresses"])
    link = f" on {found['interface']}" if found["interface"] else ""
    print(f"{found['endpoint']}, node {found['node']}: {held}{link}")
    if why := found.get("inactive"):
        print(f"not in force: {why}")
    for direction in ("ingress", "egress"):
        print(f"\n{direction}")
        rows = [row for layer in found[direction] for row in _rows(layer)]
        output.table(["TIER", "POLICY", "RULE", "ACTION", "MATCH", "PACKETS", "BYTES"], rows)


def _rows(layer: Json) -> Iterator[tuple[object, ...]]:
    """A row a rule, or one for the end of a list, or for a policy that has no rules."""
    hook = "" if layer["hook"] == "normal" else f" ({layer['hook']})"
    tier = f"{layer['tier']}{hook}" if layer["tier"] else "-"
    names = {"tier": "end of tier", "no-profile": "end of profiles", "profile": f"Profile {layer['name']}"}
    name = f"{names.get(layer['what'], layer['name'])}{' (staged)' if layer['staged'] else ''}"
    if end := layer["end"]:
        why = f"broken: {layer['broken']}" if layer["broken"] else "-"
        yield tier, name, "-", end["action"], why, _count(end["packets"]), _count(end["bytes"])
    elif not layer["rules"]:
        why = "does not exist" if layer.get("missing") else "no rules in this direction"
        yield tier, name, "-", "-", why, "-", "-"
    for rule in layer["rules"]:
        counted = _count(rule["packets"]), _count(rule["bytes"])
        yield tier, name, rule["rule"], rule["action"], rule["match"], *counted


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)
