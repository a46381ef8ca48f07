"""Decide whether etcd has the cluster that a node is of, or another in its place. Pure.

Such a one was made anew, or is reached by mistake.
"""

from __future__ import annotations

from collections.abc import Iterable

from fabric.errors import ConfigError
from fabric.model.clusterinformation import ClusterInformation
from fabric.model.wire import from_json
from fabric.store import keys
from fabric.store.kv import KeyValue

INFORMATION = keys.ResourceKey("clusterinformations", None, "default").path


def identity(items: Iterable[KeyValue]) -> str:
    """Return the cluster's GUID as `items` have it, "" where there is none that can be read."""
    for item in items:
        if item.key == INFORMATION:
            try:
                found = from_json(item.value)
            except ConfigError:
                return ""
            return found.spec.cluster_guid if isinstance(found, ClusterInformation) else ""
    return ""


def knows(items: Iterable[KeyValue], node: str) -> bool:
    """Whether `items` have a Node of that name: then it has joined there."""
    key = keys.ResourceKey("nodes", None, node).path
    return any(item.key == key for item in items)


def strangeness(items: Iterable[KeyValue], node: str, home: str) -> str:
    """Return why `items` are not of `home`, the cluster that `node` is of; "" where they are, or it joined there."""
    found = tuple(items)
    now = identity(found)
    if not home or now == home or knows(found, node):
        return ""
    return f"etcd has {f'cluster {now}' if now else 'no cluster'}, which does not know node {node}, in place of {home}"
