from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine, Iterable
from contextlib import aclosing, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import StoreError
from fabric.store.kv import Changes, Delete, KeyValue, Listing, Put, Txn
from fabric.store.sync import FIRST_DELAY, LONGEST_DELAY, Event, Lost, follow
from tests.fakes.etcd import FakeEtcd


class _Jump(selectors.DefaultSelector):
    """Where the loop would sleep until its next timer, move its clock there instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "every task waits for another: nothing will ever happen"
        self.now += max(timeout, 0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes only when nothing else can happen, and then at once."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main)


class Reader:
    """Folds what follow tells, and holds it to its promise: differences only."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.state: dict[str, KeyValue] = {}
        self.reasons: set[str] = set()  # of the outage
        self.in_sync = False

    async def run(self, kv: FakeEtcd) -> None:
        async with aclosing(follow(kv, "/t/")) as events:
            async for event in events:
                self._take(event)
                self.events.append(event)

    def holds(self, items: tuple[KeyValue, ...]) -> bool:
        return self.in_sync and tuple(self.state[key] for key in sorted(self.state)) == items

    def _take(self, event: Event) -> None:
        match event:
            case Lost(reason):
                self.reasons = set() if self.in_sync else self.reasons
                assert reason not in self.reasons, "told before"
                self.reasons.add(reason)
                self.in_sync = False
            case Listing(items=items):
                assert not any(isinstance(old, Listing | Changes) for old in self.events), "once"
                self.state = {item.key: item for item in items}
                self.in_sync = True
            case Changes(puts=puts, deletes=deletes):
                assert all(self.state.get(item.key) != item for item in puts), "told before"
                self.state.update((item.key, item) for item in puts)
                for key in deletes:
                    del self.state[key]
                self.in_sync = True


async def put(kv: FakeEtcd, key: str, value: str = "") -> None:
    await kv.commit(Txn((), (Put(f"/t/{key}", value),)))


async def until_told(kv: FakeEtcd, reader: Reader) -> None:
    kv.down = False
    want = (await kv.list("/t/")).items
    async with asyncio.timeout(10 * LONGEST_DELAY):
        while not reader.holds(want):  # noqa: ASYNC110 - the clock is virtual
            await asyncio.sleep(FIRST_DELAY)


KEYS = ["/t/a", "/t/b", "/t/c", "/other"]
ops = st.one_of(
    st.builds(Put, st.sampled_from(KEYS), st.sampled_from("12")), st.builds(Delete, st.sampled_from(KEYS))
)
steps = st.one_of(
    st.lists(ops, min_size=1, max_size=3, unique_by=lambda op: op.key),
    st.sampled_from(["drop", "down", "up", "compact", "turn", "pause", "wipe"]),
)


@given(st.lists(steps, max_size=30))
def test_whatever_happens_the_reader_ends_with_what_the_store_holds(
    walk: list[list[Put | Delete] | str],
) -> None:
    run(_walk(walk))


async def _walk(walk: Iterable[list[Put | Delete] | str]) -> None:
    kv, reader = FakeEtcd(), Reader()
    await put(kv, "a", "first")
    async with asyncio.TaskGroup() as group:
        following = group.create_task(reader.run(kv))
        for step in walk:
            await _step(kv, step)
        await until_told(kv, reader)
        following.cancel()


async def _step(kv: FakeEtcd, step: list[Put | Delete] | str) -> None:
    match step:
        case "drop":
            kv.drop_watches()
        case "down":
            kv.down = True
        case "up":
            kv.down = False
        case "compact":
            kv.compact(kv.revision)
        case "turn":
            await asyncio.sleep(0)
        case "pause":
            await asyncio.sleep(LONGEST_DELAY)
        case "wipe":
            kv.wipe()
        case list():
            with suppress(StoreError):
                await kv.commit(Txn((), tuple(step)))


class Counting(FakeEtcd):
    """Counts what reaches it."""

    calls = 0

    async def _answer(self, what: str) -> None:
        self.calls += 1
        await super()._answer(what)


@pytest.mark.parametrize("flapping", [False, True], ids=["down", "lists, but its watches end"])
def test_an_outage_of_an_hour_costs_about_one_call_per_longest_delay(flapping: bool) -> None:
    async def hour() -> None:
        kv, reader = Counting(), Reader()
        kv.down = not flapping
        async with asyncio.TaskGroup() as group:
            following = group.create_task(reader.run(kv))
            for _ in range(36_000):
                await asyncio.sleep(0.1)
                if flapping:
                    kv.drop_watches()
            following.cancel()
        rounds = kv.calls / (2 if flapping else 1)
        assert 0.8 < rounds / (3600 / LONGEST_DELAY) < 1.3

    run(hour())


class Refusing(FakeEtcd):
    """Refuses one list for each of `reasons`, and the later ones for the last of them."""

    reasons: tuple[str, ...] = (
        "stream ended",
        "connection refused",
        "stream ended",
        "certificate not trusted",
    )

    async def list(self, prefix: str) -> Listing:
        reason, *rest = self.reasons
        self.reasons = tuple(rest) or (reason,)
        raise StoreError(reason)


def test_each_reason_of_an_outage_is_told_once() -> None:
    async def main() -> None:
        reader = Reader()
        async with asyncio.TaskGroup() as group:
            following = group.create_task(reader.run(Refusing()))
            await asyncio.sleep(20 * LONGEST_DELAY)
            following.cancel()
        assert reader.events == list(
            map(Lost, ["stream ended", "connection refused", "certificate not trusted"])
        )

    run(main())


def test_what_came_and_went_unseen_is_told_by_its_absence() -> None:
    async def main() -> None:
        kv, reader = FakeEtcd(), Reader()
        await put(kv, "old")
        async with asyncio.TaskGroup() as group:
            following = group.create_task(reader.run(kv))
            await until_told(kv, reader)
            kv.drop_watches()
            await put(kv, "mine")
            await kv.commit(Txn((), (Delete("/t/mine"),)))
            await until_told(kv, reader)
            await asyncio.sleep(LONGEST_DELAY)
            await put(kv, "new")
            await until_told(kv, reader)
            following.cancel()
        told = [event for event in reader.events if isinstance(event, Changes)]
        assert [event.present for event in told] == [frozenset({"/t/old"}), None]

    run(main())


def test_time_in_sync_makes_the_next_outage_a_short_one() -> None:
    async def main() -> None:
        kv, reader = FakeEtcd(), Reader()
        kv.down = True
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            following = group.create_task(reader.run(kv))
            await asyncio.sleep(60)
            await until_told(kv, reader)
            await asyncio.sleep(60)
            dropped = loop.time()
            kv.drop_watches()
            await asyncio.sleep(0.001)
            while not reader.in_sync:  # noqa: ASYNC110 - the clock is virtual
                await asyncio.sleep(0.01)
            assert loop.time() - dropped < 2 * FIRST_DELAY
            following.cancel()

    run(main())
