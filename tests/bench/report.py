"""Decide how a measurement is told: minimum, median and maximum, beside its peer's, as JSON, table and plot.

The JSON form is a list of rows, one a measurement: `name`, `unit`, `ours`, `peer`, `peer_name`, `ratio`.
`ours`, `peer` and `ratio` have `min`, `median` and `max`. The ratio is taken turn by turn, so that a machine
whose speed drifts does not decide it; below 1 ours is the smaller. What has no peer has null there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Self

from fabric.cli.output import table

HEADINGS = ("WHAT", "UNIT", "MIN", "MEDIAN", "MAX", "PEER", "MIN", "MEDIAN", "MAX", "RATIO")


@dataclass(frozen=True, slots=True)
class Figure:
    """What is kept of a series."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        """Return the figure of a series that is not empty."""
        return cls(min(samples), median(samples), max(samples))


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement; `peer` is measured in the same run, turn by turn with ours."""

    name: str
    unit: str
    ours: Figure
    peer: Figure | None = None
    peer_name: str = ""
    ratio: Figure | None = None

    @classmethod
    def beside(
        cls, name: str, unit: str, ours: Sequence[float], peer: Sequence[float], peer_name: str
    ) -> Self:
        """Return the row of two series that were taken in turn, as many of the one as of the other."""
        ratios = [a / b for a, b in zip(ours, peer, strict=True)]
        return cls(name, unit, Figure.of(ours), Figure.of(peer), peer_name, Figure.of(ratios))


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the JSON form."""
    return [asdict(row) | {"peer_name": row.peer_name or None} for row in rows]


def write_json(rows: Sequence[Row], path: Path) -> None:
    path.write_text(json.dumps(as_json(rows), indent=2) + "\n", encoding="utf-8")


def print_table(rows: Sequence[Row]) -> None:
    """Print the rows for people."""
    table(HEADINGS, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    peer = _numbers(row.peer) if row.peer else ["", "", ""]
    ratio = f"{row.ratio.median:.2f}x" if row.ratio else ""
    return [row.name, row.unit, *_numbers(row.ours), row.peer_name, *peer, ratio]


def _numbers(figure: Figure) -> list[str]:
    return [f"{value:.4g}" for value in (figure.min, figure.median, figure.max)]


def can_plot() -> bool:
    """Whether matplotlib is here; it comes with the extra `plots`."""
    return find_spec("matplotlib") is not None


def write_plot(rows: Sequence[Row], path: Path, *, log: bool = False) -> None:
    """Draw the rows that have a peer: a bar for the median, a line from minimum to maximum.

    `log`: on a logarithmic scale, for rows that are far apart.
    """
    # By name, and so without types: they are there only where the extra is.
    figure_class: Any = import_module("matplotlib.figure").Figure
    shown = [row for row in rows if row.peer][::-1]
    figure = figure_class(figsize=(8, 0.8 + 0.7 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for at, row in enumerate(shown):
        assert row.peer
        _bar(axes, at + 0.2, row.ours, "tab:blue")
        _bar(axes, at - 0.2, row.peer, "tab:gray")
    if log:
        axes.set_xscale("log")
    axes.set_yticks(range(len(shown)), [f"{row.name}\nagainst {row.peer_name}" for row in shown], fontsize=8)
    axes.set_xlabel(f"{' / '.join(sorted({row.unit for row in shown}))}  (blue: ours, grey: the peer)")
    figure.savefig(path, format="svg")


def _bar(axes: Any, at: float, figure: Figure, colour: str) -> None:
    reach = [[figure.median - figure.min], [figure.max - figure.median]]
    axes.barh(at, figure.median, height=0.36, color=colour, xerr=reach, error_kw={"lw": 1, "capsize": 2})
