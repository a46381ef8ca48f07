"""Decide which received paths may be used: loop checks, then the import policy.

ExaBGP checks no loops, so they are refused here (RFC 4271 §9.1.2, RFC 4456 §8). The default import
takes prefixes inside our pools and, where it is asked for, a default route; nothing else, so that a
mis-set router cannot give this host a route it did not want.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from bgp.rib import Path, Prefix, SessionSpec


@dataclass(frozen=True, slots=True)
class ImportPolicy:
    """What may come in. `default_routes` has the families (4, 6) whose default route is wanted here."""

    pools: frozenset[Prefix]
    own_blocks: frozenset[Prefix]
    default_routes: frozenset[int]


def refusal(path: Path, session: SessionSpec, policy: ImportPolicy) -> str:
    """Return why `path` is not used, in a few words for people, or "" where it is."""
    if path.next_hop == session.source:
        return "the next hop is this node"  # RFC 4271 §6.3; the kernel would refuse it too
    return _loop(path, session) or _outside_policy(path.prefix, policy)


def _loop(path: Path, session: SessionSpec) -> str:
    if session.local_as in path.as_path or session.local_as in path.as_sets:
        return f"AS loop: own AS {session.local_as} in the path"
    if path.originator_id == session.router_id:
        return "loop: this node is the originator"
    if session.router_id in path.cluster_list:
        return "loop: own id in the cluster list"
    return ""


def _outside_policy(prefix: Prefix, policy: ImportPolicy) -> str:
    if prefix.prefixlen == 0:
        return "" if prefix.version in policy.default_routes else "the host has a default route of its own"
    if prefix in policy.own_blocks:
        return "own block"
    return "" if inside(prefix, policy.pools) else "in no pool"


def inside(prefix: Prefix, pools: Collection[Prefix]) -> bool:
    """`prefix` is one of `pools` or part of one."""
    return any(
        prefix.version == pool.version
        and prefix.prefixlen >= pool.prefixlen
        and prefix.network_address in pool
        for pool in pools
    )
