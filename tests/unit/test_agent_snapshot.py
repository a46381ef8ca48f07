"""How keys become a snapshot, and which of two reports of one key wins."""

from datetime import UTC, datetime
from ipaddress import ip_network
from itertools import permutations

import pytest

from fabric.agent.snapshot import Snapshot, fold, written
from fabric.ipam import block as blocks
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from fabric.model.wire import to_json
from fabric.store import keys
from fabric.store.kv import Changes, Delete, KeyValue, Put, Txn

NODE = keys.ResourceKey("nodes", None, "n1").path
POOL = keys.ResourceKey("ippools", None, "pool").path
PREFIX = ip_network("10.0.0.0/30")
BLOCK = keys.BlockKey(PREFIX).path
AFFINITY = keys.AffinityKey("n1", PREFIX).path


def node(rack: str) -> str:
    return to_json(Node.model_validate({"metadata": {"name": "n1", "labels": {"rack": rack}}}))


def rack(snapshot: Snapshot) -> str | None:
    found = snapshot.get(Node, "n1")
    return found.metadata.labels["rack"] if found else None


def heard(revision: int, *puts: tuple[str, str], deletes: tuple[str, ...] = ()) -> Changes:
    return Changes(revision, tuple(KeyValue(key, value, revision) for key, value in puts), deletes)


def wrote(revision: int, *ops: Put | Delete) -> Changes:
    return written(Txn((), ops), revision)


def test_a_listing_then_changes_are_what_the_datastore_holds() -> None:
    snapshot = fold(Snapshot(), heard(5, (NODE, node("a"))))
    assert (rack(snapshot), snapshot.revision) == ("a", 5)
    snapshot = fold(snapshot, heard(6, (NODE, node("b"))))
    assert (rack(snapshot), snapshot.revision) == ("b", 6)
    snapshot = fold(snapshot, heard(7, deletes=(NODE,)))
    assert (rack(snapshot), snapshot.seen) == (None, {})


def test_an_older_event_never_overwrites_a_newer_write_of_our_own() -> None:
    snapshot = fold(
        fold(Snapshot(), heard(5, (NODE, node("a")))), wrote(8, Put(NODE, node("ours"))), watched=False
    )
    assert (rack(snapshot), snapshot.revision) == ("ours", 5)
    snapshot = fold(snapshot, heard(7, (NODE, node("older"))))
    assert rack(snapshot) == "ours"
    snapshot = fold(snapshot, heard(7, deletes=(NODE,)))
    assert rack(snapshot) == "ours"
    snapshot = fold(snapshot, heard(8, (NODE, node("ours"))))
    assert rack(snapshot) == "ours"
    assert rack(fold(snapshot, heard(9, (NODE, node("newer"))))) == "newer"


def test_what_we_deleted_does_not_come_back_by_an_older_event() -> None:
    snapshot = fold(fold(Snapshot(), heard(5, (NODE, node("a")))), wrote(8, Delete(NODE)), watched=False)
    assert rack(snapshot) is None
    assert rack(fold(snapshot, heard(7, (NODE, node("older"))))) is None


def test_the_memory_of_a_deletion_ends_when_the_watch_has_passed_it() -> None:
    snapshot = fold(fold(Snapshot(), heard(5, (NODE, node("a")))), wrote(8, Delete(NODE)), watched=False)
    assert snapshot.deleted == {NODE: 8}
    assert fold(snapshot, heard(8, deletes=(NODE,))).deleted == {}


def test_our_own_write_and_the_watch_may_come_in_any_order() -> None:
    base = fold(Snapshot(), heard(5, (NODE, node("a"))))
    events = [(heard(6, (NODE, node("b"))), True), (wrote(7, Put(NODE, node("ours"))), False)]
    for order in permutations(events):
        snapshot = base
        for changes, watched in order:
            snapshot = fold(snapshot, changes, watched=watched)
        assert rack(fold(snapshot, heard(7, (NODE, node("ours"))))) == "ours"


def test_an_etcd_restored_from_a_backup_is_believed_although_its_revisions_are_lower() -> None:
    snapshot = fold(Snapshot(), heard(100, (NODE, node("lost"))))
    restored = Changes(40, (KeyValue(NODE, node("restored"), 30),))
    assert (rack(fold(snapshot, restored)), fold(snapshot, restored).revision) == ("restored", 40)


def test_also_when_it_has_gone_on_past_the_revision_we_knew() -> None:
    snapshot = fold(Snapshot(), heard(100, (NODE, node("lost"))))
    assert rack(fold(snapshot, Changes(120, (KeyValue(NODE, node("restored"), 30),)))) == "restored"


