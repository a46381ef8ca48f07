"""Get, create and apply over an etcd in memory, with others who write at the same moment."""

import asyncio
import json

import pytest

from fabric.errors import ConfigError, Conflict, NotFound, StoreError
from fabric.model import kinds
from fabric.model.base import Metadata, Resource, Unknown
from fabric.model.ippool import IPPool
from fabric.ops.resources import (
    ATTEMPTS,
    apply,
    create_if_absent,
    get,
    key_of,
    listing,
    refuse_pools,
    without_effect,
)
from fabric.store.kv import Guard, Put, Txn
from tests.fakes.etcd import FakeEtcd
from tests.fakes.node import pool, put

POOL = pool("10.0.0.0/24")
KEY = "/calico/resources/v3/projectcalico.org/ippools/pool"


class BusyEtcd(FakeEtcd):
    """Somebody else writes each key that is about to be written, just before, `rivals` times."""

    rivals = 0

    async def commit(self, txn: Txn) -> int:
        if self.rivals:
            self.rivals -= 1
            [guard] = txn.guards
            item = await self.get(guard.key)
            theirs = json.loads(item.value) if item else json.loads(_text(txn))
            theirs["spec"]["natOutgoing"] = not theirs["spec"].get("natOutgoing", False)
            await super().commit(Txn((), (Put(guard.key, json.dumps(theirs)),)))
        return await super().commit(txn)


def _text(txn: Txn) -> str:
    [op] = txn.ops
    assert isinstance(op, Put)
    return op.value


async def stored(kv: FakeEtcd, key: str = KEY) -> dict[str, object]:
    item = await kv.get(key)
    assert item is not None
    document: dict[str, object] = json.loads(item.value)
    return document


async def test_what_is_created_has_a_uid_and_a_creation_time_or_calicoctl_would_refuse_it() -> None:
    kv = FakeEtcd()
    assert (await apply(kv, POOL)).verb == "created"
    metadata = (await stored(kv))["metadata"]
    assert isinstance(metadata, dict)
    assert metadata.keys() == {"name", "uid", "creationTimestamp"}


async def test_only_one_of_many_creates_what_is_absent() -> None:
    kv = FakeEtcd()
    pools = [pool(f"10.{n}.0.0/24") for n in range(10)]
    made = await asyncio.gather(*(create_if_absent(kv, p) for p in pools))
    assert made.count(True) == 1
    [kept] = (await listing(kv, Resource, kinds.lookup("ippool"))).resources
    assert isinstance(kept, IPPool)
    assert kept.spec.cidr == pools[made.index(True)].spec.cidr


async def test_applying_twice_says_unchanged_and_writes_nothing() -> None:
    kv = FakeEtcd()
    await apply(kv, POOL)
    before = kv.revision
    assert (await apply(kv, POOL)).verb == "unchanged"
    assert kv.revision == before


async def test_applying_something_else_configures_it_and_keeps_its_identity() -> None:
    kv = FakeEtcd()
    await apply(kv, POOL)
    before = await stored(kv)
    assert (await apply(kv, pool("10.0.0.0/24", natOutgoing=True))).verb == "configured"
    after = await stored(kv)
    assert after["metadata"] == before["metadata"]
    assert after["spec"] == {**before["spec"], "natOutgoing": True}  # type: ignore[dict-item]


async def test_fields_we_do_not_know_survive_an_apply() -> None:
    kv = FakeEtcd()
    await apply(kv, POOL)
    document = await stored(kv)
    document["spec"]["fromTheFuture"] = {"a": 1}  # type: ignore[index]
    document["status"] = {"conditions": []}
    await kv.commit(Txn((), (Put(KEY, json.dumps(document)),)))
    await apply(kv, pool("10.0.0.0/24", natOutgoing=True))
    after = await stored(kv)
    assert after["spec"]["fromTheFuture"] == {"a": 1}  # type: ignore[index]
    assert after["status"] == {"conditions": []}


async def test_an_apply_that_loses_races_is_decided_again_on_what_won() -> None:
    kv = BusyEtcd()
    await put(kv, POOL)
    kv.rivals = ATTEMPTS - 1
    done = await apply(kv, pool("10.0.0.0/24", disabled=True))
    assert done.verb == "configured"
    assert (await stored(kv))["spec"]["disabled"]  # type: ignore[index]


