"""Decide which of the cluster's settings hold for this node's agent (Calico's FelixConfiguration). Pure.

Which of several counts is decided in `policy.site`; what policy needs of them goes there by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fabric.agent.snapshot import Snapshot
from fabric.model.felixconfiguration import VXLAN_PORT, VXLAN_VNI, ActingSettings, FelixConfiguration
from fabric.model.fields import seconds
from fabric.model.node import Node
from policy import site
from policy.site import first

Backend: TypeAlias = Literal["auto", "nft", "legacy"]

READ_BACK = 90.0  # seconds
_BACKENDS: Mapping[str, Backend] = {"Auto": "auto", "NFT": "nft", "Legacy": "legacy"}


@dataclass(frozen=True, slots=True)
class Settings:
    """`read_back` is in seconds, 0 for never; `forwarding` says whether the host's forwarding is ours to turn on.

    `backend` is where the rules are kept: "nft", "legacy", or "auto" for what works here. `vxlan_vni` and `vxlan_port`
    (UDP) are those of every node's VXLAN.
    """

    read_back: float = READ_BACK
    forwarding: bool = True
    log_severity: str = "Info"
    backend: Backend = "auto"
    vxlan_vni: int = VXLAN_VNI
    vxlan_port: int = VXLAN_PORT


def settings(snapshot: Snapshot, node: str) -> Settings:
    """Return what holds for `node`."""
    said = layers(snapshot, node)
    refresh = first(said, lambda s: s.route_refresh_interval, "")
    return Settings(
        read_back=seconds(refresh) if refresh else READ_BACK,
        forwarding=first(said, lambda s: s.ip_forwarding, "Enabled") == "Enabled",
        log_severity=first(said, lambda s: s.log_severity_screen, "Info"),
        backend=_BACKENDS[first(said, lambda s: s.iptables_backend, "Auto")],
        vxlan_vni=first(said, lambda s: s.vxlan_vni, VXLAN_VNI),
        vxlan_port=first(said, lambda s: s.vxlan_port, VXLAN_PORT),
    )


def layers(snapshot: Snapshot, node: str) -> tuple[ActingSettings, ...]:
    """Return the cluster's settings that apply to `node`, the nearest first."""
    me = snapshot.get(Node, node)
    return site.layers(node, me.metadata.labels if me else None, snapshot.all(FelixConfiguration))
