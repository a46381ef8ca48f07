"""Sessions from resources: calico-semantics §7 (Node basics, Mesh, BGPPeer), and what annotations add to it."""

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.claims import parse_peer_ip
from bgp.members import hashed_id
from bgp.peering import Gateway, Here, NextHopMode, Peering, Policy, Source, StaticRoute, Uplink
from bgp.sessions import Peerings, Resources, peerings, secret_refs
from fabric.model.bgp import BGPConfiguration, BGPPeer
from fabric.model.bgpfilter import BGPFilter
from fabric.model.node import Node

ADDRESSES = ("192.0.2.1/24", "10.1.0.1/31", "2001:db8::1/64")
HERE = Here(uplinks=tuple(Uplink(f"eth{n}", ip_interface(a)) for n, a in enumerate(ADDRESSES)))
NO_MESH: dict[str, Any] = {"nodeToNodeMeshEnabled": False}

K = TypeVar("K")


def metadata(
    name: str, said: dict[str, str] | None = None, labels: dict[str, str] | None = None
) -> dict[str, Any]:
    annotations = {f"fabricctl.io/{key}": text for key, text in (said or {}).items()}
    return {"name": name, "annotations": annotations, "labels": labels or {}}


def node(
    name: str = "n1",
    ipv4: str | None = "192.0.2.1/24",
    ipv6: str | None = None,
    labels: dict[str, str] | None = None,
    said: dict[str, str] | None = None,
    **bgp: object,
) -> Node:
    spec = {"bgp": {"ipv4Address": ipv4, "ipv6Address": ipv6, **bgp}}
    return Node.model_validate({"metadata": metadata(name, said, labels), "spec": spec})


def peer(name: str = "tor", said: dict[str, str] | None = None, **spec: object) -> BGPPeer:
    """A global one of AS 65000 at 192.0.2.254, unless it says more; None takes away."""
    given = {"peerIP": "192.0.2.254", "asNumber": 65000, **spec}
    return BGPPeer.model_validate({"metadata": metadata(name, said), "spec": given})


def toward(selector: str, name: str = "p", said: dict[str, str] | None = None, **spec: object) -> BGPPeer:
    """One with a peerSelector."""
    return peer(name, said, peerIP=None, asNumber=None, peerSelector=selector, **spec)


def configuration(
    name: str = "default", said: dict[str, str] | None = None, **spec: object
) -> BGPConfiguration:
    return BGPConfiguration.model_validate({"metadata": metadata(name, said), "spec": spec})


def bgp_filter(name: str) -> BGPFilter:
    return BGPFilter.model_validate({"metadata": {"name": name}, "spec": {}})


ME = node(labels={"rack": "a", "as": "65007", "odd": "none"}, asNumber=65001)


def of(*things: object, me: str = "n1", here: Here = HERE) -> Peerings:
    """What the node `me` has of these resources."""
    found = Resources(
        me, only(Node, things), only(BGPConfiguration, things), only(BGPPeer, things), only(BGPFilter, things)
    )
    return peerings(found, here)


def only(kind: type[K], things: Iterable[object]) -> tuple[K, ...]:
    return tuple(thing for thing in things if isinstance(thing, kind))


def one(*things: object, me: str = "n1", here: Here = HERE) -> Peering:
    """The only session there is, of which there is nothing to say."""
    found = of(*things, me=me, here=here)
    assert found.problems == {}
    [peering] = found.peerings
    return peering


def ends(found: Peerings) -> list[str]:
    return [str(p.spec.peer) for p in found.peerings]


# Node basics


def test_a_node_without_bgp_takes_no_part_and_nobody_has_a_session_with_it() -> None:
    silent = Node.model_validate({"metadata": {"name": "n2"}, "spec": {}})
    assert of(silent, ME, peer(), me="n2") == Peerings()
    assert of(silent, ME) == Peerings()
    assert of(peer()) == Peerings()


SILENT = node("n2", "192.0.2.2/24", said={"bgp": "off"}, labels={"rack": "a"})


def test_a_node_on_which_bgp_is_off_has_no_session_on_either_end_whoever_asks() -> None:
    asked = [
        toward("all()", "all"),
        peer("named", peerIP="192.0.2.2", asNumber=64512),
        peer("meant", node="n2", said={"required": "true"}),
    ]
    everything = (ME, SILENT, *asked)
    assert of(*everything, me="n2") == Peerings()
    found = of(*everything)
    assert (ends(found), found.required) == ([], frozenset())
    assert found.problems == {
        "BGPPeer named": "peerIP 192.0.2.2 is node n2's, on which BGP is off: no session"
    }


def test_nor_has_it_one_as_somebodys_gateway() -> None:
    auto = peer("gw", said={"peer": "auto-gateway"}, peerIP=None)
    here = replace(HERE, gateways=(Gateway(ip_address("192.0.2.2"), "eth0"),))
    assert ends(of(ME, SILENT, auto, here=here)) == []
    assert ends(of(ME, auto, here=here)) == ["192.0.2.2"]


