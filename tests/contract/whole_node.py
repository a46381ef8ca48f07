"""A node in a namespace of its own, by the agent's own parts and the kernel's: only etcd, BGP and tunnels are not real.

containers ─ fab… ─ router (n1) ─ eth0 ─ outside: node n2, a workload of n2, and strangers
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import Final, NamedTuple, Self

from fabric.agent import live
from fabric.agent.endpoint import Request
from fabric.agent.host import read_host
from fabric.agent.passes import Outcome, Passes
from fabric.agent.ribs import Ribs
from fabric.agent.routing import Routing
from fabric.agent.rules import Rules
from fabric.agent.snapshot import fold
from fabric.agent.state import State
from fabric.agent.workloads import Workloads
from fabric.kernel.conntrack import NetlinkConntrack
from fabric.kernel.ipsets import NetlinkIPSets
from fabric.kernel.links import NetlinkLinks
from fabric.kernel.routes import NetlinkFib
from fabric.kernel.tables import KernelTables
from fabric.model.base import Resource
from fabric.model.node import Node
from fabric.model.wire import to_json
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.ops.resources import key_of
from fabric.plan import publish
from fabric.plan.tables import Backend
from fabric.plan.tunnels import Tunnel
from fabric.store.kv import Changes, Delete, Put, Txn
from tests.contract.netns import Namespace
from tests.fakes.etcd import FakeEtcd
from tests.fakes.node import pool
from tests.fakes.tunnels import FakeTunnels

N1, N2, SPARE = "192.0.2.1", "192.0.2.2", "192.0.2.77"  # SPARE is n1's too
N1_V6, N2_V6 = "2001:db8::1", "2001:db8::2"
REMOTE, REMOTE_V6 = "10.65.9.1", "fd00:65:0:9::1"
STRANGER, STRANGER_V6 = "198.51.100.1", "2001:db8:51::1"
WAIT: Final = 10.0  # seconds for what is to come
QUIET: Final = 0.3  # seconds for what is not to


class Seen(NamedTuple):
    """Who the server takes the client for."""

    address: str
    port: int


def node(name: str, v4: str, v6: str) -> Node:
    bgp = {"ipv4Address": f"{v4}/24", "ipv6Address": f"{v6}/64"}
    return Node.model_validate({"metadata": {"name": name}, "spec": {"bgp": bgp}})


POOLS: Final = (
    pool("10.65.0.0/16", "v4", natOutgoing=True, blockSize=26),
    pool("fd00:65::/48", "v6", natOutgoing=True, blockSize=122),
)


class WholeNode:
    """The node and its neighbour; all gone at the end of the block."""

    def __init__(self, backend: Backend) -> None:
        self._backend: Backend = backend

    def __enter__(self) -> Self:
        with ExitStack() as owned:
            self.router = owned.enter_context(Namespace(own_run=True))
            self.outside = owned.enter_context(Namespace())
            for space in (self.router, self.outside):
                space.command("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
            self._uplink()
            self.router.run(self._start(owned))
            self.change(node("n1", N1, N1_V6), node("n2", N2, N2_V6), *POOLS)
            self._owned = owned.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._owned.close()

    def _uplink(self) -> None:
        self.router.command("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.router.ip("link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", self.outside.path)
        for space, held in ((self.router, (N1, SPARE, N1_V6)), (self.outside, (N2, N2_V6))):
            space.ip("link", "set", "eth0", "up")
            for address in held:
                space.ip("address", "add", f"{address}/{64 if ':' in address else 24}", "dev", "eth0")
        for address in (REMOTE, REMOTE_V6, STRANGER, STRANGER_V6):
            self.outside.ip("address", "add", address, "dev", "lo")
            self.router.ip("route", "add", address, "via", N2_V6 if ":" in address else N2)
        for net, via in (("10.65.0.0/16", N1), ("fd00:65::/48", N1_V6)):
            self.outside.ip("route", "add", net, "via", via)

    async def _start(self, owned: ExitStack) -> None:
        self.kv = FakeEtcd()
        fib = owned.enter_context(NetlinkFib())
        sets, conntrack = owned.enter_context(NetlinkIPSets()), owned.enter_context(NetlinkConntrack())
        self._drivers = fib, sets, conntrack
        await self._begin()

    async def _begin(self) -> None:
        fib, sets, conntrack = self._drivers
        self.rules = Rules(sets, KernelTables(self._backend), conntrack)
        self.passes = Passes(NetlinkLinks(), fib, self.rules, FakeTunnels())
        ribs = Ribs(connected=True, settled=True)
        self.state = State("n1", ribs=ribs, routing=Routing(ribs), host=await read_host(fib))
        self.workloads = Workloads(self.state, self.kv, self.passes)

    def restart(self, gone: Iterable[Resource] = ()) -> None:
        """Have an agent that remembers nothing, and lose these from the datastore before it comes."""
        snapshot = self.state.snapshot
        self.router.run(self._begin())
        self.state.update(snapshot=snapshot)
        self.change(gone=gone)

    def change(self, *resources: Resource, gone: Iterable[Resource] = ()) -> None:
        """Write to the datastore, and run a whole pass."""
        self.router.run(self._change(resources, gone))

    async def _change(self, resources: Iterable[Resource], gone: Iterable[Resource]) -> None:
        ops: tuple[Put | Delete, ...] = (
            *(Put(key_of(r), to_json(r)) for r in resources),
            *(Delete(key_of(r)) for r in gone),
        )
        if ops:
            revision = await self.kv.commit(Txn((), ops))
            self.state.wrote(Txn((), ops), revision)
        snapshot = fold(self.state.snapshot, Changes(self.kv.revision))
        self.state.update(snapshot=replace(snapshot, in_sync=True))
        await self._pass()

    async def _pass(self) -> Outcome:
        await self.state.police(localnet=self.passes.localnet)
        outcome = await self.passes.run(self.state.compute)
        assert not outcome.refused, outcome.refused
        return outcome

    def tunnels(self, *tunnels: Tunnel) -> None:
        """Have the rules for these; devices are the test's."""
        self.state.tunnels = {tunnel.name: tunnel for tunnel in tunnels}
        self.router.run(self._pass())

    def judge(self) -> None:
        """Have live connections judged by what is in force."""
        _, _, conntrack = self._drivers
        self.router.run(live.judge_once(self.state, conntrack))

    def container(self) -> Namespace:
        return self._owned.enter_context(Namespace())

    def attach(self, name: str, inside: Namespace, *ports: str, **more: object) -> WorkloadEndpoint:
        wanted = tuple(map(publish.parse, ports))
        request = Request(name, "default", inside.path, ports=wanted, **more)  # type: ignore[arg-type]
        return self.router.run(self.workloads.attach(request))

    def detach(self, name: str) -> None:
        self.router.run(self.workloads.detach("default", name))


