"""Touches one lab node: attaches many workloads at once and one after the other, in turn, and prints the times.

Runs inside the node (tests/bench/parallel.py starts it). Each round uses the same network namespaces, emptied
in between, so that both ways find the same kernel.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fabric.api import client
from fabric.errors import FabricError
from tests.bench.processes import run
from tests.bench.rounds import proposals

SERIAL, PARALLEL = "one after the other", "at once"
Times = dict[str, list[float]]


def add(number: int) -> float:
    """Attach workload `number`; return the seconds it took."""
    netns = Path(f"/run/netns/crowd-{number}")
    started = time.perf_counter()
    client.call(
        "POST",
        "/v1/workloads",
        {"name": f"w{number}", "namespace": "default", "netns": str(netns)},
        timeout=60,
    )
    return time.perf_counter() - started


def delete(number: int) -> float:
    started = time.perf_counter()
    client.call("DELETE", f"/v1/workloads/default/w{number}", timeout=60)
    return time.perf_counter() - started


def serial(work: Callable[[int], float], count: int) -> list[float]:
    return [work(number) for number in range(count)]


def parallel(work: Callable[[int], float], count: int) -> list[float]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def sound(count: int) -> None:
    """Refuse to go on where a workload or an address was lost or doubled."""
    found = client.call("GET", "/v1/workloads")
    addresses = {address for workload in found for address in workload["addresses"]}
    if not len(found) == len(addresses) == count:
        raise FabricError(
            f"{len(found)} workloads with {len(addresses)} addresses; {count} of each were expected"
        )


def measure(etcd: str, count: int, rounds: int) -> Times:
    """Return the seconds of each way, for all and for each; the first round warms up and is not kept."""
    samples: Times = defaultdict(list)
    for number in range(count):
        run(["ip", "netns", "add", f"crowd-{number}"])
    for kept in range(rounds + 1):
        for name, way in ((SERIAL, serial), (PARALLEL, parallel)):
            for verb, work, left in (("add", add, count), ("del", delete, 0)):
                before, started = proposals(etcd), time.perf_counter()
                each = way(work, count)
                taken = time.perf_counter() - started
                sound(left)
                _note(samples, f"{verb} {name}", taken, each, proposals(etcd) - before, keep=bool(kept))
    return samples


def _note(
    samples: Times, name: str, taken: float, each: Iterable[float], wrote: float, *, keep: bool
) -> None:
    if keep:
        samples[name].append(taken)
        samples[f"each, {name}"] += each
        samples[f"transactions, {name}"].append(wrote)


if __name__ == "__main__":
    try:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
    except FabricError as err:
        sys.exit(str(err))
