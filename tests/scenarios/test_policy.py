"""The policies that people copy do in the lab what their `policy test` files say: one text for evaluator and kernel.

A pattern is two files in containerlab/policy/patterns: NAME.yaml and NAME.test.yaml.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.fabric import SHIPPED, until
from tests.scenarios.policy_lab import NAMES, PATTERNS, PolicyLab, policies, suite, up
from tests.scenarios.shipped import missed

FABRICCTL = str(Path(sys.executable).parent / "fabricctl")
WITHIN = 5.0  # seconds from `apply` to rules on both nodes, on a busy machine


@pytest.fixture(scope="module")
def lab() -> Iterator[PolicyLab]:
    """One lab for all of the tests below, each of which leaves it without policy."""
    with up() as lab:
        yield lab


def test_every_pattern_has_its_cases() -> None:
    assert {file.name.removesuffix(".yaml") for file in PATTERNS.glob("*.yaml")} == {
        *NAMES,
        *(f"{name}.test" for name in NAMES),
    }


def test_the_evaluator_says_so_without_a_lab() -> None:
    files = [str(PATTERNS / f"{name}.test.yaml") for name in NAMES]
    done = subprocess.run(
        [FABRICCTL, "policy", "test", *files],
        cwd=SHIPPED.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_policy_everybody_reaches_everybody(lab: PolicyLab) -> None:
    assert missed(lab.lab) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_kernel_does_so(lab: PolicyLab, name: str) -> None:
    cases = suite(name).cases
    with lab.applied(policies(name)):
        said: list[str] = []

        def done() -> bool:
            said[:] = lab.missed(cases)
            return not said

        try:
            until(done, WITHIN)
        except AssertionError:
            pytest.fail("\n".join(said))
