"""Print values as a table for people or as JSON or YAML for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

UNLIMITED = 10_000  # columns: what reads a pipe does not expect folded cells


class Format(StrEnum):
    """`-o`."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print `rows` under `headings`, fitted to a terminal, whole lines elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        lines.add_column(heading, overflow="fold")
    for row in rows:
        lines.add_row(*(Text(str(cell)) for cell in row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else UNLIMITED)
    with console.capture() as shown:
        console.print(lines)
    print("\n".join(line.rstrip() for line in shown.get().splitlines()))


def document(value: Any, form: Format) -> None:
    """Print `value`, JSON types only, as JSON or YAML."""
    if form is Format.YAML:
        import yaml

        yaml.safe_dump(value, sys.stdout, sort_keys=False)
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
