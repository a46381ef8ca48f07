"""The plan of tunnel devices as data; then walks over the fake, also under refusals."""

import asyncio
import errno
from dataclasses import replace
from ipaddress import ip_address
from itertools import permutations

import pytest

from fabric.plan.encap import IPIP, VXLAN, VXLAN6
from fabric.plan.tunnels import Create, Far, HostTunnel, Op, Remove, Repair, Tunnel, apply, plan
from tests.fakes.tunnels import FakeTunnels

V4, V6 = ip_address("192.0.2.1"), ip_address("2001:db8::1")


def far(number: int, node: str = "192.0.2.{}") -> Far:
    return Far(
        ip_address(f"10.244.{number}.0"), f"66:00:00:00:00:{number:02x}", ip_address(node.format(number))
    )


OVER4 = Tunnel(
    VXLAN, ip_address("10.244.1.0"), V4, 1450, "66:00:00:00:00:01", 4096, 4789, frozenset({far(2), far(3)})
)
OVER6 = Tunnel(VXLAN6, ip_address("fd00:244::1"), V6, 1430, "66:00:00:00:00:11", 4096, 4789)
TUNL0 = Tunnel(IPIP, ip_address("10.244.1.1"), V4, 1480)
AT_4790 = replace(OVER4, port=4790)
FEWER, MOVED = (
    replace(OVER4, far=frozenset({far(2)})),
    replace(OVER4, far=frozenset({far(2), far(3, "198.51.100.3")})),
)


def named(*tunnels: Tunnel) -> dict[str, Tunnel]:
    return {tunnel.name: tunnel for tunnel in tunnels}


@pytest.mark.parametrize(
    ("desired", "actual", "in_sync", "want"),
    [
        pytest.param([OVER4, TUNL0], [OVER4, TUNL0], True, [], id="nothing to do"),
        pytest.param([OVER4, OVER6], [], True, [Create(OVER6), Create(OVER4)], id="first boot"),
        pytest.param([TUNL0], [OVER4], True, [Remove("vxlan.fabric"), Create(TUNL0)], id="another mode"),
        pytest.param([TUNL0], [OVER4], False, [Create(TUNL0)], id="no sweep before in-sync"),
        pytest.param([FEWER], [OVER4], True, [Repair(FEWER)], id="a node left"),
        pytest.param([FEWER], [OVER4], False, [], id="a node not heard of yet"),
        pytest.param([OVER4], [FEWER], False, [Repair(OVER4)], id="a node more, before in-sync"),
        pytest.param([MOVED], [OVER4], False, [Repair(MOVED)], id="a node moved, before in-sync"),
        pytest.param([AT_4790], [OVER4], True, [Remove("vxlan.fabric"), Create(AT_4790)], id="another port"),
        pytest.param([AT_4790], [OVER4], False, [], id="another port, before in-sync"),
        pytest.param(
            [replace(TUNL0, local=V6)], [TUNL0], True, [], id="whence tunl0 sends is the kernel's choice"
        ),
        pytest.param(
            [replace(OVER4, local=ip_address("192.0.2.9"))],
            [OVER4],
            True,
            [Repair(replace(OVER4, local=ip_address("192.0.2.9")))],
            id="another address of its own",
        ),
    ],
)
def test_plan(desired: list[Tunnel], actual: list[Tunnel], in_sync: bool, want: list[Op]) -> None:
    held = {tunnel.name: HostTunnel(tunnel) for tunnel in actual}
    assert plan(named(*desired), held, in_sync=in_sync) == want


def test_what_is_down_or_edited_is_repaired() -> None:
    assert plan(named(OVER4), {OVER4.name: HostTunnel(OVER4, sound=False)}) == [Repair(OVER4)]
    assert plan(named(OVER4), {OVER4.name: HostTunnel(OVER4, received=7)}) == []


GOALS = [(), (OVER4,), (OVER4, OVER6), (AT_4790, TUNL0), (FEWER, TUNL0), (TUNL0,)]


@pytest.mark.parametrize("refuse", ["", "tunl0", "vxlan.fabric", "vxlan-v6.fabric"])
@pytest.mark.parametrize("walk", list(permutations(GOALS, 3)))
def test_the_devices_depend_on_the_goal_not_on_the_walk(
    walk: tuple[tuple[Tunnel, ...], ...], refuse: str
) -> None:
    kernel = FakeTunnels(refuse={refuse: errno.EBUSY})
    for goal in walk:
        held = kernel.tunnels
        refused = asyncio.run(apply(plan(named(*goal), held), kernel))
        assert all(err.code in (errno.EBUSY, errno.EOPNOTSUPP) for err in refused.values())
        if refused:
            assert not asyncio.run(apply(plan(named(*goal), held), kernel))
        assert kernel.tunnels.keys() == named(*goal).keys()
        assert plan(named(*goal), kernel.tunnels) == []


def test_a_refusal_spares_the_rest_and_is_planned_again() -> None:
    kernel = FakeTunnels(lacks={"ipip"})
    refused = asyncio.run(apply(plan(named(OVER4, TUNL0), {}), kernel))
    assert {op: err.code for op, err in refused.items()} == {Create(TUNL0): errno.EOPNOTSUPP}
    assert plan(named(OVER4, TUNL0), kernel.tunnels) == [Create(TUNL0)]
