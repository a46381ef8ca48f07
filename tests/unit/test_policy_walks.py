"""From a dozen states of policy to each other, over fakes of ipsets and tables: what is held depends on the goal alone.

Then the same with every call refused once: half-way nothing stands that goes by what is not there, and the next pass
gets there.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path

import pytest

from fabric.agent.compose import Composed, compose
from fabric.agent.rules import Op, Rules
from fabric.errors import DataplaneError
from fabric.plan import ipsets, tables
from fabric.plan.tables import MARK, VERSIONS, Place, Version
from policy.form import Site
from policy.render import render
from policy.world import World
from tests.fakes.ipsets import FakeIPSets
from tests.fakes.tables import FakeTables
from tests.unit.rendering import SITE, site, world

GOLDEN = Path(__file__).parent / "golden" / "policy"
BASE = ("base",)
MASK = 0x0000FF00
STATES: dict[str, tuple[World, Site]] = {
    name: (world(*((GOLDEN / f"{file}.yaml").read_text() for file in files)), of)
    for name, files, of in (
        ("nothing", ("nothing",), SITE),
        ("nothing routed", ("nothing",), site(routed_before=False)),
        ("workloads", ("workloads",), SITE),
        ("other marks", ("workloads",), site(mark_mask=MASK)),
        ("no spoofing", ("workloads",), site(spoofing=False)),
        ("base", BASE, SITE),
        ("base open", BASE, site(to_host="Accept", drop_invalid=False, failsafe_in=())),
        ("rules", (*BASE, "rules"), SITE),
        ("tiers", (*BASE, "tiers"), SITE),
        ("logging", (*BASE, "logging"), SITE),
        ("namespace log", (*BASE, "namespace-log"), SITE),
        ("hosts", (*BASE, "hosts"), SITE),
        ("host alone", (*BASE, "host-alone"), SITE),
    )
}
_MARK = re.compile(rf'-m comment --comment "?{MARK}[0-9a-f]+"?')
PAIRS = list(permutations(STATES, 2))
FRESH = {name: [render(*STATES[name], version) for version in VERSIONS] for name in STATES}
GOALS = {name: compose(rendered) for name, rendered in FRESH.items()}


class Filters(FakeTables):
    """As a kernel does, refuses rules that go by an ipset that is not there, and keeps those that are in use."""

    def __init__(self, sets: FakeIPSets) -> None:
        super().__init__()
        self.sets = sets

    async def restore(self, version: Version, text: str) -> None:
        if missing := _sets_in(text) - self.sets.sets.keys():
            raise DataplaneError("restore", errno.ENOENT, f"no ipset {missing}")
        await super().restore(version, text)
        chains = (lines for rules in self.rules.values() for lines in rules.values())
        self.sets.in_use = _sets_in("\n".join(line for lines in chains for line in lines))


def _sets_in(text: str) -> set[str]:
    return set(re.findall(r"--match-set (\S+)", text))


class Kernel:
    """What a node holds, and the agent's memory of it."""

    def __init__(self) -> None:
        self.sets = FakeIPSets()
        self.tables = Filters(self.sets)
        self.rules = Rules(self.sets, self.tables)

    def again(self) -> Kernel:
        """Return another that holds the same, with an agent that has just started."""
        kernel = Kernel()
        kernel.sets.sets, kernel.sets.in_use = dict(self.sets.sets), set(self.sets.in_use)
        for version, rules in self.tables.rules.items():
            kernel.tables.rules[version] = {place: [*lines] for place, lines in rules.items()}
        return kernel

    async def goes_to(self, goal: Composed) -> Mapping[Op, DataplaneError]:
        """Make a pass, and return what was refused."""
        return (await self.rules.apply(goal, in_sync=True))[1]

    def is_at(self, goal: Composed) -> bool:
        if {name: held.ipset for name, held in self.sets.sets.items()} != goal.sets:
            return False
        return all(self.family(version) == family_of(goal, version) for version in VERSIONS)

    def family(self, version: Version) -> dict[Place, list[str]]:
        """Return the rules of one family, without our marks."""
        rules = self.tables.rules[version].items()
        return {place: [_MARK.sub("", line).strip() for line in lines] for place, lines in rules if lines}


def family_of(goal: Composed, version: Version) -> dict[Place, list[str]]:
    ruleset = goal.rulesets[version]
    hooks = {
        place: ruleset.first.get(place, ()) + ruleset.last.get(place, ()) for place in goal.hooks[version]
    }
    return {place: list(lines) for place, lines in {**ruleset.chains, **hooks}.items() if lines}


def test_what_is_rendered_does_not_depend_on_what_was_before() -> None:
    rendered, composed = FRESH["nothing"], GOALS["nothing"]
    for pair in PAIRS:
        for name in pair:
            rendered = [
                render(*STATES[name], version, was) for version, was in zip(VERSIONS, rendered, strict=True)
            ]
            composed = compose(rendered, composed)
            assert rendered == FRESH[name]
            assert composed == GOALS[name]


@pytest.mark.parametrize("start", STATES)
async def test_what_is_held_depends_on_the_state_and_not_on_the_walk(start: str) -> None:
    standing = Kernel()
    await standing.goes_to(GOALS[start])
    for walk in permutations(STATES.keys() - {start}, 2):
        kernel = standing.again()
        for name in walk:
            assert not await kernel.goes_to(GOALS[name])
        goal = GOALS[walk[-1]]
        assert kernel.is_at(goal)
        assert ipsets.plan(goal.sets, await kernel.sets.owned()) == ipsets.Plan()
        for version in VERSIONS:
            assert tables.plan(goal.rulesets[version], await kernel.tables.read(version)).text == ""


@pytest.mark.parametrize("start", STATES)
async def test_a_call_that_is_refused_opens_nothing_and_is_made_by_the_next_pass(start: str) -> None:
    standing, before = Kernel(), GOALS[start]
    await standing.goes_to(before)
    for after in (GOALS[name] for name in STATES if name != start):
        for call in calls(before, after):
            kernel = standing.again()
            if isinstance(call, str):
                kernel.sets.refuse = {call: errno.ENOMEM}
            else:
                kernel.tables.refuse, kernel.tables.after = errno.EBUSY, call
            assert await kernel.goes_to(after)
            for version in VERSIONS:
                assert kernel.family(version) in (family_of(before, version), family_of(after, version))
            assert not await kernel.goes_to(after)
            assert kernel.is_at(after)


def calls(before: Composed, after: Composed) -> list[str | int]:
    """Return the ipsets that change between the two, by name, and the restores, by number."""
    plan = ipsets.plan(after.sets, {name: ipsets.Held(ipset, None) for name, ipset in before.sets.items()})
    names = {op.name for op in (*plan.before, *plan.after)}
    written = [version for version in VERSIONS if family_of(before, version) != family_of(after, version)]
    return [*sorted(names), *range(len(written))]
