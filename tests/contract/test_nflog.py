"""What NFLOG hands over, from rules of iptables on the real kernel; and how packets are read, as a table."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from structlog.testing import capture_logs

from fabric.agent import drop_log
from fabric.agent.compose import compose
from fabric.agent.policing import policing
from fabric.agent.routing import Host
from fabric.agent.snapshot import Snapshot
from fabric.agent.state import State
from fabric.errors import DataplaneError
from fabric.kernel.nflog import Logged, NFLog, parse
from policy.form import ICMP, ICMPV6, TCP, UDP, Icmp, Line, Origin, Packet, Rendered
from policy.naming import prefix
from tests.contract.netns import Namespace

GROUP = 143


def v4(protocol: int, rest: bytes, offset: int = 0, options: bytes = b"") -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack(">BxHHHBBH", 0x40 | words, 0, 0, offset, 64, protocol, 0)
    return head + IPv4Address("10.0.0.1").packed + IPv4Address("10.0.0.2").packed + options + rest


def v6(protocol: int, rest: bytes) -> bytes:
    head = struct.pack(">IHBB", 6 << 28, 0, protocol, 64)
    return head + IPv6Address("fd00::1").packed + IPv6Address("fd00::2").packed + rest


PORTS = struct.pack(">HHI", 40000, 80, 0)


def of4(protocol: int, source_port: int = 0, port: int = 0, icmp: Icmp | None = None) -> Packet:
    return Packet(ip_address("10.0.0.1"), ip_address("10.0.0.2"), protocol, source_port, port, icmp)


def of6(protocol: int, source_port: int = 0, port: int = 0, icmp: Icmp | None = None) -> Packet:
    return Packet(ip_address("fd00::1"), ip_address("fd00::2"), protocol, source_port, port, icmp)


@pytest.mark.parametrize(
    ("data", "want"),
    [
        pytest.param(v4(6, PORTS), of4(6, 40000, 80), id="TCP"),
        pytest.param(v4(17, PORTS, options=bytes(8)), of4(17, 40000, 80), id="options"),
        pytest.param(v4(17, PORTS, 0x2000), of4(17, 40000, 80), id="first fragment"),
        pytest.param(v4(17, PORTS, 0x2003), of4(17), id="a later fragment"),
        pytest.param(v4(1, bytes((8, 0))), of4(1, icmp=Icmp(8, 0)), id="echo"),
        pytest.param(v4(47, PORTS), of4(47), id="GRE has no ports"),
        pytest.param(v4(6, b"\x9c"), of4(6), id="cut off"),
        pytest.param(v6(6, PORTS), of6(6, 40000, 80), id="TCP of IPv6"),
        pytest.param(v6(58, bytes((128, 0))), of6(58, icmp=Icmp(128, 0)), id="echo of IPv6"),
        pytest.param(
            v6(0, bytes((60, 0)) + bytes(6) + bytes((17, 1)) + bytes(14) + PORTS), of6(17, 40000, 80), id="extensions"
        ),
        pytest.param(v6(51, bytes((6, 4)) + bytes(22) + PORTS), of6(6, 40000, 80), id="AH"),
        pytest.param(v6(44, bytes((6, 0, 0, 1)) + bytes(4) + PORTS), of6(6, 40000, 80), id="first fragment of IPv6"),
        pytest.param(v6(44, bytes((6, 0, 0, 9)) + bytes(4) + PORTS), of6(6), id="a later fragment of IPv6"),
        pytest.param(v6(0, bytes((60, 255)) + bytes(6)), of6(60), id="more extensions than bytes"),
        pytest.param(b"", None, id="nothing"),
        pytest.param(bytes(60), None, id="no IP"),
        pytest.param(v4(6, PORTS)[:19], None, id="half a header"),
    ],
)  # fmt: skip
def test_parse(data: bytes, want: Packet | None) -> None:
    assert parse(data) == want


@pytest.fixture
def host() -> Iterator[Namespace]:
    with ExitStack() as stack:
        space, other = stack.enter_context(Namespace()), stack.enter_context(Namespace())
        number = other.path.split("/")[-3]
        space.ip("link", "add", "e0", "type", "veth", "peer", "name", "e1", "netns", number)
        for where, link, last in ((space, "e0", 1), (other, "e1", 2)):
            where.ip("address", "add", f"10.0.0.{last}/24", "dev", link)
            where.ip("address", "add", f"fd00::{last}/64", "dev", link, "nodad")
            where.ip("link", "set", link, "up")
        yield space


def log(host: Namespace, prefix: str, *match: str, tool: str = "iptables", chain: str = "OUTPUT") -> None:
    target = ("-j", "NFLOG", "--nflog-group", str(GROUP), "--nflog-prefix", prefix)
    host.command(tool, "-A", chain, *match, *target)


async def heard(nflog: NFLog, count: int) -> list[Logged]:
    found = []
    async for logged in nflog.packets():
        found.append(logged)
        if len(found) == count:
            break
    return found


def send(address: str, port: int, count: int = 1) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 40000))
        for _ in range(count):
            sock.sendto(b"x" * 200, (address, port))


def knocking(address: str, port: int) -> socket.socket:
    """A connection that is being opened."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex((address, port))
    return sock


def test_a_packet_comes_with_its_rules_prefix_its_links_and_its_ends(host: Namespace) -> None:
    log(host, "fab-deny:0123456789abcdef", "-p", "udp", "--dport", "53")
    log(host, "p" * 63, "-p", "udp", tool="ip6tables")
    with host.call(NFLog) as nflog:
        host.call(partial(send, "10.0.0.2", 53))
        host.call(partial(send, "fd00::2", 99))
        four, six = host.run(heard(nflog, 2))
    assert four == Logged("fab-deny:0123456789abcdef", "", "e0", of4(UDP, 40000, 53))
    assert six == Logged("p" * 63, "", "e0", of6(UDP, 40000, 99))


