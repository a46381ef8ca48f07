"""What of Kubernetes' API is stored for, over an etcd in memory: policies with their original, labels as profiles."""

import json
from pathlib import Path
from typing import Any

import pytest

from fabric.errors import ConfigError, Conflict, NotFound, Taken
from fabric.model import kinds, namespaces
from fabric.model.base import Resource, tree
from fabric.model.change import PatchType
from fabric.model.policy import NetworkPolicy
from fabric.model.profile import Profile
from fabric.ops import files
from fabric.ops.change import (
    Change,
    apply,
    carry_out,
    create,
    delete,
    delete_named,
    gather,
    label,
    patch,
    replace,
)
from fabric.ops.diff import diff
from fabric.ops.files import Given
from fabric.ops.resources import asked, get, listing
from tests.fakes.etcd import FakeEtcd
from tests.fakes.node import put
from tests.unit.changing import plan
from tests.unit.loading import resources_in

POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, labels: {team: a}, resourceVersion: "7", uid: 5b0d3c0a-7d3e-4b0e-8f3f-0a4bd2d4c1aa}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {}, namespaceSelector: {}}]
    ports: [{port: 5432}]
"""
NAMESPACE = """\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: a}, annotations: {fabricctl.io/drop-log: on, example.org/note: x}}
spec: {finalizers: [kubernetes]}
status: {phase: Active}
"""
ACCOUNT = """\
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop, labels: {team: a}}
secrets: [{name: web-token-7c4hd}]
imagePullSecrets: [{name: registry}]
automountServiceAccountToken: false
"""
NETPOL, NP, PROFILE = map(kinds.lookup, ("netpol", "np", "profile"))


def given(text: str) -> list[Given]:
    return [Given(resource, "a.yaml:1") for resource in resources_in(text)]


def applying(text: str, namespace: str | None = None) -> list[Change]:
    return gather(apply, given(text), namespace)


async def done(kv: FakeEtcd, *changes: Change) -> list[str]:
    return [f"{step.change.what}: {step.verb}" async for step in carry_out(kv, await plan(kv, changes))]


async def policy(kv: FakeEtcd, name: str = "knp.default.db") -> NetworkPolicy:
    [found] = await get(kv, NP, [name])
    assert isinstance(found, NetworkPolicy)
    return found


async def profile(kv: FakeEtcd, name: str) -> Profile:
    [found] = await get(kv, PROFILE, [name])
    assert isinstance(found, Profile)
    return found


async def test_a_policy_is_stored_as_calicos_and_given_back_as_it_was() -> None:
    kv = FakeEtcd()
    assert await done(kv, *applying(POLICY)) == ["NetworkPolicy default/knp.default.db: created"]
    stored = await policy(kv)
    assert (stored.spec.order, stored.spec.tier) == (1000, "default")
    assert stored.spec.selector == "projectcalico.org/orchestrator == 'k8s' && app == 'db'"
    [original] = await get(kv, NETPOL, ["db"])
    [wanted] = resources_in(POLICY)
    assert tree(original) == {
        "kind": "NetworkPolicy",
        "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": "db", "namespace": "default", "labels": {"team": "a"}},
        "spec": tree(wanted)["spec"],
    }
    assert (await listing(kv, Resource, NETPOL)).resources == (original,)


async def test_applied_again_it_says_unchanged_whatever_revision_kubernetes_gave_it() -> None:
    kv = FakeEtcd()
    await done(kv, *applying(POLICY))
    before = kv.revision
    assert await done(kv, *applying(POLICY.replace('"7"', '"8"'))) == [
        "NetworkPolicy default/knp.default.db: unchanged"
    ]
    assert kv.revision == before
    [original] = await get(kv, NETPOL, ["db"])
    assert await done(kv, *gather(apply, [Given(original, "a.yaml:1")])) == [
        "NetworkPolicy default/knp.default.db: unchanged"
    ]


async def test_a_namespace_that_is_given_beside_the_file_is_the_policys() -> None:
    kv = FakeEtcd()
    assert await done(kv, *applying(POLICY, "shop")) == ["NetworkPolicy shop/knp.default.db: created"]
    [original] = await get(kv, NETPOL, ["db"], "shop")
    assert original.metadata.namespace == "shop"
    with pytest.raises(NotFound, match='NetworkPolicy "db" in namespace default: does not exist'):
        await get(kv, NETPOL, ["db"])


async def test_a_change_is_shown_as_what_becomes_of_calicos_policy_and_of_the_original() -> None:
    kv = FakeEtcd()
    await done(kv, *applying(POLICY))
    [text] = diff(await plan(kv, applying(POLICY.replace("5432", "5433"))))
    changed = [line for line in text.splitlines() if line.startswith(("+ ", "- "))]
    assert [line.split() for line in changed if "5432" in line and "{" not in line] == [["-", "-", "5432"]]
    assert text.startswith("--- stored/NetworkPolicy/default/knp.default.db\n")
    assert not list(diff(await plan(kv, applying(POLICY))))


async def test_annotations_of_ours_are_carried_over_and_stay_where_the_file_has_none() -> None:
    kv = FakeEtcd()
    noted = POLICY.replace("{name: db,", "{name: db, annotations: {fabricctl.io/on-change: keep, a/b: c},")
    await done(kv, *applying(noted))
    keys = ["fabricctl.io/on-change", "fabricctl.io/kubernetes", "projectcalico.org/metadata"]
    assert sorted((await policy(kv)).metadata.annotations) == sorted(keys)
    await done(kv, patch(NP, "knp.default.db", None, {"metadata": {"annotations": {"x": "y"}}}, "merge"))
    assert await done(kv, *applying(POLICY)) == ["NetworkPolicy default/knp.default.db: configured"]
    assert sorted((await policy(kv)).metadata.annotations) == sorted([*keys, "x"])
    await done(kv, *applying(POLICY.replace("{name: db,", "{name: db, annotations: {},")))
    assert sorted((await policy(kv)).metadata.annotations) == sorted([*keys[1:], "x"])


async def test_create_replace_and_delete_mean_the_stored_policy() -> None:
    kv = FakeEtcd()
    with pytest.raises(NotFound):
        await done(kv, *gather(replace, given(POLICY)))
    assert await done(kv, *gather(create, given(POLICY))) == ["NetworkPolicy default/knp.default.db: created"]
    with pytest.raises(Taken, match="exists already"):
        await done(kv, *gather(create, given(POLICY)))
    await done(kv, *gather(replace, given(POLICY.replace("5432", "5433"))))
    assert (await policy(kv)).spec.ingress[0].destination.ports == (5433,)
    assert await done(kv, *gather(delete, given(POLICY))) == ["NetworkPolicy default/knp.default.db: deleted"]
    await done(kv, *applying(POLICY))
    assert await done(kv, delete_named(NETPOL, "db")) == ["NetworkPolicy default/knp.default.db: deleted"]


@pytest.mark.parametrize(
    ("value", "how"),
    [
        ({"spec": {"podSelector": {"matchLabels": {"app": "mysql"}}}}, "merge"),
        ([{"op": "replace", "path": "/spec/podSelector/matchLabels/app", "value": "mysql"}], "json"),
    ],
)
async def test_a_patch_of_the_original_changes_both(value: object, how: PatchType) -> None:
    kv = FakeEtcd()
    await done(kv, *applying(POLICY))
    assert await done(kv, patch(NETPOL, "db", None, value, how)) == [
        "NetworkPolicy default/knp.default.db: configured"
    ]
    assert (await policy(kv)).spec.selector.endswith("app == 'mysql'")
    [original] = await get(kv, NETPOL, ["db"])
    assert tree(original)["spec"]["podSelector"] == {"matchLabels": {"app": "mysql"}}
    assert await done(kv, patch(NETPOL, "db", None, value, how)) == [
        "NetworkPolicy default/knp.default.db: unchanged"
    ]


async def test_a_label_of_the_original_is_set_and_a_patch_that_breaks_it_is_refused() -> None:
    kv = FakeEtcd()
    await done(kv, *applying(POLICY))
    await done(kv, label(NETPOL, "db", None, {"x": "y"}, ["team"], overwrite=False))
    [original] = await get(kv, NETPOL, ["db"])
    assert original.metadata.labels == {"x": "y"}
    before = kv.revision
    for spec in ('{"podSelecter": {}}', '{"ingress": [{"from": [{}]}]}'):
        with pytest.raises(ConfigError, match=r"NetworkPolicy default/knp\.default\.db: spec"):
            await done(kv, patch(NETPOL, "db", None, {"spec": json.loads(spec)}, "merge"))
    with pytest.raises(Conflict):
        await done(kv, patch(NETPOL, "db", None, {"metadata": {"resourceVersion": "1"}}, "merge"))
    assert kv.revision == before


async def test_a_policy_that_was_changed_since_has_no_original_any_more() -> None:
    kv = FakeEtcd()
    await done(kv, *applying(POLICY))
    await done(kv, patch(NP, "knp.default.db", None, {"spec": {"order": 5}}, "merge"))
    with pytest.raises(
        ConfigError, match=r"db: was not made of .*, or was changed since; `fabricctl get np knp"
    ):
        await get(kv, NETPOL, ["db"])
    assert (await listing(kv, Resource, NETPOL)).resources == ()
    await done(kv, *applying(POLICY))
    assert len(await get(kv, NETPOL, ["db"])) == 1


async def test_a_policy_that_is_too_large_to_be_kept_twice_is_stored_without_its_original() -> None:
    kv = FakeEtcd()
    await done(kv, *applying(POLICY))
    [large] = resources_in(POLICY)
    value = tree(large)
    rule = value["spec"]["ingress"][0]
    value["spec"]["ingress"] = [{**rule, "ports": [{"port": n}]} for n in range(1, 1025)]
    value["metadata"]["labels"] = {f"label-{n:04}": "x" * 63 for n in range(1000)}
    await done(kv, *applying(json.dumps(value)))
    stored = await policy(kv)
    assert len(stored.spec.ingress) == 1024
    assert "fabricctl.io/kubernetes" not in stored.metadata.annotations
    assert (await listing(kv, Resource, NETPOL)).resources == ()


async def test_a_name_that_leaves_no_room_for_calicos_prefix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(POLICY.replace("name: db", f"name: {'a' * 242}"))
    with pytest.raises(ConfigError, match=r"metadata\.name: has no counterpart in Calico: .* at most 253"):
        files.read([str(path)])


async def test_only_what_was_made_of_kubernetes_is_listed_as_its_own() -> None:
    kv = FakeEtcd()
    for name, annotations in {"plain": {}, "knp.default.odd": {"fabricctl.io/kubernetes": "{"}}.items():
        await put(
            kv,
            NetworkPolicy.model_validate(
                {"metadata": {"name": name, "namespace": "default", "annotations": annotations}}
            ),
        )
    assert (await listing(kv, Resource, NETPOL)).resources == ()
    assert len((await listing(kv, Resource, NP)).resources) == 2


async def labels(kv: FakeEtcd, name: str) -> dict[str, str]:
    return dict((await profile(kv, name)).spec.labels_to_apply)


SHOP = {"pcns.projectcalico.org/name": "shop", "pcns.kubernetes.io/metadata.name": "shop"}


async def test_a_namespace_is_a_profile_that_allows_all_and_carries_its_labels() -> None:
    kv = FakeEtcd()
    assert await done(kv, *applying(NAMESPACE)) == ["Profile kns.shop: created"]
    made = await profile(kv, "kns.shop")
    assert made.metadata.annotations == {"fabricctl.io/drop-log": "on"}
    assert await labels(kv, "kns.shop") == {"pcns.team": "a", **SHOP}
    spec = made.spec.model_copy(update={"labels_to_apply": {}})
    assert spec == namespaces.profile("shop").spec.model_copy(update={"labels_to_apply": {}})
    assert await done(kv, *applying(NAMESPACE)) == ["Profile kns.shop: unchanged"]


async def test_a_namespaces_labels_join_the_profile_that_an_attach_made() -> None:
    kv = FakeEtcd()
    await put(kv, namespaces.profile("shop"))
    assert await done(kv, *applying(NAMESPACE)) == ["Profile kns.shop: configured"]
    assert await labels(kv, "kns.shop") == {"pcns.team": "a", **SHOP}


async def test_what_a_namespace_says_nothing_of_stays_and_labels_it_no_longer_has_go() -> None:
    kv = FakeEtcd()
    own: dict[str, Any] = {
        "metadata": {"name": "kns.shop", "annotations": {"fabricctl.io/drop-log": "on", "x": "y"}},
        "spec": {"labelsToApply": {"role": "r", "pcns.team": "b", "pcns.old": "c"}, "ingress": []},
    }
    await put(kv, Profile.model_validate(own))
    await done(kv, *applying("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"))
    kept = await profile(kv, "kns.shop")
    assert kept.spec.ingress == ()
    assert kept.metadata.annotations == own["metadata"]["annotations"]
    assert await labels(kv, "kns.shop") == {"role": "r", "pcns.team": "b", "pcns.old": "c", **SHOP}
    await done(kv, *applying(NAMESPACE.replace("fabricctl.io/drop-log: on, ", "")))
    assert await labels(kv, "kns.shop") == {"role": "r", "pcns.team": "a", **SHOP}
    assert (await profile(kv, "kns.shop")).metadata.annotations == {"x": "y"}
    await done(kv, *gather(replace, given(NAMESPACE)))
    assert await labels(kv, "kns.shop") == {"pcns.team": "a", **SHOP}


async def test_a_service_account_is_a_profile_of_labels_alone_and_no_secret_of_it_is_stored() -> None:
    kv = FakeEtcd()
    assert await done(kv, *applying(ACCOUNT)) == ["Profile ksa.shop.web: created"]
    made = await profile(kv, "ksa.shop.web")
    assert tree(made.spec) == {"labelsToApply": {"pcsa.team": "a", "pcsa.projectcalico.org/name": "web"}}
    assert await done(kv, *applying(ACCOUNT)) == ["Profile ksa.shop.web: unchanged"]
    assert await done(kv, *gather(delete, given(ACCOUNT))) == ["Profile ksa.shop.web: deleted"]
    elsewhere = ACCOUNT.replace(", namespace: shop", "")
    assert await done(kv, *applying(elsewhere)) == ["Profile ksa.default.web: created"]
    assert await done(kv, *applying(elsewhere, "blue")) == ["Profile ksa.blue.web: created"]


async def test_a_list_of_all_of_them_is_applied_whole() -> None:
    items = [json.dumps(tree(r)) for text in (POLICY, NAMESPACE, ACCOUNT) for r in resources_in(text)]
    kv = FakeEtcd()
    text = f'{{"apiVersion": "v1", "kind": "List", "items": [{",".join(items)}]}}'
    assert len(await done(kv, *applying(text))) == 3


@pytest.mark.parametrize(
    ("text", "name", "kind"),
    [(POLICY, "db", NETPOL), (NAMESPACE, "kns.shop", PROFILE), (ACCOUNT, "ksa.shop.web", PROFILE)],
)
def test_get_shows_of_a_file_the_original_or_else_what_is_stored(
    text: str, name: str, kind: kinds.Kind
) -> None:
    [resource] = resources_in(text)
    shown, metadata = asked(resource)
    assert (shown, metadata.name) == (kind, name)


def test_calicos_policy_and_kubernetes_that_is_stored_as_it_are_one_object(tmp_path: Path) -> None:
    calicos = "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: knp.default.db}\n"
    with pytest.raises(ConfigError, match="is given twice, first at"):
        applying(f"{POLICY}---\n{calicos}")
    (tmp_path / "a.yaml").write_text(f"{POLICY}---\n{calicos}")
    with pytest.raises(ConfigError, match="this NetworkPolicy is given twice, first at"):
        files.sound([str(tmp_path)])
    assert len(applying(f"{POLICY}---\n{calicos.replace('knp.default.', '')}")) == 2
