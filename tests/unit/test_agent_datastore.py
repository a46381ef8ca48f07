"""How the agent follows the datastore, and what it does with its copy while etcd is away."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest
from structlog.testing import capture_logs

from fabric.agent import report
from fabric.agent.datastore import MOST_NOTED, Keeper
from fabric.agent.state import State
from fabric.errors import ConfigError, NotInSync
from fabric.model.clusterinformation import ClusterInformation
from fabric.model.node import Node
from fabric.store import keys, sync
from fabric.store.cache import Journal, Origin
from fabric.store.cluster import INFORMATION
from fabric.store.kv import Changes, Delete, Listing, Put, Txn
from tests.fakes.etcd import FakeEtcd
from tests.fakes.node import FakeNode, pool, put, request, running, started

POOL = pool("10.0.0.0/24", blockSize=28)


async def cluster(guid: str) -> FakeEtcd:
    kv = FakeEtcd()
    await put(kv, POOL)
    await put(
        kv,
        ClusterInformation.model_validate({"metadata": {"name": "default"}, "spec": {"clusterGUID": guid}}),
    )
    return kv


async def empty() -> FakeEtcd:
    return FakeEtcd()


async def comes(node: FakeNode, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        await node.state.until(condition)


async def eventually(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds; for what nobody is told of, as the files of a thread."""

    def look() -> bool:
        deadline = time.monotonic() + 5
        while not (holds := condition()) and time.monotonic() < deadline:
            time.sleep(0.005)
        return holds

    assert await asyncio.to_thread(look)


async def copied(path: Path, revision: int) -> None:
    """Return once the copy has come that far."""

    def there() -> bool:
        with suppress(ConfigError):
            copy = Journal(path, Origin("n1", "", ("fake",))).read()
            return copy is not None and copy.listing.revision >= revision
        return False

    await eventually(there)


async def with_a_copy(path: Path) -> FakeEtcd:
    """A cluster whose node n1 has the workload web, and a copy that knows it."""
    kv = await cluster("a")
    async with running(kv, copy=path) as node:
        await node.workloads.attach(request("web"))
        await copied(path, kv.revision)
    return kv


def names(node: FakeNode) -> set[str]:
    return {e.spec.workload for e in node.state.snapshot.endpoints("n1")}


async def test_a_node_that_starts_without_etcd_has_what_it_had_and_calls_it_stale(tmp_path: Path) -> None:
    kv = await with_a_copy(path := tmp_path / "copy")
    kv.down = True
    async with started(kv, copy=path) as node:
        await comes(node, lambda: bool(node.state.snapshot.lost))
        await node.passes.run(node.state.compute)
        assert names(node) == {"web"}
        assert len(node.links.links) == 1
        assert sorted(route.blackhole for route in node.fib.routes.values()) == [False, True]
        shown = report.status(node.state, 0.0)
        assert (shown["ready"], shown["datastore"]["in_sync"], shown["datastore"]["copied"]) == (
            False,
            False,
            True,
        )
        assert shown["datastore"]["stale_since"] > 0
        with pytest.raises(NotInSync, match=r"not in sync on node n1 .*etcd is down.*nothing was attached"):
            await node.workloads.attach(request("db", 1))
        kv.down = False
        await comes(node, lambda: node.state.snapshot.in_sync)
        assert report.status(node.state, 0.0)["datastore"]["stale_since"] is None
        await node.workloads.attach(request("db", 1))
        assert names(node) == {"web", "db"}


async def test_a_later_reason_of_an_outage_is_shown_and_leaves_since_when_it_lasts() -> None:
    kv = await cluster("a")
    async with started(kv) as node:
        await comes(node, lambda: node.state.snapshot.in_sync)
        kv.down = True
        kv.drop_watches()
        await comes(node, lambda: node.state.snapshot.lost.startswith("watch of"))
        since = report.status(node.state, 0.0)["datastore"]["stale_since"]
        await comes(node, lambda: node.state.snapshot.lost.startswith("list of"))
        assert report.status(node.state, 0.0)["datastore"]["stale_since"] == since


async def test_what_went_while_it_was_away_goes_when_etcd_answers_and_not_before(tmp_path: Path) -> None:
    kv = await with_a_copy(path := tmp_path / "copy")
    for prefix in (keys.resources("workloadendpoints"), keys.IPAM):
        for item in (await kv.list(prefix)).items:
            await kv.commit(Txn((), (Delete(item.key),)))
    kv.down = True
    async with started(kv, copy=path) as node:
        await comes(node, lambda: bool(node.state.snapshot.lost))
        await node.passes.run(node.state.compute)
        assert len(node.links.links) == 1
        kv.down = False
        await comes(node, lambda: node.state.snapshot.in_sync)
        await node.passes.run(node.state.compute)
        assert (node.links.links, node.fib.routes, names(node)) == ({}, {}, set())


