"""Who is blamed for a configuration ExaBGP refuses, and for how long; the validator is ExaBGP's own."""

import asyncio
import os
import signal
import time
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from bgp.rib import SessionSpec
from bgp.speaker.daemon import Daemon
from bgp.speaker.exabgp import Exabgp
from bgp.speaker.seam import Wanted
from fabric.errors import SpeakerError

SPEC = SessionSpec(
    ip_address("10.0.0.2"), 65002, ip_address("127.0.0.1"), 65001, IPv4Address("10.0.0.1"), hold_time=90
)
TWIN = replace(SPEC, hold_time=30)  # each alone is sound; ExaBGP refuses both as one neighbor twice
BAD = replace(SPEC, peer=ip_address("10.0.0.3"), hold_time=2)
BOTH = frozenset({SPEC, TWIN})
NONE: frozenset[SessionSpec] = frozenset()


def exabgp_in(run_dir: Path) -> Exabgp:
    return Exabgp(run_dir, run_dir / "pump.sock", lambda _: None)


async def test_what_fails_only_together_is_blamed_on_the_new_one(tmp_path: Path) -> None:
    faults = await exabgp_in(tmp_path).faults(BOTH, frozenset({SPEC}))
    assert set(faults) == {TWIN}
    assert "ExaBGP refuses its configuration" in faults[TWIN]


async def test_what_fails_alone_spares_the_other_new_ones(tmp_path: Path) -> None:
    assert set(await exabgp_in(tmp_path).faults(frozenset({SPEC, BAD}), NONE)) == {BAD}


async def test_without_a_new_one_nobody_is_blamed(tmp_path: Path) -> None:
    with pytest.raises(SpeakerError, match="took each of these 2 sessions before"):
        await exabgp_in(tmp_path).faults(BOTH, BOTH)
    assert not list(tmp_path.iterdir())  # noqa: ASYNC240


async def test_a_validator_that_cannot_run_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(SpeakerError, match="No such file"):
        await exabgp_in(tmp_path / "missing").faults(frozenset({SPEC}), NONE)


async def test_a_killed_validator_says_nothing(tmp_path: Path) -> None:
    asked = asyncio.create_task(exabgp_in(tmp_path).faults(frozenset({SPEC}), NONE))
    os.kill(await validator_in(tmp_path), signal.SIGKILL)
    with pytest.raises(SpeakerError, match="signal 9"):
        await asked
    assert not list(tmp_path.iterdir())  # noqa: ASYNC240


async def validator_in(run_dir: Path) -> int:
    """Return the pid of our child that validates in `run_dir`, once it is there."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()  # noqa: ASYNC240
        for pid in children:
            if str(run_dir).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():  # noqa: ASYNC240
                return int(pid)
        await asyncio.sleep(0.001)
    raise AssertionError("no validator within 5 s")


class Asked(Exabgp):
    """Answers with `answers` in turn, the last one for ever; remembers who was not to be blamed."""

    def __init__(self, run_dir: Path, *answers: dict[SessionSpec, str] | SpeakerError) -> None:
        super().__init__(run_dir, run_dir / "pump.sock", lambda _: None)
        self.answers = list(answers)
        self.sound: list[frozenset[SessionSpec]] = []

    async def faults(
        self, sessions: frozenset[SessionSpec], sound: frozenset[SessionSpec]
    ) -> dict[SessionSpec, str]:
        self.sound.append(sound)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, SpeakerError):
            raise answer
        return answer


def wanting(*specs: SessionSpec) -> Daemon:
    daemon = Daemon(Path("/nonexistent"))
    daemon._tables.want(Wanted(frozenset(specs)), 0)
    daemon._rewanted.set()  # no recheck below waits for its time
    return daemon


async def test_a_fault_is_looked_at_again_with_each_recheck(tmp_path: Path) -> None:
    daemon, exabgp = wanting(SPEC), Asked(tmp_path, {SPEC: "passing"}, {})
    assert not await daemon._taken(exabgp, frozenset({SPEC}))
    assert daemon._configurable(frozenset({SPEC})) == NONE
    await daemon._recheck()
    assert daemon._configurable(frozenset({SPEC})) == {SPEC}
    assert await daemon._taken(exabgp, frozenset({SPEC}))


async def test_what_is_not_known_is_neither_blamed_nor_sound(tmp_path: Path) -> None:
    daemon, exabgp = wanting(SPEC), Asked(tmp_path, SpeakerError("killed"), {})
    exabgp.sessions = frozenset({TWIN})
    assert not await daemon._taken(exabgp, frozenset({SPEC}))
    assert not daemon._rewanted.is_set(), "it waited for the recheck"
    assert daemon._configurable(frozenset({SPEC})) == {SPEC}
    assert await daemon._taken(exabgp, frozenset({SPEC}))
    assert exabgp.sound == [{TWIN}, {TWIN}]
