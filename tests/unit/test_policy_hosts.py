from collections.abc import Mapping

import pytest

from fabric.model.hostendpoint import HostEndpoint
from policy.compile import compile as compiled
from policy.form import Address
from policy.hosts import active, idle
from policy.world import Resources
from tests.unit.policing import address, host

A, B = address("192.0.2.1"), address("2001:db8::1")
LINKS: Mapping[str, frozenset[Address]] = {
    "eth0": frozenset((A, B)),
    "eth1": frozenset((address("198.51.100.1"),)),
    "eth2": frozenset(),
}


@pytest.mark.parametrize(
    ("hosts", "want"),
    [
        pytest.param([], {}, id="none"),
        pytest.param([host("a", interfaceName="eth0")], {"eth0": "a"}, id="by its link's name"),
        pytest.param([host("a", interfaceName="eth9")], {}, id="a link that is not there"),
        pytest.param([host("a", expectedIPs=["192.0.2.1"])], {"eth0": "a"}, id="by an address"),
        pytest.param(
            [host("a", expectedIPs=["192.0.2.9", "2001:db8::1"])], {"eth0": "a"}, id="by any of them"
        ),
        pytest.param(
            [host("a", expectedIPs=["192.0.2.1", "198.51.100.1"])], {"eth0": "a", "eth1": "a"}, id="two links"
        ),
        pytest.param([host("a", interfaceName="*")], {"*": "a"}, id="every link"),
        pytest.param(
            [host("a", interfaceName="*"), host("b", interfaceName="eth1")],
            {"*": "a", "eth1": "b"},
            id="but one",
        ),
        pytest.param(
            [host("a", interfaceName="eth1", expectedIPs=["192.0.2.1"])],
            {"eth1": "a"},
            id="one with a link's name does not go by addresses",
        ),
        pytest.param(
            [host("b", interfaceName="eth0"), host("a", expectedIPs=["192.0.2.1"])],
            {"eth0": "a"},
            id="the first by name counts, whichever way it goes by",
        ),
        pytest.param(
            [host("b", interfaceName="*"), host("a", interfaceName="*")], {"*": "a"}, id="one for every link"
        ),
        pytest.param([host("a", "n2", interfaceName="eth0")], {}, id="another node's"),
    ],
)
def test_one_host_endpoint_stands_for_a_link(hosts: list[HostEndpoint], want: dict[str, str]) -> None:
    world = compiled(Resources.of(hosts))
    assert {link: each.key.name for link, each in active(world, "n1", LINKS).items()} == want


def test_one_that_acts_on_nothing_is_told_why() -> None:
    hosts = [
        host("a", interfaceName="eth0"),
        host("b", interfaceName="eth0"),
        host("c", expectedIPs=["2001:db8::1"]),
        host("d", interfaceName="ens3"),
        host("e", expectedIPs=["192.0.2.9"]),
        host("every", interfaceName="*"),
        host("far", "n2", interfaceName="ens3"),
    ]
    found = idle(compiled(Resources.of(hosts)), "n1", LINKS)
    assert {each.name: why.removesuffix(": it acts on nothing") for each, why in found.items()} == {
        "b": "HostEndpoint a has the same link, and counts alone",
        "c": "HostEndpoint a has the same link, and counts alone",
        "d": "node n1 has no link ens3, or that is a port of a bridge",
        "e": "node n1 has no link with one of its expectedIPs",
    }
