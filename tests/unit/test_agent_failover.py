"""What a lost carrier changes at once, and which sessions it ends."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network

import pytest

from bgp.peering import Here, Peering, Uplink
from bgp.rib import Address, Path, SessionSpec, SessionState, SessionStatus
from fabric.agent.failover import after, ending, lost
from fabric.agent.ribs import Ribs
from fabric.agent.routing import Host

A, B = ip_address("10.1.0.0"), ip_address("10.2.0.0")
ME = IPv4Address("192.0.2.1")
PREFIX = ip_network("10.244.2.0/26")


HOST = Host(
    here=Here(
        uplinks=tuple(
            Uplink(device, ip_interface(text))
            for device, text in (("eth1", "10.1.0.1/31"), ("eth2", "10.2.0.1/31"))
        )
    ),
)
CUT = after(HOST, {"eth1": False})


def peering(peer: Address, source: str) -> Peering:
    return Peering(SessionSpec(peer, 65000, ip_address(source), 65001, ME))


PEERINGS = (peering(A, "10.1.0.1"), peering(B, "10.2.0.1"))
UP = SessionStatus(SessionState.ESTABLISHED, 5.0)
RIBS = Ribs(connected=True, sessions={A: UP, B: UP})


def test_what_a_link_has_lost_or_found_is_known_at_once() -> None:
    assert [u.carrier for u in CUT.here.uplinks] == [False, True]
    assert after(CUT, {"eth1": True, "lo": True}) == HOST


@pytest.mark.parametrize("carriers", [{}, {"eth1": True}, {"fab0": False}, {"lo": False}])
def test_what_is_no_news_leaves_the_host_as_it_is(carriers: dict[str, bool]) -> None:
    assert after(HOST, carriers) is HOST


def test_a_carrier_that_comes_back_is_no_loss() -> None:
    assert (lost(HOST, CUT), lost(CUT, HOST), lost(HOST, HOST)) == (True, False, False)


def test_the_session_of_the_lost_link_ends_once_for_each_loss() -> None:
    first = ending(CUT.here, PEERINGS, RIBS, frozenset())
    assert first.due == {A}
    assert ending(CUT.here, PEERINGS, RIBS, first.over).due == frozenset()
    back = ending(HOST.here, PEERINGS, RIBS, first.over)
    assert not back.due
    assert not back.over
    assert ending(CUT.here, PEERINGS, RIBS, back.over).due == {A}


def test_a_session_from_an_address_that_is_on_no_uplink_does_not_end() -> None:
    assert ending(CUT.here, (peering(A, str(ME)),), RIBS, frozenset()).due == frozenset()


def test_one_carrier_of_two_links_with_the_address_is_enough() -> None:
    both = Here(
        uplinks=tuple(Uplink(d, ip_interface("10.1.0.1/31"), c) for d, c in (("eth1", False), ("eth2", True)))
    )
    assert ending(both, PEERINGS, RIBS, frozenset()).due == frozenset()


@pytest.mark.parametrize(
    ("status", "paths", "ends"),
    [
        pytest.param(None, {}, False, id="not started"),
        pytest.param(SessionStatus(SessionState.CONNECT, 5.0), {}, False, id="down, with nothing to flush"),
        pytest.param(
            SessionStatus(SessionState.CONNECT, 5.0),
            {PREFIX: Path(PREFIX, A, A)},
            True,
            id="down, paths kept as stale",
        ),
        pytest.param(replace(UP, idle_until=99.0), {}, False, id="idle for its number of prefixes"),
    ],
)
def test_only_a_session_that_holds_something_ends(
    status: SessionStatus | None, paths: dict[object, Path], ends: bool
) -> None:
    ribs = Ribs(sessions={A: status} if status else {}, adj_rib_in={A: paths})  # type: ignore[dict-item]
    assert bool(ending(CUT.here, PEERINGS, ribs, frozenset()).due) == ends
