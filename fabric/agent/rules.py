"""Bring this node's ipsets and packet filter to what is desired: what of a pass goes before links and routes.

    sets that only widen ─▶ one restore a family ─▶ sets that only narrow ─▶ connections that were led elsewhere

So policy stands before reachability, and no rule in force goes by a set that lacks what it needs. A family whose
restore is refused keeps its old rules whole, and nothing is narrowed then.

What the kernel holds is remembered between read-backs. One that finds something else has found a gap: somebody
changed what is ours.
"""

from __future__ import annotations

import asyncio
import collections
import errno
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import structlog

from fabric.agent.compose import Composed
from fabric.agent.translation import Publishing, astray, touched
from fabric.errors import DataplaneError
from fabric.plan import ipsets, tables
from fabric.plan.ipsets import IPSets
from fabric.plan.tables import VERSIONS, Counter, Place, Ruleset, Tables, Version
from policy.flows import Conntrack

log = structlog.get_logger()

Part: TypeAlias = Literal["rules", "sets"]
PARTS: Final[tuple[Part, ...]] = ("rules", "sets")


@dataclass(frozen=True, slots=True)
class Restore:
    """Write those chains of one family that are not as desired, all at once."""

    version: Version
    chains: tuple[Place, ...]


Op: TypeAlias = ipsets.Op | Restore


@dataclass(frozen=True, slots=True)
class Gap:
    """A chain or a set of ours that somebody else changed, and what was wrong with it."""

    part: Part
    name: str
    what: str


