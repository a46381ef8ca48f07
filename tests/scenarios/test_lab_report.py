"""What a fault costs, measured in real labs: every flow that it hurts, none that it does not, and the routes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fabric.errors import LabError
from fabric.lab import faults, routers
from fabric.lab.expect import Endpoint
from fabric.lab.lab import Lab
from fabric.lab.measure import measure
from fabric.lab.node import Process
from fabric.lab.report import Flow, Report, as_json
from tests.scenarios import triangle
from tests.scenarios.labs import Trace, until

pytestmark = pytest.mark.alone

RUNS = 3  # attempts at a valid measurement
PAIR = """\
    a:
      exec:
        - sysctl -qw net.ipv4.ip_forward=1
        - ip address replace 192.0.2.1/24 dev eth1
        - ip address replace 2001:db8::1/64 dev eth1 nodad
        - ip address replace 198.51.100.1/24 dev eth2
    b:
      exec:
        - ip address replace 192.0.2.2/24 dev eth1
        - ip address replace 2001:db8::2/64 dev eth1 nodad
        - ip route replace 198.51.100.0/24 via 192.0.2.1
        - ip netns add inner
        - ip link set eth2 netns inner
        - ip -n inner address add 198.51.100.2/24 dev eth2
        - ip -n inner link set eth2 up
        - ip -n inner route add default via 198.51.100.1
  links:
    - endpoints: ["a:eth1", "b:eth1"]
    - endpoints: ["a:eth2", "b:eth2"]
"""
CUT = "a:eth1-b:eth1"
ENDS = [
    Endpoint("a", "a"),
    Endpoint("b", "b"),
    Endpoint("a6", "a", family=6),
    Endpoint("b6", "b", family=6),
    Endpoint("inner", "b", "inner"),
]
OVER_THE_CUT = {("a", "b"), ("b", "a"), ("a6", "b6"), ("b6", "a6"), ("b", "inner"), ("inner", "b")}
BESIDE_IT = {("a", "inner"), ("inner", "a")}


@pytest.fixture
def lab(write: Callable[[str], Path]) -> Iterator[Lab]:
    with Lab.load(write(PAIR)) as lab:
        yield lab


def mend(lab: Lab) -> None:
    with lab.locked():
        faults.restore(lab, lambda _: None)


def valid(lab: Lab, run: Callable[[], Report], undo: Callable[[], object]) -> Report:
    """Return a report of a run whose control flow had no gap."""
    for _ in range(RUNS):
        report = run()
        if report.valid:
            return report
        undo()
    pytest.fail(f"no valid run in {RUNS}: {report.invalid}")


def named(flows: tuple[Flow, ...], wanted: Callable[[Flow], object]) -> set[tuple[str, str]]:
    return {(flow.source, flow.target) for flow in flows if wanted(flow)}


@pytest.mark.parametrize("silent", [False, True], ids=["clean", "silent"])
def test_a_cut_costs_the_flows_over_it_and_no_other_and_mending_brings_them_back(
    lab: Lab, silent: bool
) -> None:
    def cut() -> str:
        return faults.cut(lab, CUT, silent=silent)

    def restore() -> str:
        return " ".join(faults.restore(lab, lambda _: None))

    broken = valid(lab, lambda: measure(lab, ENDS, cut, settle=0.5, limit=1), lambda: mend(lab))
    assert named(broken.flows, lambda flow: flow.ran_before) == OVER_THE_CUT | BESIDE_IT
    assert named(broken.flows, lambda flow: flow.lost) == OVER_THE_CUT
    assert named(broken.flows, lambda flow: flow.back) == BESIDE_IT
    for flow in broken.flows:
        if flow.lost:
            (gap,) = flow.gaps
            assert 0 <= gap.begin <= broken.took + 20
            assert gap.end == pytest.approx(broken.until, abs=10)
            assert flow.outage == 10 * flow.lost
    assert not broken.settled
    assert [flow.lost for flow in broken.control] == [0, 0]
    assert as_json(broken)["worst"] in [{"from": a, "to": b} for a, b in OVER_THE_CUT]

    mended = measure(lab, ENDS, restore, mends=True, settle=0.5, limit=10)
    assert mended.settled
    assert named(mended.flows, lambda flow: flow.ran_before) == BESIDE_IT
    assert named(mended.flows, lambda flow: flow.back) == OVER_THE_CUT | BESIDE_IT


def test_a_node_that_ends_and_comes_back(lab: Lab) -> None:
    """What it sent and saw until then is known, and its endpoints are found again when it is up."""

    def off() -> str:
        return faults.power_off(lab, "b")

    def restore() -> str:
        return " ".join(faults.restore(lab, lambda _: None))

    broken = valid(lab, lambda: measure(lab, ENDS, off, settle=0.5, limit=10), lambda: mend(lab))
    assert broken.settled, "nothing is waited for that cannot come back"
    for flow in broken.flows:
        (gap,) = flow.gaps
        assert flow.ran_before
        assert 0 <= gap.begin <= broken.took + 20
        assert not flow.back
    # Where its endpoints are cannot be asked before it is up.
    mended = measure(lab, ENDS, restore, mends=True, settle=0.5, limit=10)
    assert mended.settled
    assert named(mended.flows, lambda flow: flow.back) == OVER_THE_CUT | BESIDE_IT
    for flow in mended.flows:
        assert 0 < flow.outages[-1].end <= mended.took + 1000
    came = {route.prefix: route.back for route in mended.routes if route.node == "b"}
    assert came.keys() == {"192.0.2.0/24", "198.51.100.0/24", "2001:db8::/64"}


def test_where_nothing_runs_nothing_is_broken(lab: Lab) -> None:
    lab.exec("a", ["ip", "link", "set", "eth1", "down"])
    with pytest.raises(LabError, match="none of the 2 flows among its endpoints runs; nothing was done"):
        measure(lab, ENDS[:2], lambda: pytest.fail("it was broken"))


def test_a_failing_act_is_told_and_nothing_of_the_measurement_is_left(lab: Lab) -> None:
    trace, links = Trace(lab.name), host_links()

    def act() -> str:
        assert len(traffic_of(os.getpid())) == len(ENDS) + 2
        assert host_links() == links
        raise LabError("it would not break")

    with pytest.raises(LabError, match="it would not break"):
        measure(lab, ENDS, act)
    assert traffic_of(os.getpid()) == []
    lab.down()
    trace.assert_nothing_left()


def host_links() -> str:
    return subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout


def traffic_of(pid: int) -> list[Process]:
    """Return the descendants of a process that send."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        process = Process.find(int(child))
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        if process and words[0] != "nsenter" and any(word.endswith("traffic.py") for word in words):
            found.append(process)
        found += traffic_of(int(child))
    return found


