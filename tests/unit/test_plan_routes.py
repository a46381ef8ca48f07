"""The plan of routes as data; then walks over the fake, also under refusals."""

import errno
from ipaddress import ip_address, ip_network
from itertools import permutations

import pytest

from fabric.plan.routes import (
    Delete,
    NextHop,
    Op,
    Prefix,
    Replace,
    Route,
    RouteKey,
    RouteSet,
    apply,
    merge,
    plan,
)
from tests.fakes.fib import FakeFib


def route(prefix: str, *vias: str) -> Route:
    return Route(RouteKey(ip_network(prefix)), frozenset(NextHop(ip_address(via)) for via in vias))


def on(prefix: str, device: str) -> Route:
    return Route(RouteKey(ip_network(prefix)), frozenset({NextHop(device=device)}))


def blackhole(prefix: str) -> Route:
    return Route(RouteKey(ip_network(prefix)), frozenset(), blackhole=True)


def table(*routes: Route) -> RouteSet:
    return {r.key: r for r in routes}


A = route("10.244.1.0/26", "192.0.2.11")
A_MOVED = route("10.244.1.0/26", "192.0.2.12")
A_ECMP = route("10.244.1.0/26", "192.0.2.11", "192.0.2.12")
B = route("10.244.2.0/26", "192.0.2.12")
V6 = route("2001:db8:1::/64", "2001:db8::11")
WEB = on("10.244.1.2/32", "fab0123456789ab")


@pytest.mark.parametrize(
    ("desired", "actual", "in_sync", "want"),
    [
        pytest.param(table(A, B), table(B, A), True, [], id="nothing to do"),
        pytest.param(table(V6, A), {}, True, [Replace(A), Replace(V6)], id="first boot"),
        pytest.param(table(A_MOVED), table(A), True, [Replace(A_MOVED)], id="affinity moved"),
        pytest.param(table(A_ECMP), table(A), True, [Replace(A_ECMP)], id="second next hop"),
        pytest.param(table(B), table(A), True, [Replace(B), Delete(A.key)], id="add, then sweep"),
        pytest.param({}, table(A, B), False, [], id="no sweep before in-sync"),
    ],
)
def test_plan(desired: RouteSet, actual: RouteSet, in_sync: bool, want: list[Op]) -> None:
    assert plan(desired, actual, in_sync=in_sync) == want


def test_a_scope_hides_everything_else() -> None:
    scope: set[Prefix] = {WEB.key.prefix}
    assert plan(table(A, WEB), table(B), scope=scope) == [Replace(WEB)]
    assert plan(table(A), table(B, WEB), scope=scope) == [Delete(WEB.key)]


HERE, REMOTE = on("10.244.1.2/32", "fab0"), route("10.244.1.2/32", "192.0.2.11")
STATIC, HOLE = route("10.244.1.2/32", "192.0.2.12"), blackhole("10.244.1.2/32")
STORED = route("10.244.1.2/32", "192.0.2.13")


@pytest.mark.parametrize(
    ("merged", "want"),
    [
        pytest.param(
            merge(workloads=[HERE], static=[STATIC], overlay=[STORED], bgp=[REMOTE], blackholes=[HOLE]),
            HERE,
            id="local",
        ),
        pytest.param(
            merge(static=[STATIC], overlay=[STORED], bgp=[REMOTE], blackholes=[HOLE]), STATIC, id="static"
        ),
        pytest.param(merge(overlay=[STORED], bgp=[REMOTE], blackholes=[HOLE]), STORED, id="overlay"),
        pytest.param(merge(bgp=[REMOTE], blackholes=[HOLE]), REMOTE, id="bgp"),
        pytest.param(merge(blackholes=[HOLE]), HOLE, id="blackhole"),
    ],
)
def test_the_better_class_holds_the_prefix(merged: RouteSet, want: Route) -> None:
    assert merged == table(want)


def test_different_prefixes_of_all_classes_stand_side_by_side() -> None:
    hole = blackhole("10.244.1.0/26")
    assert merge(workloads=[WEB], bgp=[B], blackholes=[hole]) == table(WEB, B, hole)


def test_rivals_of_one_class_do_not_depend_on_their_order() -> None:
    rivals = [on("10.244.1.2/32", device) for device in ("fab2", "fab0", "fab1")]
    assert {tuple(merge(workloads=walk).values()) for walk in permutations(rivals)} == {(rivals[1],)}


GOALS = [table(), table(A), table(A, B), table(A_MOVED, B), table(A_ECMP, WEB), table(V6), table(A, B, V6)]


@pytest.mark.parametrize("walk", list(permutations(GOALS, 3)))
async def test_the_fib_depends_on_the_goal_not_on_the_walk(walk: tuple[RouteSet, ...]) -> None:
    fib = FakeFib()
    for goal in walk:
        assert not await apply(plan(goal, fib.routes), fib)
        assert fib.routes == goal
        assert plan(goal, fib.routes) == []


@pytest.mark.parametrize("victim", [A, B, V6, WEB], ids=lambda r: str(r.key.prefix))
@pytest.mark.parametrize("walk", list(permutations(GOALS, 2)))
async def test_a_walk_with_a_refusal_ends_where_it_would_have(
    walk: tuple[RouteSet, ...], victim: Route
) -> None:
    fib = FakeFib(refuse={victim.key: errno.EBUSY})
    for goal in walk:
        refused = await apply(plan(goal, fib.routes), fib)
        assert plan(goal, fib.routes) == list(refused)
        assert not await apply(plan(goal, fib.routes), fib)
        assert fib.routes == goal


@pytest.mark.parametrize("code", [errno.EBUSY, errno.ENETUNREACH], ids=errno.errorcode.get)
async def test_a_refusal_spares_the_rest_and_is_planned_again(code: int) -> None:
    goal, fib = table(A, B), FakeFib(refuse={A.key: code})
    refused = await apply(plan(goal, fib.routes), fib)
    assert {op: err.code for op, err in refused.items()} == {Replace(A): code}
    assert fib.routes == table(B)
    assert plan(goal, fib.routes) == [Replace(A)]
