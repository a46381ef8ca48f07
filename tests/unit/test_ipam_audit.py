"""What `ipam check` finds in stores with one fault each, and how full it says they are. Pure."""

import json
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from fabric.ipam import usage
from fabric.ipam.audit import BY_HAND, MENDABLE, Audit, audit
from fabric.ipam.inventory import Inventory, State, allocations
from fabric.ipam.report import Cluster, Report, document, parse
from fabric.ops.ipam import read
from tests.fakes import calico
from tests.fakes.calico import Store, affinity, block, endpoint, handle, held, node, pool, sound

NOW = datetime(2026, 11, 21, 5, tzinfo=UTC)
B1, B2, B3 = "10.0.0.0/30", "10.0.0.4/30", "10.0.0.8/30"
W1, TUNNEL, W2 = held("k8s.w1"), held("vxlan-tunnel-addr-n1", type="vxlanTunnelAddress"), held("k8s.w2", "n2")
GONE = held("k8s.gone")
KEY_W1 = f"{calico.RESOURCES}/workloadendpoints/default/n1-cni-w1-eth0"
KEY_B2 = f"{calico.IPAM}/assignment/ipv4/block/10.0.0.4-30"


def inventory(store: Store) -> Inventory:
    return read(calico.listing(store)).inventory


def audited(store: Store) -> Audit:
    return audit(inventory(store), NOW)


def found(store: Store) -> list[tuple[str, str, str]]:
    return [(f.id, f.object, f.node) for f in audited(store).findings]


def without(store: Store, *keys: str) -> Store:
    """The store less every key that ends in one of `keys`."""
    left = {key: value for key, value in store.items() if not key.endswith(keys)}
    assert len(left) == len(store) - len(keys)
    return left


def test_a_sound_store_has_no_finding_and_nothing_to_say() -> None:
    assert audited(sound()).findings == ()
    assert audited(sound()).notes == ()


LEAK = block(B1, "host:n1", {0: W1, 1: TUNNEL, 3: GONE}) | handle("k8s.gone", {B1: 1})
FAULTS: list[Any] = [
    pytest.param(sound() | LEAK, [("leaked-address", "10.0.0.3", "n1")], id="nothing uses a held address"),
    pytest.param(
        sound() | block(B1, "host:n1", {0: W1, 1: TUNNEL, 3: {"handle_id": None, "secondary": {}}}),
        [("leaked-address", "10.0.0.3", "n1")],
        id="a leak without handle or attributes is laid to the block's node",
    ),
    pytest.param(
        sound() | node("n1"), [("leaked-address", "10.0.0.1", "n1")], id="a tunnel address no node names"
    ),
    pytest.param(
        sound() | endpoint("w3", "10.0.0.7"), [("unallocated-address", "10.0.0.7", "n1")], id="not allocated"
    ),
    pytest.param(
        sound() | endpoint("w3", "10.9.0.1"), [("address-outside-pools", "10.9.0.1", "n1")], id="in no pool"
    ),
    pytest.param(
        sound() | endpoint("w3", "10.0.0.0", "n2"), [("shared-address", "10.0.0.0", "n1, n2")], id="two users"
    ),
    pytest.param(
        sound() | block("10.0.0.0/29", "host:n2") | affinity("n2", "10.0.0.0/29"),
        [
            ("overlapping-blocks", "block 10.0.0.0/30", "n1"),
            ("overlapping-blocks", "block 10.0.0.4/30", "n2"),
        ],
        id="a wide block over two others",
    ),
    pytest.param(
        sound() | block("10.1.0.0/30", "host:n1") | affinity("n1", "10.1.0.0/30"),
        [("block-outside-pools", "block 10.1.0.0/30", "n1")],
        id="a block in no pool",
    ),
    pytest.param(sound() | block(B3, None), [("orphaned-block", f"block {B3}", "")], id="nobody's and empty"),
    pytest.param(
        sound() | block(B2, "host:n2", {0: W2}, unallocated=[1, 2]),
        [("lost-addresses", f"block {B2}", "n2")],
        id="an address neither held nor free",
    ),
    pytest.param(
        without(sound(), "host/n1/ipv4/block/10.0.0.0-30"),
        [("block-without-affinity", f"block {B1}", "n1")],
        id="a block whose node has no record",
    ),
    pytest.param(
        sound() | affinity("n1", B3), [("affinity-without-block", f"affinity {B3}", "n1")], id="no such block"
    ),
    pytest.param(
        sound() | affinity("n1", B3, "pending"),
        [("affinity-without-block", f"affinity {B3}", "n1")],
        id="a claim that died before its block",
    ),
    pytest.param(
        sound() | affinity("n1", B2), [("stale-affinity", f"affinity {B2}", "n1")], id="another's block"
    ),
    pytest.param(
        sound() | affinity("n1", B1, "pendingDeletion"),
        [("unconfirmed-affinity", f"affinity {B1}", "n1")],
        id="a release that died half-way",
    ),
    pytest.param(
        sound() | block(B3, "host:n9") | affinity("n9", B3),
        [("unknown-node", f"affinity {B3}", "n9")],
        id="a node that is gone left its block",
    ),
    pytest.param(
        sound() | block(B3, "host:n9"), [("unknown-node", f"block {B3}", "n9")], id="and no record of it"
    ),
    pytest.param(
        sound() | handle("k8s.gone", {B1: 1}),
        [("handle-without-addresses", "handle k8s.gone", "")],
        id="a handle no block names",
    ),
    pytest.param(
        sound() | handle("k8s.gone", {}),
        [("handle-without-addresses", "handle k8s.gone", "")],
        id="a handle that says nothing",
    ),
    pytest.param(
        without(sound(), "handle/k8s.w1"),
        [("missing-handle", "handle k8s.w1", "")],
        id="a handle that is gone",
    ),
    pytest.param(
        sound() | handle("k8s.w1", {B1: 2}),
        [("handle-disagrees", "handle k8s.w1", "")],
        id="a handle that says too many",
    ),
    pytest.param(
        sound() | handle("k8s.w1", {B1: 1, B2: 1}),
        [("handle-disagrees", "handle k8s.w1", "")],
        id="a handle that says too many blocks",
    ),
]