def test_bgp_is_on_where_the_node_says_so_or_something_that_means_nothing() -> None:
    for word in ("on", "no"):
        assert ends(of(ME, node("n2", "192.0.2.2/24", said={"bgp": word}))) == ["192.0.2.2"]


@pytest.mark.parametrize(
    ("own", "cluster", "want"), [(65007, 65001, 65007), (None, 65001, 65001), (None, None, 64512)]
)
def test_the_as_is_the_nodes_own_else_the_clusters_else_calicos(
    own: int | None, cluster: int | None, want: int
) -> None:
    assert one(node(asNumber=own), configuration(asNumber=cluster), peer()).spec.local_as == want


@pytest.mark.parametrize(
    ("labels", "own", "want"),
    [({"as": "65009"}, None, 65009), ({"as": "1.10"}, None, 65546), ({"as": "65009"}, 65001, 65001)],
)
def test_the_as_may_be_a_nodes_label_and_its_own_number_wins(
    labels: dict[str, str], own: int | None, want: int
) -> None:
    by_label = configuration(said={"as-label": "as"}, asNumber=65000)
    assert one(node(labels=labels, asNumber=own), by_label, peer()).spec.local_as == want


@pytest.mark.parametrize("labels", [{}, {"as": "rack"}, {"as": "0"}])
def test_without_a_label_that_holds_an_as_the_node_has_no_session_and_no_other_one_with_it(
    labels: dict[str, str],
) -> None:
    things = (node("n1", labels=labels), node("n2", "192.0.2.2/24", labels={"as": "65002"}), peer())
    by_label = configuration(said={"as-label": "as"})
    mine, theirs = of(*things, by_label), of(*things, by_label, me="n2")
    assert mine.peerings == ()
    assert "label as" in mine.problems["Node n1"]
    assert ends(theirs) == ["192.0.2.254"]


@pytest.mark.parametrize(
    ("name", "router_id"), [("nodeTest", "109.174.215.226"), ("Testrobin123", "207.94.5.27")]
)
def test_without_ipv4_the_router_id_is_the_one_calico_hashes_from_the_name(name: str, router_id: str) -> None:
    assert hashed_id(name) == IPv4Address(router_id)
    # An address that ends in 32 zero bits must not become router id 0.0.0.0.
    alone = node(ipv4=None, ipv6="2001:db8::/64")
    assert one(alone, peer(peerIP="2001:db8::fe"), here=Here()).spec.router_id == hashed_id("n1")


@pytest.mark.parametrize(
    ("configurations", "want"),
    [
        ([], 179),
        ([configuration(listenPort=1790)], 1790),
        ([configuration(listenPort=1790), configuration("node.n1", listenPort=1791)], 1791),
        ([configuration("node.n2", listenPort=1792)], 179),
        ([configuration("other", listenPort=1793)], 179),
    ],
)
def test_a_session_listens_on_the_nodes_port(configurations: list[BGPConfiguration], want: int) -> None:
    assert one(ME, peer(), *configurations).spec.listen_port == want


# Mesh

MESH = (
    node("n1", "192.0.2.1/24", "2001:db8::1/64"),
    node("n2", "192.0.2.2/24", "2001:db8::2/64"),
    node("n3", "192.0.2.10/24"),
)


def test_the_mesh_is_on_unless_it_is_turned_off_and_has_both_families_of_every_other_node() -> None:
    assert ends(of(*MESH)) == ["192.0.2.2", "192.0.2.10", "2001:db8::2"]
    assert ends(of(*MESH, configuration(nodeToNodeMeshEnabled=True))) == ends(of(*MESH))
    assert of(*MESH, configuration(**NO_MESH)).peerings == ()
    assert ends(of(*MESH, configuration("node.n1", **NO_MESH))) == ends(of(*MESH)), "the cluster's alone"


def test_a_mesh_session_is_ibgp_between_the_nodes_addresses() -> None:
    [first, *_] = of(*MESH).peerings
    assert (first.source, first.name, first.spec.external) == (Source.MESH, "", False)
    assert (first.spec.source, first.spec.peer_as, first.spec.local_as) == (
        ip_address("192.0.2.1"),
        64512,
        64512,
    )
    assert (first.spec.ttl_security, first.next_hop, first.filters) == (0, NextHopMode.AUTO, ())
    assert (first.spec.hold_time, first.spec.restart_time) == (90, 120)


def test_a_mesh_session_with_a_node_of_another_as_is_ebgp() -> None:
    mine = one(node(), node("n2", "192.0.2.2/24", asNumber=65002))
    assert mine.spec.external
    assert mine.spec.peer_as == 65002


def test_a_required_peer_is_required_also_where_no_session_could_be_made() -> None:
    said = {"required": "true"}
    alone = (ME, configuration(nodeToNodeMeshEnabled=False))
    gateway = peer("gw", {**said, "peer": "auto-gateway"}, peerIP=None)
    unsigned = peer("tor", said, password={"secretKeyRef": {"name": "a", "key": "b"}})
    found = of(*alone, gateway, unsigned, here=Here())
    assert found.peerings == ()
    assert found.required == {"gw", "tor"}
    assert of(*alone, peer("me", said, peerIP="192.0.2.1"), peer("other")).required == set()


