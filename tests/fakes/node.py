"""A node in memory: the agent's real parts over a fake etcd, FIB and links; several may share one etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from fabric.agent.datastore import Keeper, follow
from fabric.agent.desired import Desired
from fabric.agent.endpoint import Request
from fabric.agent.passes import Passes
from fabric.agent.ribs import Ribs
from fabric.agent.routing import Routing, routing
from fabric.agent.rules import Rules
from fabric.agent.sessions import Sessions
from fabric.agent.speaker import SpeakerLink
from fabric.agent.state import State
from fabric.agent.workloads import Workloads
from fabric.errors import Conflict, StoreError
from fabric.model.base import Resource
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from fabric.model.wire import to_json
from fabric.ops.resources import key_of
from fabric.store.cache import Journal, Origin
from fabric.store.kv import Changes, Put, Txn
from tests.fakes.etcd import FakeEtcd
from tests.fakes.fib import FakeFib
from tests.fakes.ipsets import FakeIPSets
from tests.fakes.links import FakeLinks
from tests.fakes.tables import FakeTables
from tests.fakes.tunnels import FakeTunnels

NO_COPY = Path("/proc/no-copy")


class MuteEtcd(FakeEtcd):
    """An etcd that answers badly: the next `lost` commits are done, and their answers lost on the way.

    While `flows` is clear, watches tell nothing; `refused` is set by each lost race. The key `contested` is
    written by somebody else just before each commit that depends on it. `commits` counts those that were done.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lost = self.commits = 0
        self.contested = ""
        self.flows, self.refused = asyncio.Event(), asyncio.Event()
        self.flows.set()

    async def commit(self, txn: Txn) -> int:
        if self.contested in {guard.key for guard in txn.guards}:
            item = await self.get(self.contested)
            await super().commit(Txn((), (Put(self.contested, item.value if item else "{}"),)))
        try:
            revision = await super().commit(txn)
        except Conflict:
            self.refused.set()
            raise
        self.commits += 1
        if self.lost:
            self.lost -= 1
            raise StoreError("commit: no answer; it may or may not have been done")
        return revision

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Changes, None]:
        async with aclosing(super().watch(prefix, after)) as told:
            async for changes in told:
                await self.flows.wait()
                yield changes


class RoutedLinks(FakeLinks):
    """Links whose routes in `fib` go with them, as in the kernel."""

    def __init__(self, fib: FakeFib) -> None:
        super().__init__()
        self._fib = fib

    async def remove(self, names: Collection[str]) -> None:
        await super().remove(names)
        for key in [k for k, r in self._fib.routes.items() if any(h.device in names for h in r.next_hops)]:
            del self._fib.routes[key]


class FakeNode:
    def __init__(self, name: str, kv: FakeEtcd, copy: Path = NO_COPY) -> None:
        self.kv, self.fib = kv, FakeFib()
        self.links = RoutedLinks(self.fib)
        self.sets, self.tables = FakeIPSets(), FakeTables()
        self.tunnels = FakeTunnels()
        self.passes = Passes(self.links, self.fib, Rules(self.sets, self.tables), self.tunnels)
        ribs = Ribs(connected=True, settled=True)  # it has no peers
        self.state = State(name, ribs=ribs, routing=Routing(ribs))
        self.workloads = Workloads(self.state, kv, self.passes)
        self.link = SpeakerLink()
        self.sessions = Sessions(self.state, kv, self.link)
        self.keeper = Keeper(self.state, Journal(copy, Origin(name, "", ("fake",))))

    async def caught_up(self) -> None:
        """Return once the watch has shown all there is."""
        async with asyncio.timeout(5):
            await self.state.until(lambda: self.state.snapshot.revision >= self.kv.revision)


@asynccontextmanager
async def running(kv: FakeEtcd, name: str = "n1", copy: Path = NO_COPY) -> AsyncIterator[FakeNode]:
    """Register the node `name` and follow etcd with it until the block ends; at `copy` it keeps its copy."""
    await put(
        kv,
        Node.model_validate({"metadata": {"name": name}, "spec": {"bgp": {"ipv4Address": "192.0.2.1/24"}}}),
    )
    async with started(kv, name, copy) as node:
        await node.caught_up()
        yield node


@asynccontextmanager
async def started(kv: FakeEtcd, name: str = "n1", copy: Path = NO_COPY) -> AsyncIterator[FakeNode]:
    """The same for a node that is registered already, and without waiting for etcd."""
    node = FakeNode(name, kv, copy)
    async with asyncio.TaskGroup() as tasks:
        following = [tasks.create_task(follow(node.state, kv, node.keeper))]
        if copy != NO_COPY:
            following.append(tasks.create_task(node.keeper.run()))
        try:
            yield node
        finally:
            for task in following:
                task.cancel()


def worked_out(state: State) -> Desired:
    """Return what the node should have, its part in BGP worked out anew, as a whole pass does it."""
    here = replace(state.host.here, secrets=state.secrets)
    host = replace(state.host, here=here)
    state.routing = routing(state.node, state.snapshot, state.ribs, host, state.routing)
    return state.compute()


async def put(kv: FakeEtcd, resource: Resource) -> None:
    await kv.commit(Txn((), (Put(key_of(resource), to_json(resource)),)))


def pool(cidr: str, name: str = "pool", **spec: object) -> IPPool:
    return IPPool.model_validate({"metadata": {"name": name}, "spec": {"cidr": cidr, **spec}})


def netns(number: int = 0) -> str:
    """Return one of many paths that the agent takes for a container's network namespace."""
    return "/proc/self/" + "ns/../" * number + "ns/net"


def request(name: str, number: int = 0, **more: object) -> Request:
    return Request(name, "default", netns(number), **more)  # type: ignore[arg-type]
