"""Decide the endpoint of a workload, and the transactions that store it and remove it. Pure.

Source: calico-wire (WorkloadEndpoint), calico-semantics §§5 and 8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_network
from uuid import UUID, uuid5

from pydantic import ValidationError

from fabric.agent.snapshot import Snapshot
from fabric.errors import ConfigError, NotInSync, Taken
from fabric.ipam import assign, block
from fabric.ipam.assign import Assignment
from fabric.ipam.block import Owner
from fabric.ipam.types import Address
from fabric.model import namespaces
from fabric.model.base import Metadata, Resource
from fabric.model.change import stamped
from fabric.model.node import Node
from fabric.model.profile import Profile
from fabric.model.wire import to_json
from fabric.model.workloadendpoint import WorkloadEndpoint, WorkloadEndpointSpec
from fabric.plan.endpoints import NETNS_ANNOTATION, endpoint_name
from fabric.plan.links import container_mac, host_name
from fabric.store import ipam, keys
from fabric.store.kv import Delete, Guard, Put, Txn

ORCHESTRATOR = "fabricctl"
INTERFACE = "eth0"
_WORKLOAD = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Request:
    """What `workload add` asks for; `netns` is a path that the agent can open."""

    name: str
    namespace: str
    netns: str
    labels: Mapping[str, str] = field(default_factory=dict)
    address: Address | None = None

    def __str__(self) -> str:
        return f"workload {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a decision takes from the outside: the time (UTC), and a seed for the identities it gives."""

    now: datetime
    uid: UUID

    @property
    def text(self) -> str:
        """RFC 3339 in whole seconds, as Calico writes it."""
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")

    @property
    def nanoseconds(self) -> int:
        return int(self.now.timestamp() * 1_000_000) * 1000


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
    same = held == request.netns and (not request.address or request.address in addresses)
    if not same or (request.labels and _own(request.labels) != labels):
        listed = ", ".join(f"{k}={v}" for k, v in sorted(labels.items())) or "no labels"
        raise Taken(
            f"{request}: already attached on node {node} as {', '.join(map(str, sorted(addresses, key=str)))} in "
            f"{held} with {listed}; nothing was changed; remove it first "
            f"with `fabricctl workload del {request.name}`, or choose another name"
        )
    return endpoint


def own_labels(endpoint: WorkloadEndpoint) -> dict[str, str]:
    """Return the labels that the user gave, without those that every endpoint is written with."""
    return _own(endpoint.metadata.labels)


def _own(labels: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in labels.items() if not k.startswith("projectcalico.org/")}


def attach(snapshot: Snapshot, node: str, request: Request, stamp: Stamp) -> tuple[WorkloadEndpoint, Txn]:
    """Return the endpoint that `request` gets, and the one transaction that makes it so.

    It holds only while the Node stands as it was read: a node that leaves attaches nothing more.

    Raises:
        NotInSync: the node is not registered.
        ConfigError: a label or name that cannot be stored, or no pool that may serve.
        Taken: the address, or the handle of that name, is held.
        Exhausted: no address is free.
    """
    me = snapshot.stored(Node, node)
    if me is None:
        raise NotInSync(
            f"{request}: node {node} is not registered (it leaves, or its Node was deleted); nothing was attached; "
            "join again first"
        )
    handle = _handle(node, request.namespace, request.name)
    if keys.HandleKey(handle).path in snapshot.seen:
        raise Taken(
            f"{request}: IPAM handle {handle} still holds addresses of a workload of that name, whose endpoint "
            "somebody deleted; nothing was attached; free them with `calicoctl ipam release`, or choose another name"
        )
    made = _assign(snapshot, node, request, handle, stamp)
    endpoint = _endpoint(node, request, made)
    stored = ipam.assign(made, node, handle)
    registered = Txn((Guard(keys.ResourceKey("nodes", None, node).path, me.revision),), ())
    return endpoint, ipam.joined(
        registered,
        stored,
        _create(_key(endpoint), endpoint, stamp),
        _profile(snapshot, request.namespace, stamp),
    )


