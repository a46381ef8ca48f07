"""What every `Fib` promises, run on the fake and on the kernel; then what only a kernel can show."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address, ip_network
from itertools import permutations
from pathlib import Path

import pytest

from fabric.errors import DataplaneError
from fabric.kernel.routes import NetlinkFib
from fabric.plan.routes import (
    FABRIC_METRIC,
    Delete,
    Fib,
    NextHop,
    Op,
    Replace,
    Route,
    RouteKey,
    RouteSet,
    apply,
    plan,
)
from tests.contract.netns import CLONE_NEWNET, Namespace
from tests.fakes.fib import FakeFib


class Bench:
    def __init__(self, fib: Fib, host: Namespace) -> None:
        self.fib, self.host = fib, host

    def actual(self) -> RouteSet:
        return {route.key: route for route in self.host.run(_owned(self.fib))}

    def heal(self, goal: RouteSet) -> dict[Op, DataplaneError]:
        return self.host.run(apply(plan(goal, self.actual()), self.fib))


async def _owned(fib: Fib) -> list[Route]:
    return list(await fib.owned_routes())


def via(prefix: str, *gateways: str, device: str | None = None) -> Route:
    hops = frozenset(NextHop(ip_address(gateway), device) for gateway in gateways)
    return Route(RouteKey(ip_network(prefix)), hops)


def on(prefix: str, device: str) -> Route:
    return Route(RouteKey(ip_network(prefix)), frozenset({NextHop(None, device)}))


def blackhole(prefix: str) -> Route:
    return Route(RouteKey(ip_network(prefix)), frozenset(), blackhole=True)


def table(*routes: Route) -> RouteSet:
    return {route.key: route for route in routes}


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace() as space:
        space.ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
        for device in ("up0", "up1"):
            path = Path(f"/proc/sys/net/ipv6/conf/{device}/accept_dad")
            space.call(partial(path.write_text, "0"))
            space.ip("link", "set", device, "up")
        for address in ("192.0.2.1/24", "2001:db8::1/64"):
            space.ip("address", "add", address, "dev", "up0")
        yield space


@pytest.fixture(params=["fake", "kernel"])
def bench(request: pytest.FixtureRequest, host: Namespace) -> Iterator[Bench]:
    if request.param == "fake":
        yield Bench(FakeFib(), host)
    else:
        with host.call(NetlinkFib) as fib:
            yield Bench(fib, host)


@pytest.fixture
def real(host: Namespace) -> Iterator[Bench]:
    with host.call(NetlinkFib) as fib:
        yield Bench(fib, host)


KINDS = {
    "workload": (on("10.244.1.2/32", "up0"), on("fd00:244::2/128", "up0")),
    "gateway": (via("10.244.3.0/26", "192.0.2.11"), via("fd00:3::/122", "2001:db8::11")),
    "ecmp": (
        via("10.244.4.0/26", "192.0.2.11", "192.0.2.12"),
        via("fd00:4::/122", "2001:db8::11", "2001:db8::12"),
    ),
    "three": (
        via("10.244.4.0/26", "192.0.2.11", "192.0.2.12", "192.0.2.13"),
        via("fd00:4::/122", "2001:db8::11", "2001:db8::12", "2001:db8::13"),
    ),
    "onlink": (
        via("10.244.5.0/26", "198.51.100.9", device="up1"),
        via("fd00:5::/122", "fe80::1", device="up1"),
    ),
    "blackhole": (blackhole("10.244.6.0/26"), blackhole("fd00:6::/122")),
    "default": (via("0.0.0.0/0", "192.0.2.254"), via("::/0", "2001:db8::fe")),
    "RFC 8950: IPv4 by IPv6": (
        via("10.244.7.0/26", "2001:db8::11"),
        via("10.244.7.64/26", "2001:db8::11", "2001:db8::12", "192.0.2.11"),
        via("10.244.7.128/26", "fe80::1", device="up1"),
        via("10.244.7.192/26", "fe80::1", "fe80::2", "198.51.100.9", device="up1"),
        via("0.0.0.0/0", "2001:db8::fe"),
    ),
}


@pytest.mark.parametrize("routes", KINDS.values(), ids=KINDS.keys())
def test_what_was_written_is_read_back_so_the_next_plan_is_empty(
    bench: Bench, routes: tuple[Route, ...]
) -> None:
    goal = table(*routes)
    assert bench.heal(goal) == {}
    assert bench.actual() == goal
    assert bench.heal({}) == {}
    assert bench.actual() == {}


ONE_KEY = {
    4: [
        on("10.244.9.0/26", "up0"),
        via("10.244.9.0/26", "192.0.2.11"),
        via("10.244.9.0/26", "192.0.2.11", "192.0.2.12"),
        via("10.244.9.0/26", "192.0.2.12", "192.0.2.13", "192.0.2.14"),
        via("10.244.9.0/26", "2001:db8::11"),
        via("10.244.9.0/26", "2001:db8::11", "192.0.2.12"),
        blackhole("10.244.9.0/26"),
    ],
    6: [
        on("fd00:9::/122", "up0"),
        via("fd00:9::/122", "2001:db8::11"),
        via("fd00:9::/122", "2001:db8::11", "2001:db8::12"),
        via("fd00:9::/122", "2001:db8::12", "2001:db8::13", "2001:db8::14"),
        blackhole("fd00:9::/122"),
    ],
}


@pytest.mark.parametrize("version", ONE_KEY)
def test_any_route_replaces_any_other_of_its_key_whole(bench: Bench, version: int) -> None:
    for first, second in permutations(ONE_KEY[version], 2):
        for goal in (table(first), table(second)):
            assert bench.heal(goal) == {}
            assert bench.actual() == goal


def test_deleting_twice_is_no_error(bench: Bench) -> None:
    for route in (*KINDS["ecmp"], *KINDS["blackhole"]):
        bench.host.run(bench.fib.replace(route))
        for _ in range(2):
            bench.host.run(bench.fib.delete(route.key))
    assert bench.actual() == {}


# From here on the kernel only.


def test_a_refused_replacement_keeps_the_route_and_says_why(real: Bench) -> None:
    good = via("10.244.3.0/26", "192.0.2.11")
    bad = via("10.244.3.0/26", "203.0.113.9")
    real.heal(table(good))
    refused = real.heal(table(bad))
    assert {op: err.code for op, err in refused.items()} == {Replace(bad): errno.ENETUNREACH}
    (message,) = map(str, refused.values())
    assert "route 10.244.3.0/26 via 203.0.113.9" in message
    assert "invalid gateway" in message
    assert "the previous route was kept" in message
    assert real.actual() == table(good)


def test_a_missing_device_is_named(real: Bench) -> None:
    with pytest.raises(DataplaneError, match="link nosuch is not there") as caught:
        real.host.run(real.fib.replace(on("10.244.1.2/32", "nosuch")))
    assert caught.value.code == errno.ENODEV


def test_a_link_local_gateway_needs_its_device(real: Bench) -> None:
    with pytest.raises(DataplaneError, match=r"route 10\.244\.7\.0/26 via fe80::1 .*previous route was kept"):
        real.host.run(real.fib.replace(via("10.244.7.0/26", "fe80::1")))


def test_drift_is_found_exactly(real: Bench) -> None:
    kept, lost = KINDS["gateway"]
    real.heal(table(kept, lost))
    real.host.ip("-6", "route", "del", str(lost.key.prefix))
    assert plan(table(kept, lost), real.actual()) == [Replace(lost)]
    real.host.ip("route", "add", "10.250.0.0/16", "via", "192.0.2.9", "proto", "143")
    stray = RouteKey(ip_network("10.250.0.0/16"), 0)
    assert plan(table(kept, lost), real.actual()) == [Replace(lost), Delete(stray)]
    assert real.heal(table(kept, lost)) == {}
    assert real.actual() == table(kept, lost)


def test_an_agent_with_no_memory_sweeps_only_ours(real: Bench) -> None:
    real.heal(table(*KINDS["gateway"], *KINDS["blackhole"]))
    for words in (
        ("route", "add", "10.1.0.0/16", "via", "192.0.2.9", "proto", "80"),
        ("route", "add", "10.2.0.0/16", "via", "192.0.2.9", "proto", "143", "table", "100"),
        ("route", "add", "10.244.3.0/26", "via", "192.0.2.9", "metric", "50"),
        ("-6", "route", "add", "fd00:3::/122", "via", "2001:db8::9", "metric", "50"),
    ):
        real.host.ip(*words)
    strangers = real.host.run(_foreign())
    with real.host.call(NetlinkFib) as reborn:
        Bench(reborn, real.host).heal({})
    assert real.actual() == {}
    assert real.host.run(_foreign()) == strangers
    assert "10.2.0.0/16" in real.host.ip("route", "show", "table", "100")


def test_foreign_routes_carry_their_devices_and_none_of_ours(real: Bench) -> None:
    real.heal(table(*KINDS["gateway"]))
    real.host.ip("route", "add", "default", "via", "192.0.2.254")
    found = real.host.run(_foreign())
    assert Route(RouteKey(ip_network("192.0.2.0/24"), 0), frozenset({NextHop(None, "up0")})) in found
    hop = NextHop(ip_address("192.0.2.254"), "up0")
    assert Route(RouteKey(ip_network("0.0.0.0/0"), 0), frozenset({hop})) in found
    assert not {route.key for route in found if route.key.metric == FABRIC_METRIC}


def test_foreign_routes_are_read_whole(real: Bench) -> None:
    real.host.ip("route", "add", "10.9.0.0/24", "via", "inet6", "fe80::1", "dev", "up0", "metric", "7")
    hops = ("nexthop", "via", "inet6", "2001:db8::9", "nexthop", "via", "192.0.2.9", "weight", "2")
    real.host.ip("route", "add", "10.9.1.0/24", *hops)
    real.host.ip("link", "set", "up1", "down")  # up0 has no carrier then, and keeps its routes
    found = {route.key: route.next_hops for route in real.host.run(_foreign())}
    assert found[RouteKey(ip_network("10.9.0.0/24"), 7)] == {NextHop(ip_address("fe80::1"), "up0")}
    assert found[RouteKey(ip_network("10.9.1.0/24"), 0)] == {
        NextHop(ip_address(gateway), "up0") for gateway in ("2001:db8::9", "192.0.2.9")
    }
    assert found[RouteKey(ip_network("2001:db8::/64"), 256)] == {NextHop(None, "up0")}


def test_a_host_without_ipv6_has_only_ipv4_routes(real: Bench) -> None:
    real.host.command(
        "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"
    )
    real.heal(table(KINDS["gateway"][0]))
    assert real.actual() == table(KINDS["gateway"][0])
    assert {route.key.prefix.version for route in real.host.run(_foreign())} == {4}


def test_a_namespace_that_never_had_a_route_has_none() -> None:
    with Namespace() as space:  # whose lo is up, and has made the table
        assert space.call(lambda: ctypes.CDLL(None).unshare(CLONE_NEWNET)) == 0
        assert space.run(_foreign()) == []


async def _foreign() -> list[Route]:
    with NetlinkFib() as fib:
        return sorted(await fib.foreign_routes(), key=str)


def test_many_routes_in_one_pass(real: Bench) -> None:
    base = int(ip_address("10.64.0.0"))
    goal = table(*(via(f"{ip_address(base + 64 * number)}/26", "192.0.2.11") for number in range(2000)))
    assert real.heal(goal) == {}
    assert real.actual() == goal
    assert real.heal({}) == {}
    assert real.actual() == {}
