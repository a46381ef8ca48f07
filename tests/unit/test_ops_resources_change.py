"""The verbs over an etcd in memory, with others who write at the same moment."""

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from fabric.errors import ConfigError, Conflict, FabricError, NotFound, StoreError, Taken
from fabric.model import kinds
from fabric.model.base import Resource
from fabric.model.change import shown
from fabric.model.ippool import IPPool
from fabric.ops import cluster, files
from fabric.ops.change import (
    ATTEMPTS,
    Change,
    apply,
    carry_out,
    create,
    create_if_absent,
    delete,
    delete_named,
    gather,
    label,
    patch,
    replace,
)
from fabric.ops.diff import diff
from fabric.ops.files import Given
from fabric.ops.resources import get, listing
from fabric.store.keys import RESOURCES
from fabric.store.kv import Put, Txn
from tests.fakes.etcd import FakeEtcd
from tests.fakes.node import pool, put
from tests.unit.changing import plan

POOL = pool("10.0.0.0/24")
KEY = "/calico/resources/v3/projectcalico.org/ippools/pool"
KIND = kinds.lookup("ippool")


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


def given(resource: Resource, version: str = "") -> Given:
    metadata = resource.metadata.model_copy(update={"resource_version": version})
    return Given(resource.model_copy(update={"metadata": metadata}), "pools.yaml:3")


async def done(kv: FakeEtcd, *changes: Change) -> list[str]:
    return [step.verb.value async for step in carry_out(kv, await plan(kv, changes))]


async def stored(kv: FakeEtcd, key: str = KEY) -> dict[str, dict[str, object]]:
    item = await kv.get(key)
    assert item is not None
    document: dict[str, dict[str, object]] = json.loads(item.value)
    return document


async def test_what_is_created_has_a_uid_and_a_creation_time_or_calicoctl_would_refuse_it() -> None:
    kv = FakeEtcd()
    assert await done(kv, apply(given(POOL))) == ["created"]
    assert (await stored(kv))["metadata"].keys() == {"name", "uid", "creationTimestamp"}


async def test_only_one_of_many_creates_what_is_absent() -> None:
    kv = FakeEtcd()
    pools = [pool(f"10.{n}.0.0/24") for n in range(10)]
    made = await asyncio.gather(*(create_if_absent(kv, p) for p in pools))
    assert made.count(True) == 1
    [kept] = (await listing(kv, IPPool, KIND)).resources
    assert kept.spec.cidr == pools[made.index(True)].spec.cidr


async def test_applying_twice_says_unchanged_and_writes_nothing() -> None:
    kv = FakeEtcd()
    await done(kv, apply(given(POOL)))
    before = kv.revision
    assert await done(
        kv,
        apply(given(POOL)),
    ) == ["unchanged"]
    assert kv.revision == before


async def test_fields_we_do_not_know_survive_an_apply_and_not_a_replace() -> None:
    kv = FakeEtcd()
    await done(kv, apply(given(POOL)))
    before = await stored(kv)
    before["spec"]["fromTheFuture"] = {"a": 1}
    before["metadata"]["labels"] = {"a": "b"}
    before["status"] = {"conditions": []}
    await kv.commit(Txn((), (Put(KEY, json.dumps(before)),)))
    assert await done(kv, apply(given(pool("10.0.0.0/24", disabled=True)))) == ["configured"]
    after = await stored(kv)
    assert after["spec"]["fromTheFuture"] == {"a": 1}
    assert (after["status"], after["metadata"]) == (before["status"], before["metadata"])
    assert await done(kv, replace(given(POOL))) == ["configured"]
    last = await stored(kv)
    assert "fromTheFuture" not in last["spec"]
    assert "labels" not in last["metadata"]
    assert last["metadata"]["uid"] == before["metadata"]["uid"]
    assert last["status"] == before["status"]


@pytest.mark.parametrize("rivals", [1, ATTEMPTS - 1])
async def test_an_apply_that_loses_races_is_decided_again_on_what_won(rivals: int) -> None:
    kv = BusyEtcd()
    await put(kv, POOL)
    steps = await plan(kv, [apply(given(pool("10.0.0.0/24", disabled=True)))])
    kv.rivals = rivals
    assert [step.verb.value async for step in carry_out(kv, steps)] == ["configured"]
    assert (await stored(kv))["spec"]["disabled"]


