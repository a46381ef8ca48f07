"""The choice of a backend on a real kernel: what changes over, in which order, and what is heard of others."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from shutil import which

import pytest

from fabric.agent.compose import compose
from fabric.agent.desired import Desired
from fabric.agent.filters import Filters
from fabric.agent.passes import Outcome, Passes
from fabric.agent.rules import Rules
from fabric.agent.settings import Backend
from fabric.agent.state import State
from fabric.kernel.ipsets import NetlinkIPSets
from fabric.plan.tables import VERSIONS
from policy.form import IPSet, Line, Rendered
from tests.contract.netns import Namespace
from tests.fakes.fib import FakeFib
from tests.fakes.links import FakeLinks
from tests.fakes.tunnels import FakeTunnels

LINES = (Line("-m set --match-set fab4-s src -j DROP"), Line("-j ACCEPT"))
POLICY = compose(
    [
        Rendered(
            4,
            {("filter", "fab-x"): LINES},
            {("filter", "FORWARD"): (Line("-j fab-x"),)},
            {},
            {"fab4-s": IPSet("hash:net", 4, frozenset({"10.0.0.1"}))},
        )
    ]
)
DESIRED = Desired(whole=True, settled=True, policy=POLICY)


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace() as space:
        yield space


@asynccontextmanager
async def agent() -> AsyncIterator[tuple[Filters, Passes, State]]:
    """What of an agent there is to it, with what it hears."""
    with NetlinkIPSets() as sets:
        state, passes = State("n1"), Passes(FakeLinks(), FakeFib(), Rules(sets), FakeTunnels())
        filters = Filters(state, passes, look=0.05)
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(filters.follow())
            yield filters, passes, state
            following.cancel()


def ours(host: Namespace, backend: str) -> list[str]:
    saved = host.command(f"iptables-{backend}-save").splitlines()
    return [line for line in saved if line.startswith("-A") and "fab:" in line]


def test_a_change_of_backend_leaves_nothing_in_the_other(host: Namespace) -> None:
    async def run() -> None:
        async with agent() as (filters, passes, _):
            for backend in ("nft", "legacy", "nft"):
                await filters.settle(backend)
                assert not (await passes.run(lambda: DESIRED)).refused
                before = await asyncio.to_thread(ours_in_thread)
                assert before[backend] == 3
                await filters.tidy()
                after = await asyncio.to_thread(ours_in_thread)
                assert after == {"nft": 0, "legacy": 0, backend: 3}

    def ours_in_thread() -> dict[str, int]:
        return {backend: len(ours(host, backend)) for backend in ("nft", "legacy")}

    host.run(run())


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_host_that_has_the_tools_of_one_backend_alone_does_without_the_other(
    host: Namespace, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for family in ("iptables", "ip6tables"):
        for tool in ("", "-save", "-restore"):
            name = f"{family}-{backend}{tool}"
            (tmp_path / name).symlink_to(which(name) or name)
    (tmp_path / "setpriv").symlink_to(which("setpriv") or "setpriv")
    monkeypatch.setenv("PATH", str(tmp_path))

    async def run() -> None:
        async with agent() as (filters, passes, _):
            await filters.settle("auto")
            assert passes.rules.tables.backend == backend
            assert not (await passes.run(lambda: DESIRED)).refused
            await filters.tidy()

    host.run(run())


def test_where_no_backend_works_it_is_said_and_looked_for_again(
    host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with agent() as (filters, passes, _):
            with monkeypatch.context() as without:
                without.setenv("PATH", str(tmp_path))
                await filters.settle("auto")
                why = (await passes.run(lambda: DESIRED)).unpoliced
                assert "no policy is enforced; install iptables" in str(why)
            await filters.settle("auto")
            assert not (await passes.run(lambda: DESIRED)).refused

    host.run(run())


def test_where_the_one_in_use_is_all_there_is_a_choice_that_fails_changes_nothing(
    host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with agent() as (filters, passes, state):
            await filters.settle("nft")
            assert not (await passes.run(lambda: DESIRED)).refused
            with monkeypatch.context() as without:
                without.setenv("PATH", str(tmp_path))
                await filters.settle("auto")
                assert "install iptables" in state.filter_problem
            assert await passes.run(lambda: DESIRED) == Outcome()
            await filters.settle("auto")
            assert (passes.rules.tables.backend, state.filter_problem) == ("nft", "")

    host.run(run())


def test_what_others_do_to_our_rules_is_heard_and_put_back(host: Namespace) -> None:
    async def run() -> None:
        async with asyncio.timeout(10), agent() as (filters, passes, state):
            await filters.settle("nft")
            await passes.run(lambda: DESIRED)
            await asyncio.to_thread(host.command, "iptables-nft", "-F")
            async with asyncio.timeout(1):
                while 4 not in state.edited:
                    await state.dirty.wait()
                    state.dirty.clear()
            outcome = await passes.run(lambda: DESIRED, edited=frozenset(state.edited))
            assert {gap.name for gap in outcome.gaps} == {"filter FORWARD (IPv4)", "filter fab-x (IPv4)"}
            assert len(await asyncio.to_thread(ours, host, "nft")) == 3

    host.run(run())


@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("flush fab4-s", "1 of 1 members are gone"),
        ("del fab4-s 10.0.0.1", "1 of 1 members are gone"),
        ("add fab4-s 203.0.113.9", "1 members of others"),
        ("create fab4-t hash:net", "was not there"),
    ],
)
def test_what_others_do_to_our_sets_is_noticed_and_put_back_without_anything_being_told(
    host: Namespace, backend: Backend, command: str, what: str
) -> None:
    async def run() -> None:
        async with asyncio.timeout(10), agent() as (filters, passes, state):
            await filters.settle(backend)
            await passes.run(lambda: DESIRED)
            before = await asyncio.to_thread(host.command, "ipset", "save")
            await asyncio.to_thread(host.command, "ipset", *command.split())
            while len(state.edited) < len(VERSIONS):
                await state.dirty.wait()
                state.dirty.clear()
            outcome = await passes.run(lambda: DESIRED, edited=frozenset(state.edited))
            assert [(gap.name, gap.what) for gap in outcome.gaps] == [(command.split()[1], what)]
            assert passes.rules.gaps["sets"] == 1
            assert await asyncio.to_thread(host.command, "ipset", "save") == before

    host.run(run())
