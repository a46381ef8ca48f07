"""Asks a running lab all that a picture of it shows: interfaces, BGP sessions and tables, of all nodes at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from fabric.errors import LabError, NotFound
from fabric.lab import routers
from fabric.lab.home import HELD
from fabric.lab.lab import Lab
from fabric.lab.routers import Session, Table
from fabric.lab.topology import Node


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface of a node; `carrier` is False where it is down or has no carrier."""

    name: str
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    carrier: bool = True


@dataclass(frozen=True, slots=True)
class Seen:
    """What a running lab said; a node that is not in `interfaces` does not run.

    `states` has the nodes that do not just run, in a word; `sessions` and `tables` those that answered about
    BGP, `silent` those that should have and did not. `broken` has, by number, the links that `lab break` broke,
    and how.
    """

    interfaces: Mapping[str, tuple[Interface, ...]]
    states: Mapping[str, str] = field(default_factory=dict)
    sessions: Mapping[str, tuple[Session, ...]] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()
    broken: Mapping[int, Sequence[str]] = field(default_factory=dict)


def ask(lab: Lab) -> Seen | None:
    """Return what the lab says now, or None if nothing of it runs.

    What does not answer is left out: a picture of a broken lab is what one wants to see then.
    """
    states = {state.name: state for state in lab.inspect()}
    up = [name for name, state in states.items() if state.pid]
    if not up:
        return None
    with ThreadPoolExecutor() as pool:
        interfaces = dict(zip(up, pool.map(lambda name: _interfaces(lab, name), up), strict=True))
        speakers = [node.name for node in lab.topology.nodes if node.name in up and _speaks(lab, node)]
        answers = dict(zip(speakers, pool.map(lambda name: _bgp(lab, name), speakers), strict=True))
    known = {name: answer for name, answer in answers.items() if answer}
    return Seen(
        interfaces={name: found for name, found in interfaces.items() if found is not None},
        states={name: state.state for name, state in states.items() if state.state != "running"},
        sessions={name: sessions for name, (sessions, _) in known.items()},
        tables={name: table for name, (_, table) in known.items()},
        silent=frozenset(answers.keys() - known.keys()),
        broken={i: marks for i in range(len(lab.topology.links)) if (marks := lab.home.wire_marks(i))},
    )


def _speaks(lab: Lab, node: Node) -> bool:
    # Our node's image may be there for its etcd alone, and FRR for another protocol.
    if not routers.speaks_bgp(node) or runs_etcd(node):
        return False
    if node.profile and "bgpd" in node.profile.daemons and not lab.home.mark(node.name, HELD).exists():
        return lab.exec(node.name, ["pgrep", "-x", "bgpd"], check=False).returncode == 0
    return True


def runs_etcd(node: Node) -> bool:
    """Return whether the node's foreground process is etcd, whatever its image."""
    return bool(node.command) and node.command[0].rpartition("/")[2] == "etcd"


def _interfaces(lab: Lab, node: str) -> tuple[Interface, ...] | None:
    try:
        return read_interfaces(lab.exec(node, ["ip", "-j", "address"], timeout=10).stdout)
    except (LabError, NotFound):
        return None


def _bgp(lab: Lab, node: str) -> tuple[tuple[Session, ...], Table] | None:
    try:
        return tuple(routers.sessions(lab, node)), routers.bgp_table(lab, node)
    except (LabError, NotFound):
        return None


def read_interfaces(text: str) -> tuple[Interface, ...]:
    """Return the interfaces in what `ip -j address` printed."""
    return tuple(
        Interface(
            link["ifname"],
            tuple(
                ip_interface(f"{address['local']}/{address['prefixlen']}")
                for address in link["addr_info"]
                if "local" in address
            ),
            "LOWER_UP" in link["flags"],
        )
        for link in json.loads(text or "[]")
    )