@pytest.mark.parametrize(("store", "want"), FAULTS)
def test_each_fault_is_found_and_nothing_else(store: Store, want: list[tuple[str, str, str]]) -> None:
    assert found(store) == want


def test_every_kind_of_finding_is_seeded_above_has_a_cure_and_is_documented() -> None:
    seeded = {kind for param in FAULTS for kind, _, _ in param.values[1]} | {"unreadable"}
    assert seeded == MENDABLE.keys() | BY_HAND.keys()
    page = (Path(__file__).parents[2] / "docs/reference/ipam-report.md").read_text()
    assert {kind for kind in seeded if f"`{kind}`" not in page} == set()


@pytest.mark.parametrize(
    "store",
    [
        pytest.param(
            sound() | block(B3, "virtual:load-balancer", {0: held("lb")}) | handle("lb", {B3: 1}),
            id="a load balancer's",
        ),
        pytest.param(
            sound()
            | block(B1, "host:n1", {0: W1, 1: TUNNEL, 3: held("x", type="somethingNew")})
            | handle("x", {B1: 1}),
            id="of a type not known here",
        ),
        pytest.param(
            sound() | block(B1, "host:n1", {0: W1, 1: TUNNEL, 3: held("windows-reserved-ipam-handle")}),
            id="reserved on Windows, without a handle",
        ),
    ],
)
def test_what_nothing_here_could_show_to_be_used_is_taken_for_used(store: Store) -> None:
    assert found(store) == []
    assert "taken for used" in str(audited(store).notes)


def given(at: str) -> Store:
    owners = {0: W1, 1: TUNNEL, 3: held("k8s.new", timestamp=at)}
    return sound() | block(B1, "host:n1", owners) | handle("k8s.new", {B1: 1})


@pytest.mark.parametrize(
    ("timestamp", "state"),
    [
        ("2026-11-21 04:59:30.334108857 +0000 UTC", State.RECENT),
        ("2026-11-21 05:59:30.334108857 +0100 CET", State.RECENT),
        ("2026-11-21 04:59:30.3341 +0000 UTC m=+12.5", State.RECENT),
        ("2026-11-21 04:58:59.334108857 +0000 UTC", State.LEAKED),
        ("yesterday", State.LEAKED),
        ("", State.LEAKED),
    ],
)
def test_an_attach_in_progress_is_no_leak(timestamp: str, state: State) -> None:
    states = {str(a.address): a.state for a in allocations(inventory(given(timestamp)), NOW)}
    assert states["10.0.0.3"] == state
    assert bool(audited(given(timestamp)).findings) == (state is State.LEAKED)


