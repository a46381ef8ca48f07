"""Decide how the parts of a router's side are explained, in lines that each vendor's text has as comments."""

from __future__ import annotations

from bgp.router import Group, Router

ACCEPT = (
    "Nodes announce blocks and borrowed addresses, all inside the pools, and single addresses on their lo."
)
OFFER = "They are told the same of other nodes and racks, and the way out."
DRAINED = "RFC 8326: what a node marks while it is drained is the last choice."
RESTART = "What was learned on a session outlives a restart of either end, for so many seconds."
SHARED_AS = "Other nodes have the same AS and would take these paths for loops: this router's AS replaces it."
CLIENTS = (
    "Nodes of this AS hear of one another from here, and reach one another's next hops by this router only."
)
NO_IDENTIFIER = "A router without IPv4 addresses needs a number of its own."


def head(router: Router) -> str:
    return (
        f"{' '.join(map(str, router.addresses))}, AS {router.local_as}: its side of the sessions with nodes."
    )


def filters(router: Router) -> list[str]:
    if not router.filters:
        return []
    return [
        f"What these BGPFilters let out beside that has to be permitted here: {', '.join(router.filters)}."
    ]


def secret(group: Group) -> str:
    return f"{group.password} stands for the secret that the nodes have."


def bfd(line: str) -> str:
    return f"Nodes have no BFD yet. With it, this would be: {line}"


def listening(group: Group) -> str:
    names = [neighbour.name for neighbour in group.neighbours]
    return f"All nodes on {group.link}, {len(names)} by now: {', '.join(names)}."
