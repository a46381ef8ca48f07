"""What is made of the sizes that get to other nodes: whom to ask, what the answers mean, what is too small."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from fabric.errors import NotFound, StoreError
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from fabric.ops.check_mtu import Measured, Row, Target, check, judged, rows, sent, targets, too_small
from fabric.plan.encap import IPIP, VXLAN, VXLAN6, Encap
from fabric.plan.links import HostLink, Veth, as_made, noted_mtus
from fabric.plan.mtu import Mtus
from tests.fakes.etcd import FakeEtcd


def node(name: str, number: int, **spec: Any) -> Node:
    bgp = {"ipv4Address": f"10.{number}.0.1/24", "ipv6Address": f"fd00:{number}::1/64"}
    ends = {"ipv4VXLANTunnelAddr": f"10.244.{number}.1"}
    labels = {"rack": str(number)}
    return Node.model_validate(
        {"metadata": {"name": name, "labels": labels}, "spec": {"bgp": bgp | spec, **ends}}
    )


def pool(prefix: str, **spec: Any) -> IPPool:
    name = prefix.replace(":", "-").replace("/", "-").replace(".", "-")
    return IPPool.model_validate({"metadata": {"name": f"p{name}"}, "spec": {"cidr": prefix, **spec}})


NODES = (node("n1", 1), node("n2", 2, ipv4IPIPTunnelAddr="10.244.2.2"))
FOUR, SIX = "10.244.0.0/16", "fd00:244::/64"
A4, A6 = ip_address("10.2.0.1"), ip_address("fd00:2::1")


@pytest.mark.parametrize(
    ("pools", "four", "six"),
    [
        pytest.param([], [], [], id="no pool"),
        pytest.param([pool(FOUR), pool(SIX)], [None], [None], id="native"),
        pytest.param([pool(FOUR, ipipMode="Always")], [IPIP], [], id="IPIP"),
        pytest.param([pool(FOUR, ipipMode="CrossSubnet"), pool("10.9.0.0/16")], [IPIP, None], [], id="both"),
        pytest.param([pool(SIX, vxlanMode="CrossSubnet")], [], [VXLAN6], id="VXLAN of IPv6"),
        pytest.param([pool(FOUR, vxlanMode="Always", nodeSelector="rack == '1'")], [], [], id="none of its"),
    ],
)
def test_every_address_of_the_others_is_asked(
    pools: list[IPPool], four: list[Encap | None], six: list[Encap | None]
) -> None:
    ends = {IPIP: ip_address("10.244.2.2"), VXLAN: ip_address("10.244.2.1")}
    assert targets("n1", NODES, pools) == [
        Target("n2", A4, frozenset(four), ends),
        Target("n2", A6, frozenset(six)),
    ]


def test_a_host_that_is_no_node_is_told_so() -> None:
    with pytest.raises(NotFound, match="Node n9: not in the datastore"):
        targets("n9", NODES, ())


def said(target: Target, measured: Measured) -> list[tuple[str, int | None, bool, str]]:
    return [(row.encapsulation, row.usable, row.used, row.how) for row in rows(target, measured)]


def test_what_a_tunnel_takes_is_reckoned() -> None:
    assert said(Target("n2", A4, frozenset({VXLAN})), Measured(1400)) == [
        ("native", 1400, False, "probed"),
        ("ipip", 1380, False, "less 20"),
        ("vxlan", 1350, True, "less 50"),
    ]
    assert said(Target("n2", A6, frozenset({None})), Measured(1500)) == [
        ("native", 1500, True, "probed"),
        ("vxlan", 1430, False, "less 70"),
    ]


def test_what_comes_through_a_tunnel_that_stands_counts_unless_it_comes_in_pieces() -> None:
    found = said(Target("n2", A4), Measured(1400, {IPIP: 1360, VXLAN: 1450}))
    assert found[1:] == [
        ("ipip", 1360, False, "through tunl0"),
        ("vxlan", 1350, False, "through vxlan.fabric"),
    ]


def test_a_filter_may_let_only_the_one_or_the_other_through() -> None:
    assert said(Target("n2", A4), Measured(1400, {IPIP: None}))[1] == (
        "ipip",
        None,
        False,
        "no answer through tunl0",
    )
    silent = said(Target("n2", A4), Measured(None, {IPIP: 1380}))
    assert [usable for _, usable, _, _ in silent] == [None, 1380, None]


def row(node: str, usable: int | None, encapsulation: str = "native", used: bool = True) -> Row:
    return Row(node, A4, encapsulation, usable, used, "")


def test_a_way_in_use_that_carries_less_than_workloads_send_is_told() -> None:
    found = [row("n2", 1400), row("n3", 1500), row("n4", None), row("n5", 1400, used=False)]
    [said] = too_small(found, {4: 1500})
    assert said.startswith(
        "node n2 (10.2.0.1), native: packets of up to 1400 bytes get there, and workloads here"
    )
    assert too_small(found, {4: 1400, 6: 9000}) == []
    assert too_small(found, {}) == []


def test_a_node_of_which_nothing_answers_is_silent_and_so_is_a_way_in_use() -> None:
    found = [row("n2", None, used=False), row("n2", 1380, "ipip"), row("n3", None), row("n3", None, "ipip")]
    [said] = judged(found, {}).silent
    assert said.startswith("node n3: none of its addresses answers")
    through = replace(row("n2", None, "vxlan"), how="no answer through vxlan.fabric")
    [said] = judged([row("n2", 1500), through], {}).silent
    assert said.startswith(
        "node n2 (10.2.0.1), vxlan: no answer through vxlan.fabric, and packets go that way; "
    )


async def test_without_etcd_nothing_is_sent_and_it_says_so() -> None:
    kv = FakeEtcd()
    kv.down = True
    with pytest.raises(
        StoreError, match=r"nothing was sent, since the other nodes stand in etcd: .*etcd is down"
    ):
        await check("n1", kv)


def link(alias: str) -> HostLink:
    veth = Veth("fab1", "/run/netns/web", "eth0", "02:00:00:00:00:01", (A4, A6), Mtus(1480, 1430))
    return replace(as_made(veth), alias=alias or veth.alias)


def test_what_workloads_send_stands_in_the_aliases_of_their_links() -> None:
    assert noted_mtus(link("").alias) == {4: 1480, 6: 1430}
    assert noted_mtus("mine") == {}
    assert sent([link(""), link("fab mtu4=1500"), link("mine")]) == {4: 1500, 6: 1430}
    assert sent([]) == {}