async def test_a_creation_that_loses_the_race_becomes_an_update() -> None:
    kv = BusyEtcd()
    kv.rivals = 1
    assert await done(kv, apply(given(pool("10.0.0.0/24", disabled=True)))) == ["configured"]


async def test_races_without_end_are_a_conflict_and_nothing_of_ours_is_written() -> None:
    kv = BusyEtcd()
    await put(kv, POOL)
    kv.rivals = ATTEMPTS
    with pytest.raises(FabricError, match="others write it at the same moment; it was not written"):
        await done(kv, apply(given(pool("10.0.0.0/24", disabled=True))))
    assert "disabled" not in (await stored(kv))["spec"]


async def test_a_file_with_a_resource_version_is_written_only_over_that_revision() -> None:
    kv = FakeEtcd()
    await put(kv, POOL)
    read = str(kv.revision)
    changed = pool("10.0.0.0/24", disabled=True)
    assert await done(kv, apply(given(changed, read))) == ["configured"]
    now = kv.revision
    why = rf"^pools.yaml:3: IPPool pool: the change was made on resourceVersion {read}, and revision {now} is stored"
    for verb in (apply, replace, delete):
        with pytest.raises(Conflict, match=why):
            await plan(kv, [verb(given(POOL, read))])
    with pytest.raises(Conflict, match=f"resourceVersion {read}"):
        await plan(kv, [patch(KIND, "pool", None, {"metadata": {"resourceVersion": read}}, "merge")])
    assert kv.revision == now
    await done(kv, delete_named(KIND, "pool"))
    with pytest.raises(Conflict, match="nothing is stored there any more"):
        await plan(kv, [apply(given(POOL, read))])


async def test_a_named_revision_is_kept_to_also_when_the_race_is_lost_at_the_last_moment() -> None:
    kv = BusyEtcd()
    await put(kv, POOL)
    steps = await plan(kv, [apply(given(pool("10.0.0.0/24", disabled=True), str(kv.revision)))])
    kv.rivals = 1
    with pytest.raises(FabricError, match="somebody else was first"):
        [step async for step in carry_out(kv, steps)]
    assert "disabled" not in (await stored(kv))["spec"]


async def test_create_refuses_what_exists_or_leaves_it_alone() -> None:
    kv = FakeEtcd()
    assert await done(kv, create(given(POOL))) == ["created"]
    with pytest.raises(Taken, match="exists already"):
        await plan(kv, [create(given(POOL))])
    revision = kv.revision
    skipped = create(given(pool("10.0.0.0/24", disabled=True)), skip_exists=True)
    assert await done(kv, skipped) == ["unchanged"]
    assert kv.revision == revision


async def test_what_does_not_exist_cannot_be_replaced_patched_labelled_or_deleted() -> None:
    kv = FakeEtcd()
    for change in (
        replace(given(POOL)),
        delete(given(POOL)),
        delete_named(KIND, "pool"),
        patch(KIND, "pool", None, {}, "merge"),
        label(KIND, "pool", None, {"a": "b"}, (), overwrite=False),
    ):
        with pytest.raises(NotFound, match=r"IPPool pool: does not exist.*nothing was written"):
            await plan(kv, [change])
    assert await done(kv, delete(given(POOL), skip_not_exists=True)) == ["does not exist"]
    assert kv.revision == 1


async def test_what_is_stored_broken_is_named_and_not_overwritten_but_can_be_deleted() -> None:
    kv = FakeEtcd()
    await kv.commit(Txn((), (Put(KEY, '{"kind":"IPPool","metadata":{"name":"pool"}}'),)))
    with pytest.raises(ConfigError, match="cannot be read: IPPool pool: spec: is required; delete it first"):
        await plan(kv, [apply(given(POOL))])
    assert await done(kv, delete_named(KIND, "pool")) == ["deleted"]
    assert await kv.get(KEY) is None


