"""How the agent follows the datastore, and what it does with its copy while etcd is away."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fabric.agent import report
from fabric.errors import ConfigError, NotInSync
from fabric.model.clusterinformation import ClusterInformation
from fabric.model.node import Node
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.store import keys
from fabric.store.cache import Journal, Origin
from fabric.store.kv import Delete, Put, Txn
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
        shown = report.status(node.state)
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
        assert report.status(node.state)["datastore"]["stale_since"] is None
        await node.workloads.attach(request("db", 1))
        assert names(node) == {"web", "db"}


async def test_a_later_reason_of_an_outage_is_shown_and_leaves_since_when_it_lasts() -> None:
    kv = await cluster("a")
    async with started(kv) as node:
        await comes(node, lambda: node.state.snapshot.in_sync)
        kv.down = True
        kv.drop_watches()
        await comes(node, lambda: node.state.snapshot.lost.startswith("watch of"))
        since = report.status(node.state)["datastore"]["stale_since"]
        await comes(node, lambda: node.state.snapshot.lost.startswith("list of"))
        assert report.status(node.state)["datastore"]["stale_since"] == since


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
        assert report.status(node.state)["problems"] == []
        await copied(path, kv.revision)


async def test_an_etcd_that_was_made_anew_takes_nothing_away_until_the_node_joins_there() -> None:
    kv, other = await cluster("a"), await cluster("b")
    async with running(kv) as node:
        await node.workloads.attach(request("web"))
        with capture_logs() as logged:
            kv.wipe()
            for item in (await other.list("/")).items:
                await kv.commit(Txn((), (Put(item.key, item.value),)))
            await comes(node, lambda: node.state.snapshot.cluster == "b")
        assert (await node.passes.run(node.state.compute)).done == ()
        assert "cluster b, which does not know this node" in report.status(node.state)["problems"][0]
        assert len([line for line in logged if line["log_level"] == "error"]) == 1
        with pytest.raises(NotInSync, match="nothing was attached"):
            await node.workloads.attach(request("db", 1))
        await put(kv, Node.model_validate({"metadata": {"name": "n1"}}))
        await comes(node, lambda: node.state.registered)
        await node.passes.run(node.state.compute)
        assert (node.links.links, node.fib.routes) == ({}, {})


async def test_nothing_of_another_cluster_outlives_the_first_answer(tmp_path: Path) -> None:
    kv = await with_a_copy(path := tmp_path / "copy")
    kv.down = True
    other = await cluster("b")
    with capture_logs() as logged:
        async with started(kv, copy=path) as node:
            await comes(node, lambda: node.state.snapshot.copied)
            # The same endpoints, and behind them etcd made anew.
            kv.wipe()
            for item in (await other.list("/")).items:
                kv.down = False
                await kv.commit(Txn((), (Put(item.key, item.value),)))
            await comes(node, lambda: node.state.snapshot.in_sync)
            assert node.state.snapshot.cluster == "b"
            assert node.state.snapshot.all(WorkloadEndpoint) == ()
            assert not node.state.snapshot.blocks
    [said] = [line for line in logged if "another cluster" in line["event"]]
    assert (said["known"], said["found"]) == ("a", "b")


async def test_a_copy_that_cannot_be_read_is_said_once_and_the_node_starts_without(tmp_path: Path) -> None:
    kv = await with_a_copy(path := tmp_path / "copy")
    path.write_text("garbage\n")
    kv.down = True
    with capture_logs() as logged:
        async with started(kv, copy=path) as node:
            await comes(node, lambda: bool(node.state.snapshot.lost))
            [problem] = report.status(node.state)["problems"]
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
        assert "given up until the agent starts again" in report.status(node.state)["problems"][0]
        await node.workloads.attach(request("web"))


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
        shown = report.status(node.state)
        assert (shown["ready"], shown["datastore"]["locked"]) == (False, True)
        with pytest.raises(NotInSync, match="datastoreReady is false"):
            await (
                node.workloads.attach(request("db", 1))
                if verb == "attach"
                else node.workloads.detach("default", "web")
            )
        assert not node.state.snapshot.whole
