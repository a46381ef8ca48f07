"""Write resources: what each verb makes of what is stored, all of it decided and checked before the first write.

`decided` reads and decides, `fabric.ops.refuse` refuses; `carry_out` writes, a guarded transaction each. What
another writer changed in between is decided again, unless the operator named the revision that the change was
made on.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from fabric.errors import ConfigError, Conflict, FabricError, NotFound, StoreError, Taken
from fabric.model import change as becomes
from fabric.model.base import Path, Resource, tree, value_at
from fabric.model.change import PatchType, stamped
from fabric.model.ippool import IPPool
from fabric.model.kinds import KUBERNETES_POLICY, Kind
from fabric.model.wire import dotted
from fabric.ops import pools, resources
from fabric.ops.files import Given
from fabric.store.kv import Delete, Guard, KeyValue, KeyValueStore, Put, Txn

ATTEMPTS = 5  # lost races before a change gives up
NAMED = 10  # objects that a message names
_ABSENT = object()

Decide = Callable[[Resource | None], Resource]


class Verb(StrEnum):
    """What became of an object; ABSENT: there was nothing to delete, and that was allowed for."""

    CREATED = "created"
    CONFIGURED = "configured"
    UNCHANGED = "unchanged"
    DELETED = "deleted"
    ABSENT = "does not exist"


@dataclass(frozen=True, slots=True)
class Change:
    """One object to change: `decide` makes of what is stored (None: nothing) what shall be, or refuses.

    `decide` returns what it was given where nothing is to change; without it the object is deleted.
    `what` is how messages call it, and `where` FILE:LINE, empty when it was named on the command line;
    `revision` is the one that must be stored, as text, empty for any; `unknown` and `place` are those of `Given`.
    """

    key: str
    kind: str
    what: str
    where: str = ""
    decide: Decide | None = None
    revision: str = ""
    may_be_absent: bool = False
    unknown: tuple[tuple[Path, str], ...] = ()
    place: Callable[[Path], str] | None = None

    def told(self, path: Path, value: str, rule: str) -> str:
        """Return what is wrong with a field, as files' own mistakes are told."""
        where = self.place(path) if self.place else str(self)
        return f"{where}: {dotted(path)}: {value}: {rule}"

    @property
    def name(self) -> str:
        return self.what.rpartition(" ")[2].rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


@dataclass(frozen=True, slots=True)
class Step:
    """What a change does to what was read: `before` is None also where what is stored cannot be read."""

    change: Change
    revision: int
    before: Resource | None
    after: Resource | None
    verb: Verb


def apply(given: Given) -> Change:
    """Create it, or change what is stored as far as the file says."""

    def decide(stored: Resource | None) -> Resource:
        wanted = resources.stored(given.resource, stored)
        return becomes.applied(stored, wanted) if stored else wanted

    return _of(given, decide)


def create(given: Given, *, skip_exists: bool = False) -> Change:
    """Create it; with `skip_exists` one that is there already stays as it is."""

    def decide(stored: Resource | None) -> Resource:
        if stored and not skip_exists:
            raise Taken("exists already; `apply` changes it, --skip-exists leaves it alone")
        return stored or resources.stored(given.resource)

    return _of(given, decide, versioned=False)


def replace(given: Given) -> Change:
    """Put it in the place of what is stored, whole."""

    def decide(stored: Resource | None) -> Resource:
        return becomes.replaced(_existing(stored), resources.stored(given.resource))

    return _of(given, decide)


def delete(given: Given, *, skip_not_exists: bool = False) -> Change:
    """Delete the object that a file describes, whatever else the file says of it."""
    return dataclasses.replace(_of(given, None), may_be_absent=skip_not_exists)


def delete_named(
    kind: Kind, name: str, namespace: str | None = None, *, skip_not_exists: bool = False
) -> Change:
    key, what = resources.key(kind, name, namespace), resources.named(kind, name, namespace)
    return Change(key, kind.name, what, may_be_absent=skip_not_exists)


