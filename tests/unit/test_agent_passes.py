"""Passes over a FIB and links in memory: the goal counts, not the walk to it."""

import asyncio
import errno
from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import permutations

import pytest
from structlog.testing import capture_logs

from fabric.agent.compose import compose
from fabric.agent.desired import Desired
from fabric.agent.passes import AT_ONCE, ROUTES_AT_ONCE, GapLog, Outcome, Passes, Scope
from fabric.agent.rules import Gap, Restore, Rules
from fabric.agent.state import State
from fabric.errors import DataplaneError
from fabric.plan import tunnels
from fabric.plan.encap import VXLAN
from fabric.plan.ipsets import Destroy
from fabric.plan.links import Create, Remove, Repair, Veth
from fabric.plan.mtu import Mtus
from fabric.plan.routes import NextHop, Replace, Route, RouteKey
from fabric.plan.tables import Version
from fabric.plan.tunnels import Far, Tunnel
from policy.form import IPSet, Line, Rendered
from tests.fakes.fib import FakeFib
from tests.fakes.ipsets import FakeIPSets
from tests.fakes.node import RoutedLinks
from tests.fakes.tables import FakeTables
from tests.fakes.tunnels import FakeTunnels


def veth(number: int) -> Veth:
    address = ip_network(f"10.244.1.{number}/32").network_address
    return Veth(
        f"fab{number:012}",
        f"/run/netns/w{number}",
        "eth0",
        f"02:00:00:00:00:{number:02x}",
        (address,),
        Mtus(1500, 1500),
    )


def to(link: Veth) -> Route:
    return Route(RouteKey(ip_network(link.addresses[0])), frozenset({NextHop(device=link.name)}))


def goal(*numbers: int, blackhole: bool = True) -> Desired:
    links = [veth(n) for n in numbers]
    hole = Route(RouteKey(ip_network("10.244.1.0/26")), frozenset(), blackhole=True)
    routes = [*map(to, links), *([hole] if blackhole else [])]
    return Desired(links={link.name: link for link in links}, routes={route.key: route for route in routes})


class Kernel:
    def __init__(self, linger: float = 0.0) -> None:
        self.fib = FakeFib()
        self.links: RoutedLinks = RoutedLinks(self.fib)
        self.tunnels = FakeTunnels()
        self.sets, self.tables = FakeIPSets(), FakeTables()
        self.passes = Passes(self.links, self.fib, Rules(self.sets, self.tables), self.tunnels, linger=linger)

    async def run(
        self,
        goal: Desired,
        *,
        in_sync: bool = True,
        read_back: bool = False,
        edited: frozenset[Version] = frozenset(),
        scope: Scope | None = None,
    ) -> Outcome:
        return await self.passes.run(
            lambda: replace(goal, settled=in_sync), read_back=read_back, edited=edited, scope=scope
        )

    def is_at(self, goal: Desired) -> bool:
        return self.links.links.keys() == goal.links.keys() and self.fib.routes == goal.routes


A, B, BOTH, NONE = goal(1), goal(2), goal(1, 2), Desired()


@pytest.mark.parametrize("walk", list(permutations([A, B, BOTH, NONE], 3)))
@pytest.mark.parametrize("read_back", [False, True])
async def test_the_kernel_depends_on_the_goal_not_on_the_walk(
    walk: tuple[Desired, ...], read_back: bool
) -> None:
    kernel = Kernel()
    for desired in walk:
        assert not (await kernel.run(desired, read_back=read_back)).refused
        assert kernel.is_at(desired)
        assert await kernel.run(desired, read_back=read_back) == Outcome()


@pytest.mark.parametrize("walk", list(permutations([A, B, NONE], 3)))
@pytest.mark.parametrize("what", ["link", "route"])
async def test_what_was_refused_is_done_by_the_next_pass_and_spares_the_rest(
    walk: tuple[Desired, ...], what: str
) -> None:
    for step in range(3):
        kernel = Kernel()
        for number, desired in enumerate(walk):
            if number == step:
                kernel.links.refuse = {veth(1).name: errno.EBUSY} if what == "link" else {}
                kernel.fib.refuse = {to(veth(1)).key: errno.EBUSY} if what == "route" else {}
            outcome = await kernel.run(desired)
            assert {err.code for err in outcome.refused.values()} <= {errno.EBUSY}
            if outcome.refused:
                assert not (await kernel.run(desired)).refused
            assert kernel.is_at(desired)


