"""Read the secrets that sessions are signed with, from this host's files and the agent's environment.

They are nowhere else: not in the datastore, not in a log, not in an answer on the socket.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from bgp.sessions import SECRET_BYTES, secret_place


def read(
    refs: Collection[tuple[str, str]],
    root: Path = Path("/"),
    environment: Mapping[str, str] = os.environ,
) -> dict[tuple[str, str], str]:
    """Return, by name and key, the secrets that there are: a file's, else a variable's.

    One that cannot be read, is empty, too long for the kernel, or would be outside its folder is left out.
    """
    found = {}
    for name, key in sorted(refs):
        file, variable = secret_place(name, key)
        text = _file(root / file.lstrip("/")) if _inside(name) and _inside(key) else ""
        secret = text or environment.get(variable, "")
        if _fits(secret):
            found[name, key] = secret
    return found


def _inside(part: str) -> bool:
    """Whether the path part is one name in its folder, and leads nowhere else."""
    return part not in ("", ".", "..") and "/" not in part and "\0" not in part


def _file(path: Path) -> str:
    try:
        if not path.is_file():  # nor wait for a pipe that nobody writes to
            return ""
        with path.open("rb") as file:
            return file.read(SECRET_BYTES + 2).decode().removesuffix("\n").removesuffix("\r")
    except (OSError, ValueError):
        return ""


def _fits(secret: str) -> bool:
    return bool(secret) and secret.isprintable() and len(secret.encode()) <= SECRET_BYTES
