"""Drives the labs in containerlab/ under names of a test's own: what they miss, and what it costs to break them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import pytest
import yaml

from fabric.lab import expect, faults, verify
from fabric.lab import source as sources
from fabric.lab.expect import Endpoint, Expectations
from fabric.lab.lab import Lab
from fabric.lab.measure import measure
from fabric.lab.report import Report
from tests.scenarios.fabric import SHIPPED

RUNS = 3  # attempts at a valid measurement
WITHIN = 20.0  # seconds for what has just been asked for


def shipped(name: str) -> Lab:
    """Return a shipped lab under a name of this process's own."""
    return Lab.load(SHIPPED / f"{name}.clab.yml", name=f"{name}-{os.getpid()}")


def missed(lab: Lab) -> list[str]:
    """Return the expectations that the lab does not meet, with what was found."""
    return _missed(lab, expect.load(lab.file, lab.topology))


def unmet(lab: Lab, text: str, **endpoints: Mapping[str, str]) -> list[str]:
    """Return those expectations in `text` that the lab does not meet; it has these endpoints beside its own."""
    beside = expect.beside(lab.file)
    known = yaml.safe_load(beside.read_text())["endpoints"] | endpoints
    whole = f"{yaml.safe_dump({'within': WITHIN, 'endpoints': known})}{text}"
    source = sources.parse(whole, beside, state="nothing was asked")
    return _missed(lab, expect.resolve(source, lab.topology))


def _missed(lab: Lab, expected: Expectations) -> list[str]:
    results = verify.verify(lab, expected)
    assert results
    return [
        f"{r.expectation.what} {r.expectation.where}: {r.expectation.expected}, not {r.found}"
        for r in results
        if not r.holds
    ]


def quiet(_: str) -> None:
    """Report progress to nobody."""


def cost(lab: Lab, flows: Sequence[Endpoint], act: Callable[[], str]) -> Report:
    """Return what `act` costs the flows, in a run whose control had no gap; the lab is whole again after."""
    for _ in range(RUNS):
        try:
            report = measure(lab, flows, act)
        finally:
            faults.restore(lab, quiet)
        assert missed(lab) == []
        if report.valid:
            assert all(flow.back for flow in report.flows)
            return report
    pytest.fail(f"no valid run in {RUNS}: {report.invalid}")


def outage(report: Report) -> float:
    """Return the longest outage of any flow, in ms."""
    return max(flow.outage for flow in report.flows)
