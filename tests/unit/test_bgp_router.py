"""The router's side of sessions, as values; the whole of it, as text, is in golden/tor."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network

import pytest

from bgp.peering import Here, Peering, Uplink
from bgp.rib import SessionSpec
from bgp.router import RANGE_FROM, Group, NodeEnd, Prefixes, routers
from fabric.model.ippool import IPPool

ROUTER, ROUTER_AS = ip_address("192.0.2.254"), 65000


def end(number: int, peer: str = str(ROUTER), local_as: int = 65001, **peering: object) -> NodeEnd:
    interface = ip_interface(f"192.0.2.{number}/24")
    spec = SessionSpec(ip_address(peer), ROUTER_AS, interface.ip, local_as, IPv4Address(number))
    fields = {name: peering.pop(name) for name in list(peering) if hasattr(spec, name)}
    spec = replace(spec, **fields)  # type: ignore[arg-type]
    here = Here(uplinks=(Uplink("eth0", interface),))
    return NodeEnd(f"n{number}", frozenset({interface.ip}), here, (replace(Peering(spec), **peering),))  # type: ignore[arg-type]


def groups(*ends: NodeEnd) -> tuple[Group, ...]:
    [router] = routers(ends, [])
    return router.groups


def test_other_nodes_are_no_routers_and_make_their_side_themselves() -> None:
    assert routers([end(1, peer="192.0.2.2"), end(2, peer="192.0.2.1")], []) == ()


def test_each_address_is_a_router_unless_they_are_said_to_be_one() -> None:
    ends = [end(1), end(2, peer="192.0.2.253")]
    assert [router.addresses for router in routers(ends, [])] == [(ip_address("192.0.2.253"),), (ROUTER,)]
    [one] = routers(ends, [], [ROUTER, ip_address("192.0.2.253")])
    assert [(n.name, str(n.ours)) for n in one.neighbours] == [("n1", str(ROUTER)), ("n2", "192.0.2.253")]


@pytest.mark.parametrize(
    ("last", "listens"),
    [
        pytest.param({}, True, id="many alike"),
        pytest.param({"local_as": 65002}, False, id="of another AS"),
        pytest.param({"passive": True}, False, id="waits to be called"),
        pytest.param({"listen_port": 1179}, False, id="at a port of its own"),
        pytest.param({"ttl_security": 1}, False, id="secured otherwise"),
    ],
)
def test_a_listen_range_is_for_many_nodes_that_are_alike(last: dict[str, int], listens: bool) -> None:
    ends = [*map(end, range(1, RANGE_FROM)), end(RANGE_FROM, **last)]  # type: ignore[arg-type]
    found = groups(*ends)
    assert any(group.listen for group in found) == listens
    assert not listens or found[0].link == ip_network("192.0.2.0/24")


@pytest.mark.parametrize(
    ("ends", "shared", "override"),
    [
        pytest.param([end(1), end(2, local_as=65002)], False, False, id="ASes of their own"),
        pytest.param([end(1), end(2)], True, True, id="one AS"),
        pytest.param([end(1), end(2, peer="192.0.2.1")], True, True, id="one AS, behind another router"),
        pytest.param(
            [end(1, allow_own_as=1), end(2, allow_own_as=1)], True, False, id="allowed by the nodes"
        ),
        pytest.param([end(1, local_as=ROUTER_AS), end(2, local_as=ROUTER_AS)], False, False, id="internal"),
    ],
)
def test_a_shared_as_is_replaced_unless_the_nodes_allow_it(
    ends: list[NodeEnd], shared: bool, override: bool
) -> None:
    [router] = [r for r in routers(ends, []) if ROUTER in r.addresses]
    assert {(g.shared_as, g.as_override) for g in router.groups} == {(shared, override)}


def test_nodes_of_the_routers_as_are_its_clients_but_for_its_reflectors() -> None:
    a, b = end(1, local_as=ROUTER_AS), end(2, local_as=ROUTER_AS)
    assert [group.client for group in groups(a)] == [True]
    assert [group.client for group in groups(a, b)] == [True]
    reflector = end(3, local_as=ROUTER_AS, reflector_client=True, cluster_id=IPv4Address("1.1.1.1"))
    assert {n.name: g.client for g in groups(a, b, reflector) for n in g.neighbours} == {
        "n1": True,
        "n2": True,
        "n3": False,
    }


def test_what_comes_in_is_inside_the_pools_or_a_node_on_lo_and_what_goes_out_the_default_as_well() -> None:
    def pool(name: str, cidr: str, **spec: object) -> IPPool:
        return IPPool.model_validate({"metadata": {"name": name}, "spec": {"cidr": cidr, **spec}})

    def on_lo(number: int) -> NodeEnd:
        node = end(number)
        return replace(node, here=replace(node.here, loopback=node.addresses))

    pools = [
        pool("a", "10.77.0.0/16"),
        pool("one-block", "10.78.0.0/26"),
        pool("closed", "10.79.0.0/16", disableBGPExport=True),
        pool("of-no-session-s-family", "fd00::/48"),
    ]
    [router] = routers([on_lo(2), on_lo(3), end(4)], pools)
    within = {str(p.within): (p.low, p.high) for p in router.accept}
    assert within == {"10.77.0.0/16": (17, 32), "10.78.0.0/26": (26, 32), "192.0.2.2/31": (32, 32)}
    assert router.offer[0] == Prefixes(ip_network("0.0.0.0/0"), 0, 0)
    within = {str(p.within): (p.low, p.high) for p in router.offer[1:]}
    assert within == {"10.77.0.0/16": (16, 32), "10.78.0.0/26": (26, 32), "192.0.2.2/31": (32, 32)}


def test_a_node_that_is_on_no_link_of_the_router_is_not_direct() -> None:
    far = replace(end(1), here=Here(uplinks=(Uplink("eth0", ip_interface("192.0.2.1/32")),)))
    assert [group.direct for group in groups(far)] == [False]