async def test_everything_that_is_in_the_way_is_said_at_once_and_nothing_is_written() -> None:
    kv = FakeEtcd()
    await put(kv, POOL)
    revision = kv.revision
    with pytest.raises(ConfigError) as error:
        await plan(kv, [create(given(POOL)), replace(given(pool("10.1.0.0/24", "b")))])
    assert [line.partition(";")[0] for line in str(error.value).splitlines()] == [
        "pools.yaml:3: IPPool pool: exists already",
        "pools.yaml:3: IPPool b: does not exist",
        "nothing was written",
    ]
    assert kv.revision == revision


def test_an_object_given_twice_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"IPPool pool: is given twice, first at pools\.yaml:3; nothing was written"
    ):
        gather(apply, [given(POOL), given(POOL)])


class DyingEtcd(FakeEtcd):
    """Goes away once `left` more transactions are done."""

    left = 1_000

    async def commit(self, txn: Txn) -> int:
        self.down = self.left == 0
        self.left -= 1
        return await super().commit(txn)


async def test_when_a_write_fails_in_the_middle_the_message_says_how_far_we_came() -> None:
    kv = DyingEtcd()
    steps = await plan(kv, gather(apply, [given(pool(f"10.{n}.0.0/24", f"p{n}")) for n in range(20)]))
    kv.left = 2
    written: list[str] = []
    error = None
    try:
        async for step in carry_out(kv, steps):
            written.append(step.change.what)
    except FabricError as err:
        error = err
    assert written == ["IPPool p0", "IPPool p1"]
    told = str(error)
    assert "2 of 20 were done before it; not done: IPPool p2, IPPool p3," in told
    assert "IPPool p11 and 8 more" in told


async def test_without_etcd_the_error_is_etcds() -> None:
    kv = FakeEtcd()
    kv.down = True
    with pytest.raises(StoreError, match=r"pools.yaml:3: IPPool pool: not changed: .*etcd is down"):
        await plan(kv, [apply(given(POOL))])


async def test_a_pool_is_disabled_before_it_goes() -> None:
    kv = FakeEtcd()
    await put(kv, POOL)
    changes = kv.watch("/calico/", kv.revision)
    assert await done(kv, delete_named(KIND, "pool")) == ["deleted"]
    first, last = await anext(changes), await anext(changes)
    await changes.aclose()
    assert [json.loads(item.value)["spec"]["disabled"] for item in first.puts] == [True]
    assert last.deletes == (KEY,)


BLOCK = "/calico/ipam/v2/assignment/ipv4/block/10.0.0.{}-26"
AFFINITY = "/calico/ipam/v2/host/n1/ipv4/block/10.0.0.{}-26"


def block(first: int, *, held: bool) -> str:
    return json.dumps(
        {
            "cidr": f"10.0.0.{first}/26",
            "affinity": "host:n1",
            "allocations": [0 if held else None] + [None] * 63,
            "unallocated": list(range(int(held), 64)),
            "attributes": [{"handle_id": "h", "secondary": None}] if held else [],
            "sequenceNumber": 1,
            "deleted": False,
        }
    )


class ClaimingEtcd(FakeEtcd):
    """A node claims a block of the pool between the disabling and the first release, as it was deciding to."""

    claimed = False

    async def commit(self, txn: Txn) -> int:
        keys = {op.key for op in txn.ops}
        if not self.claimed and BLOCK.format(0) in keys and KEY not in keys:
            self.claimed = True
            confirmed = '{"state":"confirmed","deleted":false}'
            late = (Put(BLOCK.format(128), block(128, held=False)), Put(AFFINITY.format(128), confirmed))
            await super().commit(Txn((), late))
        return await super().commit(txn)


