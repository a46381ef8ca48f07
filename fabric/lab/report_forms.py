"""The forms of a report: rows of its two tables, and JSON.

The JSON form (`as_json`):

    act           what was done, in words
    began         when, UTC
    act_ms        how long doing it took
    watched_ms    [from, to], of all that follows
    valid         whether the figures may be believed; if not, `invalid` says why, else it is null
    settled       whether nothing more was lost at the end
    interval_ms   the grain: each flow sends one datagram in this time
    flows         a list, one for each way between two endpoints:
      from, to                  their names
      ran_before                nothing was lost in the second before the act
      back                      it ran at the end
      sent, lost                datagrams, from the act on; lost is what was not in within 500 ms
      outage_ms, longest_ms     all its gaps together, and the longest
      first_ms, last_ms         when the first begins and the last ends, null where there are none
      gaps                      [from, to] of each, of the second before the act too
      delay_ms                  the longest that one was under way
    worst         {from, to} of the flow with the longest outage, null where nothing was lost
    control       the two flows of the control veth, as above
    routes        a list, one for each prefix that changed in a node's kernel:
      node, prefix
      before                    next hops at the act: gateways, or interfaces on link; [] where there was no route
      withdrawn_ms              the first time that there was none, null if there always was one
      back_ms                   when it came, or came back, to stay, null if it did not
      changed_ms                the last time that next hops gave way to others, null if they did not
      changes                   each change: at_ms, next_hops; [] where it was withdrawn
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from fabric.lab.report import BASELINE, MS, Flow, Report, Route
from fabric.lab.traffic import EVERY

FLOW_HEADINGS = ("FLOW", "SENT", "LOST", "OUTAGE ms", "LONGEST ms", "FIRST ms", "LAST ms", "NOTE")
ROUTE_HEADINGS = ("NODE", "PREFIX", "WITHDRAWN ms", "BACK ms", "CHANGED ms", "NEXT HOPS BEFORE", "AND NOW")


def flow_rows(report: Report) -> list[tuple[str, ...]]:
    """Return a row for each flow, the control's last."""
    rows = [_flow_row(flow, "worst" if flow is report.worst else "") for flow in report.flows]
    return rows + [_flow_row(flow, "control") for flow in report.control]


def _flow_row(flow: Flow, mark: str) -> tuple[str, ...]:
    notes = [mark, "" if flow.ran_before else "down before", "" if flow.back else "down at the end"]
    first, last = _ends(flow)
    return (
        f"{flow.source} to {flow.target}",
        str(flow.sent),
        str(flow.lost),
        *map(_cell, (flow.outage, flow.longest, first, last)),
        ", ".join(filter(None, notes)),
    )


def route_rows(report: Report) -> list[tuple[str, ...]]:
    """Return a row for each prefix that changed somewhere."""
    return [
        (
            route.node,
            route.prefix,
            *map(_cell, (route.withdrawn, route.back, route.changed)),
            ", ".join(route.before) or "-",
            ", ".join(route.changes[-1].next_hops) or "-",
        )
        for route in report.routes
    ]


def _cell(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.0f}"


def _ends(flow: Flow) -> tuple[float | None, float | None]:
    if not flow.outages:
        return None, None
    return max(flow.outages[0].begin, 0.0), flow.outages[-1].end


def as_json(report: Report) -> dict[str, Any]:
    """Return the JSON form; this module's docstring has the keys."""
    worst = report.worst
    return {
        "act": report.act,
        "began": datetime.fromtimestamp(report.began, UTC).isoformat(timespec="milliseconds"),
        "act_ms": report.took,
        "watched_ms": [-BASELINE, report.until],
        "valid": report.valid,
        "invalid": report.invalid or None,
        "settled": report.settled,
        "interval_ms": EVERY // MS,
        "flows": [_flow_json(flow) for flow in report.flows],
        "worst": {"from": worst.source, "to": worst.target} if worst else None,
        "control": [_flow_json(flow) for flow in report.control],
        "routes": [_route_json(route) for route in report.routes],
    }


def _flow_json(flow: Flow) -> dict[str, Any]:
    first, last = _ends(flow)
    return {
        "from": flow.source,
        "to": flow.target,
        "ran_before": flow.ran_before,
        "back": flow.back,
        "sent": flow.sent,
        "lost": flow.lost,
        "outage_ms": flow.outage,
        "longest_ms": flow.longest,
        "first_ms": first,
        "last_ms": last,
        "gaps": [[gap.begin, gap.end] for gap in flow.gaps],
        "delay_ms": flow.delay,
    }


def _route_json(route: Route) -> dict[str, Any]:
    return {
        "node": route.node,
        "prefix": route.prefix,
        "before": list(route.before),
        "withdrawn_ms": route.withdrawn,
        "back_ms": route.back,
        "changed_ms": route.changed,
        "changes": [{"at_ms": change.at, "next_hops": list(change.next_hops)} for change in route.changes],
    }


def as_text(report: Report) -> str:
    """Return the JSON form as a file's text."""
    return json.dumps(as_json(report), indent=2) + "\n"
