"""Twenty processes race for the last blocks of a small pool on a real etcd, and are killed at any moment."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import combinations
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from fabric.agent.snapshot import Snapshot
from fabric.model.ippool import IPPool
from fabric.model.wire import to_json
from fabric.store import keys
from fabric.store.etcd import Etcd
from fabric.store.kv import Put, Txn
from tests.contract import ipam_racer
from tests.contract.etcd_server import EtcdServer

NODES = [f"n{number}" for number in range(20)]
RACE = 5.0  # seconds
POOL = IPPool.model_validate(
    {"metadata": {"name": "small"}, "spec": {"cidr": "10.0.0.0/26", "blockSize": 30}}
)


class Racers:
    """The processes, one a node; each has a log of what its workloads were told."""

    def __init__(self, url: str, logs: Path) -> None:
        self._url, self._logs = url, logs
        # A server with everything imported forks them: twenty interpreters would take the time of the race.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.contract.ipam_racer"])
        self._running: dict[str, ForkServerProcess] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        try:
            for node in NODES:
                self.start(node)
            yield
        finally:
            processes = list(self._running.values())
            for process in processes:
                process.kill()
                process.join()
        # One that had ended by itself met an error, which the output shows.
        assert {process.exitcode for process in processes} == {-9}

    def start(self, node: str) -> None:
        process = self._context.Process(
            target=ipam_racer.race, args=(node, self._url, self._logs / node), daemon=True
        )
        process.start()
        self._running[node] = process

    def kill(self, node: str) -> None:
        """End it without warning."""
        process = self._running[node]
        process.kill()
        process.join()
        assert process.exitcode == -9

    def told(self) -> dict[str, str]:
        """The addresses that workloads were told they have, and were not asked back for."""
        has: dict[str, str] = {}
        for log in self._logs.iterdir():
            for line in log.read_text().splitlines():
                verb, handle, address = line.rsplit(" ", 2)
                if verb == "has":
                    has[handle] = address
                else:
                    has.pop(handle, None)
        return has


async def test_no_address_is_held_twice_or_lost_and_the_next_pass_mends_the_rest(tmp_path: Path) -> None:
    with EtcdServer() as server:
        kv = Etcd([server.url])
        await kv.commit(Txn((), (Put(keys.ResourceKey("ippools", None, "small").path, to_json(POOL)),)))
        racers = Racers(server.url, tmp_path)
        with racers.running():
            deadline = time.monotonic() + RACE
            while time.monotonic() < deadline:
                await asyncio.sleep(random.random() / 10)
                node = random.choice(NODES)
                racers.kill(node)
                racers.start(node)
        seen = ipam_racer.read(await kv.list(keys.CALICO))
        check(seen, racers.told())
        assert seen.revision > 5 * len(NODES)  # it was a race
        await _mend(kv)
        seen = ipam_racer.read(await kv.list(keys.CALICO))
        check(seen, racers.told())
        await kv.close()


async def _mend(kv: Etcd) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    for _ in range(3):
        steps = 0
        for node in NODES:
            steps += await ipam_racer.mend(kv, ipam_racer.read(await kv.list(keys.CALICO)), node, at)
        if not steps:
            return
    raise AssertionError("upkeep does not come to an end")


def check(seen: Snapshot, told: dict[str, str]) -> None:
    assert not seen.problems
    assert not any(a.overlaps(b) for a, b in combinations(seen.blocks, 2))
    held = [
        (owner.handle, s.block.address(i))
        for s in seen.blocks.values()
        for i, owner in enumerate(s.block.owners)
        if owner
    ]
    stored = {str(handle): str(address) for handle, address in held}
    assert len(stored) == len(held), "a workload has two addresses"
    assert told.items() <= stored.items(), "a workload's address was taken from it"
    counts = {
        handle: Counter({p: 1})
        for p, s in seen.blocks.items()
        for o in s.block.owners
        if o and (handle := o.handle)
    }
    assert {handle: known.counts for handle, known in seen.handles.items()} == counts
    claims = {(s.block.node, p) for p, s in seen.blocks.items() if s.block.affinity}
    assert claims == set(seen.affinities)
    assert all(record.confirmed for record in seen.affinities.values())