def test_what_comes_in_has_the_link_that_it_came_by(host: Namespace) -> None:
    log(host, "in", "-p", "icmp", "--icmp-type", "echo-reply", chain="INPUT")
    log(host, "in6", "-p", "icmpv6", "--icmpv6-type", "echo-reply", tool="ip6tables", chain="INPUT")
    with host.call(NFLog) as nflog:
        host.command("ping", "-c1", "-W2", "10.0.0.2")
        host.command("ping", "-c1", "-W2", "fd00::2")
        four, six = host.run(heard(nflog, 2))
    assert (four.prefix, four.in_link, four.out_link) == ("in", "e0", "")
    assert four.packet == Packet(ip_address("10.0.0.2"), ip_address("10.0.0.1"), ICMP, icmp=Icmp(0, 0))
    assert six.packet == Packet(ip_address("fd00::2"), ip_address("fd00::1"), ICMPV6, icmp=Icmp(129, 0))


def test_a_dropped_connection_is_heard_of_within_two_seconds(host: Namespace) -> None:
    log(host, "fab-deny:x", "-p", "tcp", "--dport", "443")
    host.command("iptables", "-A", "OUTPUT", "-p", "tcp", "--dport", "443", "-j", "DROP")
    with host.call(NFLog) as nflog:

        async def attempt() -> list[Logged]:
            with knocking("10.0.0.2", 443):
                return await asyncio.wait_for(heard(nflog, 1), 2)

        (logged,) = host.run(attempt())
    assert (logged.packet.protocol, logged.packet.destination_port) == (TCP, 443)


def test_under_overload_what_is_lost_is_counted_and_the_rest_goes_on(host: Namespace) -> None:
    log(host, "flood", "-p", "udp", "--dport", "9")
    log(host, "after", "-p", "udp", "--dport", "1000:1999")
    sent = 20_000
    with host.call(NFLog) as nflog:
        host.call(partial(send, "10.0.0.2", 9, sent))  # nobody reads meanwhile

        async def until_after() -> tuple[int, int]:
            """Return what was heard, and how many were sent until then; one more now and then, until it is heard."""
            heard, probing = 0, asyncio.ensure_future(probe())
            try:
                async for logged in nflog.packets():
                    heard += 1
                    if logged.prefix == "after":
                        return heard, sent + logged.packet.destination_port - 999
            finally:
                probing.cancel()
            raise AssertionError

        async def probe() -> None:
            for port in range(1000, 2000):
                send("10.0.0.2", port)
                await asyncio.sleep(0.02)

        found, total = host.run(until_after())
        assert nflog.lost > 0
        assert found + nflog.lost == total


def test_the_group_is_one_listeners(host: Namespace) -> None:
    with host.call(NFLog):
        with pytest.raises(DataplaneError, match=r"NFLOG group 143: .*is another agent running"):
            host.call(NFLog)
        with host.call(partial(NFLog, 7)):
            pass
    with host.call(NFLog):
        pass


def test_while_another_listens_it_is_said_once_and_then_ours_has_the_group(host: Namespace) -> None:
    async def start() -> asyncio.Task[None]:
        return asyncio.create_task(drop_log.follow(State("n1"), again=0.01))

    async def end() -> None:
        following.cancel()
        await asyncio.wait([following])

    def taken() -> bool:
        try:
            host.call(NFLog).__exit__(None, None, None)
        except DataplaneError:
            return True
        return False

    with capture_logs() as said:
        with host.call(NFLog):
            following = host.run(start())
            until(lambda: bool(said))
        until(taken)
        host.run(end())
    assert [line["event"] for line in said] == ["denied packets are not named; rules count them all the same"]


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_denied_packet_is_named_within_two_seconds(host: Namespace) -> None:
    origin = Origin("policy", "NetworkPolicy default/web", "Ingress", 0)
    log(host, prefix("deny", origin), "-p", "tcp", "--dport", "443")
    log(host, "of somebody else", "-p", "tcp", "--dport", "443")
    host.command("iptables", "-A", "OUTPUT", "-p", "tcp", "--dport", "443", "-j", "DROP")
    state = State("n1")
    known = policing("n1", Snapshot(), Host(), None)
    lines = (Line("-j NFLOG --nflog-group 143"), Line("-j DROP", origin))
    composed = compose([Rendered(4, {("filter", "fab-x"): lines}, {}, {}, {})])
    state.policing = replace(known, composed=composed)
    with host.call(NFLog) as nflog, capture_logs() as said:

        async def start() -> asyncio.Task[None]:
            return asyncio.ensure_future(drop_log.run(state, nflog))

        async def stop(task: asyncio.Task[None]) -> None:
            task.cancel()
            await asyncio.wait([task])

        naming = host.run(start())
        with host.call(partial(knocking, "10.0.0.2", 443)):
            deadline = time.monotonic() + 2
            while not said and time.monotonic() < deadline:
                time.sleep(0.01)
        host.run(stop(naming))
    want = {
        "event": "packet denied",
        "node": "n1",
        "source": "10.0.0.1",
        "destination": "10.0.0.2",
        "destination_port": 443,
        "policy": "NetworkPolicy default/web",
        "rule": 0,
        "direction": "ingress",
    }
    assert said[0].items() >= want.items()
