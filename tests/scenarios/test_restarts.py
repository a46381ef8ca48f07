"""What dies, comes back, and nobody who pings notices: agent, speaker, ExaBGP, supervisor, etcd, by kill -9.

Loss is counted in numbered datagrams, one every 10 ms, answered across the fabric. Beside them runs a
control flow on a veth that nobody touches: where that has a gap, the machine was too busy to measure, and
the run is repeated, never passed.
"""

from __future__ import annotations

import json
import random
import select
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest

from fabric.ipam import block
from fabric.lab.node import NodeProcess
from fabric.model.wire import from_json
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.store import keys
from tests.scenarios.fabric import (
    AGENT,
    EXABGP,
    FRR,
    NODE1,
    NODE2,
    OURS,
    OUTSIDE,
    ROUTERS,
    SPEAKER,
    SUPERVISOR,
    Fabric,
    Router,
    until,
    up,
)

pytestmark = pytest.mark.alone

RUNS = 3  # attempts at a valid measurement
LONGEST_PAUSE = 0.2  # seconds without a datagram sent that make a run invalid
CONTROL = "198.51.100"
NODES = (NODE1, NODE2)


@pytest.fixture(scope="module", params=ROUTERS, ids=[router.name for router in ROUTERS])
def traffic(request: pytest.FixtureRequest) -> Iterator[Fabric]:
    """Two nodes, web on the first and db on the second, both answering, and a veth for the control flow."""
    router: Router = request.param
    with up(router, "restarts") as fabric:
        fabric.join(NODE1, NODE2)
        fabric.attach("node1", "web")
        fabric.attach("node2", "db")
        untouched_veth(fabric)
        with (
            fabric.echo("node1", "/run/netns/web"),
            fabric.echo("node2", "/run/netns/db"),
            fabric.echo("node2", "/run/netns/far"),
        ):
            yield fabric


@pytest.fixture
def fabric(traffic: Fabric) -> Fabric:
    """The same, healthy again after the test before."""
    until(lambda: healthy(traffic))
    return traffic


@pytest.fixture(scope="module")
def plain() -> Iterator[Fabric]:
    """For what no router has a part in."""
    with up(FRR, "outage") as fabric:
        fabric.join(NODE1, NODE2)
        fabric.attach("node1", "web")
        fabric.attach("node2", "db")
        until(lambda: healthy(fabric))
        yield fabric


def untouched_veth(fabric: Fabric) -> None:
    for name in ("near", "far"):
        fabric.netns("node2", name)
    fabric.run(
        "node2",
        *["ip", "link", "add", "c0", "netns", "near", "type", "veth", "peer", "name", "c0", "netns", "far"],
    )
    for name, last in (("near", 1), ("far", 2)):
        fabric.run("node2", *f"ip -n {name} addr add {CONTROL}.{last}/24 dev c0".split())
        fabric.run("node2", *f"ip -n {name} link set c0 up".split())


def healthy(fabric: Fabric) -> bool:
    """Sessions are up, and each block is in the router and in the other node."""
    status = [fabric.run(n.name, "fabricctl", "node", "status", check=False).returncode for n in NODES]
    if any(status) or not fabric.established("node1", "node2"):
        return False
    (one,), (two,) = fabric.blocks("node1"), fabric.blocks("node2")
    return (
        {one, two} <= fabric.table().keys()
        and two in fabric.routes("node1")
        and one in fabric.routes("node2")
    )


def picture(fabric: Fabric) -> Any:
    """Everything that must be the same before and after, but for the sessions."""
    return [
        fabric.table(),
        sorted(fabric.keys().items()),
        *(
            (fabric.workloads(n), fabric.links(n), fabric.routes(n), fabric.neighbours(n))
            for n in ("node1", "node2")
        ),
    ]


def since(fabric: Fabric) -> list[Any]:
    return [(s["since"], s["flaps"]) for node in ("node1", "node2") for s in fabric.sessions(node)]


def losses(fabric: Fabric, event: Callable[[], None]) -> dict[str, list[int]]:
    """Return the numbers of the datagrams that were not answered while `event` ran, by flow."""
    web = fabric.workloads("node1")["web"]["addresses"][0]
    db = fabric.workloads("node2")["db"]["addresses"][0]
    flows = {
        "web to db": ("node1", "/run/netns/web", db),
        "outside to web": (OUTSIDE, "", web),
        "control": ("node2", "/run/netns/near", f"{CONTROL}.2"),
    }
    for _ in range(RUNS):
        with ExitStack() as running:
            finishers = {name: running.enter_context(fabric.sender(*flow)) for name, flow in flows.items()}
            event()
            reports = {name: finish() for name, finish in finishers.items()}
        if all(report.pause < LONGEST_PAUSE for report in reports.values()) and not reports["control"].lost:
            return {name: report.lost for name, report in reports.items()}
        until(lambda: healthy(fabric))
    pytest.fail(f"no valid run in {RUNS}: the machine is too busy to measure: {reports}")


