"""Every mistake of a resource is told at once, and none that only another one makes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.model.base import Resource
from fabric.model.wire import Problem, dotted, from_tree

ICMP = {"icmp": {"type": 8}}


def problems(kind: str, spec: object) -> tuple[Problem, ...]:
    value = {"kind": kind, "metadata": {"name": "x"}, "spec": spec}
    read = from_tree(value, unknown="forbid")
    return () if isinstance(read, Resource) else read


def rule(**fields: object) -> dict[str, object]:
    return {"ingress": [{"action": "Allow", **fields}]}


@pytest.mark.parametrize(
    ("kind", "spec", "paths"),
    [
        (
            "IPPool",
            {"cidr": "10.0.0.1/16", "ipipMode": "Always", "vxlanMode": "Always", "blockSize": 33},
            ["spec.cidr", "spec.blockSize", "spec.vxlanMode"],
        ),
        ("IPPool", {"ipipMode": "Always", "vxlanMode": "Always"}, ["spec.cidr", "spec.vxlanMode"]),
        (
            "IPPool",
            {"cidr": "x", "namespaceSelector": "all()", "ipipMode": "Always", "vxlanMode": "Always"},
            ["spec.cidr", "spec.namespaceSelector", "spec.vxlanMode"],
        ),
        ("IPPool", {"cidr": "10.0.0.0", "blockSize": 33}, ["spec.cidr"]),  # of which family?
        ("IPPool", {"cidr": "10.0.0.0/28", "blockSize": 33}, ["spec.blockSize"]),  # perhaps 28 was meant
        (
            "BGPPeer",
            {"node": "a", "nodeSelector": "all()", "asNumber": 2**32},
            ["spec.asNumber", "spec.nodeSelector"],
        ),
        ("BGPPeer", {"localWorkloadSelector": "all()", "asNumber": -1}, ["spec.asNumber"]),
        ("BGPPeer", {"reachableBy": "fd00::1", "peerIP": "fd00::g"}, ["spec.peerIP"]),
        (
            "BGPConfiguration",
            {
                "listenPort": 70000,
                "prefixAdvertisements": [{"cidr": "x"}, {"cidr": "10.0.0.0/8", "communities": ["red"]}],
            },
            [
                "spec.prefixAdvertisements[0].cidr",
                "spec.listenPort",
                "spec.prefixAdvertisements[1].communities",
            ],
        ),
        (
            "BGPConfiguration",
            {
                "communities": [{"name": "red", "value": "1"}],
                "prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": ["red"]}],
            },
            ["spec.communities[0].value"],
        ),
        (
            "GlobalNetworkPolicy",
            {**rule(**ICMP), "preDNAT": True, "doNotTrack": True, "applyOnForward": True},
            ["spec.ingress[0].icmp", "spec.preDNAT"],
        ),
        ("Profile", rule(protocol="TPC", destination={"ports": [80]}), ["spec.ingress[0].protocol"]),
        ("Profile", rule(protocol="TPC", **ICMP), ["spec.ingress[0].protocol"]),
        (
            "Profile",
            {"ingress": [{"action": "allow", **ICMP}, {"action": "Log"}, {"action": "Deny", **ICMP}]},
            ["spec.ingress[0].action", "spec.ingress[2].icmp", "spec.ingress[0].icmp"],
        ),
        (
            "Profile",
            rule(source={"nets": ["10.0.0.0/8", "x", "fd00::/8"]}, ipVersion=4, http={}, protocol="UDP"),
            ["spec.ingress[0].source.nets[1]", "spec.ingress[0].http", "spec.ingress[0]"],
        ),
        (
            "Profile",
            rule(
                source={"nets": ["10.0.0.0/8", "fd00::/8"]}, protocol="TCP", destination={"ports": ["90:80"]}
            ),
            ["spec.ingress[0].destination.ports[0]", "spec.ingress[0]"],
        ),
        ("HostEndpoint", {"expectedIPs": ["x"], "node": "n"}, ["spec.expectedIPs[0]"]),
        ("HostEndpoint", {"node": "N"}, ["spec.node", "spec"]),
        (
            "CalicoNodeStatus",
            {"node": "n", "classes": ["Bad"], "updatePeriodSeconds": 1},
            ["spec.classes[0]"],
        ),
        ("IPPool", [], ["spec"]),
        ("BGPPeer", {"peerip": "192.0.2.1", "reachableBy": "192.0.2.9"}, ["spec.peerip", "spec.reachableBy"]),
    ],
)
def test_all_mistakes_are_told_at_once_and_no_consequence_of_one(
    kind: str, spec: object, paths: list[str]
) -> None:
    assert [dotted(problem.path) for problem in problems(kind, spec)] == paths


# Of each field a value that goes with any of the others, and some that may not.
FIELDS: dict[str, tuple[object, list[object]]] = {
    "cidr": ("10.0.0.0/16", ["x", "10.0.0.1/16", 7, None]),
    "blockSize": (26, [200, "26"]),
    "ipipMode": ("Never", ["Always", "always", 1]),
    "vxlanMode": ("Never", ["Always", "never", "Alwys"]),
    "natOutgoing": (True, ["yes"]),
    "nodeSelector": ("all()", ["role = 'a'", 1]),
    "namespaceSelector": ("", ["all()", "(", "global()"]),
    "allowedUses": (["Workload"], [["Workload", "Tunnel"], ["Wrkload"], "Workload"]),
}


@given(st.fixed_dictionaries({name: st.sampled_from([sound, *bad]) for name, (sound, bad) in FIELDS.items()}))
def test_mending_what_one_look_names_is_enough(spec: dict[str, object]) -> None:
    found = problems("IPPool", spec)
    wrong = {problem.path[1] for problem in found}
    paths = [problem.path for problem in found]
    assert len(set(paths)) == len(paths)
    mended = {name: FIELDS[name][0] if name in wrong else value for name, value in spec.items()}
    assert [str(problem) for problem in problems("IPPool", mended)] == []
