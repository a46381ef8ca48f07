"""Touches the control groups that hold a lab node to its share of processors and memory, where there are any."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from fabric.lab.topology import Node

ROOT = Path("/sys/fs/cgroup")
PERIOD = 100_000  # microseconds, in which `cpu` cores may be used up
GROUP = "fabricctl-lab"


def confine(lab: str, node: Node, pids: Iterable[int]) -> list[str]:
    """Put the processes, and what they start, under the node's limits; return which ones nothing holds to."""
    wanted = {"cpu": node.cpu, "memory": node.memory}
    return [
        f"{field}: {why}; the limit is not kept"
        for field, limit in wanted.items()
        if limit and (why := _limit(field, limit, lab, node.name, pids))
    ]


def joining(lab: str, node: Node) -> list[str]:
    """Return what a command on the host begins with that is to be under the node's limits as well."""
    bases = [_base(field) for field, limit in (("cpu", node.cpu), ("memory", node.memory)) if limit]
    files = {str(base / GROUP / lab / node.name / "cgroup.procs") for base in bases if base}
    if not files:
        return []
    # What could not be confined at the start is not here either.
    script = 'for file in $1; do [ ! -e "$file" ] || echo $$ >"$file"; done; shift; exec "$@"'
    return ["/bin/sh", "-c", script, "sh", " ".join(sorted(files))]


def _limit(field: str, limit: float, lab: str, node: str, pids: Iterable[int]) -> str:
    base = _base(field)
    if base is None:
        return "this host has no such control group"
    group = base / GROUP / lab / node
    try:
        group.mkdir(parents=True, exist_ok=True)
        if base == ROOT:  # version 2: a parent says what its children may limit
            for parent in (group.parents[1], group.parents[0]):
                (parent / "cgroup.subtree_control").write_text(f"+{field}")
        for name, text in _settings(field, limit, version2=base == ROOT).items():
            (group / name).write_text(text)
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
    except OSError as err:
        return f"{err.filename}: {err.strerror}"
    return ""


def _settings(field: str, limit: float, *, version2: bool) -> dict[str, str]:
    """Return file to text.

    >>> _settings("cpu", 1.5, version2=True), _settings("memory", 1024, version2=False)
    ({'cpu.max': '150000 100000'}, {'memory.limit_in_bytes': '1024'})
    """
    if field == "memory":
        return {"memory.max" if version2 else "memory.limit_in_bytes": str(int(limit))}
    quota = str(int(limit * PERIOD))
    if version2:
        return {"cpu.max": f"{quota} {PERIOD}"}
    return {"cpu.cfs_period_us": str(PERIOD), "cpu.cfs_quota_us": quota}


def _base(field: str) -> Path | None:
    """Return where groups of this controller are made: version 2's only tree, or version 1's own."""
    with suppress(OSError):
        # Not the root's `cgroup.controllers`: to enable one for the whole host is not ours to do.
        if field in (ROOT / "cgroup.subtree_control").read_text().split():
            return ROOT
    return path if (path := ROOT / field).is_dir() else None


def remove(lab: str) -> None:
    """Remove the lab's groups; its processes are gone."""
    for base in (ROOT, ROOT / "cpu", ROOT / "memory"):
        top = base / GROUP / lab
        for group in (*top.glob("*/"), top, top.parent):
            with suppress(OSError):  # not there, or another lab's are
                group.rmdir()
