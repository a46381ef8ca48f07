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

import structlog

from bgp.speaker.client import SpeakerClient
from bgp.speaker.seam import SessionChanged, Speaker
from bgp.speaker.seam import Snapshot as SpeakerSnapshot
from fabric import config as configuration
from fabric import logs
from fabric.agent import datastore, ribs, server, upkeep
from fabric.agent.datastore import Keeper
from fabric.agent.host import read_host
from fabric.agent.loop import SpeakerLink, pass_loop
from fabric.agent.passes import Passes
from fabric.agent.state import State
from fabric.agent.workloads import Workloads
from fabric.config import CACHE, SPEAKER_SOCKET
from fabric.errors import ConfigError, FabricError, SpeakerError
from fabric.kernel import monitor
from fabric.kernel.links import NetlinkLinks
from fabric.kernel.routes import NetlinkFib
from fabric.store import cache
from fabric.store.etcd import connect

log = structlog.get_logger()

SETTLE = 120.0  # seconds a silent peer may hold deletions; Calico's restart time
RECONNECT = 0.2  # seconds between attempts to reach the speaker


async def run(config: configuration.Config) -> None:
    """Run until cancelled or until a task fails."""
    if not config.node:
        raise ConfigError(
            f"{configuration.CONFIG}: names no node; nothing was started; run `fabricctl node join`"
        )
    with NetlinkFib() as fib:
        # First: the MTU of a link is given when it is made, and an attach may come before the first pass.
        state = State(config.node, host=await read_host(fib))
        passes = Passes(NetlinkLinks(), fib)
        link = SpeakerLink()
        drift = asyncio.Event()
        kv = connect(config)
        keeper = Keeper(state, cache.own(CACHE, config))
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(keeper.run())
                tasks.create_task(datastore.follow(state, kv, keeper))
                tasks.create_task(upkeep.keep_up(state, kv))
                tasks.create_task(_follow_speaker(state, link))
                tasks.create_task(_follow_kernel(state, drift))
                tasks.create_task(pass_loop(state, passes, fib, link, drift))
                tasks.create_task(server.serve(state, Workloads(state, kv, passes), passes))
        finally:
            await kv.close()


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
        asyncio.run(_until_signal(configuration.saved()))
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
