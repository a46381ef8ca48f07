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
import signal
import sys
from contextlib import aclosing
from dataclasses import replace

import structlog

from bgp.speaker.client import SpeakerClient
from bgp.speaker.seam import SessionChanged, Speaker
from bgp.speaker.seam import Snapshot as SpeakerSnapshot
from fabric import config as configuration
from fabric import logs
from fabric.agent import ribs, server
from fabric.agent.loop import SpeakerLink, pass_loop
from fabric.agent.passes import Passes
from fabric.agent.snapshot import Snapshot, fold
from fabric.agent.state import State
from fabric.agent.workloads import Workloads
from fabric.config import SPEAKER_SOCKET, SYSCTLS
from fabric.errors import ConfigError, FabricError, SpeakerError
from fabric.kernel import monitor, sysctls
from fabric.kernel.links import NetlinkLinks
from fabric.kernel.routes import NetlinkFib
from fabric.store import sync
from fabric.store.etcd import Etcd
from fabric.store.keys import CALICO
from fabric.store.kv import Changes, KeyValueStore, Listing

log = structlog.get_logger()

SETTLE = 120.0  # seconds a silent peer may hold deletions; Calico's restart time
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
        link = SpeakerLink()
        drift = asyncio.Event()
        await sysctls.set_recorded({"net.ipv4.ip_forward": "1"}, SYSCTLS)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_follow_store(state, kv))
                tasks.create_task(_follow_speaker(state, link))
                tasks.create_task(_follow_kernel(state, drift))
                tasks.create_task(pass_loop(state, passes, fib, link, drift))
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


async def _follow_speaker(state: State, link: SpeakerLink) -> None:
    """Keep one connection to the speaker, and fold what it says."""
    while True:
        try:
            speaker = await SpeakerClient.connect(SPEAKER_SOCKET)
        except SpeakerError:
            await asyncio.sleep(RECONNECT)
            continue
        try:
            await _listen(state, link, speaker)
        except SpeakerError as err:
            log.warning("speaker lost; routes stand as they are", error=str(err))
        finally:
            link.speaker = link.told = None
            await speaker.close()
        state.update(ribs=ribs.lost(state.ribs))


async def _listen(state: State, link: SpeakerLink, speaker: Speaker) -> None:
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
