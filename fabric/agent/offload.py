"""Find out whether TCP survives each VXLAN with checksums left to the link, and have the kernel make them where not.

    a far end appears ──▶ some TCP there and back; where that is lost, an ICMP echo
    TCP lost by most, or by one for long, though the echo is answered ──▶ State.no_offload: the next pass changes the
                                                                          device, and all are asked again
    it helps nobody ──▶ back: something else takes TCP away

Some links make checksums of what a tunnel carries wrong: TCP then dies, and pings, whose checksums the kernel makes
itself, are answered (Calico's issues 3145, 4865). One node's bad link must not slow all others down, so that a node
that loses TCP to few gives these time to help themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, TypeAlias

import structlog

from fabric.agent.state import State
from fabric.errors import DataplaneError
from fabric.kernel import offload
from fabric.kernel.offload import Answer
from fabric.plan.encap import Address
from fabric.plan.tunnels import Tunnel

log = structlog.get_logger()

AGAIN: Final = 3600.0  # seconds after which an end that answered is asked again
SOON: Final = 2.0  # the same for one that did not; twice as long each time, up to
LATE: Final = 60.0
SURE: Final = 2  # times that TCP must be lost to an end before that counts
PATIENT: Final = 4  # the same where it arrives at most ends
DOUBLINGS: Final = 10
AT_ONCE: Final = 32

Ask: TypeAlias = Callable[[Tunnel, Address], Awaitable[Answer]]
_Devices: TypeAlias = tuple[Mapping[str, Tunnel], AbstractSet[str]]  # by name, and which of them are wanted


@dataclass(frozen=True, slots=True)
class Seen:
    """What one far end last answered, how many times in a row it has been so, and when it is to be asked again."""

    answer: Answer
    times: int
    due: float


class Trial:
    """What is known of one device's checksums. Pure: times are seconds of any clock that only goes forward.

    `offload` says whether they are left to the link; `accused` are the ends for which they are not any more.
    """

    def __init__(self, *, offload: bool) -> None:
        self.offload = offload
        self.accused: frozenset[Address] = frozenset()
        self._acquitted: frozenset[Address] = frozenset()  # for which it made no difference
        self._seen: dict[Address, Seen] = {}
        self._ends: frozenset[Address] = frozenset()

    def due(self, ends: Iterable[Address], now: float) -> list[Address]:
        """Return those of `ends` that are to be asked now, and forget all others."""
        ends = sorted(ends, key=int)
        self._seen = {end: self._seen[end] for end in ends if end in self._seen}
        self._ends = frozenset(ends)
        self._acquitted &= self._ends
        return [end for end in ends if end not in self._seen or self._seen[end].due <= now]

    def next(self) -> float | None:
        """Return when the next end is to be asked, None where there is none."""
        return min((seen.due for seen in self._seen.values()), default=None)

    def note(self, end: Address, answer: Answer, now: float) -> None:
        """Note what an end answered."""
        before = self._seen.get(end)
        times = before.times + 1 if before and before.answer is answer else 1
        wait = AGAIN if answer is Answer.WHOLE else min(SOON * 2 ** min(times - 1, DOUBLINGS), LATE)
        self._seen[end] = Seen(answer, times, now + wait)

    def decide(self) -> bool:
        """Take what was noted into account, and return whether that changes `offload`; then all are asked anew."""
        good = self._that_are(Answer.WHOLE)
        lost = self._that_are(Answer.ECHO_ONLY) - self._acquitted
        bad, lasting = (frozenset(end for end in lost if self._seen[end].times >= n) for n in (SURE, PATIENT))
        if self.offload:
            self.accused = bad if len(bad) > len(good) else lasting
            if not self.accused:
                return False
        else:
            left = self.accused & self._ends
            if not self.accused or left & good or not left <= lasting:
                return False
            # It helped nobody, or whom it was for has gone.
            self._acquitted |= left
            self.accused = frozenset()
        self.offload = not self.offload
        self._seen = {}
        return True

    def _that_are(self, answer: Answer) -> frozenset[Address]:
        return frozenset(end for end, seen in self._seen.items() if seen.answer is answer)

    def words(self) -> str:
        """Return what is known, in words."""
        good, lost, silent = (len(self._that_are(answer)) for answer in Answer)
        if not self._seen:
            return "no far end was asked yet"
        said = [f"TCP arrives at {good} of {len(self._seen)} far ends"]
        said += [f"is lost at {lost} that answer pings"] if lost else []
        said += [f"{silent} do not answer"] if silent else []
        return ", ".join(said)


async def follow(state: State, ask: Ask = offload.ask) -> None:
    """Answer other nodes for as long as this node has VXLAN devices, and ask them while it wants these."""
    listening = _Listening()
    trials: dict[str, Trial] = {}
    try:
        while True:
            devices, wanted = _vxlans(state)
            await listening.on(devices)
            # What comes by a device that only lingers, answers too, keeps it.
            trials = {name: trials.get(name) or Trial(offload=devices[name].offload) for name in wanted}
            for name, trial in trials.items():
                await _try(state, devices[name], trial, ask)
            state.asked({name: trial.words() for name, trial in trials.items()})
            await _wait(state, (devices, wanted), trials)
    finally:
        listening.close()


def _vxlans(state: State) -> _Devices:
    devices = {name: tunnel for name, tunnel in state.tunnels.items() if tunnel.encap.kind == "vxlan"}
    return devices, devices.keys() & state.desired.tunnels.keys()


async def _try(state: State, tunnel: Tunnel, trial: Trial, ask: Ask) -> None:
    if tunnel.offload != trial.offload:
        return  # the pass that changes it has not been yet
    now = asyncio.get_running_loop().time
    due, turn = trial.due((far.address for far in tunnel.far), now()), asyncio.Semaphore(AT_ONCE)

    async def one(end: Address) -> None:
        async with turn:
            try:
                answer = await ask(tunnel, end)
            except DataplaneError as err:
                log.warning("checksums through the tunnel", device=tunnel.name, error=str(err))
                answer = Answer.UNKNOWN
            trial.note(end, answer, now())

    async with asyncio.TaskGroup() as tasks:
        for end in due:
            tasks.create_task(one(end))
    if trial.decide():
        change = frozenset({tunnel.encap})
        state.no_offload = state.no_offload - change if trial.offload else state.no_offload | change
        who = "the link" if trial.offload else "the kernel"
        ends = ", ".join(sorted(map(str, trial.accused)))
        log.warning("checksums through the tunnel", device=tunnel.name, by=who, tcp_lost_at=ends)
        state.dirty.set()


async def _wait(state: State, known: _Devices, trials: Mapping[str, Trial]) -> None:
    try:
        async with asyncio.timeout_at(next_question(known[0], trials)):
            await state.until(lambda: _vxlans(state) != known)
    except TimeoutError:
        pass


def next_question(devices: Mapping[str, Tunnel], trials: Mapping[str, Trial]) -> float | None:
    """Return when the next end is to be asked, None where none is before a device is what it is to be."""
    sound = (trial for name, trial in trials.items() if devices[name].offload == trial.offload)
    return min((at for trial in sound if (at := trial.next()) is not None), default=None)


class _Listening:
    """The listeners of the devices there are; one that could not be is tried again with the next change or question."""

    def __init__(self) -> None:
        self._servers: dict[str, tuple[Tunnel, asyncio.Server]] = {}

    async def on(self, devices: Mapping[str, Tunnel]) -> None:
        """Listen on these devices, and on no other."""
        for name in [name for name, (tunnel, _) in self._servers.items() if devices.get(name) != tunnel]:
            self._servers.pop(name)[1].close()
        for name, tunnel in devices.items():
            if name not in self._servers:
                try:
                    self._servers[name] = tunnel, await offload.listen(tunnel)
                except DataplaneError as err:
                    log.warning("checksums through the tunnel", device=name, error=str(err))

    def close(self) -> None:
        for _, server in self._servers.values():
            server.close()
