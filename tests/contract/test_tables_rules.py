"""What every `Tables` promises, run on the fake and on the kernel's two backends; then what only a kernel can show."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import permutations
from pathlib import Path
from shutil import which

import pytest

from fabric.errors import DataplaneError
from fabric.kernel.tables import KernelTables
from fabric.kernel.tables_backend import Wanted, choose
from fabric.kernel.tables_watch import Watch
from fabric.plan.tables import (
    Backend,
    Chain,
    Counter,
    Held,
    Place,
    Ruleset,
    Step,
    Tables,
    Version,
    clear,
    counters,
    edited,
    plan,
)
from tests.contract.netns import Namespace
from tests.fakes.tables import FakeTables

TOOLS: dict[Version, str] = {4: "iptables", 6: "ip6tables"}
FORWARD, INPUT, OUTPUT = (Place("filter", name) for name in ("FORWARD", "INPUT", "OUTPUT"))
A, B, C = (Place("filter", name) for name in ("fab-a", "fab-b", "fab-c"))
RAW, UNTRACKED = Place("raw", "PREROUTING"), Place("raw", "fab-untracked")


class Bench:
    def __init__(self, tables: Tables, host: Namespace, version: Version) -> None:
        self.tables, self.host, self.version = tables, host, version

    def held(self) -> Held:
        return self.host.run(self.tables.read(self.version))

    def heal(self, goal: Ruleset, held: Held | None = None, *, in_sync: bool = True) -> Step:
        step = plan(goal, held or self.held(), in_sync=in_sync)
        if step.text:
            self.host.run(self.tables.restore(self.version, step.text))
        return step

    def others(self, *lines: str, table: str = "filter") -> None:
        """Do what somebody else does, to one table."""
        text = "\n".join([f"*{table}", *lines, "COMMIT", ""])
        if isinstance(self.tables, FakeTables):
            self.tables.others(self.version, text)
        else:
            self.tool("restore", "-w", "--noflush", text=text)

    def tool(self, suffix: str, *words: str, text: str = "") -> str:
        tool = f"{TOOLS[self.version]}-{self.tables.backend}" + (f"-{suffix}" if suffix else "")
        done = self.host.call(
            lambda: subprocess.run([tool, *words], input=text, capture_output=True, text=True, timeout=60)
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def all_rules(self) -> list[str]:
        """Every rule, ours or not, as it is shown."""
        if isinstance(self.tables, FakeTables):
            rules = self.tables.rules[self.version]
            return [f"-A {p.chain} {rule}" for p, lines in rules.items() for rule in lines]
        return [line for line in self.tool("save").splitlines() if line.startswith("-A")]


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace(own_run=True) as space:
        yield space


@pytest.fixture(params=[4, 6])
def version(request: pytest.FixtureRequest) -> Version:
    version: Version = request.param
    return version


@pytest.fixture(params=["fake", "nft", "legacy"])
def bench(request: pytest.FixtureRequest, host: Namespace, version: Version) -> Bench:
    return Bench(FakeTables() if request.param == "fake" else KernelTables(request.param), host, version)


@pytest.fixture(params=["nft", "legacy"])
def real(request: pytest.FixtureRequest, host: Namespace, version: Version) -> Bench:
    return Bench(KernelTables(request.param), host, version)


SMALL = Ruleset({A: ("-p tcp -m tcp --dport 80 -j DROP",)}, first={FORWARD: ("-j fab-a",)})
GOALS = {
    "none": Ruleset(),
    "small": SMALL,
    "other rule": Ruleset({A: ("-p tcp -m tcp --dport 81 -j DROP",)}, first={FORWARD: ("-j fab-a",)}),
    "nested": Ruleset(
        {
            A: (
                "-j MARK --set-xmark 0x10000/0x10000",
                "-i fab+ -g fab-b",
                "-m mark --mark 0x0/0x10000 -j RETURN",
            ),
            B: ("-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-j fab-c", "-j DROP"),
            C: (
                '-m comment --comment "fab:0123=a note" -j NFLOG --nflog-prefix "fab-deny:x" --nflog-group 7',
                "-p udp -m multiport --dports 53,1000:2000 -m limit --limit 10/sec -j NFLOG --nflog-group 7",
                "-p tcp -m multiport ! --dports 1,2,3 -j RETURN",
            ),
        },
        first={FORWARD: ("-i fab+ -j fab-a", "-o fab+ -j fab-a"), INPUT: ("-i fab+ -g fab-b",)},
        last={FORWARD: ("-m mark --mark 0x0/0x10000 -j fab-c",)},
    ),
    "empty chains": Ruleset({A: (), B: ()}, last={FORWARD: ("-j fab-b",), OUTPUT: ("-j fab-a",)}),
    "two tables": Ruleset(
        {B: ("-j DROP",), UNTRACKED: ("-p tcp -j CT --notrack", "-j RETURN")},
        first={RAW: ("-j fab-untracked",), FORWARD: ("-j fab-b",)},
    ),
}


@pytest.mark.parametrize("goal", GOALS.values(), ids=GOALS.keys())
def test_what_was_written_is_read_back_so_the_next_plan_is_empty(bench: Bench, goal: Ruleset) -> None:
    step = bench.heal(goal)
    assert plan(goal, step.held) == Step("", step.held)
    held = bench.held()
    assert plan(goal, held).text == ""
    assert edited(step.held, held) == {}
    bench.heal(Ruleset(), held)
    assert bench.all_rules() == []
    assert plan(Ruleset(), bench.held()).text == ""


def test_the_rules_depend_on_the_goal_not_on_the_walk(bench: Bench) -> None:
    alone = {}
    for name, goal in GOALS.items():
        bench.heal(goal)
        alone[name] = sorted(bench.all_rules())
    for first, second in permutations(GOALS, 2):
        held = bench.heal(GOALS[first]).held
        bench.heal(GOALS[second], held)  # from memory
        assert sorted(bench.all_rules()) == alone[second], (first, second)
        assert plan(GOALS[second], bench.held()).text == ""


STRANGERS = (
    ":DOCKER - [0:0]",
    "-A DOCKER -s 10.0.0.0/8 -j DROP",
    "-A FORWARD -o docker0 -j DOCKER",
    '-A FORWARD -m comment --comment "fab:0123456789abcdef of somebody" -j ACCEPT',
    '-A FORWARD -m comment --comment "--comment fab:0123456789abcdef \x85 -j fab-a" -j ACCEPT',
)
STRANGERS_6 = tuple(line.replace("10.0.0.0/8", "fd00::/8") for line in STRANGERS)


def test_an_agent_with_no_memory_sweeps_only_ours(bench: Bench) -> None:
    bench.others(*(STRANGERS if bench.version == 4 else STRANGERS_6))
    before = bench.all_rules()
    bench.heal(GOALS["nested"])
    bench.heal(GOALS["two tables"])
    assert [rule for rule in bench.all_rules() if rule in before] == before
    bench.host.run(clear(bench.tables))
    assert bench.all_rules() == before


def test_ours_stay_at_both_ends_of_a_chain_that_others_write_to(bench: Bench) -> None:
    goal = GOALS["nested"]
    held = bench.heal(goal).held
    bench.others("-A FORWARD -p esp -j ACCEPT", "-I FORWARD 1 -p ah -j ACCEPT")
    now = bench.held()
    assert edited(held, now) == {FORWARD: "rules of others are around ours"}
    bench.heal(goal, now)
    at = bench.held().chains[FORWARD]
    assert [bool(mark) for mark in at.marks] == [True, True, False, False, True]
    forward = [rule for rule in bench.all_rules() if rule.startswith("-A FORWARD")]
    assert ["-p ah" in rule or "-p esp" in rule for rule in forward] == [False, False, True, True, False]
    assert "-p ah" in forward[2]


def test_a_rule_of_others_between_ours_is_no_edit(bench: Bench) -> None:
    held = bench.heal(GOALS["nested"]).held
    bench.others("-I FORWARD 3 -p esp -j ACCEPT")
    now = bench.held()
    assert edited(held, now) == {}
    assert plan(GOALS["nested"], now).text == ""


MARKED = "-p tcp -m tcp --dport 80 -j {} -m comment --comment fab:{}"
[DROP_80] = [chain.marks[0] for place, chain in plan(SMALL, Held()).held.chains.items() if place == A]
EDITS = {
    "flush": (
        ["-F FORWARD", "-F fab-a"],
        {A: "1 of its 1 rules are gone", FORWARD: "1 of our 1 rules are gone"},
    ),
    "removal": (["-F FORWARD", "-F fab-a", "-X fab-a"], {A: "is gone", FORWARD: "1 of our 1 rules are gone"}),
    "insertion": (["-I fab-a 1 -j ACCEPT"], {A: "1 rules were added"}),
    "chain": ([":fab-z - [0:0]", "-A fab-z -j DROP"], {Place("filter", "fab-z"): "was added"}),
    "replacement": (
        [
            f"-D fab-a {MARKED.format('DROP', DROP_80)}",
            f"-A fab-a {MARKED.format('ACCEPT', DROP_80)}",
        ],
        {A: "a rule was changed under its comment"},
    ),
}


@pytest.mark.parametrize(("lines", "told"), EDITS.values(), ids=EDITS.keys())
def test_an_edit_is_told_and_healed(bench: Bench, lines: list[str], told: dict[Place, str]) -> None:
    bench.heal(SMALL)
    held = bench.held()
    rules = bench.all_rules()
    bench.others(*lines)
    now = bench.held()
    found = edited(held, now)
    assert found == told
    step = plan(SMALL, now, distrust=found.keys())
    bench.host.run(bench.tables.restore(bench.version, step.text))
    assert bench.all_rules() == rules
    assert edited(held, bench.held()) == {}


def test_counters_of_what_did_not_change_go_on(bench: Bench) -> None:
    port = "-p udp -m udp --dport 9"
    goal = Ruleset(
        {A: (f"{port} -j RETURN",), B: ("-j RETURN",)}, first={OUTPUT: (f"{port} -j fab-a", "-j fab-b")}
    )
    bench.heal(goal)
    if isinstance(bench.tables, FakeTables):
        for place in (A, OUTPUT):
            bench.tables.count(bench.version, place, 0, Counter(3, 96))
    else:
        address = "127.0.0.1" if bench.version == 4 else "::1"
        send = f"import socket; s = socket.socket(socket.AF_INET{'' if bench.version == 4 else '6'}, socket.SOCK_DGRAM)"
        bench.host.command(
            "python3", "-c", f"{send}; [s.sendto(b'1234', ('{address}', 9)) for _ in range(3)]"
        )
    size = 96 if bench.version == 4 or isinstance(bench.tables, FakeTables) else 156
    changed = Ruleset({A: goal.chains[A], B: ("-j ACCEPT",)}, first=goal.first)
    bench.heal(changed)
    found = counters(changed, bench.held())
    assert found[A, 0] == Counter(3, size)
    assert found[B, 0] == Counter(0, 0) or not isinstance(bench.tables, FakeTables)
    assert found[OUTPUT, 0] == Counter(3, size)


def test_nothing_is_removed_before_the_datastore_is_in_sync(bench: Bench) -> None:
    bench.heal(GOALS["nested"])
    before = bench.all_rules()
    assert bench.heal(Ruleset(), in_sync=False).text == ""
    bench.heal(Ruleset({Place("filter", "fab-new"): ("-j DROP",)}), in_sync=False)
    assert len(bench.all_rules()) == len(before) + 1
    assert set(before) < set(bench.all_rules())


def test_a_chain_that_somebody_else_jumps_to_is_emptied_and_kept_until_he_stops(bench: Bench) -> None:
    bench.heal(SMALL)
    bench.others("-A FORWARD -p esp -j fab-a")
    held = bench.held()
    assert held.wanted_by_others == {A}
    step = bench.heal(Ruleset(), held)
    assert bench.held().chains[A] == Chain()
    assert plan(Ruleset(), step.held).text == ""
    assert plan(Ruleset(), bench.held()).text == ""
    bench.others("-D FORWARD -p esp -j fab-a")
    bench.heal(Ruleset())
    assert A not in bench.held().chains


def test_a_refused_restore_leaves_the_old_rules_whole(bench: Bench) -> None:
    bench.heal(SMALL)
    before = bench.all_rules()
    bad = Ruleset({A: ("-j DROP",), B: ("-j fab-nosuch",)}, first={FORWARD: ("-j fab-b",)})
    with pytest.raises(DataplaneError):
        bench.heal(bad)
    assert bench.all_rules() == before
    bench.heal(SMALL)
    assert bench.all_rules() == before


def test_the_fake_refuses_once() -> None:
    tables = FakeTables(refuse=errno.EBUSY)
    with Namespace() as host:
        bench = Bench(tables, host, 4)
        with pytest.raises(DataplaneError) as caught:
            bench.heal(SMALL)
        assert caught.value.code == errno.EBUSY
        assert bench.all_rules() == []
        bench.heal(SMALL)
        assert plan(SMALL, bench.held()).text == ""


# From here on the kernel only.


def test_looking_makes_no_table(real: Bench) -> None:
    assert real.held() == Held()
    assert real.host.command("cat", "/proc/thread-self/net/ip_tables_names") == ""
    assert real.host.command("nft", "list", "tables") == ""


REFUSED = {
    "target": (
        "-j NOSUCH",
        "line 3 `.*-j NOSUCH -m comment .*`: .*(Chain .NOSUCH. does not exist|load target .NOSUCH.)",
    ),
    "option": (
        "--nosuch 1 -j DROP",
        'line 3 `.*--nosuch 1 -j DROP -m comment .*`: .*unknown option "--nosuch"',
    ),
    "set": (
        "-m set --match-set nosuch src -j DROP",
        r"line 3 `.*nosuch src -j DROP -m comment .*`: .*Set nosuch doesn't exist",
    ),
    "chain": ("-j fab-nosuch", "line 3 `.*-j fab-nosuch -m comment .*`"),
}


@pytest.mark.parametrize(("rule", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_the_refused_line_is_named_with_what_was_said_of_it(real: Bench, rule: str, told: str) -> None:
    told += ".*; table filter is as it was; the next pass reads it and tries again"
    with pytest.raises(DataplaneError, match=f"-{real.tables.backend}-restore of table filter, {told}"):
        real.heal(Ruleset({A: (rule,)}))


def test_the_kernels_own_refusal_has_its_errno(real: Bench) -> None:
    loop = Ruleset({A: ("-j fab-b",), B: ("-j fab-a",)}, first={FORWARD: ("-j fab-a",)})
    with pytest.raises(DataplaneError, match="of table filter, line ") as caught:
        real.heal(loop)
    # The legacy restore says no more than which line, and this is the last.
    assert caught.value.code == (errno.EMLINK if real.tables.backend == "nft" else errno.EINVAL)


def test_a_writer_that_keeps_the_lock_is_named(host: Namespace) -> None:
    bench = Bench(KernelTables("legacy", patience=1), host, 4)
    with host.call(partial(open, "/run/xtables.lock", "w")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataplaneError, match="holding the xtables lock") as caught:
            bench.heal(SMALL)
    assert caught.value.code == errno.EBUSY
    bench.heal(SMALL)


def test_reading_waits_for_no_lock(host: Namespace) -> None:
    bench = Bench(KernelTables("legacy"), host, 4)
    wanted = bench.heal(SMALL).held
    with host.call(partial(open, "/run/xtables.lock", "w")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = host.run(KernelTables("legacy").read(4))  # that of an agent without a memory
    assert edited(wanted, held) == {}
    for place in SMALL.first:
        assert list(map(bool, held.chains[place].texts)) == list(map(bool, held.chains[place].marks))


WAITS = """
import asyncio
from fabric.kernel.tables import KernelTables

