"""Measure BGP beside BIRD in our place, in one run, in a lab of its own.

    python -m tests.bench.bgp [--rounds N] [--routes N,N] [--peers N,N] [--idle SECONDS] [--json FILE] [--plot FILE]

A router (BIRD) with four neighbours: two nodes of the fabric, and two with BIRD in the place of ours. Our node and
BIRD take turns. What is measured: a block that is announced, until it is in the router's kernel and in the other
node's; routes from the router, until they are in a node's kernel; many peers at once; memory, and the processor while
nothing happens. The lab is taken down at the end, also on Ctrl-C and on SIGTERM. A missed target is printed, and is
no failure of the run.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from ipaddress import IPv4Network
from pathlib import Path

from fabric.errors import FabricError, LabError
from fabric.lab.lab import Lab
from tests.bench import report
from tests.bench.attach import ROOT
from tests.bench.bgp_lab import (
    AS_NUMBERS,
    BIRDS_OWN,
    CROWD_LOG,
    CROWDS,
    ETCD,
    FED,
    LINKS,
    OURS,
    OWN,
    PEER,
    RECEIVER,
    SENDER,
    bird_node,
    topology,
)
from tests.bench.report import Figure, Row

HERE = Path(__file__).parent
ENDPOINTS = 100
WITHIN = 120.0  # seconds for anything to happen
ROUTES, PEERS, ROUNDS, IDLE = (1_000, 10_000), (3, 20, 50), 5, 10.0
# At most, of BIRD's time; MiB, and percent of a core, with 3 peers.
MOST_BLOCK, MOST_ROUTES, MOST_MEMORY, MOST_CPU, MOST_AGENT_CPU = 2.0, 5.0, 160.0, 3.0, 0.5
# A line of the crowd's log: when, which session, and its new state.
STATES = re.compile(r"^(\S+ \S+) <TRACE> (\w+): State changed to (\w+)$", re.MULTILINE)

Samples = dict[str, list[float]]


# What is done in it.


class Bench:
    """The lab while it is up, and what was measured in it."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.samples: Samples = defaultdict(list)

    def note(self, name: str, value: float) -> None:
        self.samples[name].append(value)

    def birdc(self, node: str, *words: str) -> str:
        return self.lab.exec(node, ["birdc", *words]).stdout

    def at_birdc(self, node: str, *words: str) -> int:
        """Give BIRD a command; return when, in ns."""
        script = f"date +%s%N; exec birdc {' '.join(words)} >/dev/null"
        return int(self.lab.exec(node, ["sh", "-c", script]).stdout)

    @contextmanager
    def counting(self, node: str, count: int, within: IPv4Network, verb: str = "add") -> Iterator[Count]:
        argv = ["/usr/bin/python3", "-I", str(HERE / "routecount.py"), str(count), str(within), verb]
        with self.lab.popen(node, argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                yield Count(process, f"{node}: {count} routes in {within}")
            finally:
                process.kill()

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WITHIN
        while not holds():
            if time.monotonic() > deadline:
                raise LabError(f"not within {WITHIN:.0f} s: {what}; the run was given up")
            time.sleep(0.05)

    def join(self) -> None:
        for node in ("a", "b"):
            etcd = ETCD if node == "a" else "10.10.9.1:2379"
            words = ["--etcd", etcd, "--as", str(AS_NUMBERS[node]), "--ip", f"{LINKS[node]}.2"]
            words += [
                "--peer",
                f"{LINKS[node]}.1={AS_NUMBERS['tor']}",
                "--pool",
                str(OWN),
                "--pool",
                str(FED),
            ]
            self.lab.exec(node, ["fabricctl", "node", "join", "--name", node, *words])
        pool = _resource("IPPool", "fed", {"cidr": str(FED), "assignmentMode": "Manual"})
        self.lab.exec("a", ["fabricctl", "apply", "-f", "-"], input=json.dumps(pool))
        self.until(
            lambda: self.established("tor") == len(LINKS), "every session of the router is Established"
        )

    def established(self, node: str, names: str = "") -> int:
        lines = self.birdc(node, "show", "protocols").splitlines()
        return sum(line.startswith(names) and line.rstrip().endswith("Established") for line in lines)

    def usage(self, node: str) -> dict[str, dict[str, float]]:
        argv = ["/usr/bin/python3", "-I", str(HERE / "usage.py")]
        found: dict[str, dict[str, float]] = json.loads(self.lab.exec(node, argv).stdout)
        return found

    # A block, from its announcement to the kernels of the router and of the other node.

    def block(self, who: str, number: int) -> None:
        pool = OWN if who == OURS else BIRDS_OWN
        prefix = list(pool.subnets(new_prefix=26))[number]
        sender = SENDER[who]
        with self.counting("tor", 1, prefix) as router, self.counting(RECEIVER[who], 1, prefix) as node:
            began = (
                self.claim(prefix, "add")
                if who == OURS
                else self.at_birdc(sender, "enable", f"block{number}")
            )
            self.note(f"to the router: {who}", (router.last() - began) / 1e6)
            self.note(f"to the node: {who}", (node.last() - began) / 1e6)
        with self.counting(RECEIVER[who], 1, prefix, "del") as node:
            if who == OURS:
                self.claim(prefix, "del")
            else:
                self.birdc(sender, "disable", f"block{number}")
            node.last()

    def claim(self, prefix: IPv4Network, verb: str) -> int:
        """Write or remove node a's claim on a block, in one transaction; return when it was asked for, in ns."""
        argv = [
            "env",
            f"--chdir={ROOT}",
            sys.executable,
            "-m",
            "tests.bench.claim",
            ETCD,
            "a",
            str(prefix),
            verb,
        ]
        return int(self.lab.exec("a", argv).stdout)

    # Routes from the router to a node's kernel.

    def feed(self, who: str, kind: str, count: int) -> None:
        node, protocol = RECEIVER[who], f"{kind}{count}_{RECEIVER[who]}"
        before = self.usage(node)
        with self.counting(node, count, FED) as counted:
            began = self.at_birdc("tor", "enable", protocol)
            self.note(f"{count} {kind}: {who}", (counted.last() - began) / 1e9)
        after = self.usage(node)
        del after["together"]
        for process, used in after.items():
            self.note(f"{count} {kind}, processor: {process}", used["seconds"] - before[process]["seconds"])
            self.note(f"{count} {kind}, memory: {process}", used["mib"])
        with self.counting(node, count, FED, "del") as counted:
            self.birdc("tor", "disable", protocol)
            counted.last()

    # Many peers.

    def crowd(self, who: str, count: int) -> float:
        """Let a node have `count` peers in the crowd and no others; return the seconds until the last was up."""
        began = time.time()
        if who == PEER:
            (self.folder / "abird.conf").write_text(bird_node("abird", range(1, count + 1)))
            self.birdc("abird", "configure")
        elif count:
            self.lab.exec("a", ["fabricctl", "apply", "-f", "-"], input=_bgp_peers(count))
        elif there := len(self.up(who)):
            self.lab.exec("a", ["fabricctl", "delete", "-f", "-"], input=_bgp_peers(there))
        self.until(lambda: len(self.up(who)) == count, f"{count} peers of {who} are up")
        return max(self.up(who).values(), default=began) - began

    def up(self, who: str) -> dict[str, float]:
        """Return which of the crowd's sessions with a node are up, and since when."""
        found: dict[str, float] = {}
        for at, session, state in STATES.findall(self.lab.exec("crowd", ["cat", CROWD_LOG]).stdout):
            if session.startswith(f"{SENDER[who]}_"):
                found.pop(session, None)
                if state == "up":
                    found[session] = datetime.fromisoformat(at).timestamp()
        return found

    def attach(self, count: int) -> None:
        script = (
            f"for n in $(seq {count}); do ip netns add w$n && fabricctl workload add w$n --netns w$n; done"
        )
        self.lab.exec("a", ["sh", "-ec", script], timeout=300)

    def idle(self, who: str, peers: int, seconds: float) -> None:
        before, began = self.usage(SENDER[who]), time.monotonic()
        time.sleep(seconds)
        after, took = self.usage(SENDER[who]), time.monotonic() - began
        shares = {
            name: 100 * (used["seconds"] - before[name]["seconds"]) / took for name, used in after.items()
        }
        self.note(f"{peers} peers, processor: {who}", sum(shares.values()))
        self.note(f"{peers} peers, memory: {who}", after.pop("together")["mib"])
        if who == OURS:
            for name, used in after.items():
                self.note(f"{peers} peers, processor of {name}", shares[name])
                self.note(f"{peers} peers, memory of {name}", used["mib"])


class Count:
    """Routes that are counted in a node."""

    def __init__(self, process: subprocess.Popen[str], what: str) -> None:
        self.process, self.what = process, what

    def last(self) -> int:
        """Return when the last of them came, in ns."""
        try:
            said, _ = self.process.communicate(timeout=WITHIN)
        except subprocess.TimeoutExpired as slow:
            raise LabError(f"not within {WITHIN:.0f} s: {self.what}; the run was given up") from slow
        return int(said.split()[1])


def _bgp_peers(count: int) -> str:
    peers = [
        _resource(
            "BGPPeer",
            f"crowd-{number}",
            {"node": "a", "peerIP": f"{CROWDS[OURS]}.{number}", "asNumber": AS_NUMBERS["crowd"]},
            {"fabricctl.io/source": "uplink"},
        )
        for number in range(1, count + 1)
    ]
    return "\n---\n".join(map(json.dumps, peers))


def _resource(
    kind: str, name: str, spec: Mapping[str, object], annotations: Mapping[str, str] | None = None
) -> Mapping[str, object]:
    metadata = {"name": name, "annotations": annotations or {}}
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec}


