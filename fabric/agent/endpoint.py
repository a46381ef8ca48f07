"""Decide the endpoint of a workload, what IPAM must store for it, and what must be freed after it. Pure.

Source: calico-wire (WorkloadEndpoint), calico-semantics §§5 and 8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from ipaddress import ip_network
from uuid import UUID, uuid5

from pydantic import ValidationError

from fabric.agent.snapshot import Snapshot
from fabric.errors import ConfigError, NotFound, NotInSync, Taken
from fabric.ipam import assign
from fabric.ipam.assign import Assignment, Demand
from fabric.ipam.block import Owner
from fabric.ipam.types import Address
from fabric.ipam.view import Change, View, after
from fabric.model import namespaces
from fabric.model.base import Metadata
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from fabric.model.workloadendpoint import EndpointPort, WorkloadEndpoint, WorkloadEndpointSpec, name_of
from fabric.plan import publish
from fabric.plan.endpoints import NETNS_ANNOTATION, ORCHESTRATOR, handle_of
from fabric.plan.links import container_mac, host_name
from fabric.store import keys

INTERFACE = "eth0"
_WORKLOAD = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Request:
    """What `workload add` asks for; `netns` is a path that the agent can open, `pools` are names or prefixes.

    `ports` are to be published.
    """

    name: str
    namespace: str
    netns: str
    labels: Mapping[str, str] = field(default_factory=dict)
    address: Address | None = None
    pools: tuple[str, ...] = ()
    ports: tuple[EndpointPort, ...] = ()

    def __str__(self) -> str:
        return f"workload {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a decision takes from the outside: the time (UTC), and a seed for the identities it gives."""

    now: datetime
    uid: UUID


def check(request: Request) -> None:
    """Refuse names that could not be stored, or told apart again.

    Raises:
        ConfigError: with the rule.
    """
    _check_name("workload", request.name, _WORKLOAD)
    _check_name("namespace", request.namespace, _NAMESPACE)


def _check_name(what: str, name: str, rule: re.Pattern[str]) -> None:
    if not rule.fullmatch(name):
        dots = ', "."' if rule is _WORKLOAD else ""
        raise ConfigError(
            f'{what} "{name}": must be 1 to 63 of a-z, 0-9, "-"{dots}, beginning and ending with a letter or digit; '
            "nothing was changed"
        )


def find(snapshot: Snapshot, node: str, namespace: str, name: str) -> WorkloadEndpoint | None:
    """Return the endpoint of a workload of `node`."""
    return snapshot.get(WorkloadEndpoint, _full_name(node, name), namespace)


def existing(snapshot: Snapshot, node: str, request: Request) -> WorkloadEndpoint | None:
    """Return the endpoint that is what `request` asks for, if it is there already.

    Raises:
        Taken: the name has an endpoint that is something else.
    """
    endpoint = find(snapshot, node, request.namespace, request.name)
    if endpoint is None:
        return None
    held = endpoint.metadata.annotations.get(NETNS_ANNOTATION)
    addresses = {prefix.network_address for prefix in endpoint.spec.ip_networks}
    labels = own_labels(endpoint)
    asked = [p for p in snapshot.all(IPPool) if {p.metadata.name, str(p.spec.cidr)} & {*request.pools}]
    same = (
        held == request.netns
        and (not request.address or request.address in addresses)
        and (not asked or any(address in pool.spec.cidr for pool in asked for address in addresses))
    )
    published = publish.of(endpoint)
    same = same and (not request.ports or set(request.ports) == set(published))
    if not same or (request.labels and _own(request.labels) != labels):
        listed = ", ".join(f"{k}={v}" for k, v in sorted(labels.items())) or "no labels"
        ports = f", published at {', '.join(map(publish.words, published))}" if published else ""
        raise Taken(
            f"{request}: already attached on node {node} as {', '.join(map(str, sorted(addresses, key=str)))} in "
            f"{held} with {listed}{ports}; nothing was changed; remove it first "
            f"with `fabricctl workload del {request.name}`, or choose another name"
        )
    return endpoint


def own_labels(endpoint: WorkloadEndpoint) -> dict[str, str]:
    """Return the labels that the user gave, without those that every endpoint is written with."""
    return _own(endpoint.metadata.labels)


def _own(labels: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in labels.items() if not k.startswith("projectcalico.org/")}


