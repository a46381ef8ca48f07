"""What a node that leaves gives back in IPAM, whatever state it was left in."""

from contextlib import nullcontext
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path

import pytest

from fabric.agent import upkeep
from fabric.config import Config
from fabric.errors import ConfigError, StoreError, Taken
from fabric.ipam import block as blocks
from fabric.ipam import config as ipam_config
from fabric.ipam.block import Owner
from fabric.ipam.config import IPAMConfig
from fabric.model.base import Resource
from fabric.model.clusterinformation import ClusterInformation
from fabric.model.node import Node
from fabric.ops.join import ID_ANNOTATION
from fabric.ops.leave import hand_back, leave, refuse_elsewhere
from fabric.store import keys
from fabric.store.cache import Journal, Origin
from fabric.store.kv import Delete, Put, Txn
from tests.fakes.node import MuteEtcd, pool, put, request, running

PREFIX = ip_network("10.0.0.0/30")
NOW = datetime(2026, 11, 21, tzinfo=UTC)
BLOCK = blocks.to_json(blocks.new(PREFIX, "n1", NOW))
OTHERS = blocks.to_json(blocks.new(PREFIX, "n2", NOW))


def affinity(state: str) -> str:
    return f'{{"state":"{state}","deleted":false}}'


async def left(kv: MuteEtcd) -> list[str]:
    return [item.key for item in (await kv.list(keys.IPAM)).items]


async def test_blocks_tunnel_addresses_and_handles_all_go() -> None:
    kv = MuteEtcd()
    await put(kv, pool("10.0.0.0/24", blockSize=28, ipipMode="Always", name="a"))
    await put(kv, pool("fd00::/112", "b", blockSize=124, vxlanMode="Always"))
    async with running(kv) as node:
        for number in range(20):
            await node.workloads.attach(request(f"w{number}", number))
        await upkeep.look_after(node.state, kv, {}, NOW)
        for number in range(20):
            await node.workloads.detach("default", f"w{number}")
        assert len([key for key in await left(kv) if key.startswith(keys.HANDLES)]) == 2
    lines = await hand_back("n1", kv)
    assert await left(kv) == []
    assert len(lines) >= 4
    assert await hand_back("n1", kv) == []


class Died(BaseException):
    """What a kill is to code in one process."""


class Dying(MuteEtcd):
    """The writer is killed when it wants to write once more than `writes`; None: it lives."""

    writes: int | None = None

    async def commit(self, txn: Txn) -> int:
        if self.writes == 0:
            raise Died
        if self.writes is not None:
            self.writes -= 1
        return await super().commit(txn)


@pytest.mark.parametrize("writes", range(5))
async def test_killed_after_any_write_and_run_again_it_leaves_nothing(writes: int) -> None:
    kv = Dying()
    await put(kv, pool("10.0.0.0/24", blockSize=30, ipipMode="Always"))
    async with running(kv) as node:
        for number in range(17):
            await node.workloads.attach(request(f"w{number}", number))
        await upkeep.look_after(node.state, kv, {}, NOW)
        # By hand, so that their addresses are left behind.
        for item in (await kv.list(keys.resources("workloadendpoints"))).items:
            await kv.commit(Txn((), (Delete(item.key),)))
    kv.writes = writes
    with pytest.raises(Died):
        await hand_back("n1", kv)
    kv.writes = None
    await hand_back("n1", kv)
    assert await left(kv) == []


@pytest.mark.parametrize(
    ("stored", "stays"),
    [
        pytest.param({keys.AffinityKey("n1", PREFIX).path: affinity("pending")}, set(), id="pending alone"),
        pytest.param(
            {keys.AffinityKey("n1", PREFIX).path: affinity("pending"), keys.BlockKey(PREFIX).path: BLOCK},
            set(),
            id="pending with its block",
        ),
        pytest.param(
            {
                keys.AffinityKey("n1", PREFIX).path: affinity("pendingDeletion"),
                keys.BlockKey(PREFIX).path: BLOCK,
            },
            set(),
            id="half released",
        ),
        pytest.param({keys.BlockKey(PREFIX).path: BLOCK}, set(), id="a block without a record"),
        pytest.param(
            {keys.AffinityKey("n1", PREFIX).path: affinity("confirmed"), keys.BlockKey(PREFIX).path: OTHERS},
            {keys.BlockKey(PREFIX).path},
            id="a stale record beside another's block",
        ),
        pytest.param(
            {keys.AffinityKey("n2", PREFIX).path: affinity("confirmed"), keys.BlockKey(PREFIX).path: OTHERS},
            {keys.BlockKey(PREFIX).path, keys.AffinityKey("n2", PREFIX).path},
            id="another's",
        ),
        pytest.param(
            {keys.HandleKey("vxlan-tunnel-addr-n1").path: '{"block":{"10.0.0.0/30":1},"deleted":false}'},
            set(),
            id="a handle no block knows",
        ),
        pytest.param(
            {keys.HandleKey("fabricctl.default.n2-fabricctl-a-eth0").path: '{"block":{},"deleted":false}'},
            {keys.HandleKey("fabricctl.default.n2-fabricctl-a-eth0").path},
            id="another's handle",
        ),
        pytest.param({keys.BlockKey(PREFIX).path: "garbage"}, {keys.BlockKey(PREFIX).path}, id="garbage"),
    ],
)
async def test_what_was_left_half_way_goes_and_others_stays(stored: dict[str, str], stays: set[str]) -> None:
    kv = MuteEtcd()
    await kv.commit(Txn((), tuple(Put(key, value) for key, value in stored.items())))
    lines = await hand_back("n1", kv)
    assert set(await left(kv)) == stays
    assert ("left alone" in "".join(lines)) is ("garbage" in stored.values())