def test_a_released_address_cools_down_and_is_no_leak() -> None:
    cooling: dict[str, Any] = {"handle_id": None, "secondary": {}, "releasedAt": "2026-11-21T04:00:00Z"}
    store = sound() | block(B1, "host:n1", {0: W1, 1: TUNNEL, 2: cooling})
    assert found(store) == []
    text = json.dumps(document(audited(store), Cluster("guid"), 9, "fabricctl"))
    assert parse(text, "report.json") == Report("guid", frozenset())
    assert [a.state for a in audited(store).allocations if a.address == ip_address("10.0.0.2")] == [
        State.COOLING
    ]


def test_a_borrowed_address_is_a_note_and_no_fault() -> None:
    store = sound() | endpoint("w3", "10.0.0.5") | handle("k8s.w3", {B2: 1})
    store |= block(B2, "host:n2", {0: W2, 1: held("k8s.w3", "n1")})
    assert found(store) == []
    assert "borrowed addresses: 1" in str(audited(store).notes)


@pytest.mark.parametrize(
    "key", [KEY_W1, f"{calico.RESOURCES}/nodes/n1"], ids=["an endpoint", "a node, its tunnels"]
)
def test_while_a_user_cannot_be_read_no_address_is_called_leaked(key: str) -> None:
    store = sound() | LEAK | {key: "{"}
    assert [f[:2] for f in found(store)] == [("unreadable", key)]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"cidr":"10.0.0.8/30"}',
        calico.block(B1, "host:n2")[f"{calico.IPAM}/assignment/ipv4/block/10.0.0.0-30"],
    ],
)
def test_a_block_that_cannot_be_read_is_there_all_the_same(text: str) -> None:
    """Its affinity, its handles and the users of its addresses are not to be called orphans."""
    assert [f[:2] for f in found(sound() | {KEY_B2: text})] == [("unreadable", KEY_B2)]


def test_a_handle_that_cannot_be_read_is_not_missing() -> None:
    key = f"{calico.IPAM}/handle/k8s.w1"
    assert [f[:2] for f in found(sound() | {key: "{"})] == [("unreadable", key)]


def test_a_key_of_no_known_form_is_reported_not_skipped() -> None:
    odd = f"{calico.IPAM}/assignment/ipv4/block/10.0.0.9-30"
    assert [f[:2] for f in found(sound() | {odd: "{}"})] == [("unreadable", odd)]


def test_usage_counts_blocks_reservations_and_cooling_as_calico_does() -> None:
    cooling: dict[str, Any] = {"handle_id": None, "secondary": {}, "releasedAt": "2026-11-21T04:00:00Z"}
    store = sound() | block(B1, "host:n1", {0: W1, 1: TUNNEL, 2: cooling})
    store |= calico.resource(
        "IPReservation", "ipreservations", "r", {"reservedCIDRs": ["10.0.0.0/31", "10.0.0.1", "10.0.0.12/30"]}
    )
    [whole] = usage.by_pool(inventory(store))
    # 16 less the 6 reserved less the 4 in use, and two of these are reserved too.
    assert whole.use == usage.Use(total=16, in_use=4, reserved=6, free=8, cooling=1)
    assert [b.use for b in whole.blocks] == [
        usage.Use(total=4, in_use=3, reserved=2, free=1, cooling=1),
        usage.Use(total=4, in_use=1, reserved=0, free=3, cooling=0),
    ]


def test_blocks_in_no_pool_come_last_and_without_one() -> None:
    store = sound() | block("10.1.0.0/30", None, {0: GONE}) | pool("fd00::/64", "v6")
    names = [(p.name, p.use.total, len(p.blocks)) for p in usage.by_pool(inventory(store))]
    assert names == [("pool", 16, 2), ("v6", 2**64, 0), (None, 4, 1)]


def test_usage_by_node_tells_what_it_owns_from_what_it_holds() -> None:
    cooling: dict[str, Any] = {"handle_id": None, "secondary": {}, "releasedAt": "2026-11-21T04:00:00Z"}
    store = sound() | block(B2, "host:n2", {0: W2, 1: held("k8s.w3", "n1"), 2: cooling}) | node("n3")
    found = allocations(inventory(store), NOW, timedelta(0))
    assert usage.by_node(inventory(store), found) == (
        usage.NodeUse("n1", blocks=1, total=4, in_use=2, holds=3, borrowed=1),
        usage.NodeUse("n2", blocks=1, total=4, in_use=3, holds=1, borrowed=0),
        usage.NodeUse("n3", blocks=0, total=0, in_use=0, holds=0, borrowed=0),
    )
