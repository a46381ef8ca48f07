"""Files as people have them for Calico, with what its tools take and others might not: each must be read."""

import json

import pytest

from fabric.errors import ConfigError
from fabric.model.wire import from_json, to_json
from tests.unit.loading import resources_in

TAKEN = [
    # Templates leave empty texts behind, and Calico's own tools store "bpfLogLevel":"".
    ("IPPool", "{cidr: 10.0.0.0/16, ipipMode: '', vxlanMode: '', nodeSelector: ''}",
     {"nodeSelector": "all()", "ipipMode": "Never", "vxlanMode": "Never"}),
    ("BGPPeer", "{peerIP: '', sourceAddress: '', reachableBy: '', peerSelector: all()}", {"peerSelector": "all()"}),
    ("BGPFilter", "{exportV4: [{cidr: '', matchOperator: '', interface: '', source: '', action: Reject}]}",
     {"exportV4": [{"action": "Reject"}]}),
    ("BGPConfiguration", "{logSeverityScreen: '', localWorkloadPeeringIPV4: ''}", {"logSeverityScreen": "Info"}),
    ("Node", "{bgp: {ipv4Address: 10.0.0.1, ipv4IPIPTunnelAddr: ''}, ipv4VXLANTunnelAddr: ''}",
     {"bgp": {"ipv4Address": "10.0.0.1/32"}}),
    ("HostEndpoint", "{node: n1, interfaceName: '', expectedIPs: [10.0.0.1]}", {"expectedIPs": ["10.0.0.1"]}),
    ("WorkloadEndpoint",
     "{node: n1, orchestrator: x, workload: w, endpoint: e, interfaceName: '', mac: '', ipv4Gateway: ''}",
     {"node": "n1"}),
    ("StagedNetworkPolicy", "{stagedAction: '', selector: all()}", {"stagedAction": "Set"}),
    ("FelixConfiguration", "{bpfLogLevel: '', logSeverityScreen: '', floatingIPs: Disabled, reportingInterval: 0s}",
     {"floatingIPs": "Disabled", "reportingInterval": "0s"}),
    # An address where a prefix may stand, and a prefix with host bits where Calico cuts them off.
    ("WorkloadEndpoint", "{node: n1, orchestrator: x, workload: w, endpoint: e, ipNetworks: [10.0.0.1, 'fd00::1/128']}",
     {"ipNetworks": ["10.0.0.1/32", "fd00::1/128"]}),
    ("BGPConfiguration", "{serviceExternalIPs: [{cidr: 172.217.3.5}]}",
     {"serviceExternalIPs": [{"cidr": "172.217.3.5/32"}]}),
    ("BGPConfiguration", "{prefixAdvertisements: [{cidr: 172.218.4.1/26}]}",
     {"prefixAdvertisements": [{"cidr": "172.218.4.0/26"}]}),
    ("BGPFilter", "{importV6: [{cidr: '9000::1', matchOperator: Equal, action: Accept}]}",
     {"importV6": [{"cidr": "9000::1/128", "matchOperator": "Equal", "action": "Accept"}]}),
    ("NetworkSet", "{nets: [198.51.100.9/28, 203.0.113.1]}", {"nets": ["198.51.100.0/28", "203.0.113.1/32"]}),
    # Numbers, words and durations in the forms that are about.
    ("BGPPeer", "{peerIP: '[2001:db8::1]:1790', asNumber: '1.10', maxRestartTime: 1h30m, keepaliveTime: 1.5s}",
     {"asNumber": 65546, "maxRestartTime": "1h30m", "keepaliveTime": "1.5s"}),
    ("HostEndpoint", "{node: n1, interfaceName: '*', ports: [{name: http, port: 80, protocol: tcp}]}",
     {"ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}),
    ("NetworkPolicy", "{ingress: [{action: Allow, protocol: '6', destination: {ports: ['80', '80:90', http]}}]}",
     {"ingress": [{"action": "Allow", "protocol": 6, "source": {}, "destination": {"ports": [80, "80:90", "http"]}}]}),
    ("Profile", "{labelsToApply: {pcns.projectcalico.org/name: a}, ingress: [{action: Allow}]}",
     {"labelsToApply": {"pcns.projectcalico.org/name": "a"}}),
]  # fmt: skip


def document(kind: str, spec: str, metadata: str = "") -> str:
    name = "" if kind == "WorkloadEndpoint" else "name: x, "  # that follows from its spec
    return f"apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {{{name}{metadata}}}\nspec: {spec}\n"


@pytest.mark.parametrize(("kind", "spec", "written"), TAKEN)
def test_what_calico_takes_is_read_and_written_as_calico_means_it(
    kind: str, spec: str, written: dict[str, object]
) -> None:
    [resource] = resources_in(document(kind, spec))
    text = to_json(resource)
    assert json.loads(text)["spec"].items() >= written.items()
    assert to_json(from_json(text)) == text


@pytest.mark.parametrize(
    ("kind", "spec", "said"),
    [
        ("NetworkPolicy", "{ingress: [{action: Allow, protocol: ''}]}", "protocol"),
        ("NetworkPolicy", "{ingress: [{action: Allow, notProtocol: ''}]}", "notProtocol"),
        ("NetworkPolicy", "{ingress: [{action: Allow, source: {nets: ['']}}]}", "nets"),
        ("StagedKubernetesNetworkPolicy", "{ingress: [{ports: [{port: ''}]}]}", "port"),
    ],
)
def test_an_empty_text_never_widens_a_rule(kind: str, spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^4: spec\.ingress.*{said}.*: must be"):
        resources_in(document(kind, spec))


@pytest.mark.parametrize("key", ["a b", "/a", "a/", "x" * 64])
def test_an_annotation_is_called_as_in_kubernetes(key: str) -> None:
    text = document("Node", "{}", f"annotations: {{'{key}': x}}")
    with pytest.raises(ConfigError, match=rf'annotation key "{key}" is not \[prefix/\]name'):
        resources_in(text)
