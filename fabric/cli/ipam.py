"""`fabricctl ipam`: how full pools, blocks and nodes are, what is wrong with them, and how to put it right."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fabric.cli import completion, output
from fabric.cli.options import Output
from fabric.cli.output import Format
from fabric.errors import ConfigError

if TYPE_CHECKING:
    from fabric.ipam.audit import Finding
    from fabric.ipam.config import IPAMConfig
    from fabric.ipam.inventory import Allocation
    from fabric.ipam.types import Address
    from fabric.ipam.usage import PoolUse, Use
    from fabric.ops.ipam import Checked, Contents
    from fabric.store.kv import Listing

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Show how full pools are, what is wrong with them, and put it right.\n\nExample: fabricctl ipam show",
)

Dump = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        click_type=completion.FILE,
        help="Read this instead of etcd: what `etcdctl get --prefix /calico -w json` printed; - for standard input.",
    ),
]

_SHOWN = 10  # findings of one kind that are listed unless all are asked for
_EXACT = 10**9  # IPv6 pools have 2^64 addresses: powers of two from here on are written as such


@app.command()
def show(
    ip: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Who holds this address.")] = None,
    show_blocks: Annotated[bool, typer.Option("--show-blocks", help="Each block under its pool.")] = False,
    show_nodes: Annotated[
        bool, typer.Option("--show-nodes", help="Blocks and addresses of each node.")
    ] = False,
    show_borrowed: Annotated[
        bool, typer.Option("--show-borrowed", help="Addresses held outside the holder's own blocks.")
    ] = False,
    show_configuration: Annotated[
        bool, typer.Option("--show-configuration", help="The settings of IPAM.")
    ] = False,
    dump: Dump = None,
    form: Output = Format.TABLE,
) -> None:
    """Show how many addresses are in use, by pool.

    Example: fabricctl ipam show --show-blocks
    """
    asked = _address(ip)
    if sum([ip is not None, show_blocks, show_nodes, show_borrowed, show_configuration]) > 1:
        raise typer.BadParameter(
            "--ip, --show-blocks, --show-nodes, --show-borrowed and --show-configuration exclude one another"
        )
    from fabric.ipam import inventory as inventories
    from fabric.ipam import usage

    contents, now = _contents(dump)
    inventory = contents.inventory
    for key, why in inventory.unreadable.items():
        output.note(f"warning: {key}: cannot be read, and is not counted: {why}")
    if show_configuration:
        _print_configuration(inventory.config, form)
        return
    found = tuple(inventories.allocations(inventory, now))
    if asked is not None:
        _print_holders(asked, [a for a in found if a.address == asked], form)
    elif show_borrowed:
        _print_borrowed([a for a in found if a.borrowed], contents, form)
    elif show_nodes:
        nodes = usage.by_node(inventory, found)
        headings = ["NODE", "BLOCKS", "IPS TOTAL", "IPS IN USE", "IPS HELD", "IPS BORROWED"]
        keys = ["node", "blocks", "total", "inUse", "held", "borrowed"]
        _print(
            headings, keys, [(n.node, n.blocks, n.total, n.in_use, n.holds, n.borrowed) for n in nodes], form
        )
    else:
        _print_pools(usage.by_pool(inventory), show_blocks, form)


@app.command()
def check(
    report: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            click_type=completion.FILE,
            help="Write the report here, for `ipam release`; json or yaml: print it instead of the tables.",
        ),
    ] = None,
    show_all_ips: Annotated[bool, typer.Option("--show-all-ips", help="List every address held.")] = False,
    show_problem_ips: Annotated[
        bool, typer.Option("--show-problem-ips", help=f"List every finding, not {_SHOWN} of a kind.")
    ] = False,
    dump: Dump = None,
) -> None:
    """Compare what IPAM has given out with what endpoints and nodes use; exit status 1 if they disagree.

    Example: fabricctl ipam check -o report.json
    """
    from fabric.cli.store import with_store
    from fabric.ipam.report import document
    from fabric.ops import ipam as op

    live = dump is None
    checked = with_store(lambda kv: op.check(kv, output.note)) if live else op.checked(*_contents(dump))
    written = document(
        checked.audit, checked.contents.cluster, checked.contents.inventory.revision, op.version()
    )
    if report in {Format.JSON, Format.YAML}:
        output.document(written, Format(report))
    else:
        _print_check(checked, show_all_ips, show_all_ips or show_problem_ips)
        if report is not None:
            _write(report, written)
    if checked.audit.findings:
        raise typer.Exit(1)


@app.command()
def release(
    ip: Annotated[str | None, typer.Option(metavar="ADDRESS", help="The address to release.")] = None,
    from_report: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            click_type=completion.FILE,
            help="Release what this report of `ipam check` found; of several, only what all of them found.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Also an address that is in use (--ip), or just given out (--from-report)."
        ),
    ] = False,
) -> None:
    """Release addresses that nothing uses, and put leftovers right; an endpoint that has one keeps it.

    Only what is still exactly as the report says is touched; everything else is named and left alone.

    Example: fabricctl ipam release --from-report report.json
    """
    if (ip is None) == (not from_report):
        raise typer.BadParameter("give either --ip or --from-report")
    address = _address(ip)
    from fabric.cli.store import with_store
    from fabric.ipam.inventory import GRACE
    from fabric.ipam.report import parse
    from fabric.ops import ipam as op

    if address is not None:
        with_store(lambda kv: op.release_address(kv, address, force=force))
        print(f"Successfully released IP address {address}")
        return
    reports = [parse(_read(name), _shown(name)) for name in from_report or ()]
    grace = timedelta(0) if force else GRACE

    def tell(finding: Finding) -> None:
        print(f"{finding.object}: {finding.id}: mended", flush=True)

    done = with_store(lambda kv: op.release_reported(kv, reports, grace=grace, tell=tell))
    for line in done.left:
        print(line)
    print(f"mended {len(done.mended)}, left {len(done.left)} as they are")


@app.command()
def configure(
    strictaffinity: Annotated[
        str | None,
        typer.Option(
            metavar="true|false", help="Whether nodes may take addresses of their own blocks alone."
        ),
    ] = None,
    max_blocks_per_host: Annotated[
        int | None, typer.Option(min=0, metavar="NUMBER", help="Blocks a node may have; 0: 20.")
    ] = None,
    ip_cooldown_seconds: Annotated[
        int | None,
        typer.Option(min=0, max=1200, metavar="SECONDS", help="How long a released address rests."),
    ] = None,
    form: Output = Format.TABLE,
) -> None:
    """Change the settings of IPAM, for the whole fabric, and show them.

    Example: fabricctl ipam configure --strictaffinity=true --max-blocks-per-host=4
    """
    strict = _flag(strictaffinity)
    if strict is None and max_blocks_per_host is None and ip_cooldown_seconds is None:
        raise typer.BadParameter("give at least one setting")
    from fabric.cli.store import with_store
    from fabric.ops import ipam as op

    config = with_store(
        lambda kv: op.configure(
            kv, strict_affinity=strict, max_blocks=max_blocks_per_host, cooldown=ip_cooldown_seconds
        )
    )
    _print_configuration(config, form)


def _contents(dump: str | None) -> tuple[Contents, datetime]:
    """Return the store's contents, and the time at which they stood so."""
    from fabric.cli.store import with_store
    from fabric.ops import ipam as op

    if dump is None:
        return with_store(op.contents), datetime.now(UTC)
    listing: Listing = op.dumped(_read(dump), _shown(dump))
    if dump == "-":
        return op.read(listing), datetime.now(UTC)
    return op.read(listing), datetime.fromtimestamp(Path(dump).stat().st_mtime, UTC)


