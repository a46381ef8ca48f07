"""What of a node decides beside its policy: settings by their layers, failsafe ports, links as resources tell them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from policy.form import TCP, UDP, Failsafe
from tests.unit.scenes import stage

NODE = """
kind: Node
metadata: {name: n1, labels: {rack: r1}}
spec:
  bgp: {ipv4Address: 192.0.2.11/24}
  interfaces: [{name: eth0, addresses: [192.0.2.11/24, fe80::1/64]}, {name: lo, addresses: [203.0.113.1/32]}]
"""
POOL = """
kind: IPPool
metadata: {name: a}
spec: {cidr: 10.0.0.0/16}
"""


def felix(name: str, spec: str) -> str:
    return f"""
kind: FelixConfiguration
metadata: {{name: {name}}}
spec: {{{spec}}}
"""


DEFAULT = felix("default", "defaultEndpointToHostAction: Accept, vxlanPort: 4000")


def test_without_settings_calicos_defaults_hold_and_bfd_is_open() -> None:
    site = stage(NODE, POOL).sites["n1"]
    assert (site.to_host, site.vxlan_port, site.drop_invalid, site.mark_mask) == (
        "Drop",
        4789,
        True,
        0xFFFF0000,
    )
    assert not site.spoofing
    assert {Failsafe(TCP, 22), Failsafe(UDP, 3784), Failsafe(UDP, 4784)} <= set(site.failsafe_in)
    assert {Failsafe(UDP, 53), Failsafe(UDP, 3784)} <= set(site.failsafe_out)
    assert site.nodes == {ip_address("192.0.2.11")}
    assert site.pools == {ip_network("10.0.0.0/16")}


@pytest.mark.parametrize(
    ("texts", "want"),
    [
        ([DEFAULT], ("Accept", 4000)),
        ([DEFAULT, felix("rack", "nodeSelector: rack == 'r1', vxlanPort: 4001")], ("Accept", 4001)),
        ([DEFAULT, felix("other", "nodeSelector: rack == 'r2', vxlanPort: 4001")], ("Accept", 4000)),
        ([DEFAULT, felix("node.n1", "defaultEndpointToHostAction: Return")], ("Return", 4000)),
        ([DEFAULT, felix("node.n2", "defaultEndpointToHostAction: Return")], ("Accept", 4000)),
    ],
)
def test_the_nearest_setting_that_is_given_counts(texts: list[str], want: tuple[str, int]) -> None:
    site = stage(NODE, *texts).sites["n1"]
    assert (site.to_host, site.vxlan_port) == want


def test_failsafe_ports_are_those_that_are_given_and_may_be_none() -> None:
    some = "failsafeInboundHostPorts: [{protocol: UDP, port: 1, net: 198.51.100.0/24}], failsafeOutboundHostPorts: []"
    site = stage(NODE, felix("default", some)).sites["n1"]
    assert site.failsafe_in == (Failsafe(UDP, 1, ip_network("198.51.100.0/24")),)
    assert site.failsafe_out == ()


def test_links_are_those_that_the_node_and_its_host_endpoints_tell() -> None:
    def hep(name: str, spec: str) -> str:
        return f"\nkind: HostEndpoint\nmetadata: {{name: {name}}}\nspec: {{node: n1, {spec}}}\n"

    eth0 = {ip_address("192.0.2.11"), ip_address("fe80::1")}
    of = stage(
        NODE,
        hep("a", "interfaceName: eth1, expectedIPs: [192.0.2.99]"),
        hep("b", "expectedIPs: [192.0.2.50]"),
    )
    assert of.sites["n1"].links == {
        "eth0": eth0,
        "lo": {ip_address("203.0.113.1")},
        "eth1": {ip_address("192.0.2.99")},
        "192.0.2.50": {ip_address("192.0.2.50")},
    }
    bare = NODE.partition("  interfaces")[0]
    assert stage(bare, hep("a", "interfaceName: eth1")).sites["n1"].links == {
        "eth1": {ip_address("192.0.2.11")}
    }
    assert stage(bare).sites["n1"].links == {"192.0.2.11": {ip_address("192.0.2.11")}}