class Rules:
    """Owns the drivers of ipsets and tables; whoever calls it sees to it that no two calls overlap.

    It is `ready` once it has been told which backend to use, or that it has none. `stands` says that all of it has been
    in force once. In `conntrack` connections are forgotten that a change of published ports leads elsewhere.
    """

    def __init__(
        self, sets: IPSets, filters: Tables | None = None, conntrack: Conntrack | None = None
    ) -> None:
        self._driver, self._tables, self._conntrack = sets, filters, conntrack
        self._published: Publishing | None = None  # by which no connection goes astray
        self._lacks: DataplaneError | None = None
        self.ready = asyncio.Event()
        self.stands = False
        self._sets: Mapping[str, ipsets.Held] = {}
        self._held: dict[Version, tables.Held] = {}
        self._edited: dict[Version, AbstractSet[Place]] = {}
        self._right: dict[
            Version, tuple[Ruleset, bool]
        ] = {}  # what needed nothing more, and whether that was in sync
        self._known = False
        self._doubted = (
            False  # a change of sets was refused: it may be done in part, or somebody else's set be there
        )
        self._at: tuple[Composed, bool] | None = None  # what the kernel is known to have in full
        self.restores: collections.Counter[Version] = collections.Counter()
        self.gaps: collections.Counter[Part] = collections.Counter()
        if filters:
            self.ready.set()

    def use(self, filters: Tables) -> None:
        """Go over to another backend; what stands in the one before is not touched."""
        self._tables, self._at, self.stands = filters, None, False
        self._held, self._edited, self._right = {}, {}, {}
        self.ready.set()

    def lack(self, why: DataplaneError) -> None:
        """Have what is asked for refused: there is no backend that works."""
        self._lacks = why
        self.ready.set()

    @property
    def tables(self) -> Tables:
        """The backend in use.

        Raises:
            DataplaneError: there is none that works.
        """
        if self._tables is None:
            raise self._lacks or DataplaneError("rules", errno.EAGAIN, "no backend has been chosen yet")
        return self._tables

    @property
    def held(self) -> Mapping[str, ipsets.Held]:
        """This node's ipsets as last read or written."""
        return self._sets

    async def read(self, versions: Iterable[Version] = VERSIONS, *, sets: bool = True) -> tuple[Gap, ...]:
        """Read back, and return what others have changed since: nothing the first time.

        Nobody tells of changes of sets; who changed rules may have changed those too.
        """
        self._at = None
        found = [gap for version in versions for gap in await self._read_tables(version)]
        if sets or found:
            now = await self._driver.owned()
            found += _changed(self._sets, now) if self._known else []
            self._sets, self._known, self._doubted = now, True, False
        self.gaps.update(gap.part for gap in found)
        return tuple(found)

    async def sets_edited(self) -> bool:
        """Whether a set has more or fewer members than it was given: nobody tells of that, and looking costs little."""
        given = {name: len(held.ipset.members) for name, held in self._sets.items()}
        return self._known and await self._driver.sizes() != given

    async def apply(
        self, desired: Composed, *, in_sync: bool
    ) -> tuple[Sequence[Op], Mapping[Op, DataplaneError]]:
        """Plan and apply; return what was done, in order, and what was refused, with why."""
        # By identity: to compare all of it at each turn of a pass would take long.
        if self._at and self._at[0] is desired and self._at[1] == in_sync:
            return (), {}
        if not self._known:
            await self.read()
        elif self._doubted:
            self._sets, self._doubted = await self._driver.owned(), False
        plan = ipsets.plan(desired.sets, self._sets, in_sync=in_sync)
        done, refused = await self._change_sets(plan.before)
        for version, ruleset in desired.rulesets.items():
            op, why = await self._restore(version, ruleset, in_sync)
            if op and why:
                refused[op] = why
            elif op:
                done.append(op)
        if not any(isinstance(op, Restore) for op in refused):
            self.stands = True
            narrowed, left = await self._change_sets(plan.after)
            done, refused = done + narrowed, refused | left
            if in_sync:  # else what leads them there is not removed
                await self._forget(desired.publishing)
        unforgotten = in_sync and self._published is not desired.publishing
        self._at = None if refused or unforgotten else (desired, in_sync)
        return done, refused

    async def _forget(self, now: Publishing) -> None:
        """Once the rules stand: else a packet in between would begin again what is forgotten."""
        before = self._published
        try:
            if self._conntrack and (ends := touched(before, now)):
                flows = await self._conntrack.flows(ends, 0)
                gone = astray(before, now, flows)
                await self._conntrack.forget(gone)
                if gone:
                    log.info("connections of other published ports forgotten", count=len(gone))
            self._published = now
        except DataplaneError as err:
            log.warning("connections not forgotten yet that go by ports published before", error=str(err))

    async def counters(self, desired: Composed) -> Mapping[Version, Mapping[tuple[Place, int], Counter]]:
        """Return what the kernel has counted, for each rule that is in force as desired."""
        return {
            version: tables.counters(ruleset, await self.tables.read(version))
            for version, ruleset in desired.rulesets.items()
        }

    async def _change_sets(self, ops: Sequence[ipsets.Op]) -> tuple[list[Op], dict[Op, DataplaneError]]:
        refused = await ipsets.apply(ops, self._driver)
        done = [op for op in ops if op not in refused]
        self._sets = ipsets.done(self._sets, done)
        self._doubted |= bool(refused)
        return list[Op](done), dict[Op, DataplaneError](refused.items())

    async def _restore(
        self, version: Version, ruleset: Ruleset, in_sync: bool
    ) -> tuple[Restore | None, DataplaneError | None]:
        # By identity: an attach to a group that is there changes sets alone, and is not to compare every chain.
        right = self._right.get(version)
        if right and right[0] is ruleset and right[1] == in_sync:
            return None, None
        try:
            if version not in self._held:  # the last one was refused: what stands now is not known
                self._held[version] = await self.tables.read(version)
        except DataplaneError as err:
            return Restore(version, ()), err
        step = tables.plan(
            ruleset,
            self._held[version],
            in_sync=in_sync,
            distrust=self._edited.get(version, frozenset()),
        )
        if not step.text:
            self._right[version] = ruleset, in_sync
            return None, None
        op = Restore(version, step.changed)
        try:
            await self.tables.restore(version, step.text)
        except DataplaneError as err:
            del self._held[version]
            self._right.pop(version, None)
            return op, err
        self._held[version], self._edited[version] = step.held, frozenset()
        self._right[version] = ruleset, in_sync
        self.restores[version] += 1
        return op, None

    async def _read_tables(self, version: Version) -> Iterable[Gap]:
        before = self._held.pop(version, None)
        self._right.pop(version, None)
        try:
            self._held[version] = now = await self.tables.read(version)
        except DataplaneError:
            return ()  # asked for again, and told, where it is to be written
        edited = tables.edited(before, now) if before else {}
        self._edited[version] = self._edited.get(version, frozenset()) | edited.keys()
        return [
            Gap("rules", f"{place.table} {place.chain} (IPv{version})", what)
            for place, what in edited.items()
        ]


def _changed(before: Mapping[str, ipsets.Held], now: Mapping[str, ipsets.Held]) -> list[Gap]:
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old is None or new is None:
            found.append(Gap("sets", name, "is gone" if old else "was not there"))
        elif lost := len(old.ipset.members - new.ipset.members):
            found.append(Gap("sets", name, f"{lost} of {len(old.ipset.members)} members are gone"))
        elif more := len(new.ipset.members - old.ipset.members):
            found.append(Gap("sets", name, f"{more} members of others"))
    return found
