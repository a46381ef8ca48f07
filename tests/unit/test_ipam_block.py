"""One block: Calico's JSON both ways, and what allocation and release make of it."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import ConfigError, Exhausted, NotFound, Taken
from fabric.ipam import block as blocks
from fabric.ipam.block import Block, Owner

PREFIX = ip_network("10.77.40.128/29")
AT = datetime(2026, 11, 21, 4, 16, 27, 334108, UTC)
NOW = 1795234587334108000
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
    return blocks.new(PREFIX, "n1", AT)


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
    document["attributes"][0]["novelty"] = {"of": "tomorrow"}
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
    assert after["attributes"][0]["novelty"] == {"of": "tomorrow"}
    cooling = after["attributes"][after["allocations"][36]]
    assert (cooling["handle_id"], cooling["releasedAt"]) == (None, "2026-11-21T04:20:00Z")


def test_a_new_block_starts_at_wall_clock_nanoseconds_and_is_all_free() -> None:
    block = fresh()
    assert (block.sequence, block.empty, block.node) == (NOW, True, "n1")
    assert block.free == tuple(range(8))


def test_a_block_that_belongs_to_no_node_says_so_in_json_too() -> None:
    orphan = blocks.without_affinity(fresh())
    assert orphan.node is None
    written = json.loads(blocks.to_json(orphan))
    assert written["affinity"] is None  # there, and null: how Calico writes it
    del written["affinity"]
    assert blocks.from_json(json.dumps(written)) == blocks.from_json(blocks.to_json(orphan)) == orphan
    assert replace(orphan, affinity="virtual:load-balancer").node is None


def test_addresses_are_given_out_in_order_and_the_one_free_the_longest_comes_next() -> None:
    block, first = blocks.allocate(fresh(), WEB)
    assert first == ip_address("10.77.40.128")
    block = blocks.release(block, first, "web", at=AT)
    given_out = []
    for _ in range(8):
        block, address = blocks.allocate(block, WEB)
        given_out.append(address)
    assert given_out == [ip_address("10.77.40.128") + i for i in (*range(1, 8), 0)]


def test_each_write_raises_the_sequence_and_an_allocation_keeps_the_one_it_was_made_at() -> None:
    block, first = blocks.allocate(fresh(), WEB)
    block, _ = blocks.allocate(block, DB)
    assert (block.sequence, block.sequences) == (NOW + 2, {0: NOW, 1: NOW + 1})
    block = blocks.release(block, first, "web", at=AT)
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


def test_only_the_holder_releases() -> None:
    block, address = blocks.allocate(fresh(), WEB)
    with pytest.raises(Taken, match="held by web, not held by db; it was left as it is"):
        blocks.release(block, address, "db", at=AT)
    assert blocks.release(block, address, None, at=AT).empty


@pytest.mark.parametrize("cooldown", [0, 60])
def test_what_nobody_holds_cannot_be_released_again(cooldown: int) -> None:
    block, address = blocks.allocate(fresh(), WEB)
    block = blocks.release(block, address, "web", at=AT, cooldown=cooldown)
    for handle in ("web", None):
        with pytest.raises(NotFound, match="nobody holds it"):
            blocks.release(block, address, handle, at=AT)


def test_a_release_that_names_the_allocation_spares_a_later_one_to_the_same_holder() -> None:
    first, address = blocks.allocate(fresh(), WEB)
    again = blocks.allocate_exact(blocks.release(first, address, "web", at=AT), address, WEB)
    with pytest.raises(Taken, match=f"sequence number {NOW + 2}, not {NOW}"):
        blocks.release(again, address, "web", NOW, at=AT)
    assert blocks.release(again, address, "web", NOW + 2, at=AT).empty


def test_an_address_cools_down_before_it_is_free_again_and_goes_to_the_tail() -> None:
    block, address = blocks.allocate(fresh(), replace(WEB, alternate={"pod": "x"}))
    cooling = blocks.release(block, address, "web", at=AT, cooldown=60)
    assert (cooling.empty, cooling.held_by("web"), cooling.sequence) == (False, (), NOW + 2)
    [attribute] = json.loads(blocks.to_json(cooling))["attributes"]
    assert (attribute["handle_id"], attribute["releasedAt"]) == (None, "2026-11-21T04:16:27Z")
    with pytest.raises(Taken, match="cooling down"):
        blocks.allocate_exact(cooling, address, DB)
    assert blocks.cooled(cooling, AT + timedelta(seconds=59), 60) is cooling
    free = blocks.cooled(cooling, AT + timedelta(seconds=60), 60)
    assert (free.empty, free.free) == (True, (1, 2, 3, 4, 5, 6, 7, 0))


def test_what_cooled_down_first_is_given_out_first() -> None:
    block = fresh()
    for _ in range(8):
        block, _ = blocks.allocate(block, WEB)
    for second, ordinal in enumerate((5, 2, 7)):
        at = AT + timedelta(seconds=second)
        block = blocks.release(block, block.address(ordinal), "web", at=at, cooldown=60)
    assert blocks.cooled(block, AT + timedelta(seconds=61), 60).free == (5, 2)
    assert blocks.cooled(block, AT + timedelta(seconds=90), 60).free == (5, 2, 7)


def test_reserved_addresses_stay_in_the_queue_where_they_are() -> None:
    reserved = (ip_network("10.77.40.128/31"), ip_network("10.77.40.131/32"), ip_network("fd00::/64"))
    block, address = blocks.allocate(fresh(), WEB, reserved)
    assert address == ip_address("10.77.40.130")
    assert block.free == (0, 1, 3, 4, 5, 6, 7)
    with pytest.raises(Exhausted, match="held or reserved"):
        blocks.allocate(block, WEB, (ip_network("10.77.0.0/16"),))


def test_a_block_whose_deletion_is_announced_gives_out_nothing_and_stays_so() -> None:
    document = json.loads(SEEN) | {"deleted": True}
    block = blocks.from_json(json.dumps(document))
    with pytest.raises(Exhausted):
        blocks.allocate(block, WEB)
    assert json.loads(blocks.to_json(block))["deleted"] is True


@pytest.mark.parametrize("prefix", ["10.0.0.7/32", "fd00::7/128"])
def test_a_block_may_be_one_address(prefix: str) -> None:
    block, address = blocks.allocate(blocks.new(ip_network(prefix), "n1", AT), WEB)
    assert (address, block.free) == (ip_network(prefix).network_address, ())
    assert blocks.from_json(blocks.to_json(block)) == block


@pytest.mark.parametrize(
    ("claimed", "old"),
    [("2026-11-21T04:16:27Z", True), ("2026-11-21T04:16:28Z", False), ("", True), ("yesterday", True)],
)
def test_a_block_that_does_not_say_when_it_was_claimed_is_an_old_one(claimed: str, old: bool) -> None:
    assert replace(fresh(), claimed_at=claimed).claimed_before(AT) == old


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[7]", "stored block: expected a JSON object, found a list"),
        ('{"cidr":\n}', "stored block: not JSON from line 2, column 1 on"),
        ('{"cidr":7}', "stored block: cidr: expected a text, found 7"),
        ('{"cidr":"10.0.0.0/31"}', "stored block: allocations: expected a list, found none"),
        (
            '{"cidr":"10.0.0.1/31","allocations":[],"unallocated":[]}',
            'stored block: cidr: expected a prefix without host bits, found "10.0.0.1/31"',
        ),
        (
            '{"cidr":"10.0.0.0/31","allocations":[0],"unallocated":[],"attributes":[7]}',
            "stored block: attributes[0]: expected an object, found 7",
        ),
        (
            '{"cidr":"10.0.0.0/31","allocations":[0],"unallocated":[],"attributes":[{"releasedAt":"now"}]}',
            'stored block: attributes[0].releasedAt: expected a time like 2026-01-31T12:00:00Z, found "now"',
        ),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_the_document(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        blocks.from_json(text)
    assert str(caught.value) == said


handles = st.sampled_from(["a", "b", "c"])
steps = st.lists(
    st.tuples(st.sampled_from(["give", "exact", "take", "cool", "later"]), handles, st.integers(0, 7)),
    max_size=40,
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
                case "cool":
                    block = blocks.release(block, address, handle, at=AT, cooldown=60)
                case "later":
                    block = blocks.cooled(block, AT + timedelta(seconds=60), 60)
                case _:
                    block = blocks.release(block, address, handle, at=AT)
        except (Exhausted, Taken, NotFound):
            assert block is before
        else:
            assert block is before or block.sequence == before.sequence + 1
        held = {i for i, owner in enumerate(block.owners) if owner}
        assert sorted((*held, *block.free)) == list(range(8))
        assert block.sequences.keys() == held
        assert blocks.from_json(blocks.to_json(block)) == block