async def test_nothing_is_removed_before_everything_has_been_heard() -> None:
    kernel = Kernel()
    await kernel.run(BOTH)
    await kernel.run(A, in_sync=False)
    assert kernel.is_at(BOTH)
    await kernel.run(A)
    assert kernel.is_at(A)


async def test_a_links_routes_go_with_it_and_are_not_removed_a_second_time() -> None:
    kernel = Kernel()
    await kernel.run(BOTH)
    assert (await kernel.run(A)).done == (Remove(veth(2).name),)
    assert kernel.is_at(A)


async def test_a_restarted_agent_knows_its_own_without_memory() -> None:
    before = Kernel()
    await before.run(BOTH)
    after = Kernel()
    after.fib, after.links = before.fib, before.links
    after.passes = Passes(before.links, before.fib, Rules(FakeIPSets(), FakeTables()), FakeTunnels())
    assert await after.run(BOTH) == Outcome()
    await after.run(A)
    assert after.is_at(A)


async def test_a_read_back_finds_and_heals_drift() -> None:
    kernel = Kernel()
    await kernel.run(BOTH)
    await kernel.links.remove([veth(1).name])
    kernel.fib.routes[RouteKey(ip_network("10.9.0.0/24"))] = Route(
        RouteKey(ip_network("10.9.0.0/24")), frozenset()
    )
    assert await kernel.run(BOTH) == Outcome()
    await kernel.run(BOTH, read_back=True)
    assert kernel.is_at(BOTH)


async def test_a_scoped_pass_touches_only_its_own() -> None:
    kernel = Kernel()
    await kernel.run(A)
    mine = Scope(frozenset({veth(2).name}), frozenset({to(veth(2)).key.prefix}))
    outcome = await kernel.run(goal(2, blackhole=False), scope=mine)
    assert outcome.done == (Create(veth(2)), Replace(to(veth(2))))
    assert kernel.is_at(BOTH)
    await kernel.run(A, scope=mine)
    assert kernel.is_at(A)


class SlowLinks(RoutedLinks):
    """A kernel that takes until `go` is set to make a link."""

    def __init__(self, fib: FakeFib) -> None:
        super().__init__(fib)
        self.go = asyncio.Event()

    async def create(self, link: Veth) -> None:
        await self.go.wait()
        await super().create(link)


def policed(desired: Desired, lines: str = "-j DROP") -> Desired:
    chains = {("filter", "fab-x"): (Line(lines),)}
    sets = {"fab4-s": IPSet("hash:net", 4, frozenset({"10.0.0.1"}))}
    return replace(desired, whole=True, policy=compose([Rendered(4, chains, {}, {}, sets)]))


async def test_policy_comes_before_links_and_routes() -> None:
    kernel = Kernel()
    outcome = await kernel.run(policed(A))
    kinds = [type(op).__name__ for op in outcome.done]
    assert kinds == ["Create", "Restore", "Create", "Replace", "Replace"]
    assert outcome.policy_changed
    again = await kernel.run(policed(A), read_back=True)
    assert (again, again.policy_changed) == (Outcome(), False)


@pytest.mark.parametrize("scoped", [False, True])
async def test_no_link_is_made_that_policy_does_not_stand_before(scoped: bool) -> None:
    scope = Scope(frozenset({veth(2).name}), frozenset({to(veth(2)).key.prefix})) if scoped else None
    kernel = Kernel()
    await kernel.run(policed(A))
    kernel.tables.refuse = errno.EBUSY
    outcome = await kernel.run(policed(BOTH, "-j ACCEPT"), scope=scope)
    assert kernel.is_at(A)  # what was there stays
    assert {type(op) for op in outcome.refused} == {Restore, Create, Replace}
    assert {err.code for err in outcome.refused.values()} == {errno.EBUSY}
    if scope:  # it answers for all of it, also where another's links were made
        assert all(scope.has(op) for op in outcome.refused)
    await kernel.run(policed(BOTH, "-j ACCEPT"))
    assert kernel.is_at(BOTH)


async def test_no_link_carries_127_that_the_guard_does_not_stand_before() -> None:
    kernel = Kernel()
    await kernel.run(policed(A))
    open_to_127 = replace(veth(1), localnet=True)
    desired = replace(policed(A, "-j ACCEPT"), links={open_to_127.name: open_to_127})
    kernel.tables.refuse = errno.EBUSY
    assert Repair(open_to_127) in (await kernel.run(desired)).refused
    assert not kernel.links.links[open_to_127.name].localnet
    assert not (await kernel.run(desired)).refused
    assert kernel.links.links[open_to_127.name].localnet


