"""Touches /proc: prints what each process of ours, or BIRD, has used of the processor so far, and its memory.

Run in a node of a lab, by path, whose own /proc has that node's processes only. Seconds and MiB (RSS) by name, as JSON;
`together` has the memory of all of them but the supervisor, in which a page of a file that several have mapped counts
once.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# What its command line has in it, the first that fits.
NAMES = {
    "agent": "fabric.agent",
    "pump": "pump.py",
    "exabgp": "exabgp",
    "speaker": "bgp.speaker",
    "supervisor": "supervise",
    "bird": "bird -f",
}


def main() -> None:
    found: dict[str, dict[str, float]] = {}
    own, files = 0, Counter[str]()
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and (name := _name(process)):
            ran = [int(task.read_text().split()[0]) for task in process.glob("task/*/schedstat")]
            rss = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
            known = found.setdefault(name, {"seconds": 0.0, "mib": 0.0})
            known["seconds"] += sum(ran) / 1e9
            known["mib"] += rss / 2**20
            for path, resident, anonymous in _mappings(process) if name != "supervisor" else ():
                own += anonymous
                files[path] = max(files[path], resident - anonymous)
    together = {"seconds": 0.0, "mib": (own + files.total()) / 2**10}
    print(json.dumps(found | {"together": together}))


def _mappings(process: Path) -> Iterator[tuple[str, int, int]]:
    """Yield each mapping: which part of which file, its kB in memory, and those of them that are the process's own."""
    where, resident = "", 0
    for line in (process / "smaps").read_text().splitlines():
        field, *values = line.split()
        if not field.endswith(":"):
            where = " ".join(values[1:])
        elif field == "Rss:":
            resident = int(values[0])
        elif field == "Anonymous:":
            yield where, resident, int(values[0])


def _name(process: Path) -> str:
    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return next((name for name, text in NAMES.items() if text in command), "")


if __name__ == "__main__":
    main()