@pytest.mark.parametrize(
    ("key", "garbage"),
    [
        (NODE, "garbage"),
        (NODE, '{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"n1"},"spec":7}'),
        (POOL, '{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"pool"}}'),
        (POOL, to_json(IPPool.model_validate({"metadata": {"name": "b"}, "spec": {"cidr": "10.0.0.0/8"}}))),
        (BLOCK, "{}"),
        (AFFINITY, "[]"),
        ("/calico/ipam/v2/host/n1/ipv4/block/zebra", "{}"),
        ("/calico/ipam/v2/assignment/ipv4/block/10.0.0.1-30", "{}"),
        ("/calico/ipam/v2/handle/a/b", "{}"),
        (f"{NODE}/more", node("a")),
    ],
)
def test_what_cannot_be_read_is_absent_and_reported_and_does_not_stop_the_rest(
    key: str, garbage: str
) -> None:
    other = keys.ResourceKey("nodes", None, "n2").path
    good = to_json(Node.model_validate({"metadata": {"name": "n2"}}))
    snapshot = fold(Snapshot(), heard(5, (key, garbage), (other, good)))
    assert snapshot.problems.keys() == {key}
    assert snapshot.get(Node, "n2")
    assert not snapshot.get(Node, "n1")
    assert not snapshot.all(IPPool)
    assert not snapshot.blocks
    assert not snapshot.affinities
    assert fold(snapshot, heard(6, deletes=(key,))).problems == {}


@pytest.mark.parametrize(
    "key",
    [
        "/calico/felix/v2/no-region/host/n1/status",
        "/calico/ipam/v2/host/n1",
        "/calico/ipam/v2/virtual/lb/ipv4/block/10.0.0.0-30",
        "/calico/resources/v3/projectcalico.org/zebras/a/b/c",
    ],
)
def test_what_else_calico_keeps_is_no_problem(key: str) -> None:
    assert fold(Snapshot(), heard(5, (key, "{}"))).problems == {}


def test_a_good_object_that_turns_bad_is_absent_until_it_is_mended() -> None:
    snapshot = fold(fold(Snapshot(), heard(5, (NODE, node("a")))), heard(6, (NODE, "garbage")))
    assert rack(snapshot) is None
    assert snapshot.problems.keys() == {NODE}
    snapshot = fold(snapshot, heard(7, (NODE, node("b"))))
    assert (rack(snapshot), snapshot.problems) == ("b", {})


def test_keys_that_are_not_ours_to_understand_are_remembered_and_left_alone() -> None:
    snapshot = fold(Snapshot(), heard(5, ("/calico/v1/Ready", "true")))
    assert (snapshot.problems, snapshot.resources) == ({}, {})


@pytest.mark.parametrize(
    ("value", "confirmed"),
    [
        ('{"state":"confirmed","deleted":false}', True),
        ('{"state":"pending"}', False),
        ('{"state":"pendingDeletion"}', False),
        ('{"state":""}', True),
        ("{}", True),
        ('{"state":"confirmed","deleted":true}', False),
    ],
)
def test_only_a_confirmed_affinity_counts_and_one_without_a_state_is_an_old_one(
    value: str, confirmed: bool
) -> None:
    snapshot = fold(Snapshot(), heard(5, (AFFINITY, value)))
    assert snapshot.affinities["n1", PREFIX].revision == 5
    assert snapshot.view("n1").confirmed(PREFIX) == confirmed
    assert not snapshot.view("n2").confirmed(PREFIX)


def test_blocks_come_with_the_revision_a_write_is_guarded_by() -> None:
    block = blocks.new(PREFIX, "n1", datetime(2026, 11, 21, tzinfo=UTC))
    snapshot = fold(Snapshot(), heard(5, (BLOCK, blocks.to_json(block))))
    assert (snapshot.blocks[PREFIX].block, snapshot.blocks[PREFIX].revision) == (block, 5)
    assert fold(snapshot, heard(6, deletes=(BLOCK,))).blocks == {}


def test_a_snapshot_is_never_changed_by_a_later_one() -> None:
    first = fold(Snapshot(), heard(5, (NODE, node("a"))))
    fold(first, heard(6, (NODE, node("b")), (POOL, "garbage")))
    assert (rack(first), first.revision, first.problems) == ("a", 5, {})


def test_our_own_write_that_the_watch_never_told_goes_when_a_later_listing_lacks_it() -> None:
    known = fold(fold(Snapshot(), heard(5, (NODE, node("r1")))), wrote(7, Put(POOL, "{}")), watched=False)
    relisted = Changes(9, present=frozenset({NODE}))
    assert POOL in known.seen
    after = fold(known, relisted)
    assert POOL not in after.seen
    assert rack(after) == "r1"


def test_our_own_write_that_is_newer_than_the_listing_stays() -> None:
    known = fold(fold(Snapshot(), heard(5, (NODE, node("r1")))), wrote(7, Put(POOL, "{}")), watched=False)
    assert POOL in fold(known, Changes(6, present=frozenset({NODE}))).seen
