"""What fits into one transaction of several attaches."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from fabric.agent import batch
from fabric.agent.endpoint import Stamp
from tests.fakes.etcd import MAX_OPS, FakeEtcd
from tests.fakes.node import pool, put, request, running


@pytest.mark.parametrize("count", [61, 62, 63, 100])
async def test_a_crowd_that_needs_a_new_block_fits_guards_of_node_and_pool_included(count: int) -> None:
    kv = FakeEtcd()
    await put(kv, pool("10.0.0.0/16"))
    async with running(kv) as node:
        wanted = [request(f"w{number}") for number in range(count)]
        made = batch.attach(node.state.snapshot, "n1", wanted, Stamp(datetime.now(UTC), UUID(int=7)))
        assert len(made.made) == min(count, 61)
        assert len(made.txn.guards) <= MAX_OPS
        await kv.commit(made.txn)
