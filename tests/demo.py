"""Show the main job on real routers: nodes join, containers attach, a router learns, an outside host reaches.

Runs the quickstart with FRR as top-of-rack router, then the same with BIRD. Waits on conditions, never on
time; takes everything down, also on Ctrl-C. Exit status 0 only if everything was reached.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fabric.cli.output import table
from fabric.errors import FabricError
from fabric.lab.lab import Lab

CONTAINERLAB = Path(__file__).parent.parent / "containerlab"
ETCD = "10.10.3.2:2379"
POOL = "10.77.0.0/16"
OUTSIDE = "host"
OUTSIDE_ADDRESS = "10.10.4.2"
LATE_ADDRESS = "10.77.200.1"  # of the container whose announcement is timed: in a block that is nobody's yet
DEADLINE = 30.0  # seconds for any one condition


@dataclass(frozen=True, slots=True)
class Member:
    """One node of the lab, and how it joins."""

    name: str
    as_number: int
    router: str
    containers: tuple[str, ...]


NODES = (
    Member("node1", 65001, "10.10.1.1", ("web", "api")),
    Member("node2", 65002, "10.10.2.1", ("db", "cache")),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One lab, its router's name for people, and the commands that show the router's own view."""

    file: Path
    router: str
    table: tuple[str, ...]


RUNS = (
    Run(CONTAINERLAB / "quickstart.clab.yml", "FRR", ("vtysh", "-c", "show bgp ipv4 unicast")),
    Run(CONTAINERLAB / "quickstart-bird.clab.yml", "BIRD", ("birdc", "show", "route", "table", "master4")),
)

_started = time.monotonic()


def say(text: str) -> None:
    """Progress, with the seconds since the start."""
    print(f"[{time.monotonic() - _started:5.1f} s] {text}", flush=True)


def heading(text: str) -> None:
    print(f"\n== {text}", flush=True)


def until(what: str, condition: Callable[[], bool]) -> None:
    """Wait for `condition`; TimeoutError names `what` after DEADLINE seconds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {DEADLINE:.0f} s")
        time.sleep(0.05)


def fabricctl(lab: Lab, node: str, *arguments: str) -> str:
    return lab.exec(node, ["fabricctl", *arguments]).stdout


def ask(lab: Lab, node: str, *arguments: str) -> list[dict[str, str]]:
    answer: list[dict[str, str]] = json.loads(fabricctl(lab, node, *arguments, "-o", "json"))
    return answer


def join(lab: Lab) -> None:
    for node in NODES:
        say(
            f"{node.name}: fabricctl node join --etcd {ETCD} --as {node.as_number} --peer {node.router}=65000"
        )
        fabricctl(
            lab,
            node.name,
            *("node", "join", "--name", node.name, "--etcd", ETCD, "--pool", POOL),
            *("--as", str(node.as_number), "--peer", f"{node.router}=65000"),
        )


def attach(lab: Lab, owned: ExitStack, node: str, name: str, *options: str) -> None:
    """Run a container that lives as long as the demo, and wait until it is attached."""
    argv = ["fabricctl", "workload", "add", name, *options, "--run", "sleep", "infinity"]
    process = lab.popen(node, argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    owned.callback(process.wait)
    owned.callback(process.terminate)
    assert process.stderr is not None
    owned.callback(process.stderr.close)
    line = process.stderr.readline().strip()
    if not line.startswith(f"{name}: "):
        raise FabricError(f"container {name} on {node}: {line}")
    say(f"container {line} on {node}")


def addresses(lab: Lab) -> dict[str, tuple[str, str]]:
    """Return each container's node and address."""
    return {
        w["name"]: (node.name, w["addresses"][0])
        for node in NODES
        for w in ask(lab, node.name, "workload", "list")
    }


def time_to_reach(lab: Lab, owned: ExitStack) -> float:
    """Attach one more container and return the seconds from its block's announcement to the first reply.

    An outside host pings its address all the while; the announcement's moment is in the agent's log.
    """
    probe = lab.popen(
        OUTSIDE, ["ping", "-D", "-n", "-i", "0.01", "-c", "3000", LATE_ADDRESS], stdout=subprocess.PIPE
    )
    with probe:
        owned.callback(probe.terminate)
        attach(lab, owned, "node2", "late", "--ip", LATE_ADDRESS)
        assert probe.stdout is not None
        first = next(
            (found for line in probe.stdout if (found := re.match(r"\[([0-9.]+)\] 64 bytes", line))), None
        )
        probe.terminate()
    if first is None:
        raise TimeoutError(f"{LATE_ADDRESS}: no reply to {OUTSIDE} within 30 s")
    return float(first[1]) - announced_at(lab)


