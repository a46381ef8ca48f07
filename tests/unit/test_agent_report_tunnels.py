"""What a node says of its tunnels, and how `node status` prints it."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from fabric.agent import report
from fabric.agent.desired import Desired
from fabric.agent.overlay import Overlay, Row
from fabric.agent.routing import Routing
from fabric.agent.state import State
from fabric.cli import node as cli
from fabric.plan.encap import IPIP, VXLAN
from fabric.plan.tunnels import Far, Tunnel

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
