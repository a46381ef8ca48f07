"""One block: Calico's JSON both ways, and what allocation and release make of it."""

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import ConfigError, Exhausted, NotFound, Taken
from fabric.ipam import block as blocks
from fabric.ipam.block import Block, Owner

PREFIX = ip_network("10.77.40.128/29")
NOW = 1795228857768900375
WEB = Owner("web", {"node": "n1"})
DB = Owner("db", {"node": "n1"})

# As its tools were seen to write it (calico-wire): the 36th address is held, so it is no longer in the queue.
SEEN = (
    '{"cidr":"10.77.40.128/26","affinity":"host:n1","affinity_claim_time":"2026-11-21T04:16:27Z","allocations":['
    + ",".join("0" if i == 35 else "null" for i in range(64))
    + '],"unallocated":['
    + ",".join(str(i) for i in (*range(36, 64), *range(35)))
    + '],"attributes":[{"handle_id":"caliconet.czz001","secondary":{"node":"n1","timestamp":'
    '"2026-11-21 04:16:27.334108857 +0000 UTC"}}],"sequenceNumber":1795228857768900376,'
    '"sequenceNumberForAllocation":{"35":1795228857768900375},"deleted":false}'
)


def fresh() -> Block:
    return blocks.new(PREFIX, "n1", NOW, "2026-11-21T04:16:27Z")


def test_a_block_of_calicos_is_read_and_written_back_to_the_byte() -> None:
    block = blocks.from_json(SEEN)
    assert blocks.to_json(block) == SEEN
    assert block.node == "n1"
    assert block.held_by("caliconet.czz001") == (ip_address("10.77.40.163"),)
    assert block.free[0] == 36


def test_what_other_versions_write_survives_our_update() -> None:
    document = json.loads(SEEN)
    document["hostReservedAttr"] = {"startOfBlock": 3}
    document["attributes"][0]["alternateOwnerAttrs"] = {"pod": "x"}
    document["attributes"].append(
        {"handle_id": None, "secondary": None, "releasedAt": "2026-11-21T04:20:00Z"}
    )
    document["allocations"][36] = 1
    document["unallocated"].remove(36)
    block, address = blocks.allocate(blocks.from_json(json.dumps(document)), WEB)
    after = json.loads(blocks.to_json(block))
    assert address == ip_address("10.77.40.165")
    assert after["hostReservedAttr"] == {"startOfBlock": 3}
    assert after["attributes"][0]["alternateOwnerAttrs"] == {"pod": "x"}
    cooling = after["attributes"][after["allocations"][36]]
    assert (cooling["handle_id"], cooling["releasedAt"]) == (None, "2026-11-21T04:20:00Z")


def test_a_new_block_starts_at_wall_clock_nanoseconds_and_is_all_free() -> None:
    block = fresh()
    assert (block.sequence, block.empty, block.node) == (NOW, True, "n1")
    assert block.free == tuple(range(8))


def test_a_block_that_belongs_to_no_node_says_so_in_json_too() -> None:
    orphan = blocks.without_affinity(fresh())
    assert orphan.node is None
    assert "affinity" not in json.loads(blocks.to_json(orphan))
    assert replace(orphan, affinity="virtual:load-balancer").node is None


def test_addresses_are_given_out_in_order_and_the_one_free_the_longest_comes_next() -> None:
    block, first = blocks.allocate(fresh(), WEB)
    assert first == ip_address("10.77.40.128")
    block = blocks.release(block, first, "web")
    given_out = []
    for _ in range(8):
        block, address = blocks.allocate(block, WEB)
        given_out.append(address)
    assert given_out == [ip_address("10.77.40.128") + i for i in (*range(1, 8), 0)]


