"""Attach and detach workloads: one transaction in etcd, then the ordinary pass scoped to the endpoint."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path

import structlog
from pydantic import ValidationError

from fabric.agent.passes import Outcome, Passes, Scope
from fabric.agent.snapshot import fold, written
from fabric.agent.state import State
from fabric.errors import (
    ConfigError,
    Conflict,
    DataplaneError,
    FabricError,
    NotFound,
    NotInSync,
    StoreError,
    Taken,
)
from fabric.ipam import assign, block
from fabric.ipam.assign import Assignment
from fabric.ipam.block import Owner
from fabric.ipam.types import Address
from fabric.kernel.threads import is_network_namespace
from fabric.model import namespaces
from fabric.model.base import Metadata, Resource
from fabric.model.change import stamped
from fabric.model.profile import Profile
from fabric.model.wire import to_json
from fabric.model.workloadendpoint import WorkloadEndpoint, WorkloadEndpointSpec
from fabric.plan.endpoints import NETNS_ANNOTATION, endpoint_name
from fabric.plan.links import container_mac, host_name
from fabric.store import ipam, keys
from fabric.store.kv import Delete, Guard, KeyValueStore, Put, Txn

log = structlog.get_logger()

ORCHESTRATOR = "fabricctl"
INTERFACE = "eth0"
TIMESTAMP = "%Y-%m-%dT%H:%M:%SZ"  # RFC 3339, whole seconds, as Calico writes it
ATTEMPTS = 20  # lost races before giving up; each waits for the watch to show what won
CATCH_UP = 2.0  # seconds the watch is given to show it
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


class Workloads:
    """Attach and detach on this node; one allocation at a time, so that the snapshot it read is its own."""

    def __init__(self, state: State, kv: KeyValueStore, passes: Passes) -> None:
        self._state, self._kv, self._passes = state, kv, passes
        self._lock = asyncio.Lock()

    async def attach(self, request: Request) -> WorkloadEndpoint:
        """Return the endpoint once its link, route and neighbour entries are in.

        The same request again returns the same endpoint. When the kernel refuses, the allocation is
        undone and the error says so.

        Raises:
            ConfigError: a bad name, or a path that is no network namespace; nothing was changed.
            Taken: the name has another namespace, or the address another holder; nothing was changed.
            Exhausted: no address is free.
            StoreError: etcd did not answer; nothing was attached.
            DataplaneError: the kernel refused.
        """
        _check_name("workload", request.name, _WORKLOAD)
        _check_name("namespace", request.namespace, _NAMESPACE)
        await asyncio.to_thread(_check_netns, request)
        self._require_sync(request)
        async with self._lock:
            endpoint = await self._allocate(request)
        outcome = await self._pass(endpoint)
        if outcome.refused:
            await self._undo(endpoint, next(iter(outcome.refused.values())))
        return endpoint

    async def detach(self, namespace: str, name: str) -> WorkloadEndpoint:
        """Release the address and remove the link; return the endpoint as it was.

        Raises:
            NotFound: no such workload on this node.
            StoreError: etcd did not answer; the workload is still attached.
        """
        async with self._lock:
            endpoint = self._find(namespace, name)
            if endpoint is None:
                raise NotFound(
                    f"workload {namespace}/{name}: not on node {self._state.node}; nothing was removed"
                )
            await self._remove(endpoint)
            # Still under the lock: the address must not be given to another before its route is gone.
            outcome = await self._pass(endpoint)
        for op, err in outcome.refused.items():
            log.warning("not removed yet", op=str(op), error=str(err))
        return endpoint

    def _require_sync(self, request: Request) -> None:
        if not self._state.snapshot.in_sync:
            why = self._state.snapshot.lost or "the first listing has not ended"
            raise NotInSync(
                f"workload {request.namespace}/{request.name}: the datastore is not in sync on node "
                f"{self._state.node} ({why}); nothing was attached; try again when `fabricctl node status` is ready"
            )

    def _find(self, namespace: str, name: str) -> WorkloadEndpoint | None:
        full = endpoint_name(self._state.node, ORCHESTRATOR, name, INTERFACE)
        return self._state.snapshot.get(WorkloadEndpoint, full, namespace)

    def _existing(self, request: Request) -> WorkloadEndpoint | None:
        endpoint = self._find(request.namespace, request.name)
        if endpoint is None:
            return None
        held = endpoint.metadata.annotations.get(NETNS_ANNOTATION)
        addresses = {prefix.network_address for prefix in endpoint.spec.ip_networks}
        if held != request.netns or (request.address and request.address not in addresses):
            raise Taken(
                f"workload {request.namespace}/{request.name}: already attached on node {self._state.node} as "
                f"{', '.join(map(str, sorted(addresses, key=str)))} in {held}; nothing was changed; remove it first "
                f"with `fabricctl workload del {request.name}`, or choose another name"
            )
        return endpoint

    async def _allocate(self, request: Request) -> WorkloadEndpoint:
        for _ in range(ATTEMPTS):
            # Each time: the write that won may be our own, of an attempt whose answer was lost.
            if existing := self._existing(request):
                return existing
            endpoint, txn = self._decide(request)
            try:
                revision = await self._kv.commit(txn)
            except Conflict as err:
                log.info("allocation lost a race", workload=request.name, error=str(err))
                await self._catch_up(txn)
                continue
            except StoreError as err:
                raise StoreError(
                    f"workload {request.namespace}/{request.name}: not attached so far: {err}; ask again when "
                    "`fabricctl node status` is ready: what was written then counts, and nothing is done twice"
                ) from err
            self._state.update(snapshot=fold(self._state.snapshot, written(txn, revision), watched=False))
            return endpoint
        raise StoreError(
            f"workload {request.namespace}/{request.name}: lost {ATTEMPTS} races for an address; nothing was attached; "
            "try again"
        )

    async def _catch_up(self, lost: Txn) -> None:
        """Wait for the watch to show the write that won over `lost`; a silent one is asked nothing more of."""

        def shown() -> bool:
            seen = self._state.snapshot.seen
            return any(seen.get(guard.key, 0) != guard.revision for guard in lost.guards)

        try:
            async with asyncio.timeout(CATCH_UP):
                await self._state.until(shown)
        except TimeoutError:
            log.info("the watch has not shown who won", revision=self._state.snapshot.revision)

    def _decide(self, request: Request) -> tuple[WorkloadEndpoint, Txn]:
        handle = _handle(self._state.node, request.namespace, request.name)
        if keys.HandleKey(handle).path in self._state.snapshot.seen:
            raise Taken(
                f"workload {request.namespace}/{request.name}: IPAM handle {handle} still holds addresses of a "
                "workload of that name, whose endpoint somebody deleted; nothing was attached; free them with "
                "`calicoctl ipam release`, or choose another name"
            )
        now = datetime.now(UTC)
        owner = Owner(
            handle,
            {
                "node": self._state.node,
                "namespace": request.namespace,
                "workload": request.name,
                "timestamp": now.strftime("%Y-%m-%d %H:%M:%S.%f +0000 UTC"),
            },
        )
        made = self._assign(request, owner, now)
        endpoint = self._endpoint(request, made)
        created = _create(_key(endpoint), endpoint, now)
        profile = self._profile(request.namespace, now)
        return endpoint, ipam.joined(ipam.assign(made, self._state.node, handle), created, profile)

    def _assign(self, request: Request, owner: Owner, now: datetime) -> tuple[Assignment, ...]:
        """One address of each family that a pool serves here; the one asked for, where it was."""
        view = self._state.snapshot.view(self._state.node)
        at = (time.time_ns(), now.strftime(TIMESTAMP))
        asked = request.address
        exact = [assign.exact(view, asked, owner, *at)] if asked else []
        left = [v for v in (4, 6) if v != (asked and asked.version) and assign.candidate_pools(view, v)]
        if not exact and not left:
            left = [4]  # which says why no pool serves this node
        return (*exact, *(assign.automatic(view, version, owner, *at) for version in left))

    def _endpoint(self, request: Request, made: tuple[Assignment, ...]) -> WorkloadEndpoint:
        return WorkloadEndpoint(
            metadata=self._metadata(request),
            spec=WorkloadEndpointSpec(
                orchestrator=ORCHESTRATOR,
                node=self._state.node,
                workload=request.name,
                endpoint=INTERFACE,
                ip_networks=tuple(ip_network(m.address) for m in made),
                profiles=(namespaces.profile_name(request.namespace),),
                interface_name=host_name(request.namespace, request.name),
                mac=container_mac(request.namespace, request.name),
            ),
        )

    def _metadata(self, request: Request) -> Metadata:
        try:
            return Metadata(
                name=endpoint_name(self._state.node, ORCHESTRATOR, request.name, INTERFACE),
                namespace=request.namespace,
                labels=request.labels,
                annotations={NETNS_ANNOTATION: request.netns},
            )
        except ValidationError as err:
            rules = "; ".join(e["msg"].removeprefix("Value error, ") for e in err.errors())
            raise ConfigError(
                f"workload {request.namespace}/{request.name}: {rules}; nothing was attached"
            ) from err

    def _profile(self, namespace: str, now: datetime) -> Txn:
        """Endpoints carry their namespace's profile from the first day, so nothing goes dark with policy."""
        name = namespaces.profile_name(namespace)
        if self._state.snapshot.get(Profile, name):
            return Txn((), ())
        return _create(keys.ResourceKey("profiles", None, name).path, namespaces.profile(namespace), now)

    async def _remove(self, endpoint: WorkloadEndpoint) -> None:
        for _ in range(ATTEMPTS):
            stored = self._state.snapshot.stored(
                WorkloadEndpoint, endpoint.metadata.name, endpoint.metadata.namespace
            )
            if stored is None:
                return
            key = _key(endpoint)
            gone = Txn((Guard(key, stored.revision),), (Delete(key),))
            txn = ipam.joined(gone, self._release(endpoint))
            try:
                revision = await self._kv.commit(txn)
            except Conflict as err:
                log.info("release lost a race", endpoint=endpoint.metadata.name, error=str(err))
                await self._catch_up(txn)
                continue
            self._state.update(snapshot=fold(self._state.snapshot, written(txn, revision), watched=False))
            return
        raise StoreError(
            f"endpoint {endpoint.metadata.name}: lost {ATTEMPTS} races; it is still attached; try again"
        )

    def _release(self, endpoint: WorkloadEndpoint) -> Txn:
        namespace = endpoint.metadata.namespace or "default"
        handle = _handle(self._state.node, namespace, endpoint.spec.workload)
        view = self._state.snapshot.view(self._state.node)
        released = []
        for prefix in endpoint.spec.ip_networks:
            address = prefix.network_address
            stored = view.block_of(address)
            if stored and address in stored.block.held_by(handle):
                released.append((stored, block.release(stored.block, address, handle)))
        return ipam.release(released, handle)

    async def _pass(self, endpoint: WorkloadEndpoint) -> Outcome:
        scope = Scope(frozenset({endpoint.spec.interface_name or ""}), frozenset(endpoint.spec.ip_networks))
        return await self._passes.run(self._state.compute, in_sync=True, scope=scope)

    async def _undo(self, endpoint: WorkloadEndpoint, refused: DataplaneError) -> None:
        name = f"{endpoint.metadata.namespace}/{endpoint.spec.workload}"
        try:
            async with self._lock:
                await self._remove(endpoint)
                await self._pass(endpoint)
        except StoreError as err:
            raise FabricError(
                f"workload {name}: {refused}; its allocation could not be undone either ({err}) and will be tried "
                f"again by each pass; remove it with `fabricctl workload del` when etcd answers"
            ) from refused
        raise DataplaneError(
            f"workload {name}: {refused.what}",
            refused.code,
            f"{refused.hint}; nothing was attached".lstrip("; "),
        ) from refused


