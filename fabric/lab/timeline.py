"""Draw a report as a picture: what each flow lost and each node's routes did, over time, as SVG.

The library, matplotlib, is the extra `plots`: it is imported when a picture is asked for, and not before.
"""

from __future__ import annotations

from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from fabric.errors import LabError
from fabric.lab.report import BASELINE, Flow, Report, Route

MARGIN = 500  # ms after the last event that are shown
MOST_FLOWS = 60  # rows; of more, those with the longest outages
MOST_ROUTES = 24  # rows of one route each; of more, a node's routes share one
ROW = 0.24  # inches
RUNS, DOWN, CONTROL, ROUTED = "#2e9e5b", "#d62728", "#7f7f7f", "#9ecae1"
MARKS = {  # what became of a route: marker, colour, words
    "withdrawn": ("v", "#d62728", "withdrawn"),
    "back": ("^", "#2e9e5b", "came (back)"),
    "changed": ("D", "#1f77b4", "other next hops"),
}
Routes: TypeAlias = tuple[Route, ...]  # those of one row


def check() -> None:
    """Return if a picture could be drawn here: to be called before there is anything to draw.

    Raises:
        LabError: matplotlib is not installed.
    """
    try:
        import_module("matplotlib.figure")
    except ImportError as err:
        raise LabError(
            f"the timeline of a report is drawn with matplotlib, which cannot be used: {err}; nothing was done;"
            " install it: pip install 'fabricctl[plots]'"
        ) from err


def write_svg(report: Report, path: Path) -> None:
    """Write the picture of `report` to `path`; `check` comes first.

    Raises:
        LabError: `path` cannot be written.
    """
    figure = _draw(report)
    try:
        # Text as text: the picture can be searched, and is smaller.
        with import_module("matplotlib").rc_context({"svg.fonttype": "none", "svg.hashsalt": "fabricctl"}):
            figure.savefig(path, format="svg", metadata={"Date": None})
    except OSError as err:
        raise LabError(f"timeline {path}: {err.strerror}; the measurement itself is not affected") from err