def tcp_server(space: Namespace, port: int) -> socket.socket:
    made = space.call(
        partial(socket.create_server, ("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    )
    made.settimeout(WAIT)
    return made


def udp_socket(space: Namespace, port: int = 0) -> socket.socket:
    def bound() -> socket.socket:
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind(("::", port))
        made.settimeout(QUIET)
        return made

    return space.call(bound)


def asks(
    space: Namespace, to: str, port: int, server: socket.socket, source: str = "", wait: float = WAIT
) -> Seen | None:
    """Connect by TCP and hear an answer; return what the server sees, None where it is not reached."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with space.call(partial(socket.socket, family, socket.SOCK_STREAM)) as client:
        client.settimeout(wait)
        try:
            if source:
                client.bind((source, 0))
            client.connect((to, port))
        except OSError:
            return None
        heard, who = server.accept()
        with heard:
            heard.settimeout(WAIT)
            client.settimeout(WAIT)
            client.sendall(b"?")
            assert heard.recv(1) == b"?"
            heard.sendall(b"!")
            assert client.recv(1) == b"!"
    return _seen(who)


def tells(
    client: socket.socket, to: str, port: int, server: socket.socket, wait: float = WAIT
) -> Seen | None:
    """Send by UDP and hear an answer from where it was sent; return what the server sees, None if nothing."""
    where = to if ":" in to else f"::ffff:{to}"
    deadline = time.monotonic() + wait
    while time.monotonic() < deadline:
        try:
            client.sendto(b"?", (where, port))
            _, who = server.recvfrom(1)
            server.sendto(b"!", who)
            answer, came = client.recvfrom(1)
        except (TimeoutError, ConnectionRefusedError):
            continue
        assert (answer, came[0], came[1]) == (b"!", where, port)
        return _seen(who)
    return None


def _seen(who: tuple[str, int, int, int]) -> Seen:
    return Seen(str(ip_address(who[0].removeprefix("::ffff:"))), who[1])
