"""Touches the packet filter's tables: iptables, on nft or legacy, by its restore and its save; native nft only reads.

Both backends are written by a restore: python-iptables needs twenty times as long for a legacy table. It reads those
(fabric.kernel.tables_legacy). They are read only where the kernel has one loaded: asking for a table would make it.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import which
from typing import Any, Final, TypeAlias

from fabric.errors import DataplaneError
from fabric.kernel.tables_watch import Watch
from fabric.kernel.threads import in_thread
from fabric.plan.tables import MARKED, PREFIX, VERSIONS, ZERO, Backend, Chain, Counter, Held, Place, Version

# One entry of `nft -j list ruleset`: {"chain": {...}} or {"rule": {...}} (libnftables-json(5)).
NftEntry: TypeAlias = Mapping[str, Any]

BACKENDS: Final[tuple[Backend, Backend]] = ("nft", "legacy")
LOCK = 10  # seconds that a writer of legacy tables waits for the xtables lock
POLL = 7.0  # seconds between looks at legacy tables, of whose changes nobody tells

_FAMILIES: Final[Mapping[Version, tuple[str, str]]] = {
    4: ("ip_tables_names", "iptables"),
    6: ("ip6_tables_names", "ip6tables"),
}
_RULE = re.compile(r"\[(\d+):(\d+)\] -A (\S+) ?(.*)")
_JUMP = re.compile(rf"-[jg] ({PREFIX}\S+)")
_TOOL = re.compile(r"^ip6?tables[^:]*:")
_LINE = re.compile(r"line:? (\d+)")
_NO_CHAIN = re.compile(r"Chain '(\S+)' does not exist")
_CODES = {os.strerror(code): code for code in errno.errorcode}


class KernelTables:
    """The tables of one backend, in the network namespace of the thread that asks.

    `patience` is how many seconds another writer of legacy tables may hold their lock.
    """

    def __init__(self, backend: Backend, patience: int = LOCK) -> None:
        self.backend: Backend = backend
        self._patience = str(patience)
        self._writers: deque[int] = deque(maxlen=64)  # pids of our last restores
        self._hooks: dict[str, str] = {}  # what `legacy.read` learned of our rules in others' chains

    async def read(self, version: Version) -> Held:
        """Return what is held, with counters; nothing is made by looking.

        Raises:
            DataplaneError: the kernel, or the tool, refused.
        """
        return await in_thread(partial(self._read, version))

    async def restore(self, version: Version, text: str) -> None:
        """Do what `text` says, each table whole or not at all, whatever others write meanwhile.

        Raises:
            DataplaneError: with the line that was refused.
        """
        await in_thread(partial(self._restore, version, text))

    async def changes(self) -> AsyncIterator[frozenset[Version]]:
        """Yield the families in which somebody else may have touched what is ours, without end."""
        if self.backend == "nft":
            with Watch(self._writers) as watch:
                async for versions in watch.changes():
                    yield versions
        while True:
            await asyncio.sleep(POLL)
            yield frozenset(VERSIONS)

    def _read(self, version: Version) -> Held:
        names, tool = _FAMILIES[version]
        if self.backend == "nft":
            return held(_run(f"{tool}-nft-save", "-c", what=f"read the tables of {tool}-nft"))
        if not (tables := _loaded(names)):
            return Held()
        from fabric.kernel import tables_legacy

        return tables_legacy.read(version, tables, self._hooks)

    def _restore(self, version: Version, text: str) -> None:
        tool = f"{_FAMILIES[version][1]}-{self.backend}-restore"
        # One that waits for the lock must not outlive us, and write then what is wanted no more.
        before = ("setpriv", "--pdeathsig", "KILL") if self.backend == "legacy" else ()
        with _started(tool, "-w", self._patience, "--noflush", before=before) as process:
            self._writers.append(process.pid)  # before it has read anything: what it changes is told as ours
            _, said = process.communicate(text)
        if process.returncode:
            raise _refusal(tool, text, said, process.returncode)


def held(saved: str) -> Held:
    """Read out of what `iptables-save -c` prints what `fabric.plan.tables` has to know of it."""
    table = ""
    chains: dict[Place, tuple[list[str], list[Counter], list[str]]] = {}
    built_in, jumps = set(), set()
    for line in saved.split("\n"):  # comments may have what str.splitlines takes for an end
        match line[:1]:
            case "*":
                table = line[1:]
            case ":":
                name, policy, *_ = line[1:].split()
                chains[place := Place(table, name)] = [], [], []
                if policy != "-":
                    built_in.add(place)
            case "[" if found := _RULE.match(line):
                packets, octets, name, text = found.groups()
                place = Place(table, name)
                marks, counters, texts = chains[place]
                mark = MARKED.search(text)
                marks.append(mark[1] if mark else "")
                counters.append(Counter(int(packets), int(octets)) if mark else ZERO)
                texts.append(text if mark else "")
                if not mark and not place.is_ours and (jump := _JUMP.search(text)):
                    jumps.add(Place(table, jump[1]))
    return Held(
        {
            place: Chain(tuple(marks), tuple(counters), tuple(texts))
            for place, (marks, counters, texts) in chains.items()
            if place.is_ours or place in built_in or any(marks)
        },
        frozenset(jumps),
    )


def _started(tool: str, *words: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    environment = {**os.environ, "LC_ALL": "C"}
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(
            [*(before if which(tool) else ()), tool, *words],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=environment,
            encoding="utf-8",
            errors="surrogateescape",  # a comment is bytes
        )
    except OSError as err:
        hint = "nothing was changed; install iptables, or set another backend"
        raise DataplaneError(f"run {tool}", err.errno or errno.ENOENT, hint) from err


def _run(tool: str, *words: str, what: str) -> str:
    """Return what the tool prints, which is all it was asked for, or raise."""
    with _started(tool, *words) as process:
        printed, said = process.communicate()
    reason = "; ".join(line for line in said.splitlines() if line and not line.startswith("#"))
    if process.returncode:
        reason = reason or f"it ended with {process.returncode}"
    elif f"\n{printed}".count("\n*") != printed.count("\nCOMMIT"):
        reason = reason or "it printed half of it"
    # It has been seen to end with 0 after an error: what it says counts as well.
    if reason:
        raise DataplaneError(what, _code(reason, process.returncode), f"{reason}; nothing was changed")
    return printed


def _refusal(tool: str, text: str, said: str, status: int) -> DataplaneError:
    """Say which line was refused, and why; restore itself says it in five ways."""
    lines = text.splitlines()
    parts = [_TOOL.sub("", line).strip() for line in said.splitlines()]
    reason = "; ".join(part for part in parts if part and not part.startswith(("Try ", "Error occurred")))
    reason = reason or f"it ended with {status}"
    number = int(found[-1]) if (found := _LINE.findall(said)) else 0
    if missing := _NO_CHAIN.search(said):  # of which nft hears with the COMMIT
        ends = re.compile(rf" -[jg] {re.escape(missing[1])}( |$)")
        number = next((at for at, line in enumerate(lines, 1) if ends.search(line)), number)
    named = lines[number - 1] if 0 < number <= len(lines) else ""
    tables = [line[1:] for line in lines[: number or None] if line.startswith("*")] or ["?"]
    what = f"{tool} of table {tables[-1]}" + (f", line {number} `{named}`" if named else "")
    state = f"table {tables[-1]} is as it was; the next pass reads it and tries again"
    return DataplaneError(what, _code(reason, status), f"{reason}; {state}")


def _code(reason: str, status: int) -> int:
    """The errno behind what a tool says; 4 is its status where the kernel or the lock was not to be had."""
    named = next((code for text, code in _CODES.items() if f"({text}" in reason), 0)
    return named or (errno.EBUSY if status == 4 else errno.EINVAL)


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
    for version in VERSIONS:
        for backend in BACKENDS:
            if text := saved_text(backend, version):
                yield Saved(backend, version, text)


def saved_text(backend: Backend, version: Version) -> str:
    """Return what iptables-save of one backend prints, "" where it has nothing."""
    names, tool = _FAMILIES[version]
    if backend == "legacy" and not _loaded(names):
        return ""
    return _output(f"{tool}-{backend}-save").strip()


def _loaded(names: str) -> tuple[str, ...]:
    """The legacy tables that the kernel has made in this namespace."""
    try:
        return tuple(Path("/proc/thread-self/net", names).read_text().split())
    except FileNotFoundError:
        return ()


def _native() -> tuple[NftEntry, ...]:
    text = _output("nft", "-j", "list", "ruleset")
    return tuple(json.loads(text)["nftables"]) if text.strip() else ()


def _output(tool: str, *words: str) -> str:
    """Return what the tool prints; "" where it is not installed, or the kernel lacks what it reads."""
    if not which(tool):
        return ""
    done = subprocess.run(
        [tool, *words], capture_output=True, check=False, encoding="utf-8", errors="surrogateescape"
    )
    return done.stdout if done.returncode == 0 else ""
