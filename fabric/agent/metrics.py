"""Expose the agent's state to Prometheus; read from the state at each scrape, so nothing can be stale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fabric.agent import report
from fabric.agent.state import State


@dataclass(frozen=True, eq=False)  # the registry's key, by identity: the state has no hash
class _StateCollector(Collector):
    """Series grow with peers and blocks of this node, never with endpoints or routes."""

    state: State

    def collect(self) -> Iterator[Metric]:
        state = self.state
        yield _one(
            "fabricctl_ready", "1 when datastore and speaker are in sync and a pass went through", state.ready
        )
        yield _one("fabricctl_datastore_in_sync", "1 while the watch is whole", state.snapshot.in_sync)
        yield _one(
            "fabricctl_datastore_revision", "etcd revision the snapshot stands at", state.snapshot.revision
        )
        yield _one(
            "fabricctl_datastore_problems", "objects that cannot be read", len(state.snapshot.problems)
        )
        yield _one(
            "fabricctl_workloads",
            "workloads attached to this node",
            len(state.snapshot.endpoints(state.node)),
        )
        yield _one("fabricctl_passes", "whole passes since the agent started", state.passes)
        yield _one(
            "fabricctl_refused", "operations the kernel refused in the last pass", len(state.outcome.refused)
        )
        yield _one("fabricctl_loc_rib_prefixes", "prefixes with a best path", len(state.desired.loc_rib.best))
        yield from self._sessions()
        held = GaugeMetricFamily(
            "fabricctl_block_addresses_held", "addresses held in a block", labels=["block"]
        )
        for block in report.blocks(state):
            held.add_metric([block["prefix"]], block["held"])
        yield held

    def _sessions(self) -> Iterator[Metric]:
        families = {
            name: GaugeMetricFamily(f"fabricctl_bgp_session_{name}", text, labels=["peer"])
            for name, text in (
                ("up", "1 while the session is Established"),
                ("flaps", "times the session went down"),
                ("received", "prefixes in its adj-RIB-in"),
                ("accepted", "of those, prefixes that passed import"),
                ("advertised", "prefixes it carries to the peer"),
            )
        }
        for session in report.sessions(self.state):
            values = session | {"up": session["state"] == "Established"}
            for name, family in families.items():
                family.add_metric([session["peer"]], values[name])
        yield from families.values()


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def render(state: State) -> bytes:
    """Return the metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_StateCollector(state))
    return generate_latest(registry)