def patch(kind: Kind, name: str, namespace: str | None, value: object, how: PatchType) -> Change:
    """Change the named object by a patch, JSON values."""
    return _to_named(kind, name, namespace, lambda stored: becomes.patched(stored, value, how))


def label(
    kind: Kind,
    name: str,
    namespace: str | None,
    labels: Mapping[str, str],
    remove: Collection[str],
    *,
    overwrite: bool,
) -> Change:
    """Set and remove labels of the named object."""
    return _to_named(
        kind,
        name,
        namespace,
        lambda stored: becomes.labelled(stored, labels, remove, overwrite=overwrite),
    )


def _of(given: Given, decide: Decide | None, *, versioned: bool = True) -> Change:
    resource = resources.stored(given.resource)  # of which Kubernetes' revision says nothing
    version = resource.metadata.resource_version if versioned else ""
    key, what = resources.key_of(resource), resources.name_of(resource)
    return Change(
        key, resource.kind, what, given.where, decide, version, unknown=given.unknown, place=given.place
    )


def _to_named(kind: Kind, name: str, namespace: str | None, decide: Callable[[Resource], Resource]) -> Change:
    def changed(stored: Resource | None) -> Resource:
        there = _existing(stored)
        if kind is not KUBERNETES_POLICY:
            return decide(there)
        return becomes.applied(there, resources.stored(decide(resources.original(there)), there))

    key, what = resources.key(kind, name, namespace), resources.named(kind, name, namespace)
    return Change(key, kind.name, what, decide=changed)


def _existing(stored: Resource | None) -> Resource:
    if stored is None:
        raise NotFound("does not exist")
    return stored


def gather(
    verb: Callable[[Given], Change], given: Sequence[Given], namespace: str | None = None
) -> list[Change]:
    """Return the change of each, every one of its own object; `namespace` is for those that say none.

    Raises:
        ConfigError: an object is given twice, or is none of Calico's; the message names each, and where.
    """
    changes: dict[str, Change] = {}
    problems = []
    for one in given:
        try:
            change = verb(dataclasses.replace(one, resource=resources.placed(one.resource, namespace)))
        except (NotFound, ConfigError) as err:
            problems.append(f"{one.where}: {err}")
            continue
        first = changes.setdefault(change.key, change)
        if first is not change:
            problems.append(f"{change}: is given twice, first at {first.where}")
    _refuse(problems)
    return list(changes.values())


def some(names: Iterable[str], most: int = NAMED) -> str:
    """Return names for a message, the first `most` and how many more there are."""
    found = list(names)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


async def decided(kv: KeyValueStore, changes: Sequence[Change]) -> tuple[list[Step], list[FabricError]]:
    """Return what `changes` do to what is stored now, and why some of them must not be made; nothing is written.

    Raises:
        StoreError: etcd did not answer.
    """
    steps: list[Step] = []
    refusals: list[FabricError] = []
    for change in changes:
        if why := resources.read_only(change.kind, change.name):
            refusals.append(ConfigError(f"{change}: {why}"))
            continue
        try:
            item = await kv.get(change.key)
        except StoreError as err:
            raise type(err)(f"{change}: not changed: {err}") from err
        try:
            steps.append(_decided(change, item))
        except (ConfigError, NotFound, Taken, Conflict) as err:
            refusals.append(err)
    return steps, refusals


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError(
            "\n".join(problems) + ("; " if len(problems) == 1 else "\n") + "nothing was written"
        )


def _decided(change: Change, item: KeyValue | None) -> Step:
    revision = item.revision if item else 0
    if strange := _not_stored(change.unknown, item):
        raise ConfigError("\n".join(strange))
    try:
        if change.revision and change.revision != str(revision):
            raise becomes.stale(change.revision, revision)
        if change.decide is None:
            return _deletion(change, item)
        before = _read(item) if item else None
        after = change.decide(before)
    except (ConfigError, NotFound, Taken, Conflict) as err:
        raise type(err)(f"{change}: {err}") from err
    if after is before:
        return Step(change, revision, before, after, Verb.UNCHANGED)
    return Step(change, revision, before, after, Verb.CONFIGURED if before else Verb.CREATED)


