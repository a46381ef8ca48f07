"""Measure how long what peers send takes to reach the kernel: from hearing an Update to the end of the pass with it.

Of the Updates that one pass applies the first counts, which waited longest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds


class Reaction:
    """Times are seconds of any one clock that does not go back."""

    def __init__(self) -> None:
        self.sum = 0.0
        self._counts = [0] * (len(BOUNDS) + 1)
        self._waiting: float | None = None  # heard, and in no plan yet
        self._planned: float | None = None  # in a plan whose pass has not ended

    def heard(self, now: float) -> None:
        if self._waiting is None:
            self._waiting = now

    def planned(self) -> None:
        """What was heard until now is in what is desired."""
        if self._planned is None:
            self._planned = self._waiting
        self._waiting = None

    def applied(self, now: float) -> None:
        """A whole pass has ended."""
        if self._planned is not None:
            self.sum += now - self._planned
            self._counts[bisect_left(BOUNDS, now - self._planned)] += 1
            self._planned = None

    def buckets(self) -> Iterator[tuple[str, int]]:
        """Yield, as Prometheus has it, each upper bound and how many took no longer."""
        total = 0
        for bound, count in zip([*map(str, BOUNDS), "+Inf"], self._counts, strict=True):
            total += count
            yield bound, total
