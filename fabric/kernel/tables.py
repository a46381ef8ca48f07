"""Touches the packet filter's tables, nft and legacy: so far it only reads what FORWARD does by default.

The legacy tables are read through libiptc (python-iptables), and only where the kernel has one loaded:
asking for a table would make it. The nft ones are read as `iptables-nft` prints them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from fabric.kernel.threads import in_thread

FAMILIES = {4: ("ip_tables_names", "iptables-nft"), 6: ("ip6_tables_names", "ip6tables-nft")}


@dataclass(frozen=True, slots=True)
class ForwardPolicy:
    """What happens to a forwarded packet that no rule decides; `version` is 4 or 6."""

    backend: str  # "nft" or "legacy"
    version: int
    policy: str  # "ACCEPT" or "DROP"


async def forward_policies() -> list[ForwardPolicy]:
    """Return the FORWARD policy of each filter table there is in this network namespace."""
    return await in_thread(lambda: [*_legacy(), *_nft()])


def _legacy() -> Iterator[ForwardPolicy]:
    loaded = [version for version, (names, _) in FAMILIES.items() if "filter" in _table_names(names)]
    if not loaded:
        return
    import iptc  # takes a third of a second, and looks for libraries

    for version in loaded:
        table = (iptc.Table if version == 4 else iptc.Table6)(iptc.Table.FILTER)
        table.refresh()
        chain = next(c for c in table.chains if c.name == "FORWARD")
        yield ForwardPolicy("legacy", version, chain.get_policy().name)


def _table_names(file: str) -> list[str]:
    try:
        return Path("/proc/thread-self/net", file).read_text().split()
    except FileNotFoundError:
        return []


def _nft() -> Iterator[ForwardPolicy]:
    for version, (_, tool) in FAMILIES.items():
        if not which(tool):
            continue
        done = subprocess.run([tool, "-w", "-S", "FORWARD"], capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            match line.split():
                case ["-P", "FORWARD", policy]:
                    yield ForwardPolicy("nft", version, policy)
