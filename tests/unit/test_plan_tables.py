"""From the rules that are there to those that should be: as text, and over a packet filter in memory."""

from __future__ import annotations

import errno
from dataclasses import replace
from itertools import permutations

import pytest

from fabric.errors import DataplaneError
from fabric.plan.tables import (
    Chain,
    Counter,
    Held,
    Place,
    Ruleset,
    Step,
    clear,
    counters,
    edited,
    marks_of,
    plan,
)
from tests.fakes.tables import FakeTables

FORWARD, OUTPUT = Place("filter", "FORWARD"), Place("filter", "OUTPUT")
A, B, RAW = Place("filter", "fab-a"), Place("filter", "fab-b"), Place("raw", "fab-r")
SMALL = Ruleset(
    {A: ("-p tcp -j DROP", "-j fab-b"), B: ("-j RETURN",)}, {FORWARD: ("-j fab-a",)}, {FORWARD: ("-j fab-b",)}
)


def restored(text: str) -> list[str]:
    """The lines of a restore, without what says that they are ours."""
    return [" ".join(w for w in line.split() if w not in {"-m", "comment", "--comment"} and w[:4] != "fab:")
            for line in text.splitlines()]  # fmt: skip


def test_the_first_text_has_everything_chains_before_the_rules_that_name_them() -> None:
    assert restored(plan(SMALL, Held()).text) == [
        "*filter", ":fab-a - [0:0]", ":fab-b - [0:0]",
        "-A fab-a -p tcp -j DROP", "-A fab-a -j fab-b", "-A fab-b -j RETURN",
        "-I FORWARD 1 -j fab-a", "-A FORWARD -j fab-b",
        "COMMIT",
    ]  # fmt: skip


def test_only_what_changed_is_in_the_text() -> None:
    held = plan(SMALL, Held()).held
    step = plan(replace(SMALL, chains={**SMALL.chains, B: ("-j ACCEPT",)}), held)
    assert restored(step.text) == ["*filter", ":fab-b - [0:0]", "-A fab-b -j ACCEPT", "COMMIT"]
    assert step.changed == (B,)


def test_jumps_go_before_the_chains_that_they_lead_to() -> None:
    held = plan(SMALL, Held()).held
    step = plan(Ruleset({B: ("-j RETURN",)}), held)
    assert restored(step.text) == [
        "*filter", ":fab-a - [0:0]", "-D FORWARD -j fab-a", "-D FORWARD -j fab-b", "-X fab-a", "COMMIT",
    ]  # fmt: skip


def test_a_table_is_a_part_of_its_own() -> None:
    text = plan(
        Ruleset({RAW: ("-j CT --notrack",), A: ()}, {Place("raw", "OUTPUT"): ("-j fab-r",)}), Held()
    ).text
    assert [line for line in text.splitlines() if line[0] in "*C"] == ["*filter", "COMMIT", "*raw", "COMMIT"]


def test_several_at_the_top_keep_their_order() -> None:
    goal = Ruleset(first={FORWARD: ("-i a -j ACCEPT", "-i b -j ACCEPT")})
    step = plan(goal, Held({FORWARD: Chain(("",), (Counter(1, 2),), ("",))}))
    assert restored(step.text)[1:-1] == ["-I FORWARD 1 -i b -j ACCEPT", "-I FORWARD 1 -i a -j ACCEPT"]
    assert step.held.chains[FORWARD].marks == (*marks_of(FORWARD, goal.first[FORWARD], "first"), "")


def test_a_mark_tells_the_place_the_rules_before_it_and_the_text() -> None:
    lines = ("-p tcp -j DROP", "-j ACCEPT")
    marks = marks_of(A, lines)
    assert len({*marks, *marks_of(B, lines), *marks_of(A, lines[::-1]), *marks_of(A, lines, "last")}) == 8
    assert marks_of(A, (lines[0], "-j DROP"))[0] == marks[0]


def test_a_rule_is_counted_where_it_is_held_and_nowhere_else() -> None:
    held = plan(SMALL, Held()).held
    numbered = {
        place: replace(chain, counters=tuple(Counter(at, 10 * at) for at, _ in enumerate(chain.marks)))
        for place, chain in held.chains.items()
    }
    assert counters(SMALL, Held(numbered)) == {
        (A, 0): (0, 0), (A, 1): (1, 10), (B, 0): (0, 0), (FORWARD, 0): (0, 0), (FORWARD, 1): (1, 10),
    }  # fmt: skip
    del numbered[FORWARD], numbered[A]
    assert counters(SMALL, Held(numbered)) == {(B, 0): (0, 0)}


