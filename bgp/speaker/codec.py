"""Turns the messages of the seam into JSON lines and back; `encode` and `decode` are each other's inverse."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any, TypeAlias

from bgp.rib import (
    Address,
    AdjRibOut,
    Announcement,
    Attributes,
    Notification,
    Origin,
    Path,
    Prefix,
    SessionSpec,
    SessionState,
    SessionStatus,
    Traffic,
    address_order,
    prefix_order,
)
from bgp.speaker.rewanted import Rewanted
from bgp.speaker.seam import Counted, Event, Reset, SessionChanged, SessionGone, Snapshot, Update, Wanted
from fabric.errors import SpeakerError

Message: TypeAlias = Event | Wanted | Rewanted | Reset
Json: TypeAlias = Mapping[str, Any]  # what json.loads gives; every field is converted where it is read
# The fields of a SessionSpec by what they are.
NUMBERS = ("peer_as", "local_as", "port", "hold_time", "restart_time", "listen_port", "ttl_security")
COMMUNITY = re.compile(r"\d+(:\d+){1,2}", re.ASCII)
FLAGS = ("passive", "extended_next_hop")


def encode(message: Message) -> bytes:
    """Return one line, newline included; equal messages give equal bytes."""
    return json.dumps(_to_json(message), separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Return the message on `line`.

    Raises:
        SpeakerError: it is none of ours, which two versions of this program can cause.
    """
    try:
        return _from_json(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise SpeakerError(
            f"read a message on the speaker's socket: {err!r} in {line[:80]!r}; nothing was changed; "
            "agent and speaker may be of different versions: restart the older one"
        ) from err


def _to_json(message: Message) -> dict[str, Any]:
    match message:
        case Wanted():
            return {"type": "wanted", **_wanted(message)}
        case Rewanted(sessions, limits, new, gone):
            return {
                "type": "rewanted",
                "sessions": _specs(sessions),
                "max_prefixes": _limits(limits),
                "new": _tables(new),
                "gone": _tables(gone),
            }
        case Reset(peer, subcode):
            return {"type": "reset", "peer": str(peer), "subcode": subcode}
        case Counted(peer, traffic):
            return {"type": "counted", "peer": str(peer), "traffic": _traffic(traffic)}
        case Snapshot(sessions, adj_rib_in, wanted, traffic):
            return {
                "type": "snapshot",
                "sessions": {str(peer): _status(status) for peer, status in _by_key(sessions)},
                "adj_rib_in": {str(peer): _paths(paths) for peer, paths in _by_key(adj_rib_in)},
                "wanted": _wanted(wanted),
                "traffic": {str(peer): _traffic(counts) for peer, counts in _by_key(traffic)},
            }
        case SessionChanged(peer, status):
            return {"type": "session", "peer": str(peer), "status": _status(status)}
        case SessionGone(peer):
            return {"type": "gone", "peer": str(peer)}
        case Update(peer, paths, withdrawn):
            return {
                "type": "update",
                "peer": str(peer),
                "paths": [_path(path) for path in paths],
                "withdrawn": [str(prefix) for prefix in withdrawn],
            }


def _from_json(raw: Json) -> Message:
    match raw["type"]:
        case "wanted":
            return _read_wanted(raw)
        case "rewanted":
            return Rewanted(
                _read_specs(raw["sessions"]),
                _read_limits(raw["max_prefixes"]),
                _read_tables(raw["new"]),
                _read_tables(raw["gone"]),
            )
        case "snapshot":
            return _read_snapshot(raw)
        case "session":
            return SessionChanged(_address(raw["peer"]), _read_status(raw["status"]))
        case "reset":
            return Reset(_address(raw["peer"]), _number(raw["subcode"]))
        case "counted":
            return Counted(_address(raw["peer"]), Traffic(*map(_number, raw["traffic"])))
        case "gone":
            return SessionGone(_address(raw["peer"]))
        case "update":
            peer = _address(raw["peer"])
            paths = tuple(_read_path(peer, path) for path in raw["paths"])
            return Update(peer, paths, tuple(map(_prefix, raw["withdrawn"])))
        case other:
            raise ValueError(f"unknown type {other!r}")


def _address(text: str) -> Address:
    return ip_address(_checked(text))


def _prefix(text: str) -> Prefix:
    return ip_network(_checked(text))


def _checked(text: str) -> str:
    # `ipaddress` takes numbers, and any text after "%" for a scope id, which would reach ExaBGP's
    # configuration and commands as it is.
    if not isinstance(text, str) or "%" in text:
        raise ValueError(f"{text!r} is not an address or prefix")
    return text


def _by_key(items: Mapping[Address, Any]) -> list[tuple[Address, Any]]:
    # ipaddress refuses to compare v4 with v6.
    return sorted(items.items(), key=lambda item: address_order(item[0]))


def _wanted(wanted: Wanted) -> dict[str, Any]:
    return {
        "sessions": _specs(wanted.sessions),
        "announce": _tables(wanted.announce),
        "max_prefixes": _limits(wanted.max_prefixes),
    }


def _read_wanted(raw: Json) -> Wanted:
    return Wanted(
        _read_specs(raw["sessions"]), _read_tables(raw["announce"]), _read_limits(raw["max_prefixes"])
    )


def _specs(specs: Iterable[SessionSpec]) -> list[dict[str, Any]]:
    return [_spec(spec) for spec in sorted(specs, key=lambda spec: address_order(spec.peer))]


def _read_specs(raw: Iterable[Json]) -> frozenset[SessionSpec]:
    return frozenset(map(_read_spec, raw))


def _limits(limits: Mapping[Address, int]) -> dict[str, int]:
    return {str(peer): limit for peer, limit in _by_key(limits)}


def _read_limits(raw: Json) -> dict[Address, int]:
    return {_address(peer): _number(limit) for peer, limit in raw.items()}


def _tables(announce: Mapping[Address, AdjRibOut]) -> dict[str, Any]:
    """A reflector's clients get the same ten thousand paths each, so what is equal is written once."""
    numbers: dict[AdjRibOut, int] = {}
    peers = {str(peer): numbers.setdefault(table, len(numbers)) for peer, table in _by_key(announce)}
    return {"tables": [_adj_rib_out(table) for table in numbers], "peers": peers}


def _read_tables(raw: Json) -> dict[Address, AdjRibOut]:
    tables = [_read_adj_rib_out(table) for table in raw["tables"]]
    return {_address(peer): tables[_number(number)] for peer, number in raw["peers"].items()}


def _adj_rib_out(announcements: AdjRibOut) -> list[list[Any]]:
    """Prefixes with equal next hop and attributes share those."""
    groups: dict[tuple[Address | None, Attributes], list[Prefix]] = {}
    for announcement in announcements:
        groups.setdefault((announcement.next_hop, announcement.attributes), []).append(announcement.prefix)
    rows = [
        [*_attributes(next_hop, attributes), [str(prefix) for prefix in sorted(prefixes, key=prefix_order)]]
        for (next_hop, attributes), prefixes in groups.items()
    ]
    return sorted(rows, key=str)


def _attributes(next_hop: Address | None, a: Attributes) -> list[Any]:
    return [
        str(next_hop) if next_hop else "",
        a.origin.value,
        None if a.as_path is None else list(a.as_path),
        sorted(a.as_sets),
        a.med,
        a.local_pref,
        list(a.communities),
        str(a.originator_id) if a.originator_id else None,
        [str(cluster) for cluster in a.cluster_list],
    ]


def _read_adj_rib_out(rows: list[list[Any]]) -> AdjRibOut:
    return frozenset(
        Announcement(_prefix(prefix), next_hop, attributes)
        for *head, prefixes in rows
        for next_hop, attributes in [_read_attributes(head)]
        for prefix in prefixes
    )


def _read_attributes(raw: list[Any]) -> tuple[Address | None, Attributes]:
    next_hop, origin, as_path, as_sets, med, local_pref, communities, originator, clusters = raw
    attributes = Attributes(
        origin=Origin(origin),
        as_path=None if as_path is None else tuple(map(_number, as_path)),
        as_sets=frozenset(map(_number, as_sets)),
        med=None if med is None else _number(med),
        local_pref=None if local_pref is None else _number(local_pref),
        communities=tuple(map(_community, communities)),
        originator_id=IPv4Address(originator) if originator else None,
        cluster_list=tuple(map(IPv4Address, clusters)),
    )
    return _address(next_hop) if next_hop else None, attributes


def _read_snapshot(raw: Json) -> Snapshot:
    rib = {_address(peer): paths for peer, paths in raw["adj_rib_in"].items()}
    return Snapshot(
        sessions={_address(peer): _read_status(status) for peer, status in raw["sessions"].items()},
        adj_rib_in={peer: frozenset(_read_path(peer, path) for path in paths) for peer, paths in rib.items()},
        wanted=_read_wanted(raw["wanted"]),
        traffic={_address(peer): Traffic(*map(_number, counts)) for peer, counts in raw["traffic"].items()},
    )


def _spec(spec: SessionSpec) -> dict[str, Any]:
    addresses = {name: str(getattr(spec, name)) for name in ("peer", "source", "router_id")}
    return addresses | {name: getattr(spec, name) for name in (*NUMBERS, *FLAGS, "password")}


def _read_spec(raw: Json) -> SessionSpec:
    numbers: dict[str, Any] = {name: _number(raw[name]) for name in NUMBERS}
    return SessionSpec(
        peer=_address(raw["peer"]),
        source=_address(raw["source"]),
        router_id=IPv4Address(_checked(raw["router_id"])),
        password=str(raw["password"]),
        **numbers,
        **{name: bool(raw[name]) for name in FLAGS},
    )


def _number(value: int) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{value!r} is not a number")
    return value


def _community(text: str) -> str:
    if not COMMUNITY.fullmatch(text):
        raise ValueError(f"{text!r} is not a community")
    return text


def _status(status: SessionStatus) -> list[Any]:
    last = status.notification
    return [
        status.state.value,
        status.since,
        status.reason,
        status.flaps,
        status.synced,
        str(status.peer_id) if status.peer_id else None,
        [last.code, last.subcode, last.sent_by_us, last.at] if last else None,
        status.idle_until,
    ]


def _read_status(raw: list[Any]) -> SessionStatus:
    state, since, reason, flaps, synced, peer_id, last, idle_until = raw
    return SessionStatus(
        SessionState(state),
        since,
        reason,
        flaps,
        synced,
        IPv4Address(peer_id) if peer_id else None,
        Notification(*last) if last else None,
        idle_until,
    )


def _traffic(traffic: Traffic) -> list[int]:
    return [traffic.updates_in, traffic.updates_out]


def _paths(paths: Iterable[Path]) -> list[list[Any]]:
    ordered = sorted(paths, key=lambda path: (path.prefix.version, path.prefix, path.next_hop))
    return [_path(path) for path in ordered]


def _path(path: Path) -> list[Any]:
    return [
        str(path.prefix),
        str(path.next_hop),
        path.origin.value,
        list(path.as_path),
        sorted(path.as_sets),
        path.med,
        path.local_pref,
        list(path.communities),
        str(path.originator_id) if path.originator_id else None,
        [str(cluster) for cluster in path.cluster_list],
    ]


def _read_path(peer: Address, raw: list[Any]) -> Path:
    prefix, next_hop, origin, as_path, as_sets, med, local_pref, communities, originator, clusters = raw
    return Path(
        prefix=_prefix(prefix),
        next_hop=_address(next_hop),
        peer=peer,
        origin=Origin(origin),
        as_path=tuple(as_path),
        as_sets=frozenset(as_sets),
        med=med,
        local_pref=local_pref,
        communities=tuple(communities),
        originator_id=IPv4Address(originator) if originator else None,
        cluster_list=tuple(map(IPv4Address, clusters)),
    )
