from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from bgp.export import adj_rib_out
from bgp.rib import Announcement, SessionSpec

ME = IPv4Address("192.0.2.1")
V4 = SessionSpec(ip_address("192.0.2.254"), 65000, ME, 65001, ME)
V6 = SessionSpec(ip_address("2001:db8::fe"), 65000, ip_address("2001:db8::1"), 65001, ME)
POOLS = ["10.244.0.0/16", "fd00:10::/48"]


@pytest.mark.parametrize(
    ("session", "blocks", "addresses", "want"),
    [
        pytest.param(V4, ["10.244.1.0/26"], [], ["10.244.1.0/26"], id="own blocks"),
        pytest.param(V4, ["10.244.1.0/26"], ["10.244.1.7"], ["10.244.1.0/26"], id="not the /32s in them"),
        pytest.param(
            V4,
            ["10.244.1.0/26"],
            ["10.244.9.7"],
            ["10.244.1.0/26", "10.244.9.7/32"],
            id="but borrowed addresses",
        ),
        pytest.param(V4, [], ["10.244.9.7"], ["10.244.9.7/32"], id="and those without any own block"),
        pytest.param(V4, ["10.245.1.0/26"], ["10.245.9.7"], [], id="nothing outside the pools to export"),
        pytest.param(V4, ["fd00:10::/122"], ["fd00:10::9:1"], [], id="no IPv6 on an IPv4 session"),
        pytest.param(
            V6,
            ["fd00:10::/122", "10.244.1.0/26"],
            ["fd00:10::9:1", "10.244.9.7"],
            ["fd00:10::/122", "fd00:10::9:1/128"],
            id="no IPv4 on an IPv6 session",
        ),
        pytest.param(V4, ["10.244.1.7/32"], ["10.244.1.7"], ["10.244.1.7/32"], id="a block of one address"),
    ],
)
def test_adj_rib_out(session: SessionSpec, blocks: list[str], addresses: list[str], want: list[str]) -> None:
    announced = adj_rib_out(
        session, map(ip_network, blocks), map(ip_address, addresses), map(ip_network, POOLS)
    )
    assert announced == {Announcement(ip_network(prefix)) for prefix in want}
