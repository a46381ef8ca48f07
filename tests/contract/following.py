"""What the tests of the datastore share: writing, and following with somebody who folds what he is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from itertools import pairwise

from fabric.config import NO_CREDENTIALS, Credentials
from fabric.errors import StoreError
from fabric.store.etcd import Etcd
from fabric.store.kv import Changes, Delete, KeyValueStore, Listing, Put, Txn
from fabric.store.sync import Event, Lost, follow

DEADLINE = 20.0  # seconds for anything that is awaited here


@asynccontextmanager
async def opened(*endpoints: str, credentials: Credentials = NO_CREDENTIALS) -> AsyncIterator[Etcd]:
    kv = Etcd(endpoints, credentials)
    try:
        yield kv
    finally:
        await kv.close()


async def put(kv: KeyValueStore, **values: str) -> int:
    return await kv.commit(Txn((), tuple(Put(f"/t/{key}", value) for key, value in values.items())))


async def delete(kv: KeyValueStore, *keys: str) -> int:
    return await kv.commit(Txn((), tuple(Delete(f"/t/{key}") for key in keys)))


async def take(stream: AsyncGenerator[Changes, None], count: int) -> list[Changes]:
    async with asyncio.timeout(DEADLINE):
        return [await anext(stream) for _ in range(count)]


class Reader:
    """Follows, and folds what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.state: dict[str, str] = {}

    async def run(self, kv: KeyValueStore) -> None:
        async with aclosing(follow(kv, "/t/")) as events:
            async for event in events:
                self.take(event)

    def take(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Lost):
            return
        puts = event.items if isinstance(event, Listing) else event.puts
        self.state.update((item.key, item.value) for item in puts)
        for key in event.deletes if isinstance(event, Changes) else ():
            del self.state[key]

    @property
    def kinds(self) -> list[str]:
        """What was told, in order; an outage is one Lost, however many reasons it had."""
        kinds = [type(event).__name__ for event in self.events]
        return [kind for before, kind in pairwise(["", *kinds]) if not before == kind == "Lost"]


@asynccontextmanager
async def reading(kv: KeyValueStore) -> AsyncIterator[Reader]:
    reader = Reader()
    task = asyncio.ensure_future(reader.run(kv))
    try:
        yield reader
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not true():  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.01)


async def retried(write: Callable[[], Awaitable[int]]) -> int:
    """The connection of somebody who writes takes a moment too after an outage."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                return await write()
            except StoreError:
                await asyncio.sleep(0.01)
