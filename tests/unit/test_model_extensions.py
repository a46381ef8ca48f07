"""Annotations of ours: refused in a file where they are bad, and never the loss of a stored object."""

import json
from typing import Any

import pytest

from fabric.errors import ConfigError
from fabric.model.base import Resource
from fabric.model.bgp import BGPPeer
from fabric.model.change import at_revision, patched
from fabric.model.extensions import KNOWN, PREFIX
from fabric.model.wire import from_json, from_tree

GOOD = {
    "BGPPeer": {
        "source": ["uplink"],
        "as-label": ["as", "example.org/tor-as"],
        "local-as-label": ["as"],
        "required": ["true", "false"],
        "extended-next-hop": ["true", "false"],
        "max-prefix": ["0", "10000"],
        "import": ["safe", "calico"],
        "export": ["safe", "calico"],
        "node-id": ["anything"],
    },
    "BGPConfiguration": {"as-label": ["as"], "max-prefix": ["1"], "import": ["calico"], "export": ["safe"]},
    "Node": {
        "default-route": ["install"],
        "drained": ["", "192.0.2.1", "192.0.2.1,fd00::1", "192.0.2.1, fd00::1"],
        "node-id": ["anything"],
        "forwarding": ["keep", "accept"],
        "drop-log": ["on", "off"],
        "bgp": ["on", "off"],
        "lacks": ["", "ipip", "vxlan", "ipip,vxlan", "ipip, vxlan"],
    },
    "IPPool": {"tunnel-fallback": ["vxlan"]},
    "WorkloadEndpoint": {"netns": ["/run/netns/a"]},
    "NetworkPolicy": {"on-change": ["cut", "keep"], "drop-log": ["on", "off"], "kubernetes": ["{}"]},
    "StagedGlobalNetworkPolicy": {"on-change": ["keep"]},
    "Profile": {"drop-log": ["on"]},
    "Namespace": {"drop-log": ["off"]},
}
BAD = {
    "peer": ["", "gateway", "Auto-gateway"],
    "source": ["eth0", "Uplink"],
    "as-label": ["", "a b", "/as"],
    "local-as-label": ["-"],
    "required": ["yes", "True", ""],
    "extended-next-hop": ["1"],
    "max-prefix": ["-1", "1k", "", "1000000000000"],
    "import": ["all", "Safe", ""],
    "export": ["none"],
    "default-route": ["yes"],
    "on-change": ["", "Keep", "drop"],
    "drop-log": ["true", "On", ""],
    "forwarding": ["on", "drop"],
    "bgp": ["true", "Off", ""],
    "lacks": ["IPIP", "ipip;vxlan", "none"],
    "tunnel-fallback": ["", "ipip", "true"],
    "drained": ["tor-1", "192.0.2.1;fd00::1", "192.0.2.0/24", "fe80::1%eth0"],
}


def tree(kind: str, said: dict[str, str], spec: dict[str, Any] | None = None) -> dict[str, Any]:
    annotations = {f"{PREFIX}{key}": text for key, text in said.items()}
    base: dict[str, Any] = {"BGPPeer": {"peerIP": "192.0.2.1"}, "IPPool": {"cidr": "10.0.0.0/16"}}.get(
        kind, {}
    )
    return {"kind": kind, "metadata": {"name": "x", "annotations": annotations}, "spec": base | (spec or {})}


def mistakes(value: dict[str, Any]) -> dict[str, str]:
    """What a file with it is told of its annotations, by key."""
    read = from_tree(value, unknown="forbid")
    found = {} if isinstance(read, Resource) else {str(p.path[-1]): p.rule for p in read}
    return {key.removeprefix(PREFIX): rule for key, rule in found.items() if key.startswith(PREFIX)}


@pytest.mark.parametrize(
    ("kind", "key", "text"),
    [(kind, key, text) for kind, keys in GOOD.items() for key, texts in keys.items() for text in texts],
)
def test_a_good_one_is_no_mistake(kind: str, key: str, text: str) -> None:
    assert mistakes(tree(kind, {key: text})) == {}


@pytest.mark.parametrize(
    ("kind", "key", "text"),
    [
        (kind, key, text)
        for kind, known in KNOWN.items()
        for key, texts in BAD.items()
        for text in texts
        if PREFIX + key in known
    ],
)
def test_a_bad_one_is_a_mistake_in_a_file_and_stored_it_is_read(kind: str, key: str, text: str) -> None:
    value = tree(kind, {key: text}, {"peerIP": None, "asNumber": 1} if key == "peer" else None)
    assert list(mistakes(value)) == [key]
    if kind != "WorkloadEndpoint":
        assert from_json(json.dumps(value)).metadata.annotations == {PREFIX + key: text}


def test_every_annotation_has_a_good_and_a_bad_example() -> None:
    known = {key.removeprefix(PREFIX): entry for keys in KNOWN.values() for key, entry in keys.items()}
    assert {key for keys in GOOD.values() for key in keys} | {"peer"} == known.keys()
    assert {key for key, entry in known.items() if entry.read} == BAD.keys()


@pytest.mark.parametrize(
    ("said", "spec", "wrong"),
    [
        ({"peer": "auto-gateway"}, {"peerIP": None, "asNumber": 1}, {}),
        ({"peer": "auto-gateway", "as-label": "as"}, {"peerIP": None}, {}),
        ({"peer": "auto-gateway"}, {"peerIP": None}, {"peer": "needs asNumber, or fabricctl.io/as-label"}),
        ({"peer": "auto-gateway"}, {"asNumber": 1}, {"peer": "excludes peerIP"}),
        ({"as-label": "as"}, {"asNumber": 1}, {"as-label": "excludes asNumber"}),
        (
            {"as-label": "as"},
            {"peerIP": None, "peerSelector": "all()"},
            {"as-label": "excludes peerSelector"},
        ),
        (
            {"local-as-label": "as"},
            {"asNumber": 1, "localASNumber": 2},
            {"local-as-label": "excludes localASNumber"},
        ),
    ],
)
def test_what_does_not_go_together_is_a_mistake(
    said: dict[str, str], spec: dict[str, Any], wrong: dict[str, str]
) -> None:
    assert mistakes(tree("BGPPeer", said, spec)) == wrong


def test_mistakes_of_fields_and_annotations_are_told_together() -> None:
    read = from_tree(tree("BGPPeer", {"import": "x", "export": "y"}, {"asNumber": -1}), unknown="forbid")
    assert isinstance(read, tuple)
    assert [p.path[-1] for p in read] == ["asNumber", f"{PREFIX}import", f"{PREFIX}export"]


def test_a_patch_may_leave_a_bad_one_that_is_stored_and_not_make_one() -> None:
    stored = at_revision(from_json(json.dumps(tree("BGPPeer", {"import": "x"}))), 7)
    after = patched(stored, {"spec": {"asNumber": 65000}}, "merge")
    assert isinstance(after, BGPPeer)
    assert after.spec.as_number == 65000
    with pytest.raises(ConfigError, match=r"fabricctl\.io/import.*must be safe or calico"):
        patched(stored, {"metadata": {"annotations": {"fabricctl.io/import": "y"}}}, "merge")
    mended = patched(stored, {"metadata": {"annotations": {"fabricctl.io/import": None}}}, "merge")
    assert mended.metadata.annotations == {}