async def test_a_set_of_old_that_a_rule_of_others_goes_by_holds_up_nobody() -> None:
    scope = Scope(frozenset({veth(2).name}), frozenset({to(veth(2)).key.prefix}))
    kernel = Kernel()
    old = IPSet("hash:net", 4, frozenset({"10.0.0.7"}))
    await kernel.run(replace(A, whole=True, policy=compose([Rendered(4, {}, {}, {}, {"fab4-old": old})])))
    kernel.sets.in_use.add("fab4-old")
    outcome = await kernel.run(policed(BOTH), scope=scope)
    assert list(outcome.refused) == [Destroy("fab4-old")]
    assert not any(scope.has(op) for op in outcome.refused)
    assert kernel.is_at(BOTH)
    kernel.sets.in_use.clear()
    assert (await kernel.run(policed(BOTH))).done == (Destroy("fab4-old"),)


async def test_what_others_changed_in_the_rules_is_put_back_without_reading_all() -> None:
    kernel, desired = Kernel(), policed(A)
    await kernel.run(desired)
    await kernel.links.remove([veth(1).name])  # of which nobody tells
    kernel.tables.others(4, "*filter\n:fab-x - [0:0]\nCOMMIT\n")
    outcome = await kernel.run(desired, edited=frozenset({4}))
    assert [gap.name for gap in outcome.gaps] == ["filter fab-x (IPv4)"]
    assert [type(op) for op in outcome.done] == [Restore]


def test_a_node_is_not_ready_before_policy_has_been_in_force_once() -> None:
    refused = Outcome(refused={Restore(4, ()): DataplaneError("rules", errno.EBUSY)})
    state = State("n1")
    for outcome, lacks in ((refused, True), (Outcome(), False), (refused, False)):
        state.passed(outcome)
        assert ("policy is not in force" in state.missing) == lacks


VTEP = Tunnel(
    VXLAN,
    ip_address("10.244.1.0"),
    ip_address("192.0.2.1"),
    1450,
    mac="66:00:00:00:00:01",
    vni=4096,
    port=4789,
    far=frozenset({Far(ip_address("10.244.2.0"), "66:00:00:00:00:02", ip_address("192.0.2.2"))}),
)
FAR = ip_network("10.244.2.0/26")


def tunnelled(*tunnels: Tunnel) -> Desired:
    """A and a route to another node's block: through the first of `tunnels`, native where there are none."""
    hop = (
        NextHop(ip_address("10.244.2.0"), VTEP.name) if tunnels else NextHop(ip_address("192.0.2.2"), "eth0")
    )
    far = Route(RouteKey(FAR), frozenset({hop}))
    return replace(A, tunnels={t.name: t for t in tunnels}, routes={**A.routes, far.key: far}, whole=True)


async def test_a_tunnel_is_made_before_the_routes_through_it_and_goes_after_they_have_gone() -> None:
    kernel, with_it, without = Kernel(), tunnelled(VTEP), tunnelled()
    done = (await kernel.run(with_it)).done
    assert done[0] == tunnels.Create(VTEP)
    assert await kernel.run(with_it, read_back=True) == Outcome()
    assert kernel.passes.held_tunnels == {VTEP.name: VTEP}
    [replaced, removed] = (await kernel.run(without)).done
    assert replaced == Replace(without.routes[RouteKey(FAR)])
    assert removed == tunnels.Remove(VTEP.name)
    assert kernel.is_at(without)


async def test_an_unwanted_tunnel_lingers_and_one_that_is_wanted_again_stays() -> None:
    kernel = Kernel(linger=0.05)
    await kernel.run(tunnelled(VTEP))
    for _ in range(2):
        await kernel.run(tunnelled())
        assert kernel.tunnels.tunnels
        assert kernel.passes.lingers_until
        assert await kernel.run(tunnelled(VTEP), read_back=True)
        assert kernel.passes.lingers_until is None
    await kernel.run(tunnelled())
    until = kernel.passes.lingers_until
    assert until
    await asyncio.sleep(until + 0.001 - asyncio.get_running_loop().time())
    assert (await kernel.run(tunnelled())).done == (tunnels.Remove(VTEP.name),)
    assert kernel.passes.lingers_until is None


