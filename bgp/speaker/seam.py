"""The agent's side of the speaker: what it hands down and what it hears, as values on a unix socket.

Down: `Wanted`, the whole desired state (sessions and one adj-RIB-out per peer), each time it changes; `Reset`.
Up: first a `Snapshot`, then deltas. Everything is idempotent; a reader that missed something
reconnects and starts from the next snapshot. The messages are ours, not ExaBGP's, so that another
BGP daemon can stand behind them.

One JSON object a line, UTF-8; `encode` and `decode` are each other's inverse.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from bgp.rib import Address, AdjRibOut, Path, Prefix, SessionSpec, SessionStatus, Traffic


@dataclass(frozen=True, slots=True)
class Wanted:
    """The whole desired state of the speaker: a session not listed is taken down.

    `announce` has one entry a session; a missing one means nothing is announced there. `max_prefixes` says how many
    prefixes a peer may send before its session is closed (Cease 6/1) and stays idle; a missing one means no limit.
    """

    sessions: frozenset[SessionSpec] = frozenset()
    announce: Mapping[Address, AdjRibOut] = field(default_factory=dict)
    max_prefixes: Mapping[Address, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reset:
    """End one session with a Cease of this subcode (RFC 4486), flush what it learned, and let it come up again at once.

    A session that idles for its number of prefixes is tried again.
    """

    peer: Address
    subcode: int = 4  # administrative reset


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything the speaker knows; the first message on each connection.

    `wanted` is what it is working towards, which outlives the agent that asked for it.
    """

    sessions: Mapping[Address, SessionStatus] = field(default_factory=dict)
    adj_rib_in: Mapping[Address, frozenset[Path]] = field(default_factory=dict)
    wanted: Wanted = field(default_factory=Wanted)
    traffic: Mapping[Address, Traffic] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SessionChanged:
    peer: Address
    status: SessionStatus


@dataclass(frozen=True, slots=True)
class SessionGone:
    """A session no longer wanted is gone from the BGP daemon; its adj-RIB-in went with it.

    What was announced on it has been withdrawn before, unless the peer took nothing for half a minute.
    """

    peer: Address


@dataclass(frozen=True, slots=True)
class Update:
    """A change of one peer's adj-RIB-in: `paths` replace by prefix, `withdrawn` go."""

    peer: Address
    paths: tuple[Path, ...] = ()
    withdrawn: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class Counted:
    """How many UPDATEs a session has carried; told about once a second, where it changed."""

    peer: Address
    traffic: Traffic


Event: TypeAlias = Snapshot | SessionChanged | SessionGone | Update | Counted


class Speaker(Protocol):
    """The seam: `SpeakerClient` for the real process, `tests.fakes.speaker.FakeSpeaker` in memory."""

    async def want(self, wanted: Wanted) -> None:
        """Hand down the whole desired state. Raises SpeakerError when the speaker does not answer."""

    async def reset(self, reset: Reset) -> None:
        """End one session. Raises SpeakerError when the speaker does not answer."""

    def events(self) -> AsyncIterator[Event]:
        """Yield a Snapshot, then deltas; raises SpeakerError when the connection ends."""

    async def close(self) -> None:
        """Leave; the speaker goes on as it was told last."""
