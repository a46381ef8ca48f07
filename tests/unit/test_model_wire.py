import json
from ipaddress import ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import ConfigError
from fabric.model.base import Metadata, Resource, Unknown
from fabric.model.ippool import IPPool, IPPoolSpec
from fabric.model.node import Node, NodeBGP, NodeSpec
from fabric.model.wire import from_json, from_place, to_json


def tree(kind: str, spec: object = None, **metadata: object) -> dict[str, object]:
    spec = {} if spec is None else spec
    return {
        "kind": kind,
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "x", **metadata},
        "spec": spec,
    }


def rewritten(value: object) -> object:
    return json.loads(to_json(from_json(json.dumps(value))))


def test_values_are_built_by_their_python_names() -> None:
    pool = IPPool(metadata=Metadata(name="p"), spec=IPPoolSpec(cidr=ip_network("fd00::/48")))
    assert pool.spec.block_size == 122
    node = Node(
        metadata=Metadata(name="n"),
        spec=NodeSpec(bgp=NodeBGP(ipv4_address=ip_interface("192.0.2.1/24"))),
    )
    assert json.loads(to_json(node))["spec"] == {"bgp": {"ipv4Address": "192.0.2.1/24"}}


UNKNOWN = {"future": {"a": None, "b": [], "c": ""}, "block_size": 7, "asNumbers": 0, "empty": ""}


@pytest.mark.parametrize("kind", ["Node", "BGPPeer", "BGPConfiguration", "ClusterInformation", "Tier"])
def test_unknown_fields_survive_a_rewrite_wherever_they_are(kind: str) -> None:
    value = tree(kind, UNKNOWN, managedFields=[{"manager": "x"}], name_space="?") | {
        "extra": {"deep": [None]}
    }
    again = rewritten(value)
    assert isinstance(again, dict)
    assert again["spec"].items() >= UNKNOWN.items()
    assert again["metadata"] == value["metadata"]
    assert again["extra"] == {"deep": [None]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"kind":"Node","metadata":{"name":"a"}}', "Node a"),
        ('{"kind":"IPReservation","metadata":{"name":"b"}}', "IPReservation b"),
        ('{"kind":"IPReservation","metadata":{"name":"a","namespace":"default"}}', None),
        ('{"kind":"Future","metadata":{"name":"a"}}', None),
    ],
)
def test_a_value_stored_as_another_object_than_it_says_it_is_is_refused(text: str, says: str | None) -> None:
    if says is None:
        assert from_place(text, "ipreservations", None, "a") == from_json(text)
        return
    with pytest.raises(ConfigError, match=f"^says it is {says}, but is stored as ipreservations/a$"):
        from_place(text, "ipreservations", None, "a")


def test_an_unknown_field_with_a_python_name_is_not_taken_for_the_known_one() -> None:
    pool = from_json(json.dumps(tree("IPPool", {"cidr": "10.0.0.0/16", "block_size": 30})))
    assert isinstance(pool, IPPool)
    assert pool.spec.block_size == 26
    assert json.loads(to_json(pool))["spec"]["block_size"] == 30


def test_null_is_absent_and_the_revision_is_never_stored() -> None:
    value = tree("Node", {"bgp": None}, creationTimestamp=None, labels=None, resourceVersion="17")
    assert rewritten(value) == tree("Node") | {"status": {}}


def test_pointers_are_written_when_they_are_false_and_plain_fields_are_not() -> None:
    assert rewritten(tree("BGPPeer", {"keepOriginalNextHop": False, "numAllowedLocalASNumbers": 0})) == tree(
        "BGPPeer", {"numAllowedLocalASNumbers": 0}
    )


def test_a_pool_stored_without_nat_outgoing_has_none() -> None:
    pool = from_json(json.dumps(tree("IPPool", {"cidr": "10.0.0.0/16"})))
    assert isinstance(pool, IPPool)
    assert pool.spec.nat_outgoing is False


