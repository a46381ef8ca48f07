"""A change of policy cuts the live connections that it denies, and no other: real sockets through a real conntrack.

The rules are written by hand, so that nothing but the marking is tried: what carries the mark is dropped ahead of what
is established. None of the streams has the client say anything once it flows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Final, cast

import pytest

from fabric.kernel.conntrack import NetlinkConntrack
from policy.compile import compile as compiled
from policy.cut import Cut, cut, local
from policy.form import Site
from policy.marks import CUT
from policy.world import Resources, World
from tests.contract.netns import Namespace
from tests.unit.loading import resources_in

CLIENT: Final = {4: "10.1.0.1", 6: "fd00:1::1"}
SERVER: Final = {4: "10.1.0.2", 6: "fd00:1::2"}
HOST: Final = {4: "192.0.2.1", 6: "2001:db8::1"}
GATEWAY: Final = {4: "169.254.1.1", 6: "fe80::1"}
TOOL: Final = {4: "iptables", 6: "ip6tables"}
EVERY: Final = 0.01  # seconds between two datagrams, or writes, of a server
QUIET: Final = 0.3  # seconds without any: it was cut

ENDPOINTS = "---".join(
    f"""
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {{name: n1-k8s-{name}-eth0, namespace: default, labels: {{app: {name}}}}}
spec:
  {{node: n1, orchestrator: k8s, pod: {name}, workload: {name}, endpoint: eth0, interfaceName: fab{name},
    profiles: [kns.default], ipNetworks: [{addresses[4]}/32, "{addresses[6]}/128"]}}
"""
    for name, addresses in (("client", CLIENT), ("server", SERVER))
)
NAMESPACE = """
apiVersion: projectcalico.org/v3
kind: Profile
metadata: {name: kns.default}
spec: {ingress: [{action: Allow}], egress: [{action: Allow}]}
"""
POLICY = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: server, namespace: default}
spec:
  selector: app == 'server'
  types: [Ingress]
  ingress:
  - {action: Deny, protocol: TCP, destination: {ports: [80]}}
  - {action: Deny, protocol: UDP, destination: {ports: [53]}}
  - {action: Allow}
"""


def world(*documents: str) -> World:
    return compiled(Resources.of(resources_in("---".join((ENDPOINTS, NAMESPACE, *documents)))))


OPEN, CLOSED = world(), world(POLICY)


class Stream(asyncio.Protocol, asyncio.DatagramProtocol):
    """The client's end of a stream; `last` is when something last came, on the clock of time.monotonic."""

    def __init__(self) -> None:
        self.received, self.last = 0, 0.0

    def data_received(self, data: bytes) -> None:
        self._heard(len(data))

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
        self._heard(len(data))

    def _heard(self, count: int) -> None:
        self.received += count
        self.last = time.monotonic()

    @property
    def quiet(self) -> bool:
        return time.monotonic() - self.last > QUIET


class Pushing:
    """A server's end: once it knows of a client it writes, without end."""

    def __init__(self, tasks: set[asyncio.Task[None]]) -> None:
        self._tasks = tasks

    def push(self, write: Callable[[], None], at_end: Callable[[], None] = lambda: None) -> None:
        async def for_ever() -> None:
            try:
                while True:
                    write()
                    await asyncio.sleep(EVERY)
            finally:
                at_end()

        self._tasks.add(asyncio.ensure_future(for_ever()))


