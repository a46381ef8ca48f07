"""Read what every node has published of its BGP sessions: from any machine that reaches etcd, as any user."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fabric.store import keys
from fabric.store.kv import KeyValueStore

STALE = 150.0  # seconds; a node publishes once a minute


@dataclass(frozen=True, slots=True)
class Published:
    """What one node has published at `at`, seconds of its Unix epoch; 0.0 where it has not."""

    node: str
    at: float = 0.0
    sessions: tuple[Mapping[str, Any], ...] = ()

    def stale(self, now: float) -> bool:
        return now - self.at > STALE

    def missing(self, now: float) -> str:
        """Why what is here is not how the node is now, "" where it is."""
        if not self.at:
            return "has published nothing yet: it has just started, or no agent of ours runs there"
        if self.stale(now):
            return f"has published nothing for {now - self.at:.0f} s: what is shown is stale"
        return ""


async def sessions(kv: KeyValueStore) -> list[Published]:
    """Return one entry a node that is in the datastore, by name, also of those that have published nothing."""
    published = {
        found.node: found
        for item in (await kv.list(keys.PUBLISHED)).items
        if (found := _read(item.key, item.value))
    }
    registered = (await kv.list(keys.resources("nodes"))).items
    nodes = sorted(item.key.rpartition("/")[2] for item in registered)
    return [published.get(node, Published(node)) for node in nodes]


def _read(key: str, text: str) -> Published | None:
    """Return what stands at `key`; None for what cannot be read, as if it were not there."""
    try:
        value = json.loads(text)
        sessions = tuple(map(dict, value["sessions"]))
        return Published(key.removeprefix(keys.PUBLISHED), float(value["at"]), sessions)
    except (ValueError, KeyError, TypeError):
        return None


def document(found: Published, now: float) -> dict[str, Any]:
    """Return it as JSON values; `at` and `age` are null where the node has published nothing."""
    return {
        "node": found.node,
        "at": found.at or None,
        "age": round(now - found.at, 1) if found.at else None,
        "stale": found.stale(now),
        "sessions": list(found.sessions),
    }