@dataclass(frozen=True)
class Decided:
    """One endpoint, and what IPAM must store with it or free after it, in order."""

    endpoint: WorkloadEndpoint
    changes: tuple[Change, ...]


def attach(snapshot: Snapshot, view: View, request: Request, stamp: Stamp) -> Decided:
    """Return the endpoint that `request` gets on the view's node, with its addresses.

    Addresses that the workload's handle still holds are freed on the way: the snapshot is in sync and has
    no endpoint of that name, so nothing uses them.

    Raises:
        NotInSync: the node is not registered.
        ConfigError: a label or name that cannot be stored, or no pool that may serve.
        Taken: the address is held, or the name has an endpoint that cannot be read.
        Exhausted: no address is free.
    """
    node, name = view.node, _full_name(view.node, request.name)
    _require_registered(snapshot, node, request)
    key = endpoint_key(request.namespace, name)
    if why := snapshot.problems.get(key):
        raise Taken(
            f"{request}: {key} has an endpoint of that name that cannot be read ({why}); nothing was attached; mend "
            "or delete that key, or choose another name"
        )
    handle = handle_of(request.namespace, name)
    left = _freed(view, handle, request.address, stamp.now)
    for change in left:
        view = after(view, change)
    made = _assign(snapshot, view, request, handle, stamp)
    return Decided(_endpoint(node, request, made, stamp), (*left, *(m.change for m in made)))


def check_ports(request: Request, endpoint: WorkloadEndpoint, others: Iterable[WorkloadEndpoint]) -> None:
    """Refuse what `endpoint`, as made for `request`, publishes and cannot have beside `others` of its node.

    Raises:
        ConfigError: it has no address of the family to publish there, or asks for one port twice.
        Taken: another has the port.
    """
    there, _ = publish.published(others)
    own: list[publish.Published] = []
    for port in request.ports:
        wanted = publish.wants(endpoint, port)
        if isinstance(wanted, str):
            raise ConfigError(f"{request}: {publish.words(port)}: {wanted}; nothing was attached")
        for one in wanted:
            if any(map(one.meets, own)):
                raise ConfigError(f"{request}: {one.at} is asked for twice; nothing was attached")
            if taken := next((other for other in there if one.meets(other)), None):
                raise Taken(
                    f"{request}: {one.at} is published by workload {taken.holder} of node {endpoint.spec.node}; "
                    "nothing was attached; publish another port, or remove that workload first"
                )
            own.append(one)


def _require_registered(snapshot: Snapshot, node: str, request: Request) -> None:
    if snapshot.get(Node, node):
        return
    why = snapshot.problems.get(node_key(node))
    raise NotInSync(
        f"{request}: node {node} "
        + (f"cannot be read: {why}" if why else "is not registered (it leaves, or its Node was deleted)")
        + "; nothing was attached; join again first"
    )


def _freed(view: View, handle: str, asked: Address | None, at: datetime) -> tuple[Change, ...]:
    """Free what `handle` holds; the address it asks for again has nobody to cool down from."""
    if handle not in view.handles:
        return ()
    changes = []
    for stored in view.blocks.values():
        for address in stored.block.held_by(handle):
            config = replace(view.config, cooldown=0) if address == asked else view.config
            changes.append(assign.release(replace(view, config=config), address, handle, at=at))
            view = after(view, changes[-1])
    return tuple(changes)


def _assign(
    snapshot: Snapshot, view: View, request: Request, handle: str, stamp: Stamp
) -> tuple[Assignment, ...]:
    """One address of each family that a pool serves here; where one was asked for by itself, that alone."""
    secondary = {
        "node": view.node,
        "namespace": request.namespace,
        "workload": request.name,
        "timestamp": stamp.now.strftime("%Y-%m-%d %H:%M:%S.%f +0000 UTC"),
    }
    demand = _demand(snapshot, request, Owner(handle, secondary))
    asked = request.address
    made = [assign.exact(view, asked, demand, stamp.now)] if asked else []
    versions = [
        v
        for v in (4, 6)
        if not asked or (request.pools and v != asked.version)
        if assign.candidate_pools(view, v, demand)
    ]
    if not made and not versions:
        versions = [4]  # which says why no pool serves this node
    return (*made, *(assign.automatic(view, version, demand, stamp.now) for version in versions))


