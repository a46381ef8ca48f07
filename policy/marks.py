"""Decides which bits of a packet's and of a connection's mark are ours, and what each says."""

from __future__ import annotations

from typing import Final, NamedTuple

# A bit of the connection's mark: a change of policy denied a connection that was live. No other bit of it is ours.
CUT: Final = 0x80000000


class Marks(NamedTuple):
    """Bits of a packet's mark, each meaning one thing while one list is asked."""

    accept: int  # a rule allowed the packet
    passed: int  # a rule handed it to the next tier
    staged: int  # a staged policy of this tier has said what it would do

    @property
    def all(self) -> int:
        return self.accept | self.passed | self.staged


def marks(mask: int) -> Marks:
    """Return the three lowest bits of `mask`. Raises ValueError where it has fewer."""
    bits = [1 << place for place in range(32) if mask & 1 << place]
    if len(bits) < len(Marks._fields):
        raise ValueError(f"the mark mask {mask:#x} has {len(bits)} bits, policy needs {len(Marks._fields)}")
    return Marks(*bits[: len(Marks._fields)])
