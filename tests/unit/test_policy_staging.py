"""Promoting and staging: what a policy becomes, and the one transaction that it takes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fabric.errors import ConfigError, Conflict, NotFound, Taken
from fabric.model.base import tree
from fabric.model.convert import stored
from fabric.model.wire import to_json
from fabric.ops.resources import key_of
from fabric.ops.staging import Done, promote, stage
from fabric.store.kv import Put, Txn
from tests.fakes.etcd import FakeEtcd
from tests.unit.loading import resources_in
from tests.unit.scenes import resources

STAGED = """
kind: StagedNetworkPolicy
metadata:
  name: web
  namespace: shop
  labels: {team: a}
  annotations: {fabricctl.io/on-change: keep}
spec: {selector: app == 'web', order: 5, ingress: [{action: Allow}]}
"""
GLOBAL = """
kind: StagedGlobalNetworkPolicy
metadata: {name: web}
spec: {selector: app == 'web'}
"""
OLD = """
kind: NetworkPolicy
metadata: {name: web, namespace: shop, uid: 11111111-2222-3333-4444-555555555555}
spec: {selector: app == 'old'}
"""
KUBERNETES = """
kind: StagedKubernetesNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]
"""
ROOT = "/calico/resources/v3/projectcalico.org/"


async def etcd(*texts: str) -> FakeEtcd:
    kv = FakeEtcd()
    found = [one for text in texts for one in resources(text)]
    await kv.commit(Txn((), tuple(Put(key_of(one), to_json(one)) for one in found)))
    return kv


async def held(kv: FakeEtcd) -> dict[str, dict[str, Any]]:
    items = (await kv.list(ROOT)).items
    return {item.key.removeprefix(ROOT): json.loads(item.value) for item in items}


def told(done: list[Done]) -> list[str]:
    return [f"{one.what}: {one.verb}" for one in done]


async def test_a_promoted_policy_means_the_same_and_is_no_longer_staged() -> None:
    kv = await etcd(STAGED)
    before = kv.revision
    assert told(await promote(kv, "web", "shop")) == [
        "NetworkPolicy shop/web: created",
        "StagedNetworkPolicy shop/web: deleted",
    ]
    assert kv.revision == before + 1  # one transaction
    found = await held(kv)
    policy = found.pop("networkpolicies/shop/web")
    assert found == {}
    assert policy["kind"] == "NetworkPolicy"
    assert policy["spec"] == {
        "tier": "default",
        "order": 5,
        "ingress": [{"action": "Allow", "source": {}, "destination": {}}],
        "selector": "app == 'web'",
        "types": ["Ingress"],
    }
    assert policy["metadata"]["labels"] == {"team": "a", "projectcalico.org/tier": "default"}
    assert policy["metadata"]["annotations"]["fabricctl.io/on-change"] == "keep"
    assert policy["metadata"].keys() >= {"uid", "creationTimestamp"}


async def test_what_it_takes_the_place_of_keeps_its_identity_and_nothing_else() -> None:
    kv = await etcd(STAGED, OLD)
    assert told(await promote(kv, "web", "shop"))[0] == "NetworkPolicy shop/web: configured"
    policy = (await held(kv))["networkpolicies/shop/web"]
    assert policy["metadata"]["uid"] == "11111111-2222-3333-4444-555555555555"
    assert policy["spec"]["selector"] == "app == 'web'"


@pytest.mark.parametrize("text", [STAGED, GLOBAL, KUBERNETES], ids=["namespaced", "global", "kubernetes"])
async def test_staging_a_promoted_policy_gives_it_back(text: str) -> None:
    kv = await etcd(text)
    name, namespace = "web", None if text is GLOBAL else "shop"
    before = await held(kv)
    await promote(kv, name, namespace)
    assert not any("staged" in key for key in await held(kv))
    await stage(kv, name, namespace)
    after = await held(kv)
    assert after.keys() == before.keys()
    for key, value in after.items():
        value["spec"].pop("types", None)
        before[key]["spec"].pop("types", None)
        assert value["spec"] == before[key]["spec"]
        assert value["kind"] == before[key]["kind"]


async def test_a_policy_of_kubernetes_is_enforced_under_the_name_that_applying_it_gives() -> None:
    kv = await etcd(KUBERNETES)
    await promote(kv, "web", "shop")
    [(key, value)] = (await held(kv)).items()
    assert key == "networkpolicies/shop/knp.default.web"
    [given] = resources_in(
        KUBERNETES.replace("kind: Staged", "kind: ").replace("KubernetesNetworkPolicy", "NetworkPolicy")
        + "apiVersion: networking.k8s.io/v1\n"
    )
    wanted = stored(given)
    assert not isinstance(wanted, tuple)
    assert value["spec"] == tree(wanted.as_written())["spec"]


async def test_both_spellings_of_a_policy_of_kubernetes_are_found() -> None:
    kv = await etcd(KUBERNETES)
    await promote(kv, "knp.default.web", "shop")
    await stage(kv, "knp.default.web", "shop")
    assert list(await held(kv)) == ["stagedkubernetesnetworkpolicies/shop/web"]
    await promote(kv, "web", "shop")
    assert list(await held(kv)) == ["networkpolicies/shop/knp.default.web"]
    named = STAGED.replace("name: web", "name: knp.default.web")
    kv = await etcd(named)
    assert told(await promote(kv, "web", "shop"))[0] == "NetworkPolicy shop/knp.default.web: created"
    kv = await etcd(named, KUBERNETES)
    assert told(await promote(kv, "web", "shop"))[1] == "StagedKubernetesNetworkPolicy shop/web: deleted"


async def test_one_that_is_to_delete_deletes() -> None:
    deletion = (
        "\nkind: StagedNetworkPolicy\nmetadata: {name: web, namespace: shop}\nspec: {stagedAction: Delete}\n"
    )
    kv = await etcd(deletion, OLD)
    assert told(await promote(kv, "web", "shop")) == [
        "NetworkPolicy shop/web: deleted",
        "StagedNetworkPolicy shop/web: deleted",
    ]
    assert await held(kv) == {}
    with pytest.raises(NotFound, match="is to delete NetworkPolicy shop/web, which does not exist"):
        await promote(await etcd(deletion), "web", "shop")


@pytest.mark.parametrize("action", ["Learn", "Ignore"])
async def test_one_that_says_nothing_of_the_kind_is_refused(action: str) -> None:
    kv = await etcd(GLOBAL.replace("{selector:", f"{{stagedAction: {action}, selector:"))
    with pytest.raises(ConfigError, match=f'stagedAction: "{action}": there is nothing to enforce'):
        await promote(kv, "web")


async def test_what_is_not_enforced_here_is_not_promoted_and_fields_of_a_newer_tool_are_kept() -> None:
    kv = await etcd(STAGED)
    [(key, value)] = (await held(kv)).items()
    value["spec"]["fromTheFuture"] = 1
    await kv.commit(Txn((), (Put(f"{ROOT}{key}", json.dumps(value)),)))
    await promote(kv, "web", "shop")
    assert (await held(kv))["networkpolicies/shop/web"]["spec"]["fromTheFuture"] == 1
    await stage(kv, "web", "shop")
    value["spec"]["ingress"][0]["http"] = {"methods": ["GET"]}
    await kv.commit(Txn((), (Put(f"{ROOT}{key}", json.dumps(value)),)))
    with pytest.raises(
        ConfigError, match=r"shop/web: spec.ingress\[0\].http: .*not enforced here.*nothing was written"
    ):
        await promote(kv, "web", "shop")


async def test_a_name_that_means_several_is_refused_and_each_of_them_is_named() -> None:
    kv = await etcd(STAGED.replace("shop", "default"), GLOBAL)
    with pytest.raises(ConfigError, match="StagedNetworkPolicy default/web, StagedGlobalNetworkPolicy web"):
        await promote(kv, "web")
    assert told(await promote(kv, "sgnp/web", dry_run=True))[0] == "GlobalNetworkPolicy web: created"
    assert told(await promote(kv, "web", "default"))[0] == "NetworkPolicy default/web: created"
    with pytest.raises(NotFound, match="there is no StagedNetworkPolicy other/web or"):
        await promote(kv, "web", "other")
    with pytest.raises(ConfigError, match="NetworkPolicy is none of StagedNetworkPolicy"):
        await promote(kv, "np/web")


async def test_what_is_staged_already_is_not_written_over() -> None:
    kv = await etcd(STAGED, OLD)
    with pytest.raises(Taken, match="StagedNetworkPolicy shop/web: exists already"):
        await stage(kv, "web", "shop")


async def test_a_dry_run_writes_nothing() -> None:
    kv = await etcd(STAGED)
    before = kv.revision
    assert told(await promote(kv, "web", "shop", dry_run=True))[0] == "NetworkPolicy shop/web: created"
    assert kv.revision == before


class Busy(FakeEtcd):
    """Somebody else writes each guarded key just before, `rivals` times."""

    rivals = 0

    async def commit(self, txn: Txn) -> int:
        if txn.guards and self.rivals:
            self.rivals -= 1
            item = await self.get(txn.guards[0].key)
            assert item
            await super().commit(Txn((), (Put(item.key, item.value.replace("app == 'web'", "all()")),)))
        return await super().commit(txn)


async def test_what_others_wrote_in_between_is_what_is_promoted() -> None:
    kv = Busy()
    [one] = resources(STAGED)
    await kv.commit(Txn((), (Put(key_of(one), to_json(one)),)))
    kv.rivals = 1
    await promote(kv, "web", "shop")
    assert (await held(kv))["networkpolicies/shop/web"]["spec"]["selector"] == "all()"
    kv.rivals = 99
    with pytest.raises(Conflict, match="nothing was written; try again"):
        await stage(kv, "web", "shop")
