"""Whatever stands in etcd, the agent's snapshot has it or says why not; nothing of it stops the rest."""

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fabric.agent.snapshot import Snapshot, fold
from fabric.errors import ConfigError, FabricError
from fabric.ipam import block as blocks
from fabric.ipam import config
from fabric.ipam.assign import Demand, automatic
from fabric.ipam.block import Owner
from fabric.ipam.records import affinity_from_json, handle_from_json
from fabric.model import wire
from fabric.store import keys
from fabric.store.kv import Changes, KeyValue
from tests.unit.test_fuzz_files import TREES, awkward, mutated, paths

BLOCK: dict[str, Any] = {
    "cidr": "10.0.0.0/30",
    "affinity": "host:n1",
    "affinity_claim_time": "2026-11-21T04:16:27Z",
    "allocations": [0, 1, None, None],
    "unallocated": [2, 3],
    "attributes": [
        {"handle_id": "h", "secondary": {"node": "n1", "timestamp": "2026-11-21 04:16:27.3 +0000 UTC"}},
        {"handle_id": None, "secondary": None, "releasedAt": "2026-11-21T04:16:27Z"},
    ],
    "sequenceNumber": 7,
    "sequenceNumberForAllocation": {"0": 6},
    "deleted": False,
}
AFFINITY = {"state": "confirmed", "deleted": False}
HANDLE = {"handle_id": "h", "block": {"10.0.0.0/30": 1}, "deleted": False}
CONFIG = {"strict_affinity": True, "auto_allocate_blocks": True, "maxBlocksPerHost": 3}

READERS: list[tuple[Callable[[str], object], dict[str, Any]]] = [
    (wire.from_json, TREES[-1]),
    (blocks.from_json, BLOCK),
    (lambda text: affinity_from_json(text, 1), AFFINITY),
    (lambda text: handle_from_json(text, 1), HANDLE),
    (config.from_json, CONFIG),
]
IDS = ["resource", "block", "affinity", "handle", "configuration"]

PREFIX = ip_network("10.0.0.0/30")
KEYS = [
    keys.ResourceKey("ippools", None, "pods").path,
    keys.ResourceKey("workloadendpoints", "shop", "web").path,
    keys.ResourceKey("nodes", None, "n1").path,
    keys.BlockKey(PREFIX).path,
    keys.AffinityKey("n1", PREFIX).path,
    keys.HandleKey("h").path,
    keys.IPAM_CONFIG,
]


@st.composite
def changed(draw: st.DrawFn, sound: dict[str, Any]) -> str:
    """A sound document with some of its values replaced or removed, as JSON."""
    value = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, 3))):
        *above, step = draw(st.sampled_from([path for path in paths(value) if path] or [("a",)]))
        parent: Any = value
        for part in above:
            parent = parent[part]
        if draw(st.booleans()):
            parent[step] = copy.deepcopy(draw(awkward))
        else:
            parent[step] = None
    return json.dumps(value)


fuzzing = settings(max_examples=300, deadline=None)


@fuzzing
@pytest.mark.parametrize(("read", "sound"), READERS, ids=IDS)
@given(data=st.data())
def test_a_changed_document_is_read_or_is_a_config_error(
    read: Callable[[str], object], sound: dict[str, Any], data: st.DataObject
) -> None:
    read(json.dumps(sound))
    text = data.draw(changed(sound))
    with suppress(ConfigError):
        read(text)


@fuzzing
@pytest.mark.parametrize("read", [read for read, _ in READERS], ids=IDS)
@given(text=st.text(max_size=40))
@example(text="[" * 100_000)
@example(text='{"a":' * 100_000)
@example(text="NaN")
@example(text="1" * 10_000)
@example(text='{"cidr": "10.0.0.0/30", "a": "\\ud800"}')
@example(text='"\ud800"')
def test_any_text_is_read_or_is_a_config_error(read: Callable[[str], object], text: str) -> None:
    with suppress(ConfigError):
        read(text)


POOL = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "IPPool",
    "metadata": {"name": "sound"},
    "spec": {"cidr": "10.0.0.0/28", "blockSize": 30},
}
SOUND_POOL = keys.ResourceKey("ippools", None, "sound").path
AT = datetime(2026, 11, 21, tzinfo=UTC)

texts = (
    st.text(max_size=40)
    | mutated().map(json.dumps)
    | st.sampled_from([BLOCK, AFFINITY, HANDLE, CONFIG]).flatmap(changed)
)
ours = st.sampled_from(
    [
        (keys.BlockKey(PREFIX).path, BLOCK),
        (keys.AffinityKey("n1", PREFIX).path, AFFINITY),
        (keys.HandleKey("h").path, HANDLE),
        (keys.IPAM_CONFIG, CONFIG),
    ]
)
fitting = ours.flatmap(
    lambda pair: st.tuples(st.just(pair[0]), changed(pair[1]) | st.just(json.dumps(pair[1])))
)
anywhere = st.tuples(st.sampled_from(KEYS) | st.text(max_size=30).map(keys.CALICO.__add__), texts)


@settings(fuzzing, max_examples=600)
@given(items=st.lists(fitting | anywhere, max_size=8))
def test_any_datastore_folds_into_a_snapshot_that_addresses_can_be_taken_from(
    items: list[tuple[str, str]],
) -> None:
    puts = tuple(KeyValue(key, text, revision) for revision, (key, text) in enumerate(items, 2))
    snapshot = fold(Snapshot(), Changes(len(puts) + 1, (KeyValue(SOUND_POOL, json.dumps(POOL), 1), *puts)))
    assert snapshot.problems.keys() <= {key for key, _ in items}
    with suppress(FabricError):
        taken = automatic(snapshot.view("n1"), 4, Demand(Owner("mine")), AT)
        for block, _ in taken.change.blocks.values():
            assert block is None or blocks.from_json(blocks.to_json(block)).prefix == block.prefix
    emptied = fold(snapshot, Changes(len(puts) + 2, deletes=(SOUND_POOL, *(key for key, _ in items))))
    assert (emptied.seen, emptied.problems, emptied.blocks) == ({}, {}, {})
    assert not any(emptied.resources.values())
