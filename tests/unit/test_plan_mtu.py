"""How large packets may be: tables of what the host and the pools say."""

from ipaddress import ip_address, ip_network

import pytest

from fabric.plan.encap import IPIP, VXLAN, VXLAN6, Pool
from fabric.plan.mtu import Mtus, egress, tunnel, workload
from fabric.plan.routes import NextHop, Route, RouteKey

LINKS = {"eth0": 1500, "eth1": 9000, "eth2": 1400}


def route(prefix: str, *devices: str, metric: int = 0) -> Route:
    return Route(
        RouteKey(ip_network(prefix), metric), frozenset(NextHop(device=device) for device in devices)
    )


@pytest.mark.parametrize(
    ("routes", "destinations", "want"),
    [
        pytest.param([], ["10.0.0.2"], 1234, id="no route"),
        pytest.param([route("10.0.0.0/24", "eth1")], ["10.0.0.2"], 9000, id="one link"),
        pytest.param([route("10.0.0.0/24", "eth1")], [], 1234, id="nobody there"),
        pytest.param(
            [route("10.0.0.0/24", "eth1"), route("0.0.0.0/0", "eth0")], ["10.0.0.2"], 1500, id="default"
        ),
        pytest.param(
            [route("10.0.0.0/24", "eth1"), route("::/0", "eth2")], ["10.0.0.2"], 1400, id="IPv6 default"
        ),
        pytest.param([route("10.0.0.0/24", "eth1", "eth0")], ["10.0.0.2"], 1500, id="several next hops"),
        pytest.param(
            [route("10.0.0.0/16", "eth2"), route("10.0.0.0/24", "eth1")],
            ["10.0.0.2"],
            9000,
            id="longest match",
        ),
        pytest.param(
            [route("10.0.0.0/16", "eth2"), route("10.0.0.0/24", "eth1")],
            ["10.0.0.2", "10.0.1.2"],
            1400,
            id="both",
        ),
        pytest.param(
            [route("0.0.0.0/0", "eth2", metric=600), route("0.0.0.0/0", "eth0", metric=100)],
            [],
            1500,
            id="metric",
        ),
        pytest.param(
            [route("fd00::/64", "eth2"), route("10.0.0.0/24", "eth0")], ["fd00::2"], 1400, id="IPv6"
        ),
        pytest.param([route("10.0.0.0/24", "tun7")], ["10.0.0.2"], 1234, id="a link that does not count"),
        pytest.param(
            [route("10.0.0.0/24", "tun7"), route("0.0.0.0/0", "eth0")], ["10.0.0.2"], 1500, id="and one"
        ),
    ],
)
def test_egress(routes: list[Route], destinations: list[str], want: int) -> None:
    assert egress(routes, LINKS, map(ip_address, destinations), 1234) == want


def pool(prefix: str, kind: str | None = None, mode: str = "Always", fallback: bool = False) -> Pool:
    return Pool(ip_network(prefix), kind, mode, fallback)  # type: ignore[arg-type]  # literals in a table


FOUR, SIX = "10.244.0.0/16", "fd00::/48"


@pytest.mark.parametrize(
    ("pools", "want"),
    [
        pytest.param([], Mtus(1500, 1500), id="none"),
        pytest.param([pool(FOUR), pool(SIX)], Mtus(1500, 1500), id="native"),
        pytest.param([pool(FOUR, "ipip", "Never")], Mtus(1500, 1500), id="Never"),
        pytest.param([pool(FOUR, "ipip"), pool(SIX)], Mtus(1480, 1500), id="IPIP"),
        pytest.param([pool(FOUR, "ipip", "CrossSubnet")], Mtus(1480, 1500), id="CrossSubnet"),
        pytest.param([pool(FOUR, "vxlan")], Mtus(1450, 1500), id="VXLAN"),
        pytest.param([pool(FOUR, "ipip", fallback=True)], Mtus(1450, 1500), id="fallback"),
        pytest.param([pool(FOUR, "ipip"), pool("10.1.0.0/16", "vxlan")], Mtus(1450, 1500), id="the largest"),
        pytest.param([pool(SIX, "vxlan")], Mtus(1500, 1430), id="VXLAN of IPv6"),
        pytest.param([pool(FOUR, "ipip"), pool(SIX, "vxlan")], Mtus(1480, 1430), id="a family each"),
    ],
)
def test_workload(pools: list[Pool], want: Mtus) -> None:
    assert workload(1500, pools) == want


def test_ipv6_never_has_less_than_its_minimum() -> None:
    assert workload(1300, [pool(FOUR, "vxlan"), pool(SIX, "vxlan")]) == Mtus(1250, 1280)


def test_a_tunnel_takes_its_part() -> None:
    assert [tunnel(1400, encap) for encap in (IPIP, VXLAN, VXLAN6)] == [1380, 1350, 1330]
