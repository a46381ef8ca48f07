"""Checksums through a VXLAN, on real links: one that makes them, and one that makes those inside of a tunnel wrong."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

import pytest

from fabric.agent import offload as agent
from fabric.agent.desired import Desired
from fabric.agent.passes import Outcome
from fabric.agent.state import State
from fabric.kernel import offload
from fabric.kernel.offload import Answer
from fabric.kernel.tunnels import NetlinkTunnels
from fabric.plan.encap import VXLAN, VXLAN6
from fabric.plan.guards import PROBE_PORT
from fabric.plan.tunnels import Far, Tunnel
from tests.contract.broken_link import BrokenLink
from tests.contract.netns import Namespace

HASTE = 0.8  # seconds for TCP; its second try comes after one, and nothing is lost here but by a broken link


def end(number: int, version: int) -> Tunnel:
    """The tunnel of node 1 or 2, whose only far end is that of the other."""

    def of(n: int) -> tuple[str, str, str]:
        ends, nodes = {4: f"10.244.{n}.0", 6: f"fd00:{n}::"}, {4: f"192.0.2.{n}", 6: f"2001:db8::{n}"}
        return ends[version], f"66:00:00:00:00:0{n}", nodes[version]

    (own, mac, node), (far, far_mac, far_node) = of(number), of(3 - number)
    there = Far(ip_address(far), far_mac, ip_address(far_node))
    encap, mtu = (VXLAN, 1450) if version == 4 else (VXLAN6, 1430)
    return Tunnel(encap, ip_address(own), ip_address(node), mtu, mac, 4096, 4789, frozenset({there}))


class Node:
    """A namespace with a tunnel, and on request an agent's task that looks after its checksums."""

    def __init__(self, space: Namespace, tunnel: Tunnel) -> None:
        self.space, self.tunnel, self.state = space, tunnel, State("node")
        [self.far] = (far.address for far in tunnel.far)

    def put_up(self, *, offload: bool) -> None:
        self.tunnel = replace(self.tunnel, offload=offload)
        self.space.run(NetlinkTunnels().create(self.tunnel))
        # The userland link takes single packets only.
        self.space.ip("link", "set", self.tunnel.name, "gso_max_segs", "1")
        self.space.ip("route", "replace", str(self.far), "dev", self.tunnel.name)

    @contextmanager
    def looked_after(self) -> Iterator[None]:
        async def begin() -> list[asyncio.Task[None]]:
            ask = partial(offload.ask, patience=HASTE)
            return [asyncio.create_task(work) for work in (agent.follow(self.state, ask), self._passes())]

        async def end(tasks: list[asyncio.Task[None]]) -> None:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        tasks = self.space.run(begin())
        try:
            yield
        finally:
            self.space.run(end(tasks))

    async def _passes(self) -> None:
        """What the agent's passes do about it."""
        while True:
            tunnel = replace(self.tunnel, offload=self.tunnel.encap not in self.state.no_offload)
            await NetlinkTunnels().create(tunnel)
            self.state.desired = Desired(tunnels={tunnel.name: tunnel})
            self.state.raised({tunnel.name: tunnel})
            self.state.dirty.clear()
            self.state.passed(Outcome())
            await self.state.dirty.wait()

    def wait_for(self, words: str) -> None:
        said = self.state.until(lambda: self.state.probed.get(self.tunnel.name) == words)
        self.space.run(asyncio.wait_for(said, 45))


@pytest.fixture
def spaces() -> Iterator[list[Namespace]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Namespace()) for _ in range(3)]


def nodes(spaces: list[Namespace], version: int) -> tuple[Node, Node]:
    """Two nodes, each with a cable to what lies between."""
    one, two, between = spaces
    for number, space in (1, one), (2, two):
        there, link = between.path.split("/")[-3], f"end{number}"
        space.ip("link", "add", "eth0", "type", "veth", "peer", "name", link, "netns", there)
        space.ip("address", "add", f"192.0.2.{number}/24", "dev", "eth0")
        space.ip("address", "add", f"2001:db8::{number}/64", "dev", "eth0", "nodad")
        space.ip("link", "set", "eth0", "up")
        between.ip("link", "set", link, "up")
    return Node(one, end(1, version)), Node(two, end(2, version))


