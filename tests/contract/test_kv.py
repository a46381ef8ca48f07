"""What both stores promise: the etcd in memory and a real one, under the same tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Protocol

import pytest

from fabric.errors import Compacted, ConfigError, Conflict, StoreError
from fabric.store.etcd import SILENCE, Etcd
from fabric.store.kv import Changes, Delete, Guard, KeyValue, KeyValueStore, Listing, Put, Txn, Unwritten
from tests.contract.etcd_server import EtcdServer
from tests.contract.following import delete, opened, put, reading, retried, take, until
from tests.fakes.etcd import FakeEtcd


class Stage(Protocol):
    """A store, its accidents, and somebody else who writes to it meanwhile."""

    kv: KeyValueStore

    def gone(self) -> None: ...
    def back(self) -> None: ...
    def compact(self, revision: int) -> None: ...
    def wipe(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self._fake = FakeEtcd()
        self.kv: KeyValueStore = self._fake

    def gone(self) -> None:
        self._fake.down = True

    def back(self) -> None:
        self._fake.down = False

    def compact(self, revision: int) -> None:
        self._fake.compact(revision)

    def wipe(self) -> None:
        self._fake.wipe()


class Real:
    def __init__(self, server: EtcdServer, kv: KeyValueStore) -> None:
        self.kv, self._server = kv, server

    def gone(self) -> None:
        self._server.kill()

    def back(self) -> None:
        self._server.start()

    def compact(self, revision: int) -> None:
        self._server.ctl("compact", "--physical", str(revision))

    def wipe(self) -> None:
        self._server.wipe()


@pytest.fixture
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        if request.param == "fake":
            yield InMemory()
            return
        server = stack.enter_context(EtcdServer())
        yield Real(server, await stack.enter_async_context(opened(server.url)))


@pytest.fixture
def server() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


both = pytest.mark.parametrize("stage", ["fake", "etcd"], indirect=True)


# Reading and writing


@both
async def test_a_key_is_read_back_with_the_revision_that_wrote_it(stage: Stage) -> None:
    assert await stage.kv.get("/t/a") is None
    revision = await put(stage.kv, a="ä\n")
    assert await stage.kv.get("/t/a") == KeyValue("/t/a", "ä\n", revision)


@both
async def test_a_list_is_ordered_and_stays_below_its_prefix(stage: Stage) -> None:
    await put(stage.kv, b="2", a="1")
    revision = await stage.kv.commit(Txn((), (Put("/t0", "no"), Put("/s/z", "no"))))
    listing = await stage.kv.list("/t/")
    assert (listing.revision, [item.key for item in listing.items]) == (revision, ["/t/a", "/t/b"])


@both
async def test_an_empty_list_has_a_revision_to_watch_from(stage: Stage) -> None:
    listing = await stage.kv.list("/t/")
    assert (listing.revision, listing.items) == (1, ())


@both
async def test_a_list_of_many_pages_is_one_moment(stage: Stage) -> None:
    """Two keys always change together; no list may see one without the other."""
    for start in range(0, 1200, 100):
        await put(stage.kv, **{f"m{i:05}": "v" for i in range(start, start + 100)})
    writing = asyncio.ensure_future(write_pairs(stage.kv))
    try:
        for _ in range(5):
            listing = await stage.kv.list("/t/")
            values = {item.key: item.value for item in listing.items}
            assert sum(key.startswith("/t/m") for key in values) == 1200
            assert values.get("/t/a") == values.get("/t/z")
            await asyncio.sleep(0)
    finally:
        writing.cancel()
        with suppress(asyncio.CancelledError):
            await writing


async def write_pairs(kv: KeyValueStore) -> None:
    count = 0
    while True:
        count += 1
        await put(kv, a=str(count), z=str(count))


@both
async def test_a_transaction_is_one_revision_for_all_its_keys(stage: Stage) -> None:
    await put(stage.kv, old="1")
    revision = await stage.kv.commit(Txn((), (Put("/t/a", "1"), Put("/t/b", "2"), Delete("/t/old"))))
    listing = await stage.kv.list("/t/")
    assert listing == Listing(revision, (KeyValue("/t/a", "1", revision), KeyValue("/t/b", "2", revision)))


@pytest.mark.parametrize("size", [2_000_000, 5_000_000])  # etcd's own limit, and its gRPC server's
async def test_what_is_too_large_for_etcd_is_refused_with_a_cure(server: EtcdServer, size: int) -> None:
    async with opened(server.url) as kv:
        with pytest.raises(StoreError, match=r"nothing was written.*make the object smaller, or split it"):
            await put(kv, a="x" * size)
        assert await kv.get("/t/a") is None


@both
async def test_guards_that_hold_let_the_write_through(stage: Stage) -> None:
    first = await put(stage.kv, a="1")
    await stage.kv.commit(Txn((Guard("/t/a", first), Guard("/t/new", 0)), (Put("/t/a", "2"),)))
    item = await stage.kv.get("/t/a")
    assert item is not None
    assert item.value == "2"


@both
async def test_a_conflict_names_the_keys_and_writes_nothing(stage: Stage) -> None:
    first = await put(stage.kv, a="1", b="1")
    second = await put(stage.kv, a="2")
    guards = (Guard("/t/a", first), Guard("/t/b", first), Guard("/t/absent", 7))
    with pytest.raises(Conflict) as caught:
        await stage.kv.commit(Txn(guards, (Put("/t/b", "lost"), Delete("/t/a"))))
    assert f"/t/a is at revision {second}, not {first}" in str(caught.value)
    assert "/t/absent is at revision 0, not 7" in str(caught.value)
    assert "/t/b is" not in str(caught.value)
    listing = await stage.kv.list("/t/")
    assert (listing.revision, [item.value for item in listing.items]) == (second, ["2", "1"])


@both
async def test_a_write_under_a_prefix_spoils_a_transaction_that_wants_none_and_one_beside_it_does_not(
    stage: Stage,
) -> None:
    quiet = Unwritten("/t/", await put(stage.kv, a="1"))
    await stage.kv.commit(Txn((), (Put("/t0", "beside"),)))
    await stage.kv.commit(Txn((), (Put("/s/b", "1"),), (quiet, Unwritten("/nothing/", 0))))
    written = await put(stage.kv, b="1")
    with pytest.raises(Conflict, match=f"below /t/ was written after revision {quiet.revision}"):
        await stage.kv.commit(Txn((Guard("/t/b", written),), (Put("/s/b", "lost"),), (quiet,)))
    item = await stage.kv.get("/s/b")
    assert item is not None
    assert item.value == "1"


@both
async def test_of_many_writers_with_one_guard_one_wins(stage: Stage) -> None:
    guard = (Guard("/t/a", 0),)
    writes = [stage.kv.commit(Txn(guard, (Put("/t/a", str(i)),))) for i in range(20)]
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Conflict"] * 19 + ["int"]


@both
async def test_deleting_what_is_absent_is_no_error_and_no_revision(stage: Stage) -> None:
    revision = await put(stage.kv, a="1")
    assert await delete(stage.kv, "b", "c") == revision


@both
@pytest.mark.parametrize(
    ("ops", "said"),
    [
        pytest.param((Put("/t/a", "1"), Put("/t/a", "2")), "duplicate key", id="put twice"),
        pytest.param((Put("/t/a", "1"), Delete("/t/a")), "duplicate key", id="put and deleted"),
        pytest.param(tuple(Put(f"/t/{i}", "") for i in range(129)), "too many operations", id="too many"),
    ],
)
async def test_a_transaction_etcd_refuses_writes_nothing(
    stage: Stage, ops: tuple[Put | Delete, ...], said: str
) -> None:
    with pytest.raises(StoreError, match=said):
        await stage.kv.commit(Txn((), ops))
    assert (await stage.kv.list("/t/")).items == ()


# Watching


@both
async def test_a_watch_replays_what_came_after_and_goes_on_without_a_gap(stage: Stage) -> None:
    start = await put(stage.kv, a="0")
    revisions = [await put(stage.kv, a=str(i)) for i in range(1, 50)]
    async with aclosing(stage.kv.watch("/t/", after=start)) as stream:
        seen = await take(stream, 49)
        revisions += [await put(stage.kv, a=str(i)) for i in range(50, 100)]
        seen += await take(stream, 50)
    assert [changes.revision for changes in seen] == revisions
    assert [changes.puts[0].value for changes in seen] == [str(i) for i in range(1, 100)]


@both
async def test_a_watch_tells_a_transaction_as_one_change(stage: Stage) -> None:
    start = await put(stage.kv, old="1")
    ops = (Put("/t/a", "1"), Put("/elsewhere", "no"), Delete("/t/old"), Put("/t/b", "2"))
    revision = await stage.kv.commit(Txn((), ops))
    async with aclosing(stage.kv.watch("/t/", after=start)) as stream:
        (changes,) = await take(stream, 1)
    puts = (KeyValue("/t/a", "1", revision), KeyValue("/t/b", "2", revision))
    assert changes == Changes(revision, puts, ("/t/old",))


@both
async def test_a_large_transaction_is_still_one_change(stage: Stage) -> None:
    """128 values of 10 kB: far above what etcd would split, were it asked to."""
    start = await put(stage.kv, a="1")
    await put(stage.kv, **{f"k{i}": "x" * 10_000 for i in range(128)})
    async with aclosing(stage.kv.watch("/t/", after=start)) as stream:
        (changes,) = await take(stream, 1)
    assert len(changes.puts) == 128


@both
@pytest.mark.parametrize("behind", [0, 1, 5])
async def test_a_watch_from_before_the_compaction_is_refused(stage: Stage, behind: int) -> None:
    """Also from one revision before: etcd 3.4 accepts that watch and has lost its deletions."""
    for i in range(5):
        await put(stage.kv, a=str(i))
    compacted = await delete(stage.kv, "a")
    await put(stage.kv, b="1")
    stage.compact(compacted)
    async with aclosing(stage.kv.watch("/t/", after=compacted - behind)) as stream:
        if behind:
            with pytest.raises(Compacted):
                await take(stream, 1)
        else:
            assert (await take(stream, 1))[0].puts[0].key == "/t/b"


@both
async def test_a_watch_from_a_revision_that_was_never_is_refused(stage: Stage) -> None:
    async with aclosing(stage.kv.watch("/t/", after=1000)) as stream:
        with pytest.raises(StoreError, match="future revision"):
            await take(stream, 1)


@both
async def test_a_watch_ends_when_the_store_goes(stage: Stage) -> None:
    async with aclosing(stage.kv.watch("/t/", after=1)) as stream:
        await put(stage.kv, a="1")
        await take(stream, 1)
        stage.gone()
        with pytest.raises(StoreError):
            await take(stream, 1)
        with pytest.raises(StoreError):
            await stage.kv.get("/t/a")


@both
async def test_a_close_fails_the_calls_that_are_out(stage: Stage) -> None:
    async with aclosing(stage.kv.watch("/t/", after=1)) as stream:
        await put(stage.kv, a="1")
        await take(stream, 1)
        waiting = asyncio.ensure_future(take(stream, 1))
        await asyncio.sleep(0)
        await stage.kv.close()
        with pytest.raises(StoreError):
            await waiting


# Following


@both
async def test_follow_tells_the_listing_once_and_then_changes(stage: Stage) -> None:
    await put(stage.kv, a="1")
    async with reading(stage.kv) as reader:
        await until(lambda: len(reader.events) == 1)
        await put(stage.kv, b="2")
        await delete(stage.kv, "a")
        await until(lambda: reader.state == {"/t/b": "2"})
    assert reader.kinds == ["Listing", "Changes", "Changes"]


@both
async def test_after_an_outage_follow_tells_exactly_the_differences(stage: Stage) -> None:
    await put(stage.kv, same="1", changed="1", deleted="1")
    async with reading(stage.kv) as reader:
        await until(lambda: len(reader.events) == 1)
        stage.gone()
        await until(lambda: reader.kinds == ["Listing", "Lost"])
        stage.back()
        revision = await retried(
            lambda: stage.kv.commit(
                Txn((), (Put("/t/changed", "2"), Delete("/t/deleted"), Put("/t/new", "1")))
            )
        )
        await until(lambda: reader.state == {"/t/same": "1", "/t/changed": "2", "/t/new": "1"})
    told = [event for event in reader.events[2:] if isinstance(event, Changes)]
    assert reader.kinds[:2] == ["Listing", "Lost"]
    assert {item for changes in told for item in changes.puts} == {
        KeyValue("/t/changed", "2", revision),
        KeyValue("/t/new", "1", revision),
    }
    assert [key for changes in told for key in changes.deletes] == ["/t/deleted"]


@both
async def test_a_store_that_is_not_there_yet_is_waited_for(stage: Stage) -> None:
    await put(stage.kv, a="1")
    stage.gone()
    async with reading(stage.kv) as reader:
        await until(lambda: bool(reader.events))
        stage.back()
        await until(lambda: reader.state == {"/t/a": "1"})
    assert reader.kinds == ["Lost", "Listing"]


@both
async def test_a_compaction_while_away_costs_one_list(stage: Stage) -> None:
    await put(stage.kv, same="1", deleted="1")
    async with reading(stage.kv) as reader:
        await until(lambda: len(reader.events) == 1)
        stage.gone()
        await until(lambda: reader.kinds == ["Listing", "Lost"])
        stage.back()
        await retried(lambda: delete(stage.kv, "deleted"))
        stage.compact(await put(stage.kv, new="1"))
        await until(lambda: reader.state == {"/t/same": "1", "/t/new": "1"})
        await put(stage.kv, last="1")
        await until(lambda: "/t/last" in reader.state)


@both
async def test_a_store_that_lost_its_data_is_told_as_deletions(stage: Stage) -> None:
    """Revisions start anew: an equal one no longer means an equal value."""
    await put(stage.kv, a="1")
    await put(stage.kv, b="1")
    await put(stage.kv, c="1")
    async with reading(stage.kv) as reader:
        await until(lambda: len(reader.events) == 1)
        stage.wipe()
        await retried(lambda: put(stage.kv, a="other"))
        await until(lambda: reader.state == {"/t/a": "other"})


# The real one only: what the network and the process do


async def test_a_frozen_etcd_is_noticed_by_each_call_and_within_ten_seconds_by_an_idle_watch(
    server: EtcdServer,
) -> None:
    async with opened(server.url) as kv, reading(kv) as reader:
        await until(lambda: len(reader.events) == 1)
        with server.frozen():
            started = time.monotonic()
            with pytest.raises(StoreError, match=r"get of /t/a: etcd http://127\..*DEADLINE_EXCEEDED"):
                await kv.get("/t/a")
            assert time.monotonic() - started < 5
            await until(lambda: reader.kinds == ["Listing", "Lost"])
            assert time.monotonic() - started < 10
        await retried(lambda: put(kv, a="1"))
        await until(lambda: reader.state == {"/t/a": "1"})


async def test_an_idle_watch_outlives_its_signs_of_life(server: EtcdServer) -> None:
    async with opened(server.url) as kv, aclosing(kv.watch("/t/", after=1)) as stream:
        waiting = asyncio.ensure_future(take(stream, 1))
        done, _ = await asyncio.wait({waiting}, timeout=SILENCE + 0.5)
        assert not done
        revision = await put(kv, a="1")
        assert (await waiting)[0].revision == revision


async def test_a_dead_endpoint_is_passed_over(server: EtcdServer) -> None:
    async with opened("http://127.0.0.1:1", "localhost.invalid:2379", server.address + ":2379") as kv:
        assert await put(kv, a="1") == 2


async def test_a_frozen_member_is_left_for_the_next(server: EtcdServer) -> None:
    """Its connections stay and take requests, which is all that gRPC looks at.

    The two are no cluster: both give the key the same revision, and still the difference is told.
    """
    with EtcdServer() as other:
        async with opened(server.url, other.url) as kv, reading(kv) as reader:
            await put(kv, a="here")
            await until(lambda: reader.state == {"/t/a": "here"})
            with server.frozen():
                with pytest.raises(StoreError, match="whether it was written is unknown"):
                    await put(kv, a="lost?")
                await put(kv, a="there")
                await until(lambda: reader.state == {"/t/a": "there"})


async def test_the_error_of_an_absent_etcd_says_where_and_why() -> None:
    async with opened("http://127.0.0.1:1") as kv:
        with pytest.raises(
            StoreError, match=r"get of /t/a: etcd http://127\.0\.0\.1:1: .*refused.*try again"
        ):
            await kv.get("/t/a")


@pytest.mark.parametrize("url", ["http://", "127.0.0.1", "http://127.0.0.1:2379/x", "unix:///x"])
async def test_an_endpoint_that_makes_no_sense_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="nothing was contacted"):
        Etcd([url])


async def test_waiting_for_an_absent_etcd_costs_next_to_nothing() -> None:
    async with (
        opened("http://127.0.0.1:1", "https://127.0.0.2:1", "localhost:1") as kv,
        reading(kv) as reader,
    ):
        await until(lambda: reader.kinds == ["Lost"])
        cpu, started = time.process_time(), time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(3):
                await asyncio.Event().wait()
        assert (time.process_time() - cpu) / (time.monotonic() - started) < 0.02
        assert reader.kinds == ["Lost"]
