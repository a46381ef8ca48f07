from ipaddress import IPv4Address, ip_address, ip_network
from itertools import permutations

import pytest

from bgp.rib import Announcement, Attributes, SessionSpec
from bgp.speaker.codec import encode
from bgp.speaker.rewanted import applied, difference
from bgp.speaker.seam import Wanted

A, B = ip_address("10.0.0.2"), ip_address("10.0.0.3")
ONE, TWO = (
    SessionSpec(peer, 65002, ip_address("10.0.0.1"), 65001, IPv4Address("10.0.0.1")) for peer in (A, B)
)
X, Y = (Announcement(ip_network(f"10.{n}.0.0/24")) for n in (1, 2))
X_MOVED = Announcement(X.prefix, None, Attributes(med=5))
STATES = [
    Wanted(),
    Wanted(frozenset({ONE}), {A: frozenset({X})}),
    Wanted(frozenset({ONE, TWO}), {A: frozenset({X_MOVED, Y}), B: frozenset({X})}, {A: 10}),
    Wanted(frozenset({TWO}), {B: frozenset({X, Y})}, {A: 20, B: 10}),
]


@pytest.mark.parametrize(("before", "after"), list(permutations(STATES, 2)))
def test_applied_is_the_inverse_of_difference(before: Wanted, after: Wanted) -> None:
    assert applied(before, difference(before, after)) == after


def test_no_announcements_are_as_good_as_none() -> None:
    none = Wanted(frozenset({ONE}), {A: frozenset()})
    assert applied(STATES[1], difference(STATES[1], none)) == Wanted(frozenset({ONE}))


def test_one_path_more_is_a_short_message_whatever_was_there() -> None:
    many = frozenset(Announcement(ip_network(f"10.{n >> 8}.{n & 255}.0/24")) for n in range(5000))
    before = Wanted(frozenset({ONE}), {A: many, B: many})
    more = Announcement(ip_network("10.99.0.0/24"))
    after = Wanted(frozenset({ONE}), {A: many | {more}, B: many | {more}})
    assert len(encode(difference(before, after))) < 1000
    assert len(encode(after)) < 1.1 * len(encode(Wanted(frozenset({ONE}), {A: many}))), "equal tables go once"
