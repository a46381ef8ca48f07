"""Read all that policy depends on from the datastore, and say what becomes of a packet there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fabric.errors import ConfigError
from fabric.model.base import Resource
from fabric.ops import resources
from fabric.store import keys
from fabric.store.kv import KeyValueStore
from fabric.store.unread import unread_of
from policy import trace
from policy.scene import Scene, Who, asking, packet, scene, sent_by, who
from policy.unread import Unread


@dataclass(frozen=True)
class Stored:
    """Every resource at one revision of the datastore; `unread` are those that cannot be read."""

    resources: tuple[Resource, ...]
    unread: tuple[Unread, ...]


async def stored(kv: KeyValueStore) -> Stored:
    """Return every resource that is stored."""
    found: list[Resource] = []
    unread: list[Unread] = []
    for item in (await kv.list(keys.RESOURCES)).items:
        try:
            found.append(resources.decode(item))
        except ConfigError as err:
            if (kept := unread_of(item, str(err))) is not None:
                unread.append(kept)
    return Stored(tuple(found), tuple(unread))


@dataclass(frozen=True)
class Traced:
    """A trace as JSON values, whether the packet passes, and what is wrong with what is stored."""

    trace: dict[str, Any]
    allowed: bool
    warnings: tuple[str, ...]


async def traced(
    kv: KeyValueStore, source: str, destination: str, wanted: str, family: int | None = None
) -> Traced:
    """Return what becomes of a packet between two ends on the live datastore.

    Raises:
        ConfigError: an end is nobody's name, or there is no such protocol.
    """
    try:
        asked = asking(wanted)
    except ValueError as err:
        raise ConfigError(f'"{wanted}": {err}') from None
    found = await stored(kv)
    here = scene(found.resources, unread=found.unread)
    ends: tuple[Who, Who] = (who(here, source), who(here, destination))
    passage = sent_by(here, ends[0], packet(*ends, asked, family))
    return Traced(trace.document(here, *ends, passage), passage.allowed, tuple(problems(here)))


def problems(of: Scene) -> list[str]:
    """Return what is wrong with the policy, a line each."""
    return [f"{name}: {why}" for name, why in of.world.problems.items()]


def lines(traced: trace.Json) -> Iterator[str]:
    """Return a trace as text."""
    return trace.lines(traced)
