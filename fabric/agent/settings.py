"""Decide which of the cluster's settings hold for this node's agent (Calico's FelixConfiguration). Pure.

Setting by setting: `node.<name>`, else the one whose nodeSelector matches the node, else `default`. Where
several match, the oldest counts alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from fabric.agent.snapshot import Snapshot
from fabric.model.felixconfiguration import ActingSettings, FelixConfiguration
from fabric.model.fields import seconds
from fabric.model.node import Node
from policy import selector

READ_BACK = 90.0  # seconds


@dataclass(frozen=True, slots=True)
class Settings:
    """`read_back` is in seconds, 0 for never; `forwarding` says whether the host's forwarding is ours to turn on."""

    read_back: float = READ_BACK
    forwarding: bool = True
    log_severity: str = "Info"


def settings(snapshot: Snapshot, node: str) -> Settings:
    """Return what holds for `node`."""
    layers = list(_layers(snapshot, node))
    refresh = next((s.route_refresh_interval for s in layers if s.route_refresh_interval is not None), None)
    forwarding = next((s.ip_forwarding for s in layers if s.ip_forwarding is not None), "Enabled")
    severity = next((s.log_severity_screen for s in layers if s.log_severity_screen is not None), "Info")
    return Settings(
        read_back=READ_BACK if refresh is None else seconds(refresh),
        forwarding=forwarding == "Enabled",
        log_severity=severity,
    )


def _layers(snapshot: Snapshot, node: str) -> Iterator[ActingSettings]:
    """The settings that apply, the nearest first."""
    if own := snapshot.get(FelixConfiguration, f"node.{node}"):
        yield own.spec
    me = snapshot.get(Node, node)
    matching = [
        found
        for found in snapshot.all(FelixConfiguration)
        if me
        and found.spec.node_selector
        and selector.parse(found.spec.node_selector).matches(me.metadata.labels)
    ]
    if matching:
        yield min(matching, key=_age).spec
    if general := snapshot.get(FelixConfiguration, "default"):
        yield general.spec


def _age(found: FelixConfiguration) -> tuple[datetime, str]:
    return found.metadata.creation_timestamp or datetime.max.replace(tzinfo=UTC), found.metadata.name