async def test_a_create_that_loses_becomes_an_update() -> None:
    kv = BusyEtcd()
    kv.rivals = 1
    assert (await apply(kv, pool("10.0.0.0/24", disabled=True))).verb == "configured"


async def test_races_without_end_are_a_conflict_and_nothing_of_ours_is_written() -> None:
    kv = BusyEtcd()
    await put(kv, POOL)
    kv.rivals = ATTEMPTS
    with pytest.raises(Conflict, match="nothing was written"):
        await apply(kv, pool("10.0.0.0/24", disabled=True))
    assert "disabled" not in (await stored(kv))["spec"]  # type: ignore[operator]


async def test_get_finds_by_name_or_all_of_a_kind() -> None:
    kv = FakeEtcd()
    for name in ("a", "b"):
        await apply(kv, pool("10.0.0.0/24", name))
    kind = kinds.lookup("pools")
    assert [r.metadata.name for r in (await listing(kv, Resource, kind)).resources] == ["a", "b"]
    assert [r.metadata.name for r in await get(kv, kind, ["b"])] == ["b"]
    with pytest.raises(NotFound, match='IPPool "c": does not exist'):
        await get(kv, kind, ["b", "c"])


async def test_a_namespaced_resource_without_a_namespace_lives_in_default() -> None:
    def endpoint(namespace: str) -> Resource:
        return kinds.resource_class("WorkloadEndpoint").model_validate(
            {"kind": "WorkloadEndpoint", "metadata": {"name": "w", "namespace": namespace}}
        )

    assert key_of(endpoint("")) == key_of(endpoint("default"))
    kv = FakeEtcd()
    for namespace in ("default", "blue"):
        await put(kv, endpoint(namespace))
    kind = kinds.lookup("wep")
    assert len((await listing(kv, Resource, kind)).resources) == 2
    assert [r.metadata.namespace for r in (await listing(kv, Resource, kind, "blue")).resources] == ["blue"]
    with pytest.raises(NotFound, match='"w" in namespace green: does not exist'):
        await get(kv, kind, ["w"], "green")


async def test_a_foreign_kind_is_refused_before_anything_is_written() -> None:
    with pytest.raises(NotFound, match='kind "Pod" is not one of'):
        await apply(kv := FakeEtcd(), Resource(kind="Pod", metadata=Metadata(name="x")))
    assert kv.revision == 1


async def test_what_is_stored_broken_is_named_and_not_overwritten() -> None:
    kv = FakeEtcd()
    await kv.commit(Txn((Guard(KEY, 0),), (Put(KEY, '{"kind":"IPPool","metadata":{"name":"pool"}}'),)))
    with pytest.raises(ConfigError, match="IPPool pool: spec: is required"):
        await apply(kv, POOL)
    assert kv.revision == 2


async def test_without_etcd_the_error_is_etcds() -> None:
    kv = FakeEtcd()
    kv.down = True
    with pytest.raises(StoreError, match="etcd is down"):
        await apply(kv, POOL)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            pool("10.1.0.0/24"),
            r"IPPool pool: cidr and blockSize \(10\.0\.0\.0/24, /26\) cannot be changed to 10\.1",
        ),
        (pool("10.0.0.0/24", blockSize=28), "cannot be changed"),
        (
            pool("10.0.0.0/16", "other"),
            r"IPPool other: 10\.0\.0\.0/16 overlaps 10\.0\.0\.0/24 of IPPool pool",
        ),
    ],
)
async def test_a_pool_neither_moves_under_its_addresses_nor_overlaps(given: IPPool, said: str) -> None:
    kv = FakeEtcd()
    await apply(kv, POOL)
    with pytest.raises(ConfigError, match=f"{said}.*(.|\n)*nothing was applied"):
        await refuse_pools(kv, [given])
    await refuse_pools(kv, [POOL, pool("10.9.0.0/24", "elsewhere"), pool("fd00::/112", "v6")])


def test_what_is_stored_without_effect_is_said() -> None:
    nat = pool("10.0.0.0/24", natOutgoing=True, vxlanMode="Always")
    assert [line.partition(": ")[2] for line in without_effect(nat)] == [
        "vxlanMode is stored and has no effect yet",
        "natOutgoing is stored and has no effect yet",
    ]
    assert without_effect(POOL) == []
    policy = Unknown(kind="GlobalNetworkPolicy", metadata=Metadata(name="deny"))
    assert without_effect(policy) == ["GlobalNetworkPolicy deny: stored; nothing here acts on this kind yet"]
