"""Three members: what happens to a reader and to writers when one of them dies, freezes or is cut off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest

from fabric.errors import Conflict, StoreError
from fabric.store.etcd import Etcd
from fabric.store.kv import Guard, Put, Txn
from fabric.store.sync import Lost
from tests.contract.etcd_server import EtcdCluster, EtcdServer
from tests.contract.following import Reader, delete, opened, put, reading, retried, until

WITHIN = 10.0  # seconds for a reader to be in sync again through another member


@pytest.fixture(scope="module")
def three() -> Iterator[EtcdCluster]:
    with EtcdCluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(three: EtcdCluster) -> EtcdCluster:
    """All three serve, and hold nothing."""
    three.repair()
    three.members[0].ctl("del", "--prefix", "/t/")
    return three


@asynccontextmanager
async def both(members: Sequence[EtcdServer]) -> AsyncIterator[tuple[Etcd, Reader]]:
    """A client with a reader in sync, both through the first of `members`."""
    async with opened(*(member.url for member in members)) as kv, reading(kv) as reader:
        await put(kv, a="1")
        await until(lambda: reader.state == {"/t/a": "1"})
        yield kv, reader


async def test_the_leader_killed_is_a_pause_for_who_was_connected_to_it(cluster: EtcdCluster) -> None:
    leader = cluster.leader
    async with both([leader, *cluster.others(leader)]) as (kv, reader):
        started = time.monotonic()
        leader.kill()
        await retried(lambda: put(kv, a="2"))
        await until(lambda: reader.state == {"/t/a": "2"})
        assert time.monotonic() - started < WITHIN
        assert reader.kinds.count("Lost") == 1


@pytest.mark.parametrize("accident", ["partitioned", "frozen"])
async def test_a_silent_member_is_left_and_what_came_and_was_compacted_meanwhile_is_told(
    cluster: EtcdCluster, accident: str
) -> None:
    member = cluster.others(cluster.leader)[0]
    rest = cluster.others(member)
    async with both([member, *rest]) as (kv, reader), opened(rest[0].url) as elsewhere:
        await put(kv, gone="1")
        await until(lambda: "/t/gone" in reader.state)
        with cluster.cut_off(member) if accident == "partitioned" else member.frozen():
            started = time.monotonic()
            await delete(elsewhere, "gone")
            revision = await put(elsewhere, a="2")
            rest[0].ctl("compact", str(revision))
            await until(lambda: reader.state == {"/t/a": "2"})
            assert time.monotonic() - started < WITHIN
            lost = next(event for event in reader.events if isinstance(event, Lost))
            assert member.url in lost.reason


async def test_a_connection_whose_packets_get_lost_is_replaced_though_there_is_no_other_member(
    cluster: EtcdCluster,
) -> None:
    member = cluster.members[0]
    async with both([member]) as (kv, reader), opened(cluster.members[1].url) as elsewhere:
        with cluster.losing_what_stands(member):
            started = time.monotonic()
            await put(elsewhere, a="2")
            await until(lambda: reader.state == {"/t/a": "2"})
            await put(kv, a="3")
            await until(lambda: reader.state == {"/t/a": "3"})
            assert time.monotonic() - started < WITHIN
    assert reader.kinds.count("Lost") == 1


async def test_without_a_majority_nothing_is_written_or_believed_to_be_current(cluster: EtcdCluster) -> None:
    """The last member still takes connections and holds all the data; `hasleader` makes it say so."""
    last = cluster.members[0]
    async with both([last]) as (kv, reader):
        for member in cluster.others(last):
            member.kill()
        started = time.monotonic()
        await until(lambda: reader.kinds[-1] == "Lost")
        assert time.monotonic() - started < WITHIN
        with pytest.raises(StoreError, match=f"etcd {last.url}: .*unknown; read the keys again"):
            await put(kv, a="2")
        cluster.repair()
        await retried(lambda: put(kv, a="3"))
        await until(lambda: reader.state == {"/t/a": "3"})


async def test_one_command_is_served_though_its_first_member_has_no_leader(cluster: EtcdCluster) -> None:
    """A command is a new client each time; it must not fail as long as the first in the list is cut off."""
    member = cluster.others(cluster.leader)[0]
    urls = [member.url, *(other.url for other in cluster.others(member))]
    with cluster.alone(member):
        async with opened(*urls) as kv:
            revision = await put(kv, a="1")
        async with opened(*urls) as kv:
            item = await kv.get("/t/a")
    assert item is not None
    assert item.revision == revision


async def test_of_two_writers_at_two_members_one_is_told_to_read_again(cluster: EtcdCluster) -> None:
    one, other = cluster.members[0].url, cluster.members[1].url
    async with opened(one) as first, opened(other) as second:
        revision = await put(first, a="1")
        txn = Txn((Guard("/t/a", revision),), (Put("/t/a", "2"),))
        results = await asyncio.gather(first.commit(txn), second.commit(txn), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Conflict", "int"]
    (conflict,) = [result for result in results if isinstance(result, Conflict)]
    assert "nothing was written; read again" in str(conflict)
