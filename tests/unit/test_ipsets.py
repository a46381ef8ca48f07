"""What is decided about ipsets, as tables; and that the goal alone decides how it ends."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping
from itertools import permutations

import pytest

from fabric.plan.ipsets import (
    LARGE,
    PREFIXES,
    ROOM,
    Add,
    Create,
    Delete,
    Destroy,
    Held,
    IPSet,
    Kind,
    Plan,
    Rewrite,
    Version,
    apply,
    done,
    hashsize,
    plan,
    room,
)
from tests.fakes.ipsets import FakeIPSets


def of(*members: str, kind: Kind = "hash:net", version: Version = 4) -> IPSet:
    return IPSet(kind, version, frozenset(members))


def hosts(first: int, count: int) -> IPSet:
    return of(*(f"10.{number >> 8}.{number & 255}.1" for number in range(first, first + count)))


def held(**sets: IPSet) -> dict[str, Held]:
    return {name: Held(ipset, room(len(ipset.members))) for name, ipset in sets.items()}


A, B = of("10.0.0.1"), of("10.0.0.1", "10.0.1.0/24")
MANY, MORE = hosts(0, LARGE + 1), hosts(0, 2 * LARGE + 2)


@pytest.mark.parametrize(
    ("desired", "actual", "want"),
    [
        pytest.param({"a": A}, held(a=A), Plan(), id="nothing to do"),
        pytest.param({"a": A}, {}, Plan((Create("a", A),)), id="new"),
        pytest.param({"a": of()}, {}, Plan((Create("a", of()),)), id="new and empty"),
        pytest.param({}, held(a=A), Plan((), (Destroy("a"),)), id="gone: destroyed after the rules"),
        pytest.param({"a": B}, held(a=A), Plan((Add("a", of("10.0.1.0/24")),)), id="a member more"),
        pytest.param({"a": A}, held(a=B), Plan((), (Delete("a", of("10.0.1.0/24")),)), id="a member less"),
        pytest.param(
            {"a": A},
            held(a=of("10.9.9.9")),
            Plan((Add("a", A),), (Delete("a", of("10.9.9.9")),)),
            id="another member: in before, out after",
        ),
        pytest.param(
            {"a": of("fd00::1", version=6)},
            held(a=A),
            Plan((Destroy("a"), Create("a", of("fd00::1", version=6)))),
            id="another family",
        ),
        pytest.param(
            {"a": of("0.0.0.0/0", "10.0.0.1")},
            held(a=A),
            Plan((Add("a", of("0.0.0.0/1", "128.0.0.0/1")),)),
            id="everything is two halves",
        ),
        pytest.param(
            {"a": of("::/0", version=6)},
            held(a=of("::/1", "8000::/1", version=6)),
            Plan(),
            id="everything of IPv6 is there",
        ),
        pytest.param(
            {"a": of("0.0.0.0/0,fab1", kind="hash:net,iface")},
            {},
            Plan((Create("a", of("0.0.0.0/0,fab1", kind="hash:net,iface")),)),
            id="with a link everything may be one",
        ),
        pytest.param({"a": MANY}, held(a=of()), Plan((Rewrite("a", MANY),)), id="grows much: anew"),
        pytest.param({"a": of()}, held(a=MANY), Plan((), (Rewrite("a", of()),)), id="shrinks much: anew"),
        pytest.param({"a": MORE}, held(a=MANY), Plan((Rewrite("a", MORE),)), id="doubles: anew"),
        pytest.param(
            {"a": hosts(0, 3 * LARGE)},
            held(a=hosts(0, 2 * LARGE)),
            Plan((Add("a", hosts(2 * LARGE, LARGE)),)),
            id="grows by much, but not by most",
        ),
        pytest.param(
            {"a": hosts(LARGE + 1, LARGE + 1)},
            held(a=MANY),
            Plan((Rewrite("a", MORE),), (Rewrite("a", hosts(LARGE + 1, LARGE + 1)),)),
            id="all others: both at first",
        ),
        pytest.param({"a": B}, {"a": Held(A, 2)}, Plan((Rewrite("a", B),)), id="no room: in a larger one"),
        pytest.param({"a": B}, {"a": Held(A, 4)}, Plan((Add("a", of("10.0.1.0/24")),)), id="just room"),
        pytest.param(
            {"a": of("80", "443", kind="bitmap:port")},
            {"a": Held(of("80", kind="bitmap:port"), None)},
            Plan((Add("a", of("443", kind="bitmap:port")),)),
            id="a bitmap has room for all",
        ),
    ],
)
def test_plan(desired: Mapping[str, IPSet], actual: Mapping[str, Held], want: Plan) -> None:
    assert plan(desired, actual) == want


def test_nothing_is_taken_away_before_the_datastore_is_in_sync() -> None:
    found = plan({"a": A, "c": B}, held(a=B, b=B, c=A), in_sync=False)
    assert found == Plan((Add("c", of("10.0.1.0/24")),))


@pytest.mark.parametrize("count", [0, 1, 255, 256, 10_000, ROOM // 2, ROOM, 5 * ROOM])
def test_a_new_set_has_room_for_twice_its_members_and_a_hash_of_their_size(count: int) -> None:
    assert room(count) >= max(2 * count, ROOM)
    assert max(64, count / 4) <= hashsize(count) <= max(64, count / 2)
    assert plan({"a": of()}, {"a": Held(of(), room(count))}) == Plan()


GOALS: tuple[dict[str, IPSet], ...] = (
    {},
    {"fab4-a": A},
    {"fab4-a": B, "fab4-b": of("10.0.0.1,tcp:80", kind="hash:ip,port")},
    {"fab4-a": MANY, "fab6-a": of("fd00::/64", version=6)},
    {"fab4-a": hosts(LARGE, LARGE + 7), "fab4-b": of("10.0.0.1,fab1", kind="hash:net,iface")},
)
WALKS = list(permutations(GOALS, 3))


@pytest.mark.parametrize("walk", WALKS)
async def test_the_sets_depend_on_the_goal_not_on_the_walk(walk: tuple[dict[str, IPSet], ...]) -> None:
    sets = FakeIPSets()
    for goal in walk:
        before = sets.sets
        ops = plan(goal, before)
        assert not await apply((*ops.before, *ops.after), sets)
        assert {name: one.ipset for name, one in sets.sets.items()} == goal
        assert sets.sets == done(before, (*ops.before, *ops.after))
        assert plan(goal, sets.sets) == Plan()


@pytest.mark.parametrize("walk", WALKS)
async def test_no_member_that_stays_is_ever_out(walk: tuple[dict[str, IPSet], ...]) -> None:
    sets = FakeIPSets()
    for goal in walk:
        old = {name: one.ipset for name, one in sets.sets.items()}
        ops = plan(goal, sets.sets)
        assert not await apply(ops.before, sets)
        for name, one in (old | goal).items():
            if name in old and (old[name].kind, old[name].version) == (one.kind, one.version):
                assert old[name].members <= sets.sets[name].ipset.members
        assert all(ipset.members <= sets.sets[name].ipset.members for name, ipset in goal.items())
        assert not await apply(ops.after, sets)


@pytest.mark.parametrize("name", ["fab4-a", "fab4-b", "fab6-a"])
@pytest.mark.parametrize("walk", WALKS)
async def test_a_refusal_spares_the_rest_and_is_planned_again(
    walk: tuple[dict[str, IPSet], ...], name: str
) -> None:
    sets = FakeIPSets()
    for goal in walk:
        sets.refuse = {name: errno.ENOMEM}
        ops = plan(goal, sets.sets)
        refused = await apply((*ops.before, *ops.after), sets)
        assert {op.name for op in refused} <= {name}
        assert all(sets.sets[other].ipset == goal[other] for other in goal.keys() - {name})
        sets.refuse = {}
        again = plan(goal, sets.sets)
        assert {op.name for op in (*again.before, *again.after)} <= {name}
        assert not await apply((*again.before, *again.after), sets)
        assert plan(goal, sets.sets) == Plan()


def test_a_set_in_use_stays_until_the_rules_let_go_of_it() -> None:
    sets = FakeIPSets()
    sets.sets, sets.in_use = held(a=A), {"a"}
    refused = asyncio.run(apply(plan({}, sets.sets).after, sets))
    assert {op: err.code for op, err in refused.items()} == {Destroy("a"): errno.EBUSY}
    assert sets.sets == held(a=A)


def test_the_temporary_set_is_ours_to_sweep() -> None:
    leftover = {f"{PREFIXES[4]}~": Held(MANY, ROOM)}
    assert plan({}, leftover).after == (Destroy("fab4-~"),)
