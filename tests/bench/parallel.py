"""Measure many attaches at once beside the same one after the other, in one run, in a lab of its own.

    python -m tests.bench.parallel [--count N] [--rounds N] [--json FILE]

The lab is taken down at the end, also on Ctrl-C and on SIGTERM. A missed target is printed, and is no
failure of the run.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from fabric.errors import FabricError
from tests.bench import report
from tests.bench.attach import ETCD, POOL, Samples, bench_lab, inside
from tests.bench.crowd import PARALLEL, SERIAL
from tests.bench.report import Figure, Row

COUNT, ROUNDS = 100, 3
MOST = 0.6  # of the time that one after the other takes


def measure(count: int, rounds: int) -> Samples:
    with ExitStack() as owned:
        lab = bench_lab(owned)
        lab.exec("node", ["fabricctl", "node", "join", "--name", "node", "--etcd", ETCD, "--pool", POOL])
        return inside(lab, "node", "tests.bench.crowd", ETCD, count, rounds)


def rows(samples: Samples, count: int) -> list[Row]:
    """Return the figures, times in milliseconds."""

    def ms(name: str) -> list[float]:
        return [seconds * 1000 for seconds in samples[name]]

    made = []
    for what, verb in (("attaches", "add"), ("detaches", "del")):
        made += [
            Row.beside(
                f"{count} {what} at once", "ms", ms(f"{verb} {PARALLEL}"), ms(f"{verb} {SERIAL}"), SERIAL
            ),
            Row(f"of {count} {what} at once, each", "ms", Figure.of(ms(f"each, {verb} {PARALLEL}"))),
            Row(
                f"etcd transactions of {count} {what} at once",
                "count",
                Figure.of(samples[f"transactions, {verb} {PARALLEL}"]),
            ),
        ]
    return made


def target(made: Sequence[Row]) -> str:
    """Return one line: what the target is, and whether this run met it."""
    ratio = next(row.ratio.median for row in made if row.ratio)
    verdict = "met   " if ratio <= MOST else "MISSED"
    return f"{verdict}: {made[0].name} take at most {MOST} of the time of {SERIAL}: {ratio:.2f}x"


def main(argv: Sequence[str]) -> int:
    """Return 0 if everything was measured, 130 if interrupted, else 1."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="python -m tests.bench.parallel")
    parser.add_argument("--count", type=int, default=COUNT, help="workloads (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each way (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args(argv)
    try:
        made = rows(measure(arguments.count, arguments.rounds), arguments.count)
    except KeyboardInterrupt:
        print("interrupted; the lab was taken down", file=sys.stderr)
        return 130
    except FabricError as err:
        print(f"bench: {err}", file=sys.stderr)
        return 1
    report.print_table(made)
    print("\n" + target(made))
    if arguments.json:
        report.write_json(made, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
