"""Decide what a fault cost: from the numbers that were sent and came in, and from routing tables over time.

Datagram `n` of a flow is due at the run's epoch plus n times 10 ms, so the numbers are a clock of that grain,
and a run of numbers that did not come in is a gap in it, whether they were lost or never sent, because
whoever sends them was away. Moments in a report are in ms from the act (the fault, or its mending) on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from fabric.lab.traffic import EVERY

MS = 1_000_000  # ns
BASELINE = 1000  # ms before the act that are looked at as well
LATE = 500  # ms; what is under way for longer counts as lost: it waited somewhere for the fault to be over

Stamps: TypeAlias = Mapping[int, int]  # number of a datagram: ns since 1970
NextHops: TypeAlias = tuple[str, ...]
# What fabric/lab/routewatch.py says: (ns since 1970, what is new then), of which the first is the whole table.
Log: TypeAlias = Iterable[tuple[int, Mapping[str, NextHops]]]


@dataclass(frozen=True, slots=True)
class Window:
    """What is looked at, in ns since 1970: from a second before `act` to `end`; `epoch` is number 0's moment."""

    epoch: int
    act: int
    end: int

    def number(self, at: int) -> int:
        """Return the first number that is due at `at` or later."""
        return -((self.epoch - at) // EVERY)

    def ms(self, number: int) -> float:
        """Return when `number` is due, in ms from the act on."""
        return self.since(self.epoch + number * EVERY)

    def since(self, at: int) -> float:
        return round((at - self.act) / MS, 1)


@dataclass(frozen=True, slots=True)
class Gap:
    """Nothing came in of what was due from `begin` up to `end`, in ms from the act on."""

    begin: float
    end: float

    @property
    def length(self) -> float:
        """What of it lies after the act."""
        return max(0.0, round(self.end - max(self.begin, 0.0), 1))


@dataclass(frozen=True, slots=True)
class Flow:
    """One way between two endpoints; `sent` and `lost` count from the act on, `gaps` from a second before."""

    source: str
    target: str
    ran_before: bool
    back: bool
    sent: int
    lost: int
    gaps: tuple[Gap, ...]
    delay: float

    @property
    def outages(self) -> list[Gap]:
        return [gap for gap in self.gaps if gap.length]

    @property
    def outage(self) -> float:
        return round(sum(gap.length for gap in self.gaps), 1)

    @property
    def longest(self) -> float:
        return max((gap.length for gap in self.gaps), default=0.0)


@dataclass(frozen=True, slots=True)
class Change:
    """From `at` on, in ms from the act, these are the next hops; none: it was withdrawn."""

    at: float
    next_hops: NextHops


@dataclass(frozen=True, slots=True)
class Route:
    """What became of a prefix in a node's kernel; there is at least one change."""

    node: str
    prefix: str
    before: NextHops
    changes: tuple[Change, ...]

    @property
    def withdrawn(self) -> float | None:
        return next((change.at for change in self.changes if not change.next_hops), None)

    @property
    def back(self) -> float | None:
        if not self.changes[-1].next_hops:
            return None
        return max((new.at for old, new in self._steps() if not old.next_hops), default=None)

    @property
    def changed(self) -> float | None:
        return max((new.at for old, new in self._steps() if old.next_hops and new.next_hops), default=None)

    def _steps(self) -> Iterable[tuple[Change, Change]]:
        return pairwise([Change(0.0, self.before), *self.changes])


@dataclass(frozen=True, slots=True)
class Report:
    """All of it; `began` is the act's moment, in seconds since 1970, `took` how long it took, in ms."""

    act: str
    began: float
    took: float
    until: float
    settled: bool
    flows: tuple[Flow, ...]
    control: tuple[Flow, ...]
    routes: tuple[Route, ...]

    @property
    def invalid(self) -> str:
        """Why the figures may not be believed, or nothing."""
        gaps = [gap for flow in self.control for gap in flow.gaps]
        if not gaps:
            return ""
        longest = max(gap.end - gap.begin for gap in gaps)
        return (
            f"the control flow, on a veth that nothing touches, has gaps of up to {longest:.0f} ms:"
            " this machine was too busy to measure; measure again"
        )

    @property
    def valid(self) -> bool:
        return not self.invalid

    @property
    def worst(self) -> Flow | None:
        """Of the flows that lost anything, the one with the longest outage; those that ran before come first."""
        hurt = [flow for flow in self.flows if flow.outage]
        return max(hurt, key=lambda flow: (flow.ran_before, flow.outage), default=None)


def flow(source: str, target: str, sent: Stamps, received: Stamps, window: Window) -> Flow:
    """Return what became of a flow; `sent` and `received` may say more than `window` asks for."""
    first, act, end = map(
        window.number, (max(window.act - BASELINE * MS, window.epoch), window.act, window.end)
    )
    received = {n: at for n, at in received.items() if at - sent.get(n, at) <= LATE * MS}
    gaps = []
    begin = None
    for number in range(first, end):
        if number in received:
            if begin is not None:
                gaps.append(Gap(window.ms(begin), window.ms(number)))
                begin = None
        elif begin is None:
            begin = number
    if begin is not None:
        gaps.append(Gap(window.ms(begin), window.ms(end)))
    numbers = [number for number in range(act, end) if number in sent]
    delays = [received[number] - sent[number] for number in numbers if number in received]
    return Flow(
        source,
        target,
        ran_before=all(number in received for number in range(first, act)),
        back=begin is None,
        sent=len(numbers),
        lost=sum(number not in received for number in numbers),
        gaps=tuple(gaps),
        delay=round(max(delays, default=0) / MS, 1),
    )


def routes(node: str, logs: Iterable[Log], window: Window) -> list[Route]:
    """Return the prefixes of a node that changed, by prefix.

    `logs` are one for each time that the node came up, in order.
    """
    before: dict[str, NextHops] = {}
    now: dict[str, NextHops] = {}
    changes: dict[str, list[Change]] = {}
    for log in logs:
        whole: dict[str, NextHops] = dict.fromkeys(now, ())  # of a new kernel table nothing is left
        for at, changed in log:
            for prefix, next_hops in (whole | dict(changed)).items():
                if at < window.act:
                    before[prefix] = next_hops
                elif at < window.end and now.get(prefix, ()) != next_hops:
                    changes.setdefault(prefix, []).append(Change(window.since(at), next_hops))
                now[prefix] = next_hops
            whole = {}
    return [Route(node, prefix, before.get(prefix, ()), tuple(changes[prefix])) for prefix in sorted(changes)]
