"""Writes ExaBGP's configuration for a set of sessions: pure text, ASCII, the same for the same sessions.

What each setting is for (measured on ExaBGP 5.0.15 unless an RFC is named):
- `manual-eor`: by itself ExaBGP sends End-of-RIB before anything was announced, and a peer that held
  our routes under graceful restart flushes them.
- `listen` on the session's own address: nothing is bound to all addresses, and a minimum TTL could
  only be set there. It binds at start and exits if the address is not there, so the caller checks.
- `adj-rib-in false`: the speaker keeps that table; twice would cost 56 MB at 100,000 routes.
- one family, that of the peer's address: IPv6 routes from an IPv4 session arrive with a next hop
  nobody can use.
- `send { update }`: the only way to know that a withdrawal or an End-of-RIB has really left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from bgp.rib import SessionSpec

PORT = 179  # ours, whichever port the peer listens on

# A child that died means no events: end and be restarted rather than run deaf. ERR would crash 5.x.
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
    }
)


def render(sessions: Iterable[SessionSpec], pump: str) -> str:
    """Return the file's text; `pump` is the command line of ExaBGP's API child."""
    ordered = sorted(sessions, key=lambda spec: (spec.peer.version, int(spec.peer)))
    process = f"process speaker {{\n  run {pump};\n  encoder json;\n}}\n"
    return "".join([process, *map(_neighbor, ordered)])


def _neighbor(spec: SessionSpec) -> str:
    return f"""
neighbor {spec.peer} {{
  router-id {spec.router_id};
  local-address {spec.source};
  local-as {spec.local_as};
  peer-as {spec.peer_as};
  hold-time {spec.hold_time};
  listen {PORT};
  connect {spec.port};
  passive {str(spec.passive).lower()};
  manual-eor true;
  adj-rib-in false;
  family {{ ipv{spec.peer.version} unicast; }}
  capability {{ asn4; route-refresh; graceful-restart {spec.restart_time}; }}
  api {{
    processes [ speaker ];
    neighbor-changes;
    receive {{ parsed; open; update; }}
    send {{ parsed; update; }}
  }}
}}
"""
