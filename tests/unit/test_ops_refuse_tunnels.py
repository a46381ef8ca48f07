"""What a change may not ask of nodes: tunnels for which they have no kernel, address, port or MTU."""

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_interface
from typing import Any

import pytest

from fabric.errors import ConfigError
from fabric.kernel.facts import HostAddress, Listener, Vxlan
from fabric.model import kinds
from fabric.model.base import Resource
from fabric.model.ippool import IPPool
from fabric.model.workloadendpoint import EndpointPort
from fabric.ops.change import Change, apply, decided, label, patch
from fabric.ops.files import Given
from fabric.ops.findings import Cluster, Host
from fabric.ops.refuse import refuse
from fabric.ops.refuse_tunnels import Here
from tests.fakes.etcd import FakeEtcd
from tests.fakes.node import put

POOL, NODE, FELIX = (kinds.lookup(word) for word in ("pool", "node", "felixconfig"))
VXLAN_V6: dict[str, Any] = {"cidr": "2001:db8:77::/64", "vxlanMode": "Always"}
HERE = Host(addresses=(HostAddress("eth0", ip_interface("192.0.2.1/24"), True, "", 1500),))
NO_IPIP = replace(HERE, missing_tunnels={"ipip": "Operation not supported"})


def pool(said: Mapping[str, str] = {}, cidr: str = "10.0.0.0/16", **spec: Any) -> IPPool:
    annotations = {f"fabricctl.io/{key}": text for key, text in said.items()}
    return IPPool.model_validate(
        {"metadata": {"name": "p", "annotations": annotations}, "spec": {"cidr": cidr, **spec}}
    )


def node(
    name: str, lacks: str = "", addresses: tuple[str, ...] = ("192.0.2.1/24",), **labels: str
) -> Resource:
    annotations = {"fabricctl.io/lacks": lacks} if lacks else {}
    bgp = {f"ipv{ip_interface(address).version}Address": address for address in addresses}
    metadata = {"name": name, "labels": labels, "annotations": annotations}
    return NODE.cls.model_validate({"metadata": metadata, "spec": {"bgp": bgp}})


def settings(name: str = "default", **spec: Any) -> Resource:
    return FELIX.cls.model_validate({"metadata": {"name": name}, "spec": spec})


def given(resource: Resource) -> Change:
    return apply(Given(resource, "x.yaml:1", place=lambda path: f"x.yaml:{len(path)}"))


async def problems(stored: tuple[Resource, ...], *changes: Change, host: Host | None = None) -> list[str]:
    """What is refused of `changes` beside what is `stored`, on a host that is no node, or is n1."""
    kv = FakeEtcd()
    for one in stored:
        await put(kv, one)

    async def read(_asked: Cluster) -> Host:
        assert host
        return host

    async def unpublishable(_node: str, port: EndpointPort) -> str:
        return "a process has it" if port.host_port == 179 else ""

    steps, refusals = await decided(kv, changes)
    try:
        await refuse(kv, steps, (), refusals, changes, Here("n1", read, unpublishable) if host else None)
    except ConfigError as err:
        return (
            str(err).removesuffix("; nothing was written").removesuffix("\nnothing was written").splitlines()
        )
    return []


NODES = (node("n1"), node("n2", "ipip"), node("n3", "ipip", rack="r3"))


async def test_a_pool_with_ipip_names_the_nodes_whose_kernels_have_none_and_what_would_do() -> None:
    [line] = await problems(NODES, given(pool(ipipMode="Always")))
    assert line == (
        "x.yaml:2: spec.ipipMode: Always: pool p has ipipMode, and the kernel of n2, n3 no module ipip; "
        "VXLAN is there: set vxlanMode in place of ipipMode on p, or annotate it fabricctl.io/tunnel-fallback: vxlan; "
        "or load the module (modprobe ipip) or use a kernel that has it (FAB1002)"
    )


async def test_a_mistyped_annotation_of_the_pool_is_named() -> None:
    [line] = await problems(NODES, given(pool({"tunnel-falback": "vxlan"}, ipipMode="Always")))
    assert (
        "no module ipip; an annotation that nobody knows: fabricctl.io/tunnel-falback; VXLAN is there" in line
    )


