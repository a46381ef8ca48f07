"""Attach and detach workloads: one transaction in etcd, then the ordinary pass scoped to the endpoint.

Both steps are taken in turns (`fabric.agent.turns`): what waits while a transaction is under way shares
the next one, and what waits for a pass shares that. In between, the next transaction is under way already.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import structlog

from fabric.agent import batch as batches
from fabric.agent import endpoint as endpoints
from fabric.agent.batch import Batch, Removal
from fabric.agent.endpoint import Request, Stamp
from fabric.agent.passes import AT_ONCE, Passes, Scope, log_done
from fabric.agent.state import State
from fabric.agent.translation import received
from fabric.agent.turns import Asked, Turns
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
from fabric.kernel import facts
from fabric.kernel.threads import is_network_namespace
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.plan import publish
from fabric.store.kv import KeyValueStore, Txn

log = structlog.get_logger()

ATTEMPTS = 20  # lost races before giving up; each waits for the watch to show what won
TOGETHER = 2  # of them with the whole batch: what loses a race without end then loses it alone
CATCH_UP = 2.0  # seconds the watch is given to show it


@dataclass(frozen=True, slots=True)
class Stored:
    """An endpoint that stands in the datastore; `fresh` says that it was not there before."""

    endpoint: WorkloadEndpoint
    fresh: bool


Question: TypeAlias = Request | Removal
Asking: TypeAlias = "Asked[Question, Stored]"


class Workloads:
    """Attach and detach on this node; one transaction at a time, so that the snapshot it read is its own."""

    def __init__(self, state: State, kv: KeyValueStore, passes: Passes) -> None:
        self._state, self._kv, self._passes = state, kv, passes
        self._store: Turns[Question, Stored] = Turns(self._decide)
        self._kernel: Turns[WorkloadEndpoint, DataplaneError | None] = Turns(self._bring_in)

    async def attach(self, request: Request) -> WorkloadEndpoint:
        """Return the endpoint once its policy is in force, and its link, route and neighbour entries are in.

        The same request again returns the same endpoint. When the kernel refuses, the allocation is
        undone and the error says so.

        Raises:
            ConfigError: a bad name, a path that is no network namespace, or a port to publish at an address that the
                node has not; nothing was changed.
            Taken: the name has another namespace, or the address or a port another holder; nothing was changed.
            Exhausted: no address is free.
            NotInSync: the datastore is not in sync, or locked; nothing was attached.
            StoreError: etcd did not answer; nothing was attached.
            DataplaneError: the kernel refused.
        """
        endpoints.check(request)
        await asyncio.to_thread(_check_netns, request)
        self._require_sync(request)
        if not endpoints.find(self._state.snapshot, self._state.node, request.namespace, request.name):
            await self._check_ports(request)
        with self._passes.awaited():
            stored = await self._store.ask(request)
            refused = await self._kernel.ask(stored.endpoint)
        if refused:
            if not stored.fresh:
                raise DataplaneError(
                    f"{request}: {refused.what}",
                    refused.code,
                    "it was attached before, and the next pass retries",
                )
            await self._undo(request, stored.endpoint, refused)
        return stored.endpoint

    async def detach(self, namespace: str, name: str) -> WorkloadEndpoint:
        """Release the address and remove the link; return the endpoint as it was.

        Raises:
            NotFound: no such workload on this node.
            NotInSync: the datastore is not in sync, or locked; nothing was removed.
            StoreError: etcd did not answer; the message says whether that is known to have changed nothing.
        """
        removal = Removal(name, namespace)
        self._require_sync(removal)
        with self._passes.awaited():
            return (await self._store.ask(removal)).endpoint

    async def _check_ports(self, request: Request) -> None:
        """Refuse to publish what would not be reached, or would be taken from a process of the host."""
        local = {address for held in self._state.host.links.values() for address in held}
        for port in request.ports:
            if why := publish.strange(port, self._state.node, local):
                raise ConfigError(f"{request}: {publish.words(port)}: {why}; nothing was attached")
            if why := publish.tunnelled(port, received(self._state.all_tunnels)):
                raise Taken(f"{request}: {why}; nothing was attached")
            at = publish.host_address(port)
            held = await facts.listeners(port.host_port, publish.protocol_name(port), at)
            if why := publish.occupied(port, self._state.node, map(str, held)):
                raise Taken(f"{request}: {why}; nothing was attached")

    def _require_sync(self, question: Question) -> None:
        snapshot = self._state.snapshot
        if not snapshot.in_sync:
            why = snapshot.lost or "the first listing has not ended"
            raise NotInSync(
                f"{question}: the datastore is not in sync on node {self._state.node} ({why}); {_unchanged(question)}; "
                "try again when `fabricctl node status` is ready"
            )
        if snapshot.locked:
            raise NotInSync(
                f"{question}: the datastore is locked for a migration (ClusterInformation default: datastoreReady is "
                f"false); {_unchanged(question)}; try again when it is unlocked"
            )

    async def _decide(self, waiting: Sequence[Asking]) -> None:
        """Answer those at the head of the queue that may share a transaction."""
        together = _alike(waiting)
        if isinstance(together[0].question, Removal):
            await self._remove(together)
        else:
            await self._allocate(together)

    async def _allocate(self, asking: Sequence[Asking]) -> None:
        for asked, endpoint in await self._store_all(asking):
            asked.give(Stored(endpoint, fresh=True))

    async def _remove(self, asking: Sequence[Asking]) -> None:
        removed = await self._store_all(asking)
        # Within the turn: an address must not be given to another before its route is gone.
        refused = await asyncio.gather(*(self._kernel.ask(endpoint) for _, endpoint in removed))
        for err in filter(None, refused):
            log.warning("not removed from the kernel yet; the next pass retries", error=str(err))
        for asked, endpoint in removed:
            asked.give(Stored(endpoint, fresh=False))

    async def _store_all(self, asking: Sequence[Asking]) -> list[tuple[Asking, WorkloadEndpoint]]:
        """Store what `asking` come to, and return that; who is served or refused without a write has the answer.

        One that spoils the transaction spoils it for the others twice, and then for itself alone.
        """
        doomed: Sequence[Asking] = ()
        for attempt in range(ATTEMPTS):
            # Each time: the write that won may be our own, of an attempt whose answer was lost.
            batch = self._decided([asked.question for asked in asking])
            for place, err in batch.refused.items():
                asking[place].fail(err)
            for place, endpoint in batch.there.items():
                asking[place].give(Stored(endpoint, fresh=False))
            made = [(asking[place], endpoint) for place, endpoint in batch.made.items()]
            if not made:
                return []
            asking = [asked for asked, _ in made]
            try:
                await self._commit(batch.txn)
                return made
            except Conflict as err:
                log.debug("lost a race", workloads=len(asking), error=str(err))
                await self._catch_up(batch.txn)
                asking = asking if attempt + 1 < TOGETHER else asking[:1]
            except StoreError as err:
                doomed = doomed or asking
                if len(asking) == 1:
                    for asked in doomed:
                        asked.fail(_not_stored(asked.question, err))
                    return []
                asking = asking[:1]
        asking[0].fail(
            StoreError(
                f"{asking[0].question}: lost {ATTEMPTS} races against other writers; "
                f"{_unchanged(asking[0].question)}; try again"
            )
        )
        return []

    def _decided(self, questions: Sequence[Question]) -> Batch:
        state, now = self._state, datetime.now(UTC)
        requests = [q for q in questions if isinstance(q, Request)]
        if requests:
            return batches.attach(state.snapshot, state.node, requests, Stamp(now, uuid.uuid4()))
        removals = [q for q in questions if isinstance(q, Removal)]
        return batches.detach(state.snapshot, state.node, removals, now)

    async def _commit(self, txn: Txn) -> None:
        """Commit, and read our own write: the next decision is made on it."""
        revision = await self._kv.commit(txn)
        self._state.wrote(txn, revision)

    async def _catch_up(self, lost: Txn) -> None:
        """Wait for the watch to show the write that won over `lost`; a silent one is asked nothing more of."""

        def shown() -> bool:
            seen = self._state.snapshot.seen
            return any(seen.get(guard.key, 0) != guard.revision for guard in lost.guards)

        try:
            async with asyncio.timeout(CATCH_UP):
                await self._state.until(shown)
        except TimeoutError:
            log.debug("the watch has not shown who won", revision=self._state.snapshot.revision)

    async def _bring_in(self, waiting: Sequence[Asked[WorkloadEndpoint, DataplaneError | None]]) -> None:
        """Run one pass for those at the head of the queue; answer each with the first refusal that is its own."""
        asking = waiting[:AT_ONCE]  # so that the first of a crowd is not answered with the last
        scopes = [_scope(asked.question) for asked in asking]
        scope = Scope(
            frozenset().union(*(s.links for s in scopes)), frozenset().union(*(s.prefixes for s in scopes))
        )
        try:
            if self._state.policing is None:
                await self._passes.look()
                self._state.raised(self._passes.held_tunnels)
                await self._state.police(localnet=self._passes.localnet)
            outcome = await self._passes.run(self._state.compute, scope=scope)
        except DataplaneError as err:  # the kernel could not even be read
            for asked in asking:
                asked.give(err)
            return
        if outcome.policy_changed:
            self._state.policy_changed.set()  # what an earlier holder of its address had begun is not its own
        log_done(outcome)
        for asked, own in zip(asking, scopes, strict=True):
            asked.give(next((err for op, err in outcome.refused.items() if own.has(op)), None))

    async def _undo(self, request: Request, endpoint: WorkloadEndpoint, refused: DataplaneError) -> None:
        try:
            with suppress(NotFound):  # somebody else has removed it
                # What is left in the kernel, the next whole pass removes.
                await self._store.ask(Removal(request.name, request.namespace, endpoint.metadata.uid))
        except StoreError as err:
            raise FabricError(
                f"{request}: {refused}; its allocation could not be undone either ({err}) and will be tried "
                f"again by each pass; remove it with `fabricctl workload del` when etcd answers"
            ) from refused
        raise DataplaneError(
            f"{request}: {refused.what}",
            refused.code,
            f"{refused.hint}; nothing was attached".lstrip("; "),
        ) from refused


def _alike(waiting: Sequence[Asking]) -> Sequence[Asking]:
    """Return those at the head of the queue that may share a transaction: of one kind, of different names."""
    kind, names = type(waiting[0].question), set()
    for place, asked in enumerate(waiting):
        name = (asked.question.namespace, asked.question.name)
        if type(asked.question) is not kind or name in names:
            return waiting[:place]
        names.add(name)
    return waiting


def _not_stored(question: Question, err: StoreError) -> StoreError:
    if isinstance(question, Removal):
        return StoreError(f"{question}: {err}")
    return StoreError(
        f"{question}: not attached so far: {err}; ask again when `fabricctl node status` is ready: what was "
        "written then counts, and nothing is done twice"
    )


def _unchanged(question: Question) -> str:
    return "it is still attached" if isinstance(question, Removal) else "nothing was attached"


def _scope(endpoint: WorkloadEndpoint) -> Scope:
    return Scope(frozenset({endpoint.spec.interface_name or ""}), frozenset(endpoint.spec.ip_networks))


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
