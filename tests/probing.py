"""Drives probers, one a network namespace: real packets from the one to the other, all of them at the same time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from policy.form import ICMP, ICMPV6, TCP, UDP, Packet

PROGRAM = [sys.executable, "-I", "-S", str(Path(__file__).with_name("prober.py"))]
ECHOES = ((ICMP, 8), (ICMPV6, 128))  # the types that are answered


class Process(Protocol):
    """What is needed of a process, be it the host's or a lab node's."""

    @property
    def stdin(self) -> IO[str] | None: ...

    @property
    def stdout(self) -> IO[str] | None: ...

    def kill(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int: ...


class Prober:
    """One process, which lives until `close`."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    def here(cls) -> Prober:
        """Start one in the network namespace of the calling thread."""
        pipe = subprocess.PIPE
        return cls(subprocess.Popen(PROGRAM, stdin=pipe, stdout=pipe, text=True))

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def order(self, command: Mapping[str, object]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "a prober has ended"
        return json.loads(line)

    def listen(
        self,
        addresses: Iterable[str],
        ports: Mapping[int, Iterable[int]],
        raw: Iterable[tuple[int, int]] = (),
    ) -> None:
        """Answer at these ports of TCP and UDP, and hear these protocols, each by IP version and number."""
        self.order(
            {
                "listen": [*addresses],
                "tcp": [*ports.get(TCP, ())],
                "udp": [*ports.get(UDP, ())],
                "raw": [*raw],
            }
        )
        self.answer()


@dataclass(frozen=True, slots=True)
class Shot:
    """A packet, and the name of the place that it is sent from."""

    place: str
    packet: Packet

    def as_order(self, token: int) -> tuple[object, ...]:
        return (
            token,
            str(self.packet.source),
            str(self.packet.destination),
            self.packet.protocol,
            *self.numbers,
        )

    @property
    def numbers(self) -> tuple[int, int]:
        icmp = self.packet.icmp
        if icmp:
            return icmp.type, icmp.code or 0
        return self.packet.source_port, self.packet.destination_port

    @property
    def is_answered(self) -> bool:
        """Whether one that gets there is answered."""
        icmp = self.packet.icmp
        return self.packet.protocol in {TCP, UDP} or bool(
            icmp and (self.packet.protocol, icmp.type) in ECHOES
        )


def answered(places: Mapping[str, Prober], shots: Sequence[Shot], wait: float) -> list[bool]:
    """Send all at once, and return for each whether it was answered within `wait` seconds."""
    by_place: dict[str, list[tuple[object, ...]]] = defaultdict(list)
    for token, shot in enumerate(shots):
        by_place[shot.place].append(shot.as_order(token))
    for place, orders in by_place.items():
        places[place].order({"send": orders, "wait": wait})
    came = {token for place in by_place for token in places[place].answer()}
    return [token in came for token in range(len(shots))]


def heard(places: Mapping[str, Prober], shots: Sequence[Shot]) -> list[bool]:
    """Return for each of those that were just sent whether any place has heard it; ask once they have arrived.

    TCP is told by its ports, so no two of the shots may have the same ones with the same source.
    """
    for prober in places.values():
        prober.order({"heard": True})
    found = {tuple(each) for prober in places.values() for each in prober.answer()}
    return [
        (
            str(shot.packet.source),
            shot.packet.protocol,
            *shot.numbers,
            0 if shot.packet.protocol == TCP else token,
        )
        in found
        for token, shot in enumerate(shots)
    ]
