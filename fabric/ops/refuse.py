"""Decide which changes to refuse for what else is stored, and what to warn of: pools, tiers, nodes, endpoints.

What a resource must satisfy by itself is `fabric.model`'s; here it meets the others, as they will stand
once every change of one command is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import chain

from fabric.errors import ConfigError, FabricError
from fabric.ipam.pools import HostPrefix, in_use, refusals
from fabric.ipam.view import View
from fabric.model import kinds
from fabric.model.base import Resource, tree
from fabric.model.effects import KEPT, WHOLE, not_used
from fabric.model.hostendpoint import HostEndpoint
from fabric.model.ipamconfiguration import IPAMConfiguration
from fabric.model.ippool import IPPool
from fabric.model.kinds import lookup
from fabric.model.tier import BUILT_IN
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.ops import pools, refuse_tunnels, resources
from fabric.ops.change import Change, Step, Verb, some
from fabric.ops.refuse_tunnels import Here
from fabric.plan import publish
from fabric.store import keys
from fabric.store.kv import KeyValueStore

POLICIES = tuple(kind for kind in kinds.KINDS if kind.name.endswith("NetworkPolicy"))

_ANNOTATIONS = "metadata.annotations."  # and behind it a key, which has dots of its own
_POLICY_KINDS = frozenset(kind.name for kind in POLICIES)


async def refuse(
    kv: KeyValueStore,
    steps: Sequence[Step],
    host: Sequence[HostPrefix] = (),
    refusals: Sequence[FabricError] = (),
    changes: Sequence[Change] = (),
    here: Here | None = None,
) -> list[str]:
    """Return what to warn of before `steps` are carried out, a line each.

    Args:
        host: the subnets of this host, each with its interface.
        refusals: what is to be refused already, to be told with the rest.
        changes: all that the command asks for, what is refused already too.
        here: the node that this host is.

    Raises:
        ConfigError: with everything that must not be done, a line each; nothing was written.
    """
    problems = [
        *map(str, refusals),
        *_read_only(steps),
        *_unstorable(steps),
        *await _tiers(kv, steps, {c.name for c in changes if c.kind == "Tier" and c.decide}),
        *await _pools(kv, steps, host),
        *await refuse_tunnels.refusals(kv, steps, here),
        *await _ports(kv, steps, here),
    ]
    if problems:
        joint = "; " if len(problems) == 1 else "\n"
        error = type(refusals[0]) if refusals and len(problems) == 1 else ConfigError
        raise error("\n".join(problems) + joint + "nothing was written")
    return [
        *await _nodes(kv, steps),
        *_endpoints(steps),
        *await _profiles(kv, steps),
        *await _pools_in_use(kv, steps),
        *_not_used(steps),
    ]


def _writes(step: Step) -> bool:
    return step.verb in {Verb.CREATED, Verb.CONFIGURED}


def _deleted(steps: Sequence[Step], kind: str) -> list[Step]:
    return [step for step in steps if step.change.kind == kind and step.verb is Verb.DELETED]


def _read_only(steps: Sequence[Step]) -> Iterator[str]:
    for step in steps:
        if step.change.kind == "ClusterInformation" and (_writes(step) or step.verb is Verb.DELETED):
            yield f"{step.change}: is written by the nodes, and read-only for everybody else"


def _unstorable(steps: Sequence[Step]) -> Iterator[str]:
    for step in steps:
        if isinstance(step.after, IPAMConfiguration) and _writes(step):
            metadata = step.after.metadata
            if metadata.labels or metadata.annotations:
                yield f"{step.change}: has no place for labels and annotations in the datastore; leave them out"


def _tier(policy: Resource) -> str:
    return getattr(getattr(policy, "spec", None), "tier", "") or "default"


async def _tiers(kv: KeyValueStore, steps: Sequence[Step], asked: Set[str]) -> list[str]:
    """A policy's tier exists or is `asked` for; a tier that goes is not built in, and no policy is left in it."""
    gone = _deleted(steps, "Tier")
    problems = [
        f"{step.change}: is built in, and cannot be deleted" for step in gone if step.change.name in BUILT_IN
    ]
    policies = [
        (step, _tier(step.after)) for step in steps if step.change.kind in _POLICY_KINDS and step.after
    ]
    if any(tier not in BUILT_IN for _, tier in policies):
        stored = {item.key.rpartition("/")[2] for item in (await kv.list(keys.resources("tiers"))).items}
        given = {step.change.name for step in steps if step.change.kind == "Tier" and step.after}
        there = (stored | given | asked | BUILT_IN.keys()) - {step.change.name for step in gone}
        problems += [
            f'{step.change}: spec.tier: "{tier}": there is no such Tier; create it first, or in the same command'
            for step, tier in policies
            if tier not in there
        ]
    if gone:
        problems += await _tiers_in_use(kv, steps, gone)
    return problems


