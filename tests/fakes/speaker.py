"""A BGP speaker in memory: the real tables, with peers that listen, learn and announce instead of ExaBGP.

`FakeDaemon` is the process, which outlives its agents; `FakeSpeaker` is one agent's connection to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from bgp.rib import Address, Path, Prefix
from bgp.speaker.exabgp_wire import (
    Announce,
    Down,
    EndOfRib,
    Heard,
    Opened,
    Received,
    SendEndOfRib,
    Up,
    Withdraw,
)
from bgp.speaker.seam import Event, Wanted
from bgp.speaker.tables import Effects, Tables
from fabric.errors import SpeakerError


@dataclass(slots=True)
class FakePeer:
    """A router: `paths` it announces, `table` it learned, and the AS it takes us for (None: any)."""

    listening: bool = True
    expects_as: int | None = None
    paths: dict[Prefix, Path] = field(default_factory=dict)
    table: dict[Prefix, Address] = field(default_factory=dict)


class FakeDaemon:
    def __init__(self) -> None:
        self.tables = Tables()
        self.peers: dict[Address, FakePeer] = {}
        self.agents: set[FakeSpeaker] = set()
        self.now = 0.0  # the clock, moved by the test

    def want(self, wanted: Wanted) -> None:
        before = set(self.tables.sessions)
        self._effect(self.tables.want(wanted, self.now))
        self._effect(self.tables.in_force(wanted.sessions, self.now))
        self._effect(self.tables.gone(wanted.sessions))
        for peer in before - set(self.tables.sessions):
            self.peers[peer].table.clear()
        for peer in self.tables.sessions:
            self.connect(peer)

    def connect(self, address: Address) -> None:
        """One attempt at the session with `address`, as ExaBGP makes them by itself."""
        peer, session = self.peers.get(address), self.tables.sessions.get(address)
        if session is None or session.up:
            return
        if peer is None or not peer.listening:
            self._hear(Down(address, "closing connection"))
        elif peer.expects_as not in (None, session.spec.local_as):
            self._hear(Down(address, "notification received (2,2) bad peer AS", (2, 2)))
        else:
            self._hear(Opened(address, graceful=True, forwarding_lost=False), Up(address))
            self._hear(Received(address, tuple(peer.paths.values())), EndOfRib(address))

    def announce(self, path: Path) -> None:
        self.peers[path.peer].paths[path.prefix] = path
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
            table = self.peers[command.peer].table
            match command:
                case Announce(peer, announcements):
                    source = self.tables.sessions[peer].spec.source
                    table.update({a.prefix: a.next_hop or source for a in announcements})
                case Withdraw(_, prefixes):
                    for prefix in prefixes:
                        table.pop(prefix, None)
                case SendEndOfRib():
                    pass
        for agent in self.agents:
            for event in effects.events():
                agent.queue.put_nowait(event)


class FakeSpeaker:
    """An agent's connection; implements `bgp.speaker.seam.Speaker`."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon
        self.queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self.queue.put_nowait(daemon.tables.snapshot())
        daemon.agents.add(self)

    async def want(self, wanted: Wanted) -> None:
        if self not in self._daemon.agents:
            raise SpeakerError("hand down the wanted sessions: the connection is closed; connect again")
        self._daemon.want(wanted)

    async def events(self) -> AsyncIterator[Event]:
        while (event := await self.queue.get()) is not None:
            yield event
        raise SpeakerError("read events: the connection ended; connect again")

    async def close(self) -> None:
        self._daemon.agents.discard(self)
        self.queue.put_nowait(None)
