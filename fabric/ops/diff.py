"""Decide what to show of a change before it is made: stored and would-be as a unified diff of YAML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import unified_diff

from fabric.model.base import Resource
from fabric.model.change import without_noise
from fabric.model.yaml import dump
from fabric.ops.change import Step


def diff(steps: Sequence[Step]) -> Iterator[str]:
    """Yield a unified diff for each step that changes something; status, identity and times are left out."""
    for step in steps:
        what = step.change.what.replace(" ", "/")
        lines = unified_diff(_lines(step.before), _lines(step.after), f"stored/{what}", f"given/{what}")
        if text := "".join(lines):
            yield text


def _lines(resource: Resource | None) -> list[str]:
    return dump(without_noise(resource.as_written())).splitlines(keepends=True) if resource else []
