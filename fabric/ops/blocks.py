"""Read a file of blocks: what a plan from files alone cannot know of a datastore."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from fabric.errors import ConfigError
from fabric.ipam.types import Prefix
from fabric.model.wire import shown
from fabric.model.yaml import documents


@dataclass(frozen=True, slots=True)
class Block:
    """One entry of a blocks file: whose block it is, and how far the affinity has come."""

    prefix: Prefix
    node: str
    state: str = ""

    @property
    def confirmed(self) -> bool:
        """So does a block of an old Calico, which has no state."""
        return not self.state or self.state.startswith("confirmed")


def read(name: str) -> tuple[Block, ...]:
    """Return the blocks in a file.

    Raises:
        ConfigError: it cannot be read, or is no such list; with every mistake in it as FILE:LINE.
    """
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, ValueError) as err:
        reason = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
        raise ConfigError(f"{name}: {reason}") from err
    found = documents(text, name)
    if len(found) != 1 or not isinstance(found[0].value, list):
        line = found[0].line(()) if found else 1
        raise ConfigError(f"{name}:{line}: a blocks file is a list of {{cidr, node, state}}, as YAML or JSON")
    [document] = found
    if wrong := [
        f"{name}:{document.line((index, *key))}: {problem}"
        for index, entry in enumerate(document.value)
        for key, problem in _problems(index, entry)
    ]:
        raise ConfigError("\n".join(wrong))
    return tuple(
        Block(ip_network(entry["cidr"]), entry["node"], entry.get("state") or "") for entry in document.value
    )


def _problems(index: int, entry: object) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield what is wrong with one entry, with the key that it is about."""
    if not isinstance(entry, dict):
        yield (), f"[{index}]: must be a mapping with cidr, node and state"
        return
    for key in entry.keys() - {"cidr", "node", "state"}:
        yield (key,), f"[{index}].{key}: no such field; a block has cidr, node and state"
    node, state = entry.get("node"), entry.get("state")
    rules = {
        "cidr": ""
        if _is_prefix(entry.get("cidr"))
        else "must be a prefix without host bits, such as 10.244.1.0/26",
        "node": "" if isinstance(node, str) and node else "must be a node's name",
        "state": "" if state is None or isinstance(state, str) else "must be text, such as confirmed",
    }
    for key, rule in rules.items():
        if rule:
            yield (key,), ": ".join(filter(None, (f"[{index}].{key}", shown(entry.get(key)), rule)))


def _is_prefix(value: object) -> bool:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F.:]+/[0-9]+", value):
        return False  # ip_network takes a mask for a length, and an address alone too
    try:
        return bool(ip_network(value))
    except ValueError:
        return False