async def test_where_etcd_answers_the_copy_is_not_looked_at(tmp_path: Path) -> None:
    kv = await with_a_copy(path := tmp_path / "copy")
    path.write_text("garbage")
    async with started(kv, copy=path) as node:
        await comes(node, lambda: node.state.snapshot.in_sync)
        assert report.status(node.state, 0.0)["problems"] == []
        await copied(path, kv.revision)


async def becomes(kv: FakeEtcd, other: FakeEtcd) -> None:
    """The same address, and behind it an etcd that has what `other` has."""
    kv.wipe()
    items = (await other.list("/")).items
    if items:
        await kv.commit(Txn((), tuple(Put(item.key, item.value) for item in items)))


STRANGERS = pytest.mark.parametrize(
    ("stranger", "named"),
    [(partial(cluster, "b"), "cluster b"), (empty, "no cluster")],
    ids=["another cluster", "nothing"],
)
Make: TypeAlias = Callable[[], Coroutine[None, None, FakeEtcd]]


@STRANGERS
@pytest.mark.parametrize("restarted", [False, True])
async def test_an_etcd_that_was_made_anew_takes_nothing_away_until_the_node_joins_there(
    tmp_path: Path, stranger: Make, named: str, restarted: bool
) -> None:
    kv = await with_a_copy(path := tmp_path / "copy")
    async with AsyncExitStack() as running_node:
        if not restarted:
            node = await running_node.enter_async_context(started(kv, copy=path))
            await comes(node, lambda: node.state.snapshot.in_sync)
        with capture_logs() as logged:
            await becomes(kv, await stranger())
            if restarted:
                node = await running_node.enter_async_context(started(kv, copy=path))
            await comes(node, lambda: f"etcd has {named}," in node.state.snapshot.lost)
            await asyncio.sleep(2 * sync.FIRST_DELAY)  # it is asked again meanwhile
        assert len([line for line in logged if named in line.get("error", "")]) == 1
        await node.passes.run(node.state.compute)
        assert len(node.links.links) == 1
        assert len(node.fib.routes) == 2
        assert node.state.snapshot.cluster == "a"
        assert not node.state.ready
        for refused in (node.workloads.attach(request("db", 1)), node.workloads.detach("default", "web")):
            with pytest.raises(NotInSync, match=f"not in sync.*{named}.*node join"):
                await refused
        await put(kv, Node.model_validate({"metadata": {"name": "n1"}}))
        await comes(node, lambda: node.state.snapshot.in_sync)
        await node.passes.run(node.state.compute)
        assert (node.links.links, node.fib.routes) == ({}, {})


async def test_the_copy_stays_that_of_the_nodes_own_cluster(tmp_path: Path) -> None:
    kv = await with_a_copy(path := tmp_path / "copy")
    before = path.read_text()
    await becomes(kv, await cluster("b"))
    for _ in range(2):
        async with started(kv, copy=path) as node:
            await comes(node, lambda: "cluster b" in node.state.snapshot.lost)
    assert path.read_text() == before


async def test_all_of_a_cluster_deleted_under_a_running_node_takes_nothing_away() -> None:
    kv = await cluster("a")
    async with running(kv) as node:
        await node.workloads.attach(request("web"))
        await node.passes.run(node.state.compute)
        items = (await kv.list("/")).items
        await kv.commit(Txn((), tuple(Delete(item.key) for item in items)))
        await comes(node, lambda: "no cluster" in node.state.snapshot.lost)
        assert (await node.passes.run(node.state.compute)).done == ()
        assert names(node) == {"web"}


async def test_a_cluster_information_deleted_by_mistake_costs_nothing() -> None:
    kv = await cluster("a")
    async with running(kv) as node:
        await node.workloads.attach(request("web"))
        await kv.commit(Txn((), (Delete(INFORMATION),)))
        await comes(node, lambda: not node.state.snapshot.cluster and node.state.snapshot.in_sync)
        assert names(node) == {"web"}


async def test_a_node_deleted_while_its_agent_was_away_is_no_other_cluster(tmp_path: Path) -> None:
    kv = await with_a_copy(path := tmp_path / "copy")
    await kv.commit(Txn((), (Delete(keys.ResourceKey("nodes", None, "n1").path),)))
    async with started(kv, copy=path) as node:
        await comes(node, lambda: node.state.snapshot.in_sync)
        assert names(node) == {"web"}


