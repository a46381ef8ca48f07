"""`node check mtu` between two real hosts, with a tunnel between them and a workload on the one that asks."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from fabric.kernel.links import NetlinkLinks
from fabric.kernel.tunnels import NetlinkTunnels
from fabric.model.node import Node
from fabric.ops.check_mtu import Checked, check
from fabric.plan import encap
from fabric.plan.encap import VXLAN
from fabric.plan.links import Veth, host_name
from fabric.plan.mtu import Mtus
from fabric.plan.tunnels import Far, Tunnel
from tests.contract import line as lines
from tests.contract.line import Line
from tests.contract.netns import Namespace
from tests.fakes.etcd import FakeEtcd
from tests.fakes.node import pool, put

HERE, FAR = ip_address("10.244.1.1"), ip_address("10.244.2.1")


@pytest.fixture
def line() -> Iterator[Line]:
    with lines.routed() as made:
        yield made


def node(name: str, number: int, **spec: str) -> Node:
    bgp = {"ipv4Address": f"10.{number}.0.2/24", "ipv6Address": f"fd00:{number}::2/64"}
    return Node.model_validate({"metadata": {"name": name}, "spec": {"bgp": bgp, **spec}})


def tunnel(space: Namespace, name: str, other: str, number: int) -> None:
    """Raise this end of a VXLAN as the node `name`, and the way to the other's."""
    own, far = (ip_address(f"10.244.{n}.1") for n in (number, 3 - number))
    there = Far(far, encap.mac(other, VXLAN), ip_address(f"10.{3 - number}.0.2"))
    made = Tunnel(
        VXLAN,
        own,
        ip_address(f"10.{number}.0.2"),
        1450,
        mac=encap.mac(name, VXLAN),
        vni=4096,
        port=4789,
        far=frozenset({there}),
    )
    space.run(NetlinkTunnels().create(made))
    space.ip("route", "add", str(ip_network(far)), "dev", VXLAN.device)


def checked(line: Line, *nodes: Node) -> Checked:
    async def run() -> Checked:
        kv = FakeEtcd()
        for resource in (*nodes, pool("10.244.0.0/16", vxlanMode="Always")):
            await put(kv, resource)
        return await check("n1", kv)

    return line.host.run(run())


def test_each_way_is_measured_and_compared_with_what_workloads_send(line: Line) -> None:
    tunnel(line.host, "n1", "n2", 1)
    tunnel(line.far, "n2", "n1", 2)
    with Namespace() as container:
        veth = Veth(
            host_name("default", "web"),
            container.path,
            "eth0",
            "02:00:00:00:00:01",
            (HERE,),
            Mtus(1450, 1500),
        )
        line.host.run(NetlinkLinks().create(veth))
        found = checked(line, node("n1", 1), node("n2", 2, ipv4VXLANTunnelAddr=str(FAR)))
    assert [(str(r.address), r.encapsulation, r.usable, r.used, r.how) for r in found.rows] == [
        ("10.2.0.2", "native", 1400, False, "probed"),
        ("10.2.0.2", "ipip", 1380, False, "less 20"),
        ("10.2.0.2", "vxlan", 1350, True, "through vxlan.fabric"),
        ("fd00:2::2", "native", 1400, False, "probed"),
        ("fd00:2::2", "vxlan", 1330, False, "less 70"),
    ]
    [warning] = found.warnings
    assert warning.startswith("node n2 (10.2.0.2), vxlan: packets of up to 1350 bytes get there")
    assert found.silent == ()


def test_a_node_that_is_not_there_is_silent_and_the_others_are_measured(line: Line) -> None:
    found = checked(line, node("n1", 1), node("n2", 2), node("n9", 9))
    assert {(r.node, r.usable) for r in found.rows if r.encapsulation == "native"} == {
        ("n2", 1400),
        ("n9", None),
    }
    [said] = found.silent
    assert said.startswith("node n9: none of its addresses answers")
    assert found.warnings == ()