async def test_addresses_of_other_nodes_in_its_block_stay_without_a_node() -> None:
    kv = MuteEtcd()
    block, address = blocks.allocate(blocks.new(PREFIX, "n1", NOW), Owner("cni.borrowed", {"node": "n2"}))
    await kv.commit(Txn((), (Put(keys.BlockKey(PREFIX).path, blocks.to_json(block)),)))
    await hand_back("n1", kv)
    item = await kv.get(keys.BlockKey(PREFIX).path)
    assert item
    after = blocks.from_json(item.value)
    assert (after.affinity, after.held_by("cni.borrowed")) == (None, (address,))


class Raced(MuteEtcd):
    """Somebody else writes the block first, `races` times."""

    races = 0

    async def commit(self, txn: Txn) -> int:
        self.contested = keys.BlockKey(PREFIX).path if self.races else ""
        self.races = max(0, self.races - 1)
        return await super().commit(txn)


async def test_a_race_for_its_block_is_decided_again() -> None:
    kv = Raced()
    stored = {
        keys.BlockKey(PREFIX).path: BLOCK,
        keys.AffinityKey("n1", PREFIX).path: affinity("confirmed"),
        keys.IPAM_CONFIG: ipam_config.to_json(IPAMConfig(cooldown=60)),
    }
    await kv.commit(Txn((), tuple(Put(key, value) for key, value in stored.items())))
    kv.races = 3
    await hand_back("n1", kv)
    assert await left(kv) == [keys.IPAM_CONFIG]


async def test_races_without_end_are_given_up_and_it_says_what_is_left() -> None:
    kv = Raced()
    await kv.commit(Txn((), (Put(keys.BlockKey(PREFIX).path, BLOCK),)))
    kv.races = 1000
    with pytest.raises(
        StoreError, match=r"node n1: 1 of its blocks and handles are still there .* leave` again"
    ):
        await hand_back("n1", kv)


async def test_without_etcd_the_node_stays_and_it_says_so() -> None:
    kv = MuteEtcd()
    kv.down = True
    with pytest.raises(
        StoreError, match=r"node n1: has not left, runs on and serves its workloads: .*etcd is down"
    ):
        await leave(Config(node="n1"), kv)


async def test_more_addresses_than_one_transaction_takes_go_too() -> None:
    kv = MuteEtcd()
    block = blocks.new(ip_network("10.0.0.0/24"), "n1", NOW)
    for number in range(250):
        handle = f"fabricctl.default.n1-fabricctl-w{number}-eth0"
        block, _ = blocks.allocate(block, Owner(handle))
        await kv.commit(Txn((), (Put(keys.HandleKey(handle).path, '{"block":{"10.0.0.0/24":1}}'),)))
    await kv.commit(Txn((), (Put(keys.BlockKey(block.prefix).path, blocks.to_json(block)),)))
    await hand_back("n1", kv)
    assert await left(kv) == []


def node_of(identity: str) -> Node:
    annotations = {ID_ANNOTATION: identity} if identity else {}
    return Node.model_validate({"metadata": {"name": "n1", "annotations": annotations}})


def information(guid: str) -> ClusterInformation:
    return ClusterInformation.model_validate({"metadata": {"name": "default"}, "spec": {"clusterGUID": guid}})


async def journal_of_a(path: Path) -> Journal:
    """The copy that a host has which joined cluster a as n1."""
    journal = Journal(path / "copy", Origin("n1", "id-1", ("fake",)))
    kv = MuteEtcd()
    await put(kv, information("a"))
    journal.begin(await kv.list("/"))
    return journal


@pytest.mark.parametrize(
    ("there", "said"),
    [
        pytest.param([information("a"), node_of("id-1")], "", id="as it joined"),
        pytest.param([information("a")], "", id="a leave that was broken off"),
        pytest.param([information("b"), node_of("id-1")], "", id="joined anew elsewhere"),
        pytest.param([], "no cluster.*nothing was changed.*node join", id="an empty etcd"),
        pytest.param([information("b")], "cluster b.*nothing was changed", id="another cluster"),
        pytest.param(
            [information("a"), node_of("id-2")],
            "host with id id-2.*nothing was changed",
            id="the name is another host's by now",
        ),
        pytest.param([information("a"), node_of("")], "", id="a Node that was made anew by hand"),
    ],
)
async def test_a_host_leaves_only_where_it_joined(there: list[Resource], said: str, tmp_path: Path) -> None:
    kv = MuteEtcd()
    for resource in there:
        await put(kv, resource)
    with pytest.raises((ConfigError, Taken), match=said) if said else nullcontext():
        await refuse_elsewhere(await journal_of_a(tmp_path), kv)


@pytest.mark.parametrize("text", [None, "garbage\n"], ids=["none", "garbage"])
async def test_without_a_copy_nothing_says_that_it_is_elsewhere(text: str | None, tmp_path: Path) -> None:
    if text:
        (tmp_path / "copy").write_text(text)
    await refuse_elsewhere(Journal(tmp_path / "copy", Origin("n1", "id-1", ("fake",))), MuteEtcd())
