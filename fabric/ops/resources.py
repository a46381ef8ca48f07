"""Read resources from the datastore: where each kind lives, and how its values are written there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fabric.errors import ConfigError, NotFound
from fabric.model import ipamconfiguration, kinds
from fabric.model.base import API_VERSION, Metadata, Resource
from fabric.model.change import at_revision
from fabric.model.ipamconfiguration import IPAMConfiguration
from fabric.model.ippool import IPPool
from fabric.model.kinds import Kind, lookup
from fabric.model.wire import from_json, from_place, to_json
from fabric.ops import records
from fabric.store import keys
from fabric.store.kv import KeyValue, KeyValueStore

R = TypeVar("R", bound=Resource)

# The one kind that is not stored as a resource.
IPAM_CONFIGURATION = "IPAMConfiguration"
# The Profile that is stored nowhere: each of Calico's clients knows it.
DEFAULT_ALLOW = "projectcalico-default-allow"


def key_of(resource: Resource) -> str:
    """Return where `resource` lives, one of Kubernetes' as what is stored for it.

    A namespaced one without a namespace lives in "default".

    Raises:
        NotFound: it is of a kind that is not known.
        ConfigError: nothing can be stored for it.
    """
    resource = stored(resource)
    kind = kinds.named(resource.kind)
    if kind is None or resource.api_version != API_VERSION:
        raise NotFound(f'kind "{resource.kind}" of {resource.api_version} is not one of {API_VERSION}')
    return key(kind, resource.metadata.name, resource.metadata.namespace)


def stored(resource: Resource, before: Resource | None = None) -> Resource:
    """Return what is stored for `resource` where `before` is: itself, unless it is of Kubernetes' API.

    Raises:
        ConfigError: nothing can be.
    """
    if resource.api_version == API_VERSION:
        return resource
    from fabric.model.convert import stored as converted  # only here: rules take long to import

    made = converted(resource, before)
    if isinstance(made, Resource):
        return made
    raise ConfigError("; ".join(map(str, made)))


def original(resource: Resource) -> Resource:
    """Return the policy of Kubernetes that `resource` was made of.

    Raises:
        ConfigError: it was not made of one, or it was changed since.
    """
    from fabric.model.convert import original as found

    if policy := found(resource):
        return policy
    raise ConfigError(
        f"{name_of(resource)}: was not made of a policy of {kinds.KUBERNETES_POLICY.api_version}, or was changed "
        f"since; `fabricctl get np {resource.metadata.name} -n {resource.metadata.namespace}` shows it"
    )


def asked(resource: Resource) -> tuple[Kind, Metadata]:
    """Return which object `get` shows for one that a file describes, by its kind and metadata.

    Raises:
        NotFound, ConfigError: as from `key_of`.
    """
    key_of(resource)
    is_policy = resource.api_version == kinds.KUBERNETES_POLICY.api_version
    shown = resource if is_policy else stored(resource)
    return kinds.KUBERNETES_POLICY if is_policy else lookup(shown.kind), shown.metadata


def key(kind: Kind, name: str, namespace: str | None = None) -> str:
    """Return where the object of that name lives."""
    if (kind.name, name) == (IPAM_CONFIGURATION, ipamconfiguration.NAME):
        return keys.IPAM_CONFIG
    if kind is kinds.KUBERNETES_POLICY:
        name = f"{kinds.KUBERNETES_NAME}{name}"
    return keys.ResourceKey(kind.plural, (namespace or "default") if kind.namespaced else None, name).path


def placed(resource: Resource, namespace: str | None) -> Resource:
    """Return `resource` with a namespace if its kind has them: its own, `namespace`, or "default"."""
    kind = kinds.named(resource.kind, resource.api_version)
    if kind is None or not kind.namespaced or resource.metadata.namespace:
        return resource
    metadata = resource.metadata.model_copy(update={"namespace": namespace or "default"})
    return resource.model_copy(update={"metadata": metadata})


def named(kind: Kind, name: str, namespace: str | None = None) -> str:
    """Return how messages call an object: `IPPool a`, `NetworkPolicy default/a`."""
    if kind is kinds.KUBERNETES_POLICY:
        name = f"{kinds.KUBERNETES_NAME}{name}"
    return f"{kind.name} {namespace or 'default'}/{name}" if kind.namespaced else f"{kind.name} {name}"


def name_of(resource: Resource) -> str:
    resource = stored(resource)
    kind = kinds.named(resource.kind)
    metadata = resource.metadata
    return (
        named(kind, metadata.name, metadata.namespace)
        if kind
        else f"{resource.kind} {resource.metadata.name}"
    )


def decode(item: KeyValue) -> Resource:
    """Return the resource in `item`, the key's revision as its metadata.resourceVersion.

    Raises:
        ConfigError: it cannot be read.
    """
    match keys.parse(item.key):
        case keys.ResourceKey(plural, namespace, name):
            return at_revision(from_place(item.value, plural, namespace, name), item.revision)
        case keys.BlockKey() | keys.AffinityKey() | keys.HandleKey():
            return at_revision(records.resource(item), item.revision)
    text = item.value
    if item.key == keys.IPAM_CONFIG:
        try:
            text = json.dumps(ipamconfiguration.resource_tree(json.loads(text)))
        except (ValueError, RecursionError) as err:
            raise ConfigError(f"stored value is no JSON: {err}") from None
    return at_revision(from_json(text), item.revision)


def read_only(kind: str, name: str) -> str:
    """Return why nobody may write the object, "" where somebody may."""
    if kind in records.PREFIXES:
        return "is IPAM's own, and read-only; see `fabricctl ipam`"
    if (kind, name) == ("Profile", DEFAULT_ALLOW):
        return "is built in, and read-only"
    return ""


def encode(resource: Resource) -> str:
    """Return the value to store."""
    if isinstance(resource, IPAMConfiguration):
        return json.dumps(ipamconfiguration.stored_tree(resource.spec), separators=(",", ":"))
    return to_json(resource)


async def get(
    kv: KeyValueStore, kind: Kind, names: Sequence[str], namespace: str | None = None
) -> list[Resource]:
    """Return the named resources.

    Raises:
        NotFound: one does not exist; the message names every one that is missing.
        ConfigError: one cannot be read.
    """
    found: list[Resource] = []
    missing: list[str] = []
    own = kind.name in records.PREFIXES
    listed = await listing(kv, Resource, kind) if own else Listed(_built_in(kind), {})
    not_stored = {resource.metadata.name: resource for resource in listed.resources}
    for name in names:
        if name in not_stored:
            found.append(not_stored[name])
            continue
        item = None if own else await kv.get(key(kind, name, namespace))
        if item is not None:
            try:
                resource = decode(item)
            except ConfigError as err:
                raise ConfigError(f"{named(kind, name, namespace)}: cannot be read: {err}") from err
            found.append(original(resource) if kind is kinds.KUBERNETES_POLICY else resource)
            continue
        where = f" in namespace {namespace or 'default'}" if kind.namespaced else ""
        missing.append(f'{kind.name} "{name}"{where}: does not exist')
    if missing:
        raise NotFound("\n".join([*missing, *listed.warnings]))
    return found


@dataclass(frozen=True, slots=True)
class Listed(Generic[R]):
    """All of a kind that can be read; and of each that cannot its key, and why, and what becomes of it meanwhile."""

    resources: tuple[R, ...]
    unreadable: Mapping[str, str]
    instead: Mapping[str, str] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """What to tell an operator of those that cannot be read, a line each."""
        return [
            f"{key}: cannot be read: {why}; {self.instead.get(key, 'it counts as absent')}"
            for key, why in self.unreadable.items()
        ]


async def listing(kv: KeyValueStore, cls: type[R], kind: Kind, namespace: str | None = None) -> Listed[R]:
    """Return every resource of `kind`, whose class is `cls`; `namespace` None means all of them.

    One that cannot be read is not among them, and does not hide the others.
    """
    found, unreadable, instead = [], {}, {}
    for item in await _items(kv, kind, namespace):
        try:
            resource = decode(item)
        except ConfigError as err:
            unreadable[item.key] = str(err)
            instead[item.key] = _instead(item, kind)
            continue
        if kind is kinds.KUBERNETES_POLICY:
            try:
                resource = original(resource)
            except ConfigError:
                continue
        if isinstance(resource, cls):
            found.append(resource)
    found += [resource for resource in _built_in(kind) if isinstance(resource, cls)]
    return Listed(tuple(found), unreadable, instead)


def _instead(item: KeyValue, kind: Kind) -> str:
    from policy import form, unread  # only here: rules take long to import

    match keys.parse(item.key):
        case keys.ResourceKey(_, namespace, name):
            key = form.Key(kind.name, namespace or "", name)
            return unread.instead(unread.left(key, item.value, ""))
    return "it counts as absent"


def _built_in(kind: Kind) -> tuple[Resource, ...]:
    """Return what there is of `kind` and stored nowhere."""
    if kind.name != "Profile":
        return ()
    from fabric.model.namespaces import default_allow  # only here: rules take long to import

    return (default_allow(DEFAULT_ALLOW),)


async def _items(kv: KeyValueStore, kind: Kind, namespace: str | None) -> Iterable[KeyValue]:
    if kind.name == IPAM_CONFIGURATION:
        item = await kv.get(keys.IPAM_CONFIG)
        return [item] if item else []
    if kind.name in records.PREFIXES:
        items = (await kv.list(records.PREFIXES[kind.name])).items
        return [item for item in items if keys.parse(item.key) or keys.is_garbled(item.key, ())]
    prefix = keys.resources(kind.plural) + (f"{namespace}/" if kind.namespaced and namespace else "")
    return (await kv.list(prefix)).items


async def pools(kv: KeyValueStore) -> tuple[IPPool, ...]:
    """Return every pool.

    Raises:
        ConfigError: one cannot be read: what it covers is unknown, so nothing may be put beside it.
    """
    listed = await listing(kv, IPPool, lookup("ippool"))
    if listed.unreadable:
        raise ConfigError("\n".join([*listed.warnings, "mend or delete it first"]))
    return listed.resources