def _print_check(checked: Checked, all_ips: bool, all_findings: bool) -> None:
    inventory, audit = checked.contents.inventory, checked.audit
    if all_ips:
        output.table(
            ["IP", "STATE", "NODE", "HANDLE", "USED BY"],
            [
                (a.address, a.state, a.node, a.owner.handle or "<none>", ", ".join(a.users))
                for a in audit.allocations
            ],
        )
        print()
    print(
        f"Found {len(inventory.blocks)} IPAM blocks with {len(audit.allocations)} allocations, "
        f"{len(inventory.handles)} handles, {len(inventory.pools)} pools, {len(inventory.nodes)} nodes, "
        f"{len(inventory.uses)} addresses used by endpoints and tunnels."
    )
    for note in audit.notes:
        print(f"note: {note}")
    kinds: dict[str, list[Finding]] = {}
    for finding in audit.findings:
        kinds.setdefault(finding.id, []).append(finding)
    for kind, findings in kinds.items():
        print(f"\n{kind} ({len(findings)}): {findings[0].cure}")
        shown = findings if all_findings else findings[:_SHOWN]
        output.table(["OBJECT", "NODE", "WHY"], [(f.object, f.node or "-", f.why) for f in shown])
        if len(shown) < len(findings):
            print(f"and {len(findings) - len(shown)} more: --show-problem-ips lists them all")
    print(f"\nCheck complete; found {len(audit.findings)} problems.")


def _print_pools(pools: Iterable[PoolUse], show_blocks: bool, form: Format) -> None:
    if form is not Format.TABLE:
        output.document([_pool(pool) for pool in pools], form)
        return
    rows: list[tuple[str, ...]] = []
    for pool in pools:
        if pool.cidr is not None:
            rows.append(("IP Pool", str(pool.cidr), *_use(pool.use), ""))
        if show_blocks:
            rows += [("Block", str(b.prefix), *_use(b.use), b.affinity or "<none>") for b in pool.blocks]
    headings = ["GROUPING", "CIDR", "IPS TOTAL", "IPS IN USE", "IPS RESERVED", "IPS FREE", "IPS COOLING"]
    if show_blocks:
        output.table([*headings, "AFFINITY"], rows)
    else:
        output.table(headings, [row[:-1] for row in rows])


