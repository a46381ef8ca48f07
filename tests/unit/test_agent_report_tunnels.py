"""What a node says of its tunnels, and how `node status` prints it."""

import errno
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from fabric.agent import report
from fabric.agent.desired import Desired
from fabric.agent.overlay import Overlay, Row
from fabric.agent.passes import Outcome
from fabric.agent.routing import Routing
from fabric.agent.snapshot import Snapshot, fold
from fabric.agent.state import State
from fabric.cli import node as cli
from fabric.errors import DataplaneError
from fabric.model.wire import to_json
from fabric.ops.resources import key_of
from fabric.plan import links
from fabric.plan.encap import IPIP, VXLAN
from fabric.plan.links import Veth
from fabric.plan.mtu import Mtus
from fabric.plan.tunnels import Create, Far, Tunnel
from fabric.store.kv import Changes, KeyValue
from tests.unit.overlays import endpoint, node

OWN, NOW = ip_address("192.0.2.1"), 1000.0
TUNL0 = Tunnel(IPIP, ip_address("10.0.1.0"), OWN, 1480)
FAR = Far(ip_address("10.0.2.1"), "66:00:00:00:00:02", ip_address("192.0.2.2"))
VTEP = Tunnel(
    VXLAN, ip_address("10.0.1.1"), OWN, 1450, "66:00:00:00:00:01", 4096, 4789, frozenset({FAR}), offload=False
)


def state(wanted: tuple[Tunnel, ...], standing: tuple[Tunnel, ...], **overlay: Any) -> State:
    return State(
        "n1",
        desired=Desired(tunnels={tunnel.name: tunnel for tunnel in wanted}),
        routing=Routing(overlay=Overlay(tunnels=wanted, **overlay)),
        tunnels={tunnel.name: tunnel for tunnel in standing},
        probed={"vxlan.fabric": "TCP arrives at 1 of 1 far ends"},
    )


@pytest.mark.parametrize(
    ("wanted", "standing", "want"),
    [
        ((), (), {}),
        ((VTEP,), (VTEP,), {"vxlan.fabric": "up"}),
        ((VTEP,), (), {"vxlan.fabric": "not made"}),
        ((TUNL0,), (VTEP,), {"tunl0": "not made", "vxlan.fabric": "lingers"}),
    ],
)
def test_a_tunnel_is_up_or_not_made_or_lingers(
    wanted: tuple[Tunnel, ...], standing: tuple[Tunnel, ...], want: dict[str, str]
) -> None:
    assert {t["device"]: t["state"] for t in report.tunnels(state(wanted, standing))} == want


def test_that_the_other_end_is_still_being_made_is_a_problem_once_it_lasts() -> None:
    found = state((), (), problems={"Node n3": "has no IPIP"})
    found.waiting = {f"Node n{n}": (f"n{n} has no end of VXLAN yet", NOW) for n in (2, 3)}
    lasting = NOW + report.WAITS_AT_MOST
    for now, problems in (
        (lasting - 1, ["Node n3: has no IPIP"]),
        (
            lasting,
            ["Node n2: n2 has no end of VXLAN yet", "Node n3: has no IPIP; n3 has no end of VXLAN yet"],
        ),
    ):
        said = report.status(found, now)
        assert (said["problems"], said["bgp_problems"]) == (problems, [])


def test_a_tunnel_that_is_refused_makes_the_node_not_ready_and_is_not_told_as_if_it_came_yet() -> None:
    refused = DataplaneError("tunnel vxlan.fabric", errno.EEXIST, "VNI 4096 is held by flannel.1")
    row = Row("n2", 4, "native", "n1 has no end of VXLAN yet")
    found = state((VTEP,), (), rows=(row,))
    found.passed(Outcome())
    ready = set(found.missing)
    assert not any("vxlan" in what for what in ready)  # it is being made
    found.passed(Outcome(refused={Create(VTEP): refused}))
    [lost] = set(found.missing) - ready
    assert lost.startswith("tunnel vxlan.fabric does not stand: ")
    assert "held by flannel.1" in lost
    said = report.status(found, NOW)
    assert [way["why"] for way in said["ways"]] == ["n1 has no end of VXLAN: vxlan.fabric was refused"]
    found.tunnels = {VTEP.name: VTEP}  # what was refused is a change of it
    assert set(found.missing) == ready


