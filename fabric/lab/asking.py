"""Ask a running lab: one question at a time, of its routers and kernels, or of the network by `probe`.

Whatever is started for a question has ended when the answer is there, and also when the asking is cancelled.
A program that is killed itself leaves nothing either: `probe` ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, Literal, TypeAlias, TypeVar

from fabric.errors import LabError, NotFound
from fabric.lab import leaks, node, probe, routers
from fabric.lab.addresses import SHOW, usable
from fabric.lab.expect import Endpoint, Flow
from fabric.lab.lab import Lab
from fabric.lab.routers import Session, Table

T = TypeVar("T")

PATIENCE = 2.0  # seconds for an answer that should come
REFUSAL = 1.0  # seconds for one that should not
AT_ONCE = 8  # probes


# Questions


@dataclass(frozen=True, slots=True)
class Sessions:
    node: str


@dataclass(frozen=True, slots=True)
class Routes:
    node: str
    table: Literal["bgp", "kernel"]


@dataclass(frozen=True, slots=True)
class Knocks:
    """Flows to the same port of one endpoint: they share a listener."""

    flows: tuple[Flow, ...]
    refused: bool


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest packet that arrives in one piece; `size` is the one that should be."""

    flow: Flow
    size: int


@dataclass(frozen=True, slots=True)
class Sightings:
    flows: tuple[Flow, ...]


@dataclass(frozen=True, slots=True)
class Leaks:
    place: str


Question: TypeAlias = Sessions | Routes | Knocks | Largest | Sightings | Leaks


# Answers


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Nobody could tell, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class FoundSessions:
    sessions: tuple[Session, ...]


@dataclass(frozen=True, slots=True)
class FoundRoutes:
    table: Table


@dataclass(frozen=True, slots=True)
class Knock:
    """What became of a knock: `why` is empty if it was answered; `heard` if what it sent arrived.

    Then `client` is the address from which it came, as the target saw it. `own` is that from which it was sent,
    if it was answered.
    """

    why: str
    heard: bool = False
    client: str = ""
    own: str = ""


@dataclass(frozen=True, slots=True)
class FoundSize:
    """None: not even small packets get there."""

    size: int | None


@dataclass(frozen=True, slots=True)
class Sighting:
    """A packet as one namespace saw it pass through `device`; `carried` is what carried it there."""

    place: str
    device: str
    source: str
    destination: str
    carried: str = "native"


@dataclass(frozen=True, slots=True)
class Seen:
    """The addresses that belong to a flow's sender, the one it was sent to, and what was seen of it."""

    own: frozenset[str]
    target: str
    sightings: tuple[Sighting, ...]


@dataclass(frozen=True, slots=True)
class FoundLeaks:
    left: tuple[str, ...]


Found: TypeAlias = FoundSessions | FoundRoutes | Knock | FoundSize | Seen | FoundLeaks | Unanswered
Answer: TypeAlias = "Found | Mapping[Flow, Found]"


