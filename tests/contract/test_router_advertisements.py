"""A host that learned its way from a real router's advertisements becomes a node, and keeps it."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path
from typing import TypeAlias

import pytest

from fabric.agent import host as node
from fabric.agent.host import read_host
from fabric.agent.routing import Host
from fabric.kernel import facts, sysctls
from fabric.kernel.routes import NetlinkFib
from tests.contract.netns import Namespace

ROUTER = "fe80::1"
ALL_NODES = "ff02::1"
PREFIX = IPv6Address("2001:db8:7::")
LINK = "eth0.7"  # a VLAN's name, whose dot is none of the sysctl's


def advertisement(lifetime: int) -> bytes:
    """A router advertisement (RFC 4861 §4.2): default router for `lifetime` seconds, PREFIX on the link, autonomous."""
    prefix = struct.pack("!BBBBIII16s", 3, 4, 64, 0xC0, 3600, 3600, 0, PREFIX.packed)
    return struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, lifetime, 0, 0) + prefix


class Router:
    """The other end of the host's uplink."""

    def __init__(self, space: Namespace) -> None:
        self.space = space

    def advertise(self, lifetime: int = 1800) -> None:
        """The kernel fills in the checksum, and the source: the link has that address alone."""
        self.space.call(partial(self._send, advertisement(lifetime)))

    def _send(self, message: bytes) -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            sock.sendto(message, (ALL_NODES, 0, 0, socket.if_nametoindex("tor0")))


Spaces: TypeAlias = tuple[Namespace, Router]


@pytest.fixture
def spaces() -> Iterator[Spaces]:
    with ExitStack() as stack:
        host, router = stack.enter_context(Namespace()), stack.enter_context(Namespace())
        there = router.path.split("/")[-3]
        host.ip("link", "add", LINK, "type", "veth", "peer", "name", "tor0", "netns", there)
        quiet = Path("/proc/sys/net/ipv6/conf/tor0/addr_gen_mode")
        router.call(partial(quiet.write_text, "1"))
        for space, link in ((host, LINK), (router, "tor0")):
            path = Path(f"/proc/sys/net/ipv6/conf/{link}/accept_dad")
            space.call(partial(path.write_text, "0"))
            space.ip("link", "set", link, "up")
        router.ip("address", "add", f"{ROUTER}/64", "dev", "tor0", "nodad")
        yield host, Router(router)


def default(host: Namespace) -> str:
    return host.ip("-6", "route", "show", "default")


def until(predicate: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not predicate():
        assert time.monotonic() < deadline, "it did not come about in 10 s"
        time.sleep(0.01)


def read(host: Namespace) -> Host:
    async def once() -> Host:
        with NetlinkFib() as fib:
            return await read_host(fib)

    return host.run(once())


def accepted(host: Namespace) -> str:
    return host.call(Path(f"/proc/sys/net/ipv6/conf/{LINK}/accept_ra").read_text).strip()


def test_a_node_keeps_the_routes_that_its_router_advertises(spaces: Spaces, tmp_path: Path) -> None:
    host, router = spaces
    router.advertise()
    until(lambda: ROUTER in default(host))
    before = default(host)
    record = tmp_path / "sysctls.json"
    host.run(sysctls.set_recorded(node.router(read(host), ipv6=True), record))
    assert accepted(host) == "2"
    assert facts.ACCEPT_RA.format(LINK) in host.run(sysctls.recorded(record))
    assert default(host).split("expires")[0] == before.split("expires")[0]
    router.advertise(lifetime=900)
    until(lambda: "expires 8" in default(host))
    assert read(host).heeding == {LINK}
    router.advertise(lifetime=0)
    until(lambda: not default(host))
    assert read(host).heeding == {LINK}  # what it says of the link is left
    assert host.run(sysctls.restore(record)) == [*node.router(read(host), ipv6=True)]
    assert accepted(host) == "1"


def test_forwarding_alone_takes_them_away(spaces: Spaces, tmp_path: Path) -> None:
    host, router = spaces
    router.advertise()
    until(lambda: ROUTER in default(host))
    host.run(sysctls.set_recorded({node.FORWARDING[6]: "1"}, tmp_path / "sysctls.json"))
    assert not default(host)


def test_a_link_without_advertisements_or_whose_daemon_heeds_them_is_left_alone(spaces: Spaces) -> None:
    host, router = spaces
    host.ip("-6", "route", "add", "default", "via", "fe80::9", "dev", LINK)
    assert read(host).heeding == set()
    router.advertise()
    until(lambda: "proto ra" in default(host))
    host.call(partial(Path(f"/proc/sys/net/ipv6/conf/{LINK}/accept_ra").write_text, "0"))
    assert read(host).heeding == set()
    assert node.router(read(host), ipv6=True).keys() == set(node.FORWARDING.values())


def test_a_link_that_once_had_them_is_ready_for_more_after_a_reboot(spaces: Spaces) -> None:
    host, _ = spaces
    assert host.run(facts.heeding([LINK, "gone0"])) == {LINK}
    host.call(partial(Path(f"/proc/sys/net/ipv6/conf/{LINK}/accept_ra").write_text, "0"))
    assert host.run(facts.heeding([LINK])) == set()


def test_a_record_of_a_link_that_is_gone_restores_the_rest(spaces: Spaces, tmp_path: Path) -> None:
    host, router = spaces
    router.advertise()
    until(lambda: ROUTER in default(host))
    record = tmp_path / "sysctls.json"
    host.run(sysctls.set_recorded(node.router(read(host), ipv6=True), record))
    host.ip("link", "delete", LINK)
    assert set(host.run(sysctls.restore(record))) == set(node.FORWARDING.values())