def _draw(report: Report) -> Any:
    flows, routes = _flows(report), _routes(report)
    rows: list[Flow | Routes] = [*flows, *routes, *report.control]
    figure: Any = import_module("matplotlib.figure").Figure(
        figsize=(10, 1.5 + ROW * len(rows)), layout="constrained"
    )
    axes = figure.subplots()
    until = _until(report)
    scale = 1000 if until > 3000 else 1
    axes.set_xlim(-min(BASELINE, until / 8) / scale, until / scale)
    for at, row in enumerate(rows):
        if isinstance(row, Flow):
            _flow(axes, at, row, CONTROL if row in report.control else RUNS, scale, until)
        else:
            _route(axes, at, row, scale, until)
    for line in (len(flows), len(flows) + len(routes)):
        axes.axhline(line - 0.5, color="#cccccc", linewidth=0.8)
    axes.axvspan(0, report.took / scale, color="#f2c14e", alpha=0.35, linewidth=0, zorder=0)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [_name(row) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(
        f"{'s' if scale > 1 else 'ms'} after the act, which took {report.took:.0f} ms", fontsize=8
    )
    axes.grid(axis="x", color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.suptitle(
        _title(report, len(flows)), fontsize=10, color="black" if report.valid else DOWN, wrap=True
    )
    _legend(figure, bool(routes))
    return figure


def _flows(report: Report) -> list[Flow]:
    if len(report.flows) <= MOST_FLOWS:
        return list(report.flows)
    worst = sorted(report.flows, key=lambda flow: flow.outage, reverse=True)[:MOST_FLOWS]
    return [flow for flow in report.flows if flow in worst]


def _routes(report: Report) -> list[Routes]:
    if len(report.routes) <= MOST_ROUTES:
        return [(route,) for route in report.routes]
    return [tuple(routes) for _, routes in groupby(report.routes, key=lambda route: route.node)]


def _until(report: Report) -> float:
    """Return where the picture ends, in ms: soon after the last event."""
    events = [report.took]
    events += [gap.end for flow in (*report.flows, *report.control) for gap in flow.gaps]
    events += [change.at for route in report.routes for change in route.changes]
    return min(report.until, max(events) * 1.05 + MARGIN)


def _flow(axes: Any, at: int, flow: Flow, colour: str, scale: int, until: float) -> None:
    runs = -float(BASELINE)
    for gap in flow.gaps:
        axes.hlines(at, runs / scale, gap.begin / scale, color=colour, linewidth=2)
        # An edge of its own: ten milliseconds in a minute must be seen.
        length = (gap.end - gap.begin) / scale
        axes.barh(at, length, left=gap.begin / scale, height=0.62, color=DOWN, edgecolor=DOWN, linewidth=1)
        runs = gap.end
    axes.hlines(at, runs / scale, until / scale, color=colour, linewidth=2)
    if flow.outage:
        end = flow.outages[-1].end
        words = f"{flow.outage:.0f} ms" + ("" if flow.back else ", not back")
        _beside(axes, at, end / scale, words, DOWN, inside=end > 0.78 * until)


def _route(axes: Any, at: int, routes: Routes, scale: int, until: float) -> None:
    for route in routes:
        since, next_hops = -float(BASELINE), route.before
        for change in route.changes:
            if next_hops:
                axes.hlines(at, since / scale, change.at / scale, color=ROUTED, linewidth=2)
            what = "withdrawn" if not change.next_hops else "changed" if next_hops else "back"
            marker, colour, _ = MARKS[what]
            axes.plot(change.at / scale, at, marker, color=colour, markersize=5, zorder=3)
            since, next_hops = change.at, change.next_hops
        if next_hops:
            axes.hlines(at, since / scale, until / scale, color=ROUTED, linewidth=2)
        if len(routes) == 1:
            words = ", ".join(next_hops) or "no route"
            _beside(axes, at, since / scale, words, "#444444", inside=since > 0.78 * until)


def _beside(axes: Any, at: int, x: float, words: str, colour: str, *, inside: bool) -> None:
    """Write right of `x`, or left of it (`inside`) where the edge of the picture is near."""
    axes.annotate(
        words,
        (x, at),
        xytext=(-6 if inside else 6, 0),
        textcoords="offset points",
        ha="right" if inside else "left",
        va="center",
        fontsize=7,
        color=colour,
        zorder=2.5,  # below the marks
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
    )


def _name(row: Flow | Routes) -> str:
    if isinstance(row, Flow):
        return f"{row.source} → {row.target}"
    return f"{row[0].node}: {row[0].prefix}" if len(row) == 1 else f"{row[0].node}: {len(row)} routes"


def _title(report: Report, shown: int) -> str:
    worst = report.worst
    cost = f"worst: {_name(worst)}, {worst.outage:.0f} ms" if worst else "nothing was lost"
    some = f" ({shown} of {len(report.flows)} flows)" if shown < len(report.flows) else ""
    invalid = "" if report.valid else "INVALID, the control flow has gaps: "
    return f"{invalid}{report.act}; {cost}{some}"


def _legend(figure: Any, routes: bool) -> None:
    line: Any = import_module("matplotlib.lines").Line2D
    shown = [
        line([], [], color=RUNS, linewidth=2, label="datagrams come in"),
        line([], [], color=DOWN, linewidth=6, label="none"),
        line([], [], color=CONTROL, linewidth=2, label="control"),
    ]
    if routes:
        shown.append(line([], [], color=ROUTED, linewidth=2, label="route stands"))
        shown += [
            line([], [], marker=marker, color=colour, linestyle="", markersize=5, label=words)
            for marker, colour, words in MARKS.values()
        ]
    figure.legend(handles=shown, ncols=len(shown), fontsize=7, loc="outside lower center", frameon=False)
