"""Which address a workload gets; see calico-semantics §§5 and 6."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from fabric.errors import ConfigError, Exhausted, Taken
from fabric.ipam import block as blocks
from fabric.ipam.assign import (
    Assignment,
    Stored,
    View,
    automatic,
    candidate_pools,
    exact,
    own_blocks,
    walk,
)
from fabric.ipam.block import Block, Owner
from fabric.ipam.types import Prefix
from fabric.model.ippool import IPPool

WEB = Owner("web", {"node": "n1"})
AT = (1_000, "2026-11-21T04:16:27Z")


def pool(cidr: str, name: str = "pool", **spec: object) -> IPPool:
    size = {"blockSize": 30} if ":" not in cidr else {}
    return IPPool.model_validate({"metadata": {"name": name}, "spec": {"cidr": cidr, **size, **spec}})


def full(block: Block) -> Block:
    while block.free:
        block, _ = blocks.allocate(block, Owner("other", {"node": "n2"}))
    return block


def block(prefix: str, node: str = "n1") -> Block:
    return blocks.new(ip_network(prefix), node, *AT)


def view(pools: list[IPPool], *held: Block, confirmed: bool = True) -> View:
    mine = [b.prefix for b in held if b.node == "n1"]
    return View(
        "n1",
        {"rack": "a"},
        tuple(pools),
        {b.prefix: Stored(b, 7) for b in held},
        dict.fromkeys(mine, (confirmed, 5)),
    )


def auto(seen: View, version: int = 4) -> Assignment:
    return automatic(seen, version, WEB, *AT)


def test_an_own_block_serves_before_a_new_one_is_claimed() -> None:
    made = auto(view([pool("10.0.0.0/28")], block("10.0.0.8/30")))
    assert made.address == ip_address("10.0.0.8")
    assert (made.revision, made.claims) == (7, False)


def test_a_full_own_block_leads_to_a_claim_of_one_nobody_has() -> None:
    made = auto(view([pool("10.0.0.0/29")], full(block("10.0.0.4/30"))))
    assert made.block.prefix == ip_network("10.0.0.0/30")
    assert (made.revision, made.claims, made.affinity_revision) == (0, True, 0)
    assert made.block.node == "n1"


def test_an_affinity_left_without_its_block_is_claimed_over_at_its_revision() -> None:
    seen = replace(view([pool("10.0.0.0/30")]), affinities={ip_network("10.0.0.0/30"): (False, 9)})
    assert auto(seen).affinity_revision == 9


def test_a_block_whose_affinity_is_not_confirmed_is_neither_announced_nor_used() -> None:
    pending = view([pool("10.0.0.0/29")], block("10.0.0.0/30"), confirmed=False)
    assert own_blocks(pending) == ()
    assert auto(pending).block.prefix == ip_network("10.0.0.4/30")


def test_another_nodes_block_is_left_alone_even_when_it_has_room() -> None:
    seen = view([pool("10.0.0.0/29")], block("10.0.0.0/30", "n2"))
    assert auto(seen).block.prefix == ip_network("10.0.0.4/30")


def test_an_own_block_outside_every_candidate_pool_is_not_used() -> None:
    made = auto(view([pool("10.0.0.0/30")], block("10.9.0.0/30")))
    assert made.address == ip_address("10.0.0.0")


def test_exhaustion_says_which_pools_were_looked_at_and_what_to_do() -> None:
    seen = view([pool("10.0.0.0/29", "small")], full(block("10.0.0.0/30")), block("10.0.0.4/30", "n2"))
    with pytest.raises(Exhausted, match=r"node n1: no address left in small \(10\.0\.0\.0/29\).*add a pool"):
        auto(seen)


def test_the_next_pool_serves_when_the_first_is_full() -> None:
    pools = [pool("10.1.0.0/30", "b"), pool("10.0.0.0/30", "a")]
    assert auto(view(pools)).address == ip_address("10.0.0.0")
    assert auto(view(pools, full(block("10.0.0.0/30")))).address == ip_address("10.1.0.0")


@pytest.mark.parametrize("old", ["10.0.0.0/29", "10.0.0.2/31"])
def test_a_block_of_another_size_left_by_an_older_pool_is_never_claimed_over(old: str) -> None:
    assert auto(view([pool("10.0.0.0/28")], block(old, "n2"))).block.prefix.overlaps(ip_network(old)) is False
    with pytest.raises(Exhausted):
        auto(view([pool("10.0.0.0/30")], block(old, "n2")))


@pytest.mark.parametrize(
    ("spec", "serves"),
    [
        pytest.param({}, True, id="as it comes"),
        pytest.param({"nodeSelector": "rack == 'a'"}, True, id="nodeSelector matches"),
        pytest.param({"nodeSelector": "rack == 'b'"}, False, id="nodeSelector does not"),
        pytest.param({"disabled": True}, False, id="disabled"),
        pytest.param({"assignmentMode": "Manual"}, False, id="Manual"),
        pytest.param({"allowedUses": ["Tunnel"]}, False, id="for tunnels only"),
        pytest.param({"allowedUses": ["Workload"]}, True, id="for workloads only"),
    ],
)
def test_which_pools_serve_automatically(spec: dict[str, Any], serves: bool) -> None:
    seen = view([pool("10.0.0.0/28", **spec)])
    assert bool(candidate_pools(seen, 4)) == serves
    if not serves:
        with pytest.raises(ConfigError, match="node n1: no IPv4 pool may serve it"):
            auto(seen)


def test_families_do_not_mix() -> None:
    seen = view([pool("10.0.0.0/28"), pool("fd00::/120", "v6")])
    assert auto(seen, 6).address in ip_network("fd00::/120")
    assert auto(seen, 4).address in ip_network("10.0.0.0/28")


@pytest.mark.parametrize(
    ("spec", "taken"),
    [({"disabled": True}, False), ({"allowedUses": ["Tunnel"]}, False), ({"assignmentMode": "Manual"}, True)],
)
def test_an_exact_address_may_come_from_a_manual_pool_but_not_from_a_closed_one(
    spec: dict[str, Any], taken: bool
) -> None:
    seen = view([pool("10.0.0.0/28", **spec)])
    if taken:
        assert exact(seen, ip_address("10.0.0.5"), WEB, *AT).address == ip_address("10.0.0.5")
    else:
        with pytest.raises(ConfigError, match="in no enabled pool for workloads"):
            exact(seen, ip_address("10.0.0.5"), WEB, *AT)


def test_an_exact_address_in_no_pool_names_the_pools() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1: in no enabled pool .*10\.0\.0\.0/28"):
        exact(view([pool("10.0.0.0/28")]), ip_address("192.0.2.1"), WEB, *AT)


@pytest.mark.parametrize(
    ("held", "claims", "node"),
    [
        pytest.param([block("10.0.0.4/30")], False, "n1", id="in an own block"),
        pytest.param([block("10.0.0.4/30", "n2")], False, "n2", id="borrowed: that node keeps its block"),
        pytest.param([blocks.without_affinity(block("10.0.0.4/30"))], False, None, id="in nobody's block"),
        pytest.param([block("10.0.0.0/29", "n2")], False, "n2", id="in a block of another size"),
        pytest.param([], True, "n1", id="where there is no block yet"),
    ],
)
def test_an_exact_address(held: list[Block], claims: bool, node: str | None) -> None:
    made = exact(view([pool("10.0.0.0/28")], *held), ip_address("10.0.0.5"), WEB, *AT)
    assert made.block.held_by("web") == (ip_address("10.0.0.5"),)
    assert (made.claims, made.revision, made.block.node) == (claims, 7 if held else 0, node)


def test_an_exact_address_that_is_held_is_refused() -> None:
    with pytest.raises(Taken, match="held by other on n2"):
        exact(view([pool("10.0.0.0/28")], full(block("10.0.0.4/30"))), ip_address("10.0.0.5"), WEB, *AT)


@pytest.mark.parametrize(("cidr", "count"), [("10.0.0.0/26", 16), ("fd00::/116", 64), ("10.0.0.0/30", 1)])
def test_the_circle_visits_each_block_of_the_pool_once(cidr: str, count: int) -> None:
    around = list(walk(pool(cidr), "n1"))
    assert len(set(around)) == len(around) == count
    assert all(prefix.subnet_of(ip_network(cidr)) for prefix in around)  # type: ignore[arg-type]
    assert around == list(walk(pool(cidr), "n1"))


def test_nodes_start_at_places_of_their_own() -> None:
    def first(node: str) -> Prefix:
        return next(walk(pool("10.0.0.0/16"), node))

    assert len({first(f"n{i}") for i in range(50)}) > 45


def test_an_exact_address_never_claims_over_a_block_of_another_size() -> None:
    seen = view([pool("10.0.0.0/16", blockSize=24)], block("10.0.0.64/26"))
    with pytest.raises(Taken, match=r"10\.0\.0\.0/24, but 10\.0\.0\.64/26 of an older block size"):
        exact(seen, ip_address("10.0.0.1"), WEB, *AT)