def measure(rounds: int, routes: Sequence[int], peers: Sequence[int], idle: float) -> Samples:
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as owned:
        lab = Lab.load(topology(Path(scratch), routes, max(peers)))
        owned.callback(lab.down)
        lab.up()
        bench = Bench(lab, Path(scratch))
        bench.join()
        for number in range(rounds):
            for who in (OURS, PEER):
                bench.block(who, number)
        for count in routes:
            for kind in ("shared", "distinct"):
                for _ in range(rounds):
                    for who in (OURS, PEER):
                        bench.feed(who, kind, count)
        bench.attach(ENDPOINTS)
        *few, many = peers
        for count in few:
            for who in (OURS, PEER):
                bench.crowd(who, count - 1)  # and the router
            for _ in range(rounds):
                for who in (OURS, PEER):
                    bench.idle(who, count, idle)
        for who in (OURS, PEER):
            bench.crowd(who, 0)
        for _ in range(rounds):
            for who in (OURS, PEER):
                bench.note(f"{many} peers: {who}", bench.crowd(who, many))
                bench.crowd(who, 0)
        return bench.samples


# What is told of it.


def rows(samples: Samples, routes: Sequence[int], peers: Sequence[int]) -> list[Row]:
    """Return the figures: times in ms, memory in MiB, processor in percent of one core."""

    def beside(name: str, unit: str, what: str, times: float = 1.0) -> Row:
        ours, peer = ([times * value for value in samples[f"{what}: {who}"]] for who in (OURS, PEER))
        return Row.beside(name, unit, ours, peer, PEER)

    *few, many = peers
    made = [
        beside("block, announced to in the router's kernel", "ms", "to the router"),
        beside("block, announced to in the other node's kernel", "ms", "to the node"),
    ]
    made += [
        beside(f"{count} routes in, {kind} attributes", "ms", f"{count} {kind}", 1000)
        for count in routes
        for kind in ("shared", "distinct")
    ]
    made.append(beside(f"{many} peers at once, to Established", "ms", f"{many} peers", 1000))
    for count in few:
        made.append(beside(f"memory with {count} peers", "MiB", f"{count} peers, memory"))
        # BIRD uses next to none of it, so that a ratio would say nothing.
        name, (ours, peer) = f"{count} peers, processor", (OURS, PEER)
        made.append(
            Row(
                f"processor while idle with {count} peers",
                "%",
                Figure.of(samples[f"{name}: {ours}"]),
                Figure.of(samples[f"{name}: {peer}"]),
                PEER,
            )
        )
    heavy = f"{max(routes)} distinct"
    for text, unit, times in (
        (f"{few[0]} peers, memory of ", "MiB", 1.0),
        (f"{few[0]} peers, processor of ", "%", 1.0),
        (f"{heavy}, processor: ", "ms", 1000.0),
    ):
        made += [
            Row(name, unit, Figure.of([times * value for value in samples[name]]))
            for name in samples
            if name.startswith(text) and not name.endswith(PEER.lower())
        ]
    return made


