"""Touches one lab node: attaches in this process, with a clock at each seam, and prints where the time goes.

Runs inside a node that has not joined, under a node name of its own: the agent's own code, from its
socket to the kernel, without its loops. What those loops add is the difference to the request measured
on a real agent.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from fabric import logs
from fabric.agent import server
from fabric.agent.compose import Composed
from fabric.agent.desired import Desired
from fabric.agent.endpoint import Request
from fabric.agent.host import read_host
from fabric.agent.passes import Passes
from fabric.agent.rules import Op, Rules
from fabric.agent.sessions import Sessions
from fabric.agent.snapshot import fold
from fabric.agent.speaker import SpeakerLink
from fabric.agent.state import State
from fabric.agent.workloads import Workloads
from fabric.api import client
from fabric.errors import DataplaneError
from fabric.kernel.ipsets import NetlinkIPSets
from fabric.kernel.links import NetlinkLinks
from fabric.kernel.routes import NetlinkFib
from fabric.kernel.tables import KernelTables
from fabric.kernel.tables_backend import choose
from fabric.kernel.threads import new_namespace
from fabric.kernel.tunnels import NetlinkTunnels
from fabric.model.base import Metadata
from fabric.model.node import Node
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.ops.change import create_if_absent
from fabric.plan.ipsets import IPSets
from fabric.plan.links import Veth
from fabric.plan.routes import Route
from fabric.plan.tables import Tables
from fabric.store.etcd import Etcd
from fabric.store.keys import CALICO
from fabric.store.kv import Changes, Txn

NODE = "twin"
SOCKET = Path("/run/bench.sock")
STARTED_WITHIN = 10.0  # seconds
QUIET_FOR = 0.08  # seconds between requests, as in the rounds: one that follows at once finds warm caches
SEAMS = ("etcd transaction", "desired state", "policy", "link", "route")


class Clock:
    """Seconds by name, of the request at hand."""

    def __init__(self) -> None:
        self.taken: dict[str, float] = defaultdict(float)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.taken[name] += time.perf_counter() - started

    def stages(self) -> dict[str, float]:
        """Return the request as the sum of its stages, in their order, and forget it."""
        taken, self.taken = self.taken, defaultdict(float)
        seams = {name: taken[name] for name in SEAMS}
        return {
            "HTTP, both ends": taken["request"] - taken["workloads"],
            "decide, and fold the result": taken["workloads"] - sum(seams.values()),
            **seams,
        }


class TimedEtcd(Etcd):
    def __init__(self, etcd: str, clock: Clock) -> None:
        super().__init__([etcd])
        self._clock = clock

    async def commit(self, txn: Txn) -> int:
        with self._clock.of("etcd transaction"):
            return await super().commit(txn)


class TimedLinks(NetlinkLinks):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    async def create(self, veth: Veth) -> None:
        with self._clock.of("link"):
            await super().create(veth)

    async def remove(self, names: Collection[str]) -> None:
        with self._clock.of("link"):
            await super().remove(names)


class TimedFib(NetlinkFib):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    async def replace(self, route: Route) -> None:
        with self._clock.of("route"):
            await super().replace(route)


class TimedRules(Rules):
    def __init__(self, sets: IPSets, filters: Tables, clock: Clock) -> None:
        super().__init__(sets, filters)
        self._clock = clock

    async def apply(
        self, desired: Composed, *, in_sync: bool
    ) -> tuple[Sequence[Op], Mapping[Op, DataplaneError]]:
        with self._clock.of("policy"):
            return await super().apply(desired, in_sync=in_sync)


@dataclass
class TimedState(State):
    clock: Clock = field(default_factory=Clock)

    def compute(self) -> Desired:
        with self.clock.of("desired state"):
            return super().compute()


class TimedWorkloads(Workloads):
    def __init__(self, state: TimedState, kv: Etcd, passes: Passes) -> None:
        super().__init__(state, kv, passes)
        self._clock = state.clock

    async def attach(self, request: Request) -> WorkloadEndpoint:
        with self._clock.of("workloads"):
            return await super().attach(request)

    async def detach(self, namespace: str, name: str) -> WorkloadEndpoint:
        with self._clock.of("workloads"):
            return await super().detach(namespace, name)


async def measure(etcd: str, count: int) -> dict[str, list[float]]:
    """Return the stages of `count` attaches and detaches; the first, which claims a block, is not kept."""
    state = TimedState(NODE)
    kv = TimedEtcd(etcd, state.clock)
    with TimedFib(state.clock) as fib, NetlinkIPSets() as sets:
        await create_if_absent(kv, Node(metadata=Metadata(name=NODE)))
        listing = await kv.list(CALICO)
        snapshot = fold(state.snapshot, Changes(listing.revision, puts=listing.items))
        state.update(snapshot=replace(snapshot, in_sync=True), host=await read_host(fib))
        rules = TimedRules(sets, KernelTables((await choose("auto")).backend), state.clock)
        passes = Passes(TimedLinks(state.clock), fib, rules, NetlinkTunnels())
        workloads, sessions = TimedWorkloads(state, kv, passes), Sessions(state, kv, SpeakerLink())
        serving = asyncio.create_task(server.serve(state, workloads, sessions, passes, SOCKET))
        try:
            await asyncio.to_thread(_await_socket)
            return await _rounds(state.clock, count)
        finally:
            serving.cancel()
            await asyncio.wait([serving])
            await kv.close()


def _await_socket() -> None:
    deadline = time.monotonic() + STARTED_WITHIN
    while not SOCKET.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{SOCKET}: not there after {STARTED_WITHIN:.0f} s")
        time.sleep(0.01)


async def _rounds(clock: Clock, count: int) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = defaultdict(list)
    for number in range(count + 1):
        namespace = new_namespace()
        body = {"name": f"w{number}", "namespace": "default", "netns": f"/proc/{os.getpid()}/fd/{namespace}"}
        for what, *call in (
            ("attach", "POST", "/v1/workloads", body),
            ("detach", "DELETE", f"/v1/workloads/default/w{number}"),
        ):
            await asyncio.sleep(QUIET_FOR)
            await asyncio.to_thread(_request, clock, *call)
            for name, seconds in clock.stages().items():
                samples[f"{what}: {name}"] += [seconds] * bool(number)
    return samples


def _request(clock: Clock, method: str, path: str, body: object = None) -> None:
    with clock.of("request"):
        client.call(method, path, body, at=SOCKET)


if __name__ == "__main__":
    logs.configure()  # standard output is the figures'
    print(json.dumps(asyncio.run(measure(sys.argv[1], int(sys.argv[2])))))
