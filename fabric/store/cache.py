"""Touches this node's copy of the datastore: a journal on disk, which a node starts from while etcd is away.

    first line   {"version": 1, "node": …, "node_id": …, "etcd": […]}                   whose copy it is
    every other  [revision, [[key, mod_revision, value], …], [deleted key, …]]          one change

A listing writes it whole, under another name first; each change is appended; when it has doubled it is
written whole again. Nothing waits for the disk, so a crash of the host may cost the last lines: the copy is
then older, and a copy is never more than a start until etcd answers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fabric.config import NODE_ID, Config
from fabric.errors import ConfigError
from fabric.store.kv import Changes, KeyValue, Listing

VERSION = 1
SLACK = 1 << 16  # bytes that may be appended before doubling counts, so that a small copy is left in peace


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose copy it is: the node's name and identity, and the endpoints of the cluster it was read from."""

    node: str
    node_id: str
    etcd: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Copy:
    """The datastore as it was; `as_of`, seconds of the Unix epoch, is when that was last known to be true."""

    listing: Listing
    as_of: float


class Journal:
    """The one writer of the file at `path`. Its methods block: call them from a thread, one at a time."""

    def __init__(self, path: Path, origin: Origin) -> None:
        self._path, self.origin = path, origin
        self._whole = self._size = 0  # bytes: when last written whole, and now

    def read(self) -> Copy | None:
        """Return the copy, or None where there is none.

        A last line that was torn by a crash is left out.

        Raises:
            ConfigError: it is of another node or cluster, or cannot be read; it is of no use then.
        """
        try:
            with self._path.open(encoding="ascii") as file:
                as_of = os.fstat(file.fileno()).st_mtime
                self._check_origin(next(file, ""))
                listing = _folded(self._path, file)
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as err:
            raise ConfigError(f"{self._path}: {err}; it is not used") from err
        return Copy(listing, as_of) if listing.revision else None

    def begin(self, listing: Listing) -> None:
        """Write the file whole."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with open(fresh, "x", encoding="ascii", opener=_for_root_alone) as file:
            file.write(json.dumps({"version": VERSION, **asdict(self.origin)}) + "\n")
            file.writelines(_line(listing.revision, [item], ()) for item in listing.items)
            file.write(_line(listing.revision, (), ()))
            file.flush()
            os.fsync(file.fileno())  # or the rename could reach the disk before what it names
            self._whole = self._size = file.tell()
        fresh.replace(self._path)

    def append(self, changes: Sequence[Changes]) -> None:
        """Add `changes`, in order; the file must have been begun. None at all renews the time alone."""
        with self._path.open("a", encoding="ascii") as file:
            file.writelines(_line(c.revision, c.puts, c.deletes) for c in changes)
            self._size = file.tell()
        os.utime(self._path)
        if self._size > 2 * self._whole + SLACK and (copy := self.read()):
            self.begin(copy.listing)

    def remove(self) -> None:
        """Take the file away, if there is one."""
        self._path.unlink(missing_ok=True)

    def _check_origin(self, line: str) -> None:
        try:
            found = json.loads(line)
            version, node, node_id = found["version"], found["node"], found["node_id"]
            etcd = set(found["etcd"])
        except (ValueError, TypeError, KeyError) as err:
            raise ConfigError(f"{self._path}:1: not the first line of a journal; it is not used") from err
        mine = self.origin
        if version != VERSION:
            raise ConfigError(f"{self._path}:1: version {version}, not {VERSION}; it is not used")
        if (node, node_id) != (mine.node, mine.node_id):
            raise ConfigError(
                f'{self._path}:1: of node "{node}" ({node_id}), not of this one; it is not used'
            )
        if not etcd & set(mine.etcd):
            raise ConfigError(
                f"{self._path}:1: read from etcd at {', '.join(sorted(map(str, etcd)))}, of which the configuration "
                "names none; it is not used"
            )


def own(path: Path, config: Config) -> Journal:
    """Return this host's journal."""
    node_id = NODE_ID.read_text(encoding="utf-8").strip() if NODE_ID.exists() else ""
    return Journal(path, Origin(config.node, node_id, config.etcd))


def _for_root_alone(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _line(revision: int, puts: Iterable[KeyValue], deletes: Iterable[str]) -> str:
    # ASCII: what was no UTF-8 in etcd is a lone surrogate here, which JSON escapes and gives back.
    document = [revision, [[item.key, item.revision, item.value] for item in puts], list(deletes)]
    return json.dumps(document, separators=(",", ":")) + "\n"


def _folded(path: Path, lines: Iterator[str]) -> Listing:
    """Return what the changes in `lines` add up to."""
    items: dict[str, KeyValue] = {}
    revision = 0
    for number, line in enumerate(lines, start=2):
        try:
            at, puts, deletes = json.loads(line)
            found = {str(key): KeyValue(str(key), str(value), int(mod)) for key, mod, value in puts}
            gone, at = [str(key) for key in deletes], int(at)
        except (ValueError, TypeError) as err:
            if next(lines, None) is None:
                break
            raise ConfigError(f"{path}:{number}: not a change as JSON: {err}; it is not used") from err
        revision = at
        items |= found
        for key in gone:
            items.pop(key, None)
    return Listing(revision, tuple(items[key] for key in sorted(items)))