def _handle(node: str, namespace: str, name: str) -> str:
    # A namespace has no dot, so no two workloads share a handle.
    return f"{ORCHESTRATOR}.{namespace}.{endpoint_name(node, ORCHESTRATOR, name, INTERFACE)}"


def _create(key: str, resource: Resource, now: datetime) -> Txn:
    return Txn((Guard(key, 0),), (Put(key, to_json(stamped(resource, now, uuid.uuid4()))),))


def _key(endpoint: WorkloadEndpoint) -> str:
    return keys.ResourceKey("workloadendpoints", endpoint.metadata.namespace, endpoint.metadata.name).path


def _check_name(what: str, name: str, rule: re.Pattern[str]) -> None:
    if not rule.fullmatch(name):
        dots = ', "."' if rule is _WORKLOAD else ""
        raise ConfigError(
            f'{what} "{name}": must be 1 to 63 of a-z, 0-9, "-"{dots}, beginning and ending with a letter or digit; '
            "nothing was changed"
        )


def _check_netns(request: Request) -> None:
    name, path = f"workload {request.namespace}/{request.name}", Path(request.netns)
    try:
        sound = is_network_namespace(path)
    except OSError as err:
        raise ConfigError(
            f"{name}: network namespace {path}: {err.strerror}; nothing was attached; is the container still running?"
        ) from err
    if not sound:
        raise ConfigError(f"{name}: {path} is not a network namespace; nothing was attached")
