"""Decide whether a running lab does what is expected of it, and when to look again.

Everything is asked at the same time, and again until it holds or `within` is over. What has to last (sessions,
routes, refusals, nothing left over) is then looked at for a moment longer, after everything else has had
its chance: an absence proves nothing before what should be there is there. So an expectation holds if

- a session, route or place was as expected throughout that moment,
- a refused flow was not answered, and what it sent not received, throughout that moment,
- anything else was so once.

`judge` is the whole decision about one expectation, and pure.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from fabric.errors import LabError
from fabric.lab.asking import (
    Answer,
    Asker,
    Found,
    FoundLeaks,
    FoundRoutes,
    FoundSessions,
    FoundSize,
    Knock,
    Knocks,
    Largest,
    Leaks,
    Question,
    Routes,
    Seen,
    Sessions,
    Sightings,
    Unanswered,
    together,
)
from fabric.lab.expect import (
    Encapsulated,
    Expectation,
    Expectations,
    Flow,
    Mtu,
    NextHops,
    NoLeaks,
    Published,
    Reach,
    Route,
    SessionUp,
    Translated,
    Untranslated,
)
from fabric.lab.lab import Lab, need_root
from fabric.lab.routers import BLACKHOLE, Session

MOMENT = 1.0  # seconds for which what has to last is looked at
AGAIN = 0.25  # seconds between two looks


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one expectation; `seconds` is how long it took to hold, or was waited for."""

    expectation: Expectation
    holds: bool
    found: str
    seconds: float


def verify(lab: Lab, expectations: Expectations) -> list[Result]:
    """Return what became of each expectation, in the order of the file.

    Nothing that this starts outlives it, interrupted or not.

    Raises:
        LabError: the lab is not up, or we may not enter it.
    """
    need_root()
    if not any(lab.home.running(node.name) for node in lab.topology.nodes):
        raise LabError(
            f"lab {lab.name} is not up; nothing was asked; bring it up with `fabricctl lab up {lab.file}`"
        )
    return asyncio.run(_Run(lab, expectations).results())


def document(lab: str, results: Sequence[Result]) -> dict[str, Any]:
    """Return the results in JSON types; `line` is that of the expectations file, times are in seconds."""
    return {
        "lab": lab,
        "holds": all(result.holds for result in results),
        "expectations": [
            {
                "what": result.expectation.what,
                "where": result.expectation.where,
                "expected": result.expectation.expected,
                "found": result.found,
                "seconds": round(result.seconds, 3),
                "holds": result.holds,
                "line": result.expectation.line,
            }
            for result in results
        ],
    }


# What is asked


def lasts(expectation: Expectation) -> bool:
    """Return whether the expectation has to hold for a moment, not once."""
    match expectation:
        case Reach(refused=refused) | Published(refused=refused):
            return refused
        case Mtu() | Untranslated() | Encapsulated() | Translated():
            return False
    return True


def can_wait(expectation: Expectation) -> bool:
    """Return whether it is met by what is not there, and so means nothing before all else holds."""
    match expectation:
        case Reach(refused=True) | Published(refused=True) | Route(present=False) | NoLeaks():
            return True
    return False


def questions(expectations: Iterable[Expectation]) -> dict[Question, list[Expectation]]:
    """Return what to ask, each with the expectations that its answer decides."""
    found: dict[Question, list[Expectation]] = defaultdict(list)
    flows: dict[object, list[Reach | Translated | Published]] = defaultdict(list)
    captured: list[Untranslated | Encapsulated] = []
    for each in expectations:
        match each:
            case SessionUp(node=node):
                found[Sessions(node)].append(each)
            case Route(node=node, table=table) | NextHops(node=node, table=table):
                found[Routes(node, table)].append(each)
            case Mtu(flow=flow, size=size):
                found[Largest(flow, size)].append(each)
            case NoLeaks(place=place):
                found[Leaks(place)].append(each)
            case Reach(flow=flow) | Translated(flow=flow) | Published(flow=flow):
                flows[flow.target, flow.protocol, flow.port, can_wait(each)].append(each)
            case Untranslated() | Encapsulated():
                captured.append(each)
    for group in flows.values():
        found[Knocks(_unique(each.flow for each in group), can_wait(group[0]))].extend(group)
    if captured:
        found[Sightings(_unique(each.flow for each in captured))].extend(captured)
    return dict(found)


def _unique(flows: Iterable[Flow]) -> tuple[Flow, ...]:
    return tuple(dict.fromkeys(flows))


# What was found


def judge(expectation: Expectation, found: Found) -> tuple[bool, str]:
    """Return whether what was found meets what is expected, and what was found in words."""
    match expectation, found:
        case _, Unanswered(why):
            return False, why
        case SessionUp(peer=peer), FoundSessions(sessions):
            return _session(peer, sessions)
        case Route(prefix=prefix, present=present), FoundRoutes(table):
            return (prefix in table) is present, _hops(table.get(prefix))
        case NextHops(prefix=prefix, count=count), FoundRoutes(table):
            hops = table.get(prefix)
            return len(hops or ()) == count, f"{len(hops)}: {_hops(hops)}" if hops else _hops(hops)
        case (Reach(refused=refused), Knock(why, heard)) | (
            Published(refused=True as refused),
            Knock(why, heard),
        ):
            return _reach(why, heard=heard, refused=refused)
        case Translated(address=address), Knock():
            return _seen_as(str(address), found)
        case Published(sees=sees), Knock(own=own):
            return _seen_as(str(sees or own), found)
        case Mtu(size=size), FoundSize(largest):
            return largest == size, "no packet gets there" if largest is None else str(largest)
        case Untranslated(flow=flow), Seen():
            return _untranslated(flow.target.place, found)
        case Encapsulated(kind=kind, node=node, interface=interface), Seen():
            return _encapsulated(kind, node, interface, found)
        case NoLeaks(), FoundLeaks(left):
            return not left, "; ".join(left) or "none"
    raise AssertionError(f"{found!r} does not answer {expectation!r}")


