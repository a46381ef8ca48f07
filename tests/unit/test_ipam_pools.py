"""Which pools may be stored, and how one is taken out of use."""

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from fabric.ipam import block as blocks
from fabric.ipam import pools
from fabric.ipam.block import Block, Owner
from fabric.ipam.records import Affinity
from fabric.ipam.view import Stored, View, after, joined
from fabric.model.ippool import IPPool

NOW = datetime(2026, 11, 21, 4, 16, 27, tzinfo=UTC)
HOSTS = (
    ("interface eth0 of node n1", ip_network("192.0.2.0/24")),
    ("interface eth0 of node n2", ip_network("fd00:1::/64")),
)

OVER_A_HOST = (
    "cidr 192.0.0.0/16 overlaps the subnet 192.0.2.0/24 of interface eth0 of node n1: a container could get "
    "the address of a host"
)


def pool(cidr: str, name: str = "a", **spec: object) -> IPPool:
    return IPPool.model_validate({"metadata": {"name": name}, "spec": {"cidr": cidr, **spec}})


def block(prefix: str, node: str, *, used: bool = False) -> Block:
    made = blocks.new(ip_network(prefix), node, NOW)
    return blocks.allocate(made, Owner("web"))[0] if used else made


def view(stored: list[IPPool], *held: Block) -> View:
    return View(
        node="",
        labels={},
        pools=tuple(stored),
        blocks={b.prefix: Stored(b, 7) for b in held},
        affinities={(b.node, b.prefix): Affinity("confirmed", 5) for b in held if b.node},
    )


@pytest.mark.parametrize(
    ("stored", "wanted", "why"),
    [
        pytest.param([], [pool("10.0.0.0/16")], {}, id="a first pool"),
        pytest.param(
            [pool("10.0.0.0/16", "a")],
            [pool("10.0.128.0/17", "b")],
            {"b": ("cidr 10.0.128.0/17 overlaps IPPool a (10.0.0.0/16)",)},
            id="inside another",
        ),
        pytest.param(
            [],
            [pool("10.0.0.0/16", "a"), pool("10.0.0.0/8", "b")],
            {
                "a": ("cidr 10.0.0.0/16 overlaps IPPool b (10.0.0.0/8)",),
                "b": ("cidr 10.0.0.0/8 overlaps IPPool a (10.0.0.0/16)",),
            },
            id="two of one file",
        ),
        pytest.param([pool("10.0.0.0/16", "a")], [pool("fd00::/48", "b")], {}, id="another family"),
        pytest.param(
            [pool("10.0.0.0/16", "a")],
            [pool("10.1.0.0/16", "a"), pool("10.0.0.0/16", "b")],
            {},
            id="places swapped",
        ),
        pytest.param(
            [],
            [pool("192.0.0.0/16")],
            {"a": (OVER_A_HOST,)},
            id="over a host",
        ),
        pytest.param(
            [pool("192.0.0.0/16")], [pool("192.0.0.0/16", disabled=True)], {}, id="over a host since before"
        ),
    ],
)
def test_which_pools_may_be_stored(
    stored: list[IPPool], wanted: list[IPPool], why: dict[str, tuple[str, ...]]
) -> None:
    assert pools.refusals(view(stored), wanted, HOSTS) == why


RESIZED = [
    pytest.param({"blockSize": 27}, "blockSize 26 may not become 27", id="blockSize"),
    pytest.param({"cidr": "10.0.0.0/17"}, "cidr 10.0.0.0/16 may not become 10.0.0.0/17", id="smaller"),
    pytest.param({"cidr": "10.0.0.0/15"}, "cidr 10.0.0.0/16 may not become 10.0.0.0/15", id="larger"),
    pytest.param({"cidr": "10.9.0.0/16"}, "cidr 10.0.0.0/16 may not become 10.9.0.0/16", id="elsewhere"),
]