def test_a_resource_of_another_group_is_kept_whatever_its_kind() -> None:
    value = tree("Node", {"podSelector": {}}) | {"apiVersion": "networking.k8s.io/v1"}
    assert type(from_json(json.dumps(value))) is Unknown
    assert rewritten(value) == value


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ({}, "spec.cidr: is required"),
        ({"cidr": "10.0.0.1"}, 'spec.cidr: "10.0.0.1": must be a prefix, such as 10.0.0.0/16 or fd00::/48'),
        ({"cidr": 5}, "spec.cidr: 5: must be a prefix, such as 10.0.0.0/16 or fd00::/48"),
        (
            {"cidr": "192.167.0.0/12"},
            'spec.cidr: "192.167.0.0/12": has host bits set; the prefix around it is 192.160.0.0/12',
        ),
        ({"cidr": "169.254.0.0/16"}, 'spec.cidr: "169.254.0.0/16": overlaps the link-local 169.254.0.0/16'),
        ({"cidr": "160.0.0.0/4"}, 'spec.cidr: "160.0.0.0/4": overlaps the link-local 169.254.0.0/16'),
        ({"cidr": "fe00::/8"}, 'spec.cidr: "fe00::/8": overlaps the link-local fe80::/10'),
        ({"cidr": "10.0.0.0/16", "blockSize": 33}, "spec.blockSize: 33: must be 20 to 32 for IPv4"),
        ({"cidr": "fd00::/64", "blockSize": 64}, "spec.blockSize: 64: must be 116 to 128 for IPv6"),
        ({"cidr": "10.0.0.0/28"}, 'spec.cidr: "10.0.0.0/28": is smaller than one block, /26'),
        (
            {"cidr": "10.0.0.0/16", "blockSize": "26"},
            'spec.blockSize: "26": must be a whole number; leave the quotes out',
        ),
        ({"cidr": "10.0.0.0/16", "blockSize": 26.5}, "spec.blockSize: 26.5: must be a whole number"),
        ({"cidr": "10.0.0.0/16", "nodeSelector": 1}, "spec.nodeSelector: 1: must be text; put it in quotes"),
        ({"cidr": "10.0.0.0/16", "nodeSelector": []}, "spec.nodeSelector: must be text"),
        ({"cidr": "10.0.0.0/16", "natOutgoing": 1}, "spec.natOutgoing: 1: must be true or false"),
        (
            {"cidr": "10.0.0.0/16", "ipipMode": "always"},
            "spec.ipipMode: \"always\": must be 'Never', 'Always' or 'CrossSubnet'",
        ),
        (
            {"cidr": "10.0.0.0/16", "ipipMode": "Always", "vxlanMode": "Always"},
            'spec.vxlanMode: "Always": excludes ipipMode: one of them must be Never',
        ),
        (
            {"cidr": "fd00::/64", "ipipMode": "Always"},
            'spec.ipipMode: "Always": must be Never for IPv6: IPIP carries IPv4 only',
        ),
        (
            {"cidr": "10.0.0.0/16", "allowedUses": ["Workload", "LoadBalancer"]},
            "spec.allowedUses: LoadBalancer excludes Workload and Tunnel",
        ),
        (
            {"cidr": "10.0.0.0/16", "allowedUses": ["LoadBalancer"], "vxlanMode": "Always"},
            'spec.vxlanMode: "Always": must be Never: a LoadBalancer pool has no tunnels',
        ),
        (
            {"cidr": "10.0.0.0/16", "allowedUses": ["LoadBalancer"], "nodeSelector": "has(a)"},
            'spec.nodeSelector: "has(a)": must be all(): a LoadBalancer pool is no node\'s',
        ),
        (
            {"cidr": "10.0.0.0/16", "nodeSelector": "global()"},
            (
                'spec.nodeSelector: "global()": global() has a meaning in the namespaceSelector of a rule\'s source or '
                "destination only"
            ),
        ),
        (
            {"cidr": "10.0.0.0/16", "namespaceSelector": "all()"},
            'spec.namespaceSelector: "all()": excludes the use Tunnel: set allowedUses: [Workload]',
        ),
        (
            {"cidr": "10.0.0.0/16", "nodeSelector": "role = 'db'"},
            'spec.nodeSelector: "role = \'db\'": unexpected "=" at column 6; equality is written "=="',
        ),
        (
            {"cidr": "10.0.0.0/16", "nodeSelector": f"a == '{'x' * 1024}'"},
            f"spec.nodeSelector: \"a == '{'x' * 53}…: a selector has at most 1024 characters, this one 1031",
        ),
    ],
)
def test_a_pool_that_breaks_a_rule_is_refused(spec: object, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_json(json.dumps(tree("IPPool", spec)))
    assert str(caught.value) == f"IPPool x: {rule}"


PEER_IP = "must be ADDRESS, A.B.C.D:PORT or [V6]:PORT, with a port of 1 to 65535"
IPV4_WITH_PREFIX = "must be an IPv4 address with its prefix length, as 192.0.2.1/24"
COMMUNITY = "must be aa:nn of 0 to 65535 each, or aa:nn:mm of 0 to 4294967295 each"
WRONG_FAMILY = {"bgp": {"ipv4Address": "fd00::1/64"}}


@pytest.mark.parametrize(
    ("kind", "spec", "rule"),
    [
        ("BGPPeer", {"node": "a", "nodeSelector": "all()"}, 'spec.nodeSelector: "all()": excludes node'),
        ("BGPPeer", {"peerIP": "192.0.2.1:0"}, f'spec.peerIP: "192.0.2.1:0": {PEER_IP}'),
        ("BGPPeer", {"peerIP": "[192.0.2.1]:179"}, f'spec.peerIP: "[192.0.2.1]:179": {PEER_IP}'),
        ("BGPPeer", {"peerIP": "192.0.2"}, f'spec.peerIP: "192.0.2": {PEER_IP}'),
        ("BGPPeer", {"peerIP": " "}, f'spec.peerIP: " ": {PEER_IP}'),
        (
            "BGPPeer",
            {"peerSelector": "all()", "asNumber": 1},
            'spec.peerSelector: "all()": excludes peerIP and asNumber, which come from the nodes selected',
        ),
        (
            "BGPPeer",
            {"peerIP": "192.0.2.1", "asNumber": 1, "reachableBy": "fd00::1"},
            'spec.reachableBy: "fd00::1": is not of the family of peerIP 192.0.2.1',
        ),
        (
            "BGPPeer",
            {"asNumber": 4294967296},
            "spec.asNumber: 4294967296: must be at most 4294967295",
        ),
        (
            "BGPPeer",
            {"asNumber": "1.70000"},
            'spec.asNumber: "1.70000": each half of a dotted AS number is 0 to 65535',
        ),
        (
            "BGPPeer",
            {"asNumber": 1.5},
            'spec.asNumber: 1.5: must be a whole number; a dotted AS number is put in quotes: "1.10"',
        ),
        (
            "Node",
            WRONG_FAMILY,
            f'spec.bgp.ipv4Address: "fd00::1/64": {IPV4_WITH_PREFIX}',
        ),
        (
            "BGPPeer",
            {"localWorkloadSelector": "all()"},
            "spec.localWorkloadSelector: needs asNumber",
        ),
        (
            "BGPPeer",
            {"localWorkloadSelector": "all()", "asNumber": 1, "peerIP": "192.0.2.1"},
            "spec.localWorkloadSelector: excludes peerIP and peerSelector",
        ),
        ("BGPPeer", {"reachableBy": "192.0.2.1"}, 'spec.reachableBy: "192.0.2.1": needs peerIP'),
        (
            "BGPPeer",
            {"keepOriginalNextHop": True, "nextHopMode": "Keep"},
            "spec.keepOriginalNextHop: true: excludes nextHopMode; use nextHopMode alone",
        ),
        (
            "BGPConfiguration",
            {"nodeToNodeMeshEnabled": False, "nodeMeshMaxRestartTime": "1m"},
            "spec.nodeMeshMaxRestartTime: needs nodeToNodeMeshEnabled",
        ),
        (
            "BGPConfiguration",
            {"communities": [{"name": "a", "value": "1:70000"}], "prefixAdvertisements": [{"cidr": "::/0"}]},
            f'spec.communities[0].value: "1:70000": {COMMUNITY}',
        ),
        (
            "BGPConfiguration",
            {"communities": [{"name": "a", "value": "1:1"}]},
            "spec.communities: are named and no prefixAdvertisements use them",
        ),
        (
            "BGPConfiguration",
            {"prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": ["red"]}]},
            'spec.prefixAdvertisements[0].communities: "red": names no community of this configuration',
        ),
        ("BGPConfiguration", {"listenPort": 0}, "spec.listenPort: 0: must be at least 1"),
        ("Node", [], "spec: must be a mapping"),
        ("Profile", {"labelsToApply": 1}, "spec.labelsToApply: 1: must be a mapping"),
        (
            "Profile",
            {"ingress": [{"action": "Log", "ipVersion": 5}]},
            "spec.ingress[0].ipVersion: 5: must be 4 or 6",
        ),
        (
            "Profile",
            {"ingress": [{"action": "Log", "ipVersion": 10**30}]},
            f"spec.ingress[0].ipVersion: {10**30}: must be a whole number, and not as large",
        ),
        (
            "Profile",
            {"ingress": [{"action": "Allow", "http": {"paths": [{"exact": "/" * 1025}]}}]},
            f'spec.ingress[0].http.paths[0].exact: "{"/" * 59}…: must have at most 1024 characters',
        ),
        ("Node", {"bgp": {"ipv4Address": ""}}, "spec.bgp: must not be empty; leave it out"),
        ("HostEndpoint", {"interfaceName": "eth0"}, "spec.node: is required"),
        ("HostEndpoint", {"node": "n"}, "spec: needs interfaceName or expectedIPs"),
        (
            "HostEndpoint",
            {"node": "n", "interfaceName": "*", "ports": [{"name": "a", "protocol": "ICMP", "port": 1}]},
            'spec.ports[0].protocol: "ICMP": must be TCP, UDP or SCTP, which have ports',
        ),
        (
            "CalicoNodeStatus",
            {"node": "n", "classes": ["BGP", "BGP"], "updatePeriodSeconds": 10},
            "spec.classes: holds a value more than once",
        ),
        (
            "CalicoNodeStatus",
            {"node": "n", "classes": ["BGP"], "updatePeriodSeconds": 86401},
            "spec.updatePeriodSeconds: 86401: must be at most 86400",
        ),
        (
            "IPReservation",
            {"reservedCIDRs": ["10.0.0.0/33"]},
            'spec.reservedCIDRs[0]: "10.0.0.0/33": must be an IP address or a prefix',
        ),
        ("BGPFilter", {"exportV4": [{}]}, "spec.exportV4[0].action: is required"),
        (
            "BGPFilter",
            {"exportV4": [{"action": "Accept", "cidr": "fd00::/8", "matchOperator": "In"}]},
            'spec.exportV4[0].cidr: "fd00::/8": must be an IPv4 prefix',
        ),
        (
            "BGPFilter",
            {"importV6": [{"action": "Accept", "cidr": "fd00::/8"}]},
            'spec.importV6[0].cidr: "fd00::/8": needs matchOperator',
        ),
        (
            "BGPFilter",
            {"importV4": [{"action": "Accept", "prefixLength": {"min": 8}}]},
            "spec.importV4[0].prefixLength: needs cidr",
        ),
        (
            "BGPFilter",
            {"importV4": [{"action": "Reject", "operations": [{"setPriority": {"value": 1}}]}]},
            "spec.importV4[0].operations: need action Accept",
        ),
        (
            "BGPFilter",
            {"importV4": [{"action": "Accept", "operations": [{}]}]},
            "spec.importV4[0].operations[0]: needs exactly one of addCommunity, prependASPath and setPriority",
        ),
        (
            "BGPFilter",
            {"importV4": [{"action": "Accept", "communities": {"values": ["1:1", "2:2"]}}]},
            "spec.importV4[0].communities.values: must have at most 1 entries, not 2",
        ),
        (
            "WorkloadEndpoint",
            {"ipNetworks": ["10.0.0.0/24"]},
            'spec.ipNetworks[0]: "10.0.0.0/24": must be one address, /32',
        ),
        ("WorkloadEndpoint", {"ipNetworks": "10.0.0.0/32"}, 'spec.ipNetworks: "10.0.0.0/32": must be a list'),
        (
            "WorkloadEndpoint",
            {"interfaceName": "x" * 16},
            f"spec.interfaceName: \"{'x' * 16}\": must be 1 to 15 letters, digits, '_', '.' and '-'",
        ),
        (
            "BGPConfiguration",
            {"communities": [{"name": "a", "value": "1"}], "prefixAdvertisements": [{"cidr": "::/0"}]},
            f'spec.communities[0].value: "1": {COMMUNITY}',
        ),
        (
            "WorkloadEndpoint",
            {"ports": [{"protocol": "TCP", "port": 80}]},
            "spec.ports[0]: needs a name, or a hostPort",
        ),
        (
            "WorkloadEndpoint",
            {"ipNetworks": ["10.0.0.1/32"], "ipNATs": [{"internalIP": "10.0.0.1", "externalIP": "fd00::1"}]},
            'spec.ipNATs[0].externalIP: "fd00::1": must be of the family of internalIP',
        ),
        (
            "WorkloadEndpoint",
            {"ipNetworks": ["10.0.0.2/32"], "ipNATs": [{"internalIP": "10.0.0.1", "externalIP": "10.1.0.1"}]},
            'spec.ipNATs[0].internalIP: "10.0.0.1": must be one of ipNetworks',
        ),
        (
            "Profile",
            {"ingress": [{"action": "allow"}]},
            "spec.ingress[0].action: \"allow\": must be 'Allow', 'Deny', 'Log' or 'Pass'",
        ),
        (
            "Profile",
            {"egress": [{"action": "Deny", "destination": {"ports": [80]}}]},
            "spec.egress[0]: ports need protocol TCP, UDP or SCTP",
        ),
        (
            "Profile",
            {"egress": [{"action": "Deny", "protocol": "TCP", "source": {"ports": ["9:1"]}}]},
            'spec.egress[0].source.ports[0]: "9:1": ports are 1 to 65535, and a range goes upwards',
        ),
        (
            "Profile",
            {"egress": [{"action": "Deny", "ipVersion": 6, "source": {"nets": ["10.0.0.0/8"]}}]},
            "spec.egress[0]: nets, notNets and ipVersion of one rule must be of one address family",
        ),
    ],
)
def test_other_kinds_refuse_what_breaks_their_rules(kind: str, spec: object, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_json(json.dumps(tree(kind, spec)))
    assert str(caught.value) == f"{kind} x: {rule}"


@pytest.mark.parametrize("scope", ["%eth0", "%a; } neighbor 192.0.2.9 {"])
@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("BGPPeer", '{"peerIP": "fe80::1%"}'),
        ("BGPPeer", '{"peerIP": "[fe80::1%]:179"}'),
        ("BGPPeer", '{"reachableBy": "fe80::1%"}'),
        ("BGPConfiguration", '{"localWorkloadPeeringIPV6": "fe80::1%"}'),
        ("BGPConfiguration", '{"serviceClusterIPs": [{"cidr": "fd00::%/64"}]}'),
        ("IPPool", '{"cidr": "fd00::%/64"}'),
        ("Node", '{"bgp": {"ipv6Address": "fd00::1%/64"}}'),
        ("Node", '{"addresses": [{"address": "fe80::1%"}]}'),
        ("Node", '{"interfaces": [{"addresses": ["fe80::1%"]}]}'),
        ("Node", '{"ipv6VXLANTunnelAddr": "fd00::1%"}'),
        ("Profile", '{"ingress": [{"action": "Allow", "source": {"nets": ["fd00::%/64"]}}]}'),
        ("WorkloadEndpoint", '{"ipNetworks": ["fd00::1%/128"]}'),
        ("WorkloadEndpoint", '{"ipv6Gateway": "fe80::1%"}'),
        ("WorkloadEndpoint", '{"ports": [{"protocol": "TCP", "port": 80, "hostIP": "fe80::1%"}]}'),
    ],
)
def test_no_address_has_a_scope_id(kind: str, spec: str, scope: str) -> None:
    with pytest.raises(ConfigError, match=r'without a scope id \("%"\)|must have no scope id \("%"\)'):
        from_json(json.dumps(tree(kind, json.loads(spec.replace("%", scope)))))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        "null",
        "[]",
        "{}",
        '{"kind":"Node"}',
        '{"kind":[]}',
        '{"kind":"Node","metadata":{"name":"a","creationTimestamp":"0001-01-01T00:00:00+05:00"}}',
        '{"kind":"Tier","metadata":{"name":"a"},"spec":' + "9" * 6000 + "}",
        '{"kind":"Tier","metadata":{"name":"a"},"spec":NaN}',
    ],
)
def test_garbage_in_the_store_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        from_json(text)


def test_a_value_that_was_cut_off_is_told_in_plain_words() -> None:
    with pytest.raises(ConfigError, match=r"^stored value is no JSON: it ends inside an object at line 1"):
        from_json('{"kind":"Node"')


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(["Node", "IPPool", "BGPPeer", "BGPConfiguration", "WorkloadEndpoint", "Profile", "Tier"]),
    st.dictionaries(
        st.sampled_from(["cidr", "bgp", "ports", "ingress", "asNumber", "peerIP", "z"]), json_values
    ),
)
def test_any_spec_is_read_or_refused_and_reading_is_stable(kind: str, spec: dict[str, object]) -> None:
    try:
        resource: Resource = from_json(json.dumps(tree(kind, spec)))
    except ConfigError:
        return
    text = to_json(resource)
    assert to_json(from_json(text)) == text
