from ipaddress import ip_address, ip_network
from itertools import permutations

import pytest

from bgp.nexthop import Resolved, Underlay, resolve

TOR = ip_address("192.0.2.254")


def route(prefix: str, device: str, gateway: str = "", metric: int = 0) -> Underlay:
    return Underlay(ip_network(prefix), ip_address(gateway) if gateway else None, device, metric)


LINK = route("192.0.2.0/24", "eth1")
BEHIND = route("198.51.100.0/24", "eth1", "192.0.2.254", 20)
DEFAULT = route("0.0.0.0/0", "eth0", "10.0.0.1")
V6_DEFAULT = route("::/0", "eth0", "fe80::1")


@pytest.mark.parametrize(
    ("next_hop", "underlay", "want"),
    [
        pytest.param("192.0.2.7", [LINK], Resolved(ip_address("192.0.2.7"), "eth1"), id="on a link"),
        pytest.param("198.51.100.7", [LINK, BEHIND], Resolved(TOR, "eth1", 20), id="behind a gateway"),
        pytest.param("203.0.113.1", [LINK, DEFAULT], None, id="never through a default route"),
        pytest.param("2001:db8::1", [V6_DEFAULT, LINK], None, id="never through a default route, IPv6"),
        pytest.param("192.0.2.7", [], None, id="no routes at all"),
        pytest.param(
            "192.0.2.7",
            [LINK, route("192.0.2.0/25", "eth2", metric=900)],
            Resolved(ip_address("192.0.2.7"), "eth2", 900),
            id="the longest prefix wins over the metric",
        ),
        pytest.param(
            "192.0.2.7",
            [route("192.0.2.0/24", "eth0", metric=200), route("192.0.2.0/24", "eth1", metric=100)],
            Resolved(ip_address("192.0.2.7"), "eth1", 100),
            id="then the lowest metric",
        ),
        pytest.param(
            "198.51.100.7",
            [BEHIND, route("198.51.100.0/24", "eth1", "192.0.2.253", 20)],
            Resolved(ip_address("192.0.2.253"), "eth1", 20),
            id="two gateways of one route",
        ),
    ],
)
def test_resolve(next_hop: str, underlay: list[Underlay], want: Resolved | None) -> None:
    for order in permutations(underlay):
        assert resolve(ip_address(next_hop), order) == want
