import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from fabric.errors import ConfigError, Conflict, Taken
from fabric.model.base import Resource
from fabric.model.change import (
    PatchType,
    applied,
    at_revision,
    labelled,
    merge_patch,
    patched,
    replaced,
    shown,
    stamped,
    without_noise,
)
from fabric.model.wire import from_json, to_json
from tests.unit.loading import resources_in

NOW = datetime(2026, 11, 21, 4, 16, 27, 334108, UTC)
UID = UUID("6f1f2a36-6d3f-4a0e-9b42-0f8d8a3a9d11")


def stored(kind: str, spec: dict[str, Any], **metadata: Any) -> Resource:
    tree = {"kind": kind, "metadata": {"name": "x", **metadata}, "spec": spec}
    return stamped(from_json(json.dumps(tree)), NOW, UID)


def wanted(kind: str, spec: str, metadata: str = "{name: x}") -> Resource:
    text = f"apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {metadata}\nspec: {spec}\n"
    [resource] = resources_in(text)
    return resource


def written(resource: Resource) -> dict[str, Any]:
    value = json.loads(to_json(resource))
    assert isinstance(value, dict)
    return value


def test_a_stamp_has_whole_seconds_and_spares_what_is_there() -> None:
    pool = stored("IPPool", {"cidr": "10.0.0.0/16"})
    metadata = {"name": "x", "uid": str(UID), "creationTimestamp": "2026-11-21T04:16:27Z"}
    assert written(pool)["metadata"] == metadata
    assert stamped(pool, datetime(2030, 1, 1, tzinfo=UTC), UUID(int=1)) == pool


def test_applying_the_same_again_gives_back_the_stored_value() -> None:
    pool = stored("IPPool", {"cidr": "10.0.0.0/16", "future": 1})
    assert applied(pool, wanted("IPPool", "{cidr: 10.0.0.0/16, blockSize: 26}")) is pool


def test_a_printed_resource_applies_as_unchanged() -> None:
    pool = stored("IPPool", {"cidr": "10.0.0.0/16"})
    metadata = f"{{name: x, uid: {UID}, resourceVersion: '9', creationTimestamp: '2001-01-01T00:00:00Z'}}"
    assert applied(pool, wanted("IPPool", "{cidr: 10.0.0.0/16}", metadata)) is pool


def test_the_spec_is_replaced_but_unknown_fields_and_stamps_stay() -> None:
    before = {"bgp": {"ipv4Address": "192.0.2.1/24", "asNumber": 1, "bfd": {"tx": 50}}, "future": [1]}
    node = stored("Node", before, labels={"rack": "r1"})
    after = written(applied(node, wanted("Node", "{bgp: {ipv4Address: 192.0.2.2/24}}")))
    assert after["spec"] == {
        "bgp": {"ipv4Address": "192.0.2.2/24", "bfd": {"tx": 50}},
        "future": [1],
    }
    assert after["metadata"] == written(node)["metadata"]


def test_labels_that_are_given_replace_all_of_them_and_an_empty_map_removes_them() -> None:
    node = stored("Node", {}, labels={"a": "1", "b": "2"}, annotations={"k": "v"})
    relabelled = applied(node, wanted("Node", "{}", "{name: x, labels: {c: '3'}}"))
    assert relabelled.metadata.labels == {"c": "3"}
    assert relabelled.metadata.annotations == {"k": "v"}
    assert applied(node, wanted("Node", "{}", "{name: x, labels: {}}")).metadata.labels == {}


def test_the_status_stays_unless_it_is_given() -> None:
    tree = {"kind": "Node", "metadata": {"name": "x"}, "spec": {}, "status": {"podCIDRs": ["10.0.0.0/24"]}}
    node = from_json(json.dumps(tree))
    assert applied(node, wanted("Node", "{}")) is node


def test_an_unmodelled_kind_gets_its_spec_replaced_whole() -> None:
    kind = "KubeControllersConfiguration"
    before = stored(kind, {"a": 1, "future": 1})
    assert written(applied(before, wanted(kind, "{a: 2}")))["spec"] == {"a": 2}
    assert applied(before, wanted(kind, "{a: 1, future: 1}")) is before


def test_an_unknown_stored_field_is_not_taken_for_a_known_one_of_the_same_python_name() -> None:
    pool = stored("IPPool", {"cidr": "10.0.0.0/16", "node_selector": 7})
    after = written(applied(pool, wanted("IPPool", "{cidr: 10.0.0.0/16, natOutgoing: true}")))
    assert after["spec"]["node_selector"] == 7
    assert after["spec"]["nodeSelector"] == "all()"


