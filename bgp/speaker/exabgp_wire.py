"""Reads what ExaBGP says and writes what it is told: its JSON lines to values, values to its commands.

Pure. ExaBGP 5.0.15 answers `done` or `error` to each command, interleaved with the events and without
an id, so answers are told apart by their looks. Two traps of its JSON: in an OPEN's graceful-restart
capability the names are swapped ("forwarding" is the R bit, "restart" the F bit of RFC 4724 §3), and a
`down` also fires for each refused connect, so only one after an `up` means a session was lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_network
from itertools import chain, groupby
from typing import Any, TypeAlias

from bgp.rib import Address, Announcement, Origin, Path, Prefix

BATCH = 1000  # prefixes a line: 10,000 take 3 s this way, 8 s one a line
AS_SET = 0  # stands in a flat AS path for an AS_SET; RFC 7607 keeps it from being anybody's

# RFC 4271 §4.5, RFC 4486 §3, RFC 5492 §3, RFC 8538 §3. Subcode 0 is the code alone.
NOTIFICATIONS: Mapping[tuple[int, int], str] = {
    (1, 0): "message header error",
    (1, 1): "connection not synchronized",
    (1, 2): "bad message length",
    (1, 3): "bad message type",
    (2, 0): "OPEN message error",
    (2, 1): "unsupported version number",
    (2, 2): "bad peer AS",
    (2, 3): "bad BGP identifier",
    (2, 4): "unsupported optional parameter",
    (2, 6): "unacceptable hold time",
    (2, 7): "unsupported capability",
    (3, 0): "UPDATE message error",
    (3, 1): "malformed attribute list",
    (3, 2): "unrecognized well-known attribute",
    (3, 3): "missing well-known attribute",
    (3, 4): "attribute flags error",
    (3, 5): "attribute length error",
    (3, 6): "invalid ORIGIN attribute",
    (3, 8): "invalid NEXT_HOP attribute",
    (3, 9): "optional attribute error",
    (3, 10): "invalid network field",
    (3, 11): "malformed AS_PATH",
    (4, 0): "hold timer expired",
    (5, 0): "finite state machine error",
    (6, 0): "cease",
    (6, 1): "maximum number of prefixes reached",
    (6, 2): "administrative shutdown",
    (6, 3): "peer de-configured",
    (6, 4): "administrative reset",
    (6, 5): "connection rejected",
    (6, 6): "other configuration change",
    (6, 7): "connection collision resolution",
    (6, 8): "out of resources",
    (6, 9): "hard reset",
}
_NOTIFICATION = re.compile(r"notification (?:sent|received) \((\d+),(\d+)\)")


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer's OPEN: whether it keeps our routes over a restart, and says its own forwarding broke."""

    peer: Address
    graceful: bool
    forwarding_lost: bool


@dataclass(frozen=True, slots=True)
class Up:
    peer: Address