def warnings(snapshot: Snapshot, node: str, request: Request, endpoint: WorkloadEndpoint) -> tuple[str, ...]:
    """Return what `endpoint`, as attached for `request`, lacks, and why: its profile, a family that has pools.

    Or one in which the node has addresses, and its published ports are not there.
    """
    me = snapshot.get(Node, node)
    ports = publish.alone(endpoint, (held.version for held in me.addresses)) if me else ""
    lacks = (*_lacks_profile(snapshot, request), *([ports] if ports else []))
    if request.address or request.pools:
        return lacks  # which is what was asked for
    given = {prefix.version for prefix in endpoint.spec.ip_networks}
    lacking = {pool.spec.cidr.version for pool in snapshot.all(IPPool)} - given
    if not lacking:
        return lacks
    view, demand = snapshot.view(node), _demand(snapshot, request, Owner(None))
    why = (assign.passed_over(view, version, demand) for version in sorted(lacking))
    return (*lacks, *filter(None, why))


def carry(snapshot: Snapshot, profile: str) -> bool:
    """Whether endpoints carry the profile of that name."""
    return any(profile in endpoint.spec.profiles for endpoint in snapshot.all(WorkloadEndpoint))


def _lacks_profile(snapshot: Snapshot, request: Request) -> tuple[str, ...]:
    if profile_key(request.namespace) in snapshot.seen:
        return ()
    name = namespaces.profile_name(request.namespace)
    why = (
        f"Profile {name} was deleted while endpoints carry it, and was not made anew, which would open them: what no "
        f"policy allows {request.namespace}/{request.name} is denied; `fabricctl apply` a Namespace "
        f"{request.namespace} to have it back"
    )
    return (why,)


def _demand(snapshot: Snapshot, request: Request, owner: Owner) -> Demand:
    return Demand(owner, namespace_labels=snapshot.namespace_labels(request.namespace), pools=request.pools)


def detach(view: View, endpoint: WorkloadEndpoint, at: datetime) -> Decided:
    """Return what frees the addresses of `endpoint`; one that another holds by now is left alone."""
    handle = handle_of(endpoint.metadata.namespace, endpoint.metadata.name)
    changes: list[Change] = []
    for prefix in endpoint.spec.ip_networks:
        with suppress(NotFound, Taken):
            changes.append(assign.release(view, prefix.network_address, handle, at=at))
            view = after(view, changes[-1])
    return Decided(endpoint, tuple(changes))


def _endpoint(node: str, request: Request, made: tuple[Assignment, ...], stamp: Stamp) -> WorkloadEndpoint:
    return WorkloadEndpoint(
        metadata=_metadata(node, request, stamp),
        spec=WorkloadEndpointSpec(
            orchestrator=ORCHESTRATOR,
            node=node,
            workload=request.name,
            endpoint=INTERFACE,
            ip_networks=tuple(ip_network(m.address) for m in made),
            profiles=(namespaces.profile_name(request.namespace),),
            interface_name=host_name(request.namespace, request.name),
            mac=container_mac(request.namespace, request.name),
            ports=request.ports,
        ),
    )


def _metadata(node: str, request: Request, stamp: Stamp) -> Metadata:
    name = _full_name(node, request.name)
    try:
        return Metadata(
            name=name,
            namespace=request.namespace,
            # Without these two calicoctl refuses to update it.
            uid=str(uuid5(stamp.uid, endpoint_key(request.namespace, name))),
            creation_timestamp=stamp.now.replace(microsecond=0),
            labels=request.labels,
            annotations={NETNS_ANNOTATION: request.netns},
        )
    except ValidationError as err:
        rules = "; ".join(e["msg"].removeprefix("Value error, ") for e in err.errors())
        raise ConfigError(f"{request}: {rules}; nothing was attached") from err


def _full_name(node: str, name: str) -> str:
    return name_of((node, ORCHESTRATOR, name, INTERFACE))


def endpoint_key(namespace: str, name: str) -> str:
    """Return where the endpoint of that full name is stored."""
    return keys.ResourceKey("workloadendpoints", namespace, name).path


def profile_key(namespace: str) -> str:
    """Return where the profile of that namespace is stored."""
    return keys.ResourceKey("profiles", None, namespaces.profile_name(namespace)).path


def node_key(node: str) -> str:
    """Return where the Node is stored."""
    return keys.ResourceKey("nodes", None, node).path
