"""Decide what this node announces: its own blocks, and addresses it holds outside them. Never transit.

Source: calico-semantics "Export filter" steps 6 to 9, without what we never export (learned routes).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

from bgp.filters import inside
from bgp.rib import Address, AdjRibOut, Announcement, Prefix, SessionSpec


def adj_rib_out(
    session: SessionSpec, blocks: Iterable[Prefix], addresses: Iterable[Address], pools: Iterable[Prefix]
) -> AdjRibOut:
    """Return what `session` carries: `blocks` inside `pools`, and each of `addresses` that is in no block.

    A session carries the family of its peer's address; `pools` are those that may be exported.
    """
    exported = frozenset(pools)
    own = frozenset(blocks)
    borrowed = {host for host in map(_host_prefix, addresses) if not inside(host, own)}
    return frozenset(
        Announcement(prefix)
        for prefix in own | borrowed
        if prefix.version == session.peer.version and inside(prefix, exported)
    )


def _host_prefix(address: Address) -> Prefix:
    return ip_network(address)
