"""Decide what becomes of the attaches, or of the detaches, that wait together: one transaction for all. Pure.

Each is decided on the view that the one before it leaves. What cannot be decided has its own error and
is no part of the transaction; what no longer fits is left for the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import uuid5

from fabric.agent import endpoint as endpoints
from fabric.agent.endpoint import Decided, Request, Stamp
from fabric.agent.snapshot import Snapshot
from fabric.errors import FabricError, NotFound
from fabric.ipam.view import Change, after
from fabric.model import namespaces
from fabric.model.base import Resource
from fabric.model.change import stamped
from fabric.model.wire import to_json
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.store import ipam
from fabric.store.kv import Delete, Guard, Put, Txn

MAX_KEYS = 128  # what etcd takes of guards, and of operations, in one transaction (--max-txn-ops)


NOTHING = Txn((), ())


@dataclass(frozen=True, slots=True)
class Removal:
    """What `workload del` asks for; with `uid`, of that endpoint alone and not of a later one of its name."""

    name: str
    namespace: str
    uid: str = ""

    def __str__(self) -> str:
        return f"workload {self.namespace}/{self.name}"


@dataclass(frozen=True)
class Batch:
    """What becomes of the requests, each by its place; those that are nowhere are left for the next batch.

    `made` becomes so by `txn`; `there` is so already.
    """

    txn: Txn = NOTHING
    made: Mapping[int, WorkloadEndpoint] = field(default_factory=dict)
    there: Mapping[int, WorkloadEndpoint] = field(default_factory=dict)
    refused: Mapping[int, FabricError] = field(default_factory=dict)


def attach(snapshot: Snapshot, node: str, requests: Sequence[Request], stamp: Stamp) -> Batch:
    """Return what the requests, of different names, get.

    The transaction holds only while the Node stands as it was read: a node that leaves attaches nothing more.
    """
    first = view = snapshot.view(node)
    made: dict[int, Decided] = {}
    there: dict[int, WorkloadEndpoint] = {}
    refused: dict[int, FabricError] = {}
    written: set[object] = {endpoints.node_key(node)}
    for place, request in enumerate(requests):
        try:
            if existing := endpoints.existing(snapshot, node, request):
                there[place] = existing
                continue
            decided = endpoints.attach(snapshot, view, request, stamp)
            if request.ports:
                others = (*snapshot.endpoints(node), *(one.endpoint for one in made.values()))
                endpoints.check_ports(request, decided.endpoint, others)
        except FabricError as err:
            refused[place] = err
            continue
        keys_with_it = written | _keys(decided) | {endpoints.profile_key(request.namespace)}
        if len(keys_with_it) > MAX_KEYS:
            break
        written, made[place] = keys_with_it, decided
        for change in decided.changes:
            view = after(view, change)
    if not made:
        return Batch(there=there, refused=refused)
    txn = ipam.joined(
        Txn((_as_read(snapshot, endpoints.node_key(node)),), ()),
        ipam.transaction(first.handles, *_changes(made.values())),
        *(_create(_key(decided.endpoint), decided.endpoint) for decided in made.values()),
        *_profiles(snapshot, sorted({requests[place].namespace for place in made}), stamp),
    )
    return Batch(txn, {place: decided.endpoint for place, decided in made.items()}, there, refused)


def detach(snapshot: Snapshot, node: str, requests: Sequence[Removal], at: datetime) -> Batch:
    """Return what becomes of the endpoints that the requests, of different names, want removed at `at` (UTC)."""
    first = view = snapshot.view(node)
    made: dict[int, Decided] = {}
    refused: dict[int, FabricError] = {}
    written: set[object] = set()
    for place, request in enumerate(requests):
        endpoint = endpoints.find(snapshot, node, request.namespace, request.name)
        if endpoint is None or (request.uid and request.uid != endpoint.metadata.uid):
            refused[place] = NotFound(f"{request}: not on node {node}; nothing was removed")
            continue
        decided = endpoints.detach(view, endpoint, at)
        if len(written | _keys(decided)) > MAX_KEYS:
            break
        written, made[place] = written | _keys(decided), decided
        for change in decided.changes:
            view = after(view, change)
    gone = [_key(decided.endpoint) for decided in made.values()]
    txn = ipam.joined(
        Txn(tuple(_as_read(snapshot, key) for key in gone), tuple(map(Delete, gone))),
        ipam.transaction(first.handles, *_changes(made.values())),
    )
    return Batch(txn, {place: decided.endpoint for place, decided in made.items()}, refused=refused)


def _changes(decided: Iterable[Decided]) -> Iterable[Change]:
    return (change for one in decided for change in one.changes)


def _keys(decided: Decided) -> set[object]:
    """What stands for each key that it writes or is guarded by."""
    found: set[object] = {_key(decided.endpoint)}
    for change in decided.changes:
        found |= {
            *change.blocks,
            *change.affinities,
            *change.handles,
            *(("ippools", p) for p in change.pools),
        }
    return found


def _profiles(snapshot: Snapshot, used: Iterable[str], stamp: Stamp) -> Iterable[Txn]:
    """Endpoints carry their namespace's profile from the first day, so nothing goes dark with policy.

    One that cannot be read is there, and left alone. One that is gone though endpoints carry it was deleted by
    somebody: made anew it would open them.
    """
    return (
        _create(key, stamped(namespaces.profile(namespace), stamp.now, uuid5(stamp.uid, key)))
        for namespace in used
        if (key := endpoints.profile_key(namespace)) not in snapshot.seen
        and not endpoints.carry(snapshot, namespaces.profile_name(namespace))
    )


def _create(key: str, resource: Resource) -> Txn:
    return Txn((Guard(key, 0),), (Put(key, to_json(resource)),))


def _as_read(snapshot: Snapshot, key: str) -> Guard:
    return Guard(key, snapshot.seen[key])


def _key(endpoint: WorkloadEndpoint) -> str:
    return endpoints.endpoint_key(endpoint.metadata.namespace, endpoint.metadata.name)