def test_a_node_with_a_cluster_id_neither_starts_the_mesh_nor_is_part_of_it() -> None:
    reflector = node("n4", "192.0.2.4/24", routeReflectorClusterID="1.0.0.1")
    assert ends(of(*MESH, reflector)) == ends(of(*MESH))
    assert of(*MESH, reflector, me="n4").peerings == ()


def test_of_two_nodes_the_one_with_the_greater_address_as_text_calls() -> None:
    # "192.0.2.10" < "192.0.2.2", as Calico compares them.
    passive = {p.spec.peer: p.spec.passive for p in of(*MESH, me="n3", here=Here()).peerings}
    assert passive == {ip_address("192.0.2.1"): False, ip_address("192.0.2.2"): True}


@pytest.mark.parametrize(
    ("spec", "passive"),
    [
        pytest.param({"peerIP": "192.0.2.2", "asNumber": 64512}, True, id="global, by address"),
        pytest.param({"peerIP": "192.0.2.2", "asNumber": 64512, "node": "n1"}, False, id="for one node"),
        pytest.param({"peerIP": None, "asNumber": None, "peerSelector": "all()"}, False, id="by selector"),
    ],
)
def test_a_bgp_peer_waits_where_calico_has_it_wait(spec: dict[str, Any], passive: bool) -> None:
    found = of(*MESH, configuration(nodeToNodeMeshEnabled=False), peer("p", **spec)).peerings
    assert {p.spec.passive for p in found if str(p.spec.peer) == "192.0.2.2"} == {passive}


def test_a_peers_port_is_its_nodes() -> None:
    ports = (configuration(listenPort=1790), configuration("node.n2", listenPort=1791))
    assert {str(p.spec.peer): p.spec.port for p in of(*MESH, *ports).peerings} == {
        "192.0.2.2": 1791,
        "2001:db8::2": 1791,
        "192.0.2.10": 1790,
    }


def test_the_mesh_has_a_restart_time_and_policies_of_the_clusters() -> None:
    said = {"import": "calico", "export": "calico", "max-prefix": "5"}
    mesh = one(*MESH[::2], configuration(said=said, nodeMeshMaxRestartTime="2m30s"))
    assert mesh.spec.restart_time == 150
    assert (mesh.import_policy, mesh.export_policy, mesh.max_prefixes) == (Policy.CALICO, Policy.CALICO, 5)


def test_a_bgp_peer_for_a_nodes_address_is_in_place_of_the_mesh_session() -> None:
    peering = one(*MESH[::2], peer(peerIP="192.0.2.10", asNumber=64512, ttlSecurity=1))
    assert (peering.source, peering.spec.ttl_security) == (Source.GLOBAL, 1)


# For whom a BGPPeer is


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        pytest.param({}, Source.GLOBAL, id="global"),
        pytest.param({"node": "n1"}, Source.NODE, id="named"),
        pytest.param({"node": "n2"}, None, id="another is named"),
        pytest.param({"nodeSelector": "rack == 'a'"}, Source.NODE, id="selected"),
        pytest.param({"nodeSelector": "rack == 'b'"}, None, id="not selected"),
    ],
)
def test_a_peer_is_for_the_node_it_names_or_selects_or_for_all(
    spec: dict[str, Any], wanted: Source | None
) -> None:
    assert [p.source for p in of(ME, peer(**spec)).peerings] == [wanted] * bool(wanted)


def test_a_session_carries_what_the_speaker_needs() -> None:
    peering = one(ME, peer(peerIP="192.0.2.254:1790"))
    spec = peering.spec
    assert (spec.peer, spec.port, spec.peer_as) == (ip_address("192.0.2.254"), 1790, 65000)
    assert (str(spec.source), spec.local_as, str(spec.router_id)) == ("192.0.2.1", 65001, "192.0.2.1")
    assert (spec.external, spec.passive, spec.extended_next_hop) == (True, False, False)
    assert (peering.name, peering.required, peering.drained, peering.cluster_id) == (
        "tor",
        False,
        False,
        None,
    )


@pytest.mark.parametrize("ip", ["192.0.2.1", "2001:db8::1", "10.1.0.1", "10.9.9.9"])
def test_a_node_never_peers_with_itself_whichever_of_its_addresses_is_named(ip: str) -> None:
    here = replace(HERE, loopback=frozenset({ip_address("10.9.9.9")}))
    assert of(node(ipv6="2001:db8::1/64"), peer(peerIP=ip), here=here) == Peerings()


def test_the_same_peer_twice_is_one_session_and_the_first_name_sets_it_up() -> None:
    first, other = peer("a", asNumber=65000), peer("b", asNumber=65009)
    for order in ((first, other), (other, first)):
        assert one(ME, *order).spec.peer_as == 65000


def test_a_second_port_of_an_address_is_told_to_have_no_session() -> None:
    found = of(ME, peer("a"), peer("b", peerIP="192.0.2.254:1790"))
    assert [(p.name, p.spec.port) for p in found.peerings] == [("a", 179)]
    assert "port 1790 of 192.0.2.254 has no session: BGPPeer a" in found.problems["BGPPeer b"]