def test_a_tunnel_that_cannot_be_had_makes_the_node_not_ready_and_keeps_no_join_from_going_on() -> None:
    found = state((), (), unmade={"tunl0": "the kernel has no IPIP (module ipip)"})
    snapshot = fold(Snapshot(), Changes(1, (KeyValue(key_of(node(1)), to_json(node(1)), 1),)))
    found.snapshot = replace(snapshot, in_sync=True)
    found.ribs = replace(found.ribs, connected=True)
    found.passed(Outcome())
    said = report.status(found, NOW)
    assert said["missing"] == ["tunnel tunl0 does not stand: the kernel has no IPIP (module ipip)"]
    assert (said["ready"], said["locally_ready"]) == (False, True)


@pytest.mark.parametrize(("code", "cure"), [(errno.ENOENT, True), (errno.EBUSY, False)])
def test_a_container_that_has_gone_is_told_with_how_to_take_its_workload_away(code: int, cure: bool) -> None:
    gone = endpoint("web", 1, "10.244.1.5/32")
    gone = gone.model_copy(update={"spec": gone.spec.model_copy(update={"interface_name": "fab1"})})
    found = state((), ())
    found.snapshot = fold(Snapshot(), Changes(1, (KeyValue(key_of(gone), to_json(gone), 1),)))
    veth = Veth("fab1", "/run/netns/web", "eth0", "02:00:00:00:00:01", (), Mtus(1500, 1500))
    found.outcome = Outcome(refused={links.Create(veth): DataplaneError("network namespace", code)})
    [said] = report.status(found, NOW)["refused"]
    assert ("`fabricctl workload del web`" in said) == cure


def test_that_bgp_is_off_is_a_line_of_status(capsys: pytest.CaptureFixture[str]) -> None:
    for on in (True, False):
        found = state((), ())
        found.bgp = on
        cli._print_status(report.status(found, NOW))
        assert ("bgp        off" in capsys.readouterr().out) != on


def test_the_rules_are_about_tunnels_that_stand_and_that_are_to() -> None:
    longer = replace(VTEP, mtu=1400)
    assert set(state((longer, TUNL0), (VTEP,)).all_tunnels) == {longer, TUNL0}
    assert state((), (VTEP,)).all_tunnels == (VTEP,)


def test_status_prints_tunnels_and_the_ways_that_are_not_simply_native(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = (
        Row("n2", 4, "vxlan", "no IPIP in the kernel of n2"),
        Row("n3", 4, "native"),
        Row("n4", 4, "native", "n4 has no end of IPIP yet"),
    )
    cli._print_status(report.status(state((TUNL0, VTEP), (TUNL0, VTEP), rows=rows), NOW))
    printed = capsys.readouterr().out
    assert printed.splitlines()[-7:] == [
        "TUNNEL        ADDRESS   MTU   FAR ENDS  CHECKSUMS                                      STATE",
        "tunl0         10.0.1.0  1480  -         -                                              up",
        "vxlan.fabric  10.0.1.1  1450  1         by the kernel; TCP arrives at 1 of 1 far ends  up",
        "",
        "NODE  FAMILY  ENCAPSULATION  WHY",
        "n2    IPv4    vxlan          no IPIP in the kernel of n2",
        "n4    IPv4    native         n4 has no end of IPIP yet",
    ]


def test_without_tunnels_status_says_nothing_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    cli._print_status(report.status(state((), ()), NOW))
    assert "TUNNEL" not in capsys.readouterr().out