def workload(*ports: int, node: str = "n1", protocol: str = "TCP") -> Resource:
    asked = [{"protocol": protocol, "port": 80, "hostPort": port} for port in ports]
    return kinds.lookup("wep").cls.model_validate(
        {
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"node": node, "ipNetworks": ["10.0.0.1/32"], "ports": asked},
        }
    )


async def test_what_this_host_cannot_publish_is_refused_unless_it_stands_there_already() -> None:
    [line] = await problems((), given(workload(80, 179)), host=HERE)
    assert line == "x.yaml:1: WorkloadEndpoint default/web: spec.ports: 179->80/tcp: a process has it"
    assert await problems((), given(workload(179, node="n2")), host=HERE) == []
    assert await problems((workload(179),), given(workload(179, 80)), host=HERE) == []
    assert await problems((), given(workload(179))) == []


async def test_a_published_port_and_the_one_by_which_tunnels_come_in_are_told_apart_whichever_comes_first() -> (
    None
):
    web, tunnelled = workload(4998, protocol="UDP"), pool(vxlanMode="Always")
    port, (first, _, _) = settings(vxlanPort=4998), NODES
    for stored, change in (
        ((first, web, tunnelled), port),
        ((first, web, port), tunnelled),
        ((first, tunnelled, port), web),
    ):
        [line] = await problems(stored, given(change))
        assert line.startswith(f"x.yaml:1: {change.kind} ")
        assert "port 4998/udp of every IPv4 address of the node is the one by which tunnels come in" in line
        assert await problems((*stored, change), given(change)) == []  # it stands already
    assert await problems((first, tunnelled, port), given(workload(4998))) == []  # TCP
    assert await problems((first, web, port), given(pool())) == []


@pytest.mark.parametrize(
    ("wanted", "host"),
    [
        pytest.param(pool(ipipMode="Always", nodeSelector="rack == 'r1'"), NO_IPIP, id="for other nodes"),
        pytest.param(pool({"tunnel-fallback": "vxlan"}, ipipMode="Always"), NO_IPIP, id="with a fallback"),
        pytest.param(pool(vxlanMode="CrossSubnet"), NO_IPIP, id="with VXLAN"),
        pytest.param(pool(), NO_IPIP, id="native"),
    ],
)
async def test_a_pool_that_asks_nothing_of_them_is_stored(wanted: IPPool, host: Host) -> None:
    assert await problems(NODES, given(wanted)) == []
    assert await problems(NODES, given(wanted), host=host) == []


async def test_of_this_host_counts_what_its_kernel_says_now() -> None:
    noted = (node("n1", "ipip"), node("n2"))
    assert await problems(noted, given(pool(ipipMode="Always")), host=HERE) == []
    [line] = await problems((node("n1"), node("n2")), given(pool(ipipMode="Always")), host=NO_IPIP)
    assert "the kernel of n1 no module ipip" in line
    assert await problems((node("n2"),), given(pool(ipipMode="Always")), host=NO_IPIP) == [], (
        "n1 is no node any more"
    )


async def test_what_lacks_both_has_no_fallback() -> None:
    stored = (node("n1", "ipip,vxlan"),)
    [line] = await problems(stored, given(pool({"tunnel-fallback": "vxlan"}, ipipMode="Always")))
    assert "the kernel of n1 no module ipip" in line
    assert "VXLAN is there" not in line


async def test_what_is_wrong_already_stops_no_other_change_of_the_pool() -> None:
    stored = (*NODES, pool(ipipMode="Always"))
    assert await problems(stored, given(pool(ipipMode="CrossSubnet", disabled=True))) == []
    [line] = await problems(
        (*NODES, pool(ipipMode="Always", nodeSelector="rack == 'r3'")), given(pool(ipipMode="Always"))
    )
    assert "the kernel of n2 no module ipip" in line