def _not_stored(unknown: Sequence[tuple[Path, str]], item: KeyValue | None) -> list[str]:
    """Return the mistakes less those that the stored value has too: a newer tool's fields are kept."""
    if not unknown:
        return []
    try:
        stored: object = tree(resources.decode(item)) if item else None
    except ConfigError:
        stored = None
    return [told for path, told in unknown if value_at(stored, path, _ABSENT) is _ABSENT]


def _read(item: KeyValue) -> Resource:
    try:
        return resources.decode(item)
    except ConfigError as err:
        raise ConfigError(f"what is stored cannot be read: {err}; delete it first") from err


def _deletion(change: Change, item: KeyValue | None) -> Step:
    if item is None:
        if not change.may_be_absent:
            raise NotFound("does not exist; --skip-not-exists allows for that")
        return Step(change, 0, None, None, Verb.ABSENT)
    try:
        before = resources.decode(item)
    except ConfigError:
        before = None  # to delete what cannot be read is how it is mended
    return Step(change, item.revision, before, None, Verb.DELETED)


async def carry_out(kv: KeyValueStore, steps: Sequence[Step]) -> AsyncGenerator[Step, None]:
    """Write the steps in their order, and yield each one as it came to be, once it is stored.

    Raises:
        FabricError: one could not be written; of several, the message says which ones were not.
    """
    wanted = [step.after for step in steps if isinstance(step.after, IPPool)]
    for at, step in enumerate(steps):
        try:
            done = await _write(kv, step, wanted)
        except FabricError as err:
            if len(steps) == 1:
                raise
            raise FabricError(f"{err}\n{_left(steps, at)}") from err
        yield done


def _left(steps: Sequence[Step], at: int) -> str:
    names = [step.change.what for step in steps[at:]]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    written = "nothing was written before it" if at == 0 else f"{at} of {len(steps)} were done before it"
    return f"{written}; not done: {', '.join(names[:NAMED])}{more}; run it again to do the rest"


async def _write(kv: KeyValueStore, step: Step, wanted: Sequence[IPPool] = ()) -> Step:
    for _ in range(ATTEMPTS):
        if step.verb in {Verb.UNCHANGED, Verb.ABSENT}:
            return step
        try:
            return await _commit(kv, step, wanted)
        except Conflict:
            step = _decided(step.change, await kv.get(step.change.key))
    raise Conflict(f"{step.change}: others write it at the same moment; it was not written; try again")


async def _commit(kv: KeyValueStore, step: Step, wanted: Sequence[IPPool]) -> Step:
    """Write the step; `wanted` are all the pools that the command writes."""
    key, after = step.change.key, step.after
    if isinstance(step.before, IPPool) and after is None:
        await pools.delete(kv, key, step.before, step.revision)
        return step
    if step.verb is Verb.CREATED and after:
        after = stamped(after, datetime.now(UTC), uuid.uuid4())
    unwritten = await pools.fit(kv, step.before, after, wanted) if isinstance(after, IPPool) else ()
    op = Put(key, resources.encode(after)) if after else Delete(key)
    await kv.commit(Txn((Guard(key, step.revision),), (op,), unwritten))
    return dataclasses.replace(step, after=after)


async def change(kv: KeyValueStore, key: str, decide: Decide) -> Step:
    """Store at `key` what `decide` makes of what is there (None: nothing), guarded by what it saw.

    `decide` returns what it was given where nothing is to change, and may refuse by raising.

    Raises:
        Conflict: others wrote it at the same moment, again and again; nothing was written.
    """
    one = Change(key, "", key, decide=decide)
    return await _write(kv, _decided(one, await kv.get(key)))


async def create_if_absent(kv: KeyValueStore, resource: Resource) -> bool:
    """Create `resource` and return True, or return False where somebody already has."""
    key = resources.key_of(resource)
    fresh = stamped(resource, datetime.now(UTC), uuid.uuid4())
    try:
        await kv.commit(Txn((Guard(key, 0),), (Put(key, resources.encode(fresh)),)))
    except Conflict:
        return False
    return True
