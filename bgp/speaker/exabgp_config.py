"""Writes ExaBGP's configuration for a set of sessions: pure text, ASCII, the same for the same sessions.

What each setting is for (measured on ExaBGP 5.0.15 unless an RFC is named):
- `description`: a fingerprint of the session, by which it can be told what ExaBGP has.
- `manual-eor`: by itself ExaBGP sends End-of-RIB before anything was announced, and a peer that held
  our routes under graceful restart flushes them.
- `listen` on the session's own address: nothing is bound to all addresses. How that is secured for each
  peer is in `exabgp_main.py`.
- `adj-rib-in false`: the speaker keeps that table; twice would cost 56 MB at 100,000 routes.
- the family of the peer's address: IPv6 routes from an IPv4 session arrive with a next hop nobody can
  use. IPv4 goes over an IPv6 session only with its IPv6 next hop (RFC 8950).
- `incoming-ttl`: N hops away, what was sent with 255 arrives with 256 - N or more (RFC 5082 §3).
- `send { update }`: the only way to know that a withdrawal or an End-of-RIB has really left.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha256
from types import MappingProxyType

from bgp.rib import SessionSpec, address_order

MAX_TTL = 255
# A child that died means no events: end and be restarted rather than run deaf. ERR would crash 5.x.
# `reactor.speed`: its loop looks for timers and for finished connects each 100 ms, not each 10.
ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "exabgp.api.cli": "false",
        "exabgp.api.respawn": "false",
        "exabgp.api.terminate": "true",
        "exabgp.daemon.drop": "false",
        "exabgp.daemon.user": "root",
        "exabgp.log.destination": "stderr",
        "exabgp.log.level": "CRITICAL",
        "exabgp.log.short": "true",
        "exabgp.reactor.speed": "10.0",
    }
)

API = (
    "api {",
    "  processes [ speaker ];",
    "  neighbor-changes;",
    "  receive { parsed; open; update; }",
    "  send { parsed; update; }",
    "}",
)


def render(sessions: Iterable[SessionSpec], pump: str) -> str:
    """Return the file's text; `pump` is the command line of ExaBGP's API child. It may hold passwords."""
    ordered = sorted(sessions, key=lambda spec: address_order(spec.peer))
    process = f"process speaker {{\n  run {pump};\n  encoder json;\n}}\n"
    return "".join([process, *map(_neighbor, ordered)])


def fingerprint(spec: SessionSpec) -> str:
    """What tells `spec` from any other one with the same peer."""
    return sha256(_settings(spec).encode()).hexdigest()[:16]


def secret(spec: SessionSpec) -> str:
    """The session's password as it stands in the file: in base64, so that any text can be one."""
    return b64encode(spec.password.encode()).decode()


def _neighbor(spec: SessionSpec) -> str:
    return f"\nneighbor {spec.peer} {{\n  description {fingerprint(spec)};\n{_settings(spec)}}}\n"


def _settings(spec: SessionSpec) -> str:
    families = " ".join(f"ipv{version} unicast;" for version in sorted(spec.families))
    lines = [
        f"router-id {spec.router_id};",
        f"local-address {spec.source};",
        f"local-as {spec.local_as};",
        f"peer-as {spec.peer_as};",
        f"hold-time {spec.hold_time};",
        f"listen {spec.listen_port};",
        f"connect {spec.port};",
        f"passive {str(spec.passive).lower()};",
        "manual-eor true;",
        "adj-rib-in false;",
        f"family {{ {families} }}",
    ]
    capabilities = f"asn4; route-refresh; graceful-restart {spec.restart_time};"
    if spec.password:
        lines += [f"md5-password {secret(spec)};", "md5-base64 true;"]
    if spec.ttl_security:
        lines += [f"incoming-ttl {MAX_TTL + 1 - spec.ttl_security};", f"outgoing-ttl {MAX_TTL};"]
    if spec.extended_next_hop:
        lines.append("nexthop { ipv4 unicast ipv6; }")
        capabilities += " nexthop;"
    lines += [f"capability {{ {capabilities} }}", *API]
    return "".join(f"  {line}\n" for line in lines)
