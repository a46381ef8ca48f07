"""Decide which sessions an operator means by a peer's address, or by the name of a BGPPeer. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from bgp.peering import Peering
from fabric.errors import NotFound


def named(peerings: Sequence[Peering], text: str) -> tuple[Peering, ...]:
    """Return the sessions that `text` names: one, or where it is a BGPPeer's name all that this asks for.

    Raises:
        NotFound: there is none; the message lists what there is.
    """
    try:
        address = ip_address(text)
    except ValueError:
        found = tuple(p for p in peerings if p.name and p.name == text)
    else:
        found = tuple(p for p in peerings if p.spec.peer == address)
    if not found:
        there = ", ".join(f"{p.spec.peer} ({p.name or 'mesh'})" for p in peerings) or "none"
        raise NotFound(
            f'peer "{text}": no session of this node has that address, or a BGPPeer of that name; nothing was done; '
            f"there are: {there}"
        )
    return found
