"""Draw a topology, and what its routers say of one another while it runs, as DOT or SVG.

`dot` decides, purely, from the topology and from what fabric/lab/survey.py found in the running lab; `svg`
runs graphviz. A line is a link: its colour is the state of the BGP sessions over it, its dots say that the
carrier is gone. A session that runs over no link of its own (between loopbacks, say) is a bow beside them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, TypeAlias

from fabric.errors import LabError
from fabric.lab.format import MTU
from fabric.lab.routers import Session
from fabric.lab.survey import Seen, runs_etcd
from fabric.lab.topology import CONTAINER, HOST, MGMT, Endpoint, Link, Node, Topology

Address: TypeAlias = IPv4Address | IPv6Address
Attributes: TypeAlias = dict[str, str]

ESTABLISHED = "Established"
MOST_PREFIXES = 4  # that a node's label lists
FONT: Attributes = {"fontname": "sans-serif", "fontsize": "10"}
UP, DOWN, QUIET, FAINT = "#2e9e5b", "#d62728", "#777777", "#b0b0b0"
# By role: what a node is drawn as. Routers stand above what they serve, so `rank` orients a link.
ROUTER: Attributes = {"shape": "ellipse", "fillcolor": "#dbe9f6"}
FABRIC: Attributes = {"shape": "box", "style": "filled,rounded", "fillcolor": "#d8f0dd"}
STORE: Attributes = {"shape": "cylinder", "fillcolor": "#fdf0d5"}
PLAIN: Attributes = {"shape": "box", "fillcolor": "#f4f4f4"}
OUTSIDE: Attributes = {"shape": "box3d", "fillcolor": "#ffffff"}
ROLES = {"frr": ROUTER, "bird": ROUTER, "bird-debian": ROUTER, "gobgp": ROUTER, "node": FABRIC, "etcd": STORE}
RANKS = (ROUTER, FABRIC, PLAIN, STORE)


@dataclass(frozen=True, slots=True)
class Line:
    """The sessions between two nodes (`b` may be an address that is none of the lab's), as both see them.

    `link` is the link that they run over, if it is one; `states` are RFC 4271's, each once; `received` is what
    each end got from the other, in prefixes.
    """

    a: str
    b: str
    link: Link | None
    states: tuple[str, ...]
    received: tuple[tuple[str, int], ...]

    @property
    def colour(self) -> str:
        return UP if self.states == (ESTABLISHED,) else DOWN

    @property
    def label(self) -> tuple[str, ...]:
        got = (
            [f"{node} received {count}" for node, count in self.received]
            if ESTABLISHED in self.states
            else []
        )
        return ", ".join(self.states), *got


def lines(topology: Topology, seen: Seen) -> list[Line]:
    """Return a line for each pair of nodes that have sessions, and each link that these run over."""
    found: dict[tuple[str, str, Link | None], list[tuple[str, Session]]] = defaultdict(list)
    for node, own in seen.sessions.items():
        for session in own:
            peer, link = _peer(topology, seen, node, session.peer)
            a, b = sorted((node, peer))
            found[a, b, link].append((node, session))
    return [_line(*key, ends) for key, ends in found.items()]


def _line(a: str, b: str, link: Link | None, ends: Iterable[tuple[str, Session]]) -> Line:
    received: dict[str, int] = defaultdict(int)
    states = set()
    for node, session in ends:
        received[node] += session.received
        states.add(session.state)
    return Line(a, b, link, tuple(sorted(states)), tuple(sorted(received.items())))


def _peer(topology: Topology, seen: Seen, node: str, peer: str) -> tuple[str, Link | None]:
    """Return whose address `peer` is, seen from `node`, and the link that it is the far end of."""
    text, _, zone = peer.partition("%")
    links = list(_links_of(topology, node))
    try:
        address = ip_address(text)
    except ValueError:  # an unnumbered session goes by the interface's name
        zone = text
    else:
        for interface, far, link in links:
            if address in _addresses(seen, far.node, far.interface) and zone in ("", interface):
                return far.node, link
        owners = [name for name in seen.interfaces if name != node and address in _addresses(seen, name)]
        if len(owners) == 1 and not address.is_link_local:
            return owners[0], None
        # Its owner may not run: then it is who is at the far end of the network that it belongs to.
        networks = {
            i.name: [a.network for a in i.addresses if not a.is_link_local]
            for i in seen.interfaces.get(node, ())
        }
        zone = zone or next((n for n, found in networks.items() if any(address in net for net in found)), "")
    return next(((far.node, link) for interface, far, link in links if interface == zone), (peer, None))


def _links_of(topology: Topology, node: str) -> Iterator[tuple[str, Endpoint, Link]]:
    for link in topology.links:
        for near, far in ((link.a, link.b), (link.b, link.a)):
            if near.node == node:
                yield near.interface, far, link


def _addresses(seen: Seen, node: str, interface: str = "") -> set[Address]:
    return {
        address.ip
        for each in seen.interfaces.get(node, ())
        if interface in ("", each.name)
        for address in each.addresses
    }


def originated(seen: Seen) -> dict[str, list[str]]:
    """Return the prefixes that each node announces of its own: others have them from it, and it from nobody."""
    owners: dict[Address, str] = {}
    for node in seen.interfaces:
        owners |= dict.fromkeys(_addresses(seen, node), node)
    found: dict[str, set[Any]] = defaultdict(set)
    for table in seen.tables.values():
        for prefix, next_hops in table.items():
            for next_hop in next_hops:
                owner = owners.get(ip_address(next_hop.partition("%")[0]))
                if owner and owner in seen.tables and prefix not in seen.tables[owner]:
                    found[owner].add(prefix)
    return {
        node: [str(p) for p in sorted(prefixes, key=lambda p: (p.version, p))]
        for node, prefixes in found.items()
    }


def dot(topology: Topology, seen: Seen | None = None) -> str:
    """Return the graph's DOT; without `seen`, of the topology alone."""
    graph = import_module("graphviz").Graph(
        topology.name,
        graph_attr={"label": f"lab {topology.name}", "labelloc": "t", "nodesep": "0.7", "ranksep": "1.0"}
        | FONT,
        node_attr={"style": "filled", "margin": "0.12,0.06"} | FONT,
        edge_attr={"labeldistance": "1.6", "labelangle": "-25", "color": QUIET} | FONT | {"fontsize": "8"},
    )
    found = lines(topology, seen) if seen else []
    prefixes = originated(seen) if seen else {}
    for node in topology.nodes:
        graph.node(node.name, **_node(node, seen, prefixes.get(node.name, [])))
    used = {end.node for link in topology.links for end in (link.a, link.b)}
    if HOST in used:
        graph.node(HOST, label="this host", **OUTSIDE)
    managed = [node for node in topology.nodes if node.addresses]
    if managed or MGMT in used:
        ways = "\\n".join(map(str, topology.mgmt.prefixes))
        graph.node(MGMT, label=f"management network {topology.mgmt.name}\\n{ways}", **OUTSIDE)
    names = {node.name for node in topology.nodes}
    strangers = sorted({end for line in found for end in (line.a, line.b)} - names)
    vertices = {name: name for name in names} | {peer: f"peer{i}" for i, peer in enumerate(strangers)}
    for peer in strangers:
        graph.node(vertices[peer], label=f"{peer}\\nnot in this lab", shape="plaintext", style="")
    over = {line.link: line for line in found if line.link}
    for i, link in enumerate(topology.links):
        broken = seen.broken.get(i, ()) if seen else ()
        _draw(graph, *_upright(topology, link), _link(link, seen, over.get(link), broken))
    for node in managed:
        graph.edge(MGMT, node.name, headlabel="eth0", color=FAINT)
    for line in found:
        if not line.link:
            graph.edge(
                vertices[line.a], vertices[line.b], constraint="false", style="dashed", **_session(line)
            )
    return str(graph.source)


def _role(node: Node) -> Attributes:
    if runs_etcd(node):
        return STORE
    return ROLES.get(node.profile.name if node.profile else "", PLAIN)


def _node(node: Node, seen: Seen | None, prefixes: list[str]) -> Attributes:
    role = _role(node)
    lines = [node.name, node.image]
    if node.network not in ("mgmt", "none"):
        lines.append(f"network of {node.network.removeprefix(CONTAINER)}")
    if seen and (state := seen.states.get(node.name)):
        lines.append(state.upper())
    if seen and node.name in seen.silent:
        lines.append("BGP does not answer")
    lines += prefixes[:MOST_PREFIXES]
    if more := len(prefixes) - MOST_PREFIXES:
        lines += [f"and {more} more"] if more > 0 else []
    attributes = role | {"label": "\\n".join(lines)}
    if seen and node.name not in seen.interfaces:
        attributes |= {"style": "dashed", "color": DOWN, "fontcolor": DOWN}
    elif seen and (node.name in seen.states or node.name in seen.silent):
        attributes |= {"color": DOWN, "fontcolor": DOWN}
    return attributes


def _upright(topology: Topology, link: Link) -> tuple[Endpoint, Endpoint]:
    """Return the ends of a link, the upper one first: routers above nodes, those above what they serve."""
    ranks = {node.name: RANKS.index(_role(node)) for node in topology.nodes}
    a, b = sorted((link.a, link.b), key=lambda end: ranks.get(end.node, len(RANKS)))
    return a, b


def _link(link: Link, seen: Seen | None, line: Line | None, broken: Sequence[str]) -> Attributes:
    attributes: Attributes = _session(line) if line else {}
    if broken:
        attributes |= {"color": DOWN, "fontcolor": DOWN, "style": "dashed"}
    labels = [
        *(line.label if line else ()),
        *([f"mtu {link.mtu}"] if link.mtu != MTU else []),
        *(what.upper() for what in broken),
    ]
    if seen and not all(_carries(seen, end) for end in (link.a, link.b)):
        labels.append("no carrier")
        attributes["style"] = "dotted"
    return attributes | ({"label": _beside(labels)} if labels else {})


def _carries(seen: Seen, end: Endpoint) -> bool:
    """Whether an end has its carrier; of the host's ends nothing is known."""
    if end.node in (HOST, MGMT):
        return True
    return any(each.carrier for each in seen.interfaces.get(end.node, ()) if each.name == end.interface)


def _session(line: Line) -> Attributes:
    return {
        "label": _beside(line.label),
        "color": line.colour,
        "fontcolor": line.colour,
        "penwidth": "2",
    }


def _beside(lines: Iterable[str]) -> str:
    """Return a label that stands clear of its line."""
    return "".join(f"  {line}\\l" for line in lines)


def _draw(graph: Any, upper: Endpoint, lower: Endpoint, attributes: Attributes) -> None:
    graph.edge(upper.node, lower.node, taillabel=upper.interface, headlabel=lower.interface, **attributes)


def svg(source: str) -> str:
    """Return the SVG that graphviz's `dot` makes of DOT.

    Raises:
        LabError: graphviz is not installed, or failed.
    """
    graphviz = import_module("graphviz")
    try:
        return str(graphviz.Source(source).pipe(format="svg", encoding="utf-8"))
    except graphviz.ExecutableNotFound as err:
        raise LabError(
            "the graph is drawn by graphviz's program dot, which is not installed; nothing was written;"
            " install it (apt-get install graphviz), or take the graph as text: -o dot"
        ) from err
    except graphviz.CalledProcessError as err:
        raise LabError(
            f"the graph: graphviz's dot failed with status {err.returncode}: {err.stderr.strip()}; nothing was written;"
            " take the graph as text: -o dot"
        ) from err
