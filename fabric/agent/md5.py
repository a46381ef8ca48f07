"""Tell which kinds of TCP segments the kernel has lately dropped for their signature."""

from __future__ import annotations

from collections.abc import Mapping

from bgp.diagnosis import Signature
from fabric.kernel import facts

LATELY = 180.0  # seconds; a peer tries again within two minutes
COUNTERS = {
    Signature.MISSING: "TCPMD5NotFound",
    Signature.UNEXPECTED: "TCPMD5Unexpected",
    Signature.WRONG: "TCPMD5Failure",
}


class SignatureWatch:
    """Times are seconds of the Unix epoch."""

    def __init__(self) -> None:
        self._counts: Mapping[Signature, int] = {}
        self._rose: Mapping[Signature, float] = {}

    def look(self, now: float) -> None:
        """Read the kernel's counters."""
        counts = facts.tcp_counters(COUNTERS.values())
        self.note({kind: counts[name] for kind, name in COUNTERS.items() if name in counts}, now)

    def note(self, counts: Mapping[Signature, int], now: float) -> None:
        """Take what the counters are; what they were before the first time is nobody's fault."""
        for kind, count in counts.items():
            if count > self._counts.get(kind, count):
                self._rose = {**self._rose, kind: now}  # another thread may be reading the old one
        self._counts = counts

    def lately(self, now: float, since: float) -> frozenset[Signature]:
        """Return the kinds that were dropped lately and since a session went down: not its fault what was before."""
        return frozenset(kind for kind, at in self._rose.items() if at >= max(since, now - LATELY))
