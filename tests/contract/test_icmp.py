"""How large a packet may be, asked of a real kernel behind real links."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from fabric.kernel.icmp import Way, usable, way
from tests.contract import line as lines
from tests.contract.line import FAR, Line, addressed


@pytest.fixture
def line() -> Iterator[Line]:
    with lines.line() as made:
        yield made


@pytest.fixture
def routed() -> Iterator[Line]:
    with lines.routed() as made:
        yield made


def size(line: Line, address: str, most: int = 1500) -> int | None:
    return line.host.run(usable(ip_address(address), most))


@pytest.mark.parametrize("far", FAR)
def test_what_the_router_says_is_found_and_so_is_a_way_that_has_become_wider(routed: Line, far: str) -> None:
    assert size(routed, far) == 1400
    routed.between.ip("link", "set", "right", "mtu", "1450")
    # The host remembers 1,400 for ten minutes.
    assert "mtu 1400" in routed.host.ip("route", "get", far)
    assert size(routed, far) == 1450


@pytest.mark.parametrize("far", FAR)
def test_a_way_that_drops_what_is_too_large_and_says_nothing_is_measured(line: Line, far: str) -> None:
    addressed(line.host, "10.2.0.1/24", "fd00:2::1/64")
    addressed(line.far, "10.2.0.2/24", "fd00:2::2/64")
    line.between.ip("link", "add", "bridge0", "type", "bridge")
    line.between.ip("link", "set", "bridge0", "up")
    for port in ("left", "right"):
        line.between.ip("link", "set", port, "master", "bridge0")
    assert size(line, far) == 1400


@pytest.mark.parametrize("far", FAR)
def test_the_whole_link_takes_one_probe_more_than_the_smallest(routed: Line, far: str) -> None:
    routed.between.ip("link", "set", "right", "mtu", "1500")
    assert size(routed, far) == 1500
    assert size(routed, far, 9000) == 1500  # more than the link takes is refused at once


@pytest.mark.parametrize("address", ["10.2.0.77", "10.9.9.9", "fd00:2::77", "fd00:9::9"])
def test_who_does_not_answer_has_no_size(routed: Line, address: str) -> None:
    assert size(routed, address) is None


def test_the_way_is_the_link_that_the_routes_give(routed: Line) -> None:
    assert [routed.host.run(way(ip_address(far))) for far in FAR] == [Way("eth0", 1500)] * 2
    routed.host.ip("link", "add", "tunnel0", "mtu", "1380", "type", "veth", "peer", "name", "other")
    routed.host.ip("link", "set", "tunnel0", "up")
    routed.host.ip("route", "add", "10.2.0.2/32", "dev", "tunnel0")
    assert routed.host.run(way(ip_address("10.2.0.2"))) == Way("tunnel0", 1380)


def test_there_is_no_way_without_a_route(line: Line) -> None:
    assert [line.host.run(way(ip_address(far))) for far in FAR] == [None, None]


def test_a_number_of_them_at_once_do_not_take_each_others_answers(routed: Line) -> None:
    async def several() -> set[int | None]:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(usable(ip_address(far), 1500)) for far in FAR * 5]
        return {each.result() for each in asked}

    assert routed.host.run(several()) == {1400}