async def _tiers_in_use(kv: KeyValueStore, steps: Sequence[Step], gone: Sequence[Step]) -> list[str]:
    changed = {step.change.key: step.after for step in steps}
    members: dict[str, list[str]] = {}
    for kind in POLICIES:
        for policy in (await resources.listing(kv, Resource, kind)).resources:
            # One that moves to a tier that goes is told by the caller: that tier does not exist any more.
            after = changed.get(resources.key_of(policy), policy)
            if after is not None:
                members.setdefault(_tier(after), []).append(resources.name_of(policy))
    return [
        f"{step.change}: has policies in it: {some(members[step.change.name])}; delete or move them first"
        for step in gone
        if step.change.name in members
    ]


async def _pools(kv: KeyValueStore, steps: Sequence[Step], host: Sequence[HostPrefix]) -> list[str]:
    """Pools overlap neither one another nor a subnet of a host, and none is resized under the blocks in it."""
    wanted = {s.after.metadata.name: s for s in steps if _writes(s) and isinstance(s.after, IPPool)}
    if not wanted:
        return []
    view = await _view(kv)
    gone = {step.change.name for step in _deleted(steps, "IPPool")}
    view = replace(view, pools=tuple(pool for pool in view.pools if pool.metadata.name not in gone))
    here = {prefix for _, prefix in host}
    found = refusals(
        view,
        [pool for step in wanted.values() if isinstance(pool := step.after, IPPool)],
        [*host, *(there for there in await pools.node_subnets(kv) if there[1] not in here)],
    )
    return [_pool(wanted[name], why) for name, reasons in found.items() for why in reasons]


def _pool(step: Step, why: str) -> str:
    field, value, rule = why.split(" ", 2)
    return step.change.told(("spec", field), value, rule)


async def _ports(kv: KeyValueStore, steps: Sequence[Step], here: Here | None) -> list[str]:
    """A port that a workload publishes can be had, and is no other workload's on its node."""
    written = {
        step.change.what: (step.change, step.after)
        for step in steps
        if _writes(step) and isinstance(step.after, WorkloadEndpoint) and publish.of(step.after)
    }
    if not written:
        return []
    found = (await resources.listing(kv, WorkloadEndpoint, lookup("workloadendpoint"))).resources
    stored: dict[str, Resource | None] = {resources.key_of(one): one for one in found}
    changed = {step.change.key: step.after for step in steps if step.change.kind == "WorkloadEndpoint"}
    told = []
    for node, change in {endpoint.spec.node: change for change, endpoint in written.values()}.items():
        was, wrong = _unpublished(stored, node), _unpublished({**stored, **changed}, node)
        for name, why in wrong.items():
            own = f"{written[name][0]}: spec.ports" if name in written else f"{change}: {name}"
            told += [f"{own}: {why}"] if was.get(name) != why else []
    for step in filter(_writes, steps):
        if here and isinstance(step.after, WorkloadEndpoint) and step.after.spec.node == here.node:
            old = publish.of(step.before) if isinstance(step.before, WorkloadEndpoint) else ()
            for port in publish.of(step.after):
                told_above = isinstance(publish.wants(step.after, port), str)
                if port not in old and not told_above and (why := await here.unpublishable(here.node, port)):
                    told.append(f"{step.change}: spec.ports: {publish.words(port)}: {why}")
    return told