def test_a_global_peer_wins_over_one_for_the_node() -> None:
    peering = one(ME, peer("a", node="n1", asNumber=65009), peer("z"))
    assert (peering.name, peering.source, peering.spec.peer_as) == ("z", Source.GLOBAL, 65000)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"peerIP": None, "asNumber": None}, "names no peer"),
        ({"asNumber": None}, "asNumber is missing: no session"),
        ({"peerIP": None, "localWorkloadSelector": "all()"}, "peering with workloads is not supported"),
        ({"peerIP": "2001:db8:9::1"}, "this node has no IPv6 address"),
        ({"peerIP": "0.0.0.0"}, "0.0.0.0 is not the address of one host"),
        ({"peerIP": "224.0.0.5"}, "224.0.0.5 is not the address of one host"),
        ({"peerIP": "fe80::1"}, "fe80::1 is not the address of one host"),
        ({"peerIP": "::ffff:10.0.0.1"}, "is not the address of one host"),
    ],
)
def test_a_peer_that_can_be_no_session_is_a_problem(spec: dict[str, Any], why: str) -> None:
    found = of(ME, peer(**spec))
    assert found.peerings == ()
    assert why in found.problems["BGPPeer tor"]


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("192.0.2.254", "192.0.2.254", 0),
        ("192.0.2.254:1790", "192.0.2.254", 1790),
        ("2001:db8::fe", "2001:db8::fe", 0),
        ("[2001:db8::fe]:1790", "2001:db8::fe", 1790),
    ],
)
def test_parse_peer_ip(text: str, address: str, port: int) -> None:
    assert parse_peer_ip(text) == (ip_address(address), port)


@pytest.mark.parametrize("text", ["tor-1", "192.0.2.254:bgp", "[2001:db8::x]:179", "", "fe80::1%eth0"])
def test_what_is_no_address_is_no_peer(text: str) -> None:
    with pytest.raises(ValueError):
        parse_peer_ip(text)


# Nodes at both ends

A = node("a", "10.0.0.1/24", "fd00::1/64", labels={"rr": "yes"}, routeReflectorClusterID="1.0.0.1")
B = node("b", "10.0.0.2/24", "fd00::2/64", labels={"role": "leaf"})
C = node("c", "10.0.0.3/24", labels={"role": "leaf"}, asNumber=65003)
OFF = configuration(**NO_MESH)


def test_a_peer_selector_makes_sessions_of_both_families_with_the_as_and_port_of_each_node() -> None:
    port = configuration("node.c", listenPort=1793)
    found = of(A, B, C, OFF, port, toward("role == 'leaf'", node="a"), me="a", here=Here()).peerings
    assert [(str(p.spec.peer), p.spec.peer_as, p.spec.port) for p in found] == [
        ("10.0.0.2", 64512, 179),
        ("10.0.0.3", 65003, 1793),
        ("fd00::2", 64512, 179),
    ]


def test_the_other_node_has_the_session_too_with_the_same_settings() -> None:
    leaf_to_reflector = toward(
        "rr == 'yes'", nodeSelector="role == 'leaf'", ttlSecurity=1, keepaliveTime="5s"
    )
    things = (A, B, C, OFF, leaf_to_reflector)
    assert ends(of(*things, me="b", here=Here())) == ["10.0.0.1", "fd00::1"]
    reverse = of(*things, me="a", here=Here()).peerings
    assert [str(p.spec.peer) for p in reverse] == ["10.0.0.2", "10.0.0.3", "fd00::2"]
    assert {(p.source, p.name, p.spec.ttl_security, p.spec.hold_time) for p in reverse} == {
        (Source.NODE, "p", 1, 15)
    }


def test_manual_reverse_peering_leaves_the_other_end_alone() -> None:
    one_way = toward("rr == 'yes'", nodeSelector="role == 'leaf'", reversePeering="Manual")
    assert of(A, B, OFF, one_way, me="a", here=Here()) == Peerings()


@pytest.mark.parametrize(
    ("spec", "reversed_"),
    [
        ({"peerIP": "10.0.0.3", "asNumber": 65003, "node": "b"}, ["10.0.0.2"]),
        ({"peerIP": "10.0.0.3", "asNumber": 65003}, ["10.0.0.1", "10.0.0.2"]),
        ({"peerIP": "10.0.0.3:179", "asNumber": 65003, "node": "b"}, ["10.0.0.2"]),
        ({"peerIP": "10.0.0.3:1790", "asNumber": 65003, "node": "b"}, []),
        ({"peerIP": "10.0.0.3", "asNumber": 64512, "node": "b"}, []),
        ({"peerIP": "10.0.0.9", "asNumber": 65003, "node": "b"}, []),
        ({"peerIP": "10.0.0.3", "asNumber": None, "node": "b"}, []),
    ],
)
def test_a_peer_ip_of_a_node_is_reversed_where_as_and_port_are_that_nodes(
    spec: dict[str, Any], reversed_: list[str]
) -> None:
    assert ends(of(A, B, C, OFF, peer(**spec), me="c", here=Here())) == reversed_


