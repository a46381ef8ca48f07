"""Sessions from resources; see calico-semantics §7, BGPPeer."""

from ipaddress import IPv4Address, ip_address, ip_interface
from typing import Any

import pytest

from bgp.sessions import DEFAULT_AS, Local, local, parse_peer_ip, problems, sessions, source_for
from fabric.model.base import Metadata
from fabric.model.bgp import BGPConfiguration, BGPPeer
from fabric.model.node import Node

ADDRESSES = tuple(map(ip_interface, ("192.0.2.1/24", "10.1.0.1/31", "2001:db8::1/64")))
ME = Local(
    name="n1",
    labels={"rack": "a"},
    as_number=65001,
    ipv4=IPv4Address("192.0.2.1"),
    ipv6=ip_address("2001:db8::1"),
    addresses=ADDRESSES,
)


def peer(name: str = "tor", **spec: object) -> BGPPeer:
    return BGPPeer.model_validate(
        {"metadata": {"name": name}, "spec": {"peerIP": "192.0.2.254", "asNumber": 65000, **spec}}
    )


def node(bgp: dict[str, object] | None) -> Node:
    return Node.model_validate({"metadata": {"name": "n1", "labels": {"rack": "a"}}, "spec": {"bgp": bgp}})


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        pytest.param({}, True, id="global"),
        pytest.param({"node": "n1"}, True, id="named"),
        pytest.param({"node": "n2"}, False, id="another is named"),
        pytest.param({"nodeSelector": "rack == 'a'"}, True, id="selected"),
        pytest.param({"nodeSelector": "rack == 'b'"}, False, id="not selected"),
    ],
)
def test_a_peer_is_for_the_node_it_names_or_selects_or_for_all(spec: dict[str, Any], wanted: bool) -> None:
    assert bool(sessions(ME, [peer(**spec)])) == wanted


def test_a_session_carries_what_the_speaker_needs() -> None:
    [spec] = sessions(ME, [peer(peerIP="192.0.2.254:1790")])
    assert (spec.peer, spec.port, spec.peer_as) == (ip_address("192.0.2.254"), 1790, 65000)
    assert (spec.source, spec.local_as, spec.router_id) == (ME.ipv4, 65001, ME.ipv4)
    assert spec.external


def test_the_same_as_makes_it_internal() -> None:
    [spec] = sessions(ME, [peer(asNumber=65001)])
    assert not spec.external


@pytest.mark.parametrize("ip", ["192.0.2.1", "2001:db8::1", "10.1.0.1"])
def test_a_node_never_peers_with_itself_whichever_of_its_addresses_is_named(ip: str) -> None:
    assert not sessions(ME, [peer(peerIP=ip)])


@pytest.mark.parametrize("second", ["192.0.2.254", "192.0.2.254:1790"])
def test_the_same_peer_twice_is_one_session_and_the_first_name_sets_it_up(second: str) -> None:
    first, other = peer("a", asNumber=65000), peer("b", asNumber=65009, peerIP=second)
    for order in ([first, other], [other, first]):
        [spec] = sessions(ME, order)
        assert (spec.peer_as, spec.port) == (65000, 179)


def test_a_peer_without_an_address_or_an_as_is_no_session_yet() -> None:
    by_selector = BGPPeer.model_validate({"metadata": {"name": "x"}, "spec": {"peerSelector": "all()"}})
    without_as = BGPPeer.model_validate({"metadata": {"name": "y"}, "spec": {"peerIP": "192.0.2.9"}})
    assert not sessions(ME, [by_selector, without_as])


def test_a_peer_of_a_family_the_node_lacks_is_no_session() -> None:
    only_v4 = Local("n1", {}, 65001, ME.ipv4, None, ADDRESSES[:2])
    assert not sessions(only_v4, [peer(peerIP="2001:db8:9::1")])


@pytest.mark.parametrize(
    ("address", "source"),
    [
        pytest.param("10.1.0.0", "10.1.0.1", id="a link of its own"),
        pytest.param("198.51.100.1", "192.0.2.1", id="further away: the node's address"),
        pytest.param("2001:db8:9::1", "2001:db8::1", id="the node's address of its family"),
    ],
)
def test_source_for(address: str, source: str) -> None:
    assert source_for(ip_address(address), ME) == ip_address(source)


