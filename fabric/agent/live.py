"""Cut the live connections that policy denies by now, and no others: after each pass that changed it, and at the start.

Which ones is decided by `policy.cut`. Rules let through what is established, so these carry a mark that is asked for
before that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from fabric.agent.drop_log import who
from fabric.agent.state import State
from fabric.agent.translation import policed
from fabric.errors import DataplaneError
from fabric.kernel.threads import in_thread
from policy import cut, words
from policy.flows import Conntrack, Flow
from policy.form import Address, Origin
from policy.marks import CUT

log = structlog.get_logger()

GATHER = 0.05  # seconds that changes may gather; an attach is answered meanwhile
REST = 2.0  # a look waits as many times as long as the last one took, but
LONGEST_REST = 0.5  # seconds at most: what is denied is cut within one
RETRY = 1.0  # seconds before one that the kernel refused is tried again, doubling up to LONGEST_RETRY
LONGEST_RETRY = 10.0
NAMED = 10  # of the connections that were cut, in one line of the log


async def judge(state: State, conntrack: Conntrack, *, first_retry: float = RETRY) -> None:
    """Judge all connections whenever policy changed, for ever; what the kernel refuses is told once."""
    loop = asyncio.get_running_loop()
    retry, told = first_retry, ""
    while True:
        await state.policy_changed.wait()
        await asyncio.sleep(GATHER)
        state.policy_changed.clear()
        started = loop.time()
        try:
            await judge_once(state, conntrack)
            retry, told = first_retry, ""
        except DataplaneError as err:
            # Without the entry: which one was refused is another each time.
            if (refused := f"{err.code} {err.hint}") != told:
                log.warning("live connections not judged by the new policy yet; retrying", error=str(err))
            told = refused
            state.policy_changed.set()
            await asyncio.sleep(retry)
            retry = min(2 * retry, LONGEST_RETRY)
        await asyncio.sleep(min(REST * (loop.time() - started), LONGEST_REST))


async def judge_once(state: State, conntrack: Conntrack) -> None:
    """Mark what is denied now, and take the mark from what is no more."""
    if not (policing := state.policing):
        return
    site = policing.sites[4]  # the links in it have the addresses of both families
    flows = await conntrack.flows(cut.local(policing.world, site), CUT)
    change = await in_thread(lambda: cut.cut(policing.world, site, policed(policing.translated, flows)))
    await conntrack.set_mark(change.mark, CUT, CUT)
    await conntrack.set_mark(change.clear, 0, CUT)
    state.judged(len(change.mark))
    if change.mark or change.clear:
        some = zip(change.mark[:NAMED], change.by, strict=False)
        which = "; ".join(told(flow, by, partial(who, state)) for flow, by in some)
        named = {"which": which} if which else {}
        log.info("live connections", cut=len(change.mark), allowed_again=len(change.clear), **named)


def told(flow: Flow, by: Origin | None, who: Callable[[Address], str]) -> str:
    """Return the connection in words, and what denies it; `who` says who has an address."""
    source, reached = flow.original.source, flow.reply.source
    asks = words.of_what(flow.reply.protocol, flow.reply.source_port, flow.original.icmp)
    why = words.of_origin(by) if by else "policy"
    return f"{who(source)} ({source}) -> {who(reached)} ({reached}) {asks}: denied by {why}"