@dataclass(frozen=True, slots=True)
class Down:
    """`reason` is ExaBGP's, with the RFC's name added if it was a NOTIFICATION, whose code is `code`."""

    peer: Address
    reason: str
    code: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Received:
    peer: Address
    paths: tuple[Path, ...] = ()
    withdrawn: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class EndOfRib:
    """The peer's (RFC 4724 §2), or `ours` has left for it."""

    peer: Address
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Neighbor:
    """One session as ExaBGP has it: what `show neighbor json` lets us compare."""

    peer: Address
    source: Address
    peer_as: int
    local_as: int
    hold_time: int


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The answer to SHOW."""

    sessions: frozenset[Neighbor]


@dataclass(frozen=True, slots=True)
class Refused:
    """ExaBGP answered `error`; it does not say to what."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A line that could not be read: `kind` is one of a few, `why` has the details.

    The prefixes that it names are to be taken as withdrawn (RFC 7606 §2), where its peer can be told.
    """

    kind: str
    why: str
    peer: Address | None = None
    withdrawn: tuple[Prefix, ...] = ()


Heard: TypeAlias = Opened | Up | Down | Received | EndOfRib | Neighbors | Refused | Unreadable
# What reading JSON of another shape than expected can raise.
_MISREAD = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Announce:
    peer: Address
    announcements: frozenset[Announcement]


@dataclass(frozen=True, slots=True)
class Withdraw:
    peer: Address
    prefixes: frozenset[Prefix]


@dataclass(frozen=True, slots=True)
class SendEndOfRib:
    peer: Address


Command: TypeAlias = Announce | Withdraw | SendEndOfRib

PING = "version"  # answered at once, which shows that ExaBGP is not stalled
SHOW = "show neighbor json"
RELOAD = "reload"


def parse(line: str) -> Heard | None:
    """Return what `line` says, or None where nothing follows from it (acks, keepalives, banners).

    Never raises: a peer decides on much of what is in a line, and must not end the speaker.
    """
    try:
        return _parse(line)
    except _MISREAD as err:
        return _unreadable(line, err)


def _unreadable(line: str, err: Exception) -> Unreadable:
    why = f"{err!r} in {line[:400]!r}"
    try:
        raw = json.loads(line)
        kind = f"{raw['type']}: {type(err).__name__}"
        neighbor = raw["neighbor"]
        peer = ip_address(neighbor["address"]["peer"])
    except _MISREAD:
        return Unreadable(f"line: {type(err).__name__}", why)
    received = raw["type"] == "update" and neighbor.get("direction") == "receive"
    return Unreadable(kind, why, peer, tuple(_named(neighbor, peer.version)) if received else ())


def _named(neighbor: Mapping[str, Any], version: int) -> Iterator[Prefix]:
    """Yield every prefix of `version` that an UPDATE announces or withdraws, where it can be told."""
    family = f"ipv{version} unicast"
    try:
        update = neighbor["message"]["update"]
        announced = update.get("announce", {}).get(family, {}).values()
        for nlri in [*chain.from_iterable(announced), *update.get("withdraw", {}).get(family, ())]:
            with suppress(*_MISREAD):
                yield _prefix(nlri["nlri"])
    except _MISREAD:
        return


def _prefix(text: str) -> Prefix:
    # The bits behind the length are irrelevant (RFC 4271 §4.3).
    return ip_network(text, strict=False)


def _parse(line: str) -> Heard | None:
    if line.startswith("["):
        return Neighbors(frozenset(map(_neighbor, json.loads(line))))
    if not line.startswith("{"):
        return Refused() if line == "error" else None
    raw = json.loads(line)
    neighbor = raw.get("neighbor")
    if neighbor is None:  # its own shutdown, which we see as the end of the stream
        return None
    peer = ip_address(neighbor["address"]["peer"])
    match raw["type"]:
        case "state":
            return _state(peer, neighbor)
        case "open" if neighbor["direction"] == "receive":
            return _opened(peer, neighbor["open"]["capabilities"].get("64", {}))
        case "update":
            return _update(peer, neighbor["message"], received=neighbor["direction"] == "receive")
    return None


def _state(peer: Address, neighbor: Mapping[str, Any]) -> Heard | None:
    match neighbor["state"]:
        case "up":
            return Up(peer)
        case "down":
            return _down(peer, neighbor["reason"])
    return None


def _down(peer: Address, reason: str) -> Down:
    if not (found := _NOTIFICATION.fullmatch(reason)):
        return Down(peer, reason)
    code = int(found[1]), int(found[2])
    name = NOTIFICATIONS.get(code) or NOTIFICATIONS.get((code[0], 0), "unknown code")
    return Down(peer, f"{reason} {name}", code)


def _opened(peer: Address, capability: Mapping[str, Any]) -> Opened:
    flags = capability.get("address-family-flags", {}).get(f"ipv{peer.version}/unicast")
    restarted = "forwarding" in capability.get("restart-flags", ())  # the R bit, see above
    return Opened(peer, flags is not None, restarted and "restart" not in (flags or ()))


def _update(peer: Address, message: Mapping[str, Any], *, received: bool) -> Heard | None:
    if "eor" in message:
        return EndOfRib(peer, ours=not received)
    if not received:
        return None
    update = message["update"]
    family = f"ipv{peer.version} unicast"
    attributes = _attributes(update.get("attribute", {}))
    paths = tuple(
        Path(prefix=_prefix(nlri["nlri"]), next_hop=ip_address(next_hop), peer=peer, **attributes)
        for next_hop, nlris in update.get("announce", {}).get(family, {}).items()
        for nlri in nlris
    )
    withdrawn = tuple(_prefix(nlri["nlri"]) for nlri in update.get("withdraw", {}).get(family, ()))
    return Received(peer, paths, withdrawn)


def _attributes(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What all paths of one UPDATE share, by the names of Path's fields."""
    as_path, as_sets = _as_path(raw.get("as-path", {}))
    originator = raw.get("originator-id")
    communities = [*raw.get("community", ()), *raw.get("large-community", ())]
    return {
        "origin": Origin(raw.get("origin", "incomplete")),
        "as_path": as_path,
        "as_sets": as_sets,
        "med": raw.get("med"),
        "local_pref": raw.get("local-preference"),
        "communities": tuple(":".join(map(str, community)) for community in communities),
        "originator_id": IPv4Address(originator) if originator else None,
        "cluster_list": tuple(map(IPv4Address, raw.get("cluster-list", ()))),
    }


def _as_path(segments: Mapping[str, Any]) -> tuple[tuple[int, ...], frozenset[int]]:
    flat: list[int] = []
    members: set[int] = set()
    for segment in segments.values():
        if segment["element"] == "as-set":
            flat.append(AS_SET)
            members.update(segment["value"])
        else:
            flat.extend(segment["value"])
    return tuple(flat), frozenset(members)


def _neighbor(raw: Mapping[str, Any]) -> Neighbor:
    local, peer = raw["local"], raw["peer"]
    return Neighbor(
        ip_address(peer["address"]), ip_address(local["address"]), peer["as"], local["as"], local["hold"]
    )


def render(command: Command) -> Iterator[str]:
    """Yield the lines that carry out `command`, scoped to its peer.

    Unscoped, a v6 `next-hop self` that meets a v4 session ends ExaBGP's loop over the peers.
    """
    match command:
        case Announce(peer, announcements):
            for next_hop, prefixes in _by_next_hop(announcements):
                yield from _batches(f"neighbor {peer} announce attributes next-hop {next_hop}", prefixes)
        case Withdraw(peer, prefixes):
            # The next hop must be there for the parser; ExaBGP matches by prefix alone.
            yield from _batches(f"neighbor {peer} withdraw attributes next-hop self", _sorted(prefixes))
        case SendEndOfRib(peer):
            yield f"neighbor {peer} announce eor ipv{peer.version} unicast"


def _by_next_hop(announcements: Iterable[Announcement]) -> Iterator[tuple[str, list[Prefix]]]:
    def next_hop(announcement: Announcement) -> str:
        return str(announcement.next_hop or "self")

    for hop, group in groupby(sorted(announcements, key=next_hop), key=next_hop):
        yield hop, _sorted(announcement.prefix for announcement in group)


def _sorted(prefixes: Iterable[Prefix]) -> list[Prefix]:
    return sorted(prefixes, key=lambda p: (p.version, int(p.network_address), p.prefixlen))


def _batches(head: str, prefixes: list[Prefix]) -> Iterator[str]:
    for start in range(0, len(prefixes), BATCH):
        yield f"{head} nlri {' '.join(map(str, prefixes[start : start + BATCH]))}"
