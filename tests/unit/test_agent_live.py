"""Live connections after a change of policy, over a node and a conntrack in memory."""

import asyncio
import errno
from collections.abc import Set as AbstractSet
from ipaddress import ip_address

import pytest
from structlog.testing import capture_logs

from fabric.agent import live
from fabric.errors import DataplaneError
from fabric.model.policy import GlobalNetworkPolicy
from fabric.store.kv import Delete, Txn
from policy.flows import Ends, Flow
from policy.form import TCP, Address
from policy.marks import CUT
from tests.fakes.conntrack import FakeConntrack
from tests.fakes.node import FakeNode, MuteEtcd, pool, put, request, running

WEB, OUTSIDE = ip_address("10.0.0.5"), ip_address("198.51.100.9")
OTHERS = 0x1  # a bit of somebody else's

DENY = GlobalNetworkPolicy.model_validate(
    {"metadata": {"name": "deny"}, "spec": {"selector": "all()", "ingress": [{"action": "Deny"}]}}
).as_written()


def flow(port: int, source: object = OUTSIDE, destination: object = WEB, mark: int = OTHERS) -> Flow:
    one, other = ip_address(str(source)), ip_address(str(destination))
    return Flow(Ends(one, other, TCP, port, 80), Ends(other, one, TCP, 80, port), mark)


IN, OUT, FOREIGN = flow(1), flow(2, WEB, OUTSIDE), flow(3, OUTSIDE, "203.0.113.1")


def conntrack(*flows: Flow, refuse: int = 0) -> FakeConntrack:
    held = FakeConntrack(refuse)
    for one in flows:
        held.insert(one)
    return held


def cut(held: FakeConntrack) -> set[Ends]:
    assert all(one.mark & ~CUT == OTHERS for one in held.entries.values())
    return {ends for ends, one in held.entries.items() if one.mark & CUT}


async def with_web() -> MuteEtcd:
    kv = MuteEtcd()
    await put(kv, pool("10.0.0.0/24", blockSize=28))
    return kv


async def policy_is(node: FakeNode, denied: bool) -> None:
    if denied:
        await put(node.kv, DENY)
    await node.caught_up()
    await node.state.police()
    node.state.policy_changed.set()


async def test_what_is_denied_now_is_cut_and_nothing_else_and_comes_back_when_it_is_allowed() -> None:
    async with running(await with_web()) as node:
        await node.workloads.attach(request("web", address=WEB))
        held = conntrack(IN, OUT, FOREIGN)
        await live.judge_once(node.state, held)
        assert cut(held) == set()
        await policy_is(node, denied=True)
        await live.judge_once(node.state, held)
        assert cut(held) == {IN.original}
        assert node.state.cuts == 1
        await live.judge_once(node.state, held)
        assert node.state.cuts == 1
        [deny] = [key for key in node.state.snapshot.seen if "networkpolicies" in key]
        await node.kv.commit(Txn((), (Delete(deny),)))
        await policy_is(node, denied=False)
        await live.judge_once(node.state, held)
        assert cut(held) == set()


@pytest.mark.parametrize("refuse", [0, errno.EBUSY])
async def test_each_change_is_judged_also_after_a_refusal(
    refuse: int,
) -> None:
    async with running(await with_web()) as node:
        await node.workloads.attach(request("web", address=WEB))
        held = conntrack(IN, OUT, refuse=refuse)
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            judging = tasks.create_task(live.judge(node.state, held, first_retry=0.01))
            await policy_is(node, denied=True)
            await node.state.until(lambda: cut(held) == {IN.original})
            judging.cancel()


async def test_before_there_is_any_policy_nothing_is_judged() -> None:
    async with running(await with_web()) as node:
        await live.judge_once(node.state, held := conntrack(IN))
        assert cut(held) == set()


class Absent(FakeConntrack):
    """That of a kernel without the module; `asked` is released with each time it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Semaphore(0)

    async def flows(self, addresses: AbstractSet[Address], bits: int) -> list[Flow]:
        self.asked.release()
        raise DataplaneError("conntrack dump", errno.EINVAL, "nothing was changed")


async def test_a_kernel_without_connection_tracking_is_told_once_and_asked_again() -> None:
    async with running(await with_web()) as node:
        await node.workloads.attach(request("web", address=WEB))
        absent = Absent()
        with capture_logs() as logged:
            async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
                judging = tasks.create_task(live.judge(node.state, absent, first_retry=0.01))
                for _ in range(3):
                    await absent.asked.acquire()
                judging.cancel()
        assert [line["error"] for line in logged if line["log_level"] == "warning"] == [
            "conntrack dump: Invalid argument [EINVAL]; nothing was changed"
        ]


async def test_what_is_cut_is_named_with_what_denies_it_ten_of_them_at_most() -> None:
    async with running(await with_web()) as node:
        await node.workloads.attach(request("web", address=WEB))
        held = conntrack(*(flow(port) for port in range(1, 13)))
        await policy_is(node, denied=True)
        with capture_logs() as logged:
            await live.judge_once(node.state, held)
            await live.judge_once(node.state, held)
        [line] = logged
        assert (line["event"], line["cut"]) == ("live connections", 12)
        which = line["which"].split("; ")
        assert len(which) == live.NAMED
        assert set(which) == {
            "outside (198.51.100.9) -> default/web (10.0.0.5) tcp/80: denied by GlobalNetworkPolicy deny ingress rule 0"
        }