def announced_at(lab: Lab) -> float:
    log = lab.exec("node2", ["cat", "/var/lib/fabricctl/node.log"]).stdout
    told = [line for line in log.splitlines() if '"speaker told"' in line]
    return datetime.fromisoformat(json.loads(told[-1])["timestamp"]).timestamp()


def ping_all(lab: Lab) -> dict[tuple[str, str], str]:
    """Ping from everything to everything, at once; a cell is the round trip in milliseconds, or ""."""
    held = addresses(lab)
    targets = {**{name: address for name, (_, address) in held.items()}, OUTSIDE: OUTSIDE_ADDRESS}
    running = {}
    for source in (*held, OUTSIDE):
        for target, address in targets.items():
            if source != target:
                ping = ["ping", "-n", "-c", "1", "-W", "2", address]
                inside = ["fabricctl", "workload", "exec", source, "--", *ping]
                node, argv = (held[source][0], inside) if source in held else (OUTSIDE, ping)
                running[source, target] = lab.popen(node, argv, stdout=subprocess.PIPE)
    cells = {}
    for pair, process in running.items():
        out, _ = process.communicate()
        found = re.search(r"time=([0-9.]+)", out)
        cells[pair] = found[1] if found and process.returncode == 0 else ""
    return cells


def show(lab: Lab, run: Run) -> None:
    """Print what a newcomer wants to see."""
    heading("Nodes")
    print(fabricctl(lab, "node1", "node", "list"), end="")
    for node in NODES:
        heading(f"{node.name}: sessions and blocks")
        print(fabricctl(lab, node.name, "node", "status"), end="")
    heading(f"The {run.router} router's own BGP table")
    print(lab.exec("tor", run.table).stdout.strip())
    for node in NODES:
        heading(f"{node.name}: routes in its kernel")
        print(lab.exec(node.name, ["ip", "route"]).stdout, end="")


def show_matrix(cells: dict[tuple[str, str], str]) -> int:
    """Print the ping matrix; return how many pairs did not reach each other."""
    heading("Who reaches whom, by container address (round trip in ms)")
    names = sorted({source for source, _ in cells}, key=lambda name: (name == OUTSIDE, name))
    table(
        ["FROM \\ TO", *names],
        [
            [source, *("-" if source == t else cells[source, t] or "NO REPLY" for t in names)]
            for source in names
        ],
    )
    return sum(not cell for cell in cells.values())


def demonstrate(run: Run) -> int:
    """Run one lab from up to down; return how many pairs did not reach each other."""
    heading(f"{run.router} as top-of-rack router: {run.file.name}")
    with Lab.load(run.file, name=f"demo-{run.router.lower()}") as lab, ExitStack() as owned:
        say(f"lab is up: {', '.join(state.name for state in lab.inspect())}")
        join(lab)
        for node in NODES:
            for name in node.containers:
                attach(lab, owned, node.name, name)
        say("waiting until each node knows the other's block and the way out")
        until(
            "routes on both nodes",
            lambda: all(len(ask(lab, n.name, "bgp", "routes", "best")) >= 2 for n in NODES),
        )
        seconds = time_to_reach(lab, owned)
        cells = ping_all(lab)
        show(lab, run)
        missed = show_matrix(cells)
        print(f"\nFrom announcement to the first reply outside: {seconds * 1000:.0f} ms")
        say("taking the lab down")
    return missed


def main(names: Sequence[str]) -> int:
    """Demonstrate the named routers (all without any); return the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    missed = 0
    try:
        for run in RUNS:
            if not names or run.router.lower() in names:
                missed += demonstrate(run)
    except KeyboardInterrupt:
        say("interrupted; everything was taken down")
        return 130
    except (FabricError, TimeoutError, subprocess.CalledProcessError) as err:
        print(f"\ndemo: {err}\n{getattr(err, 'stderr', None) or ''}", file=sys.stderr)
        return 1
    say("everything was reached" if not missed else f"{missed} pairs did not reach each other")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