NONE_LOST: dict[str, list[int]] = {"web to db": [], "outside to web": [], "control": []}


@contextmanager
def route_changes(fabric: Fabric) -> Iterator[list[str]]:
    """Collect, until the block ends, every change of a container route in the router's and node2's kernel."""
    seen: list[str] = []
    with ExitStack() as running:
        monitors = {}
        for node in ("tor", "node2"):
            process = fabric.lab.popen(node, ["ip", "monitor", "route"], stdout=subprocess.PIPE)
            monitors[node] = running.enter_context(process)
            until(partial(hears, fabric, node, process))
        yield seen
        for node, process in monitors.items():
            process.terminate()
            out, _ = process.communicate(timeout=10)
            seen += [f"{node}: {line}" for line in out.splitlines() if "10.77." in line]


def hears(fabric: Fabric, node: str, monitor: NodeProcess) -> bool:
    """Whether the monitor says something when there is something to say."""
    for verb in ("add", "del"):
        fabric.run(node, "ip", "route", verb, "blackhole", "203.0.113.1/32")
    assert monitor.stdout
    return bool(select.select([monitor.stdout], [], [], 0.1)[0])


def updates(fabric: Fabric) -> list[int]:
    return [fabric.router.updates(fabric.lab, member) for member in NODES]


def back(fabric: Fabric, *patterns: str, but: list[int]) -> bool:
    """Each of these processes runs again, none of them one of the old."""
    found = [fabric.pids("node1", pattern) for pattern in patterns]
    return all(len(pids) == 1 and pids[0] not in but for pids in found)


def kill_and_return(fabric: Fabric, *patterns: str) -> None:
    """Kill -9 these of node1 at once, and return when all is healthy with new ones in their place."""
    before = [pid for pattern in patterns for pid in fabric.pids("node1", pattern)]
    fabric.kill("node1", *patterns)
    until(lambda: back(fabric, *patterns, but=before) and healthy(fabric))


def test_what_is_lost_is_counted_and_a_route_change_is_seen(fabric: Fabric) -> None:
    """Or the tests below would pass on anything."""
    web = fabric.workloads("node1")["web"]["addresses"][0]

    def event() -> None:
        fabric.run("tor", "ip", "route", "add", "blackhole", f"{web}/32")
        assert not fabric.pings(OUTSIDE, web)
        fabric.run("tor", "ip", "route", "del", "blackhole", f"{web}/32")

    with route_changes(fabric) as changes:
        lost = losses(fabric, event)
    assert lost["web to db"]
    assert lost["outside to web"]
    assert lost["control"] == []
    assert [change for change in changes if web in change]


def test_an_agent_that_is_killed_costs_no_datagram_and_no_bgp_message(fabric: Fabric) -> None:
    before = picture(fabric), since(fabric), updates(fabric)
    with route_changes(fabric) as changes:
        assert losses(fabric, lambda: kill_and_return(fabric, AGENT)) == NONE_LOST
    assert changes == []
    assert (picture(fabric), since(fabric), updates(fabric)) == before


@pytest.mark.parametrize(
    "victims",
    [
        pytest.param((SPEAKER,), id="speaker"),
        pytest.param((SPEAKER, AGENT), id="speaker and agent"),
        pytest.param((EXABGP,), id="exabgp"),
    ],
)
def test_a_killed_speaker_is_covered_by_graceful_restart(fabric: Fabric, victims: tuple[str, ...]) -> None:
    before, (block,) = picture(fabric), fabric.blocks("node1")
    gaps = []

    def event() -> None:
        started = since(fabric)
        old = [pid for pattern in victims for pid in fabric.pids("node1", pattern)]

        def recovered() -> bool:
            gaps.append(block not in fabric.table())
            return back(fabric, *victims, but=old) and healthy(fabric) and since(fabric) != started

        fabric.kill("node1", *victims)
        until(recovered)

    with route_changes(fabric) as changes:
        assert losses(fabric, event) == NONE_LOST
    assert changes == []
    assert not any(gaps)
    assert picture(fabric) == before


def test_a_killed_supervisor_takes_all_with_it_and_a_join_brings_all_back(fabric: Fabric) -> None:
    before = picture(fabric)

    def event() -> None:
        fabric.kill("node1", SUPERVISOR)
        until(lambda: not fabric.pids("node1", OURS))
        assert (fabric.links("node1"), fabric.routes("node1")) == before[2][1:3]
        fabric.join(NODE1)
        until(lambda: healthy(fabric))

    with route_changes(fabric) as changes:
        assert losses(fabric, event) == NONE_LOST
    assert changes == []
    assert picture(fabric) == before


