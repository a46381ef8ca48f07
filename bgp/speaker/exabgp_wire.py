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

from bgp import notifications
from bgp.rib import AS_SET, Address, Announcement, Attributes, Origin, Path, Prefix, prefix_order

BATCH = 1000  # prefixes a line: 10,000 take 3 s this way, 8 s one a line
FAMILIES: Mapping[int, str] = {4: "ipv4 unicast", 6: "ipv6 unicast"}

_NOTIFICATION = re.compile(r"notification (sent|received) \((\d+),(\d+)\)")


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer's OPEN; families are by IP version.

    `families` are those it carries, IPv4 over IPv6 only with an IPv6 next hop (RFC 8950). `graceful` are those
    whose routes it keeps over a restart, `forwarding_lost` those it says its own restart broke, and `restart_time`
    how many seconds that may take.
    """

    peer: Address
    peer_id: IPv4Address
    families: frozenset[int]
    graceful: frozenset[int] = frozenset()
    forwarding_lost: frozenset[int] = frozenset()
    restart_time: int = 0


@dataclass(frozen=True, slots=True)
class Up:
    peer: Address


@dataclass(frozen=True, slots=True)
class Down:
    """`reason` is ExaBGP's, with the RFC's name added if it was a NOTIFICATION, whose code is `code`."""

    peer: Address
    reason: str
    code: tuple[int, int] | None = None
    sent_by_us: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    peer: Address
    paths: tuple[Path, ...] = ()
    withdrawn: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class EndOfRib:
    """The peer's for one family (RFC 4724 §2), or `ours` has left for it."""

    peer: Address
    family: int
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Sent:
    """An UPDATE has left for the peer."""

    peer: Address


@dataclass(frozen=True, slots=True)
class Neighbor:
    """One session as ExaBGP has it; `description` is the one in its configuration."""

    peer: Address
    description: str


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The answer to SHOW."""

    sessions: frozenset[Neighbor]


@dataclass(frozen=True, slots=True)
class Answered:
    """ExaBGP has dealt with one command, or refused it; it does not say which."""

    done: bool = True


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A line that could not be read: `kind` is one of a few, `why` has the details.

    The prefixes that it names are to be taken as withdrawn (RFC 7606 §2), where its peer can be told.
    """

    kind: str
    why: str
    peer: Address | None = None
    withdrawn: tuple[Prefix, ...] = ()


Heard: TypeAlias = Opened | Up | Down | Received | EndOfRib | Sent | Neighbors | Answered | Unreadable
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
    family: int


@dataclass(frozen=True, slots=True)
class Teardown:
    """End an Established session with a Cease; after subcode 1 ExaBGP does not try it again."""

    peer: Address
    subcode: int


Command: TypeAlias = Announce | Withdraw | SendEndOfRib | Teardown

PING = "version"  # answered at once, which shows that ExaBGP is not stalled
SHOW = "show neighbor json"
RELOAD = "reload"


