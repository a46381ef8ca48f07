"""Decides and refuses changes as the command line does, for tests of either."""

from __future__ import annotations

from collections.abc import Sequence

from fabric.ops.change import Change, Step, decided
from fabric.ops.refuse import refuse
from fabric.store.kv import KeyValueStore


async def plan(kv: KeyValueStore, changes: Sequence[Change]) -> list[Step]:
    """Return what `changes` do to what is stored now, or raise what refuses them."""
    steps, refusals = await decided(kv, changes)
    await refuse(kv, steps, refusals=refusals, changes=changes)
    return steps
