"""Check, mend and configure IPAM: one listing in, guarded transactions out; a dump serves as a listing too."""

from __future__ import annotations

import asyncio
import base64
import importlib.metadata
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from fabric.errors import ConfigError, Conflict, NotFound, Taken
from fabric.ipam import audit as auditing
from fabric.ipam import block as blocks
from fabric.ipam import config as configuring
from fabric.ipam import inventory as inventories
from fabric.ipam import records
from fabric.ipam.audit import LEAKED, Audit, Finding, Key
from fabric.ipam.config import IPAMConfig
from fabric.ipam.inventory import GRACE, Allocation, Inventory, State
from fabric.ipam.records import Affinity, Handle
from fabric.ipam.report import Cluster, Report
from fabric.ipam.types import Address, Prefix
from fabric.ipam.view import Stored
from fabric.model.base import Resource
from fabric.model.clusterinformation import ClusterInformation
from fabric.model.ippool import IPPool
from fabric.model.ipreservation import IPReservation
from fabric.model.node import Node
from fabric.model.wire import from_json
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.store import ipam, keys
from fabric.store.kv import Guard, KeyValue, KeyValueStore, Listing, Put, Txn

R = TypeVar("R", bound=Resource)

ATTEMPTS = 5  # lost races before a release or a configuration gives up
SECOND_LOOK = 2.0  # seconds; what a claim or an attach leaves for an instant is gone by then
MAX_COOLDOWN = 1200  # seconds


@dataclass(frozen=True)
class Contents:
    """One listing, read."""

    inventory: Inventory
    cluster: Cluster


def version() -> str:
    """Return what reports say made them."""
    return f"fabricctl {importlib.metadata.version('fabricctl')}"


# Reading.


async def contents(kv: KeyValueStore) -> Contents:
    """Return everything that bears on addresses, as of one revision."""
    return read(await kv.list(keys.CALICO))


def read(listing: Listing) -> Contents:
    """Return what a listing of `/calico/` says; what cannot be read is named and known to be there."""
    reader = _Reader()
    for item in listing.items:
        try:
            reader.take(item)
        except ConfigError as err:
            reader.refuse(item.key, str(err))
    return reader.done(listing.revision)


@dataclass
class _Reader:
    """Collects the items of one listing by what they are."""

    nodes: list[Node] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    endpoints: list[WorkloadEndpoint] = field(default_factory=list)
    pools: list[IPPool] = field(default_factory=list)
    reserved: list[Prefix] = field(default_factory=list)
    blocks: dict[Prefix, Stored] = field(default_factory=dict)
    affinities: dict[tuple[str, Prefix], Affinity] = field(default_factory=dict)
    handles: dict[str, Handle] = field(default_factory=dict)
    config: IPAMConfig = field(default_factory=IPAMConfig)
    cluster: Cluster = field(default_factory=Cluster)
    unreadable: dict[str, str] = field(default_factory=dict)

    def take(self, item: KeyValue) -> None:
        match keys.parse(item.key):
            case keys.BlockKey(prefix):
                block = blocks.from_json(item.value)
                if block.prefix != prefix:
                    raise ConfigError(f"stored block: it says it is {block.prefix}")
                self.blocks[prefix] = Stored(block, item.revision)
            case keys.AffinityKey(node, prefix):
                self.affinities[node, prefix] = records.affinity_from_json(item.value, item.revision)
            case keys.HandleKey(handle):
                self.handles[handle] = records.handle_from_json(item.value, item.revision)
            case keys.ResourceKey(plural, _, name):
                self._resource(plural, name, item)
            case None if item.key == keys.IPAM_CONFIG:
                self.config = configuring.from_json(item.value)
            case None if item.key.startswith((keys.BLOCKS, keys.AFFINITIES, keys.HANDLES)):
                raise ConfigError("no block, affinity or handle has such a key")

    def _resource(self, plural: str, name: str, item: KeyValue) -> None:
        match plural:
            case "nodes":
                self.names.add(name)
                self.nodes.append(_of(Node, item))
            case "workloadendpoints":
                self.endpoints.append(_of(WorkloadEndpoint, item))
            case "ippools":
                self.pools.append(_of(IPPool, item))
            case "ipreservations":
                self.reserved += _of(IPReservation, item).spec.reserved_cidrs
            case "clusterinformations" if name == "default":
                spec = _of(ClusterInformation, item).spec
                self.cluster = Cluster(
                    spec.cluster_guid, spec.cluster_type, str(item.revision), spec.datastore_ready is False
                )

    def refuse(self, key: str, why: str) -> None:
        self.unreadable[key] = why

    def done(self, revision: int) -> Contents:
        dark = [keys.parse(key) for key in self.unreadable]
        users = [
            key.path
            for key in dark
            if isinstance(key, keys.ResourceKey) and key.plural in {"nodes", "workloadendpoints"}
        ]
        return Contents(
            Inventory(
                revision=revision,
                nodes=frozenset(self.names),
                uses=inventories.uses(self.nodes, self.endpoints),
                pools=tuple(self.pools),
                reserved=tuple(self.reserved),
                blocks=self.blocks,
                affinities=self.affinities,
                handles=self.handles,
                config=self.config,
                unreadable=self.unreadable,
                dark_blocks=frozenset(key.prefix for key in dark if isinstance(key, keys.BlockKey)),
                dark_handles=frozenset(key.id for key in dark if isinstance(key, keys.HandleKey)),
                blind=f"perhaps used by what cannot be read, {users[0]}" if users else "",
            ),
            self.cluster,
        )


