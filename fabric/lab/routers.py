"""Ask a running node what it knows: BGP sessions, paths learned by BGP, the kernel's routes.

One adapter a profile (FRR, BIRD, GoBGP, our node) says what to run in the node and reads the answer; reading
is pure. Any node has a kernel to ask; one of another profile has no BGP that could be asked. All answers
are in the same words, whoever gave them:

- a session's state is RFC 4271's, with a capital: Idle, Connect, Active, OpenSent, OpenConfirm, Established;
- a BGP table is what was learned from peers and may be used: each prefix with the next hop of every such
  path, chosen or not (the global address where a path has a link-local one as well). What the router
  originates itself, or filtered, is not in it;
- a kernel table is the main one: each prefix with where its packets go, a gateway or, on link, a device;
  "blackhole" for any kind of refusal. Of several metrics the kernel uses the lowest, so only that counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, TypeAlias

from fabric.errors import LabError
from fabric.lab.lab import Lab
from fabric.lab.topology import Node

Prefix: TypeAlias = IPv4Network | IPv6Network
Table: TypeAlias = dict[Prefix, frozenset[str]]
Argv: TypeAlias = tuple[str, ...]

ASK = 5.0  # seconds for one answer
BLACKHOLE = "blackhole"
_ANYWHERE = {4: "0.0.0.0/0", 6: "::/0"}


@dataclass(frozen=True, slots=True)
class Session:
    """One BGP session: `peer` is its address (an interface's name where FRR has it so).

    `received` counts the prefixes accepted from the peer, in all families.
    """

    peer: str
    state: str
    remote_as: int | None
    received: int

    @property
    def established(self) -> bool:
        return self.state == "Established"


@dataclass(frozen=True, slots=True)
class Adapter:
    """What to run in a node, and how to read what each of these commands printed."""

    ask_sessions: tuple[Argv, ...]
    sessions: Callable[[Sequence[str]], list[Session]]
    ask_table: tuple[Argv, ...]
    table: Callable[[Sequence[str]], Table]


def speaks_bgp(node: Node) -> bool:
    """Return whether the node can be asked for sessions and a BGP table."""
    return _adapter(node) is not None


def sessions(lab: Lab, node: str) -> list[Session]:
    """Return the node's BGP sessions, by peer.

    Raises:
        LabError: the node did not answer, or is of an image that has no BGP we could ask.
        NotFound: the node is not in the file, or not running.
    """
    adapter = _adapter_of(lab, node)
    return sorted(adapter.sessions(_ask(lab, node, adapter.ask_sessions)), key=lambda s: s.peer)


def bgp_table(lab: Lab, node: str) -> Table:
    """Return what the node learned by BGP, both families; errors as `sessions` has them."""
    adapter = _adapter_of(lab, node)
    return adapter.table(_ask(lab, node, adapter.ask_table))


def kernel_table(lab: Lab, node: str) -> Table:
    """Return the node's main routing table, both families; errors as `sessions` has them."""
    four, six = _ask(lab, node, (("ip", "-4", "-j", "route"), ("ip", "-6", "-j", "route")))
    return read_kernel(four, 4) | read_kernel(six, 6)


def _adapter(node: Node) -> Adapter | None:
    return ADAPTERS.get(node.profile.name) if node.profile else None


def _adapter_of(lab: Lab, name: str) -> Adapter:
    node = lab.node(name)
    if adapter := _adapter(node):
        return adapter
    raise LabError(f"node {name}: {node.image} has no BGP that can be asked; ask for its kernel's table")


def _ask(lab: Lab, node: str, commands: Iterable[Argv]) -> list[str]:
    return [lab.exec(node, argv, timeout=ASK).stdout for argv in commands]


# The kernel


def read_kernel(text: str, family: int) -> Table:
    """Return the table in what `ip -j route` printed for one family, 4 or 6."""
    best: dict[Prefix, int] = {}
    table: Table = {}
    for route in json.loads(text or "[]"):
        prefix = ip_network(_ANYWHERE[family] if route["dst"] == "default" else route["dst"])
        metric = route.get("metric", 0)
        if metric > best.setdefault(prefix, metric):
            continue
        known = table.get(prefix, frozenset()) if metric == best[prefix] else frozenset[str]()
        best[prefix] = metric
        table[prefix] = known | _destinations(route)
    return table


def _destinations(route: Mapping[str, Any]) -> frozenset[str]:
    if route.get("type", "unicast") != "unicast":
        return frozenset({BLACKHOLE})
    hops = [hop for hop in route.get("nexthops", [route]) if "dead" not in hop["flags"]]
    return frozenset(_gateway(hop) for hop in hops)


def _gateway(hop: Mapping[str, Any]) -> str:
    via: Mapping[str, str] = hop.get("via", {})  # a gateway of the other family
    return str(hop.get("gateway") or via.get("host") or hop["dev"])


# FRR


def read_frr_sessions(answers: Sequence[str]) -> list[Session]:
    """Read `show bgp summary json`, where a peer of two families stands twice."""
    found: dict[str, Session] = {}
    for family in json.loads(answers[0]).values():
        for peer, fields in family["peers"].items():
            before = found[peer].received if peer in found else 0
            state = fields["state"].partition(" ")[0]  # "Idle (Admin)"
            found[peer] = Session(peer, state, fields["remoteAs"], before + fields["pfxRcd"])
    return list(found.values())


def read_frr_table(answers: Sequence[str]) -> Table:
    """Read `show bgp ipv4 unicast json` and the same of ipv6."""
    # No "routes" but a warning: bgpd runs and has no BGP configured.
    routes = [route for text in answers for route in json.loads(text).get("routes", {}).items()]
    return _table(
        (prefix, path["nexthops"][0]["ip"])  # the global one comes first
        for prefix, paths in routes
        for path in paths
        if path.get("valid") and path["peerId"] != "(unspec)"
    )


# BIRD

_BIRD_STATES = {"Down": "Idle", "Close": "Idle", "Passive": "Active"}
_BIRD_ROUTE = re.compile(r"(?P<prefix>\S+/\d+)? +(?P<kind>\w+) \[.*\]")


def read_bird_sessions(answers: Sequence[str]) -> list[Session]:
    """Read `show protocols all`: blocks with a heading each, of which BGP's have a neighbour."""
    found = []
    for block in answers[0].split("\n\n"):
        peer = re.search(r"Neighbor address: (\S+)", block)
        state = re.search(r"BGP state: +(\S+)", block)
        if not peer or not state:
            continue
        remote_as = re.search(r"Neighbor AS: +(\d+)", block)
        received = sum(map(int, re.findall(r"Routes: +(\d+) imported", block)))
        name = _BIRD_STATES.get(state[1], state[1])
        # A link-local address has its interface behind it.
        found.append(Session(peer[1], name, int(remote_as[1]) if remote_as else None, received))
    return found


def read_bird_table(answers: Sequence[str]) -> Table:
    """Read `show route all`: a prefix stands once, before the first of its routes."""
    hops: list[tuple[str, str]] = []
    prefix, usable, learned = "", False, False
    for line in answers[0].splitlines():
        if head := _BIRD_ROUTE.match(line):
            prefix = head["prefix"] or prefix
            # BIRD calls a path whose next hop leads nowhere unreachable.
            usable, learned = head["kind"] == "unicast", False
        elif line.startswith("\tType: "):
            learned = line.startswith("\tType: BGP ")
        elif usable and learned and (next_hops := line.partition("\tBGP.next_hop: ")[2]):
            hops.append((prefix, next_hops.split()[0]))  # the global one comes first
    return _table(hops)


# GoBGP

_GOBGP_STATES = ("Idle", "Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established")
_NEXT_HOP, _MP_REACH_NLRI = 3, 14  # path attributes that carry a next hop


def read_gobgp_sessions(answers: Sequence[str]) -> list[Session]:
    """Read `gobgp -j neighbor`, which leaves out what is zero."""
    return [
        Session(
            peer["conf"]["neighbor_address"],
            _GOBGP_STATES[peer["state"].get("session_state", 0)],
            peer["conf"].get("peer_asn"),
            sum(family["state"].get("accepted", 0) for family in peer.get("afi_safis", ())),
        )
        for peer in json.loads(answers[0])
    ]


def read_gobgp_table(answers: Sequence[str]) -> Table:
    """Read `gobgp -j global rib` of each family; what was originated here names no neighbour."""
    return _table(
        (prefix, attribute["nexthop"])
        for text in answers
        for prefix, paths in json.loads(text).items()
        for path in paths
        for attribute in path["attrs"]
        if "neighbor-ip" in path and attribute["type"] in (_NEXT_HOP, _MP_REACH_NLRI)
    )


# Our node


def read_node_sessions(answers: Sequence[str]) -> list[Session]:
    """Read `fabricctl bgp peers`."""
    return [Session(s["peer"], s["state"], s["peer_as"], s["accepted"]) for s in json.loads(answers[0])]


def read_node_table(answers: Sequence[str]) -> Table:
    """Read `fabricctl bgp routes received`."""
    return _table(
        (path["prefix"], path["next_hop"]) for path in json.loads(answers[0]) if not path["refused"]
    )


def _table(hops: Iterable[tuple[str, str]]) -> Table:
    table: Table = {}
    for text, next_hop in hops:
        prefix = ip_network(text)
        table[prefix] = table.get(prefix, frozenset()) | {next_hop}
    return table


def _vtysh(command: str) -> Argv:
    return ("vtysh", "-d", "bgpd", "-c", f"show bgp {command} json")


_FRR = Adapter(
    (_vtysh("summary"),),
    read_frr_sessions,
    (_vtysh("ipv4 unicast"), _vtysh("ipv6 unicast")),
    read_frr_table,
)
_BIRD = Adapter(
    (("birdc", "-r", "show", "protocols", "all"),),
    read_bird_sessions,
    (("birdc", "-r", "show", "route", "all"),),
    read_bird_table,
)
_GOBGP = Adapter(
    (("gobgp", "-j", "neighbor"),),
    read_gobgp_sessions,
    (("gobgp", "-j", "global", "rib", "-a", "ipv4"), ("gobgp", "-j", "global", "rib", "-a", "ipv6")),
    read_gobgp_table,
)
_NODE = Adapter(
    (("fabricctl", "bgp", "peers", "-o", "json"),),
    read_node_sessions,
    (("fabricctl", "bgp", "routes", "received", "-o", "json"),),
    read_node_table,
)
ADAPTERS: Mapping[str, Adapter] = {  # by the name of the profile
    "frr": _FRR,
    "bird": _BIRD,
    "bird-debian": _BIRD,
    "gobgp": _GOBGP,
    "node": _NODE,
}