def test_an_explicit_peer_wins_over_the_reverse_of_another() -> None:
    explicit = toward("role == 'leaf'", "z", nodeSelector="rr == 'yes'", maxRestartTime="1m")
    implied = toward("rr == 'yes'", "a", nodeSelector="role == 'leaf'", maxRestartTime="2m")
    found = of(A, B, OFF, explicit, implied, me="a", here=Here()).peerings
    assert {(p.name, p.spec.restart_time) for p in found} == {("z", 60)}


def test_a_peer_ip_of_a_node_with_its_as_has_its_port() -> None:
    port = configuration("node.c", listenPort=1793)
    for as_number, want in ((65003, 1793), (65004, 179)):
        to_c = peer(peerIP="10.0.0.3", asNumber=as_number)
        assert one(B, C, OFF, port, to_c, me="b", here=Here()).spec.port == want


def test_without_an_as_number_the_address_of_a_node_is_of_the_clusters_as() -> None:
    to_b = peer(peerIP="10.0.0.2", asNumber=None, node="a")
    assert one(A, B, OFF, to_b, me="a", here=Here()).spec.peer_as == 64512
    assert ends(of(A, B, OFF, to_b, me="b", here=Here())) == ["10.0.0.1"]
    to_c = peer(peerIP="10.0.0.3", asNumber=None, node="a")
    assert "asNumber is missing" in of(A, C, OFF, to_c, me="a", here=Here()).problems["BGPPeer tor"]


def test_a_local_as_is_presented_and_the_other_end_expects_it() -> None:
    things = (B, C, OFF, toward("all()", node="b", localASNumber=65009))
    mine, theirs = (one(*things, me=name, here=Here()).spec for name in "bc")
    assert (mine.local_as, mine.peer_as, mine.external) == (65009, 65003, True)
    assert (theirs.local_as, theirs.peer_as, theirs.external) == (65003, 65009, True)


# Reflectors


@pytest.mark.parametrize(
    ("mine", "theirs", "same_as", "client"),
    [
        pytest.param("1.0.0.1", None, True, True, id="a client"),
        pytest.param("1.0.0.1", "1.0.0.1", True, False, id="of one cluster"),
        pytest.param("1.0.0.1", "1.0.0.2", True, True, id="of two clusters"),
        pytest.param("1.0.0.1", None, False, False, id="external"),
        pytest.param(None, "1.0.0.1", True, False, id="seen from the client"),
        pytest.param(None, None, True, False, id="neither reflects"),
    ],
)
def test_an_internal_peer_of_another_cluster_or_none_is_a_reflectors_client(
    mine: str | None, theirs: str | None, same_as: bool, client: bool
) -> None:
    me = node("a", "10.0.0.1/24", routeReflectorClusterID=mine)
    other = node("b", "10.0.0.2/24", routeReflectorClusterID=theirs, asNumber=None if same_as else 65002)
    by_selector = one(me, other, OFF, toward("all()"), me="a", here=Here())
    as_number = 64512 if same_as else 65002
    by_address = one(me, other, OFF, peer(peerIP="10.0.0.2", asNumber=as_number), me="a", here=Here())
    assert by_selector.reflector_client == by_address.reflector_client == client
    assert by_selector.cluster_id == (IPv4Address(mine) if mine else None)


def test_a_router_of_the_reflectors_as_is_its_client() -> None:
    assert one(A, OFF, peer(peerIP="10.0.0.254", asNumber=64512), me="a", here=Here()).reflector_client


def test_a_local_as_decides_whether_a_peer_is_internal_and_so_a_client() -> None:
    tor = peer(peerIP="10.0.0.254", asNumber=65000, localASNumber=65000)
    peering = one(A, OFF, tor, me="a", here=Here())
    assert (peering.spec.external, peering.reflector_client, peering.spec.local_as) == (False, True, 65000)


# What a BGPPeer sets


@pytest.mark.parametrize(
    ("spec", "attribute", "want"),
    [
        ({"ttlSecurity": 2}, "ttl_security", 2),
        ({"ttlSecurity": 0}, "ttl_security", 0),
        ({"keepaliveTime": "10s"}, "hold_time", 30),
        ({"keepaliveTime": "500ms"}, "hold_time", 3),
        ({"maxRestartTime": "5m"}, "restart_time", 300),
        ({"maxRestartTime": "1500ms"}, "restart_time", 2),
        ({"localASNumber": 65009}, "local_as", 65009),
        ({"sourceAddress": "UseNodeIP"}, "source", ip_address("192.0.2.1")),
    ],
)
def test_a_field_becomes_part_of_the_session(spec: dict[str, Any], attribute: str, want: object) -> None:
    assert getattr(one(ME, peer(**spec)).spec, attribute) == want


