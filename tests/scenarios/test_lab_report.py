"""What a fault costs, measured in real labs: every flow that it hurts, none that it does not, and the routes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

from fabric.errors import LabError
from fabric.lab import faults, routers
from fabric.lab.expect import Endpoint
from fabric.lab.lab import Lab
from fabric.lab.measure import PORT, measure
from fabric.lab.node import Process
from fabric.lab.report import Flow, Report
from fabric.lab.report_forms import as_json
from tests.scenarios import triangle
from tests.scenarios.labs import Trace, until

RUNS = 3  # attempts at a valid measurement
# What is measured to 10 ms needs the machine for itself; that something ends or is refused does not.
alone = pytest.mark.alone


def mend(lab: Lab) -> None:
    with lab.locked():
        faults.restore(lab, lambda _: None)


def named(flows: tuple[Flow, ...], wanted: Callable[[Flow], object]) -> set[tuple[str, str]]:
    return {(flow.source, flow.target) for flow in flows if wanted(flow)}


# A fault of each kind, and its mending

# a is between all others: b is cut off cleanly, c silently, d is powered off, and e is beside all that.
STAR = """\
    a:
      exec:
        - sysctl -qw net.ipv4.ip_forward=1
        - ip address replace 10.0.1.1/24 dev b
        - ip address replace 2001:db8::1/64 dev b nodad
        - ip address replace 10.0.2.1/24 dev c
        - ip address replace 10.0.3.1/24 dev d
        - ip address replace 10.0.4.1/24 dev inner
        - ip address replace 10.0.5.1/24 dev e
    b:
      exec:
        - ip address replace 10.0.1.2/24 dev eth1
        - ip address replace 2001:db8::2/64 dev eth1 nodad
        - ip route replace default via 10.0.1.1
    c: {exec: [ip address replace 10.0.2.2/24 dev eth1, ip route replace default via 10.0.2.1]}
    d:
      exec:
        # Known by this one, it would talk to nobody.
        - ip address replace 2001:db8:3::2/64 dev eth1 nodad
        - sleep 0.5
        - ip address replace 10.0.3.2/24 dev eth1
        - ip route replace default via 10.0.3.1
        - ip netns add inner
        - ip link set eth2 netns inner
        - ip -n inner address add 10.0.4.2/24 dev eth2
        - ip -n inner link set eth2 up
        - ip -n inner route add default via 10.0.4.1
    e: {exec: [ip address replace 10.0.5.2/24 dev eth1, ip route replace default via 10.0.5.1]}
  links:
    - endpoints: ["a:b", "b:eth1"]
    - endpoints: ["a:c", "c:eth1"]
    - endpoints: ["a:d", "d:eth1"]
    - endpoints: ["a:inner", "d:eth2"]
    - endpoints: ["a:e", "e:eth1"]
