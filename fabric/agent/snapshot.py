"""Fold the datastore's keys into one immutable snapshot of what they mean. Pure.

Two sources feed it: the watch, and our own transactions at their revision (read your writes). An older
event about a key never overwrites a newer one, whichever came first.

What cannot be read is treated as absent and kept in `problems`, so that one broken object does not
stop the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fabric.errors import ConfigError
from fabric.ipam import block as blocks
from fabric.ipam import config as ipam_config
from fabric.ipam import records as ipam_records
from fabric.ipam.block import Block, Owner
from fabric.ipam.config import IPAMConfig
from fabric.ipam.records import Affinity, Handle
from fabric.ipam.types import Prefix
from fabric.ipam.view import MAX_HOST_BITS, View
from fabric.ipam.view import Stored as StoredBlock
from fabric.model import kinds, namespaces, wire
from fabric.model.base import Resource
from fabric.model.clusterinformation import ClusterInformation
from fabric.model.ippool import IPPool
from fabric.model.ipreservation import IPReservation
from fabric.model.node import Node
from fabric.model.profile import Profile
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.store import keys
from fabric.store.kv import Changes, KeyValue, Put, Txn
from fabric.store.unread import unread_of
from policy.unread import Unread

R = TypeVar("R", bound=Resource)

_PLURAL: Mapping[type[Resource], str] = {kind.cls: kind.plural for kind in kinds.KINDS}
_PLURALS = frozenset(_PLURAL.values())


@dataclass(frozen=True)
class Stored:
    """A resource with the revision it was read at."""

    resource: Resource
    revision: int


@dataclass(frozen=True)
class Snapshot:
    """Everything below /calico as of the watch's `revision`, plus our own newer writes.

    `resources` are by the plural of their kind. `seen` has the newest revision of each key, `deleted` that of
    each key removed since: it is forgotten once the watch has passed it. `lost` says why the watch is broken,
    "" while it is not; the rest then stands as it was at `lost_at`, seconds of the Unix epoch. `copied` says
    that it was not read from etcd but from this node's copy on disk. `unread` are those of `problems` that policy must
    know of all the same: what one selects is denied, not left open.
    """

    revision: int = 0
    in_sync: bool = False
    lost: str = ""
    lost_at: float = 0.0
    copied: bool = False
    seen: Mapping[str, int] = field(default_factory=dict)
    deleted: Mapping[str, int] = field(default_factory=dict)
    resources: Mapping[str, Mapping[keys.ResourceKey, Stored]] = field(default_factory=dict)
    blocks: Mapping[Prefix, StoredBlock] = field(default_factory=dict)
    affinities: Mapping[tuple[str, Prefix], Affinity] = field(default_factory=dict)
    handles: Mapping[str, Handle] = field(default_factory=dict)
    ipam_config: IPAMConfig = field(default_factory=IPAMConfig)
    problems: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[str, Unread] = field(default_factory=dict)

    def all(self, kind: type[R]) -> tuple[R, ...]:
        """Return every resource of one kind."""
        return tuple(s.resource for s in self.held(kind).values() if isinstance(s.resource, kind))

    def held(self, kind: type[R]) -> Mapping[keys.ResourceKey, Stored]:
        """Return every resource of one kind with its revision; what did not change is the same object as before."""
        return self.resources.get(_PLURAL[kind], {})

    def get(self, kind: type[R], name: str, namespace: str | None = None) -> R | None:
        """Return one resource, or None."""
        stored = self.stored(kind, name, namespace)
        return stored.resource if stored and isinstance(stored.resource, kind) else None

    def stored(self, kind: type[R], name: str, namespace: str | None = None) -> Stored | None:
        """Return one resource with its revision, or None."""
        plural = _PLURAL[kind]
        return self.resources.get(plural, {}).get(keys.ResourceKey(plural, namespace, name))

    def endpoints(self, node: str) -> tuple[WorkloadEndpoint, ...]:
        """Return the workload endpoints of `node`."""
        return tuple(e for e in self.all(WorkloadEndpoint) if e.spec.node == node)

    def view(self, node: str) -> View:
        """Return what IPAM decides on for `node`.

        Of what cannot be read, it is known that it is there: such a block is full and another's, and a record
        says nothing yet has the revision that a write in its place is guarded by.
        """
        me = self.get(Node, node)
        pools = self.all(IPPool)
        read = {name: self.stored(IPPool, name) for name in (pool.metadata.name for pool in pools)}
        unread = {parsed: self.seen[key] for key in self.problems if (parsed := keys.parse(key))}
        closed = {key.prefix: revision for key, revision in unread.items() if isinstance(key, keys.BlockKey)}
        records = {
            (key.node, key.prefix): Affinity("unreadable", revision)
            for key, revision in unread.items()
            if isinstance(key, keys.AffinityKey)
        }
        handles = {
            key.id: Handle({}, revision)
            for key, revision in unread.items()
            if isinstance(key, keys.HandleKey)
        }
        affinities = {**self.affinities, **records} if records else self.affinities
        if closed:
            affinities = {key: record for key, record in affinities.items() if key[1] not in closed}
        return View(
            node=node,
            labels=me.metadata.labels if me else {},
            pools=pools,
            pool_revisions={name: stored.revision for name, stored in read.items() if stored},
            blocks={**self.blocks, **_closed(closed)} if closed else self.blocks,
            affinities=affinities,
            reserved=tuple(net for r in self.all(IPReservation) for net in r.spec.reserved_cidrs),
            config=self.ipam_config,
            handles={**self.handles, **handles} if handles else self.handles,
        )

    def namespace_labels(self, namespace: str) -> Mapping[str, str]:
        """Return the labels of a namespace, which its profile hands on to endpoints."""
        profile = self.get(Profile, namespaces.profile_name(namespace))
        labels = profile.spec.labels_to_apply if profile else {}
        return {key.removeprefix("pcns."): v for key, v in labels.items() if key.startswith("pcns.")}

    @property
    def cluster(self) -> str:
        """The identity of the cluster, "" where it has none."""
        found = self.get(ClusterInformation, "default")
        return found.spec.cluster_guid if found else ""

    @property
    def locked(self) -> bool:
        """Whether the datastore is being migrated: agents wait, and change nothing (Calico's lock)."""
        found = self.get(ClusterInformation, "default")
        return found is not None and found.spec.datastore_ready is False

    @property
    def whole(self) -> bool:
        """Whether what is not in it is not wanted; else nothing may be removed for the lack of it."""
        return self.in_sync and not self.locked


def fold(snapshot: Snapshot, changes: Changes, *, watched: bool = True) -> Snapshot:
    """Return the snapshot after `changes`; `watched` is False for a transaction of our own."""
    # A watch that goes back in time follows an etcd restored from a backup: revisions start over there.
    restored = watched and changes.revision < snapshot.revision
    edit = _Edit(replace(snapshot, seen={}, deleted={}) if restored else snapshot)
    if changes.present is not None:
        # What we wrote ourselves and the watch never told: gone if a listing after it has it no more.
        for key, at in snapshot.seen.items():
            if key not in changes.present and (restored or at <= changes.revision):
                edit.delete(key, changes.revision)
    for key in changes.deletes:
        if changes.revision >= edit.newest(key):
            edit.delete(key, changes.revision)
    for item in changes.puts:
        if changes.present is None and edit.has(item):
            continue  # our own write, told again by the watch
        # By the event's revision: a listing's item may be older, and is still how the key stands by then.
        if changes.revision >= edit.newest(item.key):
            edit.put(item)
    return edit.done(changes.revision if watched else snapshot.revision)


def _closed(unread: Mapping[Prefix, int]) -> dict[Prefix, StoredBlock]:
    """Stand-ins for blocks that cannot be read. A prefix larger than any block is in nobody's way."""
    holder = Owner("(its block cannot be read)")
    return {
        prefix: StoredBlock(
            Block(prefix, "unreadable:", "", (holder,) * prefix.num_addresses, free=(), sequence=0), revision
        )
        for prefix, revision in unread.items()
        if prefix.max_prefixlen - prefix.prefixlen <= MAX_HOST_BITS
    }


def written(txn: Txn, revision: int) -> Changes:
    """Return what a committed transaction did, as the watch will report it later."""
    return Changes(
        revision,
        puts=tuple(KeyValue(op.key, op.value, revision) for op in txn.ops if isinstance(op, Put)),
        deletes=tuple(op.key for op in txn.ops if not isinstance(op, Put)),
    )


class _Edit:
    """Copies of the maps of one snapshot while a batch is folded in."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._base = snapshot
        self._seen = dict(snapshot.seen)
        self._deleted = dict(snapshot.deleted)
        self._resources = {kind: dict(found) for kind, found in snapshot.resources.items()}
        self._blocks = dict(snapshot.blocks)
        self._affinities = dict(snapshot.affinities)
        self._handles = dict(snapshot.handles)
        self._ipam_config = snapshot.ipam_config
        self._problems = dict(snapshot.problems)
        self._unread = dict(snapshot.unread)

    def newest(self, key: str) -> int:
        return self._seen.get(key) or self._deleted.get(key, 0)

    def has(self, item: KeyValue) -> bool:
        return self._seen.get(item.key) == item.revision

    def put(self, item: KeyValue) -> None:
        self._forget(item.key)
        self._seen[item.key] = item.revision
        try:
            self._read(item)
        except ConfigError as err:
            self._problems[item.key] = str(err)
            if unread := unread_of(item, str(err)):
                self._unread[item.key] = unread

    def _read(self, item: KeyValue) -> None:
        match keys.parse(item.key):
            case keys.ResourceKey() as key:
                self._resources.setdefault(key.plural, {})[key] = Stored(
                    wire.from_place(item.value, key.plural, key.namespace, key.name), item.revision
                )
            case keys.BlockKey(prefix):
                self._blocks[prefix] = StoredBlock(blocks.from_json(item.value), item.revision)
            case keys.AffinityKey(node, prefix):
                self._affinities[node, prefix] = ipam_records.affinity_from_json(item.value, item.revision)
            case keys.HandleKey(handle):
                self._handles[handle] = ipam_records.handle_from_json(item.value, item.revision)
            case None if item.key == keys.IPAM_CONFIG:
                self._ipam_config = ipam_config.from_json(item.value)
            case None if keys.is_garbled(item.key, _PLURALS):
                raise ConfigError("not a key of Calico's; it was left alone")

    def delete(self, key: str, revision: int) -> None:
        self._forget(key)
        self._deleted[key] = revision

    def _forget(self, key: str) -> None:
        self._seen.pop(key, None)
        self._deleted.pop(key, None)
        self._problems.pop(key, None)
        self._unread.pop(key, None)
        match keys.parse(key):
            case keys.ResourceKey() as parsed:
                self._resources.get(parsed.plural, {}).pop(parsed, None)
            case keys.BlockKey(prefix):
                self._blocks.pop(prefix, None)
            case keys.AffinityKey(node, prefix):
                self._affinities.pop((node, prefix), None)
            case keys.HandleKey(handle):
                self._handles.pop(handle, None)
            case None if key == keys.IPAM_CONFIG:
                self._ipam_config = IPAMConfig()

    def done(self, revision: int) -> Snapshot:
        return replace(
            self._base,
            revision=revision,
            seen=self._seen,
            deleted={key: at for key, at in self._deleted.items() if at > revision},
            resources=self._resources,
            blocks=self._blocks,
            affinities=self._affinities,
            handles=self._handles,
            ipam_config=self._ipam_config,
            problems=self._problems,
            unread=self._unread,
        )