def targets(made: Sequence[Row], routes: Sequence[int], peers: Sequence[int]) -> list[str]:
    """Return one line a target: what it is, and whether this run met it."""
    by_name = {row.name: row for row in made}

    def ratio(name: str, most: float) -> str:
        found = by_name[name].ratio
        assert found
        return f"{_verdict(found.median <= most)}: {name}: at most {most:g} of {PEER}'s time: {found.median:.2f}x"

    def most(name: str, limit: float, unit: str) -> str:
        found = by_name[name].ours.median
        return f"{_verdict(found <= limit)}: {name}: at most {limit:g} {unit}: {found:.2f}"

    few = peers[0]
    return [
        ratio("block, announced to in the router's kernel", MOST_BLOCK),
        ratio("block, announced to in the other node's kernel", MOST_BLOCK),
        ratio(f"{max(routes)} routes in, distinct attributes", MOST_ROUTES),
        most(f"memory with {few} peers", MOST_MEMORY, "MiB"),
        most(f"processor while idle with {few} peers", MOST_CPU, "%"),
        most(f"{few} peers, processor of agent", MOST_AGENT_CPU, "%"),
    ]


def _verdict(met: bool) -> str:
    return "met   " if met else "MISSED"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main(argv: Sequence[str]) -> int:
    """Return 0 if everything was measured, 130 if interrupted, else 1."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bgp")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each (default: %(default)s)")
    parser.add_argument("--routes", type=_numbers, default=ROUTES, help="how many (default: 1000,10000)")
    parser.add_argument("--peers", type=_numbers, default=PEERS, help="idle with; at once (default: 3,20,50)")
    parser.add_argument(
        "--idle", type=float, default=IDLE, help="seconds of each look (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--plot", type=Path, help="write an SVG to this file")
    chosen = parser.parse_args(argv)
    try:
        samples = measure(chosen.rounds, chosen.routes, chosen.peers, chosen.idle)
    except KeyboardInterrupt:
        print("interrupted; the lab was taken down", file=sys.stderr)
        return 130
    except FabricError as err:
        print(f"bench: {err}", file=sys.stderr)
        return 1
    made = rows(samples, chosen.routes, chosen.peers)
    report.print_table(made)
    print("\n" + "\n".join(targets(made, chosen.routes, chosen.peers)))
    if chosen.json:
        report.write_json(made, chosen.json)
    if chosen.plot:
        report.write_plot(made, chosen.plot, log=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
