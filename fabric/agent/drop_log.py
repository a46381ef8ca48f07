"""Name denied packets: one line each of those that a rule hands over, with both ends and the rule; so many a second.

Rules hand over a few packets a second each, where a policy, a namespace or this node asks for it (`drop-log: on`), and
what a Log rule matches. Nothing depends on it: counters say how many there were.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, TypeAlias

import structlog

from fabric.agent.state import State
from fabric.errors import DataplaneError
from fabric.kernel.nflog import Logged, NFLog
from fabric.model.workloadendpoint import WorkloadEndpoint
from policy import words
from policy.form import Address, Endpoint, Origin

Fields: TypeAlias = dict[str, str | int]

log = structlog.get_logger()

A_SECOND: Final = 50  # lines
AGAIN: Final = 10.0  # seconds before packets are asked for again, where somebody else has them


def event(logged: Logged, origin: Origin) -> str:
    """Return what happened to the packet."""
    if logged.prefix.startswith("fab-log:"):
        return "packet logged"
    return "packet would be denied" if origin.staged else "packet denied"


def told(logged: Logged, origin: Origin, who: Callable[[Address], str], node: str) -> Fields:
    """Return what is said of the packet; `who` says who has an address."""
    packet = logged.packet
    fields: Fields = {"node": node, "direction": origin.direction.lower()}
    for end, address in (("source", packet.source), ("destination", packet.destination)):
        fields |= {end: str(address), f"{end}_endpoint": who(address)}
    fields["protocol"] = words.protocol(packet.protocol)
    if packet.icmp is not None:
        fields |= {"icmp_type": packet.icmp.type, "icmp_code": packet.icmp.code or 0}
    elif packet.source_port or packet.destination_port:
        fields |= {"source_port": packet.source_port, "destination_port": packet.destination_port}
    if origin.what in {"policy", "broken"}:
        fields["policy"] = origin.name
    if origin.rule is not None:
        fields["rule"] = origin.rule
    links = {"in_link": logged.in_link, "out_link": logged.out_link}
    return {**fields, "by": words.of_origin(origin), **{name: link for name, link in links.items() if link}}


def who(state: State, address: Address) -> str:
    """Return who has `address`: a workload by namespace and name, a host endpoint, this node, or one outside."""
    if not (policing := state.policing):
        return ""
    if endpoint := policing.world.at(address):
        return called(state, endpoint)
    own = policing.sites[4].links.values()
    return state.node if any(address in held for held in own) else "outside"


def called(state: State, endpoint: Endpoint) -> str:
    """Return how people call it: `shop/web`, or a host endpoint by its name."""
    kind, namespace, name = endpoint.key
    workload = state.snapshot.get(WorkloadEndpoint, name, namespace)
    name = workload.spec.workload or workload.spec.pod or name if workload else name
    return f"{namespace}/{name}" if kind == "WorkloadEndpoint" else f"host endpoint {name}"


class Quota:
    """So many lines a second; those beyond are counted."""

    def __init__(self, a_second: int) -> None:
        self._a_second = a_second
        self._began, self._said = 0.0, 0
        self.left_out = 0

    def take(self, now: float) -> bool:
        """Whether a line may be written at `now`, in seconds of any clock that only goes forward."""
        if now - self._began >= 1:
            self._began, self._said = now, 0
        if self._said >= self._a_second:
            self.left_out += 1
            return False
        self._said += 1
        return True


def sender(logged: Logged, local: Iterable[Endpoint]) -> Endpoint | None:
    """Return the workload whose link the packet came by, whatever address it has."""
    return next((one for one in local if one.interface == logged.in_link and not one.is_host), None)


async def follow(state: State, *, again: float = AGAIN) -> None:
    """Name denied packets, for ever; while somebody else listens to them, policy is in force all the same."""
    told = ""
    while True:
        try:
            with NFLog() as nflog:
                await run(state, nflog)
        except DataplaneError as err:
            if str(err) != told:
                log.warning("denied packets are not named; rules count them all the same", error=str(err))
            told = str(err)
        await asyncio.sleep(again)


async def run(state: State, nflog: NFLog) -> None:
    """Name what `nflog` hears, for ever."""
    quota, lost = Quota(A_SECOND), 0
    clock = asyncio.get_running_loop().time
    async for logged in nflog.packets():
        policing = state.policing
        if policing is None or (origin := policing.composed.logged.get(logged.prefix)) is None:
            continue  # of rules that are no more, or of somebody else's
        spoofer = sender(logged, policing.world.local(state.node)) if origin.what == "spoofed" else None
        # One rule drops the spoofed packets of all, whoever asked for it.
        if (spoofer and not spoofer.drop_log) or not quota.take(clock()):
            continue
        if unheard := quota.left_out + nflog.lost - lost:
            log.info("packets not named", count=unheard)
            quota.left_out, lost = 0, nflog.lost
        fields = told(logged, origin, partial(who, state), state.node)
        if spoofer:
            fields |= {"source_endpoint": called(state, spoofer)}
        log.info(event(logged, origin), **fields)
