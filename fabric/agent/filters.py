"""Touches the choice of iptables' backend: made before the first pass and when the setting changes, then listened to.

What the other backend has of ours goes once the new rules are in force, so that nothing is open in between.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress

import structlog

from fabric.agent.passes import Passes
from fabric.agent.settings import Backend
from fabric.agent.state import State
from fabric.errors import DataplaneError
from fabric.kernel.tables import KernelTables
from fabric.kernel.tables_backend import choose
from fabric.plan.tables import VERSIONS, Version, clear

log = structlog.get_logger()

LOOK = 7.0  # seconds between looks at the sizes of sets, of whose changes nobody tells


class Filters:
    """Knows which backend is in use, and hears of what others do to our rules in it."""

    def __init__(self, state: State, passes: Passes, *, look: float = LOOK) -> None:
        self._state, self._passes, self._look = state, passes, look
        self._asked: Backend | None = None
        self._in_use: KernelTables | None = None
        self._left: KernelTables | None = None  # the backend before, or that of an earlier agent
        self._chosen = asyncio.Event()

    async def settle(self, asked: Backend) -> None:
        """Have the next pass use the backend that is `asked` for; where none works, the one of before, if there is one.

        Else what policy asks for is refused until one is found: each pass looks again.
        """
        if asked == self._asked:
            return
        try:
            choice = await choose(asked)
        except DataplaneError as err:
            if self._in_use is None:
                self._passes.lack(err)  # each pass says so, as it refuses
            else:
                self._tell(str(err))
            return
        self._tell(choice.problem)
        if self._in_use is None or self._in_use.backend != choice.backend:
            log.info("packet filter", backend=choice.backend, why=choice.why)
            self._state.backend = choice.backend
            self._in_use = KernelTables(choice.backend)
            self._left = KernelTables("legacy" if choice.backend == "nft" else "nft")
            await self._passes.use(self._in_use)
            self._chosen.set()
        self._asked = asked

    def _tell(self, problem: str) -> None:
        if problem and problem != self._state.filter_problem:
            log.warning("packet filter", problem=problem)
        self._state.filter_problem = problem

    async def tidy(self) -> None:
        """Once the rules are in force, remove what the other backend has of them.

        Raises:
            DataplaneError: the kernel refused; it is tried again after the next pass.
        """
        if self._left and self._passes.rules.stands:
            try:
                await clear(self._left)
            except DataplaneError as err:
                if err.code != errno.ENOENT:  # where there is no such tool, nothing was made by it
                    raise
            self._left = None

    async def follow(self) -> None:
        """Have the rules read back that others may have changed, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_at_sets())
            listening: asyncio.Task[None] | None = None
            while True:
                await self._chosen.wait()
                self._chosen.clear()
                if listening:
                    listening.cancel()
                listening = tasks.create_task(self._listen())

    async def _look_at_sets(self) -> None:
        while True:
            await asyncio.sleep(self._look)
            with suppress(DataplaneError):  # the next read-back says so
                if await self._passes.sets_edited():
                    self._edited(frozenset(VERSIONS))

    async def _listen(self) -> None:
        assert self._in_use
        async for versions in self._in_use.changes():
            self._edited(versions)

    def _edited(self, versions: frozenset[Version]) -> None:
        self._state.edited |= versions
        self._state.dirty.set()
