"""Expose the agent's state to Prometheus; read from the state at each scrape, so nothing can be stale."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from bgp.rib import SessionState
from fabric.agent import report, report_bgp
from fabric.agent.rules import PARTS, Rules
from fabric.agent.state import State
from fabric.plan.tables import VERSIONS

STATES = (SessionState.IDLE, SessionState.CONNECT, SessionState.ESTABLISHED)
SESSION_GAUGES = {
    "up": "1 while the session is Established",
    "state": "0 Idle, 1 Connect, 2 Established",
    "since": "when it came into that state, seconds of the Unix epoch",
    "flaps": "times the session went down",
    "received": "prefixes in its adj-RIB-in",
    "accepted": "of those, prefixes that take part in the decision",
    "best": "of those, prefixes that are in use",
    "advertised": "prefixes it carries to the peer",
    "max_prefixes": "prefixes at which it is closed, 0 for none",
    "drained": "1 while its paths are the last choice",
    "hints": "how many things are likely wrong with it; `fabricctl bgp peers` names them",
}
SESSION_COUNTERS = {"updates_in": "UPDATEs received", "updates_out": "UPDATEs sent"}


@dataclass(frozen=True, eq=False)  # the registry's key, by identity: the state has no hash
class _StateCollector(Collector):
    """Series grow with peers and blocks of this node, never with endpoints or routes."""

    state: State
    rules: Rules

    def collect(self) -> Iterator[Metric]:
        state = self.state
        yield _one(
            "fabricctl_ready",
            "1 while the node is ready; `fabricctl node status` says what it lacks",
            state.ready,
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
        yield _one("fabricctl_routes", "routes that the kernel is to have", len(state.desired.routes))
        yield HistogramMetricFamily(
            "fabricctl_bgp_update_to_kernel_seconds",
            "from hearing an UPDATE to the end of the pass that applied it; of those of one pass the first",
            buckets=list(state.reaction.buckets()),
            sum_value=state.reaction.sum,
        )
        yield from self._policy()
        yield from self._sessions()
        held = GaugeMetricFamily(
            "fabricctl_block_addresses_held", "addresses held in a block", labels=["block"]
        )
        for block in report.blocks(state):
            held.add_metric([block["prefix"]], block["held"])
        yield held

    def _policy(self) -> Iterator[Metric]:
        yield _one(
            "fabricctl_policy_problems",
            "objects of policy that could not be compiled, or have no effect here; `fabricctl node status` says why",
            len(self.state.policy_problems),
        )
        yield _one("fabricctl_ipsets", "ipsets of this node's policy", len(self.rules.held))
        members = sum(len(held.ipset.members) for held in self.rules.held.values())
        yield _one("fabricctl_ipset_members", "members of all of them", members)
        restores = CounterMetricFamily(
            "fabricctl_policy_restores", "restores of rules since the agent started", labels=["family"]
        )
        for version in VERSIONS:
            restores.add_metric([f"ipv{version}"], self.rules.restores[version])
        yield restores
        cuts = "live connections that a change of policy denied and that were cut"
        yield CounterMetricFamily("fabricctl_policy_cuts", cuts, value=self.state.cuts)
        gaps = CounterMetricFamily(
            "fabricctl_policy_gaps",
            "chains, or sets, that somebody else had changed when they were read back, and that were put right",
            labels=["part"],
        )
        for part in PARTS:
            gaps.add_metric([part], self.rules.gaps[part])
        yield gaps

    def _sessions(self) -> Iterator[Metric]:
        sessions = report_bgp.sessions(self.state, time.time())
        for name, text in SESSION_GAUGES.items():
            gauge = GaugeMetricFamily(f"fabricctl_bgp_session_{name}", text, labels=["peer"])
            for session in sessions:
                gauge.add_metric([session["peer"]], _value(session, name))
            yield gauge
        for name, text in SESSION_COUNTERS.items():
            counter = CounterMetricFamily(f"fabricctl_bgp_session_{name}", text, labels=["peer"])
            for session in sessions:
                counter.add_metric([session["peer"]], session[name])
            yield counter


def _value(session: report_bgp.Json, name: str) -> float:
    match name:
        case "up":
            return float(session["state"] == SessionState.ESTABLISHED)
        case "state":
            return STATES.index(session["state"])
        case "hints":
            return len(session["hints"])
        case _:
            return float(session[name])


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def render(state: State, rules: Rules) -> bytes:
    """Return the metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_StateCollector(state, rules))
    return generate_latest(registry)
