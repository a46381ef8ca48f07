"""Get and apply resources in the datastore, as calicoctl does."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fabric.errors import Conflict, NotFound
from fabric.model import kinds
from fabric.model.base import Resource
from fabric.model.change import applied, stamped
from fabric.model.kinds import Kind
from fabric.model.wire import from_json, to_json
from fabric.store.keys import ResourceKey, resources
from fabric.store.kv import Guard, KeyValueStore, Put, Txn

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
    kv: KeyValueStore, kind: Kind, names: Sequence[str] = (), namespace: str | None = None
) -> list[Resource]:
    """Return the named resources, or all of the kind; `namespace` None means every namespace.

    Raises:
        NotFound: a named one does not exist.
    """
    if not names:
        prefix = resources(kind.plural) + (f"{namespace}/" if kind.namespaced and namespace else "")
        return [from_json(item.value) for item in (await kv.list(prefix)).items]
    found = []
    for name in names:
        item = await kv.get(_key(kind, name, namespace))
        if item is None:
            where = f" in namespace {namespace or 'default'}" if kind.namespaced else ""
            raise NotFound(f'{kind.name} "{name}"{where}: does not exist')
        found.append(from_json(item.value))
    return found


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
    """Create or update one resource; what is already so is not written again.

    Raises:
        Conflict: others wrote it at the same moment, again and again; nothing was written.
    """
    key = key_of(wanted)
    for attempt in range(ATTEMPTS):
        item = await kv.get(key)
        if item is None:
            if await create_if_absent(kv, wanted):
                return Applied(wanted, "created")
            continue
        stored = from_json(item.value)
        merged = applied(stored, wanted)
        if merged is stored:
            return Applied(stored, "unchanged")
        try:
            await kv.commit(Txn((Guard(key, item.revision),), (Put(key, to_json(merged)),)))
        except Conflict:
            if attempt == ATTEMPTS - 1:
                raise
            continue
        return Applied(merged, "configured")
    raise Conflict(
        f"{wanted.kind} {wanted.metadata.name}: others write it at the same moment; nothing was written; try again"
    )