def parse(line: str) -> Heard | None:
    """Return what `line` says, or None where nothing follows from it (keepalives, banners).

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
    return Unreadable(kind, why, peer, tuple(_named(neighbor)) if received else ())


def _named(neighbor: Mapping[str, Any]) -> Iterator[Prefix]:
    """Yield every prefix that an UPDATE announces or withdraws, where it can be told."""
    try:
        update = neighbor["message"]["update"]
        for family in FAMILIES.values():
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
        return Answered(line == "done") if line in ("done", "error") else None
    raw = json.loads(line)
    neighbor = raw.get("neighbor")
    if neighbor is None:  # its own shutdown, which we see as the end of the stream
        return None
    peer = ip_address(neighbor["address"]["peer"])
    match raw["type"]:
        case "state":
            return _state(peer, neighbor)
        case "open" if neighbor["direction"] == "receive":
            return _opened(peer, neighbor["open"])
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
    code = int(found[2]), int(found[3])
    return Down(peer, named(*code, sent_by_us=found[1] == "sent"), code, found[1] == "sent")


def named(code: int, subcode: int, *, sent_by_us: bool) -> str:
    """Say which NOTIFICATION it was, as ExaBGP does, and what that means."""
    how = "sent" if sent_by_us else "received"
    return f"notification {how} ({code},{subcode}) {notifications.words(code, subcode)}"


def _opened(peer: Address, message: Mapping[str, Any]) -> Opened:
    capabilities = message["capabilities"]
    offered = capabilities.get("1", {}).get("families", ())
    if peer.version == 6 and "ipv4/unicast/ipv6" not in capabilities.get("5", {}).get("conversion", ()):
        offered = set(offered) - {"ipv4/unicast"}
    restart = capabilities.get("64", {})
    flags = {_family(name): flag for name, flag in restart.get("address-family-flags", {}).items()}
    restarted = "forwarding" in restart.get("restart-flags", ())  # the R bit, see above
    return Opened(
        peer,
        IPv4Address(message["router_id"]),
        families=frozenset(map(_family, offered)) & FAMILIES.keys(),
        graceful=frozenset(flags) & FAMILIES.keys(),
        forwarding_lost=frozenset(
            family for family, flag in flags.items() if restarted and "restart" not in flag
        ),
        restart_time=int(restart.get("time", 0)),
    )


def _family(name: str) -> int:
    return {"ipv4/unicast": 4, "ipv6/unicast": 6}.get(name, 0)


def _update(peer: Address, message: Mapping[str, Any], *, received: bool) -> Heard | None:
    if eor := message.get("eor"):
        family = _family(f"{eor['afi']}/{eor['safi']}")
        return EndOfRib(peer, family, ours=not received) if family else None
    if not received:
        return Sent(peer)
    update = message["update"]
    attributes = _attributes(update.get("attribute", {}))
    announced, withdrawn = update.get("announce", {}), update.get("withdraw", {})
    paths = tuple(
        Path(prefix=prefix, next_hop=next_hop, peer=peer, **attributes)
        for family in FAMILIES.values()
        for prefix, next_hop in _next_hops(announced.get(family, {})).items()
    )
    gone = (_prefix(nlri["nlri"]) for family in FAMILIES.values() for nlri in withdrawn.get(family, ()))
    return Received(peer, paths, tuple(gone))


def _next_hops(announced: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[Prefix, Address]:
    """A peer on the same link sends its link-local address beside the global one (RFC 2545 §3): the latter counts."""
    found: dict[Prefix, Address] = {}
    for next_hop, nlris in ((ip_address(text), nlris) for text, nlris in announced.items()):
        for nlri in nlris:
            prefix = _prefix(nlri["nlri"])
            if prefix not in found or found[prefix].is_link_local:
                found[prefix] = next_hop
    return found


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
    return Neighbor(ip_address(raw["peer"]["address"]), raw["local"]["capabilities"]["description"])


def render(command: Command) -> Iterator[str]:
    """Yield the lines that carry out `command`, scoped to its peer.

    Unscoped, a v6 `next-hop self` that meets a v4 session ends ExaBGP's loop over the peers.
    """
    match command:
        case Announce(peer, announcements):
            for head, prefixes in _alike(announcements):
                yield from _batches(f"neighbor {peer} announce attributes {head}", prefixes)
        case Withdraw(peer, prefixes):
            for family in FAMILIES:
                # The next hop must be there for the parser; ExaBGP matches by prefix alone.
                withdrawn = _sorted(prefix for prefix in prefixes if prefix.version == family)
                yield from _batches(f"neighbor {peer} withdraw attributes next-hop self", withdrawn)
        case SendEndOfRib(peer, family):
            yield f"neighbor {peer} announce eor {FAMILIES[family]}"
        case Teardown(peer, subcode):
            yield f"neighbor {peer} teardown {subcode}"


def _alike(announcements: Iterable[Announcement]) -> Iterator[tuple[str, list[Prefix]]]:
    """Group what goes out with equal next hop and attributes, which come as ExaBGP writes them.

    Our own come first: after a restart they are stale at the peer until they are heard again, and go if the
    session is lost once more before that (RFC 4724 §4.2).
    """
    groups: dict[tuple[Address | None, Attributes, int], list[Prefix]] = {}
    for announcement in announcements:
        key = announcement.next_hop, announcement.attributes, announcement.prefix.version
        groups.setdefault(key, []).append(announcement.prefix)
    heads = {key: f"next-hop {key[0] or 'self'}{''.join(_written(key[1]))}" for key in groups}
    for group in sorted(groups, key=lambda key: (key[1].as_path is not None, heads[key], key[2])):
        yield heads[group], _sorted(groups[group])


def _written(attributes: Attributes) -> Iterator[str]:
    if attributes.origin is not Origin.IGP:
        yield f" origin {attributes.origin}"
    if attributes.as_path:  # without one ExaBGP makes the plain one: our AS to an external peer, else empty
        yield f" as-path{''.join(_segments(attributes))}"
    if attributes.med is not None:
        yield f" med {attributes.med}"
    if attributes.local_pref is not None:
        yield f" local-preference {attributes.local_pref}"
    for name, colons in (("community", 1), ("large-community", 2)):
        if values := [text for text in attributes.communities if text.count(":") == colons]:
            yield f" {name} [ {' '.join(values)} ]"
    if attributes.originator_id is not None:
        yield f" originator-id {attributes.originator_id}"
    if attributes.cluster_list:
        yield f" cluster-list [ {' '.join(map(str, attributes.cluster_list))} ]"


def _segments(attributes: Attributes) -> Iterator[str]:
    for is_set, numbers in groupby(attributes.as_path or (), key=lambda number: number == AS_SET):
        if not is_set:
            yield f" [ {' '.join(map(str, numbers))} ]"
        elif attributes.as_sets:
            yield f" ( {' '.join(map(str, sorted(attributes.as_sets)))} )"


def _sorted(prefixes: Iterable[Prefix]) -> list[Prefix]:
    return sorted(prefixes, key=prefix_order)


def _batches(head: str, prefixes: list[Prefix]) -> Iterator[str]:
    for start in range(0, len(prefixes), BATCH):
        yield f"{head} nlri {' '.join(map(str, prefixes[start : start + BATCH]))}"