def _of(cls: type[R], item: KeyValue) -> R:
    resource = from_json(item.value)
    if not isinstance(resource, cls):
        raise ConfigError(f"a {resource.kind} is stored in its place")
    return resource


def dumped(text: str, where: str) -> Listing:
    """Read what `etcdctl get --prefix /calico -w json` printed.

    Args:
        where: names the file in messages.

    Raises:
        ConfigError: it is no such dump, or not a whole one.
    """
    try:
        found = json.loads(text)
        items = tuple(
            KeyValue(_decoded(kv["key"]), _decoded(kv.get("value") or ""), int(kv["mod_revision"]))
            for kv in found.get("kvs") or ()
        )
        listing, more = Listing(int(found["header"]["revision"]), items), bool(found.get("more"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as err:
        raise ConfigError(
            f"{where}: no dump of etcd ({type(err).__name__}: {err}); make one with "
            "`etcdctl get --prefix /calico -w json`"
        ) from err
    # Without the endpoints every address would look leaked.
    if more or not any(item.key.startswith(keys.RESOURCES) for item in items):
        raise ConfigError(
            f"{where}: the dump is not whole: it {'was cut off by a limit' if more else 'has no resources'}; make "
            "one with `etcdctl get --prefix /calico -w json`"
        )
    return listing


def _decoded(text: str) -> str:
    return base64.b64decode(text, validate=True).decode("utf-8", "surrogateescape")


# Checking.


@dataclass(frozen=True)
class Checked:
    """An audit, and what it is an audit of."""

    contents: Contents
    audit: Audit


async def check(
    kv: KeyValueStore, tell: Callable[[str], None] = lambda _: None, pause: float = SECOND_LOOK
) -> Checked:
    """Return what is wrong now and was so `pause` seconds earlier; where nothing is, one look is enough.

    Args:
        tell: is told why it takes a while.
    """
    first = checked(await contents(kv), datetime.now(UTC))
    if not first.audit.findings:
        return first
    tell(
        f"found {len(first.audit.findings)}; looking again in {pause:g} s, as claims in progress look like faults"
    )
    await asyncio.sleep(pause)
    second = checked(await contents(kv), datetime.now(UTC))
    before = {finding.key for finding in first.audit.findings}
    both = tuple(finding for finding in second.audit.findings if finding.key in before)
    return replace(second, audit=replace(second.audit, findings=both))


def checked(found: Contents, now: datetime) -> Checked:
    """Return what is wrong with `found` as it stood at `now`."""
    return Checked(found, auditing.audit(found.inventory, now))


# Releasing.


@dataclass(frozen=True)
class Released:
    """What became of the faults of reports; `left` says of each that was left alone what it is now."""

    mended: tuple[Finding, ...]
    left: tuple[str, ...]


async def release_reported(
    kv: KeyValueStore,
    reports: Sequence[Report],
    *,
    grace: timedelta = GRACE,
    tell: Callable[[Finding], None] = lambda _: None,
) -> Released:
    """Put right the faults that every one of `reports` names and that are still the very same.

    One guarded transaction a block: killed in between, it has done some of them whole, and running it
    again does the rest.

    Args:
        grace: an address given out a shorter time ago is left alone.
        tell: is told each one when it is done.

    Raises:
        ConfigError: a report is of another cluster; nothing was changed.
        Conflict: others wrote the same objects at the same moment, again and again.
    """
    wanted = frozenset.intersection(*(report.faults for report in reports))
    mended: list[Finding] = []

    def done(findings: Iterable[Finding]) -> None:
        for finding in findings:
            mended.append(finding)
            tell(finding)

    for _ in range(ATTEMPTS):
        found, now = await contents(kv), datetime.now(UTC)
        _same_cluster(found.cluster, reports)
        audit = auditing.audit(found.inventory, now, grace)
        todo = [finding for finding in audit.findings if finding.key in wanted]
        try:
            await _mend(kv, found.inventory, todo, now, done)
        except Conflict:
            continue
        left = wanted - {finding.key for finding in mended}
        return Released(tuple(mended), tuple(_left(audit, left)))
    raise Conflict(
        f"release: others write the same objects at the same moment; {len(mended)} of {len(wanted)} were done; "
        "run it again"
    )


def _same_cluster(cluster: Cluster, reports: Iterable[Report]) -> None:
    for report in reports:
        if report.guid != cluster.guid:
            raise ConfigError(
                f'report of cluster "{report.guid}": this is cluster "{cluster.guid}" (clusterGUID); nothing was '
                "changed; make a report here with `fabricctl ipam check -o FILE`"
            )


async def _mend(
    kv: KeyValueStore,
    inventory: Inventory,
    findings: Iterable[Finding],
    now: datetime,
    done: Callable[[Iterable[Finding]], None],
) -> None:
    for group in auditing.groups(findings):
        change = auditing.mend(inventory, group, now)
        revision = await kv.commit(ipam.transaction(inventory.handles, change))
        inventory = auditing.after(inventory, change, revision)
        done(group)


def _left(audit: Audit, left: Collection[Key]) -> list[str]:
    held: dict[str, list[Allocation]] = {}
    for a in audit.allocations:
        held.setdefault(str(a.address), []).append(a)
    lines = []
    for key in sorted(left):
        if key.id != LEAKED:
            lines.append(f"{key.object}: {key.id}: not found as reported: mended already, or changed since")
        elif key.object not in held:
            lines.append(f"{key.object}: already free")
        else:
            lines += [f"{key.object}: left alone: {_now(a, key)}" for a in held[key.object]]
    return lines


def _now(a: Allocation, key: Key) -> str:
    match a.state:
        case State.COOLING:
            return "released already; it cools down"
        case State.IN_USE | State.ASSUMED:
            return f"{a.state}: {', '.join(a.users)}"
        case State.RECENT:
            return "given out just now; it may be an attach in progress"
        case _:
            return (
                f"held by {a.owner.handle or 'no handle'} since sequence number {a.sequence}, not by "
                f"{key.handle or 'no handle'} since {key.version}: given out anew after the report"
            )


async def release_address(kv: KeyValueStore, address: Address, *, force: bool = False) -> None:
    """Free one address; `force` frees it whoever uses it.

    Raises:
        NotFound: nobody holds it.
        Taken: something uses it, or may; nothing was changed.
        Conflict: others wrote its block at the same moment, again and again; nothing was changed.
    """
    for _ in range(ATTEMPTS):
        found, now = await contents(kv), datetime.now(UTC)
        held = [a for a in inventories.allocations(found.inventory, now) if a.address == address]
        held = [a for a in held if a.state is not State.COOLING]
        if not held:
            raise NotFound(f"IP address {address} is not assigned; nothing was changed")
        if not force:
            _refuse_used(held)
        try:
            leaks = map(auditing.leak, held)
            await _mend(kv, found.inventory, leaks, now, lambda _: None)
        except Conflict:
            continue
        return
    raise Conflict(
        f"IP address {address}: others write its block at the same moment; nothing was changed; try again"
    )


def _refuse_used(held: Iterable[Allocation]) -> None:
    for a in held:
        if a.state is State.RECENT:
            raise Taken(
                f"IP address {a.address}: given out to {a.owner.handle or 'no handle'} on {a.node} less than "
                f"{GRACE.seconds} s ago, perhaps by an attach in progress; nothing was changed; wait, or use --force"
            )
        if a.state is not State.LEAKED:
            raise Taken(
                f"IP address {a.address}: {a.state}, on {a.node or 'no node'}: {', '.join(a.users)}; nothing was "
                "changed; remove that first, or use --force"
            )


# Configuring.


async def configure(
    kv: KeyValueStore,
    *,
    strict_affinity: bool | None = None,
    max_blocks: int | None = None,
    cooldown: int | None = None,
) -> IPAMConfig:
    """Change the given settings of IPAM's configuration, keep the others, and return it.

    Raises:
        ConfigError: they do not go together, or the stored configuration cannot be read.
        Conflict: others wrote it at the same moment, again and again.
    """
    for _ in range(ATTEMPTS):
        item = await kv.get(keys.IPAM_CONFIG)
        try:
            before = configuring.from_json(item.value) if item else IPAMConfig()
        except ConfigError as err:
            raise ConfigError(
                f"{keys.IPAM_CONFIG}: cannot be read: {err}; nothing was changed; "
                "`fabricctl delete ipamconfiguration default` takes it away, then configure it again"
            ) from err
        config = replace(
            before,
            strict_affinity=before.strict_affinity if strict_affinity is None else strict_affinity,
            max_blocks=before.max_blocks if max_blocks is None else max_blocks,
            cooldown=before.cooldown if cooldown is None else cooldown,
        )
        if rule := _broken_rule(config):
            raise ConfigError(f"IPAM configuration: {rule}; nothing was changed")
        if item and config == before:
            return config
        guard = Guard(keys.IPAM_CONFIG, item.revision if item else 0)
        try:
            await kv.commit(Txn((guard,), (Put(keys.IPAM_CONFIG, configuring.to_json(config)),)))
        except Conflict:
            continue
        return config
    raise Conflict("IPAM configuration: others write it at the same moment; nothing was changed; try again")


def _broken_rule(config: IPAMConfig) -> str:
    if not config.strict_affinity and not config.auto_allocate:
        return (
            "strict affinity off and automatic blocks off exclude each other: no node could take any address"
        )
    if config.max_blocks and not config.strict_affinity:
        return (
            f"at most {config.max_blocks} blocks a host needs strict affinity: a host at its limit would borrow; add "
            "--strictaffinity=true, or use --max-blocks-per-host=0"
        )
    if config.max_blocks < 0:
        return f"at most {config.max_blocks} blocks a host: must be 0 (no limit of its own) or more"
    if not 0 <= config.cooldown <= MAX_COOLDOWN:
        return f"a cooldown of {config.cooldown} s: must be 0 to {MAX_COOLDOWN}"
    return ""
