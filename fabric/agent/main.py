"""Run this node's agent: start its tasks, and pass what each hears to the one loop that acts.

    etcd ──follow──▶ Snapshot ┐
    speaker ─events─▶ Ribs    ├─▶ State ─▶ pass loop ─▶ kernel, then the speaker's Wanted
    kernel ──monitor─▶ Host   ┘      ▲                    └─▶ live connections that policy denies now
    socket ──attach──────────────────┘ (its own scoped pass)

All tasks live in one group: the end of any is the end of the agent, which its supervisor restarts. A
restart costs nothing: the FIB and the adj-RIB-out stand still meanwhile, and nothing is removed before
datastore and sessions have been heard again.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys

import structlog

from fabric import config as configuration
from fabric import logs
from fabric.agent import (
    datastore,
    drop_log,
    failover,
    live,
    node_status,
    offload,
    published,
    server,
    speaker,
    upkeep,
)
from fabric.agent.datastore import Keeper
from fabric.agent.filters import Filters
from fabric.agent.host import read_host
from fabric.agent.loop import pass_loop
from fabric.agent.passes import Passes
from fabric.agent.rules import Rules
from fabric.agent.sessions import Sessions
from fabric.agent.speaker import SpeakerLink
from fabric.agent.state import State
from fabric.agent.workloads import Workloads
from fabric.config import CACHE
from fabric.errors import ConfigError, FabricError
from fabric.kernel import monitor
from fabric.kernel.conntrack import NetlinkConntrack
from fabric.kernel.ipsets import NetlinkIPSets
from fabric.kernel.links import NetlinkLinks
from fabric.kernel.probe import missing_tunnels, missing_unasked
from fabric.kernel.routes import NetlinkFib
from fabric.kernel.tunnels import NetlinkTunnels
from fabric.store import cache
from fabric.store.etcd import connect

log = structlog.get_logger()


async def run(config: configuration.Config) -> None:
    """Run until cancelled or until a task fails."""
    if not config.node:
        raise ConfigError(
            f"{configuration.CONFIG}: names no node; nothing was started; run `fabricctl node join`"
        )
    with NetlinkFib() as fib, NetlinkIPSets() as sets, NetlinkConntrack() as conntrack:
        tunnels = NetlinkTunnels()
        # First: the MTU of a link is given when it is made, and an attach may come before the first pass.
        state = State(config.node, bgp=config.bgp, host=await read_host(fib))
        # Those that nobody wants any more have their rules until they go.
        state.tunnels = {held.tunnel.name: held.tunnel for held in await tunnels.owned() if held.sound}
        state.no_offload = frozenset(held.encap for held in state.tunnels.values() if not held.offload)
        passes = Passes(NetlinkLinks(), fib, Rules(sets, conntrack=conntrack), tunnels)
        filters = Filters(state, passes)
        link = SpeakerLink()
        drift = asyncio.Event()
        kv = connect(config)
        keeper = Keeper(state, cache.own(CACHE, config))
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(keeper.run())
                tasks.create_task(datastore.follow(state, kv, keeper))
                tasks.create_task(upkeep.keep_up(state, kv, missing_tunnels, missing_unasked))
                tasks.create_task(published.publish(state, kv))
                tasks.create_task(node_status.keep(state, kv))
                tasks.create_task(speaker.follow(state, link))
                tasks.create_task(_follow_kernel(state, link, drift))
                tasks.create_task(filters.follow())
                tasks.create_task(live.judge(state, conntrack))
                tasks.create_task(drop_log.follow(state))
                tasks.create_task(offload.follow(state))
                tasks.create_task(pass_loop(state, passes, fib, filters, link, drift))
                workloads, sessions = Workloads(state, kv, passes), Sessions(state, kv, link)
                tasks.create_task(server.serve(state, workloads, sessions, passes))
        finally:
            await kv.close()


async def _follow_kernel(state: State, link: SpeakerLink, drift: asyncio.Event) -> None:
    """Have the kernel read back after each change of it; what a lost carrier takes away does not wait for that."""
    with monitor.Monitor() as changes:
        async for changed in changes.changes():
            drift.set()
            state.carriers.update(changed.carriers)
            before, host = state.host, failover.after(state.host, changed.carriers)
            if host is not before:
                state.hurried |= failover.lost(before, host)
                state.update(host=host)
                await speaker.fail_over(state, link)
            state.dirty.set()


def main() -> None:
    """Entry of `python -m fabric.agent`: JSON lines on stderr, exit status 1 with a reason, 0 on SIGTERM."""
    logs.configure()
    # A look for garbage at everything there is holds up all threads, with a full table for 0.15 s, and finds nothing:
    # values have no cycles. What has some is young when it goes.
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
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