async def test_an_unwanted_tunnel_stays_while_others_send_by_it() -> None:
    kernel = Kernel(linger=0.02)
    await kernel.run(tunnelled(VTEP))
    for received in (0, 7, 9, 9):
        held = kernel.tunnels.tunnels[VTEP.name]
        kernel.tunnels.tunnels[VTEP.name] = replace(held, received=received)
        await kernel.run(tunnelled())
        assert kernel.tunnels.tunnels.keys() == (
            {VTEP.name} if (received, held.received) != (9, 9) else set()
        )
        if until := kernel.passes.lingers_until:
            await asyncio.sleep(until + 0.001 - asyncio.get_running_loop().time())


async def test_a_far_end_goes_after_the_routes_that_led_to_it() -> None:
    kernel, moved = Kernel(), Far(ip_address("10.244.2.9"), "66:00:00:00:00:02", ip_address("192.0.2.2"))
    await kernel.run(tunnelled(VTEP))
    both, after = (replace(VTEP, far=far) for far in (VTEP.far | {moved}, frozenset({moved})))
    hop = NextHop(moved.address, VTEP.name)
    route = Route(RouteKey(FAR), frozenset({hop}))
    goal = tunnelled(after)
    goal = replace(goal, routes={**goal.routes, route.key: route})
    done = (await kernel.run(goal)).done
    assert done == (tunnels.Repair(both), Replace(route), tunnels.Repair(after))
    assert await kernel.run(goal, read_back=True) == Outcome()


async def test_without_its_device_a_route_is_refused_for_the_same_reason_and_both_are_tried_again() -> None:
    kernel, desired = Kernel(), tunnelled(VTEP)
    kernel.tunnels.lacks = {"vxlan"}
    refused = (await kernel.run(desired)).refused
    assert set(refused) == {tunnels.Create(VTEP), Replace(desired.routes[RouteKey(FAR)])}
    assert {err.code for err in refused.values()} == {errno.EOPNOTSUPP}
    assert kernel.fib.routes == A.routes
    kernel.tunnels.lacks.clear()
    assert not (await kernel.run(desired)).refused
    assert kernel.is_at(desired)


async def test_a_tunnel_that_has_to_be_made_anew_has_its_routes_again() -> None:
    kernel, desired = Kernel(), tunnelled(VTEP)
    await kernel.run(desired)
    anew = replace(VTEP, vni=77)
    desired = tunnelled(anew)
    del kernel.fib.routes[RouteKey(FAR)]  # as the kernel does when the device goes
    ops = (await kernel.run(desired)).done
    route = Replace(desired.routes[RouteKey(FAR)])
    assert ops == (tunnels.Remove(VTEP.name), tunnels.Create(anew), route)
    assert kernel.is_at(desired)


async def test_no_tunnel_and_no_far_end_goes_before_everything_has_been_heard() -> None:
    kernel = Kernel()
    await kernel.run(tunnelled(VTEP))
    await kernel.run(tunnelled(), in_sync=False)
    await kernel.run(replace(tunnelled(replace(VTEP, far=frozenset())), whole=False), in_sync=False)
    assert kernel.passes.held_tunnels == {VTEP.name: VTEP}


async def test_where_policy_is_not_in_no_tunnel_opens() -> None:
    kernel, desired = Kernel(), replace(policed(A), tunnels={VTEP.name: VTEP})
    kernel.tables.refuse = errno.EBUSY
    refused = (await kernel.run(desired)).refused
    assert tunnels.Create(VTEP) in refused
    assert not kernel.tunnels.tunnels
    await kernel.run(desired)
    assert kernel.passes.held_tunnels


async def test_an_attach_leaves_tunnels_alone() -> None:
    kernel = Kernel()
    mine = veth(1)
    scope = Scope(frozenset({mine.name}), frozenset({to(mine).key.prefix}))
    assert (await kernel.run(tunnelled(VTEP), scope=scope)).done == (Create(mine), Replace(to(mine)))


def test_a_war_for_one_place_is_told_once_a_minute_and_what_else_was_changed_at_once() -> None:
    hook, chain = Gap("rules", "filter FORWARD (IPv4)", "gone"), Gap("rules", "filter fab-x (IPv4)", "gone")
    told = GapLog()
    with capture_logs() as logged:
        for now, gaps in (
            (0.0, [hook]),
            (0.5, [hook]),
            (1.0, [hook, chain]),
            (59.0, [hook, chain]),
            (60.0, [hook]),
        ):
            told.tell(gaps, now)
    whats = [line["what"] for line in logged]
    assert whats == [f"{hook.name}: gone", f"{chain.name}: gone", f"{hook.name}: gone"]


