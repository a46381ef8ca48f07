"""Measure a lab of 50 nodes going up and down beside bare namespaces and veths of the same graph, in one run.

    python -m tests.bench.labs [--rounds N] [--json FILE]

40 nodes of plain Linux and 10 FRR routers in a ring, each host with a link to a router. The peer is the same
graph by `ip netns add` and one `ip link add` a link, each interface set up: no files, no processes, no
routers. Both are taken down at the end of each round, also on Ctrl-C. A missed target is printed, and is no
failure of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from fabric.errors import FabricError
from fabric.lab.lab import Lab
from tests.bench import report
from tests.bench.report import Row

ROUTERS, HOSTS = 10, 40
MOST_UP, MOST_DOWN = 60.0, 10.0  # seconds
MOST_RATIO = 3.0
ROUNDS = 5
FRR = "quay.io/frrouting/frr:8.4.1"
PREFIX = f"bench{os.getpid()}-"  # of the peer's namespaces, which have names on the host


def graph() -> list[tuple[str, str]]:
    """Return the links, each two ends NODE:INTERFACE."""
    taken: Counter[str] = Counter()

    def end(node: str) -> str:
        taken[node] += 1
        return f"{node}:eth{taken[node]}"

    ring = [(end(f"r{i}"), end(f"r{(i + 1) % ROUTERS}")) for i in range(ROUTERS)]
    return ring + [(end(f"h{i}"), end(f"r{i % ROUTERS}")) for i in range(HOSTS)]


def topology(folder: Path, image: str, name: str) -> Path:
    """Write a file in which the routers have `image`."""
    (folder / "daemons").write_text("bgpd=yes\n")
    (folder / "frr.conf").write_text("router bgp 65000\n")
    router = {"image": image, "binds": ["daemons:/etc/frr/daemons", "frr.conf:/etc/frr/frr.conf"]}
    nodes = {f"r{i}": router for i in range(ROUTERS)} | {f"h{i}": {} for i in range(HOSTS)}
    body = {
        "defaults": {"kind": "linux", "image": "alpine", "network-mode": "none"},
        "nodes": nodes,
        "links": [{"endpoints": list(ends)} for ends in graph()],
    }
    file = folder / f"{name}.clab.yml"
    file.write_text(json.dumps({"name": f"{PREFIX}{name}", "topology": body}))
    return file


def namespaces() -> list[str]:
    return [f"{PREFIX}{name}{i}" for name, count in (("r", ROUTERS), ("h", HOSTS)) for i in range(count)]


def bare_up() -> None:
    lines = [f"ip netns add {name}" for name in namespaces()]
    for near, far in graph():
        (a, e), (b, f) = near.split(":"), far.split(":")
        lines += [
            f"ip link add {e} netns {PREFIX}{a} type veth peer name {f} netns {PREFIX}{b}",
            f"ip -n {PREFIX}{a} link set {e} up",
            f"ip -n {PREFIX}{b} link set {f} up",
        ]
    subprocess.run(["/bin/sh", "-e"], input="\n".join(lines), text=True, check=True)


def bare_down() -> None:
    there = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    names = [line.split()[0] for line in there.splitlines() if line.startswith(PREFIX)]
    lines = [f"ip netns del {name}" for name in names]
    subprocess.run(["/bin/sh", "-e"], input="\n".join(lines), text=True, check=True)


def took(what: Callable[[], object]) -> float:
    began = time.monotonic()
    what()
    return time.monotonic() - began


def fabricctl(verb: str, file: Path) -> Callable[[], object]:
    argv = [str(Path(sys.executable).parent / "fabricctl"), "lab", verb, str(file)]
    return lambda: subprocess.run(argv, capture_output=True, check=True)


def measure(rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each, round by round."""
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        files = {
            "10 FRR": topology(Path(scratch), FRR, "frr"),
            "no routers": topology(Path(scratch), "alpine", "plain"),
        }
        try:
            for _ in range(rounds):
                samples.setdefault("bare up", []).append(took(bare_up))
                samples.setdefault("bare down", []).append(took(bare_down))
                for what, file in files.items():
                    samples.setdefault(f"{what} up", []).append(took(fabricctl("up", file)))
                    samples.setdefault(f"{what} down", []).append(took(fabricctl("down", file)))
        finally:
            bare_down()
            for file in files.values():
                Lab.load(file).down()
    return samples


def rows(samples: dict[str, list[float]]) -> list[Row]:
    peer = "ip netns + veth"
    made = []
    for what in ("10 FRR", "no routers"):
        made += [
            Row.beside(f"50 nodes, {what}: up", "s", samples[f"{what} up"], samples["bare up"], peer),
            Row.beside(f"50 nodes, {what}: down", "s", samples[f"{what} down"], samples["bare down"], peer),
        ]
    return made


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        measured = rows(measure(chosen.rounds))
    except KeyboardInterrupt:
        return 130
    except (FabricError, subprocess.CalledProcessError) as err:
        print(f"labs: {err}", file=sys.stderr)
        return 1
    report.print_table(measured)
    up, down = measured[0], measured[1]
    assert up.ratio
    verdicts = (
        (f"up in {up.ours.median:.1f} s, at most {MOST_UP:.0f}", up.ours.median <= MOST_UP),
        (f"down in {down.ours.median:.1f} s, at most {MOST_DOWN:.0f}", down.ours.median <= MOST_DOWN),
        (
            f"up takes {up.ratio.median:.1f} times as long, at most {MOST_RATIO:.0f}",
            up.ratio.median <= MOST_RATIO,
        ),
    )
    for text, met in verdicts:
        print(f"{text}: {'met' if met else 'MISSED'}")
    if chosen.json:
        report.write_json(measured, chosen.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