class Asker:
    """Asks one lab; made and used inside one event loop."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._token = secrets.token_hex(8)
        self._flows = 0
        self._slots = asyncio.Semaphore(AT_ONCE)
        # Two questions never listen at the same port of the same endpoint.
        self._ports: defaultdict[tuple[str, str, int], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def ask(self, question: Question, within: float = PATIENCE) -> Answer:
        """Return the answer; a node that cannot tell, or is away, is one too.

        `within`, in seconds, cuts short the wait for an answer from the network, if one should come.
        """
        try:
            return await self._ask(question, min(PATIENCE, within))
        except (LabError, NotFound) as err:
            return Unanswered(str(err))

    async def _ask(self, question: Question, patience: float) -> Answer:
        match question:
            case Sessions(name):
                return FoundSessions(tuple(await asyncio.to_thread(routers.sessions, self.lab, name)))
            case Routes(name, table):
                read = routers.bgp_table if table == "bgp" else routers.kernel_table
                return FoundRoutes(await asyncio.to_thread(read, self.lab, name))
            case Leaks(place):
                return FoundLeaks(tuple(await asyncio.to_thread(leaks.leaks, self.lab, place)))
            case Knocks(flows, refused):
                knocks = await self._knocks(flows, REFUSAL if refused else patience)
                return {flow: knock for flow, (_, knock) in knocks.items()}
            case Largest(flow, size):
                return await self._largest(flow, size)
            case Sightings(flows):
                return await self._sightings(flows, patience)

    # Flows

    async def _knocks(
        self, flows: Sequence[Flow], patience: float
    ) -> dict[Flow, tuple[str, Knock | Unanswered]]:
        """Return what became of flows to one port, each with the tag that its packets carried."""
        target, protocol, port = flows[0].target, flows[0].protocol, flows[0].port
        address = await self._address(target)
        if protocol == "ping":
            return await self._each(flows, address, "ours", patience)
        async with (
            self._ports[target.place, protocol, port],
            self._standing(target.node, target.netns, "listen", protocol, address, str(port)) as listener,
        ):
            whose = "ours" if await listener.hears() == "ready" else "theirs"
            knocks = await self._each(flows, address, whose, patience)
            heard = dict(await listener.rest())
        for flow, (tag, knock) in knocks.items():
            if isinstance(knock, Knock) and (client := heard.get(self._token + tag)):
                knocks[flow] = tag, replace(knock, heard=True, client=client)
        return knocks

    async def _each(
        self, flows: Sequence[Flow], address: str, whose: str, patience: float
    ) -> dict[Flow, tuple[str, Knock | Unanswered]]:
        async def one(flow: Flow, tag: str) -> Knock | Unanswered:
            where, port = (str(flow.door.address), flow.door.port) if flow.door else (address, flow.port)
            words = (flow.protocol, where, str(port), whose, self._token + tag, str(patience))
            try:
                async with self._slots:
                    why, own = await self._run(flow.source, "knock", *words, *_bound(flow.source, where))
            except (LabError, NotFound) as err:
                return Unanswered(str(err))
            return Knock(why, own=own)

        tags = [self._tag() for _ in flows]
        knocks = await together(*map(one, flows, tags))
        return dict(zip(flows, zip(tags, knocks, strict=True), strict=True))

    async def _largest(self, flow: Flow, size: int) -> FoundSize:
        address = await self._address(flow.target)
        words = (address, str(size), self._token + self._tag(), *_bound(flow.source, address))
        async with self._slots:
            return FoundSize(await self._run(flow.source, "measure", *words))

    async def _sightings(self, flows: Sequence[Flow], patience: float) -> Mapping[Flow, Seen | Unanswered]:
        nodes = {each.name for each in self.lab.topology.nodes if self.lab.home.running(each.name)}
        ends = {(end.node, end.netns) for flow in flows for end in (flow.source, flow.target)}
        places = sorted({(name, "") for name in nodes} | {end for end in ends if end[0] in nodes})
        async with AsyncExitStack() as stack:
            watchers = {
                place: await stack.enter_async_context(self._standing(*place, "watch", self._token))
                for place in places
            }
            await together(*(_works(watcher, netns) for (_, netns), watcher in watchers.items()))
            groups = await together(*(self._sighted(group, patience) for group in _by_port(flows)))
            lines = await together(*(watcher.rest() for watcher in watchers.values()))
        seen: defaultdict[str, list[Sighting]] = defaultdict(list)
        for (name, netns), sightings in zip(watchers, lines, strict=True):
            for tag, *sighting in sightings:
                seen[tag].append(Sighting(Endpoint("", name, netns).place, *sighting))
        return {
            flow: sent if isinstance(sent, Unanswered) else Seen(*sent[1:], tuple(seen[sent[0]]))
            for group in groups
            for flow, sent in group.items()
        }

    async def _sighted(
        self, flows: Sequence[Flow], patience: float
    ) -> dict[Flow, Unanswered | tuple[str, frozenset[str], str]]:
        """Send flows to one port; return each one's tag, its sender's addresses, and the target's."""
        try:
            target = await self._address(flows[0].target)
            knocks = await self._knocks(flows, patience)
        except (LabError, NotFound) as err:
            return {flow: Unanswered(str(err)) for flow in flows}
        sent: dict[Flow, Unanswered | tuple[str, frozenset[str], str]] = {}
        for flow, (tag, knock) in knocks.items():
            if isinstance(knock, Unanswered):
                sent[flow] = knock
                continue
            bound = _bound(flow.source, target)
            own = bound or await self._addresses(flow.source, ip_address(target).version)
            sent[flow] = (tag, frozenset(own), target)
        return sent

    def _tag(self) -> str:
        self._flows += 1
        return f"{self._flows % 10**probe.FLOW:0{probe.FLOW}d}"

    # Addresses

    async def _address(self, endpoint: Endpoint) -> str:
        if endpoint.address:
            return str(endpoint.address)
        if found := await self._addresses(endpoint, endpoint.family):
            return found[0]
        kind = f"global IPv{endpoint.family} address" if endpoint.family else "global address"
        raise LabError(f"{endpoint.place} has no {kind}")

    async def _addresses(self, endpoint: Endpoint, family: int | None) -> list[str]:
        """Return the addresses that the endpoint's namespace has now, the preferred first."""
        return usable(await self._output(endpoint, *SHOW), self.lab.topology, family)

    # Processes

    async def _run(self, endpoint: Endpoint, *words: str) -> Any:
        return json.loads(await self._output(endpoint, *PROBE, *words))

    async def _output(self, endpoint: Endpoint, *argv: str) -> str:
        async with self._process(endpoint.node, endpoint.netns, *argv) as process:
            out, err = await process.communicate()
        if process.returncode:
            raise LabError(f"{endpoint.place}: {_last(err)}")
        return out.decode()

    @asynccontextmanager
    async def _standing(self, name: str, netns: str, *words: str) -> AsyncIterator[_Standing]:
        async with self._process(name, netns, *PROBE, *words) as process:
            yield _Standing(Endpoint("", name, netns).place, process)

    @asynccontextmanager
    async def _process(self, name: str, netns: str, *argv: str) -> AsyncIterator[asyncio.subprocess.Process]:
        self.lab.pid(name)  # says what is wrong if the node is not there
        first = self.lab.home.running(name)
        if not first:
            raise NotFound(f"lab {self.lab.name}: node {name} has just ended")
        inside = ("nsenter", f"--net=/run/netns/{netns}", "--") if netns else ()
        pipe = asyncio.subprocess.PIPE
        starting = asyncio.create_task(
            asyncio.create_subprocess_exec(
                *node.enter(first, [*inside, *argv]),
                env=node.environment({}),
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                start_new_session=True,  # the terminal's Ctrl-C is for us alone
            )
        )
        try:
            # Were the start itself cancelled, asyncio would wait for its end forever.
            yield await asyncio.shield(starting)
        finally:
            await _end(await starting)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


