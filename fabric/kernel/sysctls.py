"""Touches the host's global sysctls: what each one was is on disk before it is changed, so it can go back.

The record is one JSON file: {"net.ipv4.ip_forward": {"before": "0", "set": "1"}}. The sysctls of a
workload's link are not recorded: they go with the link. A name may have slashes for its dots, as with sysctl(8):
that of a VLAN's link has a dot itself.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeAlias

from fabric.errors import DataplaneError
from fabric.kernel.threads import in_thread

Record: TypeAlias = dict[str, dict[str, str]]


async def set_recorded(wanted: Mapping[str, str], record: Path) -> None:
    """Set each sysctl ("net.ipv4.ip_forward") that differs; the first value ever found is the one recorded.

    Raises:
        DataplaneError: one could not be read or written; those before it are set, and recorded.
    """
    await in_thread(partial(_set_recorded, dict(wanted), record))


async def before(names: Iterable[str], record: Path) -> dict[str, str]:
    """Return what each sysctl was before we changed it, or is where we have not; "" where there is none."""
    return await in_thread(partial(_before, tuple(names), record))


async def recorded(record: Path) -> frozenset[str]:
    """Return the names of the sysctls that we have changed."""
    return frozenset(await in_thread(partial(_load, record)))


async def restore(record: Path) -> list[str]:
    """Put the recorded values back, remove the record, and return the names of those put back.

    One that no longer has the value we gave it was changed by somebody since, and is left alone.
    """
    return await in_thread(partial(_restore, record))


def _set_recorded(wanted: dict[str, str], record: Path) -> None:
    known = _load(record)
    for name, value in wanted.items():
        before = _read(name)
        if before == value:
            continue
        known[name] = {"before": known.get(name, {"before": before})["before"], "set": value}
        _save(record, known)
        _write(name, value)


def _before(names: tuple[str, ...], record: Path) -> dict[str, str]:
    known = _load(record)
    return {name: known[name]["before"] if name in known else _read_or_none(name) for name in names}


def _restore(record: Path) -> list[str]:
    known = _load(record)
    left = [name for name in known if _path(name).parent.exists()]  # what is of a link goes with it
    ours = [name for name in left if _read(name) == known[name]["set"]]
    for name in ours:
        _write(name, known[name]["before"])
    record.unlink(missing_ok=True)
    return ours


def _load(record: Path) -> Record:
    try:
        known: Record = json.loads(record.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as err:
        hint = "it is not what was written there, and no sysctl was changed; once they are as you want them, remove it"
        raise DataplaneError(f"read {record}", errno.EINVAL, hint) from err
    return known


def _save(record: Path, known: Record) -> None:
    fresh = record.with_suffix(".new")
    with fresh.open("w") as file:
        json.dump(known, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(record)


def _path(name: str) -> Path:
    return Path("/proc/sys", *name.split("/" if "/" in name else "."))


def _read(name: str) -> str:
    try:
        return _path(name).read_text().strip()
    except OSError as err:
        raise DataplaneError(f"read sysctl {name}", err.errno or errno.EIO, "it was not changed") from err


def _read_or_none(name: str) -> str:
    return _read(name) if _path(name).exists() else ""


def _write(name: str, value: str) -> None:
    try:
        _path(name).write_text(value)
    except OSError as err:
        hint = "it kept its value; fabricctl needs to run as root"
        raise DataplaneError(f"set sysctl {name} to {value}", err.errno or errno.EIO, hint) from err
