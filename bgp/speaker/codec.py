"""Turns the messages of the seam into JSON lines and back; `encode` and `decode` are each other's inverse."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any, TypeAlias

from bgp.rib import Address, Announcement, Origin, Path, Prefix, SessionSpec, SessionState, SessionStatus
from bgp.speaker.seam import Event, SessionChanged, SessionGone, Snapshot, Update, Wanted
from fabric.errors import SpeakerError

Message: TypeAlias = Event | Wanted
Json: TypeAlias = Mapping[str, Any]  # what json.loads gives; every field is converted where it is read
NUMBERS = ("peer_as", "local_as", "port", "hold_time", "restart_time")  # of a SessionSpec


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
        case Snapshot(sessions, adj_rib_in, wanted):
            return {
                "type": "snapshot",
                "sessions": {str(peer): _status(status) for peer, status in _by_key(sessions)},
                "adj_rib_in": {str(peer): _paths(paths) for peer, paths in _by_key(adj_rib_in)},
                "wanted": _wanted(wanted),
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
        case "snapshot":
            return _read_snapshot(raw)
        case "session":
            return SessionChanged(_address(raw["peer"]), _read_status(raw["status"]))
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
    return sorted(items.items(), key=lambda item: (item[0].version, int(item[0])))


def _wanted(wanted: Wanted) -> dict[str, Any]:
    return {
        "sessions": [
            _spec(spec)
            for spec in sorted(wanted.sessions, key=lambda spec: (spec.peer.version, int(spec.peer)))
        ],
        "announce": {
            str(peer): sorted([str(a.prefix), str(a.next_hop) if a.next_hop else ""] for a in announcements)
            for peer, announcements in _by_key(wanted.announce)
        },
    }


def _read_wanted(raw: Json) -> Wanted:
    announce = {
        _address(peer): frozenset(
            Announcement(_prefix(prefix), _address(next_hop) if next_hop else None)
            for prefix, next_hop in announcements
        )
        for peer, announcements in raw["announce"].items()
    }
    return Wanted(frozenset(_read_spec(spec) for spec in raw["sessions"]), announce)


def _read_snapshot(raw: Json) -> Snapshot:
    rib = {_address(peer): paths for peer, paths in raw["adj_rib_in"].items()}
    return Snapshot(
        sessions={_address(peer): _read_status(status) for peer, status in raw["sessions"].items()},
        adj_rib_in={peer: frozenset(_read_path(peer, path) for path in paths) for peer, paths in rib.items()},
        wanted=_read_wanted(raw["wanted"]),
    )


def _spec(spec: SessionSpec) -> dict[str, Any]:
    return {
        "peer": str(spec.peer),
        "peer_as": spec.peer_as,
        "source": str(spec.source),
        "local_as": spec.local_as,
        "router_id": str(spec.router_id),
        "port": spec.port,
        "passive": spec.passive,
        "hold_time": spec.hold_time,
        "restart_time": spec.restart_time,
    }


def _read_spec(raw: Json) -> SessionSpec:
    return SessionSpec(
        peer=_address(raw["peer"]),
        source=_address(raw["source"]),
        router_id=IPv4Address(_checked(raw["router_id"])),
        passive=bool(raw["passive"]),
        **{name: _number(raw[name]) for name in NUMBERS},
    )


def _number(value: int) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{value!r} is not a number")
    return value


def _status(status: SessionStatus) -> list[Any]:
    return [status.state.value, status.since, status.reason, status.flaps, status.synced]


def _read_status(raw: list[Any]) -> SessionStatus:
    state, since, reason, flaps, synced = raw
    return SessionStatus(SessionState(state), since, reason, flaps, synced)


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