class _Standing:
    """A probe that runs until its input ends."""

    def __init__(self, place: str, process: asyncio.subprocess.Process) -> None:
        self.place, self.process = place, process

    async def hears(self) -> Any:
        """Return its first line.

        Raises:
            LabError: it ended instead.
        """
        assert self.process.stdout
        assert self.process.stderr
        if line := await self.process.stdout.readline():
            return json.loads(line)
        raise LabError(f"{self.place}: {_last(await self.process.stderr.read())}")

    async def rest(self) -> list[Any]:
        """End it, and return what it said since."""
        out, _ = await self.process.communicate(b"")
        return [json.loads(line) for line in out.splitlines()]


async def together(*each: Coroutine[Any, Any, T]) -> list[T]:
    """Run them at the same time; a failure ends the others, and is raised once they have ended."""
    tasks = [asyncio.create_task(one) for one in each]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


PROBE = (sys.executable, "-I", "-S", str(probe.__file__))


async def _works(watcher: _Standing, netns: str) -> None:
    """Return once the watcher is at work; if an endpoint has no such namespace, its flows say so."""
    try:
        await watcher.hears()
    except LabError:
        if not netns:
            raise


def _by_port(flows: Iterable[Flow]) -> Collection[list[Flow]]:
    groups: defaultdict[object, list[Flow]] = defaultdict(list)
    for flow in flows:
        groups[flow.target, flow.protocol, flow.port].append(flow)
    return groups.values()


def _bound(source: Endpoint, target: str) -> tuple[str, ...]:
    """Return the address that the file says the source sends from, if it is of the target's family."""
    given = source.address
    return (str(given),) if given and given.version == ip_address(target).version else ()


def _last(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("nsenter: ") if lines else "ended without a word"
