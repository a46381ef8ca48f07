"""Who shares a turn with whom, and what becomes of those who wait when something goes wrong."""

import asyncio
from collections.abc import Sequence

import pytest

from fabric.agent.turns import Asked, Turns


class Squares:
    """Squares numbers; a turn ends when `gate` opens, and `turns` says who shared each."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.turns: list[list[int]] = []
        self.most = 100
        self.asked: Turns[int, int] = Turns(self._work)

    async def _work(self, waiting: Sequence[Asked[int, int]]) -> None:
        some = waiting[: self.most]
        self.turns.append([one.question for one in some])
        await self.gate.wait()
        for one in some:
            if one.question < 0:
                one.fail(ValueError(one.question))
            one.give(one.question**2)


async def waiting(squares: Squares, *numbers: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(squares.asked.ask(number)) for number in numbers]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_a_lone_question_has_a_turn_at_once_and_those_that_wait_meanwhile_share_the_next() -> None:
    squares = Squares()
    tasks = [*await waiting(squares, 1), *await waiting(squares, 2, 3), *await waiting(squares, 4)]
    assert squares.turns == [[1]]
    squares.gate.set()
    assert await asyncio.gather(*tasks) == [1, 4, 9, 16]
    assert squares.turns == [[1], [2, 3, 4]]


async def test_what_a_turn_leaves_is_the_next_ones() -> None:
    squares = Squares()
    squares.most = 2
    tasks = await waiting(squares, 1, 2, 3, 4, 5)
    squares.gate.set()
    assert await asyncio.gather(*tasks) == [1, 4, 9, 16, 25]
    assert squares.turns == [[1, 2], [3, 4], [5]]


async def test_each_has_its_own_error() -> None:
    squares = Squares()
    tasks = await waiting(squares, 1, -2, 3)
    squares.gate.set()
    one, two, three = await asyncio.gather(*tasks, return_exceptions=True)
    assert (one, three) == (1, 9)
    assert isinstance(two, ValueError)


async def test_one_who_goes_away_takes_nobody_along() -> None:
    squares = Squares()
    tasks = [*await waiting(squares, 1), *await waiting(squares, 2, 3)]
    tasks[0].cancel()
    tasks[1].cancel()
    squares.gate.set()
    assert await tasks[2] == 9


async def test_after_a_bug_all_who_wait_hear_of_it_and_the_next_is_served() -> None:
    calls = 0

    async def work(waiting: Sequence[Asked[int, int]]) -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        if calls == 1:
            raise ZeroDivisionError
        for one in waiting:
            one.give(one.question)

    turns: Turns[int, int] = Turns(work)
    found = await asyncio.gather(*(turns.ask(n) for n in range(3)), return_exceptions=True)
    assert [type(answer) for answer in found] == [ZeroDivisionError] * 3
    assert await turns.ask(7) == 7


async def test_a_turn_that_answers_nobody_is_a_bug_and_not_a_loop_without_end() -> None:
    async def work(waiting: Sequence[Asked[int, int]]) -> None:
        await asyncio.sleep(0)

    turns: Turns[int, int] = Turns(work)
    with pytest.raises(AssertionError, match="without an answer"):
        await turns.ask(1)
