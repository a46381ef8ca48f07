"""Run passes: when an input changed, when what was refused is due again, and to find drift.

One loop, so that whole passes never overlap; an attach runs its own scoped pass between them.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import structlog

from bgp import sessions
from fabric import logs
from fabric.agent import failover, ribs, secrets, speaker
from fabric.agent.filters import Filters
from fabric.agent.host import USE_PMTU, read_host, router
from fabric.agent.passes import GapLog, Outcome, Passes, log_done
from fabric.agent.routing import resources
from fabric.agent.settings import Settings, settings
from fabric.agent.speaker import SpeakerLink
from fabric.agent.state import State
from fabric.config import SYSCTLS
from fabric.errors import DataplaneError
from fabric.kernel import sysctls
from fabric.kernel.routes import NetlinkFib
from fabric.plan.encap import VXLAN
from fabric.plan.tables import VERSIONS, Version

log = structlog.get_logger()

BATCH = 0.01  # seconds that events may gather at most, after a pass that took as long; the first one waits for none
RETRY = 1.0  # seconds before refused operations are planned again, doubling up to LONGEST_RETRY
LONGEST_RETRY = 90.0
SECRETS = 5.0  # seconds before secrets that are not there are looked for again
REST = 5.0  # a read-back that an event asks for waits as many times as long as the last one took
LONGEST_REST = 0.5  # seconds, where others changed our rules: that is open until it is put right


@dataclass
class _Reading:
    """When the kernel is read again: each time its period is over, sooner when asked.

    A large table takes long to read, and a host that changes all the time must not spend its life on it;
    so what is asked for waits until `rest` is over.
    """

    ended: float = -math.inf
    rest: float = 0.0
    jitter: float = 1.0
    asked: bool = False

    def due(self, every: float) -> float:
        """Return the time of the next one, where it happens `every` so many seconds; 0: only when asked."""
        period = self.ended + (every * self.jitter if every or self.ended == -math.inf else math.inf)
        return min(period, self.rest) if self.asked else period

    def taken(self, started: float, ended: float) -> None:
        self.ended, self.rest, self.asked = ended, ended + REST * (ended - started), False
        self.jitter = random.uniform(0.9, 1.1)  # noqa: S311  spreads load, hides nothing


async def pass_loop(
    state: State,
    passes: Passes,
    fib: NetlinkFib,
    filters: Filters,
    link: SpeakerLink,
    drift: asyncio.Event,
) -> None:
    """Run a whole pass whenever an input changed, what was refused is due again, or time for a read-back."""
    loop = asyncio.get_running_loop()
    reading, checking, retry, asked = _Reading(), _Reading(), RETRY, Settings()
    forwards: Mapping[str, str] = {}
    rested = healed = -math.inf
    gap_log = GapLog()
    while True:
        due = min(reading.due(asked.read_back), checking.due(asked.read_back))
        patience = _patience(state, due - loop.time(), retry, passes.lingers_until)
        await _wait(state.dirty, min(patience, healed - loop.time()) if state.edited else patience)
        if (rest := rested - loop.time()) > 0:
            await asyncio.sleep(rest)
        state.dirty.clear()
        asked, before = settings(state.snapshot, state.node), asked
        if asked.log_severity != before.log_severity:
            logs.set_severity(asked.log_severity)
        if drift.is_set() or state.outcome.refused or state.fault:
            reading.asked = True
        started = loop.time()
        # What was lost with a link is withdrawn at once; a full table takes long to read back.
        read_back = reading.due(asked.read_back) <= started and not state.hurried
        hurried, state.hurried = state.hurried, False
        # Nothing but the period and who is heard to change rules says that they have changed.
        check = checking.due(asked.read_back) <= started and not hurried
        edited = frozenset(VERSIONS if check else state.edited if started >= healed and not hurried else ())
        state.edited -= edited
        try:
            if read_back:
                drift.clear()
                state.carriers.clear()
                host = await read_host(fib)
                state.host = failover.after(host, state.carriers)  # heard while it was read
                state.signatures.look(time.time())
                await speaker.fail_over(state, link)
            outcome = await _pass(state, passes, filters, link, read_back, edited, hurried)
            gap_log.tell(outcome.gaps, loop.time())
            # Only behind rules in force: they say what this router forwards.
            wanted = _sysctls(state) if passes.rules.stands else {}
            if wanted and (read_back or wanted != forwards):
                await sysctls.set_recorded(wanted, SYSCTLS)
            forwards = wanted
            await filters.tidy()
        except DataplaneError as err:
            outcome = _failed(state, err)
        ended = loop.time()
        rested = ended + min(BATCH, ended - started)
        if read_back:
            reading.taken(started, ended)
        if check:
            checking.taken(started, ended)
        if edited and state.fault:
            checking.asked = True  # the pass may have ended before they were read
        if edited:
            healed = ended + min(REST * (ended - started), LONGEST_REST)
        retry = min(retry * 2, LONGEST_RETRY) if outcome.refused or state.fault else RETRY


def _sysctls(state: State) -> Mapping[str, str]:
    """Return the sysctls that tunnels need, and that make this host a router once it is known that it may be one."""
    wanted = USE_PMTU if VXLAN.device in state.desired.tunnels else {}
    # By the snapshot as it is now: it may have come while the pass was under way.
    if not state.snapshot.revision or not settings(state.snapshot, state.node).forwarding:
        return wanted
    addresses = (address for veth in state.desired.links.values() for address in veth.addresses)
    return {**wanted, **router(state.host, ipv6=any(address.version == 6 for address in addresses))}


def _patience(state: State, read_back: float, retry: float, lingers_until: float | None) -> float:
    """Return how long to wait for a change at most, in seconds."""
    if state.fault:
        return retry
    waits = [read_back]
    if _missing_secrets(state):
        waits.append(SECRETS)
    if state.outcome.refused:
        waits.append(retry)
    if lingers_until and (left := lingers_until - asyncio.get_running_loop().time()) > 0:
        waits.append(left)
    if state.ribs.connected and not state.ribs.settled and state.snapshot.revision:
        waits.append(state.ribs.settle_by - asyncio.get_running_loop().time())
    return min(waits)


def _failed(state: State, err: DataplaneError) -> Outcome:
    """What the kernel refused as a whole (a dump, a sysctl) is told once, and tried again."""
    if state.fault != str(err):
        log.warning("pass not completed; retrying", error=str(err))
    state.fault = str(err)
    return Outcome()


async def _pass(
    state: State,
    passes: Passes,
    filters: Filters,
    link: SpeakerLink,
    read_back: bool,
    edited: AbstractSet[Version],
    hurried: bool,
) -> Outcome:
    """Kernel first, then announcements: what is announced can be reached."""
    if not state.snapshot.revision:
        state.fault = ""
        return Outcome()  # nothing has been read yet, so nothing is known to be wanted
    # By the snapshot as it is now: it may have come while the kernel was read.
    await filters.settle(settings(state.snapshot, state.node).backend)
    if not hurried:
        await passes.give_way()  # what is worked out in a thread takes the interpreter from an attach
    await read_secrets(state, again=read_back or bool(_missing_secrets(state)))
    await state.route()
    await passes.look()
    state.raised(passes.held_tunnels)
    await state.police(tidy=len(edited) == len(VERSIONS), localnet=passes.localnet)
    problems = state.policy_problems
    for name in sorted(problems.keys() - state.policy_told.keys()):
        log.error("policy", object=name, problem=problems[name])
    state.policy_told = problems
    outcome = await passes.run(state.compute, read_back=read_back, edited=edited, hurried=hurried)
    log_done(outcome)
    # Once each: what policy holds back has the same reason for all.
    for why in dict.fromkeys(str(e) for op, e in outcome.refused.items() if op not in state.outcome.refused):
        log.warning("kernel refused; retrying", error=why)
    if outcome.policy_changed or not state.passes:
        state.policy_changed.set()
    await speaker.hand_down(state.desired, link)
    state.raised(passes.held_tunnels)
    state.passed(outcome)
    settled = ribs.settle(state.ribs, state.desired.wanted, asyncio.get_running_loop().time())
    if settled is not state.ribs:
        state.update(ribs=settled)  # what was held back until now may be removed by the next pass
    state.fault = ""
    return outcome


async def read_secrets(state: State, *, again: bool) -> None:
    """Return when the secrets are known that the snapshot names now: a session without its own would be taken down."""
    while again or _secret_refs(state) != state.secret_refs:
        refs, again = _secret_refs(state), False
        state.secrets, state.secret_refs = await asyncio.to_thread(secrets.read, refs), refs


def _missing_secrets(state: State) -> frozenset[tuple[str, str]]:
    return state.secret_refs - state.secrets.keys()


def _secret_refs(state: State) -> frozenset[tuple[str, str]]:
    return sessions.secret_refs(resources(state.node, state.snapshot))


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(max(seconds, 0)):
            await event.wait()
    except TimeoutError:
        return