def _assign(
    snapshot: Snapshot, node: str, request: Request, handle: str, stamp: Stamp
) -> tuple[Assignment, ...]:
    """One address of each family that a pool serves here; the one asked for, where it was."""
    secondary = {
        "node": node,
        "namespace": request.namespace,
        "workload": request.name,
        "timestamp": stamp.now.strftime("%Y-%m-%d %H:%M:%S.%f +0000 UTC"),
    }
    view, owner, asked = snapshot.view(node), Owner(handle, secondary), request.address
    at = (stamp.nanoseconds, stamp.text)
    exact = [assign.exact(view, asked, owner, *at)] if asked else []
    left = [v for v in (4, 6) if v != (asked and asked.version) and assign.candidate_pools(view, v)]
    if not exact and not left:
        left = [4]  # which says why no pool serves this node
    return (*exact, *(assign.automatic(view, version, owner, *at) for version in left))


def _endpoint(node: str, request: Request, made: tuple[Assignment, ...]) -> WorkloadEndpoint:
    return WorkloadEndpoint(
        metadata=_metadata(node, request),
        spec=WorkloadEndpointSpec(
            orchestrator=ORCHESTRATOR,
            node=node,
            workload=request.name,
            endpoint=INTERFACE,
            ip_networks=tuple(ip_network(m.address) for m in made),
            profiles=(namespaces.profile_name(request.namespace),),
            interface_name=host_name(request.namespace, request.name),
            mac=container_mac(request.namespace, request.name),
        ),
    )


def _metadata(node: str, request: Request) -> Metadata:
    try:
        return Metadata(
            name=_full_name(node, request.name),
            namespace=request.namespace,
            labels=request.labels,
            annotations={NETNS_ANNOTATION: request.netns},
        )
    except ValidationError as err:
        rules = "; ".join(e["msg"].removeprefix("Value error, ") for e in err.errors())
        raise ConfigError(f"{request}: {rules}; nothing was attached") from err


def _profile(snapshot: Snapshot, namespace: str, stamp: Stamp) -> Txn:
    """Endpoints carry their namespace's profile from the first day, so nothing goes dark with policy."""
    name = namespaces.profile_name(namespace)
    if snapshot.get(Profile, name):
        return Txn((), ())
    return _create(keys.ResourceKey("profiles", None, name).path, namespaces.profile(namespace), stamp)


def detach(snapshot: Snapshot, node: str, endpoint: WorkloadEndpoint) -> Txn | None:
    """Return the transaction that removes `endpoint` and frees its addresses; None where it is gone."""
    namespace = endpoint.metadata.namespace
    stored = snapshot.stored(WorkloadEndpoint, endpoint.metadata.name, namespace)
    if stored is None:
        return None
    key = _key(endpoint)
    handle = _handle(node, namespace, endpoint.spec.workload)
    view = snapshot.view(node)
    released = []
    for prefix in endpoint.spec.ip_networks:
        address = prefix.network_address
        holder = view.block_of(address)
        if holder and address in holder.block.held_by(handle):
            released.append((holder, block.release(holder.block, address, handle)))
    return ipam.joined(Txn((Guard(key, stored.revision),), (Delete(key),)), ipam.release(released, handle))


def _full_name(node: str, name: str) -> str:
    return endpoint_name(node, ORCHESTRATOR, name, INTERFACE)


def _handle(node: str, namespace: str, name: str) -> str:
    # A namespace has no dot, so no two workloads share a handle.
    return f"{ORCHESTRATOR}.{namespace}.{_full_name(node, name)}"


def _create(key: str, resource: Resource, stamp: Stamp) -> Txn:
    return Txn((Guard(key, 0),), (Put(key, to_json(stamped(resource, stamp.now, uuid5(stamp.uid, key)))),))


def _key(endpoint: WorkloadEndpoint) -> str:
    return keys.ResourceKey("workloadendpoints", endpoint.metadata.namespace, endpoint.metadata.name).path
