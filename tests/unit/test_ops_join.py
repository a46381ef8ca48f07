"""What `node join` writes of this host: its address, its links, and the peers it is given."""

from ipaddress import ip_address, ip_interface
from typing import Any

import pytest

from fabric.kernel.facts import HostAddress
from fabric.model.node import Node
from fabric.ops.check import choose_address
from fabric.ops.join import Peer, Request, interfaces, node_tree, peer_tree

ADDRESSES = [
    HostAddress(link, ip_interface(address), up, "", 1500)
    for link, address, up in (
        ("lo", "127.0.0.1/8", True),
        ("lo", "10.9.9.9/32", True),
        ("lo", "::1/128", True),
        ("eth0", "10.1.0.1/31", True),
        ("eth1", "10.1.0.3/31", True),
        ("eth1", "fe80::1/64", True),
        ("eth1", "2001:db8::3/64", True),
        ("eth2", "10.1.0.5/31", False),
        ("docker0", "172.17.0.1/16", True),
        ("fab0123456789ab", "169.254.7.1/32", True),
    )
]
UPLINKS: list[dict[str, Any]] = [
    {"name": "eth0", "addresses": ["10.1.0.1/31"]},
    {"name": "eth1", "addresses": ["10.1.0.3/31", "2001:db8::3/64"]},
    {"name": "lo", "addresses": ["10.9.9.9/32"]},
]


def stored(*said: dict[str, Any], **bgp: str) -> Node:
    spec = {"interfaces": said, "bgp": {"ipv4Address": "10.9.9.9/32", **bgp}}
    return Node.model_validate({"metadata": {"name": "n1"}, "spec": spec})


def test_the_node_says_its_uplinks_and_its_own_addresses_on_lo() -> None:
    assert sorted(interfaces(ADDRESSES, None), key=str) == sorted(UPLINKS, key=str)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        pytest.param({"name": "docker0", "addresses": ["172.17.0.1"]}, True, id="a link that the host has"),
        pytest.param({"name": "eth9", "addresses": ["10.1.0.9"]}, False, id="a link that it has no more"),
        pytest.param({"addresses": ["10.1.0.9"]}, True, id="no link at all"),
    ],
)
def test_what_others_say_of_other_links_stays(said: dict[str, Any], kept: bool) -> None:
    found = interfaces(ADDRESSES, stored(said))
    assert (said in found) == kept
    assert len(found) == len(UPLINKS) + kept


def test_what_others_say_of_an_uplink_beside_its_addresses_stays() -> None:
    found = interfaces(ADDRESSES, stored({"name": "eth0", "addresses": ["10.8.8.8/24"], "speed": "25G"}))
    assert found[0] == UPLINKS[0] | {"speed": "25G"}
    assert len(found) == len(UPLINKS)


def test_joining_again_says_the_same() -> None:
    once = interfaces(ADDRESSES, None)
    assert interfaces(ADDRESSES, stored(*once)) == once


def test_an_address_on_lo_can_be_the_nodes() -> None:
    address = choose_address("10.9.9.9", ADDRESSES)
    tree = node_tree(Request("n1"), "id", address, ADDRESSES, None)
    # The only IPv6 address on an uplink is the other one.
    assert tree["spec"]["bgp"] == {"ipv4Address": "10.9.9.9/32", "ipv6Address": "2001:db8::3/64"}


def test_with_one_on_lo_the_other_familys_is_there_too() -> None:
    on_lo = [*ADDRESSES, HostAddress("lo", ip_interface("2001:db8:9::9/128"), True, "", 65536)]
    tree = node_tree(Request("n1"), "id", choose_address("10.9.9.9", on_lo), on_lo, None)
    assert tree["spec"]["bgp"]["ipv6Address"] == "2001:db8:9::9/128"
    elsewhere = node_tree(Request("n1"), "id", choose_address("10.1.0.1", on_lo), on_lo, None)
    assert elsewhere["spec"]["bgp"]["ipv6Address"] == "2001:db8::3/64"


def test_the_node_says_that_it_has_no_sessions_from_the_first_and_takes_it_back() -> None:
    address = choose_address("10.9.9.9", ADDRESSES)
    off = node_tree(Request("n1", bgp=False), "id", address, ADDRESSES, None)
    assert off["metadata"]["annotations"]["fabricctl.io/bgp"] == "off"
    said = {"name": "n1", "annotations": {"fabricctl.io/bgp": "off"}}
    was_off = Node.model_validate({"metadata": said})
    on = node_tree(Request("n1"), "id", address, ADDRESSES, was_off)
    assert on["metadata"]["annotations"]["fabricctl.io/bgp"] is None
    assert (
        "fabricctl.io/bgp"
        not in node_tree(Request("n1"), "id", address, ADDRESSES, None)["metadata"]["annotations"]
    )


def test_a_peer_that_came_with_the_node_is_met_from_the_uplink_it_is_on() -> None:
    tree = peer_tree("n1", "id", Peer(ip_address("10.1.0.0"), 65000))
    assert tree["metadata"]["annotations"] == {"fabricctl.io/node-id": "id", "fabricctl.io/source": "uplink"}
    assert tree["spec"] == {"node": "n1", "peerIP": "10.1.0.0", "asNumber": 65000}
