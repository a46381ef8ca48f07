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

MAX_SHOWN = 60  # characters of a wrong value
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
    found = document.get("block") or {}
    if type(found) is not dict:
        raise unexpected("handle", "block", "an object", found)
    counts = {}
    for prefix, count in found.items():
        if type(count) is not int:
            raise unexpected("handle", f"block: {prefix}", "a whole number", count)
        counts[read_prefix("handle", "block", prefix)] = count
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
        raise ConfigError(f"stored {what}: {why_not_json(err)}") from err
    if not isinstance(document, dict):
        raise ConfigError(f"stored {what}: expected a JSON object, found {_shown(document)}")
    return document


def read_prefix(what: str, path: str, text: str) -> Prefix:
    """Return the prefix that `text` is.

    Raises:
        ConfigError: it is none.
    """
    try:
        return ip_network(text)
    except ValueError as err:
        raise unexpected(what, path, "a prefix without host bits", text) from err


def unexpected(what: str, path: str, wanted: str, found: object) -> ConfigError:
    """Return the error of a stored `what` that has `found` at `path`, where `wanted` should be."""
    return ConfigError(f"stored {what}: {path}: expected {wanted}, found {_shown(found)}")


def why_not_json(err: ValueError | RecursionError) -> str:
    """Return what `json.loads` stumbled over, and where."""
    if isinstance(err, json.JSONDecodeError):
        return f"not JSON from line {err.lineno}, column {err.colno} on"
    return "JSON nested too deep" if isinstance(err, RecursionError) else "a number is too long"


def _shown(found: object) -> str:
    match found:
        case dict():
            return "an object"
        case list():
            return "a list"
        case _:
            text = json.dumps(found)
            return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
