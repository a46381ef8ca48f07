"""Where resources live and how they are read, over an etcd in memory."""

import json

import pytest

from fabric.errors import ConfigError, NotFound
from fabric.model import kinds
from fabric.model.base import Metadata, Resource
from fabric.ops.resources import encode, get, key_of, listing, name_of, placed, pools
from fabric.store.keys import RESOURCES
from fabric.store.kv import Put, Txn
from tests.fakes.etcd import FakeEtcd
from tests.fakes.node import pool, put

CONFIG = "/calico/ipam/v2/config"
IPAM = kinds.lookup("ipamconfig")


def endpoint(namespace: str) -> Resource:
    return kinds.resource_class("WorkloadEndpoint").model_validate(
        {"kind": "WorkloadEndpoint", "metadata": {"name": "w", "namespace": namespace}}
    )


async def test_get_finds_by_name_or_all_of_a_kind() -> None:
    kv = FakeEtcd()
    for name in ("a", "b"):
        await put(kv, pool("10.0.0.0/24", name))
    kind = kinds.lookup("pools")
    assert [r.metadata.name for r in (await listing(kv, Resource, kind)).resources] == ["a", "b"]
    assert [r.metadata.name for r in await get(kv, kind, ["b"])] == ["b"]
    with pytest.raises(NotFound, match='IPPool "c": does not exist\nIPPool "d": does not exist'):
        await get(kv, kind, ["b", "c", "d"])


async def test_what_is_read_carries_the_revision_of_its_key() -> None:
    kv = FakeEtcd()
    await put(kv, pool("10.0.0.0/24", "a"))
    [found] = await get(kv, kinds.lookup("pools"), ["a"])
    assert found.metadata.resource_version == str(kv.revision)
    assert "resourceVersion" not in encode(found)


async def test_a_namespaced_resource_without_a_namespace_lives_in_default() -> None:
    assert key_of(endpoint("")) == key_of(endpoint("default"))
    assert placed(endpoint(""), None).metadata.namespace == "default"
    assert placed(endpoint(""), "blue").metadata.namespace == "blue"
    assert placed(endpoint("red"), "blue").metadata.namespace == "red"
    assert not placed(pool("10.0.0.0/24"), "blue").metadata.namespace
    assert name_of(endpoint("red")) == "WorkloadEndpoint red/w"
    kv = FakeEtcd()
    for namespace in ("default", "blue"):
        await put(kv, endpoint(namespace))
    kind = kinds.lookup("wep")
    assert len((await listing(kv, Resource, kind)).resources) == 2
    assert [r.metadata.namespace for r in (await listing(kv, Resource, kind, "blue")).resources] == ["blue"]
    with pytest.raises(NotFound, match='"w" in namespace green: does not exist'):
        await get(kv, kind, ["w"], "green")


@pytest.mark.parametrize(
    ("kind", "version"), [("Pod", "projectcalico.org/v3"), ("NetworkPolicy", "networking.k8s.io/v1")]
)
def test_a_foreign_kind_has_no_place(kind: str, version: str) -> None:
    with pytest.raises(NotFound, match=f'kind "{kind}" of {version} is not one of'):
        key_of(Resource(kind=kind, api_version=version, metadata=Metadata(name="x")))


async def test_one_that_cannot_be_read_hides_no_other_but_pools_must_all_be_known() -> None:
    kv = FakeEtcd()
    await put(kv, pool("10.0.0.0/24", "a"))
    key = key_of(pool("10.0.0.0/24", "b"))
    await kv.commit(Txn((), (Put(key, "{"),)))
    listed = await listing(kv, Resource, kinds.lookup("pools"))
    assert [r.metadata.name for r in listed.resources] == ["a"]
    assert list(listed.unreadable) == [key]
    assert listed.warnings[0].startswith(f"{key}: cannot be read: ")
    assert listed.warnings[0].endswith("; it counts as absent")
    with pytest.raises(ConfigError, match="cannot be read"):
        await pools(kv)


async def test_of_a_policy_that_cannot_be_read_it_is_told_what_it_does() -> None:
    kv, ends = FakeEtcd(), []
    for spec in ({"selector": "a == 'b'", "ingress": "x"}, {"selector": "a = 'b'"}):
        value = {"kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "blue"}, "spec": spec}
        await kv.commit(Txn((), (Put(RESOURCES + "networkpolicies/blue/p", json.dumps(value)),)))
        [line] = (await listing(kv, Resource, kinds.lookup("np"))).warnings
        ends.append(line.rpartition("; ")[2])
    assert ends == ["it denies what it selects", "it decides nothing: what it selects cannot be told"]


async def test_one_that_says_it_is_another_cannot_be_read() -> None:
    kv = FakeEtcd()
    pool_a, wep = "ippools/a", "workloadendpoints/blue/w"
    ops = (
        Put(RESOURCES + pool_a, encode(pool("10.0.0.0/24", "b"))),
        Put(RESOURCES + wep, encode(endpoint(""))),
    )
    await kv.commit(Txn((), ops))
    told: dict[str, str] = {}
    for word in ("pools", "wep"):
        told |= (await listing(kv, Resource, kinds.lookup(word))).unreadable
    assert told == {
        RESOURCES + pool_a: "says it is IPPool b, but is stored as ippools/a",
        RESOURCES + wep: "says it is WorkloadEndpoint default/w, but is stored as workloadendpoints/blue/w",
    }
    with pytest.raises(ConfigError, match="IPPool a: cannot be read: says it is IPPool b"):
        await get(kv, kinds.lookup("pools"), ["a"])


async def test_the_ipam_configuration_is_stored_as_calico_stores_it() -> None:
    kv = FakeEtcd()
    spec = {"strictAffinity": True, "autoAllocateBlocks": True, "ipCooldownSeconds": 5, "future": 1}
    tree = {"kind": "IPAMConfiguration", "metadata": {"name": "default"}, "spec": spec}
    wanted = IPAM.cls.model_validate(tree)
    assert key_of(wanted) == CONFIG
    stored = {"strict_affinity": True, "auto_allocate_blocks": True, "ipCooldownSeconds": 5, "future": 1}
    assert json.loads(encode(wanted)) == stored
    assert (await listing(kv, Resource, IPAM)).resources == ()
    await kv.commit(Txn((), (Put(CONFIG, json.dumps(stored)),)))
    [listed] = (await listing(kv, Resource, IPAM)).resources
    assert [listed] == await get(kv, IPAM, ["default"])
    assert json.loads(encode(listed)) == stored
    with pytest.raises(NotFound):
        await get(kv, IPAM, ["other"])
    await kv.commit(Txn((), (Put(CONFIG, "no json"),)))
    with pytest.raises(ConfigError):
        await get(kv, IPAM, ["default"])