@pytest.mark.parametrize(
    ("spec", "what"),
    [({"keepaliveTime": "100ms"}, "keepaliveTime 100ms"), ({"maxRestartTime": "2h"}, "maxRestartTime 2h")],
)
def test_a_time_that_bgp_cannot_say_is_the_next_one_and_a_problem(spec: dict[str, Any], what: str) -> None:
    found = of(ME, peer(**spec))
    assert what in found.problems["BGPPeer tor"]
    [peering] = found.peerings
    assert (peering.spec.hold_time, peering.spec.restart_time) in {(3, 120), (90, 4095)}


@pytest.mark.parametrize(
    ("spec", "mode"),
    [
        ({}, NextHopMode.AUTO),
        ({"nextHopMode": "Auto"}, NextHopMode.AUTO),
        ({"nextHopMode": "Self"}, NextHopMode.SELF),
        ({"nextHopMode": "Keep", "asNumber": 65001}, NextHopMode.KEEP),
        ({"keepOriginalNextHop": True}, NextHopMode.KEEP),
        ({"keepOriginalNextHop": True, "asNumber": 65001}, NextHopMode.AUTO),  # only for eBGP
    ],
)
def test_the_next_hop_mode(spec: dict[str, Any], mode: NextHopMode) -> None:
    assert one(ME, peer(**spec)).next_hop is mode


def test_own_as_is_allowed_as_often_as_it_says() -> None:
    assert one(ME, peer(numAllowedLocalASNumbers=2)).allow_own_as == 2
    assert one(ME, peer()).allow_own_as == 0


def test_a_peer_that_is_reachable_by_a_gateway_gets_a_static_route() -> None:
    found = of(ME, peer(peerIP="198.51.100.1", reachableBy="192.0.2.9"))
    assert found.static_routes == (StaticRoute(ip_address("198.51.100.1"), ip_address("192.0.2.9")),)
    assert of(ME, peer()).static_routes == ()


def test_filters_come_in_order_and_a_missing_one_is_skipped_and_a_problem() -> None:
    found = of(ME, bgp_filter("a"), bgp_filter("b"), peer(filters=["b", "gone", "a"]))
    assert [f.metadata.name for f in found.peerings[0].filters] == ["b", "a"]
    assert found.problems == {
        "BGPPeer tor": "filter gone: there is no BGPFilter of that name; the others hold"
    }


LINK = {"sourceAddress": "None"}


@pytest.mark.parametrize(
    ("address", "spec", "said", "source"),
    [
        pytest.param("10.1.0.0", {}, {}, "192.0.2.1", id="the node's address"),
        pytest.param("10.1.0.0", LINK, {}, "10.1.0.1", id="the kernel's choice: a link of its own"),
        pytest.param("10.1.0.0", {}, {"source": "uplink"}, "10.1.0.1", id="the uplink's"),
        pytest.param("198.51.100.1", LINK, {}, "192.0.2.1", id="further away: the node's address"),
        pytest.param("198.51.100.1", {}, {"source": "uplink"}, "192.0.2.1", id="behind no uplink"),
        pytest.param(
            "2001:db8::9", {}, {"source": "uplink"}, "2001:db8::1", id="a family that only the link has"
        ),
        pytest.param("10.1.0.0", {}, {"node-id": "x"}, "10.1.0.1", id="of a join that wrote no source"),
        pytest.param("10.1.0.0", {}, {"node-id": "x", "source": "x"}, "192.0.2.1", id="a bad word"),
    ],
)
def test_the_source(address: str, spec: dict[str, Any], said: dict[str, str], source: str) -> None:
    [peering] = of(ME, peer(said=said, peerIP=address, **spec)).peerings
    assert peering.spec.source == ip_address(source)


def test_of_two_links_that_hold_the_peer_the_narrower_is_its_own() -> None:
    uplinks = tuple(Uplink(f"eth{n}", ip_interface(a)) for n, a in enumerate(("10.0.0.1/8", "10.1.0.1/31")))
    for order in (uplinks, uplinks[::-1]):
        by_uplink = peer(said={"source": "uplink"}, peerIP="10.1.0.0")
        assert one(ME, by_uplink, here=Here(order)).spec.source == ip_address("10.1.0.1")


def test_of_two_addresses_of_one_prefix_the_nodes_is_the_source() -> None:
    uplinks = tuple(Uplink("eth0", ip_interface(a)) for a in ("192.0.2.1/24", "192.0.2.9/24"))
    by_uplink = peer(said={"source": "uplink"})
    assert one(ME, by_uplink, here=Here(uplinks)).spec.source == ip_address("192.0.2.1")


# Secrets

PASSWORD = {"secretKeyRef": {"name": "bgp", "key": "tor-1"}}


def test_a_password_is_the_hosts_secret_and_shows_nowhere() -> None:
    here = replace(HERE, secrets={("bgp", "tor-1"): "hush"})
    peering = one(ME, peer(password=PASSWORD), here=here)
    assert peering.spec.password == "hush"
    assert "hush" not in f"{peering} {here}"


