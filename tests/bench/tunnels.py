"""Measure what a way between two nodes' containers carries, beside bare veths and Docker, in one run.

    python -m tests.bench.tunnels [--rounds N] [--seconds N] [--json FILE] [--plot FILE]

Turn by turn: throughput of one TCP stream (iperf3), the round trip of a small datagram, and the time of all
processors for 10^9 bytes; native and in VXLAN, beside the same veths without agent and rules, and beside a port that
Docker publishes to its bridge. Then, in a user-mode kernel, native and in IPIP. What is not installed is left out and
named. The lab is taken down at the end, also on Ctrl-C and on SIGTERM. A missed target is printed, and is no failure
of the run.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from fabric.errors import FabricError, LabError
from tests.bench import report, tunnels_uml
from tests.bench.report import Figure, Row
from tests.bench.tunnels_lab import (
    BARE,
    DOCKER,
    INSTALL,
    IPIP,
    MODES,
    NATIVE,
    TRACKED,
    VXLAN,
    Pairs,
    Samples,
    lacks_docker,
)
from tests.uml.kernel import PROGRAM

ROUNDS, MOST_UML_ROUNDS, SECONDS = 11, 5, 1
LEAST_NATIVE = 0.97  # of bare veths' throughput
MOST_BUSY = 20.0  # percent of a core that others may use, lest the figures be theirs
OTHERWISE = "processors before a turn"
METRICS = {
    "throughput": ("throughput", "Gbit/s"),
    "p50": ("round trip, p50", "us"),
    "p99": ("round trip, p99", "us"),
    "processor": ("processors", "s/GB"),
}
IN_UML = "user-mode Linux: "
# Where, which way, and what it is told beside.
BESIDE = (
    *(("", way, BARE) for way in (TRACKED, NATIVE, VXLAN, DOCKER)),
    *(("", way, DOCKER) for way in (NATIVE, VXLAN)),
    *((IN_UML, way, BARE) for way in (NATIVE, IPIP)),
    (IN_UML, IPIP, NATIVE),
)
SHOWN = (
    *(("", way) for way in (BARE, TRACKED, NATIVE, VXLAN, DOCKER)),
    *((IN_UML, way) for way in (BARE, NATIVE, IPIP)),
)


def measure(rounds: int, seconds: int) -> Samples:
    """Return the samples; those of the user-mode kernel have its name in front."""
    missing = lacks_docker()
    if missing:
        print(f"bench: {DOCKER} is left out: {missing}: not installed; {INSTALL}", file=sys.stderr)
    ways = [BARE, TRACKED, NATIVE, VXLAN, *([] if missing else [DOCKER])]
    with tempfile.TemporaryDirectory() as folder, Pairs(Path(folder), ways) as pairs:
        samples = pairs.turns(rounds, seconds)
    try:
        if not shutil.which(PROGRAM):
            raise LabError(f"{PROGRAM} is not installed; apt-get install user-mode-linux")
        inside = tunnels_uml.measure(min(rounds, MOST_UML_ROUNDS), seconds)
    except LabError as err:
        print(f"bench: {IPIP} is left out: {err}", file=sys.stderr)
        inside = {}
    return samples | {f"{IN_UML}{what}": each for what, each in inside.items()}


def rows(samples: Samples) -> list[Row]:
    made = []
    for metric, (name, unit) in METRICS.items():
        for where, way, other in BESIDE:
            ours, peer = (samples.get(f"{where}{metric}: {each}") for each in (way, other))
            if ours and peer:
                made.append(Row.beside(f"{where}{name}, {way}", unit, ours, peer, other))
    return [*made, *_otherwise(samples)]


def _otherwise(samples: Samples) -> Iterator[Row]:
    """What the machine did before each turn, which tells how far to trust the turn."""
    for where in ("", IN_UML):
        before = [
            share
            for what, shares in samples.items()
            if what.startswith(f"{where}otherwise: ")
            for share in shares
        ]
        if before:
            yield Row(f"{where}{OTHERWISE}", "% of a core", Figure.of(before))


def write_plot(samples: Samples, path: Path) -> None:
    """Draw each metric by itself: a bar for the median, a line from minimum to maximum."""
    # By name, and so without types: it is there only where the extra `plots` is.
    figure: Any = import_module("matplotlib.figure").Figure(figsize=(9, 7), layout="constrained")
    shown = [each for each in SHOWN if "throughput: ".join(each) in samples][::-1]
    for axes, (metric, (name, unit)) in zip(figure.subplots(2, 2).flat, METRICS.items(), strict=True):
        for at, (where, way) in enumerate(shown):
            kept = Figure.of(samples[f"{where}{metric}: {way}"])
            reach = [[kept.median - kept.min], [kept.max - kept.median]]
            colour = "tab:blue" if way in MODES else "tab:gray"
            axes.barh(at, kept.median, height=0.7, color=colour, xerr=reach, error_kw={"lw": 1, "capsize": 2})
        axes.set_yticks(range(len(shown)), ["\n".join(each).strip() for each in shown], fontsize=8)
        axes.set_xlabel(f"{name}, {unit}")
    figure.savefig(path, format="svg")


def targets(made: Sequence[Row]) -> list[str]:
    """Return one line a target: what it is, and whether this run met it."""
    name = f"{METRICS['throughput'][0]}, {NATIVE}"
    (ratio,) = [row.ratio.median for row in made if row.ratio and row.name == name and row.peer_name == BARE]
    (busy,) = [row.ours.median for row in made if row.name == OTHERWISE]
    met = "met   " if ratio >= LEAST_NATIVE else "MISSED"
    verdict = met if busy <= MOST_BUSY else f"no verdict, {busy:.0f} % of a core were busy before"
    return [f"{verdict}: {name}: at least {LEAST_NATIVE:g} of {BARE}: {ratio:.3f}x"]


def main(argv: Sequence[str]) -> int:
    """Return 0 if everything was measured, 130 if interrupted, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tunnels")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of each traffic (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write an SVG to this file")
    chosen = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        samples = measure(chosen.rounds, chosen.seconds)
    except KeyboardInterrupt:
        print("interrupted; the lab was taken down", file=sys.stderr)
        return 130
    except FabricError as err:
        print(f"bench: {err}", file=sys.stderr)
        return 1
    made = rows(samples)
    report.print_table(made)
    print("\n" + "\n".join(targets(made)))
    if chosen.json:
        report.write_json(made, chosen.json)
    if chosen.plot:
        write_plot(samples, chosen.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