GOALS = [
    Ruleset(),
    SMALL,
    Ruleset({A: ("-j DROP",)}, {FORWARD: ("-i fab+ -j fab-a", "-o fab+ -j fab-a")}),
    Ruleset({B: (), A: ("-j fab-b",)}, last={FORWARD: ("-j fab-a",), OUTPUT: ("-j fab-b",)}),
    Ruleset(
        {RAW: ("-j RETURN",), B: ("-j DROP",)},
        {Place("raw", "PREROUTING"): ("-j fab-r",), OUTPUT: ("-j fab-b",)},
    ),
]
FOREIGN = "*filter\n:DOCKER - [0:0]\n-A FORWARD -j DOCKER\n-A DOCKER -j DROP\nCOMMIT\n"


async def heal(tables: FakeTables, goal: Ruleset, held: Held) -> Step:
    step = plan(goal, held)
    if step.text:
        await tables.restore(4, step.text)
    return step


def ours(tables: FakeTables) -> dict[Place, list[str]]:
    return {place: lines for place, lines in tables.rules[4].items() if lines or place.is_ours}


@pytest.mark.parametrize("refused", [None, 0, 1, 2], ids=lambda at: f"refused {at}")
async def test_the_rules_depend_on_the_goal_not_on_the_walk_nor_on_a_refusal(refused: int | None) -> None:
    for walk in permutations(GOALS, 3):
        tables = FakeTables(refuse=errno.EBUSY if refused is not None else 0, after=refused or 0)
        tables.others(4, FOREIGN)
        held = await tables.read(4)
        for goal in walk:
            before = ours(tables)
            try:
                held = (await heal(tables, goal, held)).held
            except DataplaneError:
                assert ours(tables) == before
                held = (await heal(tables, goal, await tables.read(4))).held
            straight = FakeTables()
            straight.others(4, FOREIGN)
            await heal(straight, goal, await straight.read(4))
            assert ours(tables) == ours(straight)
            assert plan(goal, held).text == ""
            assert plan(goal, await tables.read(4)).text == ""
            assert edited(held, await tables.read(4)) == {}
        tables.refuse = 0
        await clear(tables)
        assert ours(tables) == {FORWARD: ["-j DOCKER"], Place("filter", "DOCKER"): ["-j DROP"]}


X = Place("filter", "fab-x")


@pytest.mark.parametrize(
    ("place", "was", "now", "told"),
    [
        (X, None, "a", "was added"),
        (X, "a", None, "is gone"),
        (X, "abc", "ac", "1 of its 3 rules are gone"),
        (X, "abc", "", "3 of its 3 rules are gone"),
        (X, "ab", "a.b", "1 rules were added"),
        (X, "ab", "ba", "its rules are in another order"),
        (FORWARD, "a..b", "a...b", ""),
        (FORWARD, "a..b", "a.b", ""),
        (FORWARD, "ab", "a.b", ""),
        (FORWARD, "ab", "ab.", ""),
        (FORWARD, ".", None, ""),
        (FORWARD, None, "..", ""),
        (FORWARD, "a..b", ".a.b", "rules of others are around ours"),
        (FORWARD, "a..b", "a..b.", "rules of others are around ours"),
        (FORWARD, "ab", ".ab.", "rules of others are around ours"),
        (FORWARD, "a..b", "..b", "1 of our 2 rules are gone"),
        (FORWARD, "a..b", None, "2 of our 2 rules are gone"),
        (FORWARD, "a.", "aa.", "our rules were doubled or are in another order"),
    ],
)  # fmt: skip
def test_what_others_did_is_told(place: Place, was: str | None, now: str | None, told: str) -> None:
    before, after = (
        Held({} if text is None else {place: Chain(tuple(mark.strip(".") for mark in text))})
        for text in (was, now)
    )
    assert edited(before, after) == ({place: told} if told else {})


def test_a_rule_that_was_changed_under_its_comment_is_told_once_it_has_been_read() -> None:
    def chain(*texts: str, read: bool = True) -> Held:
        return Held({A: Chain(("1",), (), texts, read)})

    assert edited(chain("-j DROP"), chain("-j ACCEPT")) == {A: "a rule was changed under its comment"}
    assert edited(chain(read=False), chain("-j ACCEPT")) == edited(chain("-j DROP"), chain("-j DROP")) == {}