@pytest.mark.parametrize(
    ("password", "why"),
    [
        (PASSWORD, "/etc/fabricctl/secrets/bgp/tor-1"),
        (PASSWORD, "FABRICCTL_SECRET_BGP_TOR_1"),
        ({}, "password has no secretKeyRef"),
        ({"secretKeyRef": {"name": "bgp"}}, "password has no secretKeyRef"),
    ],
)
def test_without_the_secret_there_is_no_session_rather_than_an_open_one(password: object, why: str) -> None:
    found = of(ME, peer(password=password))
    assert found.peerings == ()
    assert why in found.problems["BGPPeer tor"]
    assert found.problems["BGPPeer tor"].endswith(": no session")


def test_the_mesh_has_a_password_of_its_own_and_none_without_its_secret() -> None:
    signed = configuration(nodeMeshPassword=PASSWORD)
    here = replace(HERE, secrets={("bgp", "tor-1"): "hush"})
    assert one(*MESH[::2], signed, here=here).spec.password == "hush"
    found = of(*MESH[::2], signed)
    assert found.peerings == ()
    assert list(found.problems) == ["BGPConfiguration default"]


def test_a_peer_without_its_secret_is_not_met_by_the_open_mesh_instead() -> None:
    assert of(*MESH[::2], peer(peerIP="192.0.2.10", asNumber=64512, password=PASSWORD)).peerings == ()


def test_the_secrets_that_are_needed_are_those_the_resources_name() -> None:
    mesh = configuration(nodeMeshPassword={"secretKeyRef": {"name": "bgp", "key": "mesh"}})
    ignored = configuration("node.n1", nodeMeshPassword={"secretKeyRef": {"name": "bgp", "key": "no"}})
    peers = (peer("a", password=PASSWORD), peer("b"), peer("c", password={}))
    assert secret_refs(Resources("n1", (), (mesh, ignored), peers)) == {("bgp", "tor-1"), ("bgp", "mesh")}


# Annotations

WAYS = tuple(Gateway(ip_address(a), "eth0") for a in ("192.0.2.253", "10.1.0.0", "2001:db8::fe", "fe80::1"))


def gateway(said: dict[str, str] | None = None, **spec: object) -> BGPPeer:
    return peer("gw", {"peer": "auto-gateway", **(said or {})}, **{"peerIP": None, **spec})


def test_auto_gateway_is_one_session_with_each_default_gateway_but_link_local_ones() -> None:
    here = replace(HERE, gateways=WAYS)
    found = of(node(ipv6="2001:db8::1/64"), gateway(), here=here)
    assert ends(found) == ["10.1.0.0", "192.0.2.253", "2001:db8::fe"]
    assert {p.spec.peer_as for p in found.peerings} == {65000}
    assert found.problems == {}


def test_without_a_gateway_there_is_no_session_and_a_problem() -> None:
    assert of(ME, gateway()).problems == {
        "BGPPeer gw": "the host has no default gateway, apart from BGP's own: no session"
    }


def test_a_peers_as_may_be_a_label_of_this_node() -> None:
    here = replace(HERE, gateways=WAYS[:1])
    assert one(ME, gateway({"as-label": "as"}, asNumber=None), here=here).spec.peer_as == 65007
    assert one(ME, peer(said={"as-label": "as"}, asNumber=None)).spec.peer_as == 65007
    assert one(ME, peer(said={"local-as-label": "as"})).spec.local_as == 65007


@pytest.mark.parametrize("key", ["as-label", "local-as-label"])
@pytest.mark.parametrize(
    ("label", "why"),
    [("no", "no label no"), ("odd", '"none", is no AS number'), ("-", "asNumber is missing")],
)
def test_a_missing_or_bad_label_is_no_session_and_a_problem(key: str, label: str, why: str) -> None:
    if (key, label) == ("local-as-label", "-"):
        return  # not a key: the node's AS number holds
    found = of(ME, peer(said={key: label}, asNumber=None if key == "as-label" else 65000))
    assert found.peerings == ()
    assert why in found.problems["BGPPeer tor"]


@pytest.mark.parametrize(
    ("cluster", "own", "want"),
    [
        ({}, {}, (Policy.SAFE, Policy.SAFE, 10_000)),
        ({"import": "calico", "max-prefix": "5"}, {}, (Policy.CALICO, Policy.SAFE, 5)),
        ({"import": "calico", "max-prefix": "5"}, {"import": "safe", "export": "calico", "max-prefix": "0"},
         (Policy.SAFE, Policy.CALICO, 0)),
    ],
)  # fmt: skip
def test_policies_and_the_limit_of_prefixes_are_the_peers_else_the_clusters(
    cluster: dict[str, str], own: dict[str, str], want: tuple[Policy, Policy, int]
) -> None:
    peering = one(ME, configuration(said=cluster), peer(said=own))
    assert (peering.import_policy, peering.export_policy, peering.max_prefixes) == want


def test_required_and_extended_next_hop() -> None:
    said = {"required": "true", "extended-next-hop": "true"}
    six = one(node(ipv6="2001:db8::1/64"), peer(said=said, peerIP="2001:db8::fe"))
    assert (six.required, six.spec.extended_next_hop, sorted(six.spec.families)) == (True, True, [4, 6])
    assert one(ME, peer(said=said)).spec.families == {4}