def test_a_killed_measurement_leaves_no_process_behind(lab: Lab) -> None:
    script = (
        "import sys\n"
        "from fabric.lab.lab import Lab\n"
        "from tests.scenarios.test_lab_report import ENDS, measure\n"
        "def act():\n"
        "    print('acting', flush=True)\n"
        "    sys.stdin.read()\n"
        "measure(Lab.load(sys.argv[1]), ENDS, act)\n"
    )
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", script, str(lab.file)]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as runner:
        assert runner.stdout
        assert runner.stdout.readline() == "acting\n"
        programs = traffic_of(runner.pid)
        assert len(programs) == len(ENDS) + 2
        runner.kill()
    until(lambda: not [process for process in programs if process.alive])


def test_a_machine_that_is_too_busy_makes_the_run_invalid(lab: Lab) -> None:
    def act() -> str:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        control = [process.pid for process in traffic_of(os.getpid()) if str(process.pid) in children]
        assert len(control) == 2
        for pid in control:
            os.kill(pid, signal.SIGSTOP)
        try:
            lab.exec("a", ["sleep", "0.4"])
        finally:
            for pid in control:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        return "the control stood still"

    report = measure(lab, ENDS[:2], act, settle=0.5)
    assert [flow.lost for flow in report.flows] == [0, 0]
    assert not report.valid
    assert "the control flow, on a veth that nothing touches, has gaps of up to" in report.invalid


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with triangle.up(tmp_path_factory.mktemp("triangle"), f"report-{os.getpid()}") as lab:
        yield lab


HOSTS = [Endpoint("h1", "h1"), Endpoint("h2", "h2")]


def test_routes_that_move_are_told_with_the_loss(routed: Lab) -> None:
    def cut() -> str:
        return faults.cut(routed, triangle.DIRECT)

    def undo() -> str:
        mend(routed)
        until(lambda: triangle.converged(routed))
        return "mended, and converged"

    broken = valid(routed, lambda: measure(routed, HOSTS, cut, settle=1, limit=20), undo)
    told = {(route.node, route.prefix): route for route in broken.routes}
    moved = [told["r1", str(triangle.P2)], told["r2", str(triangle.P1)]]
    assert [(route.before, route.changes[-1].next_hops) for route in moved] == [
        (("10.0.12.2",), ("10.0.13.2",)),
        (("10.0.12.1",), ("10.0.23.2",)),
    ]
    back = [route.back or route.changed or 0 for route in moved]
    assert named(broken.flows, lambda flow: flow.lost) == {("h1", "h2"), ("h2", "h1")}
    assert broken.settled
    assert json.loads(json.dumps(as_json(broken)))["routes"]
    for flow in broken.flows:
        # A flow runs again once both routers go round by the third.
        assert flow.back
        assert flow.outages[-1].end <= max(back) + 100
    # What was said of the changes adds up to what the kernel has.
    for router in ("r1", "r2", "r3"):
        table = {str(prefix): hops for prefix, hops in routers.kernel_table(routed, router).items()}
        for route in broken.routes:
            if route.node == router:
                assert table.get(route.prefix, frozenset()) == set(route.changes[-1].next_hops)

    mended = measure(routed, HOSTS, undo, mends=True, settle=0.5, limit=10)
    assert mended.settled
    changed = {(route.node, route.prefix) for route in mended.routes if route.changed}
    assert changed >= {("r1", str(triangle.P2)), ("r2", str(triangle.P1))}


def test_a_silent_cut_is_found_by_the_hold_timer_and_costs_that_much(routed: Lab) -> None:
    def cut() -> str:
        return faults.cut(routed, triangle.DIRECT, silent=True)

    def undo() -> None:
        mend(routed)
        until(lambda: triangle.converged(routed))

    broken = valid(routed, lambda: measure(routed, HOSTS, cut, settle=1, limit=20), undo)
    assert broken.settled
    for flow in broken.flows:
        assert 1500 <= flow.longest <= 4500, "the timers are 1 and 3 seconds"
    undo()
