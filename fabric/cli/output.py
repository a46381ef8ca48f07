"""Print values as a table for people or as JSON or YAML for programs."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

GAP = "  "  # between columns
NARROW = 6  # characters; a heading is not broken further than that


class Format(StrEnum):
    """`-o`."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print `rows` under `headings`: fitted to a terminal, and whole lines without colour elsewhere."""
    cells = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _fitted(headings, cells)
        return
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    for line in [headings, *cells]:
        print(GAP.join(map(str.ljust, line, widths)).rstrip())


def _fitted(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    columns = [[len(cell) for cell in column] for column in zip(headings, *rows, strict=True)]
    fits = sum(max(column) + len(GAP) for column in columns) - len(GAP) <= console.width
    lines = Table(box=None, pad_edge=False, padding=(0, len(GAP), 0, 0), header_style="bold cyan")
    for heading, (_, *cells), (_, *texts) in zip(
        headings, columns, zip(headings, *rows, strict=True), strict=True
    ):
        # Where it is tight, headings are broken first: names are copied from a table, headings are not.
        limit = None if fits else max([NARROW, *cells])
        # A number that goes on in the next line is another number.
        whole = max([NARROW, *cells]) if all(map(_is_number, texts)) else None
        lines.add_column(heading, overflow="fold", min_width=whole, max_width=limit)
    for row in rows:
        lines.add_row(*map(Text, row))
    console.print(lines)


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.isdecimal()


def document(value: Any, form: Format) -> None:
    """Print `value`, JSON types only, as JSON or YAML."""
    if form is Format.YAML:
        from fabric.model.yaml import dump_tree

        print(dump_tree(value), end="")
    else:
        print(json.dumps(value, indent=2))


def note(text: str) -> None:
    """Say something that is not the answer: progress or a warning."""
    print(text, file=sys.stderr, flush=True)


def age(seconds: float) -> str:
    """Return a duration as people read it: 42s, 3m12s, 5h02m, 12d04h."""
    whole = max(0, int(seconds))
    for unit, size, smaller, small in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small:02d}{smaller}"
    return f"{whole}s"


@contextmanager
def progress(doing: str, *, after: float = 1.0) -> Iterator[None]:
    """Show on a terminal's last line, from `after` seconds on, what is being done and for how long.

    On stderr, and gone when the work is done. A line that is printed meanwhile takes its place: keep `doing`
    shorter than those, since what it does not cover stays.
    """
    if not sys.stderr.isatty():
        yield
        return
    began, done = time.monotonic(), threading.Event()

    def show() -> None:
        ended = done.wait(after)
        if ended:
            return
        while not ended:
            taken = time.monotonic() - began
            print(f"\r\x1b[K{doing} ... {taken:.0f} s", end="\r", file=sys.stderr, flush=True)
            ended = done.wait(1.0)
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