def bridged(between: Namespace) -> None:
    between.ip("link", "add", "whole0", "type", "bridge")
    for name in "end1", "end2":
        between.ip("link", "set", name, "master", "whole0")
    between.ip("link", "set", "whole0", "up")


def answer(asking: Node, asked: Node) -> Answer:
    server = asked.space.run(offload.listen(asked.tunnel))
    try:
        return asking.space.run(offload.ask(asking.tunnel, asking.far, HASTE))
    finally:
        asked.space.call(server.close)


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_through_a_good_link_arrives_whole(spaces: list[Namespace], version: int) -> None:
    one, two = nodes(spaces, version)
    bridged(spaces[2])
    for node in one, two:
        node.put_up(offload=True)
    assert answer(one, two) is Answer.WHOLE
    # Nobody listens there: what is refused tells nothing.
    assert one.space.run(offload.ask(one.tunnel, one.far, HASTE)) is Answer.UNKNOWN
    two.space.ip("link", "set", "eth0", "down")
    assert one.space.run(offload.ask(one.tunnel, one.far, HASTE)) is Answer.UNKNOWN


def test_who_is_no_far_end_is_not_answered(spaces: list[Namespace]) -> None:
    one, two = nodes(spaces, 4)
    bridged(spaces[2])
    for node in one, two:
        node.put_up(offload=True)
    two.tunnel = replace(two.tunnel, far=frozenset())
    assert answer(one, two) is Answer.UNKNOWN


def test_what_another_listener_says_tells_nothing_however_much_it_is(spaces: list[Namespace]) -> None:
    one, two = nodes(spaces, 4)
    bridged(spaces[2])
    for node in one, two:
        node.put_up(offload=True)

    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(ConnectionError):
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()

    server = two.space.run(asyncio.start_server(say, str(two.tunnel.address), PROBE_PORT))
    try:
        assert one.space.run(offload.ask(one.tunnel, one.far)) is Answer.UNKNOWN
    finally:
        two.space.call(server.close)


def test_who_asks_and_sends_nothing_is_left_after_a_while(spaces: list[Namespace]) -> None:
    one, two = nodes(spaces, 4)
    bridged(spaces[2])
    for node in one, two:
        node.put_up(offload=True)
    server = two.space.run(offload.listen(two.tunnel, HASTE))
    try:
        address = (str(one.tunnel.address), 0)
        at = str(one.far), PROBE_PORT
        with one.space.call(partial(socket.create_connection, at, 10 * HASTE, address)) as silent:
            assert silent.recv(1) == b""
    finally:
        two.space.call(server.close)


@pytest.mark.parametrize("version", [4, 6])
def test_a_link_that_makes_them_wrong_loses_tcp_and_not_pings_until_the_kernel_makes_them(
    spaces: list[Namespace], version: int
) -> None:
    one, two = nodes(spaces, version)
    with BrokenLink(spaces[2], ("end1", "end2")) as link:
        for node in one, two:
            node.put_up(offload=True)
        assert answer(one, two) is Answer.ECHO_ONLY
        assert link.forgot
        for node in one, two:
            node.put_up(offload=False)
        assert answer(one, two) is Answer.WHOLE


def test_agents_find_a_broken_link_and_have_their_kernels_make_checksums(spaces: list[Namespace]) -> None:
    one, two = nodes(spaces, 4)
    with BrokenLink(spaces[2], ("end1", "end2")):
        for node in one, two:
            node.put_up(offload=True)
        with one.looked_after(), two.looked_after():
            for node in one, two:
                node.wait_for("TCP arrives at 1 of 1 far ends")
                assert node.state.no_offload == {VXLAN}


def test_agents_leave_a_good_link_alone(spaces: list[Namespace]) -> None:
    one, two = nodes(spaces, 6)
    bridged(spaces[2])
    for node in one, two:
        node.put_up(offload=True)
    with one.looked_after(), two.looked_after():
        for node in one, two:
            node.wait_for("TCP arrives at 1 of 1 far ends")
            assert not node.state.no_offload