def test_of_two_links_that_hold_the_peer_the_narrower_is_its_own() -> None:
    wide_and_narrow = tuple(map(ip_interface, ("10.0.0.1/8", "10.1.0.1/31")))
    for addresses in (wide_and_narrow, wide_and_narrow[::-1]):
        me = Local("n1", {}, 65001, ME.ipv4, None, addresses)
        assert source_for(ip_address("10.1.0.0"), me) == ip_address("10.1.0.1")


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("192.0.2.254", "192.0.2.254", 179),
        ("192.0.2.254:1790", "192.0.2.254", 1790),
        ("2001:db8::fe", "2001:db8::fe", 179),
        ("[2001:db8::fe]:1790", "2001:db8::fe", 1790),
    ],
)
def test_parse_peer_ip(text: str, address: str, port: int) -> None:
    assert parse_peer_ip(text) == (ip_address(address), port)


@pytest.mark.parametrize("text", ["tor-1", "192.0.2.254:bgp", "[2001:db8::x]:179", "", "fe80::1%eth0"])
def test_what_is_no_address_is_no_peer(text: str) -> None:
    with pytest.raises(ValueError):
        parse_peer_ip(text)


@pytest.mark.parametrize(
    ("own", "cluster", "want"),
    [(65007, 65001, 65007), (None, 65001, 65001), (None, None, DEFAULT_AS)],
)
def test_the_as_is_the_nodes_own_else_the_clusters_else_calicos(
    own: int | None, cluster: int | None, want: int
) -> None:
    configuration = BGPConfiguration.model_validate(
        {"metadata": {"name": "default"}, "spec": {"asNumber": cluster}}
    )
    me = local(node({"ipv4Address": "192.0.2.1/24", "asNumber": own}), configuration, ADDRESSES)
    assert me is not None
    assert me.as_number == want


def test_a_node_without_bgp_takes_no_part() -> None:
    assert local(Node(metadata=Metadata(name="n1")), None, ADDRESSES) is None


def test_a_node_with_ipv6_alone_still_has_a_router_id() -> None:
    me = local(node({"ipv6Address": "2001:db8::1/64"}), None, ADDRESSES[2:])
    assert me is not None
    [spec] = sessions(me, [peer(peerIP="2001:db8::fe")])
    assert int(spec.router_id)


@pytest.mark.parametrize(
    ("name", "router_id"), [("nodeTest", "109.174.215.226"), ("Testrobin123", "207.94.5.27")]
)
def test_without_ipv4_the_router_id_is_the_one_calico_hashes_from_the_name(name: str, router_id: str) -> None:
    # An address that ends in 32 zero bits must not become router id 0.0.0.0.
    me = Local(name, {}, 65001, None, ip_address("2001:db8::"), ())
    [spec] = sessions(me, [peer(peerIP="2001:db8::fe")])
    assert spec.router_id == IPv4Address(router_id)


def test_a_peer_with_a_password_is_no_session_rather_than_an_open_one() -> None:
    secret = peer(password={"secretKeyRef": {"name": "bgp", "key": "tor"}}, filters=["f1"])
    assert not sessions(ME, [secret])
    assert problems(ME, [secret]) == {"tor": "password is not supported yet: no session"}


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({}, None),
        ({"filters": ["f1"]}, "filters has no effect yet"),
        (
            {"ttlSecurity": 1, "localASNumber": 65009},
            "ttlSecurity has no effect yet; localASNumber has no effect yet",
        ),
        ({"numAllowedLocalASNumbers": 2}, "numAllowedLocalASNumbers has no effect yet"),
        ({"sourceAddress": "None"}, "sourceAddress has no effect yet"),
        ({"maxRestartTime": "5m"}, "maxRestartTime has no effect yet"),
        ({"keepaliveTime": "5s"}, "keepaliveTime has no effect yet"),
        ({"nextHopMode": "Self"}, "nextHopMode has no effect yet"),
        ({"reachableBy": "192.0.2.9"}, "reachableBy has no effect yet"),
        ({"keepOriginalNextHop": True}, "keepOriginalNextHop has no effect yet"),
        ({"peerIP": None, "asNumber": None, "peerSelector": "all()"}, "peerSelector has no effect yet"),
        ({"node": "n2", "filters": ["f1"]}, None),
    ],
    ids=str,
)
def test_a_field_without_effect_is_named(spec: dict[str, Any], why: str | None) -> None:
    assert problems(ME, [peer(**spec)]).get("tor") == why
