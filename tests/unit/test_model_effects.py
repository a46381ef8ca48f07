import json

import pytest

from fabric.model.base import Model, Unknown
from fabric.model.effects import ACTING, acts, not_used
from fabric.model.kinds import KINDS
from fabric.model.wire import from_json
from tests import reference


def unused(kind: str, spec: object, name: str = "default") -> tuple[str, ...]:
    value = {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": {"name": name}, "spec": spec}
    return not_used(from_json(json.dumps(value)))


@pytest.mark.parametrize(
    ("kind", "spec", "paths"),
    [
        ("IPPool", {"cidr": "10.0.0.0/16", "natOutgoing": False, "ipipMode": "Never"}, ()),
        (
            "IPPool",
            {"cidr": "10.0.0.0/16", "natOutgoing": True, "ipipMode": "Always", "assignmentMode": "Manual"},
            (),
        ),
        ("IPReservation", {"reservedCIDRs": ["10.0.0.1"]}, ()),
        (
            "IPAMConfiguration",
            {"ipCooldownSeconds": 5, "kubeVirtVMAddressPersistence": "Disabled"},
            ("spec.kubeVirtVMAddressPersistence",),
        ),
        ("BGPConfiguration", {"asNumber": 65000, "bindMode": "None"}, ()),
        (
            "BGPConfiguration",
            {"listenPort": 1790, "bindMode": "NodeIP", "ignoredInterfaces": ["eth9"]},
            ("spec.ignoredInterfaces",),
        ),
        ("BGPConfiguration", {"nodeToNodeMeshEnabled": True}, ()),
        ("BGPConfiguration", {"nodeToNodeMeshEnabled": False}, ()),
        ("BGPPeer", {"peerIP": "192.0.2.1", "asNumber": 1, "ttlSecurity": 1, "sourceAddress": "None"}, ()),
        ("BGPPeer", {"localWorkloadSelector": "all()", "asNumber": 1}, ("spec.localWorkloadSelector",)),
        (
            "Node",
            {
                "bgp": {"routeReflectorClusterID": "1.0.0.1", "ipv4IPIPTunnelAddr": "10.0.0.1"},
                "wireguard": {},
            },
            ("spec.wireguard",),
        ),
        ("ClusterInformation", {"datastoreReady": False, "clusterType": "x"}, ()),
        (
            "FelixConfiguration",
            {"ipForwarding": "Disabled", "ipv6Support": True, "bpfEnabled": True},
            ("spec.bpfEnabled",),
        ),
        ("BGPFilter", {"exportV4": [{"action": "Accept"}]}, ()),
        (
            "FelixConfiguration",
            {
                "failsafeInboundHostPorts": [],
                "failsafeOutboundHostPorts": [{"port": 53, "protocol": "UDP"}],
                "defaultEndpointToHostAction": "Accept",
                "iptablesBackend": "NFT",
                "iptablesMarkMask": 0xFF0000,
                "vxlanPort": 4790,
                "vxlanVNI": 7,
                "natPortRange": "32768:65535",
                "natOutgoingAddress": "192.0.2.1",
                "natOutgoingExclusions": "IPPoolsAndHostIPs",
                "iptablesNATOutgoingInterfaceFilter": "eth+",
                "allowVXLANPacketsFromWorkloads": True,
                "allowIPIPPacketsFromWorkloads": True,
                "workloadSourceSpoofing": "Any",
                "disableConntrackInvalidCheck": True,
                "chainInsertMode": "Append",
            },
            ("spec.chainInsertMode",),
        ),
        ("NetworkPolicy", {"tier": "default", "selector": "all()", "ingress": [{"action": "Allow"}]}, ()),
        ("GlobalNetworkPolicy", {"preDNAT": True, "applyOnForward": True, "ingress": []}, ()),
        (
            "StagedNetworkPolicy",
            {"performanceHints": ["AssumeNeededOnEveryNode"], "order": 1},
            ("spec.performanceHints",),
        ),
        ("StagedKubernetesNetworkPolicy", {"podSelector": {}, "policyTypes": ["Egress"]}, ()),
        ("Tier", {"order": 1000000, "defaultAction": "Deny"}, ()),
        ("GlobalNetworkSet", {"nets": ["198.51.100.0/24"]}, ()),
        ("HostEndpoint", {"node": "a", "interfaceName": "eth0", "profiles": ["p"], "expectedIPs": []}, ()),
        ("Profile", {"labelsToApply": {"a": "b"}}, ()),
        (
            "WorkloadEndpoint",
            {"profiles": ["p"], "serviceAccountName": "s", "allowSpoofedSourcePrefixes": ["10.0.0.0/8"]},
            (),
        ),
        ("KubeControllersConfiguration", {}, ("",)),
    ],
)
def test_what_is_set_and_changes_nothing_is_named(kind: str, spec: object, paths: tuple[str, ...]) -> None:
    assert unused(kind, spec) == paths


@pytest.mark.parametrize(
    ("kind", "name", "spec", "paths"),
    [
        ("BGPConfiguration", "node.a", {"asNumber": 65000, "listenPort": 1790}, ("spec.asNumber",)),
        (
            "BGPConfiguration",
            "node.a",
            {"nodeToNodeMeshEnabled": False, "serviceClusterIPs": [{"cidr": "10.96.0.0/16"}]},
            ("spec.nodeToNodeMeshEnabled", "spec.serviceClusterIPs"),
        ),
        ("BGPConfiguration", "node.a", {"nodeToNodeMeshEnabled": True}, ("spec.nodeToNodeMeshEnabled",)),
        ("BGPConfiguration", "other", {}, ("",)),
        ("FelixConfiguration", "node.a", {"ipForwarding": "Disabled"}, ()),
        ("FelixConfiguration", "rack", {"nodeSelector": "all()", "ipForwarding": "Disabled"}, ()),
        ("FelixConfiguration", "rack", {"ipForwarding": "Disabled"}, ("",)),
    ],
)
def test_the_name_decides_whether_settings_count(
    kind: str, name: str, spec: object, paths: tuple[str, ...]
) -> None:
    assert unused(kind, spec, name) == paths


@pytest.mark.parametrize(
    ("kind", "name", "keys", "unused"),
    [
        ("BGPPeer", "tor", ["import", "source", "node-id"], []),
        ("BGPPeer", "tor", ["exort"], ["exort"]),
        ("Node", "a", ["drained", "import"], ["import"]),
        ("BGPConfiguration", "default", ["import", "as-label"], []),
        ("BGPConfiguration", "node.a", ["import"], ["import"]),
        ("Node", "a", ["drop-log", "forwarding", "on-change"], ["on-change"]),
        ("NetworkPolicy", "a", ["on-change", "drop-log", "kubernetes", "forwarding"], ["forwarding"]),
        ("StagedGlobalNetworkPolicy", "a", ["on-change", "drop-log", "kubernetes"], ["kubernetes"]),
        ("Profile", "kns.a", ["drop-log", "on-change"], ["on-change"]),
        ("Profile", "ksa.a.b", ["drop-log"], ["drop-log"]),
    ],
)
def test_an_annotation_of_ours_that_means_nothing_there_is_named(
    kind: str, name: str, keys: list[str], unused: list[str]
) -> None:
    annotations = {f"fabricctl.io/{key}": "x" for key in keys} | {"example.org/import": "x"}
    value = {"kind": kind, "metadata": {"name": name, "annotations": annotations}, "spec": {}}
    assert [path.rpartition("/")[2] for path in not_used(from_json(json.dumps(value)))] == unused


@pytest.mark.parametrize(
    ("mode", "unused"),
    [("ipipMode", ()), ("vxlanMode", ("metadata.annotations.fabricctl.io/tunnel-fallback",))],
)
def test_a_fallback_means_nothing_beside_a_pool_without_ipip(mode: str, unused: tuple[str, ...]) -> None:
    said = {"fabricctl.io/tunnel-fallback": "vxlan"}
    spec = {"cidr": "10.0.0.0/16", mode: "Always"}
    value = {"kind": "IPPool", "metadata": {"name": "a", "annotations": said}, "spec": spec}
    assert not_used(from_json(json.dumps(value))) == unused


def test_what_acts_is_a_field_that_exists() -> None:
    for kind, paths in ACTING.items():
        known = {row.path.replace("[]", "") for row in reference.rows(kind)}
        assert paths <= known, kind
        assert all(acts(kind, path) for path in paths)


def test_every_kind_can_be_asked() -> None:
    for kind in KINDS:
        spec = kind.cls.model_fields.get("spec")
        assert kind.cls is Unknown or (
            spec and isinstance(spec.annotation, type) and issubclass(spec.annotation, Model)
        )