asyncio.run(KernelTables("legacy").restore(4, "*filter\\n:fab-late - [0:0]\\nCOMMIT\\n"))
"""


def test_a_restore_that_waits_for_the_lock_ends_with_who_wants_it(host: Namespace) -> None:
    def waiting() -> str:
        words = ["pgrep", "-x", "-P", str(agent.pid), "iptables-legacy"]
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()

    with host.call(partial(open, "/run/xtables.lock", "w")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        agent = host.call(partial(subprocess.Popen, [sys.executable, "-c", WAITS]))
        deadline = time.monotonic() + 10
        while not (tool := waiting()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        agent.kill()
        agent.wait()
        while Path("/proc", tool).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert "fab-late" not in host.command("iptables-legacy-save")


def test_a_missing_tool_is_named(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    tables = KernelTables("nft")
    with pytest.raises(
        DataplaneError, match=r"iptables-nft-save.*nothing was changed; install iptables"
    ) as caught:
        host.run(tables.read(4))
    assert caught.value.code == errno.ENOENT


def test_a_flush_of_all_there_is_is_told_and_healed(real: Bench) -> None:
    goal = GOALS["two tables"]
    real.heal(goal)
    held, rules = real.held(), real.all_rules()
    if real.tables.backend == "nft":
        real.host.command("nft", "flush", "ruleset")
    else:
        for table in ("filter", "raw"):
            real.tool("", "-w", "-t", table, "-F")
            real.tool("", "-w", "-t", table, "-X")
    now = real.held()
    gone, hook = "is gone", "1 of our 1 rules are gone"
    assert edited(held, now) == {B: gone, UNTRACKED: gone, FORWARD: hook, RAW: hook}
    real.heal(goal, now)
    assert real.all_rules() == rules
    assert edited(held, real.held()) == {}


BUSY = (
    "-m limit --limit 1/sec --limit-burst 2",
    "-m hashlimit --hashlimit-upto 1/sec --hashlimit-mode srcip --hashlimit-name fab-test",
    "-m set --match-set fab-test src",
    "-m connmark --mark 0x80000000/0x80000000",
    "-m conntrack --ctstate NEW",
)


def test_what_the_kernel_itself_writes_into_a_rule_is_no_edit(real: Bench) -> None:
    family = "inet" if real.version == 4 else "inet6"
    real.host.command("ipset", "create", "fab-test", "hash:net", "family", family)
    goal = Ruleset(
        {A: (*(f"{match} -j fab-b" for match in BUSY), "-j MARK --set-xmark 0x1/0x1"), B: ("-j RETURN",)},
        first={OUTPUT: (f"{BUSY[0]} -j fab-a", "-j fab-a")},
    )
    real.heal(goal)
    before = real.held()
    assert edited(before, real.held()) == {}
    real.others(":AHEAD - [0:0]", "-A AHEAD -j RETURN", "-I FORWARD 1 -j AHEAD")  # all that follows moves
    real.host.command("ping", "-c", "5", "-i", "0.01", "127.0.0.1" if real.version == 4 else "::1")
    now = real.held()
    assert counters(goal, now)[A, 5].packets > 0
    assert edited(before, now) == {}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo '*filter'; echo ':INPUT ACCEPT [0:0]'", "it printed half of it"),
        ("echo 'iptables-save: Permission denied (you must be root)' >&2", "Permission denied"),
        ("exit 3", "ended with 3"),
        ("kill -KILL $$", "ended with -9"),
    ],
)
def test_half_a_table_is_never_taken_for_the_whole(
    host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    tool = tmp_path / "iptables-nft-save"
    tool.write_text(f"#!/bin/sh\necho '# made by hand'\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(
        DataplaneError, match=f"read the tables of iptables-nft: .*{said}.*nothing was changed"
    ):
        host.run(KernelTables("nft").read(4))


RIVALS = 1000


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_rival_that_writes_meanwhile_loses_nothing_and_neither_do_we(
    host: Namespace, backend: Backend
) -> None:
    bench = Bench(KernelTables(backend), host, 4)
    bench.tool("", "-w", "-N", "RIVAL")
    bench.tool("", "-w", "-A", "FORWARD", "-j", "RIVAL")
    tool = f"iptables-{backend} -w -A RIVAL -p tcp --dport"
    loop = f"for n in $(seq {RIVALS}); do {tool} $n -j ACCEPT || exit 1; done"
    rival = host.call(lambda: subprocess.Popen(["sh", "-c", loop]))
    passes = 0
    try:
        while host.call(rival.poll) is None:
            goal = list(GOALS.values())[passes % len(GOALS)]
            step = bench.heal(goal)
            assert edited(step.held, bench.held()) == {}
            passes += 1
    finally:
        host.call(rival.kill)
        assert host.call(rival.wait) == 0
    assert passes > 5
    bench.heal(GOALS["nested"])
    assert plan(GOALS["nested"], bench.held()).text == ""
    ports = [int(rule.split("--dport ")[1].split()[0]) for rule in bench.all_rules() if "-A RIVAL" in rule]
    assert ports == [*range(1, RIVALS + 1)]


def denied(number: int) -> Ruleset:
    """One of a dozen states of which each refuses UDP to port 9, by other chains."""
    names = [Place("filter", f"fab-{number}-{level}") for level in range(number % 4 + 1)]
    jumps = [(f"-j {below.chain}",) for below in names[1:]]
    chains = dict(zip(names, [*jumps, ("-p udp -m udp --dport 9 -j DROP",)], strict=True))
    extra = {Place("filter", f"fab-extra-{at}"): ("-j RETURN",) * number for at in range(number)}
    return Ruleset(chains | extra, first={OUTPUT: (f"-j {names[0].chain}",)})


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_no_pass_opens_a_gap_nor_does_one_that_is_refused(host: Namespace, backend: Backend) -> None:
    bench = Bench(KernelTables(backend), host, 4)
    ours, theirs = (host.call(partial(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2))
    ended = threading.Event()
    sent = 0

    def knock() -> None:
        nonlocal sent
        while not ended.wait(0.001):
            with suppress(PermissionError):  # what OUTPUT drops is told to the sender
                ours.sendto(b"knock", ("127.0.0.1", 9))
            sent += 1

    with ours, theirs:
        theirs.bind(("127.0.0.1", 9))
        theirs.setblocking(False)
        held = bench.heal(denied(0)).held
        knocking = threading.Thread(target=knock)
        knocking.start()
        try:
            dice = random.Random(5)
            for _ in range(60):
                goal = denied(dice.randrange(12))
                broken = Ruleset(
                    {**goal.chains, Place("filter", "fab-broken"): ("-j NOSUCH",)}, first=goal.first
                )
                with pytest.raises(DataplaneError):
                    bench.heal(broken, held)
                held = bench.heal(goal, held).held
        finally:
            ended.set()
            knocking.join()
        assert sent > 50
        with pytest.raises(BlockingIOError):
            theirs.recv(100)
        bench.heal(Ruleset())
        ours.sendto(b"through", ("127.0.0.1", 9))  # so it was the rules that kept the others out
        assert theirs.recv(100) == b"through"


def test_what_others_do_to_ours_is_told_at_once_and_nothing_else_is(host: Namespace) -> None:
    tables = KernelTables("nft")
    four, six = Bench(tables, host, 4), Bench(tables, host, 6)
    heard: list[frozenset[Version]] = []
    first = asyncio.Event()

    async def listen() -> None:
        async for versions in tables.changes():
            heard.append(versions)
            first.set()

    async def heard_within(seconds: float) -> None:
        async with asyncio.timeout(seconds):
            await first.wait()
        first.clear()

    async def start() -> asyncio.Task[None]:
        return asyncio.create_task(listen())

    async def end(task: asyncio.Task[None]) -> None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    listening = host.run(start())
    try:
        held = four.heal(SMALL).held
        four.heal(GOALS["nested"], held)
        four.tool("", "-N", "DOCKER")
        four.tool("", "-A", "DOCKER", "-j", "ACCEPT")
        host.command("nft", "add table inet other; add chain inet other fab-a; add table ip other;")
        six.tool("", "-A", "FORWARD", "-p", "esp", "-j", "ACCEPT")
        host.run(heard_within(1))
        assert heard == [{6}]
        four.tool("", "-F", "fab-a")
        host.run(heard_within(1))
        host.command("nft", "flush", "ruleset")
        host.run(heard_within(1))
        assert set().union(*heard[1:]) == {4, 6}
    finally:
        host.run(end(listening))


@pytest.mark.parametrize(
    ("others", "wanted", "backend", "problem"),
    [
        ((), "auto", "nft", False),
        (("nft",), "auto", "nft", False),
        (("legacy",), "auto", "legacy", False),
        (("nft", "legacy"), "auto", "nft", True),
        ((), "legacy", "legacy", False),
        (("nft",), "legacy", "legacy", True),
        (("legacy",), "nft", "nft", True),
        (("legacy",), "legacy", "legacy", False),
    ],
)
def test_the_backend_is_the_hosts_own(
    host: Namespace, others: tuple[Backend, ...], wanted: Wanted, backend: Backend, problem: bool
) -> None:
    for used in others:
        host.command(f"iptables-{used}", "-A", "FORWARD", "-p", "esp", "-j", "ACCEPT")
    choice = host.run(choose(wanted))
    assert (choice.backend, bool(choice.problem)) == (backend, problem), choice
    assert not problem or "move everything to one of them" in choice.problem
    assert "fab-" not in host.command("iptables-nft-save") + host.command("iptables-legacy-save")


def test_the_hosts_own_backend_is_known_also_while_its_lock_is_held(
    host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "iptables").symlink_to(which("iptables-legacy") or "")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert host.run(choose("auto")).backend == "legacy"
    with host.call(partial(open, "/run/xtables.lock", "w")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert host.run(choose("auto")).backend == "legacy"


def test_rules_of_ours_do_not_count_and_go_when_the_backend_is_another(host: Namespace) -> None:
    old, new = (Bench(KernelTables(backend), host, 4) for backend in ("legacy", "nft"))
    old.heal(GOALS["nested"])
    assert host.run(choose("auto")).backend == "nft"
    new.heal(GOALS["nested"])
    host.run(clear(old.tables))
    assert old.all_rules() == []
    assert plan(GOALS["nested"], new.held()).text == ""


IN_A_CONTAINER = """
import asyncio, subprocess
from fabric.kernel.tables import KernelTables

