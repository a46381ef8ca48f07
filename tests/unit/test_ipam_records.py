"""What stands beside blocks in etcd: configuration, affinities, handles; and the transaction that writes it all."""

import json
from datetime import UTC, datetime
from ipaddress import ip_network

import pytest

from fabric.errors import ConfigError
from fabric.ipam import block as blocks
from fabric.ipam import config
from fabric.ipam.config import IPAMConfig
from fabric.ipam.records import (
    AFFINITY_CONFIRMED,
    Affinity,
    Handle,
    affinity_from_json,
    handle_from_json,
    handle_to_json,
)
from fabric.ipam.view import Change
from fabric.store import ipam, keys
from fabric.store.kv import Delete, Guard, Put

A, B = ip_network("10.77.40.128/26"), ip_network("10.77.40.192/26")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param(
            '{"strict_affinity":true,"auto_allocate_blocks":true,"kubeVirtVMAddressPersistence":"Enabled"}',
            IPAMConfig(strict_affinity=True, rest={"kubeVirtVMAddressPersistence": "Enabled"}),
            id="as calicoctl wrote it",
        ),
        pytest.param(
            '{"strict_affinity":true,"auto_allocate_blocks":true,"maxBlocksPerHost":4,"ipCooldownSeconds":60}',
            IPAMConfig(strict_affinity=True, max_blocks=4, cooldown=60),
            id="all of it",
        ),
        pytest.param("{}", IPAMConfig(auto_allocate=False), id="what is left out is false and 0"),
    ],
)
def test_the_configuration_is_read_and_written_back_to_the_byte(text: str, want: IPAMConfig) -> None:
    assert config.from_json(text) == want
    assert config.to_json(want) == text


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", '{"strict_affinity":"yes"}', '{"maxBlocksPerHost":-1}', '{"ipCooldownSeconds":true}'],
)
def test_a_garbled_configuration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="stored IPAM configuration"):
        config.from_json(text)


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (AFFINITY_CONFIRMED, "confirmed"),
        ('{"state":"pending"}', "pending"),
        ('{"state":"pendingDeletion","deleted":false}', "pendingDeletion"),
        ('{"state":"confirmed","deleted":true}', "pendingDeletion"),
        ('{"state":""}', "confirmed"),
        ("{}", "confirmed"),
    ],
)
def test_an_affinity_without_a_state_is_an_old_one_and_confirmed(text: str, state: str) -> None:
    assert affinity_from_json(text, 7) == Affinity(state, 7)


def test_a_handle_is_written_as_it_is_read() -> None:
    seen = '{"block":{"10.77.40.128/26":1},"deleted":false}'
    handle = handle_from_json(seen, 7)
    assert handle == Handle({A: 1}, 7)
    assert handle_to_json(handle.counts) == seen
    assert handle_from_json('{"block":{"10.77.40.128/26":1},"deleted":true}', 7).counts == {}


@pytest.mark.parametrize(
    "text", ["", "[]", '{"block":{"x":1}}', '{"block":{"10.0.0.0/26":"many"}}', '{"block":[1]}']
)
def test_a_garbled_handle_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="stored handle"):
        handle_from_json(text, 7)


def test_a_garbled_handle_says_where() -> None:
    with pytest.raises(
        ConfigError, match=r'handle: block: 10\.0\.0\.0/26: expected a whole number, found "x"'
    ):
        handle_from_json('{"block":{"10.0.0.0/26":"x"}}', 7)


@pytest.mark.parametrize("text", ["", "[]", '"confirmed"'])
def test_a_garbled_affinity_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="stored affinity"):
        affinity_from_json(text, 7)


def test_a_transaction_guards_all_that_it_writes_at_the_revision_it_was_read() -> None:
    block = blocks.new(A, "n1", datetime(2026, 11, 21, tzinfo=UTC))
    change = Change(
        blocks={A: (block, 5), B: (None, 6)},
        affinities={("n1", A): (True, 0), ("n2", A): (False, 7)},
        handles={"new": {A: 1}, "grows": {A: 1, B: 1}, "goes": {B: -1}, "unknown": {B: -1}},
    )
    handles = {"grows": Handle({A: 1}, 8), "goes": Handle({B: 1}, 9)}
    txn = ipam.transaction(handles, change)
    block_a, block_b = keys.BlockKey(A).path, keys.BlockKey(B).path
    mine, theirs = keys.AffinityKey("n1", A).path, keys.AffinityKey("n2", A).path
    new, grows, goes, unknown = (keys.HandleKey(h).path for h in ("new", "grows", "goes", "unknown"))
    assert set(txn.guards) == {
        Guard(block_a, 5), Guard(block_b, 6), Guard(mine, 0), Guard(theirs, 7),
        Guard(new, 0), Guard(grows, 8), Guard(goes, 9), Guard(unknown, 0),
    }  # fmt: skip
    assert set(txn.ops) == {
        Put(block_a, blocks.to_json(block)), Delete(block_b), Put(mine, AFFINITY_CONFIRMED), Delete(theirs),
        Put(new, handle_to_json({A: 1})), Put(grows, handle_to_json({A: 2, B: 1})), Delete(goes),
    }  # fmt: skip


def test_changes_of_one_transaction_write_each_key_once_in_its_last_state() -> None:
    first = blocks.new(A, "n1", datetime(2026, 11, 21, tzinfo=UTC))
    last = blocks.touched(first)
    txn = ipam.transaction(
        {"web": Handle({A: 1}, 8)},
        Change({A: (first, 5)}, {("n1", A): (True, 6)}, {"web": {A: 1}}),
        Change({A: (None, 5)}, {("n1", A): (False, 6)}, {"web": {A: -2}}),
        Change({A: (last, 0)}, {("n1", A): (True, 0)}, {"web": {A: 1}}),
    )
    block, affinity, handle = (
        keys.BlockKey(A).path,
        keys.AffinityKey("n1", A).path,
        keys.HandleKey("web").path,
    )
    assert txn.guards == (Guard(block, 5), Guard(affinity, 6), Guard(handle, 8))
    assert [op.key for op in txn.ops] == [block, affinity, handle]
    assert txn.ops[0] == Put(block, blocks.to_json(last))
    assert json.loads(next(op.value for op in txn.ops if op.key == handle and isinstance(op, Put)))[
        "block"
    ] == {str(A): 1}