"""
ONE_FAMILY, OTHER_FAMILY = ("a", "b", "c", "d", "inner", "e"), ("a6", "b6")
POINTS = [
    *(Endpoint(name, name) for name in ("a", "b", "c", "d", "e")),
    *(Endpoint("a6", "a", family=6), Endpoint("b6", "b", family=6), Endpoint("inner", "d", "inner")),
]
ALL = {(x, y) for family in (ONE_FAMILY, OTHER_FAMILY) for x in family for y in family if x != y}


def touching(*names: str) -> set[tuple[str, str]]:
    return {pair for pair in ALL if not {*names}.isdisjoint(pair)}


OF_D = touching("d", "inner")


@dataclass(frozen=True)
class Story:
    """What was measured, one after the other: d is powered off, b and c are cut off, all is mended."""

    off: Report
    cut: Report
    mended: Report


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    file = tmp_path_factory.mktemp("star") / "star.clab.yml"
    defaults = "{kind: linux, image: alpine, network-mode: none}"
    file.write_text(f"name: star-{os.getpid()}\ntopology:\n  defaults: {defaults}\n  nodes:\n{STAR}")
    with Lab.load(file) as lab:
        for _ in range(RUNS):
            told = tell(lab)
            invalid = [report.invalid for report in (told.off, told.cut, told.mended) if not report.valid]
            if not invalid:
                yield told
                return
        pytest.fail(f"no valid run in {RUNS}: {invalid}")


def tell(lab: Lab) -> Story:
    def off() -> str:
        return faults.power_off(lab, "d")

    def cut() -> str:
        return " ".join([faults.cut(lab, "a:b-b:eth1"), faults.cut(lab, "a:c-c:eth1", silent=True)])

    def restore() -> str:
        done = " ".join(faults.restore(lab, lambda _: None))
        lab.exec("e", ["sleep", "1.5"])  # another node's startup-delay would take as long
        return done

    return Story(
        off=measure(lab, POINTS, off, settle=0.5, limit=10),
        cut=measure(lab, POINTS, cut, settle=0.5, limit=1),
        mended=measure(lab, POINTS, restore, mends=True, settle=0.5, limit=10),
    )


@alone
@pytest.mark.parametrize("cut_off", [["b", "a6", "b6"], ["c"]], ids=["clean", "silent"])
def test_a_cut_costs_every_flow_over_it(story: Story, cut_off: list[str]) -> None:
    over = [flow for flow in story.cut.flows if not {flow.source, flow.target}.isdisjoint(cut_off)]
    assert named(tuple(over), lambda flow: True) == touching(*cut_off) - OF_D
    for flow in over:
        (gap,) = flow.gaps
        assert flow.ran_before
        assert 0 <= gap.begin <= story.cut.took + 60
        assert gap.end == pytest.approx(story.cut.until, abs=10)
        assert flow.outage == 10 * flow.lost


@alone
def test_a_cut_costs_no_other_flow(story: Story) -> None:
    assert named(story.cut.flows, lambda flow: flow.ran_before) == ALL - OF_D
    assert named(story.cut.flows, lambda flow: not flow.lost) == {("a", "e"), ("e", "a")}
    assert named(story.cut.flows, lambda flow: flow.back) == {("a", "e"), ("e", "a")}
    assert [flow.lost for flow in story.cut.control] == [0, 0]
    assert not story.cut.settled
    worst = as_json(story.cut)["worst"]
    assert (worst["from"], worst["to"]) in touching("b", "c", "b6") - OF_D


@alone
def test_a_node_that_ends_is_not_waited_for_and_what_it_saw_until_then_is_known(story: Story) -> None:
    assert story.off.settled
    assert named(story.off.flows, lambda flow: flow.ran_before) == ALL
    assert named(story.off.flows, lambda flow: flow.gaps) == OF_D
    for flow in story.off.flows:
        if flow.gaps:
            (gap,) = flow.gaps
            assert 0 <= gap.begin <= story.off.took + 60
            assert not flow.back


@alone
def test_mending_brings_all_back(story: Story) -> None:
    assert story.mended.settled
    assert named(story.mended.flows, lambda flow: flow.ran_before) == {("a", "e"), ("e", "a")}
    assert named(story.mended.flows, lambda flow: flow.back) == ALL
    for flow in story.mended.flows:
        assert flow.ran_before or flow.outages[-1].end > 0
    came = {route.prefix for route in story.mended.routes if route.node == "d" and route.back}
    assert came == {"0.0.0.0/0", "10.0.3.0/24", "2001:db8:3::/64"}


@alone
def test_what_was_lost_ends_when_it_is_mended_though_the_act_goes_on(story: Story) -> None:
    back = [flow.outages[-1].end for flow in story.mended.flows if not flow.ran_before]
    # Most of them: one may wait for a neighbour to be asked again.
    assert median(back) < story.mended.took - 700


# What a measurement does besides

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


@pytest.fixture
def lab(write: Callable[[str], Path]) -> Iterator[Lab]:
    with Lab.load(write(PAIR)) as lab:
        yield lab


def test_where_nothing_runs_nothing_is_broken(lab: Lab) -> None:
    faults.cut(lab, CUT)
    with pytest.raises(LabError, match="none of the 2 flows among its endpoints runs; nothing was done"):
        measure(lab, ENDS[:2], lambda: pytest.fail("it was broken"))


def test_between_fewer_than_two_endpoints_nothing_is_measured_and_nothing_done(tmp_path: Path) -> None:
    file = tmp_path / "x.clab.yml"
    file.write_text("name: x\ntopology: {nodes: {a: {kind: linux, image: alpine}}}\n")
    with pytest.raises(LabError, match=r"nothing was done; name two .* in `endpoints:` of .*x\.verify\.yml"):
        measure(Lab.load(file), ENDS[:1], lambda: pytest.fail("it was broken"), mends=True)


def test_a_port_that_is_taken_is_told_in_a_line(lab: Lab) -> None:
    script = (
        "import socket\n"
        "taken = socket.socket(type=socket.SOCK_DGRAM)\n"
        f"taken.bind(('192.0.2.1', {PORT}))\n"
        "print('bound', flush=True)\n"
        "input()\n"
    )
    pipe = subprocess.PIPE
    with lab.popen("a", [sys.executable, "-c", script], stdin=pipe, stdout=pipe) as process:
        assert process.stdout
        assert process.stdout.readline() == "bound\n"
        why = f"endpoint a: its traffic ended with status 1: UDP port {PORT} of 192.0.2.1: Address already in use;"
        with pytest.raises(LabError, match=why):
            measure(lab, ENDS[:2], lambda: pytest.fail("it was broken"))


@pytest.mark.parametrize("error", [LabError("it would not break"), KeyboardInterrupt()], ids=repr)
def test_what_ends_the_act_is_told_and_nothing_of_the_measurement_is_left(
    lab: Lab, error: BaseException
) -> None:
    trace, links, threads = Trace(lab.name), host_links(), threading.active_count()

    def act() -> str:
        assert len(traffic_of(os.getpid())) == len(ENDS) + 2
        assert host_links() == links
        raise error

    with pytest.raises(type(error)) as raised:
        measure(lab, ENDS, act)
    assert raised.value is error
    assert threading.active_count() == threads
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


# Routes


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with triangle.up(tmp_path_factory.mktemp("triangle"), f"report-{os.getpid()}") as lab:
        yield lab


HOSTS = [Endpoint("h1", "h1"), Endpoint("h2", "h2")]


def whole(lab: Lab) -> str:
    mend(lab)
    until(lambda: triangle.converged(lab))
    return "mended, and converged"


def cost(lab: Lab, *, silent: bool) -> Report:
    """Return the report of a cut of the direct link whose control flow had no gap."""
    for _ in range(RUNS):
        whole(lab)
        report = measure(
            lab, HOSTS, lambda: faults.cut(lab, triangle.DIRECT, silent=silent), limit=20, settle=0.5
        )
        if report.valid:
            return report
    pytest.fail(f"no valid run in {RUNS}: {report.invalid}")


@alone
def test_routes_that_move_are_told_with_the_loss(routed: Lab) -> None:
    broken = cost(routed, silent=False)
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
        assert flow.outages[-1].end <= max(back) + 300
    # What was said of the changes adds up to what the kernel has.
    for router in ("r1", "r2", "r3"):
        table = {str(prefix): hops for prefix, hops in routers.kernel_table(routed, router).items()}
        for route in broken.routes:
            if route.node == router:
                assert table.get(route.prefix, frozenset()) == set(route.changes[-1].next_hops)

    mended = measure(routed, HOSTS, lambda: whole(routed), mends=True, settle=0.5, limit=10)
    assert mended.settled
    changed = {(route.node, route.prefix) for route in mended.routes if route.changed}
    assert changed >= {("r1", str(triangle.P2)), ("r2", str(triangle.P1))}


@alone
def test_a_silent_cut_is_found_by_the_hold_timer_and_costs_that_much(routed: Lab) -> None:
    broken = cost(routed, silent=True)
    assert broken.settled
    for flow in broken.flows:
        assert 1500 <= flow.longest <= 4500, "the timers are 1 and 3 seconds"
