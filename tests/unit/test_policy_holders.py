from ipaddress import ip_address, ip_network

from policy.form import Key
from policy.holders import Holders

A, B = Key("X", "", "a"), Key("X", "", "b")
HOST, NET, V6 = ip_network("10.0.0.1/32"), ip_network("10.0.0.0/24"), ip_network("fd00::/64")
ALL = ip_network("0.0.0.0/0")


def test_who_has_an_address() -> None:
    holders = Holders().changed((), [(A, HOST), (B, HOST), (B, NET), (A, V6), (A, ALL)])
    assert holders.of(HOST) == (A, B)
    assert holders.of(NET) == (B,)
    assert holders.of(ip_network("10.0.0.0/25")) == ()
    assert holders.at(ip_address("10.0.0.1")) == (A, B)
    assert holders.at(ip_address("10.0.0.2")) == ()
    assert holders.at(ip_address("fd00::1")) == ()
    assert sorted(holders.around(ip_address("10.0.0.1"))) == [A, A, B, B]
    assert sorted(holders.around(ip_address("10.0.0.2"))) == [A, B]
    assert list(holders.around(ip_address("fd00::1"))) == [A]
    assert list(holders.around(ip_address("::a00:1"))) == []


def test_holders_never_change() -> None:
    before = Holders().changed((), [(A, HOST), (B, HOST)])
    after = before.changed([(A, HOST)], [(A, NET)])
    assert (before.of(HOST), before.of(NET)) == ((A, B), ())
    assert (after.of(HOST), after.of(NET)) == ((B,), (A,))
    assert after.changed([(B, HOST), (A, NET)], [(A, HOST)]).of(HOST) == (A,)
