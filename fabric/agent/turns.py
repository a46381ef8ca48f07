"""Answer questions together: whatever waits when a turn ends is the next turn's. Nothing waits for company.

So a lone question is taken at once, and a crowd shares what a turn costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Asked(Generic[Q, A]):
    """A question that waits; who asked may have gone away meanwhile, which changes nothing for the rest."""

    def __init__(self, question: Q) -> None:
        self.question = question
        self.answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()

    def give(self, answer: A) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, err: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(err)


class Turns(Generic[Q, A]):
    """One turn at a time. `work` is given all that wait, in order, and answers at least the first of them."""

    def __init__(self, work: Callable[[Sequence[Asked[Q, A]]], Awaitable[None]]) -> None:
        self._work = work
        self._waiting: list[Asked[Q, A]] = []
        self._turns: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        """Return the answer, or raise the error, that its turn has for `question`."""
        asked: Asked[Q, A] = Asked(question)
        self._waiting.append(asked)
        if self._turns is None:
            self._turns = asyncio.create_task(self._take_turns())
            self._turns.add_done_callback(self._ended)
        return await asked.answer

    async def _take_turns(self) -> None:
        while self._waiting:
            await self._work(tuple(self._waiting))
            assert self._waiting[0].answer.done(), "a turn went by without an answer"
            self._waiting = [asked for asked in self._waiting if not asked.answer.done()]
        self._turns = None

    def _ended(self, turns: asyncio.Task[None]) -> None:
        """After a bug, or when the agent ends, nobody is left to answer: whoever waits hears of it."""
        err = None if turns.cancelled() else turns.exception()
        if not turns.cancelled() and err is None:
            return
        self._turns = None
        waiting, self._waiting = self._waiting, []
        for asked in waiting:
            asked.fail(err) if err else asked.answer.cancel()
