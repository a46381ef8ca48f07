"""A BGP speaker in memory: the real tables, with peers that listen, learn and announce instead of ExaBGP.

`FakeDaemon` is the process, which outlives its agents; `FakeSpeaker` is one agent's connection to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

from bgp.rib import Address, Announcement, Path, Prefix
from bgp.speaker.exabgp_wire import (
    Announce,
    Command,
    Down,
    EndOfRib,
    Heard,
    Opened,
    Received,
    SendEndOfRib,
    Sent,
    Teardown,
    Up,
    Withdraw,
    named,
)
from bgp.speaker.seam import Event, Reset, Wanted
from bgp.speaker.tables import Effects, Tables
from fabric.errors import SpeakerError

PEER_ID = IPv4Address("10.0.0.2")


@dataclass(slots=True)
class FakePeer:
    """A router: `paths` it announces, `table` it learned, and the AS it takes us for (None: any)."""

    listening: bool = True
    expects_as: int | None = None
    peer_id: IPv4Address = PEER_ID
    paths: dict[Prefix, Path] = field(default_factory=dict)
    table: dict[Prefix, Announcement] = field(default_factory=dict)


class FakeDaemon:
    def __init__(self) -> None:
        self.tables = Tables()
        self.peers: dict[Address, FakePeer] = {}
        self.agents: set[FakeSpeaker] = set()
        self.now = 0.0  # the clock, moved by the test

    def want(self, wanted: Wanted) -> None:
        before = set(self.tables.sessions)
        self._effect(self.tables.want(wanted, self.now))
        self._run()
        for peer in before - set(self.tables.sessions):
            self.peers[peer].table.clear()

    def reset(self, reset: Reset) -> None:
        self._effect(self.tables.reset(reset, self.now))
        self._run()

    def expire(self) -> None:
        """Let what is due by `now` happen."""
        self._effect(self.tables.expire(self.now))
        self._run()

    def _run(self) -> None:
        wanted = (self.tables.wanted or Wanted()).sessions - self.tables.idle()
        self._effect(self.tables.in_force(wanted, self.now))
        self._effect(self.tables.gone(wanted))
        for peer in list(self.tables.sessions):
            self.connect(peer)

    def connect(self, address: Address) -> None:
        """One attempt at the session with `address`, as ExaBGP makes them by itself."""
        peer, session = self.peers.get(address), self.tables.sessions.get(address)
        if session is None or session.up or session.idle:
            return
        if peer is None or not peer.listening:
            self._hear(Down(address, "closing connection"))
        elif peer.expects_as not in (None, session.spec.local_as):
            self._hear(Down(address, named(2, 2, sent_by_us=False), (2, 2)))
        else:
            families = session.spec.families
            opened = Opened(address, peer.peer_id, families, graceful=families, restart_time=120)
            self._hear(opened, Up(address))
            self._hear(Received(address, tuple(peer.paths.values())))
            self._hear(*(EndOfRib(address, family) for family in families))

    def announce(self, *paths: Path) -> None:
        for path in paths:
            self.peers[path.peer].paths[path.prefix] = path
        for path in paths:
            self._hear(Received(path.peer, (path,)))

    def withdraw(self, address: Address, prefix: Prefix) -> None:
        del self.peers[address].paths[prefix]
        self._hear(Received(address, (), (prefix,)))

    def lose(self, address: Address, reason: str = "closing connection") -> None:
        self._hear(Down(address, reason))

    def _hear(self, *heard: Heard) -> None:
        self._effect(self.tables.take(heard, self.now))

    def _effect(self, effects: Effects) -> None:
        for command in effects.commands:
            self._carry_out(command)
        news = [*effects.events(), *self.tables.counted()]
        for agent in self.agents:
            for event in news:
                agent.queue.put_nowait(event)

    def _carry_out(self, command: Command) -> None:
        table = self.peers[command.peer].table
        match command:
            case Announce(peer, announcements):
                source = self.tables.sessions[peer].spec.source
                table.update({a.prefix: replace(a, next_hop=a.next_hop or source) for a in announcements})
                self._hear(Sent(peer))
            case Withdraw(peer, prefixes):
                for prefix in prefixes:
                    table.pop(prefix, None)
                self._hear(Sent(peer))
            case SendEndOfRib(peer, family):
                self._hear(EndOfRib(peer, family, ours=True))
            case Teardown(peer, subcode):
                table.clear()
                self._hear(Down(peer, named(6, subcode, sent_by_us=True), (6, subcode), sent_by_us=True))


class FakeSpeaker:
    """An agent's connection; implements `bgp.speaker.seam.Speaker`."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon
        self.queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self.queue.put_nowait(daemon.tables.snapshot())
        daemon.agents.add(self)

    async def want(self, wanted: Wanted) -> None:
        self._still_open("hand down the wanted sessions")
        self._daemon.want(wanted)

    async def reset(self, reset: Reset) -> None:
        self._still_open(f"reset the session with {reset.peer}")
        self._daemon.reset(reset)

    def _still_open(self, what: str) -> None:
        if self not in self._daemon.agents:
            raise SpeakerError(f"{what}: the connection is closed; connect again")

    async def events(self) -> AsyncIterator[Event]:
        while (event := await self.queue.get()) is not None:
            yield event
        raise SpeakerError("read events: the connection ended; connect again")

    async def close(self) -> None:
        self._daemon.agents.discard(self)
        self.queue.put_nowait(None)
