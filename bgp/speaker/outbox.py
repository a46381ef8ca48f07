"""Decides which command ExaBGP is given next: those for one peer in order, the peers in turn, a few under way.

ExaBGP works its commands off one after the other, a thousand prefixes each. Given them all at once, it would have
our own blocks for one router wait behind the whole table of another: and until a router has heard them again after
a restart, they go if the session is lost once more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from bgp.rib import Address

WINDOW = 2  # lines under way: enough that it never waits for us


class Outbox:
    """What waits for ExaBGP, which answers each line once and does not say to which."""

    def __init__(self) -> None:
        self._waiting: dict[Address, deque[str]] = {}
        self._under_way = 0

    def put(self, peer: Address, lines: Iterable[str]) -> None:
        if new := list(lines):
            self._waiting.setdefault(peer, deque()).extend(new)

    def drop(self, peer: Address) -> None:
        """Forget what waits for `peer`: its session is lost, and the next one begins with everything."""
        self._waiting.pop(peer, None)

    def gone_out(self) -> None:
        """A line that waited for nobody is under way too."""
        self._under_way += 1

    def answered(self) -> None:
        self._under_way = max(self._under_way - 1, 0)

    def take(self) -> Iterator[str]:
        """Yield what may go out now, and count it as under way."""
        while self._waiting and self._under_way < WINDOW:
            peer = next(iter(self._waiting))
            lines = self._waiting.pop(peer)
            self._under_way += 1
            yield lines.popleft()
            if lines:
                self._waiting[peer] = lines  # behind the others