def test_each_write_raises_the_sequence_and_an_allocation_keeps_the_one_it_was_made_at() -> None:
    block, first = blocks.allocate(fresh(), WEB)
    block, _ = blocks.allocate(block, DB)
    assert (block.sequence, block.sequences) == (NOW + 2, {0: NOW, 1: NOW + 1})
    block = blocks.release(block, first, "web")
    assert (block.sequence, block.sequences) == (NOW + 3, {1: NOW + 1})


def test_a_full_block_says_so() -> None:
    block = fresh()
    for _ in range(8):
        block, _ = blocks.allocate(block, WEB)
    with pytest.raises(Exhausted, match="all 8 addresses are held"):
        blocks.allocate(block, WEB)


def test_an_exact_address_leaves_the_queue_wherever_it_stood() -> None:
    block = blocks.allocate_exact(fresh(), ip_address("10.77.40.131"), WEB)
    assert block.free == (0, 1, 2, 4, 5, 6, 7)
    assert block.held_by("web") == (ip_address("10.77.40.131"),)


def test_an_exact_address_that_is_held_names_its_holder() -> None:
    block = blocks.allocate_exact(fresh(), ip_address("10.77.40.131"), WEB)
    with pytest.raises(Taken, match=r"10\.77\.40\.131: held by web on n1"):
        blocks.allocate_exact(block, ip_address("10.77.40.131"), DB)


@pytest.mark.parametrize("handle", ["db", "web"])
def test_only_the_holder_releases(handle: str) -> None:
    block, address = blocks.allocate(fresh(), WEB)
    if handle == "web":
        block = blocks.release(block, address, "web")
    with pytest.raises(NotFound, match=f"not held by {handle}"):
        blocks.release(block, address, handle)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '"block"',
        "{}",
        '{"cidr":"10.0.0.0/30"}',
        '{"cidr":"10.0.0.1/30","allocations":[null,null,null,null],"unallocated":[0,1,2,3]}',
        pytest.param('{"cidr":"10.0.0.0/30","allocations":[null],"unallocated":[0]}', id="too few ordinals"),
        pytest.param(
            '{"cidr":"10.0.0.0/30","allocations":[0,null,null,null],"unallocated":[1,2,3],"attributes":[]}',
            id="an owner that is not there",
        ),
        pytest.param(
            '{"cidr":"10.0.0.0/31","allocations":[0,null],"unallocated":[0,1],"attributes":[{"handle_id":"a"}]}',
            id="held and free at once",
        ),
        pytest.param('{"cidr":"10.0.0.0/31","allocations":[null,null],"unallocated":[0,0]}', id="free twice"),
        pytest.param('{"cidr":"10.0.0.0/31","allocations":[null,null],"unallocated":[2]}', id="free outside"),
        pytest.param('{"cidr":"10.0.0.0/31","allocations":[null,null],"unallocated":["0"]}', id="a text"),
    ],
)
def test_garbage_is_refused_as_a_whole(text: str) -> None:
    with pytest.raises(ConfigError, match="stored block"):
        blocks.from_json(text)


handles = st.sampled_from(["a", "b", "c"])
steps = st.lists(
    st.tuples(st.sampled_from(["give", "exact", "take"]), handles, st.integers(0, 7)), max_size=40
)


@given(steps)
def test_free_and_held_are_always_a_partition_and_json_forgets_nothing(
    walk: list[tuple[str, str, int]],
) -> None:
    block = fresh()
    for verb, handle, ordinal in walk:
        before, address = block, block.address(ordinal)
        try:
            match verb:
                case "give":
                    block, _ = blocks.allocate(block, Owner(handle))
                case "exact":
                    block = blocks.allocate_exact(block, address, Owner(handle))
                case _:
                    block = blocks.release(block, address, handle)
        except (Exhausted, Taken, NotFound):
            assert block is before
        else:
            assert block.sequence == before.sequence + 1
        held = {i for i, owner in enumerate(block.owners) if owner}
        assert sorted((*held, *block.free)) == list(range(8))
        assert block.sequences.keys() == held
        assert blocks.from_json(blocks.to_json(block)) == block
