"""Measure an attach beside its peers, in one run, in a lab of its own, and say where its time goes.

    python -m tests.bench.attach [--rounds N] [--json FILE] [--plot FILE]

The lab is taken down at the end, also on Ctrl-C and on SIGTERM. A missed target is printed, and is no
failure of the run: on a busy machine it may be the machine's.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from fabric.errors import FabricError, LabError
from fabric.lab.lab import Lab
from tests.bench import report
from tests.bench.report import Figure, Row

HERE = Path(__file__).parent
FILE = HERE / "attach.clab.yml"
ROOT = HERE.parent.parent
ETCD, ETCD_OF_TWIN = "10.10.1.1:2379", "10.10.2.1:2379"
POOL = "10.77.0.0/16"
ROUNDS, MOST_CLI_ROUNDS = 30, 10
TIMEOUT = 300.0  # seconds
PTP, BATCH = "ptp + host-local", "ip -batch"
FIRST = "first of its list"  # of policies and profiles: rules are to be written
Samples = Mapping[str, Sequence[float]]


def measure(rounds: int) -> tuple[Samples, Samples]:
    """Return the samples of the rounds on the node, and those of the stages on its twin."""
    with ExitStack() as owned:
        lab = bench_lab(owned)
        lab.exec("node", ["fabricctl", "node", "join", "--name", "node", "--etcd", ETCD, "--pool", POOL])
        return (
            inside(lab, "node", "tests.bench.rounds", ETCD, rounds, min(rounds, MOST_CLI_ROUNDS)),
            inside(lab, "twin", "tests.bench.stages", ETCD_OF_TWIN, rounds),
        )


def bench_lab(owned: ExitStack) -> Lab:
    """Return the benchmarks' lab, up; `owned` takes it down."""
    lab = Lab.load(FILE)
    if not lab.up():
        raise LabError(
            f"lab {lab.name}: up already, so another benchmark runs or one was killed; nothing was measured; if none "
            f"runs, take it down with `fabricctl lab down {FILE.relative_to(ROOT)}`"
        )
    owned.callback(lab.down)
    return lab


def inside(lab: Lab, node: str, module: str, *arguments: object) -> Samples:
    """Run a module of the benchmarks in a node of the lab; return what it prints."""
    argv = ["env", f"--chdir={ROOT}", sys.executable, "-m", module, *map(str, arguments)]
    samples: Samples = json.loads(lab.exec(node, argv, timeout=TIMEOUT).stdout)
    return samples


def rows(rounds: Samples, stages: Samples) -> list[Row]:
    """Return the figures, times in milliseconds."""
    against_peers = [
        Row.beside(
            what, "ms", _ms(rounds, f"socket {verb}: ours"), _ms(rounds, f"socket {verb}: {peer}"), peer
        )
        for what, verb in (("attach", "add"), ("detach", "del"))
        for peer in (PTP, BATCH)
    ]
    against_peers.append(
        Row.beside(
            f"attach, {FIRST}",
            "ms",
            _ms(rounds, f"socket add: {FIRST}"),
            _ms(rounds, f"socket add: {PTP}"),
            PTP,
        )
    )
    command_line = [
        Row.beside(
            "fabricctl workload add, whole process",
            "ms",
            _ms(rounds, "cli add: fabricctl"),
            _ms(rounds, "cli add: ours"),
            "the bare request",
        ),
        Row.beside(
            "fabricctl --help",
            "ms",
            _ms(rounds, "start: fabricctl --help"),
            _ms(rounds, "start: python3 -c pass"),
            "python3 -c pass",
        ),
    ]
    transactions = [
        Row(
            f"etcd transactions of one {what}",
            "count",
            Figure.of(rounds[f"transactions, socket {verb}: ours"]),
        )
        for what, verb in (("attach", "add"), ("detach", "del"))
    ]
    parts = [
        Row(f"of one {name}", "ms", Figure.of(_ms(stages, name)))
        for name in sorted(stages)
        if any(stages[name])
    ]
    return [*against_peers, *command_line, *transactions, *parts]


def _ms(samples: Samples, name: str) -> list[float]:
    return [seconds * 1000 for seconds in samples[name]]


def targets(made: Sequence[Row]) -> list[str]:
    """Return one line a target: what it is, and whether this run met it."""
    ratio = next(
        row.ratio.median for row in made if row.ratio and row.name == "attach" and row.peer_name == PTP
    )
    most = max(row.ours.max for row in made if row.unit == "count")
    return [
        f"{_verdict(ratio <= 1.0)}: an attach takes at most as long as {PTP}: {ratio:.2f}x",
        f"{_verdict(most <= 1)}: at most one etcd transaction an attach or detach: {most:g}",
    ]


def _verdict(met: bool) -> str:
    return "met   " if met else "MISSED"


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.attach")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="turns of each contender (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--plot",
        type=Path,
        help="write an SVG to this file (default: beside --json, where matplotlib is installed)",
    )
    return parser.parse_args(argv)


def _write(made: Sequence[Row], json_file: Path | None, plot: Path | None) -> None:
    if json_file:
        report.write_json(made, json_file)
        if report.can_plot():
            plot = plot or json_file.with_suffix(".svg")
    if plot:
        report.write_plot(made, plot)


def main(argv: Sequence[str]) -> int:
    """Return 0 if everything was measured, 130 if interrupted, else 1."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = _arguments(argv)
    try:
        made = rows(*measure(arguments.rounds))
    except KeyboardInterrupt:
        print("interrupted; the lab was taken down", file=sys.stderr)
        return 130
    except FabricError as err:
        print(f"bench: {err}", file=sys.stderr)
        return 1
    report.print_table(made)
    print("\n" + "\n".join(targets(made)))
    _write(made, arguments.json, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
