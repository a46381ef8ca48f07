"""Attach and detach workloads: one transaction in etcd, then the ordinary pass scoped to the endpoint."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from pathlib import Path

import structlog

from fabric.agent import endpoint as endpoints
from fabric.agent.endpoint import Request, Stamp
from fabric.agent.passes import Outcome, Passes, Scope
from fabric.agent.snapshot import fold, written
from fabric.agent.state import State
from fabric.errors import ConfigError, Conflict, DataplaneError, FabricError, NotFound, NotInSync, StoreError
from fabric.kernel.threads import is_network_namespace
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.store.kv import KeyValueStore, Txn

log = structlog.get_logger()

ATTEMPTS = 20  # lost races before giving up; each waits for the watch to show what won
CATCH_UP = 2.0  # seconds the watch is given to show it


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
        endpoints.check(request)
        await asyncio.to_thread(_check_netns, request)
        self._require_sync(request)
        async with self._lock:
            endpoint, allocated = await self._allocate(request)
        if refused := await self._refusal(endpoint):
            if not allocated:
                raise DataplaneError(
                    f"{request}: {refused.what}",
                    refused.code,
                    "it was attached before, and the next pass retries",
                )
            await self._undo(endpoint, refused)
        return endpoint

    async def detach(self, namespace: str, name: str) -> WorkloadEndpoint:
        """Release the address and remove the link; return the endpoint as it was.

        Raises:
            NotFound: no such workload on this node.
            StoreError: etcd did not answer; the message says whether that is known to have changed nothing.
        """
        async with self._lock:
            endpoint = endpoints.find(self._state.snapshot, self._state.node, namespace, name)
            if endpoint is None:
                raise NotFound(
                    f"workload {namespace}/{name}: not on node {self._state.node}; nothing was removed"
                )
            await self._remove(endpoint)
            # Still under the lock: the address must not be given to another before its route is gone.
            refused = await self._refusal(endpoint)
        if refused:
            log.warning("not removed from the kernel yet; the next pass retries", error=str(refused))
        return endpoint

    def _require_sync(self, request: Request) -> None:
        if not self._state.snapshot.in_sync:
            why = self._state.snapshot.lost or "the first listing has not ended"
            raise NotInSync(
                f"{request}: the datastore is not in sync on node {self._state.node} ({why}); nothing was attached; "
                "try again when `fabricctl node status` is ready"
            )

    async def _allocate(self, request: Request) -> tuple[WorkloadEndpoint, bool]:
        """Return the endpoint, and whether this call made it."""
        state = self._state
        for _ in range(ATTEMPTS):
            # Each time: the write that won may be our own, of an attempt whose answer was lost.
            if existing := endpoints.existing(state.snapshot, state.node, request):
                return existing, False
            endpoint, txn = endpoints.attach(
                state.snapshot, state.node, request, Stamp(datetime.now(UTC), uuid.uuid4())
            )
            try:
                await self._commit(txn)
            except Conflict as err:
                log.info("allocation lost a race", workload=request.name, error=str(err))
                await self._catch_up(txn)
                continue
            except StoreError as err:
                raise StoreError(
                    f"{request}: not attached so far: {err}; ask again when `fabricctl node status` is ready: what was "
                    "written then counts, and nothing is done twice"
                ) from err
            return endpoint, True
        raise StoreError(f"{request}: lost {ATTEMPTS} races for an address; nothing was attached; try again")

    async def _remove(self, endpoint: WorkloadEndpoint) -> None:
        for _ in range(ATTEMPTS):
            txn = endpoints.detach(self._state.snapshot, self._state.node, endpoint)
            if txn is None:
                return
            try:
                await self._commit(txn)
            except Conflict as err:
                log.info("release lost a race", endpoint=endpoint.metadata.name, error=str(err))
                await self._catch_up(txn)
                continue
            return
        raise StoreError(
            f"endpoint {endpoint.metadata.name}: lost {ATTEMPTS} races; it is still attached; try again"
        )

    async def _commit(self, txn: Txn) -> None:
        """Commit, and read our own write: the next decision is made on it."""
        revision = await self._kv.commit(txn)
        self._state.update(snapshot=fold(self._state.snapshot, written(txn, revision), watched=False))

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

    async def _refusal(self, endpoint: WorkloadEndpoint) -> DataplaneError | None:
        """Run the pass of `endpoint`; return the first thing the kernel refused of it."""
        try:
            outcome = await self._pass(endpoint)
        except DataplaneError as err:  # the kernel could not even be read
            return err
        return next(iter(outcome.refused.values()), None)

    async def _pass(self, endpoint: WorkloadEndpoint) -> Outcome:
        scope = Scope(frozenset({endpoint.spec.interface_name or ""}), frozenset(endpoint.spec.ip_networks))
        return await self._passes.run(self._state.compute, in_sync=True, scope=scope)

    async def _undo(self, endpoint: WorkloadEndpoint, refused: DataplaneError) -> None:
        name = f"{endpoint.metadata.namespace}/{endpoint.spec.workload}"
        try:
            async with self._lock:
                await self._remove(endpoint)
                await self._refusal(endpoint)  # what is left in the kernel, the next whole pass removes
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


def _check_netns(request: Request) -> None:
    path = Path(request.netns)
    try:
        sound = is_network_namespace(path)
    except OSError as err:
        raise ConfigError(
            f"{request}: network namespace {path}: {err.strerror}; nothing was attached; is the container still "
            "running?"
        ) from err
    if not sound:
        raise ConfigError(f"{request}: {path} is not a network namespace; nothing was attached")
