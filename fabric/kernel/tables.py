"""Touches the packet filter's tables, iptables on nft, legacy iptables and native nft: so far it only reads.

Legacy tables are read only where the kernel has one loaded: asking for a table would make it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any, TypeAlias

from fabric.kernel.threads import in_thread

# One entry of `nft -j list ruleset`: {"chain": {...}} or {"rule": {...}} (libnftables-json(5)).
NftEntry: TypeAlias = Mapping[str, Any]

_FAMILIES = {4: ("ip_tables_names", "iptables"), 6: ("ip6_tables_names", "ip6tables")}


@dataclass(frozen=True, slots=True)
class Saved:
    """Every table of one backend and family; `text` is what iptables-save prints, `version` is 4 or 6."""

    backend: str  # "nft" or "legacy"
    version: int
    text: str


async def saved() -> tuple[Saved, ...]:
    """Return what iptables, on either backend, has in this network namespace; those that have nothing are left out."""
    return await in_thread(lambda: tuple(_saved()))


async def native() -> tuple[NftEntry, ...]:
    """Return everything nftables has in this network namespace, the tables of iptables-nft among it."""
    return await in_thread(_native)


def _saved() -> Iterator[Saved]:
    for version, (names, tool) in _FAMILIES.items():
        for backend in ("nft", "legacy"):
            if backend == "legacy" and not _loaded(names):
                continue
            text = _output(f"{tool}-{backend}-save")
            if text.strip():
                yield Saved(backend, version, text)


def _loaded(names: str) -> bool:
    try:
        return bool(Path("/proc/thread-self/net", names).read_text().strip())
    except FileNotFoundError:
        return False


def _native() -> tuple[NftEntry, ...]:
    text = _output("nft", "-j", "list", "ruleset")
    return tuple(json.loads(text)["nftables"]) if text.strip() else ()


def _output(tool: str, *words: str) -> str:
    """Return what the tool prints; "" where it is not installed, or the kernel lacks what it reads."""
    if not which(tool):
        return ""
    done = subprocess.run([tool, *words], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""
