"""Which sessions an operator means."""

from ipaddress import IPv4Address, ip_address

import pytest

from bgp.peering import Peering
from bgp.rib import SessionSpec
from fabric.agent.peers import named
from fabric.errors import NotFound

ME = IPv4Address("192.0.2.9")


def peering(peer: str, name: str = "") -> Peering:
    return Peering(SessionSpec(ip_address(peer), 65000, ME, 65001, ME), name)


A, B, MESH, SIX = (
    peering("10.1.0.0", "tors"),
    peering("10.2.0.0", "tors"),
    peering("10.3.0.0"),
    peering("fd00::1", "six"),
)
ALL = (A, B, MESH, SIX)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("10.1.0.0", (A,), id="an address"),
        pytest.param("fd00:0::1", (SIX,), id="another spelling of it"),
        pytest.param("tors", (A, B), id="a BGPPeer that asks for two"),
    ],
)
def test_a_peer_is_its_address_or_the_name_of_what_asks_for_it(text: str, found: tuple[Peering, ...]) -> None:
    assert named(ALL, text) == found


@pytest.mark.parametrize("text", ["10.9.9.9", "nobody", "", "10.1.0"])
def test_one_that_there_is_not_is_an_error_that_lists_those_there_are(text: str) -> None:
    with pytest.raises(
        NotFound, match=r"nothing was done; there are: 10\.1\.0\.0 \(tors\), .*10\.3\.0\.0 \(mesh\)"
    ):
        named(ALL, text)
