"""A node's ipsets and rules, both in memory: the order of what is done, what a refusal leaves, what others undo."""

import errno
from dataclasses import replace
from ipaddress import ip_address
from itertools import permutations

import pytest

from fabric.agent.compose import Composed, compose
from fabric.agent.rules import Restore, Rules
from fabric.plan import ipsets
from fabric.plan.ipsets import Add, Create, Delete, Destroy
from fabric.plan.tables import VERSIONS, Counter, Place, Version
from policy.form import UDP, IPSet, Line, Rendered
from tests.fakes.conntrack import FakeConntrack
from tests.fakes.ipsets import FakeIPSets
from tests.fakes.tables import FakeTables
from tests.unit.test_agent_translation import NEW, NONE, OLD, led, ports

FORWARD, CHAIN = ("filter", "FORWARD"), ("filter", "fab-FORWARD")


def goal(*members: str, lines: tuple[str, ...] = ("-j DROP",), name: str = "s") -> Composed:
    """One chain a family, and in IPv4 a set that its first rule goes by."""

    def rendered(version: Version) -> Rendered:
        sets = {f"fab4-{name}": IPSet("hash:net", 4, frozenset(members))} if members and version == 4 else {}
        match = [Line(f"-m set --match-set fab4-{name} src -j ACCEPT")] if sets else []
        chain = (*match, *map(Line, lines))
        return Rendered(version, {CHAIN: chain}, {FORWARD: (Line("-j fab-FORWARD"),)}, {}, sets)

    return compose(map(rendered, VERSIONS))


NOTHING = compose(Rendered(version, {}, {}, {}, {}) for version in VERSIONS)
OPEN, ONE, TWO = goal(lines=("-j ACCEPT",)), goal("10.0.0.1"), goal("10.0.0.1", "10.0.0.2", lines=())
OTHER = goal("10.0.0.9", name="t")
GOALS = [OPEN, ONE, TWO, OTHER, NOTHING]


class Kernel:
    def __init__(self) -> None:
        self.sets, self.tables, self.conntrack = FakeIPSets(), FakeTables(), FakeConntrack()
        self.rules = Rules(self.sets, self.tables, self.conntrack)

    def is_at(self, goal: Composed) -> bool:
        held = {name: held.ipset for name, held in self.sets.sets.items()}
        return held == dict(goal.sets) and all(
            len(self.tables.rules[version].get(Place(*CHAIN), ()))
            == len(goal.rulesets[version].chains.get(Place(*CHAIN), ()))
            for version in VERSIONS
        )


@pytest.mark.parametrize("walk", list(permutations(GOALS, 3)))
async def test_the_kernel_depends_on_the_goal_not_on_the_walk(walk: tuple[Composed, ...]) -> None:
    kernel = Kernel()
    for desired in walk:
        _, refused = await kernel.rules.apply(desired, in_sync=True)
        assert not refused
        assert kernel.is_at(desired)
        await kernel.rules.read()  # so that it is planned anew
        assert await kernel.rules.apply(desired, in_sync=True) == ([], {})


REFUSED = ("fab4-s", "fab4-t", *range(2 * len(VERSIONS)))


@pytest.mark.parametrize("walk", list(permutations(GOALS, 3)))
@pytest.mark.parametrize("what", REFUSED)
async def test_whatever_is_refused_once_on_the_way_the_next_pass_is_at_its_goal(
    walk: tuple[Composed, ...], what: str | int
) -> None:
    kernel = Kernel()
    if isinstance(what, str):
        kernel.sets.refuse = {what: errno.ENOMEM}
    else:
        kernel.tables.refuse, kernel.tables.after = errno.EBUSY, what
    for desired in walk:
        _, refused = await kernel.rules.apply(desired, in_sync=True)
        if refused:
            assert not (await kernel.rules.apply(desired, in_sync=True))[1]
        assert kernel.is_at(desired)


async def test_what_is_in_force_already_is_not_written_again() -> None:
    before, after = Kernel(), Kernel()
    await before.rules.apply(ONE, in_sync=True)
    after.sets, after.tables = before.sets, before.tables
    after.rules = Rules(before.sets, before.tables)
    assert not after.rules.stands
    assert await after.rules.apply(ONE, in_sync=True) == ([], {})  # a restarted agent
    assert after.rules.stands


PUBLISHED = replace(ONE, publishing=ports(("udp", OLD)))


@pytest.mark.parametrize("refuse", [0, errno.EBUSY])
async def test_connections_that_were_led_elsewhere_are_forgotten_once_rules_stand(refuse: int) -> None:
    kernel = Kernel()
    await kernel.rules.apply(PUBLISHED, in_sync=True)
    gone, other = led(UDP, OLD, 5353), led(UDP, NEW, 5353, at=54)
    for flow in (gone, other):
        kernel.conntrack.insert(flow)
    kernel.tables.refuse = errno.EBUSY
    assert (await kernel.rules.apply(OTHER, in_sync=True))[1]
    assert gone.original in kernel.conntrack.entries
    kernel.conntrack.refuse = refuse
    for _ in range(2 if refuse else 1):
        assert not (await kernel.rules.apply(OTHER, in_sync=True))[1]
    assert kernel.conntrack.entries.keys() == {other.original}


async def test_a_restarted_agent_forgets_what_is_led_to_where_nothing_is_published_any_more() -> None:
    kernel = Kernel()
    gone, of_others = led(UDP, OLD, 5353), led(UDP, ip_address("172.17.0.2"), 5353, at=54)
    for flow in (gone, of_others):
        kernel.conntrack.insert(flow)
    after = replace(OTHER, publishing=NONE)
    assert not (await kernel.rules.apply(after, in_sync=False))[1]
    assert gone.original in kernel.conntrack.entries  # the rule may stand, and the datastore have it
    assert not (await kernel.rules.apply(after, in_sync=True))[1]
    assert kernel.conntrack.entries.keys() == {of_others.original}