async def main():
    tables = KernelTables("nft")
    heard = aiter(tables.changes())
    first = asyncio.create_task(anext(heard))
    await asyncio.sleep(0)
    for _ in range(20):
        await tables.restore(4, "*filter\\n:fab-a - [0:0]\\n-A fab-a -j DROP\\nCOMMIT\\n")
    subprocess.run(["ip6tables-nft", "-N", "fab-b"], check=True)
    print(*await first)

asyncio.run(main())
"""


def test_after_an_overflow_the_next_change_is_heard_again(host: Namespace) -> None:
    def many() -> None:
        rules = "".join(f"-A fab-a -s 10.0.0.{n} -j DROP\n" for n in range(200))
        text = f"*filter\n:fab-a - [0:0]\n{rules}COMMIT\n"
        host.command("sh", "-c", f"printf '%s' '{text}' | iptables-nft-restore --noflush")

    async def listen() -> None:
        with Watch((), buffer=4096) as watch:
            heard = aiter(watch.changes())
            await asyncio.to_thread(many)
            async with asyncio.timeout(10):
                assert await anext(heard) == {4, 6}
                await asyncio.to_thread(host.command, "ip6tables-nft", "-N", "fab-b")
                assert await anext(heard) == {6}

    host.run(listen())


def test_in_a_pid_namespace_our_own_writes_are_ours_too(host: Namespace) -> None:
    inside = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    assert host.command(*inside, sys.executable, "-c", IN_A_CONTAINER).split() == ["6"]
