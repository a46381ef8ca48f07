"""BGP's tables as values: paths, the three RIBs, and the sessions they belong to.

Nouns of RFC 4271 §§1.1 and 3.2. Everything here is frozen; every other module of `bgp` takes and
returns these values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Prefix: TypeAlias = IPv4Network | IPv6Network


class Origin(StrEnum):
    """RFC 4271 §5.1.1; lower in this order is preferred."""

    IGP = "igp"
    EGP = "egp"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True)
class Path:
    """One path in an adj-RIB-in: a prefix and the attributes one peer sent with it.

    `as_path` is flat, nearest AS first; an AS_SET counts as one element for the length
    (RFC 4271 §9.1.2.2 a) and `as_sets` holds its members, for the loop check only.
    `med` None means absent and counts as 0; `local_pref` None means absent (eBGP) and counts as 100.
    """

    prefix: Prefix
    next_hop: Address
    peer: Address
    origin: Origin = Origin.IGP
    as_path: tuple[int, ...] = ()
    as_sets: frozenset[int] = frozenset()
    med: int | None = None
    local_pref: int | None = None
    communities: tuple[str, ...] = ()
    originator_id: IPv4Address | None = None
    cluster_list: tuple[IPv4Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Announcement:
    """One prefix of an adj-RIB-out; `next_hop` None means the session's own source address."""

    prefix: Prefix
    next_hop: Address | None = None


AdjRibOut: TypeAlias = frozenset[Announcement]


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """One session this node should have: enough to configure a speaker.

    `source` is the local address of the TCP session and the next hop of what is announced on it.
    `port` is the peer's; our own is always 179. `hold_time` and `restart_time` are seconds
    (RFC 4271 §4.2, RFC 4724 §3).
    """

    peer: Address
    peer_as: int
    source: Address
    local_as: int
    router_id: IPv4Address
    port: int = 179
    passive: bool = False
    hold_time: int = 90
    restart_time: int = 120

    @property
    def external(self) -> bool:
        """eBGP, as opposed to iBGP."""
        return self.peer_as != self.local_as


class SessionState(StrEnum):
    """What can be told from outside ExaBGP's state machine (RFC 4271 §8.2.2, folded)."""

    IDLE = "Idle"
    CONNECT = "Connect"
    ESTABLISHED = "Established"


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """What a session is doing. `since` is in seconds of the Unix epoch.

    `reason` says why it is not Established, in the words of the last event; empty when it is.
    `synced` says that the peer's adj-RIB-in is whole: its End-of-RIB came since the session is up, or
    the time to wait for one has passed. While it is False, a missing path means "not heard yet".
    """

    state: SessionState
    since: float
    reason: str = ""
    flaps: int = 0
    synced: bool = False


AdjRibIn: TypeAlias = Mapping[Prefix, Path]