async def test_passes_wait_for_the_choice_of_a_backend() -> None:
    kernel, tables = Kernel(), FakeTables()
    passes = Passes(kernel.links, kernel.fib, Rules(FakeIPSets()), FakeTunnels())
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(passes.run(lambda: policed(A)))
        await asyncio.sleep(0)
        assert not running.done()
        await passes.use(tables)
    assert tables.rules[4]


async def test_without_a_backend_nothing_becomes_reachable_and_nobody_waits_for_ever() -> None:
    fib = FakeFib()
    passes = Passes(RoutedLinks(fib), fib, Rules(FakeIPSets()), FakeTunnels())
    passes.lack(DataplaneError("choose a backend of iptables", errno.ENOTSUP))
    outcome = await passes.run(lambda: policed(A))
    assert {err.code for err in outcome.refused.values()} == {errno.ENOTSUP}
    assert fib.routes.keys() == goal().routes.keys()
    await passes.use(FakeTables())
    assert not (await passes.run(lambda: policed(A))).refused


async def test_a_long_pass_asks_a_refused_link_once() -> None:
    kernel, many = Kernel(), goal(*range(1, 3 * AT_ONCE))
    kernel.links.gone = {veth(n).netns for n in range(1, 2 * AT_ONCE)}
    outcome = await kernel.run(many)
    gone = {veth(n).name: Create(veth(n)) for n in range(1, 2 * AT_ONCE)}
    assert set(outcome.refused) == {
        *gone.values(),
        *(Replace(r) for r in many.routes.values() for hop in r.next_hops if hop.device in gone),
    }
    assert len(set(map(str, outcome.refused.values()))) == len(gone)  # a route for want of its link
    assert len(kernel.links.links) == AT_ONCE


async def test_a_pass_that_waited_applies_what_is_desired_when_it_begins() -> None:
    kernel, now = Kernel(), [A]
    slow = kernel.links = SlowLinks(kernel.fib)
    passes = Passes(slow, kernel.fib, Rules(FakeIPSets(), FakeTables()), FakeTunnels())
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(passes.run(lambda: now[0]))
        await asyncio.sleep(0)  # both have asked; the first is in the kernel
        now[0] = BOTH
        slow.go.set()
    assert kernel.is_at(BOTH)


async def test_an_attach_waits_for_a_few_links_of_a_long_pass_and_not_for_all() -> None:
    kernel, many = Kernel(), goal(*range(1, 3 * AT_ONCE))
    slow = kernel.links = SlowLinks(kernel.fib)
    passes = Passes(slow, kernel.fib, Rules(FakeIPSets(), FakeTables()), FakeTunnels())
    mine = veth(3 * AT_ONCE - 1)
    scope = Scope(frozenset({mine.name}), frozenset({to(mine).key.prefix}))
    ended: list[Outcome] = []

    async def run(scope: Scope | None) -> None:
        ended.append(await passes.run(lambda: many, scope=scope))

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(run(None))
        await asyncio.sleep(0)
        tasks.create_task(run(scope))
        await asyncio.sleep(0)  # both have asked; the whole pass is in the kernel
        slow.go.set()
    attach, whole = ended
    assert attach.done == (Create(mine), Replace(to(mine)))
    assert Create(mine) not in whole.done
    assert slow.links.keys() == many.links.keys()


class YieldingFib(FakeFib):
    """Lets others run at each route, as the kernel's does."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()

    async def replace(self, route: Route) -> None:
        self.begun.set()
        await asyncio.sleep(0)
        await super().replace(route)


async def test_an_attach_waits_for_a_part_of_a_large_table_and_not_for_all() -> None:
    fib, mine = YieldingFib(), veth(1)
    passes = Passes(RoutedLinks(fib), fib, Rules(FakeIPSets(), FakeTables()), FakeTunnels())
    table = [
        Route(RouteKey(ip_network((0x0B000000 + (n << 8), 24))), frozenset(), blackhole=True)
        for n in range(2 * ROUTES_AT_ONCE + 1)
    ]
    desired = [Desired(routes={route.key: route for route in table})]
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        whole = tasks.create_task(passes.run(lambda: desired[0]))
        await fib.begun.wait()
        desired[0] = Desired(links={mine.name: mine}, routes={**desired[0].routes, to(mine).key: to(mine)})
        scope = Scope(frozenset({mine.name}), frozenset({to(mine).key.prefix}))
        await passes.run(lambda: desired[0], scope=scope)
        assert not whole.done()
        assert len(fib.routes) == ROUTES_AT_ONCE + 1
    assert fib.routes == desired[0].routes
