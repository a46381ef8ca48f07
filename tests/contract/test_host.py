"""What the agent reads of a host, from a real kernel."""

from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from bgp.peering import Gateway, Uplink
from fabric.agent.host import read_host
from fabric.agent.routing import Host
from fabric.kernel.routes import NetlinkFib
from fabric.plan import encap
from fabric.plan.links import is_ours
from tests.contract.netns import Namespace

OURS = "fab0123456789ab"


@pytest.fixture
def space() -> Iterator[Namespace]:
    assert is_ours(OURS)
    with Namespace() as space:
        for link, other in (("up0", "tor0"), ("up1", "tor1"), (OURS, "inside")):
            space.ip("link", "add", link, "type", "veth", "peer", "name", other)
            for end in (link, other):
                path = Path(f"/proc/sys/net/ipv6/conf/{end}/disable_ipv6")
                space.call(partial(path.write_text, str(int(link != "up0" or end != link))))
            for end in (link, other):
                space.ip("link", "set", end, "up")
        space.ip("address", "add", "10.1.0.1/31", "dev", "up0")
        space.ip("address", "add", "2001:db8::1/64", "dev", "up0", "nodad")
        space.ip("address", "add", "10.2.0.1/31", "dev", "up1")
        space.ip("address", "add", "169.254.1.1/32", "dev", OURS)
        yield space


async def read() -> Host:
    with NetlinkFib() as fib:
        return await read_host(fib)


def uplinks(host: Host) -> set[Uplink]:
    return {uplink for uplink in host.here.uplinks if not uplink.address.ip.is_link_local}


def test_every_address_of_a_link_that_is_up_and_not_ours_is_an_uplink(space: Namespace) -> None:
    space.ip("link", "set", "tor1", "down")
    found = space.run(read())
    assert uplinks(found) == {
        Uplink("up0", ip_interface("10.1.0.1/31")),
        Uplink("up0", ip_interface("2001:db8::1/64")),
        Uplink("up1", ip_interface("10.2.0.1/31"), carrier=False),
    }
    space.ip("link", "set", "up1", "down")
    assert {uplink.device for uplink in uplinks(space.run(read()))} == {"up0"}


def test_the_mtu_is_that_of_uplinks_and_a_tunnel_of_ours_is_none(space: Namespace) -> None:
    before = space.run(read())
    space.ip(
        "link", "add", encap.VXLAN.device, "type", "vxlan", "id", "4096", "dstport", "4789", "dev", "up0"
    )
    space.ip("address", "add", "10.244.1.1/32", "dev", encap.VXLAN.device)
    space.ip("link", "set", encap.VXLAN.device, "up", "mtu", "1300")
    space.ip("link", "set", OURS, "mtu", "1200")
    found = space.run(read())
    assert (found.mtu, found.mtus) == (1500, {"up0": 1500, "up1": 1500})
    assert found.here == before.here
    # Policy holds for what comes out of it.
    assert found.links.keys() - before.links.keys() == {encap.VXLAN.device}
    space.ip("link", "set", "up1", "mtu", "1400")
    found = space.run(read())
    assert (found.mtu, found.mtus) == (1400, {"up0": 1500, "up1": 1400})


def test_single_addresses_on_lo_are_the_nodes(space: Namespace) -> None:
    for address in ("192.0.2.1/32", "2001:db8:f::1/128", "198.51.100.1/24", "169.254.9.9/32", "127.0.0.2/32"):
        space.ip("address", "add", address, "dev", "lo")
    assert space.run(read()).here.loopback == {ip_address("192.0.2.1"), ip_address("2001:db8:f::1")}


def test_default_routes_that_are_not_ours_have_gateways_a_cable_out_or_not(space: Namespace) -> None:
    space.ip("route", "add", "default", "nexthop", "via", "10.1.0.0", "nexthop", "via", "10.2.0.0")
    space.ip("-6", "route", "add", "default", "via", "2001:db8::fe")
    space.ip("route", "add", "default", "via", "10.1.0.0", "metric", "1024", "proto", "143")
    space.ip("route", "add", "default", "dev", "up0", "metric", "9")
    want = (
        Gateway(ip_address("10.1.0.0"), "up0"),
        Gateway(ip_address("10.2.0.0"), "up1"),
        Gateway(ip_address("2001:db8::fe"), "up0"),
    )
    assert space.run(read()).here.gateways == want
    space.ip("link", "set", "tor1", "down")
    assert space.run(read()).here.gateways == want


def test_all_links_but_ours_are_known_with_their_addresses_up_or_down(space: Namespace) -> None:
    space.ip("link", "set", "up1", "down")
    links = {
        name: {address for address in held if not address.is_link_local}
        for name, held in space.run(read()).links.items()
    }
    assert links == {
        "lo": {ip_address("127.0.0.1"), ip_address("::1")},
        "up0": {ip_address("10.1.0.1"), ip_address("2001:db8::1")},
        "up1": {ip_address("10.2.0.1")},
        "tor0": set(),
        "tor1": set(),
        "inside": set(),
    }


def test_ports_of_a_bridge_are_no_links_that_packets_come_in_by_but_their_addresses_are_the_hosts(
    space: Namespace,
) -> None:
    before = space.run(read()).links.keys()
    space.ip("link", "add", "br0", "type", "bridge")
    for port in ("c1", "c2"):
        space.ip("link", "add", port, "type", "veth", "peer", "name", f"{port}-inside")
        space.ip("link", "set", port, "up", "master", "br0")
    space.ip("address", "add", "10.9.0.1/24", "dev", "c2")
    assert space.run(read()).links.keys() - before == {"br0", "c2", "c1-inside", "c2-inside"}


def test_a_host_that_forwards_already_routed_before(space: Namespace) -> None:
    assert space.run(read()).routed_before == set()
    path = Path("/proc/sys/net/ipv6/conf/all/forwarding")
    space.call(partial(path.write_text, "1"))
    assert space.run(read()).routed_before == {6}