async def test_a_selected_node_without_an_address_in_the_family_is_named() -> None:
    stored = (node("n1"), node("n2", addresses=("192.0.2.2/24", "2001:db8::2/64")))
    [line] = await problems(stored, given(pool(**VXLAN_V6)))
    assert line.startswith(
        "x.yaml:2: spec.vxlanMode: Always: pool p has vxlanMode, and n1 no IPv6 address to send from; give the host one"
    )
    assert await problems(stored, given(pool(cidr="2001:db8:77::/64"))) == []


async def test_a_node_that_a_label_puts_under_a_pool_it_cannot_have_is_refused() -> None:
    stored = (node("n1"), pool(**VXLAN_V6, nodeSelector="has(six)"))
    [line] = await problems(stored, label(NODE, "n1", None, {"six": "y"}, (), overwrite=False))
    assert line.startswith("Node n1: pool p has vxlanMode, and n1 no IPv6 address to send from")
    assert await problems(stored, label(NODE, "n1", None, {"rack": "y"}, (), overwrite=False)) == []


FOREIGN = replace(HERE, vxlans=(Vxlan("vxlan.calico", 4096, 4789, 4, shares=True),))


async def test_who_holds_vni_or_port_on_this_node_is_named() -> None:
    [line] = await problems((node("n1"),), given(pool(vxlanMode="Always")), host=FOREIGN)
    assert line.startswith(
        "x.yaml:2: spec.vxlanMode: Always: VNI 4096 on udp port 4789 is held by the device vxlan.calico"
    )
    held = replace(HERE, vxlan_holders=(Listener(7, "openvpn"),))
    [line] = await problems((node("n1"),), given(pool(vxlanMode="Always")), host=held)
    assert "udp port 4789 is held by openvpn (pid 7)" in line
    assert await problems((node("n1"),), given(pool(ipipMode="Always")), host=FOREIGN) == []
    assert (
        await problems((node("n1"), settings(vxlanVNI=5)), given(pool(vxlanMode="Always")), host=FOREIGN)
        == []
    )


async def test_settings_that_take_what_somebody_holds_are_refused() -> None:
    stored = (node("n1"), pool(vxlanMode="Always"), settings(vxlanVNI=5))
    [line] = await problems(stored, given(settings(vxlanVNI=4096)), host=FOREIGN)
    assert line.startswith("x.yaml:1: FelixConfiguration default: VNI 4096 on udp port 4789 is held by")
    held = replace(HERE, vxlan_holders=(Listener(7, "openvpn"),))  # of the port that is asked for then
    [line] = await problems(
        stored, patch(FELIX, "default", None, {"spec": {"vxlanPort": 1194}}, "merge"), host=held
    )
    assert line.startswith("FelixConfiguration default: udp port 1194 is held by openvpn (pid 7)")
    assert await problems(stored, given(settings("node.n2", vxlanVNI=4096)), host=FOREIGN) == []


@pytest.mark.parametrize(
    ("mtu", "spec", "said"),
    [
        (
            1349,
            VXLAN_V6,
            "x.yaml:2: spec.vxlanMode: Always: eth0 has an MTU of 1349, and vxlanMode takes 70: 1279 are left",
        ),
        (1350, VXLAN_V6, ""),
        (
            1279,
            {"cidr": "2001:db8:77::/64"},
            "x.yaml:2: spec.cidr: 2001:db8:77::/64: eth0 has an MTU of 1279: 1279 are",
        ),
        (
            595,
            {"ipipMode": "CrossSubnet"},
            "x.yaml:2: spec.ipipMode: CrossSubnet: eth0 has an MTU of 595, and ipipMode takes",
        ),
        (596, {"ipipMode": "CrossSubnet"}, ""),
    ],
)
async def test_what_this_node_has_left_for_the_family_is_enough(
    mtu: int, spec: dict[str, Any], said: str
) -> None:
    host = Host(addresses=(HostAddress("eth0", ip_interface("192.0.2.1/24"), True, "", mtu),))
    found = await problems(
        (node("n1", addresses=("192.0.2.1/24", "2001:db8::1/64")),), given(pool(**spec)), host=host
    )
    assert [line.startswith(said) for line in found] == [True] * bool(said), found
