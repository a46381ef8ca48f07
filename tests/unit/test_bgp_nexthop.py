"""How next hops are resolved; section numbers are RFC 4271's where no other is named."""

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.nexthop import Hop, LongestMatch, Reach, Resolved, Underlay
from bgp.rib import Address, Prefix

TOR = ip_address("192.0.2.254")


def route(prefix: str, device: str, gateway: str = "", metric: int = 0) -> Underlay:
    return Underlay(ip_network(prefix), ip_address(gateway) if gateway else None, device, metric)


LINK = route("192.0.2.0/24", "eth1")
BEHIND = route("198.51.100.0/24", "eth1", "192.0.2.254", 20)
DEFAULT = route("0.0.0.0/0", "eth0", "10.0.0.1")
V6_DEFAULT = route("::/0", "eth0", "fe80::1")
OWN_BLOCK = {ip_network("10.244.1.0/26"): "own block"}


@pytest.mark.parametrize(
    ("next_hop", "underlay", "want"),
    [
        pytest.param("192.0.2.7", [LINK], Resolved(ip_address("192.0.2.7"), "eth1"), id="5.1.3: on a link"),
        pytest.param(
            "198.51.100.7", [LINK, BEHIND], Resolved(TOR, "eth1", 20), id="9.1.2.1: behind a gateway"
        ),
        pytest.param("203.0.113.1", [LINK, DEFAULT], None, id="never through a default route"),
        pytest.param("2001:db8::1", [V6_DEFAULT, LINK], None, id="never through a default route, IPv6"),
        pytest.param("192.0.2.7", [], None, id="no routes at all"),
        pytest.param(
            "2001:db8::7",
            [LINK, route("2001:db8::/64", "eth1", metric=256)],
            Resolved(ip_address("2001:db8::7"), "eth1"),
            id="RFC 8950 4: an IPv6 next hop, whatever the prefix",
        ),
        pytest.param(
            "192.0.2.7",
            [LINK, route("192.0.2.0/25", "eth2", "10.0.0.9", metric=900)],
            Resolved(ip_address("10.0.0.9"), "eth2", 900),
            id="the longest prefix wins over the metric",
        ),
        pytest.param(
            "192.0.2.7",
            [route("192.0.2.0/24", "eth0", metric=200), route("192.0.2.0/24", "eth1", metric=100)],
            Resolved(ip_address("192.0.2.7"), "eth1"),
            id="then the lowest metric; on a link it is no interior cost",
        ),
        pytest.param(
            "198.51.100.7",
            [
                BEHIND,
                route("198.51.100.0/24", "eth2", "192.0.2.1", 20),
                route("198.51.100.0/24", "eth0", "192.0.2.3", 21),
            ],
            Resolved(TOR, "eth1", 20, (Hop(ip_address("192.0.2.1"), "eth2"),)),
            id="two gateways of one route share the load",
        ),
        pytest.param(
            "192.0.2.7",
            [LINK, route("192.0.2.0/24", "eth1", "10.0.0.9")],
            Resolved(ip_address("192.0.2.7"), "eth1"),
            id="a link of its own before a gateway",
        ),
        pytest.param("10.244.1.9", [route("10.0.0.0/8", "eth1", "192.0.2.1")], None, id="in an own block"),
        pytest.param(
            "10.244.1.9",
            [route("10.244.1.9/32", "eth1")],
            Resolved(ip_address("10.244.1.9"), "eth1"),
            id="what is closer than the own block is not in it",
        ),
    ],
)
def test_a_next_hop_is_reached_by(next_hop: str, underlay: list[Underlay], want: Resolved | None) -> None:
    for order in permutations(underlay):
        found = Reach(order, OWN_BLOCK).resolve(ip_address(next_hop))
        assert (found and replace(found, within=None)) == want


def test_the_way_to_a_next_hop_says_which_prefix_it_is_by() -> None:
    reach = Reach([LINK, BEHIND])
    ways = [reach.resolve(ip_address(text)) for text in ("192.0.2.7", "198.51.100.7")]
    assert [way and way.within for way in ways] == [LINK.prefix, BEHIND.prefix]


def test_why_a_next_hop_is_closed_is_told() -> None:
    reach = Reach([LINK], {**OWN_BLOCK, ip_network("192.0.2.1/32"): "this node"})
    told = {
        text: reach.why_closed(ip_address(text)) for text in ("192.0.2.1", "192.0.2.2", "10.244.1.1", "::1")
    }
    assert told == {"192.0.2.1": "this node", "192.0.2.2": "", "10.244.1.1": "own block", "::1": ""}


# A narrow part of the address space, so that prefixes nest.
prefixes = st.builds(
    lambda number, length: ip_network((number >> (32 - length) << (32 - length), length)),
    st.integers(0x0A000000, 0x0A0000FF),
    st.integers(0, 32),
)


@given(st.dictionaries(prefixes, st.integers()), st.integers(0x0A000000, 0x0A0000FF).map(ip_address))
def test_the_longest_match_is_the_one_that_a_scan_finds(
    values: Mapping[Prefix, int], address: Address
) -> None:
    covering = [prefix for prefix in values if prefix.prefixlen and address in prefix]
    want = values[max(covering, key=lambda prefix: prefix.prefixlen)] if covering else None
    assert LongestMatch(values).find(address) == want