@pytest.mark.parametrize(("spec", "why"), RESIZED)
def test_a_pool_is_not_resized_under_blocks_and_they_are_named(spec: dict[str, Any], why: str) -> None:
    held = [block(f"10.0.0.{64 * i}/26", "n1") for i in range(4)]
    held += [block(f"10.0.1.{64 * i}/26", "n2") for i in range(2)]
    held += [blocks.without_affinity(block("10.0.2.0/26", "n3", used=True)), block("10.99.0.0/26", "n9")]
    wanted = pool(**{"cidr": "10.0.0.0/16", **spec})
    [reason] = pools.refusals(view([pool("10.0.0.0/16")], *held), [wanted])["a"]
    assert reason.startswith(
        f"{why} while blocks of the pool are claimed: 10.0.0.0/26 (n1), 10.0.0.64/26 (n1), "
    )
    assert " and 2 more; a node's count: n1: 4, n2: 2, no node: 1; make a new pool" in reason


def test_a_claim_whose_block_is_not_there_yet_keeps_the_pool_from_being_resized() -> None:
    begun = {("n2", ip_network("10.0.0.0/26")): Affinity("pending", 5)}
    seen = replace(view([pool("10.0.0.0/16")]), affinities=begun)
    assert "10.0.0.0/26 (n2)" in pools.refusals(seen, [pool("10.0.0.0/16", blockSize=27)])["a"][0]


def test_a_pool_is_not_moved_over_blocks_that_another_one_left_behind() -> None:
    left = block("10.9.0.0/26", "n2", used=True)
    [why] = pools.refusals(view([pool("10.0.0.0/16")], left), [pool("10.9.0.0/16")])["a"]
    assert "10.9.0.0/26 (n2)" in why


def test_a_pool_that_would_cover_another_one_is_not_told_of_that_ones_blocks() -> None:
    other = pool("10.9.0.0/16", "b")
    seen = view([pool("10.0.0.0/16"), other], block("10.9.0.0/26", "n2", used=True))
    assert pools.refusals(seen, [pool("10.0.0.0/8")]) == {
        "a": ("cidr 10.0.0.0/8 overlaps IPPool b (10.9.0.0/16)",)
    }


@pytest.mark.parametrize(("spec", "why"), RESIZED)
def test_a_pool_that_nobody_has_claimed_of_may_be_resized(spec: dict[str, Any], why: str) -> None:
    seen = view([pool("10.0.0.0/16")], block("10.99.0.0/26", "n1"))
    assert pools.refusals(seen, [pool(**{"cidr": "10.0.0.0/16", **spec})]) == {}, why


def test_what_is_no_resize_is_allowed_at_any_time() -> None:
    changed = pool("10.0.0.0/16", disabled=True, natOutgoing=True, nodeSelector="rack == 'a'")
    assert pools.refusals(view([pool("10.0.0.0/16")], block("10.0.0.0/26", "n1")), [changed]) == {}


def test_a_pool_that_goes_takes_every_claim_out_and_leaves_addresses_in_use() -> None:
    gone, used = block("10.0.0.0/26", "n1"), block("10.0.0.64/26", "n2", used=True)
    elsewhere = block("10.1.0.0/26", "n1")
    stale = {("n3", ip_network("10.0.1.0/26")): Affinity("pending", 5)}
    seen = view([pool("10.0.0.0/16")], gone, used, elsewhere)
    seen = replace(seen, affinities={**seen.affinities, **stale})
    then = after(seen, joined(pools.releases(seen, pool("10.0.0.0/16"))))
    assert set(then.affinities) == {("n1", elsewhere.prefix)}
    assert set(then.blocks) == {used.prefix, elsewhere.prefix}
    assert then.blocks[used.prefix].block.affinity is None
    assert pools.in_use(then, pool("10.0.0.0/16")) == (ip_address("10.0.0.64"),)
    assert pools.releases(then, pool("10.0.0.0/16")) == ()


def test_a_disabled_pool_is_the_same_in_all_else() -> None:
    before = pool("10.0.0.0/16", ipipMode="Always", natOutgoing=True)
    assert pools.disabled(before) == pool("10.0.0.0/16", ipipMode="Always", natOutgoing=True, disabled=True)