class PushingSegments(Pushing, asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        segments = cast("asyncio.Transport", transport)
        self.push(partial(segments.write, b"x"), at_end=segments.abort)


class PushingDatagrams(Pushing, asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
        self.push(partial(self._transport.sendto, b"x", addr))


class Bench:
    def __init__(self, version: int, host: Namespace, client: Namespace, server: Namespace) -> None:
        self.version, self.host, self.client, self.server = version, host, client, server
        self.site = Site("n1", links={"lo": frozenset(map(ip_address, HOST.values()))})
        self.conntrack = host.call(NetlinkConntrack)
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: list[tuple[Namespace, asyncio.BaseTransport | asyncio.Server]] = []

    def close(self) -> None:
        async def end() -> None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        for space, one in self._open:
            space.call(one.close)
        self.server.run(end())
        # A transport that is closed lets go of its socket in the loop's next turn.
        for space in (self.server, self.client):
            space.run(asyncio.sleep(0))
        self.conntrack.__exit__(None, None, None)

    def listen(self, *ports: int, udp: int) -> None:
        async def listening() -> list[asyncio.BaseTransport | asyncio.Server]:
            loop, here = asyncio.get_running_loop(), SERVER[self.version]
            segments, datagrams = (partial(kind, self._tasks) for kind in (PushingSegments, PushingDatagrams))
            tcp = [await loop.create_server(segments, here, port) for port in ports]
            transport, _ = await loop.create_datagram_endpoint(datagrams, (here, udp))
            return [*tcp, transport]

        self._open += [(self.server, one) for one in self.server.run(listening())]

    def tcp(self, address: str, port: int) -> Stream:
        async def connect() -> tuple[asyncio.Transport, Stream]:
            return await asyncio.get_running_loop().create_connection(Stream, address, port)

        transport, stream = self.client.run(connect())
        self._open.append((self.client, transport))
        return stream

    def udp(self, port: int) -> Stream:
        """A stream that the client asks for, by one datagram."""

        async def ask() -> tuple[asyncio.DatagramTransport, Stream]:
            to = (SERVER[self.version], port)
            transport, stream = await asyncio.get_running_loop().create_datagram_endpoint(
                Stream, remote_addr=to
            )
            transport.sendto(b"?")
            return transport, stream

        transport, stream = self.client.run(ask())
        self._open.append((self.client, transport))
        return stream

    def pushed(self, source_port: int, port: int) -> Stream:
        """A stream that the server began."""

        async def hear() -> tuple[asyncio.DatagramTransport, Stream]:
            here = (CLIENT[self.version], port)
            return await asyncio.get_running_loop().create_datagram_endpoint(Stream, here)

        async def begin() -> asyncio.DatagramTransport:
            here, there = (SERVER[self.version], source_port), (CLIENT[self.version], port)
            make = partial(PushingDatagrams, self._tasks)
            loop = asyncio.get_running_loop()
            transport, pushing = await loop.create_datagram_endpoint(make, here)
            pushing.push(partial(transport.sendto, b"x", there))
            return transport

        transport, stream = self.client.run(hear())
        self._open += [(self.client, transport), (self.server, self.server.run(begin()))]
        return stream

    def deny_new(self, how: str) -> None:
        """Add ("-A") or delete ("-D") the rules that POLICY is."""
        for protocol, port in (("tcp", "80"), ("udp", "53")):
            match = ("-o", "fabserver", "-p", protocol, "--dport", port)
            self.host.command(TOOL[self.version], how, "FORWARD", *match, "-j", "DROP")

    def judge(self, by: World) -> Cut:
        async def judged() -> Cut:
            found = cut(by, self.site, await self.conntrack.flows(local(by, self.site), CUT))
            await self.conntrack.set_mark(found.mark, CUT, CUT)
            await self.conntrack.set_mark(found.clear, 0, CUT)
            return found

        return self.host.run(judged())


def until(what: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(EVERY)


def flowing(*streams: Stream) -> None:
    """Wait until each has got something more."""
    before = [stream.received for stream in streams]
    until(lambda: all(one.received > count for one, count in zip(streams, before, strict=True)))


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with ExitStack() as stack:
        host, client, server = (stack.enter_context(Namespace()) for _ in range(3))
        for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            host.call(partial(Path("/proc/sys/net", key).write_text, "1"))
        for version in (4, 6):
            host.ip("address", "add", HOST[version], "dev", "lo")
        for space, name, addresses in ((client, "fabclient", CLIENT), (server, "fabserver", SERVER)):
            _connect(host, space, name, addresses)
        tool = TOOL[request.param]
        to = SERVER[4] if request.param == 4 else f"[{SERVER[6]}]"
        for words in (
            ("-A", "FORWARD", "-m", "connmark", "--mark", f"{CUT:#x}/{CUT:#x}", "-j", "DROP"),
            ("-A", "FORWARD", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"),
            ("-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"),
        ):
            host.command(tool, *words)
        dnat = ("-j", "DNAT", "--to-destination", f"{to}:80")
        match = ("-d", HOST[request.param], "-p", "tcp", "--dport", "8080")
        host.command(tool, "-t", "nat", "-A", "PREROUTING", *match, *dnat)
        made = Bench(request.param, host, client, server)
        stack.callback(made.close)
        yield made


def _connect(host: Namespace, space: Namespace, name: str, addresses: dict[int, str]) -> None:
    number = space.path.split("/")[-3]
    host.ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", number)
    host.ip("link", "set", name, "up")
    host.ip("address", "add", f"{GATEWAY[6]}/64", "dev", name, "nodad")
    host.ip("address", "add", GATEWAY[4], "dev", name)
    space.ip("link", "set", "eth0", "up")
    space.ip("address", "add", f"{addresses[4]}/32", "dev", "eth0")
    space.ip("address", "add", f"{addresses[6]}/128", "dev", "eth0", "nodad")
    space.ip("route", "add", GATEWAY[4], "dev", "eth0", "scope", "link")
    space.ip("route", "add", "default", "via", GATEWAY[4], "dev", "eth0")
    space.ip("-6", "route", "add", "default", "via", GATEWAY[6], "dev", "eth0")
    host.ip("route", "add", f"{addresses[4]}/32", "dev", name, "scope", "link")
    host.ip("-6", "route", "add", f"{addresses[6]}/128", "dev", name)


def test_what_is_denied_now_stops_within_a_second_the_rest_goes_on_and_it_goes_on_when_allowed_again(
    bench: Bench,
) -> None:
    bench.listen(80, 81, udp=53)
    server = SERVER[bench.version]
    denied = [bench.tcp(server, 80), bench.udp(53), bench.tcp(HOST[bench.version], 8080)]
    others = [bench.tcp(server, 81), bench.pushed(54, 40053)]
    flowing(*denied, *others)
    assert bench.judge(OPEN) == Cut()

    bench.deny_new("-A")
    began = time.monotonic()
    found = bench.judge(CLOSED)
    assert {(flow.original.protocol, flow.original.destination_port) for flow in found.mark} == {
        (6, 80),
        (17, 53),
        (6, 8080),
    }
    assert (len(found.mark), found.clear) == (3, ())
    until(lambda: all(stream.quiet for stream in denied))
    assert all(stream.last - began < 1 for stream in denied)
    flowing(*others)
    assert bench.judge(CLOSED) == Cut()
    assert all(stream.quiet for stream in denied)

    bench.deny_new("-D")
    cleared = bench.judge(OPEN)
    assert {flow.original for flow in cleared.clear} == {flow.original for flow in found.mark}
    assert cleared.mark == ()
    flowing(*denied, *others)
    assert bench.judge(OPEN) == Cut()


def test_deleting_the_entry_would_not_have_cut_it(bench: Bench) -> None:
    bench.listen(80, udp=53)
    streams = [bench.tcp(SERVER[bench.version], 80), bench.udp(53)]
    flowing(*streams)
    bench.deny_new("-A")
    bench.host.command("conntrack", "-D", "-f", f"ipv{bench.version}")
    flowing(*streams)