def test_a_node_says_which_peers_are_drained() -> None:
    drained = node(said={"drained": "192.0.2.254, 2001:db8::9"}, asNumber=65001)
    found = of(drained, peer(), peer("b", peerIP="192.0.2.253"))
    assert {str(p.spec.peer): p.drained for p in found.peerings} == {
        "192.0.2.253": False,
        "192.0.2.254": True,
    }


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("import", "all"),
        ("export", "Calico"),
        ("max-prefix", "many"),
        ("required", "yes"),
        ("extended-next-hop", "1"),
        ("source", "eth0"),
        ("peer", "gateway"),
        ("local-as-label", "-"),
    ],
)
def test_a_bad_annotation_is_a_problem_and_its_default_holds(key: str, text: str) -> None:
    loose = configuration(said={"import": "calico", "export": "calico", "max-prefix": "0"})
    found = of(ME, loose, peer(said={key: text}))
    assert found.problems["BGPPeer tor"].startswith(f'annotation fabricctl.io/{key}: "{text}": ')
    [plain] = of(ME, peer()).peerings
    [peering] = found.peerings
    field = {"import": "import_policy", "export": "export_policy", "max-prefix": "max_prefixes"}.get(
        key, "spec"
    )
    assert getattr(peering, field) == getattr(plain, field)


def test_bad_annotations_of_node_and_cluster_are_problems_too() -> None:
    found = of(node(said={"drained": "tor1"}), configuration(said={"export": "none"}), peer())
    assert set(found.problems) == {"Node n1", "BGPConfiguration default"}
    assert not found.peerings[0].drained


# For any resources

NAMES = ("n1", "n2", "n3")
LABELS = st.fixed_dictionaries({}, optional={"rack": st.sampled_from("ab"), "as": st.just("65002")})


@st.composite
def nodes(draw: st.DrawFn) -> list[Node]:
    found = []
    for at, name in enumerate(NAMES, start=1):
        host = {1: 9, 2: 10, 3: 100}[at]  # as text in another order than as numbers
        ipv4, ipv6 = f"10.0.0.{host}/24", f"fd00::{host}/64"
        found.append(
            node(
                name,
                *draw(st.sampled_from([(ipv4, ipv6), (ipv4, None), (None, ipv6)])),
                draw(LABELS),
                asNumber=draw(st.sampled_from([None, 65001, 65002])) or (None if at < 3 else 65003),
                routeReflectorClusterID=draw(st.sampled_from([None, None, "1.0.0.1"])),
            )
        )
    return found


SELECTORS = st.sampled_from(["all()", "rack == 'a'", "rack == 'b'", "has(rack)"])
WHOM = st.one_of(
    st.just({}), st.builds(lambda n: {"node": n}, st.sampled_from(NAMES)),
    st.builds(lambda s: {"nodeSelector": s}, SELECTORS),
)  # fmt: skip
PEERS = st.lists(
    st.tuples(WHOM, SELECTORS, st.sampled_from([None, 65002, 65009]), st.sampled_from([None, 1])).map(
        lambda drawn: {
            **drawn[0], "peerIP": None, "asNumber": None, "peerSelector": drawn[1],
            "localASNumber": drawn[2], "ttlSecurity": drawn[3],
        }
    ),
    max_size=3,
)  # fmt: skip
CONFIGURATIONS = st.tuples(
    st.sampled_from([{}, {"as-label": "as"}]),
    st.sampled_from([{}, NO_MESH, {"listenPort": 1790}]),
).map(lambda drawn: configuration(said=drawn[0], **drawn[1]))


@given(nodes(), st.lists(CONFIGURATIONS, max_size=1), PEERS)
def test_both_nodes_have_a_session_or_neither_and_they_never_wait_for_each_other(
    found: list[Node], configurations: list[BGPConfiguration], specs: list[dict[str, Any]]
) -> None:
    peers = [peer(f"p{at}", None, **spec) for at, spec in enumerate(specs)]
    of_all = {name: of(*found, *configurations, *peers, me=name, here=Here()) for name in NAMES}
    ways = {(p.spec.source, p.spec.peer): p for peerings_ in of_all.values() for p in peerings_.peerings}
    for (mine, theirs), peering in ways.items():
        other = ways[theirs, mine]
        assert not (peering.spec.passive and other.spec.passive)
        if not peering.name and not other.name:
            assert peering.spec.passive or other.spec.passive
        assert peering.spec.port == other.spec.listen_port
        if {peering.name, other.name} == {peering.name}:  # made by one resource, they fit
            assert (peering.spec.peer_as, peering.spec.local_as) == (other.spec.local_as, other.spec.peer_as)
            assert peering.spec.ttl_security == other.spec.ttl_security


@given(nodes(), PEERS, st.data())
def test_sessions_do_not_depend_on_the_order_of_anything(
    found: list[Node], specs: list[dict[str, Any]], data: st.DataObject
) -> None:
    things = [
        *found,
        OFF,
        *(peer(f"p{at}", None, **spec) for at, spec in enumerate(specs)),
        peer("q"),
        peer("r"),
    ]
    assert of(*data.draw(st.permutations(things))) == of(*things)