def test_without_etcd_all_forwards_and_an_attach_is_refused(plain: Fabric) -> None:
    before, started = picture(plain), since(plain)
    path = plain.netns("node1", "late")
    add = ("workload", "add", "late", "--netns", path)
    with plain.frozen_etcd():
        at_once = plain.refused("node1", *add)
        until(lambda: not in_sync(plain))
        later = plain.refused("node1", *add)
        kernel = plain.links("node1"), plain.routes("node1"), plain.neighbours("node1")
        assert plain.pings("node1", plain.workloads("node2")["db"]["addresses"][0], "web")
    # This one was sent before anybody knew; etcd may carry it out yet, and the message says so.
    assert "workload default/late: not attached so far" in at_once
    assert "whether it was written is unknown" in at_once
    assert "ask again" in at_once
    assert "not in sync" in later
    assert "nothing was attached; try again" in later
    assert "10.10.3.2:2379" in later
    assert kernel == before[2][1:]
    until(lambda: healthy(plain) and whole(plain))
    assert since(plain) == started
    plain.ctl("node1", *add)
    assert "late" in plain.workloads("node1")
    plain.ctl("node1", "workload", "del", "late")
    assert (plain.links("node1"), plain.routes("node1"), plain.neighbours("node1")) == kernel


def in_sync(fabric: Fabric) -> bool:
    shown = fabric.run("node1", "fabricctl", "node", "status", "-o", "json", check=False).stdout
    answer: bool = json.loads(shown)["datastore"]["in_sync"]
    return answer


@pytest.mark.parametrize("what", ["link", "route", "neighbour"])
def test_what_is_removed_by_hand_is_healed(plain: Fabric, what: str) -> None:
    before, web = picture(plain), plain.workloads("node1")["web"]
    address, link = web["addresses"][0], web["interface"]
    command = {
        "link": f"link del {link}",
        "route": f"route del {address} dev {link} proto 143 metric 1024",
        "neighbour": f"neigh del {address} dev {link}",
    }
    plain.run("node1", "ip", *command[what].split())
    until(lambda: picture(plain) == before)
    assert plain.pings("node2", address, "db")


def test_an_agent_killed_amid_attaches_leaves_nothing_half_made(plain: Fabric) -> None:
    chance = random.Random(4)  # the same moments each time, as far as the machine allows
    names = [f"burst{i}" for i in range(16)]
    paths = {name: plain.netns("node1", name) for name in names}
    for group in (names[0:4], names[4:8], names[8:12], names[12:16]):
        until(lambda: healthy(plain))
        count = len(plain.links("node1")) + chance.randrange(1, 4)
        in_etcd = chance.random() < 0.5
        with ExitStack() as running:
            for name in group:
                argv = ["fabricctl", "workload", "add", name, "--netns", paths[name]]
                running.enter_context(
                    plain.lab.popen("node1", argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                )
            until(lambda c=count, e=in_etcd: attached(plain, e) >= c)  # type: ignore[misc]
            plain.kill("node1", AGENT)
    until(lambda: healthy(plain))
    until(lambda: whole(plain))
    for name in names:
        plain.ctl("node1", "workload", "add", name, "--netns", paths[name])
    assert whole(plain)
    with ExitStack() as running:
        for name in names[:8]:
            argv = ["fabricctl", "workload", "del", name]
            running.enter_context(
                plain.lab.popen("node1", argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
        until(lambda: attached(plain, in_etcd=True) <= len(names) - 2)
        plain.kill("node1", AGENT)
    until(lambda: healthy(plain))
    until(lambda: whole(plain))
    for name in plain.workloads("node1").keys() & set(names):
        plain.ctl("node1", "workload", "del", name)
    assert whole(plain)
    assert list(plain.workloads("node1")) == ["web"]


def attached(fabric: Fabric, in_etcd: bool) -> int:
    return len(endpoints(fabric.keys())) if in_etcd else len(fabric.links("node1"))


def endpoints(stored: Mapping[str, str]) -> list[WorkloadEndpoint]:
    """Return node1's endpoints."""
    read = [from_json(v) for key, v in stored.items() if key.startswith(keys.resources("workloadendpoints"))]
    return [e for e in read if isinstance(e, WorkloadEndpoint) and e.spec.node == "node1"]


def whole(fabric: Fabric) -> bool:
    """Endpoints, held addresses, handles, links, routes and neighbour entries of node1 are the same set."""
    stored = fabric.keys()
    found = endpoints(stored)
    held = {prefix.network_address for e in found for prefix in e.spec.ip_networks}
    blocks = [block.from_json(v) for key, v in stored.items() if key.startswith(keys.BLOCKS)]
    owned = [
        (b.address(i), owner.handle)
        for b in blocks
        for i, owner in enumerate(b.owners)
        if owner and b.node == "node1"
    ]
    handles = {key.removeprefix(keys.HANDLES) for key in stored if key.startswith(keys.HANDLES)}
    links = {e.spec.interface_name for e in found}
    routes = {dst: dev for dst, dev in fabric.routes("node1").items() if dev.startswith("fab")}
    return (
        {address for address, _ in owned} == held
        and len(owned) == len(held)
        and {handle for _, handle in owned} == {handle for handle in handles if "node1" in (handle or "")}
        and set(fabric.links("node1")) == links == set(routes.values())
        and {ip_address(dst) for dst in routes} == held == {ip_address(a) for a in fabric.neighbours("node1")}
    )
