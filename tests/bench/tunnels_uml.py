"""Measures native against IPIP where there is IPIP: boots a user-mode kernel, and as its program measures inside.

One processor, and slow ways in and out of it: what counts is the ratio.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from fabric.errors import FabricError, LabError
from tests.bench.tunnels_lab import BARE, IPIP, NATIVE, Pairs, Samples
from tests.uml.kernel import Kernel, KernelError

ROOT = Path(__file__).parents[2]
OUT = Path("/mnt/out")  # inside; the one place from which anything gets out
SAMPLES = "samples.json"
WAYS = (BARE, NATIVE, IPIP)
BOOT, TURN = 240.0, 15.0  # seconds at most: until there are pairs; of a turn, beside its traffic


def measure(rounds: int, seconds: int) -> Samples:
    """Return what tests.bench.tunnels_lab measures, in a kernel that is booted for it.

    Raises:
        LabError: it cannot be booted, or did not come to its end.
    """
    # What is newer than its compiled form would be compiled again by every process in there.
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "fabric", "bgp", "policy", "tests"], cwd=ROOT, check=False
    )
    within = BOOT + (rounds + 1) * len(WAYS) * (TURN + 2 * seconds)
    with tempfile.TemporaryDirectory(prefix="fabricctl-bench-") as folder:
        out = Path(folder)
        argv = [sys.executable, "-m", __spec__.name, str(rounds), str(seconds)]
        try:
            with Kernel(out, argv, where=ROOT, within=within) as kernel:
                if status := kernel.wait():
                    raise LabError(f"in the user-mode kernel: exit status {status}{kernel.last_words()}")
        except KernelError as err:
            raise LabError(str(err)) from err
        samples: Samples = json.loads((out / SAMPLES).read_text())
        return samples


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Pairs(Path(folder), WAYS) as pairs:
        samples = pairs.turns(int(sys.argv[1]), int(sys.argv[2]))
    (OUT / SAMPLES).write_text(json.dumps(samples))


if __name__ == "__main__":
    try:
        main()
    except FabricError as err:
        sys.exit(str(err))
