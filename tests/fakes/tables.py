"""A packet filter in memory that reads restore texts as iptables-restore does."""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import AsyncIterator

from fabric.errors import DataplaneError
from fabric.plan.tables import MARK, VERSIONS, ZERO, Backend, Chain, Counter, Held, Place, Version

BUILT_IN = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}
_MARK = re.compile(rf'--comment "{MARK}([0-9a-f]{{16}})"')
_WRITTEN = re.compile(rf"-m comment --comment ({MARK}\S+)")
_QUOTED = re.compile(r'"[^"]*"')
_JUMP = re.compile(r"-[jg] ([A-Za-z]+-\S+)")


class FakeTables:
    """Behaves like iptables, refusals included; it does not record calls.

    `rules` are each family's, by chain; `count` counts packets on a rule; `refuse` is the errno of the next restore,
    spent on it, or the number of restores that go through before one that is refused. `others` does what somebody else
    would: a restore that `changes` tells.
    """

    def __init__(self, backend: Backend = "nft", refuse: int = 0, after: int = 0) -> None:
        self.backend: Backend = backend
        self.rules: dict[Version, dict[Place, list[str]]] = {version: {} for version in VERSIONS}
        self.counts: dict[tuple[Version, Place, str], Counter] = {}
        self.refuse, self.after = refuse, after
        self._told: asyncio.Queue[Version] = asyncio.Queue()

    async def read(self, version: Version) -> Held:
        chains, jumps = {}, set()
        for place, lines in self.rules[version].items():
            marks = tuple(found[1] if (found := _MARK.search(line)) else "" for line in lines)
            if not place.is_ours:
                foreign = [line for line, mark in zip(lines, marks, strict=True) if not mark]
                targets = (Place(place.table, _target(line)) for line in foreign)
                jumps |= {target for target in targets if target.is_ours}
            if place.is_ours or place.chain in BUILT_IN[place.table] or any(marks):
                counters = (self.counts.get((version, place, line), ZERO) for line in lines)
                texts = (line if mark else "" for line, mark in zip(lines, marks, strict=True))
                chains[place] = Chain(marks, tuple(counters), tuple(texts))
        return Held(chains, frozenset(jumps))

    async def restore(self, version: Version, text: str) -> None:
        if self.refuse and not self.after:
            code, self.refuse = self.refuse, 0
            raise DataplaneError("restore", code, "refused, as asked for")
        self.after = max(self.after - 1, 0)
        self._restore(version, text)

    def others(self, version: Version, text: str) -> None:
        self._restore(version, text)
        self._told.put_nowait(version)

    def count(self, version: Version, place: Place, index: int, counter: Counter) -> None:
        self.counts[version, place, self.rules[version][place][index]] = counter

    async def changes(self) -> AsyncIterator[frozenset[Version]]:
        while True:
            yield frozenset({await self._told.get()})

    def _restore(self, version: Version, text: str) -> None:
        """Each table as a whole; a refusal leaves the tables before it as they are then."""
        table, work, emptied = "", dict[Place, list[str]](), set[tuple[Version, Place, str]]()
        for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
            if line.startswith("*"):
                table = line[1:]
                work = {place: [*lines] for place, lines in self.rules[version].items()}
                for name in BUILT_IN[table]:
                    work.setdefault(Place(table, name), [])
            elif line == "COMMIT":
                kept = {(version, place, line) for place, lines in work.items() for line in lines} - emptied
                self.counts = {at: n for at, n in self.counts.items() if at[0] != version or at in kept}
                self.rules[version] = work
            elif line[0] == ":":
                place = Place(table, line[1:].split()[0])
                emptied |= {(version, place, rule) for rule in work.get(place, ())}
                work[place] = []
            elif why := _do(work, table, line):
                raise DataplaneError(f"restore of table {table}, line {number} `{line}`", errno.EINVAL, why)


def _do(work: dict[Place, list[str]], table: str, line: str) -> str:
    """Do what one line says; return why it cannot be done."""
    command, _, rest = line.partition(" ")
    name, _, rule = _WRITTEN.sub(r'-m comment --comment "\1"', rest).partition(" ")  # it is shown in quotes
    place = Place(table, name)
    if (lines := work.get(place)) is None:
        return f"no {place}"
    if command == "-F":
        lines.clear()
    elif command == "-X":
        users = {where.chain for where, has in work.items() if where.table == table and _jumps(has, name)}
        if lines or users:
            return f"{place} is not empty, or in use by {users}"
        del work[place]
    elif command == "-D":
        if rule not in lines:
            return "no such rule"
        lines.remove(rule)
    else:
        if (target := _target(rule)) and Place(table, target) not in work:
            return f"no chain {target}"
        if command == "-I":
            number, _, rule = rule.partition(" ")
            lines.insert(int(number) - 1, rule)
        else:
            lines.append(rule)
    return ""


def _jumps(rules: list[str], chain: str) -> bool:
    return any(_target(rule) == chain for rule in rules)


def _target(rule: str) -> str:
    """The chain that a rule leads to, "" where it is a target of the kernel's."""
    found = _JUMP.search(_QUOTED.sub("", rule))
    return found[1] if found else ""
