"""BGP's tables as values: paths, the three RIBs, and the sessions they belong to.

Nouns of RFC 4271 §§1.1 and 3.2. Everything here is frozen; every other module of `bgp` takes and
returns these values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Prefix: TypeAlias = IPv4Network | IPv6Network

AS_SET = 0  # stands in a flat AS path for an AS_SET; RFC 7607 keeps it from being anybody's


def address_order(address: Address) -> tuple[int, int]:
    """Return what addresses of both families sort by; `ipaddress` refuses to compare v4 with v6."""
    return address.version, int(address)


def prefix_order(prefix: Prefix) -> tuple[int, int, int]:
    """Return the same for prefixes."""
    return prefix.version, int(prefix.network_address), prefix.prefixlen


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
class Attributes:
    """What is sent with a prefix beside its next hop, as it stands on the wire.

    `as_path` None is the plain one of a route of our own: the local AS to an external peer, empty to an internal
    one; else it is whole, the local AS at its head where it has to be. `local_pref` goes to internal peers only.
    `communities` are texts, "64500:1" a standard one and "64500:1:2" a large one.
    """

    origin: Origin = Origin.IGP
    as_path: tuple[int, ...] | None = None
    as_sets: frozenset[int] = frozenset()  # the members of the AS_SET that a 0 in `as_path` stands for
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
    attributes: Attributes = Attributes()


AdjRibOut: TypeAlias = frozenset[Announcement]


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """One session this node should have: enough to configure a speaker. A change of any of it resets the session.

    `source` is the local address of the TCP session and the next hop of what is announced on it.
    `port` is the peer's, `listen_port` our own. `hold_time` and `restart_time` are seconds
    (RFC 4271 §4.2, RFC 4724 §3); a keepalive is sent each third of the hold time agreed on.
    `ttl_security` is the largest number of hops to the peer, 0 where its TTL is not checked (RFC 5082).
    `password` signs the session's TCP segments (RFC 2385); "" for none.
    `extended_next_hop`: an IPv6 session carries IPv4 too, with its IPv6 next hop (RFC 8950).
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
    listen_port: int = 179
    ttl_security: int = 0
    password: str = field(default="", repr=False)
    extended_next_hop: bool = False

    @property
    def families(self) -> frozenset[int]:
        """The IP versions whose unicast prefixes it carries."""
        return frozenset({4, 6} if self.extended_next_hop else {self.peer.version})

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
class Notification:
    """The last NOTIFICATION of a session (RFC 4271 §4.5), ours or the peer's; `at` is in seconds of the epoch."""

    code: int
    subcode: int
    sent_by_us: bool
    at: float


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """What a session is doing. `since` is in seconds of the Unix epoch.

    `reason` says why it is not Established, in the words of the last event; empty when it is. `notification` stays
    from the last one on, whatever came after. `peer_id` is the BGP identifier of the peer's last OPEN.
    `idle_until` is when a session that was closed for its number of prefixes is tried again, 0.0 for any other.
    `synced` says that the peer's adj-RIB-in is whole: its End-of-RIB came since the session is up, or
    the time to wait for one has passed. While it is False, a missing path means "not heard yet".
    """

    state: SessionState
    since: float
    reason: str = ""
    flaps: int = 0
    synced: bool = False
    peer_id: IPv4Address | None = None
    notification: Notification | None = None
    idle_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """How many UPDATEs a session has carried since the speaker knows of it."""

    updates_in: int = 0
    updates_out: int = 0


AdjRibIn: TypeAlias = Mapping[Prefix, Path]
