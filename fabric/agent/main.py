"""Run this node's agent: start its tasks, and pass what each hears to the one loop that acts.

    etcd ──follow──▶ Snapshot ┐
    speaker ─events─▶ Ribs    ├─▶ State ─▶ pass loop ─▶ kernel, then the speaker's Wanted
    kernel ──monitor─▶ Host   ┘      ▲
    socket ──attach──────────────────┘ (its own scoped pass)

All tasks live in one group: the end of any is the end of the agent, which its supervisor restarts. A
restart costs nothing: the FIB and the adj-RIB-out stand still meanwhile, and nothing is removed before
datastore and sessions have been heard again.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from contextlib import aclosing
from dataclasses import dataclass, replace

import structlog

from bgp.speaker.client import SpeakerClient
from bgp.speaker.seam import SessionChanged, Speaker, Wanted
from bgp.speaker.seam import Snapshot as SpeakerSnapshot
from fabric import config as configuration
from fabric import logs
from fabric.agent import ribs, server
from fabric.agent.host import read_host
from fabric.agent.passes import Outcome, Passes, describe
from fabric.agent.snapshot import Snapshot, fold
from fabric.agent.state import State
from fabric.agent.workloads import Workloads
from fabric.config import SPEAKER_SOCKET, SYSCTLS
from fabric.errors import ConfigError, DataplaneError, FabricError, SpeakerError
from fabric.kernel import monitor, sysctls
from fabric.kernel.links import NetlinkLinks
from fabric.kernel.routes import NetlinkFib
from fabric.store import sync
from fabric.store.etcd import Etcd
from fabric.store.keys import CALICO
from fabric.store.kv import Changes, KeyValueStore, Listing

log = structlog.get_logger()

BATCH = 0.01  # seconds that events may gather before a pass
READ_BACK = 90.0  # seconds between read-backs, each a tenth more or less
SETTLE = 120.0  # seconds a silent peer may hold deletions; Calico's restart time
RETRY = 1.0  # seconds before refused operations are planned again, doubling up to READ_BACK
REST = 5.0  # a read-back that an event asks for waits as many times as long as the last one took
RECONNECT = 0.2  # seconds between attempts to reach the speaker


async def run(config: configuration.Config) -> None:
    """Run until cancelled or until a task fails."""
    if not config.node:
        raise ConfigError(
            f"{configuration.CONFIG}: names no node; nothing was started; run `fabricctl node join`"
        )
    state = State(config.node)
    kv = Etcd(configuration.required(config).etcd)
    with NetlinkFib() as fib:
        passes = Passes(NetlinkLinks(), fib)
        link = _SpeakerLink()
        drift = asyncio.Event()
        await sysctls.set_recorded({"net.ipv4.ip_forward": "1"}, SYSCTLS)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_follow_store(state, kv))
                tasks.create_task(_follow_speaker(state, link))
                tasks.create_task(_follow_kernel(state, drift))
                tasks.create_task(_pass_loop(state, passes, fib, link, drift))
                tasks.create_task(server.serve(state, Workloads(state, kv, passes), passes))
        finally:
            await kv.close()


async def _follow_store(state: State, kv: KeyValueStore) -> None:
    known_problems: dict[str, str] = {}
    async with aclosing(sync.follow(kv, CALICO)) as events:
        async for event in events:
            match event:
                case Listing(revision, items):
                    snapshot = fold(state.snapshot, Changes(revision, puts=items))
                    state.update(snapshot=_synced(snapshot))
                    log.info("datastore in sync", revision=revision, keys=len(items))
                case Changes():
                    if state.snapshot.lost:
                        log.info("datastore in sync again", revision=event.revision)
                    state.update(snapshot=_synced(fold(state.snapshot, event)))
                case sync.Lost(reason):
                    log.warning("datastore lost; forwarding goes on as it is", error=reason)
                    state.update(snapshot=replace(state.snapshot, lost=reason, in_sync=False))
            for key in state.snapshot.problems.keys() - known_problems.keys():
                log.error(
                    "object cannot be read; treated as absent", key=key, error=state.snapshot.problems[key]
                )
            known_problems = dict(state.snapshot.problems)


def _synced(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, in_sync=True, lost="")


@dataclass
class _SpeakerLink:
    """The connection to the speaker while there is one, and what was handed down on it."""

    speaker: Speaker | None = None
    told: Wanted | None = None


async def _follow_speaker(state: State, link: _SpeakerLink) -> None:
    """Keep one connection to the speaker, and fold what it says."""
    while True:
        try:
            speaker = await SpeakerClient.connect(SPEAKER_SOCKET)
        except SpeakerError:
            await asyncio.sleep(RECONNECT * _jitter())
            continue
        try:
            await _listen(state, link, speaker)
        except SpeakerError as err:
            log.warning("speaker lost; routes stand as they are", error=str(err))
        finally:
            link.speaker = link.told = None
            await speaker.close()
        state.update(ribs=ribs.lost(state.ribs))


async def _listen(state: State, link: _SpeakerLink, speaker: Speaker) -> None:
    async for event in speaker.events():
        heard = ribs.fold(state.ribs, event, asyncio.get_running_loop().time(), SETTLE)
        match event:
            case SpeakerSnapshot(wanted=wanted):
                link.speaker, link.told = speaker, wanted
                log.info("speaker connected", sessions=len(event.sessions))
            case SessionChanged(peer, now):
                before = state.ribs.sessions.get(peer)
                if before is None or (before.state, before.reason) != (now.state, now.reason):
                    log.info("session changed", peer=str(peer), state=str(now.state), reason=now.reason)
        state.update(ribs=heard)


async def _follow_kernel(state: State, drift: asyncio.Event) -> None:
    with monitor.Monitor() as changes:
        async for _ in changes.changes():
            drift.set()
            state.dirty.set()


@dataclass
class _Reading:
    """When the kernel is read again: each READ_BACK or so, sooner when asked.

    A large table takes long to read, and a host that changes all the time must not spend its life on it;
    so what is asked for waits until `rest` is over.
    """

    due: float = 0.0
    rest: float = 0.0

    def ask(self) -> None:
        self.due = min(self.due, self.rest)

    def taken(self, started: float, ended: float) -> None:
        self.rest = ended + REST * (ended - started)
        self.due = ended + READ_BACK * _jitter(0.1)


async def _pass_loop(
    state: State, passes: Passes, fib: NetlinkFib, link: _SpeakerLink, drift: asyncio.Event
) -> None:
    """Run a whole pass whenever an input changed, what was refused is due again, or time for a read-back."""
    loop = asyncio.get_running_loop()
    reading, retry = _Reading(), RETRY
    while True:
        await _wait(state.dirty, _patience(state, reading.due - loop.time(), retry))
        await asyncio.sleep(BATCH)
        state.dirty.clear()
        if drift.is_set() or state.outcome.refused or state.fault:
            reading.ask()
        started = loop.time()
        read_back = reading.due <= started
        try:
            if read_back:
                drift.clear()
                state.host = await read_host(fib)
            outcome = await _pass(state, passes, link, read_back)
        except DataplaneError as err:
            outcome = _failed(state, err)
        if read_back:
            reading.taken(started, loop.time())
        retry = min(retry * 2, READ_BACK) if outcome.refused or state.fault else RETRY


def _patience(state: State, read_back: float, retry: float) -> float:
    """Return how long to wait for a change at most, in seconds."""
    if state.fault:
        return retry
    waits = [read_back]
    if state.outcome.refused:
        waits.append(retry)
    if state.ribs.connected and not state.ribs.settled and state.snapshot.revision:
        waits.append(state.ribs.settle_by - asyncio.get_running_loop().time())
    return min(waits)


def _failed(state: State, err: DataplaneError) -> Outcome:
    """What the kernel refused as a whole (a dump, a sysctl) is told once, and tried again."""
    if state.fault != str(err):
        log.warning("pass not completed; retrying", error=str(err))
    state.fault = str(err)
    return Outcome()


async def _pass(state: State, passes: Passes, link: _SpeakerLink, read_back: bool) -> Outcome:
    """Kernel first, then announcements: what is announced can be reached."""
    if not state.snapshot.revision:
        return Outcome()  # nothing has been read yet, so nothing is known to be wanted
    in_sync = state.snapshot.in_sync and state.ribs.settled
    outcome = await passes.run(state.compute, in_sync=in_sync, read_back=read_back)
    _log_changes(outcome, state.outcome)
    await _hand_down(link, state.desired.wanted)
    state.passed(outcome)
    settled = ribs.settle(state.ribs, state.desired.wanted, asyncio.get_running_loop().time())
    if settled is not state.ribs:
        state.update(ribs=settled)  # what was held back until now may be removed by the next pass
    if any(address.version == 6 for veth in state.desired.links.values() for address in veth.addresses):
        # Not before it is needed: a host that forwards IPv6 stops heeding router advertisements.
        await sysctls.set_recorded({"net.ipv6.conf.all.forwarding": "1"}, SYSCTLS)
    state.fault = ""
    return outcome


async def _hand_down(link: _SpeakerLink, wanted: Wanted) -> None:
    if link.speaker is None or link.told == wanted:
        return
    try:
        await link.speaker.want(wanted)
    except SpeakerError as err:
        log.warning("speaker did not take what is wanted; it will after it is back", error=str(err))
        return
    link.told = wanted
    log.info("speaker told", sessions=len(wanted.sessions), announced=sum(map(len, wanted.announce.values())))


def _log_changes(outcome: Outcome, before: Outcome) -> None:
    for op in outcome.done:
        log.info("kernel changed", **describe(op))
    for op in outcome.refused.keys() - before.refused.keys():
        log.warning("kernel refused; retrying", error=str(outcome.refused[op]))


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(max(seconds, 0)):
            await event.wait()
    except TimeoutError:
        return


def _jitter(share: float = 0.5) -> float:
    return random.uniform(1 - share, 1 + share)  # noqa: S311  spreads load, hides nothing


def main() -> None:
    """Entry of `python -m fabric.agent`: JSON lines on stderr, exit status 1 with a reason, 0 on SIGTERM."""
    logs.configure()
    try:
        asyncio.run(_until_signal(configuration.load()))
    except FabricError as err:
        log.error("agent cannot run", error=str(err))
        sys.exit(1)


async def _until_signal(config: configuration.Config) -> None:
    """SIGTERM leaves the kernel and the speaker as they are: forwarding does not need the agent."""
    main_task = asyncio.create_task(run(config))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, main_task.cancel)
    try:
        await main_task
    except asyncio.CancelledError:
        log.info("agent stopped")
