"""Get and apply resources in the datastore, as calicoctl does."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from fabric.errors import ConfigError, Conflict, NotFound
from fabric.model import kinds
from fabric.model.base import Resource, Unknown
from fabric.model.change import applied, stamped
from fabric.model.ippool import IPPool
from fabric.model.kinds import Kind, lookup
from fabric.model.wire import from_json, to_json
from fabric.store.keys import ResourceKey, resources
from fabric.store.kv import Guard, KeyValueStore, Put, Txn

R = TypeVar("R", bound=Resource)

ATTEMPTS = 5  # lost races before an apply gives up


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of one resource: `verb` is "created", "configured" or "unchanged"."""

    resource: Resource
    verb: str


def key_of(resource: Resource) -> str:
    """Return where `resource` lives; a namespaced one without a namespace lives in "default"."""
    kind = kinds.named(resource.kind)
    if kind is None:
        raise NotFound(f'kind "{resource.kind}" is not one of projectcalico.org/v3; nothing was written')
    return _key(kind, resource.metadata.name, resource.metadata.namespace)


def _key(kind: Kind, name: str, namespace: str | None) -> str:
    return ResourceKey(kind.plural, (namespace or "default") if kind.namespaced else None, name).path


async def get(
    kv: KeyValueStore, kind: Kind, names: Sequence[str], namespace: str | None = None
) -> list[Resource]:
    """Return the named resources.

    Raises:
        NotFound: one does not exist.
        ConfigError: one cannot be read.
    """
    found = []
    for name in names:
        item = await kv.get(_key(kind, name, namespace))
        if item is None:
            where = f" in namespace {namespace or 'default'}" if kind.namespaced else ""
            raise NotFound(f'{kind.name} "{name}"{where}: does not exist')
        found.append(from_json(item.value))
    return found


@dataclass(frozen=True, slots=True)
class Listed(Generic[R]):
    """All of a kind that can be read; and of each that cannot its key, and why."""

    resources: tuple[R, ...]
    unreadable: Mapping[str, str]

    @property
    def warnings(self) -> list[str]:
        """What to tell an operator of those that cannot be read, a line each."""
        return [f"{key}: cannot be read, and counts as absent: {why}" for key, why in self.unreadable.items()]


async def listing(kv: KeyValueStore, cls: type[R], kind: Kind, namespace: str | None = None) -> Listed[R]:
    """Return every resource of `kind`, whose class is `cls`; `namespace` None means all of them.

    One that cannot be read counts as absent, as the agents see it, and does not hide the others.
    """
    prefix = resources(kind.plural) + (f"{namespace}/" if kind.namespaced and namespace else "")
    found, unreadable = [], {}
    for item in (await kv.list(prefix)).items:
        try:
            resource = from_json(item.value)
        except ConfigError as err:
            unreadable[item.key] = str(err)
            continue
        if isinstance(resource, cls):
            found.append(resource)
    return Listed(tuple(found), unreadable)


async def pools(kv: KeyValueStore) -> tuple[IPPool, ...]:
    """Return every pool.

    Raises:
        ConfigError: one cannot be read: what it covers is unknown, so nothing may be put beside it.
    """
    listed = await listing(kv, IPPool, lookup("ippool"))
    if listed.unreadable:
        raise ConfigError("\n".join([*listed.warnings, "nothing was changed; mend or delete it first"]))
    return listed.resources


async def refuse_pools(kv: KeyValueStore, wanted: Sequence[Resource]) -> None:
    """Refuse pools that would move under the addresses in them, or that overlap one another.

    Source: calico-semantics §6: cidr and blockSize are immutable, and pools do not overlap.

    Raises:
        ConfigError: with everything that is wrong; nothing was written.
    """
    given = [pool for pool in wanted if isinstance(pool, IPPool)]
    if not given:
        return
    stored = {pool.metadata.name: pool for pool in await pools(kv)}
    problems = [line for pool in given for line in _pool_problems(pool, stored, given)]
    if problems:
        raise ConfigError("\n".join([*problems, "nothing was applied"]))


def _pool_problems(pool: IPPool, stored: Mapping[str, IPPool], given: Sequence[IPPool]) -> Iterator[str]:
    name, spec = pool.metadata.name, pool.spec
    before = stored.get(name)
    if before and (before.spec.cidr, before.spec.block_size) != (spec.cidr, spec.block_size):
        yield (
            f"IPPool {name}: cidr and blockSize ({before.spec.cidr}, /{before.spec.block_size}) cannot be changed to "
            f"{spec.cidr}, /{spec.block_size}: addresses of it may be in use; make another pool and disable this one"
        )
    others = {**stored, **{p.metadata.name: p for p in given}}
    for other in others.values():
        if other.metadata.name != name and other.spec.cidr.overlaps(spec.cidr):
            yield f"IPPool {name}: {spec.cidr} overlaps {other.spec.cidr} of IPPool {other.metadata.name}"


def without_effect(resource: Resource) -> list[str]:
    """Return what this version stores and does not act on, a line each."""
    what = f"{resource.kind} {resource.metadata.name}"
    match resource:
        case Unknown():
            return [f"{what}: stored; nothing here acts on this kind yet"]
        case IPPool(spec=spec):
            fields = {
                "ipipMode": spec.ipip_mode != "Never",
                "vxlanMode": spec.vxlan_mode != "Never",
                "natOutgoing": spec.nat_outgoing,
                "namespaceSelector": bool(spec.namespace_selector),
            }
            return [f"{what}: {name} is stored and has no effect yet" for name, on in fields.items() if on]
    return []


async def create_if_absent(kv: KeyValueStore, resource: Resource) -> bool:
    """Create `resource` and return True, or return False where somebody already has."""
    key = key_of(resource)
    stamp = stamped(resource, datetime.now(UTC), uuid.uuid4())
    try:
        await kv.commit(Txn((Guard(key, 0),), (Put(key, to_json(stamp)),)))
    except Conflict:
        return False
    return True


async def apply(kv: KeyValueStore, wanted: Resource) -> Applied:
    """Create or update one resource as an operator's file means it; what is already so is not written again.

    Raises:
        Conflict: others wrote it at the same moment, again and again; nothing was written.
    """
    return await change(kv, key_of(wanted), lambda stored: applied(stored, wanted) if stored else wanted)


async def change(kv: KeyValueStore, key: str, decide: Callable[[Resource | None], Resource]) -> Applied:
    """Store at `key` what `decide` makes of what is there (None: nothing), guarded by what it saw.

    `decide` returns what it was given where nothing is to change, and may refuse by raising.

    Raises:
        Conflict: others wrote it at the same moment, again and again; nothing was written.
    """
    for _ in range(ATTEMPTS):
        item = await kv.get(key)
        stored = from_json(item.value) if item else None
        wanted = decide(stored)
        if wanted is stored:
            return Applied(wanted, "unchanged")
        fresh = wanted if stored else stamped(wanted, datetime.now(UTC), uuid.uuid4())
        try:
            await kv.commit(Txn((Guard(key, item.revision if item else 0),), (Put(key, to_json(fresh)),)))
        except Conflict:
            continue
        return Applied(fresh, "configured" if stored else "created")
    raise Conflict(f"{key}: others write it at the same moment; nothing was written; try again")
