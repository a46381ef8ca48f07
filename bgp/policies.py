"""Decide what may come in and go out on all of a node's sessions, from pools and BGPConfigurations."""

from __future__ import annotations

from collections.abc import Iterable, Set

from bgp.export import ExportPolicy
from bgp.filters import ImportPolicy
from bgp.rib import Prefix
from fabric.model.bgp import BGPConfiguration
from fabric.model.ippool import IPPool

NORMAL_PRIORITY = 1024


def import_policy(
    pools: Iterable[IPPool], own_blocks: Iterable[Prefix], default_routes: Set[int]
) -> ImportPolicy:
    """`default_routes` has the families (4, 6) whose default route may come by BGP."""
    return ImportPolicy(
        frozenset(p.spec.cidr for p in pools), frozenset(own_blocks), frozenset(default_routes)
    )


def export_policy(
    node: str, pools: Iterable[IPPool], configurations: Iterable[BGPConfiguration]
) -> ExportPolicy:
    """Return what holds for `node`."""
    named = {found.metadata.name: found for found in configurations}
    cluster, own = named.get("default"), named.get(f"node.{node}")
    closed = {p.spec.cidr: p.spec.disable_bgp_export for p in pools}
    return ExportPolicy(
        pools=frozenset(prefix for prefix, shut in closed.items() if not shut),
        closed=frozenset(prefix for prefix, shut in closed.items() if shut),
        advertisements=tuple(
            advertisement
            for version in (4, 6)
            for advertisement in _advertisements(own, version) or _advertisements(cluster, version)
        ),
        priorities={
            4: (cluster and cluster.spec.ipv4_normal_route_priority) or NORMAL_PRIORITY,
            6: (cluster and cluster.spec.ipv6_normal_route_priority) or NORMAL_PRIORITY,
        },
    )


def _advertisements(
    configuration: BGPConfiguration | None, version: int
) -> list[tuple[Prefix, tuple[str, ...]]]:
    """The prefixes of one family with the values of their communities. A node's own list replaces the cluster's."""
    if configuration is None:
        return []
    values = {community.name: community.value for community in configuration.spec.communities}
    return [
        (found.cidr, tuple(values.get(text, text) for text in found.communities))
        for found in configuration.spec.prefix_advertisements
        if found.cidr.version == version
    ]