async def test_a_pool_that_goes_gives_its_empty_blocks_back_and_leaves_used_ones_their_addresses() -> None:
    kv = ClaimingEtcd()
    await put(kv, POOL)
    confirmed = '{"state":"confirmed","deleted":false}'
    for first, held in ((0, True), (64, False)):
        both = (Put(BLOCK.format(first), block(first, held=held)), Put(AFFINITY.format(first), confirmed))
        await FakeEtcd.commit(kv, Txn((), both))
    assert await done(kv, delete_named(KIND, "pool")) == ["deleted"]
    assert kv.claimed
    left = (await kv.list("/calico/")).items
    assert [item.key for item in left] == [BLOCK.format(0)]
    kept = json.loads(left[0].value)
    assert (kept["allocations"][0], kept.get("affinity")) == (0, None)


class ContestedEtcd(FakeEtcd):
    """Somebody enables the pool again while it is being deleted."""

    async def commit(self, txn: Txn) -> int:
        revision = await super().commit(txn)
        if any(isinstance(op, Put) and '"disabled":true' in op.value for op in txn.ops):
            await put(self, POOL)
        return revision


async def test_a_pool_that_somebody_writes_while_it_goes_stays() -> None:
    kv = ContestedEtcd()
    await put(kv, POOL)
    with pytest.raises(FabricError, match="the pool is still there; look at it, and delete it again"):
        await done(kv, delete_named(KIND, "pool"))
    assert await kv.get(KEY)


def texts(steps: Sequence[object]) -> str:
    return "".join(diff(steps))  # type: ignore[arg-type]


async def test_a_diff_shows_what_an_operator_writes_and_no_noise() -> None:
    kv = FakeEtcd()
    await done(kv, apply(given(POOL)))
    document = await stored(kv)
    document["status"] = {"conditions": []}
    await kv.commit(Txn((), (Put(KEY, json.dumps(document)),)))
    assert texts(await plan(kv, [apply(given(POOL))])) == ""
    shown = texts(
        await plan(
            kv, [apply(given(pool("10.0.0.0/24", disabled=True))), apply(given(pool("10.1.0.0/24", "b")))]
        )
    )
    lines = shown.splitlines()
    assert lines[:2] == ["--- stored/IPPool/pool", "+++ given/IPPool/pool"]
    assert next(line for line in lines if line.startswith(("+ ", "- "))) == "+  disabled: true"
    assert "+++ given/IPPool/b" in lines
    assert not {word for word in ("uid", "creationTimestamp", "resourceVersion", "status") if word in shown}


async def test_a_field_that_we_do_not_know_may_stand_in_a_file_exactly_where_it_is_stored(
    tmp_path: Path,
) -> None:
    kv = FakeEtcd()
    await done(kv, apply(given(POOL)))
    newer = await stored(kv)
    newer["spec"]["fromTheFuture"] = 1
    await kv.commit(Txn((), (Put(KEY, json.dumps(newer)),)))
    file = tmp_path / "pool.yaml"
    file.write_text(json.dumps({**newer, "spec": {**newer["spec"], "fromTheFuture": 2}}))
    [edited] = files.read([str(file)])
    assert await done(kv, apply(edited)) == ["configured"]
    assert (await stored(kv))["spec"]["fromTheFuture"] == 2
    assert await done(kv, replace(edited)) == ["unchanged"]
    file.write_text(json.dumps({**newer, "spec": {**newer["spec"], "ofThePast": 1}}))
    before = kv.revision
    for verb in (apply, replace, delete):
        with pytest.raises(
            ConfigError, match=rf"^{file}:1: spec.ofThePast: no such field; nothing was written$"
        ):
            await plan(kv, gather(verb, files.read([str(file)])))
    assert kv.revision == before


async def test_a_new_cluster_gets_what_calicos_tools_make_and_nothing_twice() -> None:
    kv = FakeEtcd()
    made = await asyncio.gather(*(cluster.found(kv) for _ in range(5)))
    names = [(r.kind, r.metadata.name) for each in made for r in each]
    tiers = [("Tier", "kube-admin"), ("Tier", "default"), ("Tier", "kube-baseline")]
    assert sorted(names) == sorted([("ClusterInformation", "default"), *tiers])
    information = await stored(kv, f"{RESOURCES}clusterinformations/default")
    assert information["spec"].keys() == {"clusterGUID", "datastoreReady"}
    assert re.fullmatch("[0-9a-f]{32}", str(information["spec"]["clusterGUID"]))
    tier = await stored(kv, f"{RESOURCES}tiers/kube-admin")
    assert (tier["spec"], tier["status"]) == ({"order": 1000, "defaultAction": "Pass"}, {})
    before = kv.revision
    assert await cluster.found(kv) == []
    assert kv.revision == before