def _session(peer: str, sessions: Sequence[Session]) -> tuple[bool, str]:
    for session in sessions:
        if _same(session.peer, peer):
            return session.established, session.state
    known = ", ".join(session.peer for session in sessions)
    return False, f"no such peer; there is {known}" if known else "no sessions"


def _same(peer: str, other: str) -> bool:
    """Return whether two peers are one: an address has several spellings, an interface one."""
    return (_address(peer) or peer) == (_address(other) or other)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _hops(hops: frozenset[str] | None) -> str:
    if hops is None:
        return "absent"
    if hops == {BLACKHOLE}:
        return BLACKHOLE
    return ", ".join(f"via {hop}" if _address(hop) else f"dev {hop}" for hop in sorted(hops))


def _reach(why: str, *, heard: bool, refused: bool) -> tuple[bool, str]:
    if not why:
        return not refused, "reached"
    if heard:
        return False, f"arrived, but {why}"
    return refused, why


def _untranslated(target: str, seen: Seen) -> tuple[bool, str]:
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for each in seen.sightings:
        places[each.source, each.destination].append(each.place)
    there = {(own, seen.target) for own in seen.own}
    changed = places.keys() - there - {(seen.target, own) for own in seen.own}
    if changed:
        return False, "; ".join(f"{a} -> {b} at {_names(places[a, b])}" for a, b in sorted(changed))
    everywhere = [place for found in places.values() for place in found]
    if not any(target in places[pair] for pair in there & places.keys()):
        return False, f"did not arrive; seen at {_names(everywhere) or 'no node'}"
    return True, f"own addresses at {_names(everywhere)}"


def _encapsulated(kind: str, node: str, interface: str, seen: Seen) -> tuple[bool, str]:
    here = [each for each in seen.sightings if (each.place, each.device) == (node, interface)]
    if not any(each.destination == seen.target for each in here):
        return False, f"not seen there; seen at {_names(each.place for each in seen.sightings) or 'no node'}"
    ways = {each.carried for each in here}
    return {way.split()[0] for way in ways} == {kind}, _names(ways)


def _seen_as(address: str, knock: Knock) -> tuple[bool, str]:
    if not knock.heard:
        return False, knock.why or "reached, but by another program, which cannot be asked whom it saw"
    if knock.why:
        return False, f"arrived as {knock.client}, but {knock.why}"
    return knock.client == address, f"as {knock.client}"


def _names(places: Iterable[str]) -> str:
    return ", ".join(sorted(set(places)))


# Looking until it holds


class _Run:
    """One verification; `deadline` is in seconds of the monotonic clock, as are all its times."""

    def __init__(self, lab: Lab, expectations: Expectations) -> None:
        self.expectations = expectations.all
        self.asker = Asker(lab)
        self.began = time.monotonic()
        self.deadline = self.began + expectations.within
        self._verdicts: dict[Expectation, Result] = {}

    async def results(self) -> list[Result]:
        """Look at everything until it holds; then at what has to last."""
        first = questions(each for each in self.expectations if not can_wait(each))
        await together(*(self._until(*each) for each in first.items()))
        lasting = questions(each for each in self.expectations if lasts(each))
        await together(*(self._throughout(*each) for each in lasting.items()))
        return [self._verdicts[each] for each in self.expectations]

    async def _until(self, question: Question, decided: Sequence[Expectation]) -> None:
        while True:
            if await self._look(question, decided) or time.monotonic() > self.deadline:
                return
            await asyncio.sleep(AGAIN)

    async def _throughout(self, question: Question, decided: Sequence[Expectation]) -> None:
        """Return once all holds for a MOMENT without a break, or the deadline is over at one."""
        since = time.monotonic()
        while time.monotonic() < since + MOMENT:
            if not await self._look(question, decided):
                since = time.monotonic()
                if since >= self.deadline:
                    return
            await asyncio.sleep(AGAIN)

    async def _look(self, question: Question, decided: Sequence[Expectation]) -> bool:
        left = max(self.deadline - time.monotonic(), AGAIN)
        answer = await self.asker.ask(question, left)
        now = time.monotonic() - self.began
        for each in decided:
            holds, found = judge(each, _part(each, answer))
            before = self._verdicts.get(each)
            since = before.seconds if before and before.holds and holds else now
            self._verdicts[each] = Result(each, holds, found, since)
        return all(self._verdicts[each].holds for each in decided)


def _part(expectation: Expectation, answer: Answer) -> Found:
    if isinstance(answer, Mapping):
        assert isinstance(expectation, Reach | Untranslated | Encapsulated | Translated | Published)
        return answer[expectation.flow]
    return answer