async def test_sets_are_widened_before_the_rules_and_narrowed_after_them() -> None:
    kernel = Kernel()
    await kernel.rules.apply(goal("10.0.0.1", "10.0.0.3"), in_sync=True)
    done, _ = await kernel.rules.apply(goal("10.0.0.1", "10.0.0.2", lines=()), in_sync=True)
    assert [type(op) for op in done] == [Add, Restore, Restore, Delete]
    done, _ = await kernel.rules.apply(goal("10.0.0.9", name="t"), in_sync=True)
    assert [type(op) for op in done] == [Create, Restore, Restore, Destroy]


async def test_a_refused_restore_leaves_the_old_whole_and_is_tried_again() -> None:
    kernel = Kernel()
    await kernel.rules.apply(ONE, in_sync=True)
    kernel.tables.refuse = errno.EBUSY
    _, refused = await kernel.rules.apply(OTHER, in_sync=True)
    assert [op.version for op in refused if isinstance(op, Restore)] == [4]
    assert "fab4-s" in kernel.sets.sets  # a rule in force goes by it
    assert len(kernel.tables.rules[4][Place(*CHAIN)]) == 2
    assert not (await kernel.rules.apply(OTHER, in_sync=True))[1]
    assert kernel.is_at(OTHER)
    assert await kernel.rules.read() == ()  # our own doing is no gap


async def test_a_set_that_is_refused_is_made_by_the_next_pass() -> None:
    kernel = Kernel()
    kernel.sets.refuse = {"fab4-s": errno.ENOMEM}
    assert (await kernel.rules.apply(ONE, in_sync=True))[1]
    assert not (await kernel.rules.apply(ONE, in_sync=True))[1]
    assert kernel.is_at(ONE)


async def test_after_a_refusal_sets_are_read_before_they_are_planned_again() -> None:
    kernel = Kernel()
    await kernel.rules.apply(NOTHING, in_sync=True)
    await kernel.sets.create("fab4-s", ipsets.IPSet("hash:net", 4, frozenset({"10.0.0.9"})))
    _, refused = await kernel.rules.apply(ONE, in_sync=True)
    assert {err.code for err in refused.values()} == {errno.EEXIST}
    assert not (await kernel.rules.apply(ONE, in_sync=True))[1]
    assert kernel.is_at(ONE)


async def test_nothing_is_taken_away_before_the_datastore_is_in_sync() -> None:
    kernel = Kernel()
    await kernel.rules.apply(TWO, in_sync=True)
    await kernel.rules.apply(goal("10.0.0.1", lines=()), in_sync=False)
    await kernel.rules.apply(NOTHING, in_sync=False)
    assert kernel.is_at(TWO)
    await kernel.rules.apply(NOTHING, in_sync=True)
    assert kernel.is_at(NOTHING)


async def test_what_others_change_is_told_counted_and_put_back() -> None:
    kernel = Kernel()
    await kernel.rules.apply(TWO, in_sync=True)
    kernel.tables.others(4, "*filter\n:fab-FORWARD - [0:0]\nCOMMIT\n")
    kernel.sets.sets.pop("fab4-s")
    gaps = await kernel.rules.read({4}, sets=False)
    assert [(gap.part, gap.name) for gap in gaps] == [
        ("rules", "filter fab-FORWARD (IPv4)"),
        ("sets", "fab4-s"),  # nobody tells of sets: who changed rules may have changed those
    ]
    await kernel.rules.apply(TWO, in_sync=True)
    assert kernel.is_at(TWO)
    assert await kernel.rules.read() == ()
    assert dict(kernel.rules.gaps) == {"rules": 1, "sets": 1}


async def test_members_that_others_put_in_or_take_out_are_a_gap() -> None:
    kernel = Kernel()
    assert not await kernel.rules.sets_edited()  # nothing has been given yet
    await kernel.rules.apply(TWO, in_sync=True)
    assert not await kernel.rules.sets_edited()
    await kernel.sets.delete("fab4-s", ipsets.IPSet("hash:net", 4, frozenset({"10.0.0.1"})))
    assert await kernel.rules.sets_edited()
    [gap] = await kernel.rules.read()
    assert gap.what == "1 of 2 members are gone"
    await kernel.rules.apply(TWO, in_sync=True)
    await kernel.sets.add("fab4-s", ipsets.IPSet("hash:net", 4, frozenset({"10.0.0.7"})))
    [gap] = await kernel.rules.read()
    assert gap.what == "1 members of others"
    await kernel.rules.apply(TWO, in_sync=True)
    assert kernel.is_at(TWO)


async def test_counters_are_those_of_the_rules_that_are_desired() -> None:
    kernel = Kernel()
    await kernel.rules.apply(ONE, in_sync=True)
    kernel.tables.count(4, Place(*CHAIN), 1, Counter(3, 180))
    counted = await kernel.rules.counters(ONE)
    assert counted[4][Place(*CHAIN), 1] == Counter(3, 180)


async def test_another_backend_is_written_anew() -> None:
    kernel = Kernel()
    await kernel.rules.apply(ONE, in_sync=True)
    kernel.tables = FakeTables("legacy")
    kernel.rules.use(kernel.tables)
    assert not kernel.rules.stands
    await kernel.rules.apply(ONE, in_sync=True)
    assert kernel.is_at(ONE)
