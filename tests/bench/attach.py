"""Measure an attach beside its peers, in one run, in a lab of its own, and say where its time goes.

    python -m tests.bench.attach [--rounds N] [--json FILE] [--plot FILE]

The lab is taken down at the end, also on Ctrl-C and on SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fabric.errors import FabricError, LabError
from fabric.lab.lab import Lab
from tests.bench import report
from tests.bench.report import Figure, Row

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ETCD, ETCD_OF_TWIN = "10.10.1.1:2379", "10.10.2.1:2379"
POOL = "10.77.0.0/16"
ROUNDS, CLI_ROUNDS = 30, 10
TIMEOUT = 300.0  # seconds
CPU_FIELDS = ("BATCH", "PEERS")
Samples = Mapping[str, Sequence[float]]


def measure(rounds: int) -> tuple[Samples, Samples]:
    """Return the samples of the rounds on the node, and those of the stages on its twin."""
    lab = Lab.load(HERE / "attach.clab.yml")
    with lab:
        lab.exec("node", ["fabricctl", "node", "join", "--name", "node", "--etcd", ETCD, "--pool", POOL])
        return (
            _inside(lab, "node", "tests.bench.rounds", ETCD, str(rounds), str(min(rounds, CLI_ROUNDS))),
            _inside(lab, "twin", "tests.bench.stages", ETCD_OF_TWIN, str(rounds)),
        )