def test_the_labels_that_endpoints_get_on_writing_are_no_change() -> None:
    tree = {
        "kind": "WorkloadEndpoint",
        "metadata": {"name": "n-cni-c-eth0", "namespace": "default"},
        "spec": {"orchestrator": "cni", "node": "n", "containerID": "c", "endpoint": "eth0"},
    }
    endpoint = from_json(to_json(from_json(json.dumps(tree))))
    spec = "{orchestrator: cni, node: n, containerID: c, endpoint: eth0}"
    assert applied(endpoint, wanted("WorkloadEndpoint", spec, "{namespace: default}")) is endpoint


@pytest.mark.parametrize(
    ("target", "patch", "want"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch_is_as_in_rfc_7396_appendix_a(target: object, patch: object, want: object) -> None:
    assert merge_patch(target, patch) == want


POOL = at_revision(stored("IPPool", {"cidr": "10.0.0.0/16", "future": 1}, labels={"a": "1"}), 7)


@pytest.mark.parametrize(
    ("how", "patch"),
    [
        ("strategic", {"spec": {"disabled": True}}),
        ("merge", {"spec": {"disabled": True, "vxlanMode": None}}),
        ("merge", {"metadata": {"resourceVersion": "7"}, "spec": {"disabled": True}}),
        ("json", [{"op": "add", "path": "/spec/disabled", "value": True}]),
        (
            "json",
            [
                {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
                {"op": "add", "path": "/spec/disabled", "value": True},
            ],
        ),
    ],
)
def test_a_patch_changes_what_it_names_and_nothing_else(how: PatchType, patch: object) -> None:
    after = written(patched(POOL, patch, how))
    assert after["spec"] == {**written(POOL)["spec"], "disabled": True}
    assert after["metadata"] == written(POOL)["metadata"]


@pytest.mark.parametrize(
    ("how", "patch"), [("merge", {}), ("strategic", {"spec": {"blockSize": 26}}), ("json", [])]
)
def test_a_patch_that_changes_nothing_gives_back_the_stored_value(how: PatchType, patch: object) -> None:
    assert patched(POOL, patch, how) is POOL


@pytest.mark.parametrize(
    ("how", "patch", "why"),
    [
        ("merge", [], "must be a mapping"),
        ("merge", {"spec": {"disable": True}}, "spec.disable: no such field"),
        ("merge", {"spec": {"blockSize": 99}}, "spec.blockSize: 99: must be 20 to 32"),
        ("merge", {"spec": None}, "spec: is required"),
        ("merge", {"metadata": {"name": "y"}}, 'metadata.name: "y": cannot be changed; it is "x"'),
        ("merge", {"metadata": {"uid": None}}, "metadata.uid: null: cannot be changed"),
        ("merge", {"kind": "Node"}, 'kind: "Node": cannot be changed'),
        (
            "strategic",
            {"spec": {"allowedUses": {"$patch": "replace"}}},
            "is not supported in a strategic patch",
        ),
        ("strategic", {"metadata": {"finalizers": ["x"]}}, "is not supported in a strategic patch"),
        ("json", {"spec": {}}, "must be a list of operations"),
        ("json", [{"op": "remove", "path": "/spec/nope"}], "cannot be applied"),
        (
            "json",
            [{"op": "test", "path": "/spec/cidr", "value": "1"}],
            "10.0.0.0/16 is not equal to tested value 1",
        ),
        ("json", [{"op": "add", "path": 7, "value": "1"}], "Invalid 'path'"),
        ("json", [{"op": "add", "path": "", "value": []}], "kind: null: cannot be changed"),
        ("json", ["x"], "cannot be applied"),
        ("json", [{}], "cannot be applied"),
    ],
)
def test_a_patch_that_would_break_the_object_is_refused(how: PatchType, patch: object, why: str) -> None:
    with pytest.raises(ConfigError) as error:
        patched(POOL, patch, how)
    assert why in str(error.value)


def test_a_patch_of_an_older_revision_is_a_conflict() -> None:
    with pytest.raises(Conflict, match="resourceVersion 6, and revision 7 is stored now"):
        patched(POOL, {"metadata": {"resourceVersion": "6"}}, "merge")


def test_labels_are_set_changed_and_removed() -> None:
    assert labelled(POOL, {"b": "2"}, (), overwrite=False).metadata.labels == {"a": "1", "b": "2"}
    assert labelled(POOL, {"a": "2"}, (), overwrite=True).metadata.labels == {"a": "2"}
    assert labelled(POOL, {}, ["a"], overwrite=False).metadata.labels == {}
    assert labelled(POOL, {"a": "1"}, (), overwrite=False) is POOL
    with pytest.raises(Taken, match='"1" already; give --overwrite'):
        labelled(POOL, {"a": "2"}, (), overwrite=False)
    with pytest.raises(ConfigError, match="label z: is not on it"):
        labelled(POOL, {}, ["z"], overwrite=False)
    with pytest.raises(ConfigError, match=r"metadata\.labels"):
        labelled(POOL, {"a b": "2"}, (), overwrite=False)


COPY = "projectcalico.org/metadata"
OF_KUBERNETES = '{"uid":"u","labels":{"a":"1"},"annotations":{"note":"x"}}'


@pytest.mark.parametrize(
    ("copy", "kept"),
    [
        ('{"name":"x"}', True),
        (OF_KUBERNETES, False),
        ("no json", False),
        ("[]", False),
        ("[" * 100_000, False),
    ],
    ids=["a name", "labels", "no JSON", "a list", "deep"],
)
def test_a_copy_of_labels_that_are_no_longer_so_is_dropped_and_one_of_the_name_stays(
    copy: str, kept: bool
) -> None:
    annotations = {COPY: copy, "note": "x"}
    tier = {"projectcalico.org/tier": "default"}
    metadata = {"labels": {"a": "1", **tier}, "annotations": annotations}
    policy = at_revision(stored("NetworkPolicy", {"types": ["Ingress"]}, **metadata), 7)
    after = annotations if kept else {COPY: '{"name":"x"}', "note": "x"}
    for changed in (
        labelled(policy, {"b": "2"}, (), overwrite=False),
        patched(policy, {"metadata": {"labels": {"a": None}}}, "merge"),
        applied(policy, wanted("NetworkPolicy", "{types: [Ingress]}", "{name: x, labels: {c: '3'}}")),
    ):
        assert changed.metadata.labels != policy.metadata.labels
        assert written(changed)["metadata"]["annotations"] == after
    spec = patched(policy, {"spec": {"order": 1}}, "merge")
    assert spec.metadata.annotations == annotations


def test_a_file_with_a_copy_of_labels_applied_again_changes_nothing() -> None:
    pool = at_revision(stored("IPPool", {"cidr": "10.0.0.0/16"}, annotations={"note": "x"}), 7)
    file = wanted(
        "IPPool", "{cidr: 10.0.0.0/16}", f"{{name: x, annotations: {{note: x, {COPY}: '{OF_KUBERNETES}'}}}}"
    )
    assert applied(pool, file) is pool


@pytest.mark.parametrize("kind", ["Profile", "NetworkPolicy"])
def test_a_rule_stored_without_its_two_ends_is_the_same_as_one_with_them(kind: str) -> None:
    written_by_hand = {
        "kind": kind,
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "x", "labels": {"projectcalico.org/tier": "default"}},
        "spec": {"ingress": [{"action": "Allow"}], **({} if kind == "Profile" else {"types": ["Ingress"]})},
    }
    before = at_revision(from_json(json.dumps(written_by_hand)), 7)
    file = wanted(
        kind,
        "{ingress: [{action: Allow}]}",
        "{name: x, labels: {projectcalico.org/tier: default}}",
    )
    assert applied(before, file) is before
    assert written(file)["spec"]["ingress"] == [{"action": "Allow", "source": {}, "destination": {}}]


def test_a_replacement_keeps_who_it_is_and_drops_the_rest() -> None:
    after = written(replaced(POOL, wanted("IPPool", "{cidr: 10.0.0.0/16, disabled: true}")))
    assert after["metadata"] == {k: v for k, v in written(POOL)["metadata"].items() if k != "labels"}
    assert "future" not in after["spec"]
    assert after["spec"]["disabled"] is True


def test_what_is_shown_has_the_revision_and_what_is_compared_has_no_noise() -> None:
    assert shown(POOL)["metadata"]["resourceVersion"] == "7"
    node = stored("Node", {}, labels={"a": "1"}, generation=3)
    assert shown(without_noise(at_revision(node, 9))) == {
        "kind": "Node",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "x", "labels": {"a": "1"}},
        "spec": {},
    }
