"""Decide what the records beside a block say, a node's affinity and a handle, and how Calico writes them.

Source: calico-semantics §5 "Objects"; calico-wire for the JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from fabric.errors import ConfigError
from fabric.ipam.types import Prefix

AFFINITY_CONFIRMED = '{"state":"confirmed","deleted":false}'


@dataclass(frozen=True, slots=True)
class Affinity:
    """A node's claim on a block: "pending", "confirmed" or "pendingDeletion"; only the second counts."""

    state: str
    revision: int

    @property
    def confirmed(self) -> bool:
        return self.state == "confirmed"


@dataclass(frozen=True)
class Handle:
    """How many addresses of each block a handle holds."""

    counts: Mapping[Prefix, int]
    revision: int


def affinity_from_json(text: str, revision: int) -> Affinity:
    """Read a stored affinity; one with no state is an old one, and confirmed.

    Raises:
        ConfigError: it is no affinity of Calico's.
    """
    document = read_object("affinity", text)
    state = document.get("state") or "confirmed"
    return Affinity("pendingDeletion" if document.get("deleted") else str(state), revision)


def handle_from_json(text: str, revision: int) -> Handle:
    """Read a stored handle.

    Raises:
        ConfigError: it is no handle of Calico's.
    """
    document = read_object("handle", text)
    try:
        counts = {ip_network(prefix): int(count) for prefix, count in (document.get("block") or {}).items()}
    except (ValueError, TypeError, AttributeError, OverflowError) as err:
        raise ConfigError(f"stored handle: not readable: {err}") from err
    return Handle({} if document.get("deleted") else counts, revision)


def handle_to_json(counts: Mapping[Prefix, int]) -> str:
    """Return a handle as Calico stores it, compact."""
    block = {str(prefix): count for prefix, count in counts.items()}
    return json.dumps({"block": block, "deleted": False}, separators=(",", ":"))


def read_object(what: str, text: str) -> dict[str, Any]:
    """Return the JSON object that `text` is.

    Raises:
        ConfigError: it is none; the message begins with `what` was stored.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise ConfigError(f"stored {what}: not readable: {err}") from err
    if not isinstance(document, dict):
        raise ConfigError(f"stored {what}: not readable: a JSON object is wanted")
    return document
