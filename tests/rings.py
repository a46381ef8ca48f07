"""Run the tests ring by ring, fastest first, and print what each ring took.

Each ring is one pytest run; the tests marked `alone` follow the parallel ones of their ring by
themselves, since load would falsify what they measure. The first failing ring ends the run's success,
not the run: one look shows everything that is broken.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ring:
    name: str
    budget: int  # seconds; printed beside what was taken, never enforced
    arguments: tuple[str, ...]


RINGS = (
    Ring("unit", 60, ("-n", "2", "tests/unit")),
    Ring("contract", 120, ("-n", "2", "tests/contract")),
    Ring("scenarios", 420, ("-n", "2", "-m", "not alone", "tests/scenarios")),
    Ring("scenarios alone", 420, ("-m", "alone", "tests/scenarios")),
    Ring("uml", 150, ("tests/uml",)),
)


def main() -> int:
    """Return 0 if every ring passed, else 1."""
    rows = []
    for ring in RINGS:
        print(f"--- {ring.name}", flush=True)
        started = time.monotonic()
        status = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *ring.arguments], check=False
        ).returncode
        rows.append((ring, time.monotonic() - started, status))
    print("--- rings")
    for ring, seconds, status in rows:
        verdict = "passed" if status == 0 else f"FAILED (pytest exit {status})"
        print(f"{ring.name:16} {seconds:6.1f} s of {ring.budget:3} s  {verdict}")
    return int(any(status for _, _, status in rows))


if __name__ == "__main__":
    sys.exit(main())