def _use(use: Use) -> tuple[str, ...]:
    parts = (use.in_use, use.reserved, use.free, use.cooling)
    return _number(use.total), *(f"{_number(n)} ({100 * n / use.total:.0f}%)" for n in parts)


def _number(n: int) -> str:
    power = n.bit_length() - 1
    return f"2^{power}" if n >= _EXACT and n == 1 << power else str(n)


def _pool(pool: PoolUse) -> dict[str, Any]:
    return {
        "name": pool.name,
        "cidr": str(pool.cidr) if pool.cidr else None,
        "disabled": pool.disabled,
        **_counts(pool.use),
        "blocks": [
            {"cidr": str(b.prefix), "affinity": b.affinity, "node": b.node, **_counts(b.use)}
            for b in pool.blocks
        ],
    }


def _counts(use: Use) -> dict[str, int]:
    return {
        "total": use.total,
        "inUse": use.in_use,
        "reserved": use.reserved,
        "free": use.free,
        "cooling": use.cooling,
    }


def _print_holders(asked: Address, found: list[Allocation], form: Format) -> None:
    if form is not Format.TABLE:
        output.document(
            {"ip": str(asked), "assigned": bool(found), "allocations": [_holder(a) for a in found]}, form
        )
        return
    if not found:
        print(f"{asked} is not assigned")
    for a in found:
        print(f"IP {a.address} is {a.state}")
        print(f"Handle ID: {a.owner.handle or '<none>'}")
        print(f"Block: {a.block}{' (borrowed)' if a.borrowed else ''}")
        for user in a.users:
            print(f"Used by: {user}")
        _print_attributes("Active Owner Attributes", a.owner.secondary)
        _print_attributes("Alternate Owner Attributes", a.owner.alternate)


def _print_attributes(title: str, attributes: Mapping[str, str]) -> None:
    if attributes:
        print(f"{title}:")
        for key, value in sorted(attributes.items()):
            print(f"  {key}: {value}")


def _holder(a: Allocation) -> dict[str, Any]:
    return {
        "block": str(a.block),
        "state": str(a.state),
        "handle": a.owner.handle,
        "node": a.node,
        "borrowed": a.borrowed,
        "usedBy": list(a.users),
        "attributes": dict(a.owner.secondary),
        "alternateAttributes": dict(a.owner.alternate),
    }


def _print_borrowed(found: Iterable[Allocation], contents: Contents, form: Format) -> None:
    blocks = contents.inventory.blocks
    rows = []
    for a in found:
        attributes = a.owner.secondary
        name = attributes.get("workload") or attributes.get("pod") or ""
        to = f"{attributes.get('namespace', '')}/{name}" if name else ", ".join(a.users)
        owner = blocks[a.block].block.node or ""
        rows.append((str(a.address), a.node, str(a.block), owner, attributes.get("type") or "workload", to))
    headings = ["IP", "BORROWING-NODE", "BLOCK", "BLOCK OWNER", "TYPE", "ALLOCATED-TO"]
    _print(headings, ["ip", "borrowingNode", "block", "blockOwner", "type", "allocatedTo"], rows, form)


def _print_configuration(config: IPAMConfig, form: Format) -> None:
    settings: list[tuple[str, str, Any]] = [
        ("StrictAffinity", "strictAffinity", config.strict_affinity),
        ("AutoAllocateBlocks", "autoAllocateBlocks", config.auto_allocate),
        ("MaxBlocksPerHost", "maxBlocksPerHost", config.max_blocks),
        ("IPCooldownSeconds", "ipCooldownSeconds", config.cooldown),
        *((key, key, value) for key, value in config.rest.items()),
    ]
    if form is not Format.TABLE:
        output.document({key: value for _, key, value in settings}, form)
    else:
        output.table(
            ["PROPERTY", "VALUE"],
            [(name, str(value).lower() if isinstance(value, bool) else value) for name, _, value in settings],
        )


def _print(headings: list[str], keys: list[str], rows: list[tuple[Any, ...]], form: Format) -> None:
    if form is Format.TABLE:
        output.table(headings, rows)
    else:
        output.document([dict(zip(keys, row, strict=True)) for row in rows], form)


def _address(text: str | None) -> Address | None:
    from ipaddress import ip_address

    if text is None:
        return None
    try:
        if "%" in text:
            raise ValueError
        return ip_address(text)
    except ValueError:
        raise typer.BadParameter(f'"{text}" is no IP address', param_hint="--ip") from None


def _flag(text: str | None) -> bool | None:
    match text.lower() if text is not None else None:
        case None:
            return None
        case "true":
            return True
        case "false":
            return False
    raise typer.BadParameter(f'"{text}": must be true or false', param_hint="--strictaffinity")


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "not UTF-8 text"
        raise ConfigError(f"{_shown(name)}: {reason}; nothing was changed") from err


def _shown(name: str) -> str:
    return "standard input" if name == "-" else name


def _write(name: str, document: dict[str, Any]) -> None:
    import json

    try:
        Path(name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as err:
        raise ConfigError(f"{name}: {err.strerror}; the report was not written") from err
    output.note(f"report written to {name}")