def _unpublished(endpoints: Mapping[str, Resource | None], node: str) -> Mapping[str, str]:
    """Return what the endpoints of `node` cannot publish, by name, and why."""
    there = [one for one in endpoints.values() if isinstance(one, WorkloadEndpoint) and one.spec.node == node]
    return publish.published(there)[1]


async def _pools_in_use(kv: KeyValueStore, steps: Sequence[Step]) -> list[str]:
    # One that cannot be read is not looked at: to delete it is how that is mended.
    gone = [(step, step.before) for step in _deleted(steps, "IPPool") if isinstance(step.before, IPPool)]
    if not gone:
        return []
    view = await _view(kv)
    return [
        f"{step.change}: {len(held)} of its addresses stay in use, and no pool covers them then: {some(map(str, held))}"
        for step, pool in gone
        if (held := in_use(view, pool))
    ]


async def _view(kv: KeyValueStore) -> View:
    try:
        return await pools.read(kv)
    except ConfigError as err:
        raise ConfigError(f"{err}; nothing was written") from err


async def _nodes(kv: KeyValueStore, steps: Sequence[Step]) -> list[str]:
    gone = _deleted(steps, "Node")
    if not gone:
        return []
    blocks = Counter(
        key.node
        for item in (await kv.list(keys.AFFINITIES)).items
        if isinstance(key := keys.parse(item.key), keys.AffinityKey)
    )
    endpoints = (await resources.listing(kv, WorkloadEndpoint, lookup("workloadendpoint"))).resources
    workloads = Counter(endpoint.spec.node for endpoint in endpoints)
    return [
        f"{step.change}: leaves {left} behind; `fabricctl node leave` on the node gives it back"
        for step in gone
        if (left := _left(blocks[step.change.name], workloads[step.change.name]))
    ]


def _left(blocks: int, workloads: int) -> str:
    counts = ((blocks, "block"), (workloads, "workload endpoint"))
    return " and ".join(f"{n} {what}{'s' if n > 1 else ''}" for n, what in counts if n)


def _endpoints(steps: Sequence[Step]) -> Iterator[str]:
    for step in _deleted(steps, "WorkloadEndpoint"):
        addresses = step.before.spec.ip_networks if isinstance(step.before, WorkloadEndpoint) else ()
        if addresses:
            yield (
                f"{step.change}: {some(map(str, addresses))} stays allocated; `fabricctl ipam check` finds it, and "
                "`fabricctl ipam release` frees it"
            )


async def _profiles(kv: KeyValueStore, steps: Sequence[Step]) -> list[str]:
    gone = _deleted(steps, "Profile")
    if not gone:
        return []
    workloads = (await resources.listing(kv, WorkloadEndpoint, lookup("workloadendpoint"))).resources
    hosts = (await resources.listing(kv, HostEndpoint, lookup("hostendpoint"))).resources
    had = [endpoint.spec.profiles for endpoint in workloads] + [endpoint.spec.profiles for endpoint in hosts]
    named = Counter(chain.from_iterable(had))
    return [
        f"{step.change}: {n} endpoint{'s have' if n > 1 else ' has'} it; what it allowed, and no policy does, is "
        "denied then"
        for step in gone
        if (n := named[step.change.name])
    ]


def _not_used(steps: Sequence[Step]) -> Iterator[str]:
    """Say what is set and changes nothing here: a line for each field of a kind, or for the kind."""
    named: dict[tuple[str, str], list[str]] = {}
    for step in filter(_writes, steps):
        for path in not_used(step.after) if step.after else ():
            if path == WHOLE or _at(step.before, path) != _at(step.after, path):
                named.setdefault((step.change.kind, path), []).append(str(step.change))
    for (_, path), names in named.items():
        yield ": ".join(filter(None, (some(names, 1), path, KEPT)))


def _at(resource: Resource | None, path: str) -> object:
    if resource and path.startswith(_ANNOTATIONS):
        return resource.metadata.annotations.get(path.removeprefix(_ANNOTATIONS))
    value: object = tree(resource) if resource else None
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value