async def test_a_copy_that_cannot_be_read_is_said_once_and_the_node_starts_without(tmp_path: Path) -> None:
    kv = await with_a_copy(path := tmp_path / "copy")
    path.write_text("garbage\n")
    kv.down = True
    with capture_logs() as logged:
        async with started(kv, copy=path) as node:
            await comes(node, lambda: bool(node.state.snapshot.lost))
            [problem] = report.status(node.state, 0.0)["problems"]
            assert "not the first line of a journal" in problem
            assert node.state.snapshot.revision == 0
            kv.down = False
            await comes(node, lambda: node.state.snapshot.in_sync)
            await copied(path, kv.revision)
            await eventually(lambda: not node.state.copy_problem)
    assert len([line for line in logged if line["log_level"] == "error"]) == 1


async def test_a_disk_that_refuses_costs_the_copy_alone(tmp_path: Path) -> None:
    kv = await cluster("a")
    async with running(kv, copy=Path("/proc/self/refuses/copy")) as node:
        await eventually(lambda: bool(node.state.copy_problem))
        assert "given up until the agent starts again" in report.status(node.state, 0.0)["problems"][0]
        await node.workloads.attach(request("web"))


class StuckJournal(Journal):
    """On a disk that does not answer until `gate` opens."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, Origin("n1", "", ("fake",)))
        self.gate = threading.Event()

    def begin(self, listing: Listing) -> None:
        self.gate.wait(5)
        super().begin(listing)


async def test_a_disk_that_does_not_keep_up_costs_the_copy_and_not_the_memory(tmp_path: Path) -> None:
    state, journal = State("n1"), StuckJournal(path := tmp_path / "copy")
    keeper = Keeper(state, journal)
    keeper.note(Listing(1, ()))
    writing = asyncio.create_task(keeper.run())
    for revision in range(2, 2 * MOST_NOTED):
        keeper.note(Changes(revision))
    journal.gate.set()
    await eventually(lambda: bool(state.copy_problem))
    assert "slower than the datastore" in state.copy_problem
    assert not path.exists()
    writing.cancel()


async def test_changes_missed_by_a_watch_reach_the_copy_by_the_listing_after_it(tmp_path: Path) -> None:
    kv = await with_a_copy(path := tmp_path / "copy")
    async with running(kv, copy=path) as node:
        kv.down = True
        await comes(node, lambda: not node.state.snapshot.in_sync)
        kv.down = False
        kv.drop_watches()
        await put(kv, pool("10.1.0.0/24", "late"))
        await comes(node, lambda: node.state.snapshot.in_sync)
        await node.caught_up()
        await copied(path, kv.revision)
    copy = Journal(path, Origin("n1", "", ("fake",))).read()
    assert copy
    assert {item.key for item in copy.listing.items} == {item.key for item in (await kv.list("/")).items}


@pytest.mark.parametrize("verb", ["attach", "detach"])
async def test_while_the_datastore_is_locked_agents_wait(verb: str) -> None:
    kv = await cluster("a")
    async with running(kv) as node:
        await node.workloads.attach(request("web"))
        await put(
            kv,
            ClusterInformation.model_validate(
                {"metadata": {"name": "default"}, "spec": {"clusterGUID": "a", "datastoreReady": False}}
            ),
        )
        await node.caught_up()
        shown = report.status(node.state, 0.0)
        assert (shown["ready"], shown["datastore"]["locked"]) == (False, True)
        with pytest.raises(NotInSync, match="datastoreReady is false"):
            await (
                node.workloads.attach(request("db", 1))
                if verb == "attach"
                else node.workloads.detach("default", "web")
            )
        assert not node.state.snapshot.whole


UNREAD = {
    "it denies what it selects": '{"spec": {"selector": "all()", "order": "first"}}',
    "it decides nothing: what it selects cannot be told": '{"spec": {"selector": "app = 1"}}',
}


@pytest.mark.parametrize(("does", "value"), UNREAD.items(), ids=UNREAD.keys())
async def test_a_policy_that_cannot_be_read_is_told_with_what_becomes_of_it(does: str, value: str) -> None:
    key = keys.ResourceKey("globalnetworkpolicies", None, "p").path
    with capture_logs() as logged:
        async with running(kv := FakeEtcd()) as node:
            await kv.commit(Txn((), (Put(key, value),)))
            await node.caught_up()
            [problem] = report.status(node.state, 0.0)["problems"]
    assert problem.startswith(f"{key}: ")
    assert problem.endswith(f"; {does}")
    assert [line["event"] for line in logged if line["log_level"] == "error"] == [
        f"object cannot be read; {does}"
    ]