IPAM = {
    "assignment/ipv4/block/10.0.0.0-26": {
        "cidr": "10.0.0.0/26",
        "affinity_claim_time": "t",
        "allocations": [None],
    },
    "host/n1/ipv6/block/fd00:1::-122": {"state": "confirmed", "deleted": False},
    "handle/net.C1": {"block": {"10.0.0.0/26": 1}, "deleted": False},
}


@pytest.mark.parametrize(
    ("word", "name", "spec"),
    [
        (
            "ipamblock",
            "10-0-0-0-26",
            {"cidr": "10.0.0.0/26", "affinityClaimTime": "t", "allocations": [None]},
        ),
        (
            "blockaffinities",
            "n1-fd00-1---122",
            {"node": "n1", "type": "host", "cidr": "fd00:1::/122", "state": "confirmed", "deleted": False},
        ),
        ("IPAMHandle", "net.C1", {"handleID": "net.C1", "block": {"10.0.0.0/26": 1}, "deleted": False}),
    ],
)
async def test_ipams_own_records_are_shown_and_written_by_nobody(word: str, name: str, spec: object) -> None:
    kv = FakeEtcd()
    await kv.commit(Txn((), tuple(Put(f"/calico/ipam/v2/{key}", json.dumps(v)) for key, v in IPAM.items())))
    kind = kinds.lookup(word)
    [one] = (await listing(kv, Resource, kind)).resources
    assert await get(kv, kind, [name]) == [one]
    assert shown(one) == {
        "kind": kind.name,
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": name, "resourceVersion": str(kv.revision)},
        "spec": spec,
    }
    with pytest.raises(NotFound, match="does not exist"):
        await get(kv, kind, ["other"])
    for change in (
        apply(given(one)),
        create(given(one)),
        delete_named(kind, name),
        delete_named(kind, "other"),
    ):
        with pytest.raises(
            ConfigError, match="is IPAM's own, and read-only; see `fabricctl ipam`; nothing was"
        ):
            await plan(kv, [change])


async def test_of_ipams_keys_those_that_only_old_tools_knew_are_no_records_that_cannot_be_read() -> None:
    kv = FakeEtcd()
    for key in ("host/n1", "host/n1/ipv4/block/10.0.0.0"):
        await kv.commit(Txn((), (Put(f"/calico/ipam/v2/{key}", "{}"),)))
    found = await listing(kv, Resource, kinds.lookup("blockaffinity"))
    assert (found.resources, list(found.unreadable)) == ((), ["/calico/ipam/v2/host/n1/ipv4/block/10.0.0.0"])


async def test_the_profile_that_allows_all_is_always_there_and_nobodys_to_change() -> None:
    kv, kind, name = FakeEtcd(), kinds.lookup("profile"), "projectcalico-default-allow"
    [profile] = (await listing(kv, Resource, kind)).resources
    assert await get(kv, kind, [name]) == [profile]
    assert shown(profile)["spec"] == {"ingress": [{"action": "Allow", "source": {}, "destination": {}}],
                                      "egress": [{"action": "Allow", "source": {}, "destination": {}}]}  # fmt: skip
    for change in (apply(given(profile)), replace(given(profile)), delete_named(kind, name)):
        with pytest.raises(ConfigError, match="is built in, and read-only; nothing was written"):
            await plan(kv, [change])


async def test_a_record_of_ipam_that_cannot_be_read_is_named_where_one_is_asked_for() -> None:
    kv = FakeEtcd()
    await kv.commit(Txn((), (Put("/calico/ipam/v2/handle/net.C1", "garbage"),)))
    with pytest.raises(NotFound, match=r"(?s)does not exist\n/calico/ipam/v2/handle/net\.C1: cannot be read"):
        await get(kv, kinds.lookup("ipamhandle"), ["net.C1"])
