"""Promote a staged policy, or stage an enforced one: it changes its kind, in one transaction."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from fabric.errors import ConfigError, Conflict, NotFound, Taken
from fabric.model import kinds
from fabric.model.base import Resource
from fabric.model.change import replaced, stamped
from fabric.model.kinds import KUBERNETES_NAME
from fabric.ops import resources
from fabric.ops.change import ATTEMPTS, Verb
from fabric.store.kv import Delete, Guard, KeyValue, KeyValueStore, Put, Txn
from policy import staging
from policy.form import Key

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Done:
    """One object that changed, as messages call it, and what became of it."""

    what: str
    verb: Verb


async def promote(
    kv: KeyValueStore, name: str, namespace: str | None = None, *, dry_run: bool = False
) -> list[Done]:
    """Enforce what the staged policy of that name says, and delete it; one that says Delete takes the policy away.

    Args:
        name: its name, or KIND/NAME. A policy of Kubernetes goes by its own name and by knp.default.NAME.
        namespace: where it is; None for "default", or for a global one.

    Raises:
        NotFound: there is no such policy, or none to delete.
        ConfigError: there are several; the message names them. Or it has nothing that could be enforced.
        Conflict: others write them at the same moment.
    """
    wanted = _keys(name, namespace, tuple(staging.ENFORCED))
    wanted += [
        key._replace(name=_respelt(key.name)) for key in wanted if key.kind != "StagedGlobalNetworkPolicy"
    ]

    async def once() -> tuple[Txn, list[Done]]:
        key, item = await _only(kv, name, wanted)
        target = staging.enforced_key(key)
        there = await kv.get(_path(target))
        made = _made(staging.promoted, key, item)
        ends = [Done(str(key), Verb.DELETED)]
        guards = (Guard(item.key, item.revision), Guard(_path(target), there.revision if there else 0))
        if made is None:
            if there is None:
                raise NotFound(f"{key}: is to delete {target}, which does not exist; nothing was written")
            return Txn(guards, (Delete(there.key), Delete(item.key))), [
                Done(str(target), Verb.DELETED),
                *ends,
            ]
        before = _made(lambda enforced: enforced, target, there) if there else None
        put = Put(_path(target), resources.encode(_stored(made, before)))
        verb = Verb.CONFIGURED if there else Verb.CREATED
        return Txn(guards, (put, Delete(item.key))), [Done(str(target), verb), *ends]

    return await _carried_out(kv, once, dry_run)


async def stage(
    kv: KeyValueStore, name: str, namespace: str | None = None, *, dry_run: bool = False
) -> list[Done]:
    """Make a staged policy of the enforced one of that name: it then counts what it would deny, and denies nothing.

    Arguments and errors are those of `promote`.

    Raises:
        Taken: a staged policy of that name is there already.
    """
    wanted = _keys(name, namespace, tuple(staging.STAGED))
    wanted += [key._replace(name=_respelt(key.name)) for key in wanted if key.kind == "NetworkPolicy"]

    async def once() -> tuple[Txn, list[Done]]:
        key, item = await _only(kv, name, wanted)
        made = _made(staging.staged, key, item)
        path, what = resources.key_of(made), resources.name_of(made)
        if await kv.get(path):
            raise Taken(f"{what}: exists already; delete it or promote it first; nothing was written")
        guards = (Guard(item.key, item.revision), Guard(path, 0))
        put = Put(path, resources.encode(_stored(made, None)))
        return Txn(guards, (put, Delete(item.key))), [Done(what, Verb.CREATED), Done(str(key), Verb.DELETED)]

    return await _carried_out(kv, once, dry_run)


def _keys(name: str, namespace: str | None, among: Sequence[str]) -> list[Key]:
    """Return what `name` may mean among kinds: global ones only where no namespace is given."""
    word, slash, rest = name.rpartition("/")
    chosen = [kinds.lookup(word).name] if slash else among
    if slash and chosen[0] not in among:
        raise ConfigError(f'"{name}": {chosen[0]} is none of {", ".join(among)}; nothing was written')
    found = [kind for each in chosen if (kind := kinds.named(each))]
    return [
        Key(kind.name, (namespace or "default") if kind.namespaced else "", rest)
        for kind in found
        if kind.namespaced or namespace is None
    ]


def _respelt(name: str) -> str:
    """Return the other spelling of a name: with what marks a policy of Kubernetes, or without."""
    bare = name.removeprefix(KUBERNETES_NAME)
    return bare if bare != name else f"{KUBERNETES_NAME}{name}"


async def _only(kv: KeyValueStore, name: str, wanted: Sequence[Key]) -> tuple[Key, KeyValue]:
    """Return the one of `wanted` that there is; what is spelt as `name` comes before what is spelt otherwise."""
    found = [(key, item) for key in wanted if (item := await kv.get(_path(key)))]
    spelt = name.rpartition("/")[2]
    found = [one for one in found if one[0].name == spelt] or found
    if len(found) == 1:
        return found[0]
    if not found:
        asked = " or ".join(str(key) for key in wanted if key.name == spelt)
        raise NotFound(f'policy "{name}": there is no {asked}; nothing was written')
    raise ConfigError(
        f'policy "{name}": is more than one: {", ".join(str(key) for key, _ in found)}; say -n NAMESPACE, or '
        "KIND/NAME; nothing was written"
    )


async def _carried_out(
    kv: KeyValueStore, once: Callable[[], Awaitable[tuple[Txn, list[Done]]]], dry_run: bool
) -> list[Done]:
    """Commit what `once` decides; decide again where others wrote meanwhile."""
    for _ in range(ATTEMPTS):
        txn, done = await once()
        if dry_run:
            return done
        try:
            await kv.commit(txn)
        except Conflict:
            continue
        return done
    raise Conflict("others write the same policies at the same moment; nothing was written; try again")


def _path(key: Key) -> str:
    kind = kinds.named(key.kind)
    assert kind, key
    return resources.key(kind, key.name, key.namespace)


def _made(decide: Callable[[Resource], R], key: Key, item: KeyValue) -> R:
    try:
        return decide(resources.decode(item))
    except ConfigError as err:
        raise ConfigError(f"{key}: {err}; nothing was written") from err


def _stored(made: Resource, before: Resource | None) -> Resource:
    """Return what to write: with the identity of what it takes the place of, or one of its own."""
    return stamped(replaced(before, made) if before else made, datetime.now(UTC), uuid.uuid4())
