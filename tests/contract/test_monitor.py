"""What the kernel says of changes, and its counters, from a real kernel."""

import asyncio
from collections.abc import Iterator
from collections.abc import Set as AbstractSet

import pytest

from fabric.agent.md5 import COUNTERS
from fabric.kernel import facts
from fabric.kernel.monitor import Changed, Monitor
from tests.contract.netns import Namespace


@pytest.fixture
def space() -> Iterator[Namespace]:
    with Namespace() as space:
        space.ip("link", "add", "up0", "type", "veth", "peer", "name", "tor0")
        space.ip("link", "set", "tor0", "up")
        space.ip("link", "set", "up0", "up")
        yield space


def changes(space: Namespace, *commands: str, until: AbstractSet[str] = frozenset()) -> list[Changed]:
    """What is heard from before the first command until a link called `end` has come, and word of those in `until`.

    The kernel tells of a carrier later, and once a second at most, so what comes after may overtake it.
    """

    async def heard() -> list[Changed]:
        found: list[Changed] = []
        awaited = {"end", *until}
        with Monitor() as monitor:
            for command in (*commands, "link add end type veth"):
                process = await asyncio.create_subprocess_exec("ip", *command.split())
                assert await process.wait() == 0, command
            async with asyncio.timeout(10):
                async for changed in monitor.changes():
                    found.append(changed)
                    awaited -= changed.carriers.keys()
                    if not awaited:
                        break
        return found

    try:
        return space.run(heard())
    finally:
        space.ip("link", "delete", "end")


def carriers(space: Namespace, *commands: str, until: AbstractSet[str] = frozenset()) -> dict[str, bool]:
    """What was heard last of each link."""
    heard = changes(space, *commands, until=until)
    found = {name: on for changed in heard for name, on in changed.carriers.items()}
    return {name: on for name, on in found.items() if not name.startswith(("end", "veth"))}


def test_a_link_whose_other_end_goes_has_lost_its_carrier(space: Namespace) -> None:
    both = {"tor0", "up0"}
    assert carriers(space, "link set tor0 down", until=both) == {"tor0": False, "up0": False}
    assert carriers(space, "link set tor0 up", until=both)["up0"]


def test_a_link_that_is_taken_down_or_away_has_no_carrier(space: Namespace) -> None:
    assert carriers(space, "link set up0 down", until={"up0"})["up0"] is False
    space.ip("link", "set", "up0", "up")
    assert carriers(space, "link delete up0", until={"tor0", "up0"}) == {"tor0": False, "up0": False}


def test_a_link_that_leaves_a_bridge_keeps_its_carrier(space: Namespace) -> None:
    space.ip("link", "add", "bridge0", "type", "bridge")
    space.ip("link", "set", "up0", "master", "bridge0")
    assert carriers(space, "link set up0 nomaster").get("up0", True)


def test_other_changes_are_heard_and_say_nothing_of_carriers(space: Namespace) -> None:
    first, *_ = changes(space, "address add 10.1.0.1/31 dev up0")
    assert first.carriers == {} or "up0" not in first.carriers


def test_another_mtu_of_a_link_is_heard(space: Namespace) -> None:
    assert carriers(space, "link set up0 mtu 1400") == {"up0": True}


def test_the_kernel_counts_what_it_drops_for_its_signature(space: Namespace) -> None:
    found = space.call(lambda: facts.tcp_counters(COUNTERS.values()))
    assert found == dict.fromkeys(COUNTERS.values(), 0)
