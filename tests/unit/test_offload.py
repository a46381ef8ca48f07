"""When checksums are taken from the link, and when given back: a trial told what far ends answer; and who is asked."""

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from fabric.agent.desired import Desired
from fabric.agent.offload import AGAIN, LATE, PATIENT, SOON, SURE, Trial, follow, next_question
from fabric.agent.passes import Outcome
from fabric.agent.state import State
from fabric.kernel.offload import Answer
from fabric.plan.encap import VXLAN, VXLAN6, Address
from fabric.plan.tunnels import Far, Tunnel

A, B, C = (IPv4Address(f"10.244.{number}.0") for number in (1, 2, 3))
WHOLE, LOST, UNKNOWN = Answer.WHOLE, Answer.ECHO_ONLY, Answer.UNKNOWN


def rounds(trial: Trial, answers: dict[Address, Answer], times: int) -> bool:
    """Ask so many times; return whether the last of them changed something, as none before it may."""
    trial.due(answers, 0.0)
    for left in range(times, 0, -1):
        for end, answer in answers.items():
            trial.note(end, answer, 0.0)
        changed = trial.decide()
        assert left == 1 or not changed
    return changed


@pytest.mark.parametrize(
    ("answers", "times"),
    [
        pytest.param({A: LOST}, SURE, id="the only one"),
        pytest.param({A: LOST, B: LOST, C: WHOLE}, SURE, id="most of them"),
        pytest.param({A: LOST, B: UNKNOWN, C: UNKNOWN}, SURE, id="most of those that say something"),
        pytest.param({A: LOST, B: WHOLE}, PATIENT, id="half of them, for long"),
        pytest.param({A: LOST, B: WHOLE, C: WHOLE}, PATIENT, id="one that does not help itself"),
    ],
)
def test_the_kernel_makes_checksums_once_tcp_is_lost(answers: dict[Address, Answer], times: int) -> None:
    trial = Trial(offload=True)
    assert rounds(trial, answers, times)
    assert not trial.offload
    assert trial.accused == {end for end, answer in answers.items() if answer is LOST}


@pytest.mark.parametrize("answers", [{A: WHOLE}, {A: UNKNOWN}, {A: UNKNOWN, B: WHOLE}, {}])
def test_nothing_changes_while_tcp_is_not_lost(answers: dict[Address, Answer]) -> None:
    assert not rounds(Trial(offload=True), answers, 2 * PATIENT)


def test_one_that_helps_itself_in_time_slows_nobody_down() -> None:
    trial = Trial(offload=True)
    assert not rounds(trial, {A: LOST, B: WHOLE, C: WHOLE}, PATIENT - 1)
    assert not rounds(trial, {A: WHOLE, B: WHOLE, C: WHOLE}, 2 * PATIENT)


def test_what_helped_stays() -> None:
    trial = Trial(offload=True)
    assert rounds(trial, {A: LOST, B: LOST}, SURE)
    assert not rounds(trial, {A: WHOLE, B: LOST}, 2 * PATIENT)
    assert not trial.offload


def test_what_helped_nobody_is_taken_back_and_not_tried_with_them_again() -> None:
    trial = Trial(offload=True)
    assert rounds(trial, {A: LOST}, SURE)
    assert rounds(trial, {A: LOST}, PATIENT)
    assert trial.offload
    assert not rounds(trial, {A: LOST}, 2 * PATIENT)
    assert rounds(trial, {A: LOST, B: LOST}, SURE)  # B is another matter


def test_when_all_that_it_was_for_have_gone_the_link_is_tried_again() -> None:
    trial = Trial(offload=True)
    assert rounds(trial, {A: LOST}, SURE)
    assert rounds(trial, {B: WHOLE}, 1)
    assert trial.offload


def test_a_restarted_agent_leaves_it_as_it_was_found() -> None:
    trial = Trial(offload=False)
    assert not rounds(trial, {A: LOST}, 2 * PATIENT)
    assert not rounds(trial, {A: WHOLE}, 2 * PATIENT)
    assert not trial.offload


def test_who_answers_is_asked_seldom_and_who_does_not_more_and_more_seldom() -> None:
    trial = Trial(offload=True)
    assert trial.due([B, A], 0.0) == [A, B]
    trial.note(A, WHOLE, 0.0)
    trial.note(B, UNKNOWN, 0.0)
    assert trial.next() == SOON
    assert trial.due([A, B], SOON) == [B]
    trial.note(B, UNKNOWN, SOON)
    assert trial.due([A, B, C], 2 * SOON) == [C]
    for _ in range(2000):
        trial.note(B, UNKNOWN, 100.0)
    assert trial.due([A, B], 100.0 + LATE) == [B]
    assert trial.due([A, B], AGAIN) == [A, B]
    assert trial.due([], AGAIN) == []
    assert trial.next() is None


def test_a_change_has_all_asked_anew() -> None:
    trial = Trial(offload=True)
    assert rounds(trial, {A: LOST, B: WHOLE}, PATIENT)
    assert trial.due([A, B], 0.0) == [A, B]


def test_ends_of_a_device_that_is_not_as_it_is_to_be_are_not_waited_for() -> None:
    tunnel, trial = Tunnel(VXLAN, A, B, 1450), Trial(offload=True)
    trial.note(C, UNKNOWN, 0.0)
    for offload, at in ((True, SOON), (False, None)):
        assert next_question({tunnel.name: replace(tunnel, offload=offload)}, {tunnel.name: trial}) == at


def test_it_says_what_is_known() -> None:
    trial = Trial(offload=True)
    assert trial.words() == "no far end was asked yet"
    trial.note(A, WHOLE, 0.0)
    assert trial.words() == "TCP arrives at 1 of 1 far ends"
    trial.note(B, LOST, 0.0)
    trial.note(C, UNKNOWN, 0.0)
    assert trial.words() == "TCP arrives at 1 of 3 far ends, is lost at 1 that answer pings, 1 do not answer"


async def test_the_far_ends_of_a_device_that_only_lingers_are_not_asked_until_it_is_wanted_again() -> None:
    four = Tunnel(VXLAN, A, IPv4Address("192.0.2.1"), 1450, far=frozenset({Far(B, "", B)}))
    end6 = Far(IPv6Address("fd00::2"), "", IPv6Address("2001:db8::2"))
    six = replace(four, encap=VXLAN6, far=frozenset({end6}))
    state = State("n1")
    asked: asyncio.Queue[Address] = asyncio.Queue()

    async def ask(_tunnel: Tunnel, far: Address) -> Answer:
        asked.put_nowait(far)
        return WHOLE

    def want(*tunnels: Tunnel) -> None:
        state.desired = Desired(tunnels={tunnel.name: tunnel for tunnel in tunnels})
        state.passed(Outcome())

    state.raised({tunnel.name: tunnel for tunnel in (four, six)})
    want(six)
    task = asyncio.create_task(follow(state, ask))
    try:
        async with asyncio.timeout(5):
            await state.until(lambda: bool(state.probed))
            assert (asked.get_nowait(), asked.empty()) == (end6.address, True)
            assert list(state.probed) == [six.name]
            want(four, six)
            assert await asked.get() == B
    finally:
        task.cancel()
