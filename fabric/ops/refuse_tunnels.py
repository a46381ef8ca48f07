"""Decide which changes to refuse for what a node could not do then: make a tunnel, or keep an MTU that will do.

A change of a pool, of a Node or of settings is refused for what it brings about alone: what is wrong already is no
reason. Of other nodes it counts what their Nodes say; of this host, if it is a node, what it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TypeVar

from fabric.ipam import assign
from fabric.model import extensions
from fabric.model.base import Resource
from fabric.model.felixconfiguration import FelixConfiguration
from fabric.model.ippool import IPPool
from fabric.model.kinds import lookup
from fabric.model.node import Node
from fabric.model.workloadendpoint import EndpointPort, WorkloadEndpoint
from fabric.ops import findings, resources, tunnels
from fabric.ops.change import Step, Verb, some
from fabric.ops.findings import Cluster, Host
from fabric.ops.tunnels import Trouble
from fabric.plan import asked, encap, publish
from fabric.plan.encap import Kind
from fabric.store.kv import KeyValueStore

R = TypeVar("R", bound=Resource)


@dataclass(frozen=True, slots=True)
class Here:
    """The node that this host is; `read` returns what the tunnels that are asked of it stand on.

    `unpublishable` returns why a port cannot be published here, "" where it can.
    """

    node: str
    read: Callable[[Cluster], Awaitable[Host]]
    unpublishable: Callable[[str, EndpointPort], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class _State:
    """What tunnels are decided by, each kind by name."""

    pools: Mapping[str, IPPool]
    nodes: Mapping[str, Node]
    felix: Mapping[str, FelixConfiguration]

    def cluster(self, node: str, pools: Iterable[IPPool]) -> Cluster:
        far = tuple(a.ip for name, one in self.nodes.items() if name != node for a in one.addresses)
        return Cluster(tuple(pools), node=self.nodes.get(node), far=far, felix=tuple(self.felix.values()))


@dataclass(frozen=True, slots=True)
class _Wrong:
    """What is wrong with one pool, which asks for `kind`.

    `lacking` are the nodes that cannot have its tunnels, each with all kinds that it lacks, `endless` those without an
    address to send from; `here` is about this host.
    """

    kind: Kind | None = None
    lacking: Mapping[str, frozenset[Kind]] = field(default_factory=dict)
    endless: frozenset[str] = frozenset()
    here: tuple[Trouble, ...] = ()


async def refusals(kv: KeyValueStore, steps: Sequence[Step], here: Here | None) -> list[str]:
    """Return why `steps` must not be carried out, a line each.

    Raises:
        StoreError: etcd did not answer.
    """
    if not any(_matters(step, here) for step in steps):
        return []
    before = _State(
        await _stored(kv, IPPool),
        await _stored(kv, Node),
        await _stored(kv, FelixConfiguration),
    )
    after = _State(
        _with(before.pools, IPPool, steps),
        _with(before.nodes, Node, steps),
        _with(before.felix, FelixConfiguration, steps),
    )
    name, host = "", Host()
    if here and here.node in after.nodes:
        name, host = here.node, await here.read(after.cluster(here.node, after.pools.values()))
    told: list[str] = []
    for pool in after.pools.values():
        old = before.pools.get(pool.metadata.name)
        was = _wrong(old, before, name, host) if old else _Wrong()
        told += _told(pool, was, _wrong(pool, after, name, host), steps)
    return [*told, *await _hidden(kv, before, after, steps)]


async def _hidden(kv: KeyValueStore, before: _State, after: _State, steps: Sequence[Step]) -> list[str]:
    """Say which ports would not be published, for tunnels come in by them."""
    found = (await resources.listing(kv, WorkloadEndpoint, lookup("workloadendpoint"))).resources
    was: dict[str, Resource | None] = {resources.key_of(one): one for one in found}
    now = was | {s.change.key: s.after for s in steps if s.change.kind == "WorkloadEndpoint"}
    own = {s.change.what: s for s in steps if s.change.kind == "WorkloadEndpoint"}
    others = [s for s in steps if _matters(s, None) or s.change.kind == "FelixConfiguration"]
    told = []
    published, earlier = _publishing(now), _publishing(was)
    for node in sorted(published.keys() & after.nodes.keys()):
        known = _covered(before, earlier.get(node, []), node)
        for name, why in _covered(after, published[node], node).items():
            if known.get(name) != why and (step := own.get(name, next(iter(others), None))):
                told.append(f"{step.change}: {'spec.ports' if name in own else name}: {why}")
    return told


def _publishing(endpoints: Mapping[str, Resource | None]) -> Mapping[str, list[WorkloadEndpoint]]:
    """Return the endpoints that publish anything, by their node."""
    found = defaultdict[str, list[WorkloadEndpoint]](list)
    for endpoint in endpoints.values():
        if isinstance(endpoint, WorkloadEndpoint) and endpoint.spec.node and publish.of(endpoint):
            found[endpoint.spec.node].append(endpoint)
    return found


def _covered(state: _State, there: Sequence[WorkloadEndpoint], node: str) -> dict[str, str]:
    alone = publish.published(there)[1]
    tunnelled = publish.published(there, state.cluster(node, state.pools.values()).received)[1]
    return {name: why for name, why in tunnelled.items() if alone.get(name) != why}


def _matters(step: Step, here: Here | None) -> bool:
    """Whether the step may make something wrong that was not."""
    if step.verb not in {Verb.CREATED, Verb.CONFIGURED}:
        return False
    match step.before, step.after:
        case _, IPPool() as pool:
            return here is not None or asked.pool(pool).kind is not None
        case Node() as old, Node() as new:
            return (old.metadata.labels, asked.node(old)) != (new.metadata.labels, asked.node(new))
        case _, Node():
            return True
        case _, FelixConfiguration():
            return True
        case _, WorkloadEndpoint() as endpoint:
            return bool(publish.of(endpoint))
    return False


async def _stored(kv: KeyValueStore, cls: type[R]) -> dict[str, R]:
    found = (await resources.listing(kv, cls, lookup(cls.__name__.lower()))).resources
    return {one.metadata.name: one for one in found}


def _with(stored: Mapping[str, R], cls: type[R], steps: Iterable[Step]) -> dict[str, R]:
    found = dict(stored)
    for step in steps:
        if step.change.kind == cls.__name__:
            found.pop(step.change.name, None)
            if isinstance(step.after, cls):
                found[step.change.name] = step.after
    return found


def _wrong(pool: IPPool, state: _State, here: str, host: Host) -> _Wrong:
    lacking: dict[str, frozenset[Kind]] = {}
    endless = set()
    wanted = asked.pool(pool)
    for name, node in state.nodes.items():
        if wanted.kind is None or not assign.selects(pool, node.metadata.labels):
            continue
        lacks = frozenset(host.missing_tunnels) if name == here else asked.node(node).lacks
        if encap.lacking(wanted, lacks):
            lacking[name] = lacks
        if pool.spec.cidr.version not in {a.version for a in node.addresses}:
            endless.add(name)
    of_host = findings.of_tunnels(host, state.cluster(here, [pool])) if here else []
    return _Wrong(
        wanted.kind,
        lacking,
        frozenset(endless),
        tuple((one.id, one.cause, one.cure) for one in of_host),
    )


def _told(pool: IPPool, was: _Wrong, now: _Wrong, steps: Sequence[Step]) -> Iterator[str]:
    """What is wrong `now` and was not, at the step that brings it about."""
    wanted = asked.pool(pool)
    if new := {name for name in now.lacking if now.kind != was.kind or name not in was.lacking}:
        lacks = {kind: "" for name in new for kind in now.lacking[name]}
        for trouble in tunnels.of_kernel([wanted], lacks, some(sorted(new))):
            yield _line(trouble, pool, _step(steps, pool, new))
    if endless := now.endless - was.endless:
        for trouble in tunnels.of_ends([wanted], (), some(sorted(endless))):
            yield _line(trouble, pool, _step(steps, pool, endless))
    for trouble in now.here:
        if trouble not in was.here:
            yield _line(trouble, pool, _step(steps, pool))


def _step(steps: Sequence[Step], pool: IPPool, nodes: AbstractSet[str] = frozenset()) -> Step:
    """The step that brings it about: the pool's, or else that of one of `nodes`, or of settings."""
    written = [step for step in steps if step.verb in {Verb.CREATED, Verb.CONFIGURED}]
    of_pool = [s for s in written if (s.change.kind, s.change.name) == ("IPPool", pool.metadata.name)]
    of_node = [s for s in written if s.change.kind == "Node" and s.change.name in nodes]
    settings = [s for s in written if s.change.kind == "FelixConfiguration"]
    return [*of_pool, *of_node, *settings, *written][0]


def _line(trouble: Trouble, pool: IPPool, step: Step) -> str:
    id_, cause, cure = trouble
    if id_ == "FAB1002" and (typos := extensions.unknown("IPPool", pool.metadata.annotations)):
        cause += f"; an annotation that nobody knows: {some(typos)}"
    if step.change.kind != "IPPool":
        return f"{step.change}: {cause}; {cure} ({id_})"
    wanted = asked.pool(pool)
    value = wanted.mode if wanted.kind else str(wanted.prefix)
    return step.change.told(("spec", tunnels.field(wanted)), value, f"{cause}; {cure} ({id_})")
