"""The evaluator says of a packet what the kernel does with it: random fabrics, policies and packets, on both backends.

Each turn has another fabric, which the rules of the one before are changed into. Then packets are sent, all at once:
TCP, UDP, ICMP and others, of both families. Those that the evaluator lets through arrive, and so do their answers;
others do not.

    FUZZ_SEED     the seed, which a failure names; a new one each time unless given
    FUZZ_SECONDS  how long, for each backend; else as many packets as a run of CI has time for
"""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Literal

import pytest

from fabric.model.wire import to_json
from policy.evaluate import Passage, verdicts
from policy.form import TCP, UDP, Address, Failsafe, Site
from policy.words import of_origin
from policy.world import Resources, World
from tests.contract.netns import Namespace
from tests.contract.policy_host import (
    CONTAINERS,
    NODE,
    OUTSIDE,
    REMOTE,
    ROUTERS,
    STRANGERS,
    PolicyHost,
    site,
)
from tests.contract.policy_random import Chance
from tests.contract.policy_rules import Rules
from tests.probing import Shot, answered, heard

SEED = os.environ.get("FUZZ_SEED") or secrets.token_hex(4)
SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
TURNS, PACKETS = 10, 25  # each backend; 500 packets in all
WAIT = 0.15  # seconds: an answer takes less than a millisecond where nothing is in its way
PATIENCE = 2.0  # seconds, for those that should have been answered: the machine may be busy


@dataclass(frozen=True, slots=True)
class Turn:
    """One fabric and its packets."""

    chance: Chance
    resources: Resources
    site: Site

    @classmethod
    def of(cls, seed: str) -> Turn:
        chance = Chance(seed)
        resources = Resources.of(chance.resources())
        failsafes = (Failsafe(TCP, 22), Failsafe(UDP, 53)) if chance.chance(0.7) else ()
        changed = site(
            to_host=chance.one(("Drop", "Accept", "Return")),
            failsafe_in=failsafes,
            failsafe_out=failsafes[1:],
            vxlan_from_workloads=chance.chance(0.2),
            ipip_from_workloads=chance.chance(0.2),
            spoofing=chance.chance(0.7),
        )
        return cls(chance, resources, changed)


Fate = Literal["arrives", "does not arrive", "arrives, and its answer does not"]


def mismatches(host: PolicyHost, world: World, turn: Turn, shots: Sequence[Shot]) -> list[str]:
    """Return the packets with which evaluator and kernel differ, and why the evaluator thinks what it does."""
    passages = [passage(world, turn.site, shot) for shot in shots]
    said: list[Fate] = ["arrives" if passage.allowed else "does not arrive" for passage in passages]
    fates = fired(host, turn, shots, WAIT)
    late = [i for i, fate in enumerate(fates) if said[i] == "arrives" != fate]
    for i, fate in zip(late, fired(host, turn, [shots[i] for i in late], PATIENCE), strict=True):
        fates[i] = fate
    return [
        f"{shots[i]}\n  kernel: {fate}\n  evaluator: {said[i]}: {why(passages[i])}"
        for i, fate in enumerate(fates)
        if fate != said[i]
    ]


def fired(host: PolicyHost, turn: Turn, shots: Sequence[Shot], wait: float) -> list[Fate]:
    """Send packets that no connection is known of, and return what becomes of each."""
    host.forget_connections()
    came = answered(host.probers, shots, wait)
    got = heard(host.probers, shots)
    # What is not tracked needs rules of its own for the answer: whether it has them is another question.
    stateless = any(getattr(policy.spec, "do_not_track", False) for policy in turn.resources.policies)
    fates: list[Fate] = []
    for shot, answer, there in zip(shots, came, got, strict=True):
        assert there or not answer, shot
        if there and not answer and shot.is_answered and not stateless:
            fates.append("arrives, and its answer does not")
        else:
            fates.append("arrives" if there else "does not arrive")
    return fates


def passage(world: World, of: Site, shot: Shot) -> Passage:
    """Follow it as far as this node is asked."""
    links = {place.link: place.name for place in CONTAINERS}
    sender = next((key for key, e in world.endpoints.items() if links.get(e.interface) == shot.place), None)
    whole = verdicts(world, shot.packet, {NODE: of}, sender=sender)
    return replace(whole, asked=tuple(asked for asked in whole.asked if asked.node == NODE))


def why(passage: Passage) -> str:
    return "; ".join(
        f"{asked.direction} {asked.endpoint.key if asked.endpoint else 'nobody'} {asked.hook}: "
        f"{'allowed' if asked.verdict.allowed else 'denied'} by "
        f"{of_origin(asked.verdict.origin) if asked.verdict.origin else 'nothing'}"
        for asked in passage.asked
    )


@pytest.fixture(params=["nft", "legacy"])
def host(request: pytest.FixtureRequest) -> Iterator[tuple[PolicyHost, Rules]]:
    with PolicyHost() as host:
        yield host, Rules(host.router, request.param)


def test_evaluator_and_kernel_agree(host: tuple[PolicyHost, Rules]) -> None:
    print(f"FUZZ_SEED={SEED}")
    there, rules = host
    began, number = time.monotonic(), 0
    while time.monotonic() - began < SECONDS if SECONDS else number < TURNS:
        turn = Turn.of(f"{SEED} {number}")
        world = rules.put(turn.resources, turn.site)
        rules.check()
        if found := mismatches(there, world, turn, turn.chance.packets(PACKETS)):
            said = [f"FUZZ_SEED={SEED}, turn {number}", *found, str(turn.site)]
            pytest.fail("\n".join(said + [to_json(one) for one in turn.resources.policies]))
        number += 1


@pytest.mark.parametrize("routed_before", [True, False])
def test_a_host_becomes_no_router_between_its_own_links(
    host: tuple[PolicyHost, Rules], *, routed_before: bool
) -> None:
    there, rules = host
    with Namespace() as beyond:
        there.router.ip("link", "add", "up1", "type", "veth", "peer", "eth0", "netns", beyond.path)
        for space, link, address in (
            (there.router, "up1", "198.18.0.1/24"),
            (beyond, "eth0", "198.18.0.2/24"),
        ):
            space.ip("address", "add", address, "dev", link)
            space.ip("link", "set", link, "up")
        beyond.ip("route", "add", "default", "via", "198.18.0.1")
        pool = ip_network("10.65.0.0/16")
        rules.put(Resources(), site(routed_before=routed_before, pools=frozenset({pool})))
        stranger, pooled = STRANGERS[0][0], REMOTE[0][0]
        assert pooled in pool
        assert pings(there.spaces[OUTSIDE], stranger, "198.18.0.2") == routed_before
        assert pings(there.spaces[OUTSIDE], pooled, "198.18.0.2")
        assert pings(there.router, ROUTERS[0], "198.18.0.2")


def test_a_link_of_ours_that_no_endpoint_has_is_closed(host: tuple[PolicyHost, Rules]) -> None:
    there, rules = host
    container = CONTAINERS[0]
    inside, outside = there.spaces[container.name], there.spaces[OUTSIDE]
    assert pings(inside, container.own[0], str(STRANGERS[0][0]))
    rules.put(Resources(), site())
    assert not pings(inside, container.own[0], str(STRANGERS[0][0]))
    assert not pings(outside, STRANGERS[0][0], str(container.own[0]))


def pings(space: Namespace, source: Address, destination: str) -> bool:
    words = ["ping", "-nc3", "-i0.2", "-W1", "-I", str(source), destination]
    return not space.call(lambda: subprocess.run(words, capture_output=True, timeout=20)).returncode
