"""What every `IPSets` promises, run on the fake and on the kernel; then what only a kernel can show."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from itertools import permutations

import pytest

from fabric.errors import DataplaneError
from fabric.kernel.ipsets import NetlinkIPSets
from fabric.plan.ipsets import Held, IPSet, IPSets, Kind, Op, Plan, Rewrite, Version, apply, plan
from tests.contract.netns import Namespace
from tests.fakes.ipsets import FakeIPSets


class Bench:
    def __init__(self, sets: IPSets, host: Namespace) -> None:
        self.sets, self.host = sets, host

    def actual(self) -> Mapping[str, Held]:
        return self.host.run(_owned(self.sets))

    def members(self) -> dict[str, IPSet]:
        return {name: held.ipset for name, held in self.actual().items()}

    def heal(self, goal: Mapping[str, IPSet]) -> dict[Op, DataplaneError]:
        ops = plan(goal, self.actual())
        return self.host.run(apply((*ops.before, *ops.after), self.sets))


async def _owned(sets: IPSets) -> Mapping[str, Held]:
    return await sets.owned()


def of(*members: str, kind: Kind = "hash:net", version: Version = 4) -> IPSet:
    return IPSet(kind, version, frozenset(members))


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace() as space:
        yield space


@pytest.fixture(params=["fake", "kernel"])
def bench(request: pytest.FixtureRequest, host: Namespace) -> Iterator[Bench]:
    if request.param == "fake":
        yield Bench(FakeIPSets(), host)
    else:
        with host.call(NetlinkIPSets) as sets:
            yield Bench(sets, host)


@pytest.fixture
def real(host: Namespace) -> Iterator[Bench]:
    with host.call(NetlinkIPSets) as sets:
        yield Bench(sets, host)


ONE_NAME = {
    4: [
        of(),
        of("10.0.0.1", "10.0.1.0/24", "0.0.0.0/1", "128.0.0.0/1", "255.255.255.255"),
        of("10.0.0.1", "10.0.0.2"),
        of("10.0.0.1,tcp:80", "10.0.0.1,udp:80", "10.0.0.2,sctp:65535", "10.0.0.3,udplite:1", kind="hash:ip,port"),
        of("10.0.0.1,fab0123456789ab", "10.1.0.0/16,fab1", "0.0.0.0/0,fab1", kind="hash:net,iface"),
        of("0", "80", "65535", kind="bitmap:port"),
    ],
    6: [
        of(version=6),
        of("fd00::1", "fd00:1::/64", "::/1", "8000::/1", "::1", "::ffff:a00:1", "::ffff:0:0/96", version=6),
        of("fd00::1,tcp:80", "fd00::1:0:0:1,udp:53", kind="hash:ip,port", version=6),
        of("fd00::1,fab0123456789ab", "fd00:1::/64,fab1", "::/0,fab1", kind="hash:net,iface", version=6),
        of("80", "443", kind="bitmap:port", version=6),
    ],
}  # fmt: skip
NAMES: Mapping[int, str] = {4: "fab4-0123456789012345678901234", 6: "fab6-a"}


@pytest.mark.parametrize("version", ONE_NAME)
def test_any_set_becomes_any_other_and_is_read_back_so_the_next_plan_is_empty(
    bench: Bench, version: int
) -> None:
    for first, second in permutations(ONE_NAME[version], 2):
        for goal in ({NAMES[version]: first}, {NAMES[version]: second}):
            assert bench.heal(goal) == {}
            assert bench.members() == goal
            assert plan(goal, bench.actual()) == Plan()


def test_many_sets_at_once(bench: Bench) -> None:
    goal = {
        f"fab{version}-{number}": ipset
        for version, some in ONE_NAME.items()
        for number, ipset in enumerate(some)
    }
    assert bench.heal(goal) == {}
    assert bench.members() == goal
    assert bench.host.run(bench.sets.sizes()) == {name: len(one.members) for name, one in goal.items()}
    assert bench.heal({}) == {}
    assert bench.members() == {}
    assert bench.host.run(bench.sets.sizes()) == {}


def test_doing_it_again_is_no_error(bench: Bench) -> None:
    part = of("10.0.0.2")
    assert bench.heal({"fab4-a": of("10.0.0.1")}) == {}
    for _ in range(2):
        bench.host.run(bench.sets.add("fab4-a", part))
    assert bench.members() == {"fab4-a": of("10.0.0.1", "10.0.0.2")}
    for _ in range(2):
        bench.host.run(bench.sets.delete("fab4-a", part))
    assert bench.members() == {"fab4-a": of("10.0.0.1")}
    for _ in range(2):
        bench.host.run(bench.sets.destroy("fab4-a"))
    assert bench.members() == {}


def test_what_is_there_is_not_created_and_what_is_not_there_is_not_changed(bench: Bench) -> None:
    bench.host.run(bench.sets.create("fab4-a", of("10.0.0.1")))
    codes = []
    for refused in (
        bench.sets.create("fab4-a", of("10.0.0.2")),
        bench.sets.add("fab4-b", of("10.0.0.2")),
        bench.sets.delete("fab4-b", of("10.0.0.2")),
        bench.sets.rewrite("fab4-b", of("10.0.0.2")),
    ):
        with pytest.raises(DataplaneError) as caught:
            bench.host.run(refused)
        codes.append(caught.value.code)
    assert codes == [errno.EEXIST, errno.ENOENT, errno.ENOENT, errno.ENOENT]
    assert bench.members() == {"fab4-a": of("10.0.0.1")}


def test_a_set_that_cannot_be_filled_is_not_made(bench: Bench) -> None:
    bench.host.run(bench.sets.create("fab4-b", of("10.0.0.1")))
    for refused in (
        bench.sets.create("fab4-a", of("10.0.0.1", "0.0.0.0/0")),
        bench.sets.rewrite("fab4-b", of("10.0.0.2", "0.0.0.0/0")),
    ):
        with pytest.raises(DataplaneError) as caught:
            bench.host.run(refused)
        assert caught.value.code == errno.EINVAL
    assert bench.members() == {"fab4-b": of("10.0.0.1")}


# From here on the kernel only.


def hosts(first: int, count: int) -> IPSet:
    return of(*(f"10.{number >> 8}.{number & 255}.1" for number in range(first, first + count)))


def test_large_changes_both_ways(real: Bench) -> None:
    for goal in (hosts(0, 10_000), hosts(5_000, 12_000), hosts(16_000, 3), hosts(0, 2_000), of()):
        assert real.heal({"fab4-a": goal}) == {}
        assert real.members() == {"fab4-a": goal}


def test_a_set_that_rules_go_by_is_rewritten_beneath_them_and_stays(real: Bench) -> None:
    assert real.heal({"fab4-a": of("192.0.2.1")}) == {}
    real.host.command("iptables", "-A", "OUTPUT", "-m", "set", "--match-set", "fab4-a", "dst", "-j", "REJECT")
    real.host.ip("address", "add", "192.0.2.1/32", "dev", "lo")
    goal = hosts(0, 3000)
    assert isinstance(plan({"fab4-a": goal}, real.actual()).before[0], Rewrite)
    assert real.heal({"fab4-a": goal}) == {}
    real.host.command("ping", "-c1", "-W1", "192.0.2.1")
    assert real.heal({"fab4-a": IPSet("hash:net", 4, goal.members | {"192.0.2.1"})}) == {}
    with pytest.raises(AssertionError, match="100% packet loss"):
        real.host.command("ping", "-c1", "-W1", "192.0.2.1")
    (refused,) = real.heal({}).values()
    assert refused.code == errno.EBUSY
    assert str(refused).startswith("remove ipset fab4-a: Device or resource busy [EBUSY]; a rule goes by it")
    real.host.command("iptables", "-F", "OUTPUT")
    assert real.heal({}) == {}
    assert real.actual() == {}


def test_a_full_set_is_replaced_by_a_larger_one(real: Bench) -> None:
    real.host.command("ipset", "create", "fab4-a", "hash:net", "maxelem", "8", "hashsize", "64")
    for count in (4, 6, 20):
        assert real.heal({"fab4-a": hosts(0, count)}) == {}
        assert real.members() == {"fab4-a": hosts(0, count)}
    assert real.actual()["fab4-a"].room == 1 << 20


def test_the_refused_member_is_named(real: Bench) -> None:
    real.host.command("ipset", "create", "fab4-a", "hash:net", "maxelem", "1", "hashsize", "64")
    real.host.run(real.sets.add("fab4-a", of("10.0.0.1")))
    with pytest.raises(DataplaneError) as caught:
        real.host.run(real.sets.add("fab4-a", of("10.0.0.1", "10.0.0.2")))
    assert str(caught.value) == (
        "member 10.0.0.2 to ipset fab4-a: No space left on device [ENOSPC]; the set is full; "
        "it may be in the set in part, and the next pass retries"
    )


def test_an_agent_with_no_memory_sweeps_only_ours(real: Bench) -> None:
    assert real.heal({"fab4-a": hosts(0, 5), "fab6-a": of("fd00::1", version=6)}) == {}
    for words in (
        ("create", "fab4-~", "hash:net"),  # a swap that was not finished
        ("create", "fab4-list", "list:set"),  # one that only looks like ours
        ("create", "cali40all-hosts", "hash:net"),
        ("create", "fab0", "hash:ip"),
    ):
        real.host.command("ipset", *words)
    assert real.heal({}) == {}
    assert real.host.command("ipset", "list", "-n").split() == ["cali40all-hosts", "fab0"]


def test_a_set_of_our_name_and_another_type_is_replaced(real: Bench) -> None:
    real.host.command("ipset", "create", "fab4-a", "hash:ip")
    real.host.command("ipset", "add", "fab4-a", "10.0.0.1")
    assert real.heal({"fab4-a": of("10.0.0.1")}) == {}
    assert real.members() == {"fab4-a": of("10.0.0.1")}


def test_what_ipset_says_is_what_we_say(real: Bench) -> None:
    goal = {
        f"fab{version}-{number}": ipset
        for version, some in ONE_NAME.items()
        for number, ipset in enumerate(some)
    }
    assert real.heal(goal) == {}
    saved = real.host.command("ipset", "save").splitlines()
    added = {tuple(line.split()[1:]) for line in saved if line.startswith("add ")}
    said = {(name, member) for name, ipset in goal.items() for member in ipset.members}
    # libc writes an IPv4-mapped prefix with dots, ipaddress without.
    assert {pair for pair in said if "ffff:" not in pair[1]} <= added
    assert len(added) == len(said)
