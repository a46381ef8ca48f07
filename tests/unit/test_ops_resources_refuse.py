"""What a change meets among the other objects: refused, or warned of."""

import json

import pytest

from fabric.errors import ConfigError
from fabric.ipam.pools import HostPrefix
from fabric.model import kinds, namespaces
from fabric.model.base import Resource
from fabric.model.ippool import IPPool
from fabric.ops import resources
from fabric.ops.change import Change, apply, decided, delete, delete_named, gather, label, patch
from fabric.ops.files import Given
from fabric.ops.refuse import refuse
from fabric.store.kv import Put, Txn
from tests.fakes.etcd import FakeEtcd
from tests.fakes.node import pool, put

POOL = pool("10.0.0.0/24")
AFFINITY = "/calico/ipam/v2/host/n1/ipv4/block/10.0.0.0-26"
BLOCK = {
    "cidr": "10.0.0.0/26",
    "affinity": "host:n1",
    "allocations": [0] + [None] * 63,
    "unallocated": list(range(1, 64)),
    "attributes": [{"handle_id": "h", "secondary": None}],
    "sequenceNumber": 1,
    "deleted": False,
}


def resource(kind: str, name: str, **spec: object) -> Resource:
    namespace = {"namespace": "default"} if kinds.lookup(kind).namespaced else {}
    tree = {"kind": kind, "metadata": {"name": name, **namespace}, "spec": spec}
    return kinds.resource_class(kind).model_validate(tree)


def given(resource: Resource) -> Given:
    return Given(resource, "x.yaml:1")


def policy(name: str = "sec.web", tier: str = "sec") -> Resource:
    return resource("NetworkPolicy", name, tier=tier)


async def warnings(kv: FakeEtcd, *changes: Change, host: tuple[HostPrefix, ...] = ()) -> list[str]:
    steps, refusals = await decided(kv, changes)
    return await refuse(kv, steps, host, refusals, changes)


async def problems(kv: FakeEtcd, *changes: Change, host: tuple[HostPrefix, ...] = ()) -> list[str]:
    with pytest.raises(ConfigError, match="nothing was written") as error:
        await warnings(kv, *changes, host=host)
    return str(error.value).removesuffix("\nnothing was written").splitlines()


async def claim_a_block(kv: FakeEtcd) -> None:
    confirmed = '{"state":"confirmed","deleted":false}'
    key = "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26"
    await kv.commit(Txn((), (Put(AFFINITY, confirmed), Put(key, json.dumps(BLOCK)))))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (pool("10.1.0.0/24"), "spec.cidr: 10.0.0.0/24: may not become 10.1.0.0/24 while blocks"),
        (pool("10.0.0.0/24", blockSize=28), "spec.blockSize: 26: may not become 28 while blocks"),
        (pool("10.0.0.0/16", "other"), "spec.cidr: 10.0.0.0/16: overlaps IPPool pool (10.0.0.0/24)"),
    ],
)
async def test_a_pool_neither_moves_under_its_blocks_nor_overlaps(wanted: IPPool, said: str) -> None:
    kv = FakeEtcd()
    await put(kv, POOL)
    await claim_a_block(kv)
    [line] = await problems(kv, apply(given(wanted)))
    assert line.startswith(f"x.yaml:1: IPPool {wanted.metadata.name}: {said}")
    assert await warnings(kv, apply(given(POOL)), apply(given(pool("fd00::/112", "v6")))) == []


async def test_a_pool_with_no_blocks_may_be_resized_and_one_that_goes_is_in_nobodys_way() -> None:
    kv = FakeEtcd()
    await put(kv, POOL)
    assert await warnings(kv, apply(given(pool("10.0.0.0/25")))) == []
    taken_over = [delete_named(kinds.lookup("pool"), "pool"), apply(given(pool("10.0.0.0/16", "new")))]
    assert await warnings(kv, *taken_over) == []


async def test_two_pools_of_one_command_may_not_overlap() -> None:
    both = gather(apply, [given(pool("10.0.0.0/16", "a")), given(pool("10.0.1.0/24", "b"))])
    assert len(await problems(FakeEtcd(), *both)) == 2


async def test_a_pool_over_a_subnet_of_a_host_is_refused_with_the_interface_or_the_node() -> None:
    kv = FakeEtcd()
    links = [{"name": "eth1", "addresses": ["198.51.100.1/24", "203.0.113.9", "none"]}]
    await put(kv, resource("Node", "n1", bgp={"ipv4Address": "192.0.2.1/24"}, interfaces=links))
    host = (("interface eth0 of this host", pool("10.0.0.0/20").spec.cidr),)
    [line] = await problems(kv, apply(given(POOL)), host=host)
    assert "overlaps the subnet 10.0.0.0/20 of interface eth0 of this host" in line
    [line] = await problems(kv, apply(given(pool("192.0.2.0/25"))))
    assert "overlaps the subnet 192.0.2.0/24" in line
    assert "node n1" in line
    [line] = await problems(kv, apply(given(pool("198.51.0.0/16"))))
    assert "overlaps the subnet 198.51.100.0/24 of interface eth1 of node n1" in line
    own = (("interface eth1 of this host", pool("192.0.2.0/24").spec.cidr),)
    [line] = await problems(kv, apply(given(pool("192.0.2.0/25"))), host=own)  # on the node itself: once
    assert "eth1 of this host" in line


async def test_a_pool_that_cannot_be_read_is_in_the_way_of_pools_but_not_of_its_own_deletion() -> None:
    kv = FakeEtcd()
    await put(kv, POOL)
    broken = resources.key(kinds.lookup("pool"), "broken")
    await kv.commit(Txn((), (Put(broken, '{"kind":"IPPool","metadata":{"name":"broken"}}'),)))
    for change in (apply(given(pool("10.9.0.0/16", "new"))), delete_named(kinds.lookup("pool"), "pool")):
        [line, _] = await problems(kv, change)
        assert line.startswith(f"{broken}: cannot be read")
    assert await warnings(kv, delete_named(kinds.lookup("pool"), "broken")) == []


async def test_a_policy_needs_its_tier_which_may_come_with_it() -> None:
    kv = FakeEtcd()
    [line] = await problems(kv, apply(given(policy())))
    assert 'NetworkPolicy default/sec.web: spec.tier: "sec": there is no such Tier' in line
    await warnings(kv, apply(given(policy())), apply(given(resource("Tier", "sec"))))
    await warnings(kv, apply(given(policy("web", "kube-admin"))))
    await put(kv, resource("Tier", "sec"))
    await warnings(kv, apply(given(policy())))


async def test_a_tier_that_is_refused_itself_is_not_missed_by_the_policies_that_come_with_it() -> None:
    wrong = Given(
        resource("Tier", "sec"), "x.yaml:1", unknown=((("spec", "ordr"), "x.yaml:3: no such field"),)
    )
    changes = gather(apply, [wrong, given(policy())])
    steps, refusals = await decided(kv := FakeEtcd(), changes)
    with pytest.raises(ConfigError) as error:
        await refuse(kv, steps, refusals=refusals, changes=changes)
    assert str(error.value) == "x.yaml:3: no such field; nothing was written"


async def test_a_tier_with_policies_or_a_built_in_one_stays() -> None:
    kv = FakeEtcd()
    for one in (resource("Tier", "sec"), resource("Tier", "default", order=1_000_000), policy()):
        await put(kv, one)
    tier = kinds.lookup("tier")
    [line] = await problems(kv, delete_named(tier, "sec"))
    assert "Tier sec: has policies in it: NetworkPolicy default/sec.web" in line
    [line] = await problems(kv, delete_named(tier, "default"))
    assert "Tier default: is built in" in line
    assert await warnings(kv, delete_named(tier, "sec"), delete(given(policy()))) == []
    await problems(kv, delete_named(tier, "sec"), apply(given(policy("sec.other"))), delete(given(policy())))


async def test_cluster_information_is_the_nodes_to_write() -> None:
    kv = FakeEtcd()
    information = resource("ClusterInformation", "default", clusterGUID="1")
    await put(kv, information)
    kind = kinds.lookup("clusterinfo")
    assert await warnings(kv, apply(given(information))) == []
    for change in (
        delete_named(kind, "default"),
        patch(kind, "default", None, {"spec": {"datastoreReady": False}}, "merge"),
    ):
        [line] = await problems(kv, change)
        assert "ClusterInformation default: is written by the nodes" in line


async def test_what_acts_on_nothing_is_warned_of_by_the_change_that_sets_it() -> None:
    kv = FakeEtcd()
    settings = [
        resource("FelixConfiguration", name, bpfEnabled=True) for name in ("default", "node.a", "node.b")
    ]
    [line] = await warnings(kv, *(apply(given(one)) for one in settings))
    assert line == "x.yaml:1: FelixConfiguration default and 2 more: spec.bpfEnabled: kept, not used"
    await put(kv, settings[0])
    kind = kinds.lookup("felixconfig")
    assert await warnings(kv, label(kind, "default", None, {"a": "b"}, (), overwrite=False)) == []
    [line] = await warnings(kv, patch(kind, "default", None, {"spec": {"bpfLogLevel": "Info"}}, "merge"))
    assert line == "FelixConfiguration default: spec.bpfLogLevel: kept, not used"
    await put(kv, resource("FelixConfiguration", "rack"))
    [line] = await warnings(
        kv, label(kinds.lookup("felixconfig"), "rack", None, {"a": "b"}, (), overwrite=False)
    )
    assert line == "FelixConfiguration rack: kept, not used"


async def test_the_ipam_configuration_has_no_place_for_labels() -> None:
    change = patch(kinds.lookup("ipamconfig"), "default", None, {"metadata": {"labels": {"a": "b"}}}, "merge")
    kv = FakeEtcd()
    await kv.commit(Txn((), (Put("/calico/ipam/v2/config", '{"auto_allocate_blocks":true}'),)))
    [line] = await problems(kv, change)
    assert "has no place for labels" in line


async def test_what_a_deletion_leaves_behind_is_said() -> None:
    kv = FakeEtcd()
    endpoint = resource("WorkloadEndpoint", "w", node="n1", ipNetworks=["10.0.0.0/32"])
    for one in (POOL, resource("Node", "n1"), resource("Node", "n2"), endpoint):
        await put(kv, one)
    await claim_a_block(kv)
    node = kinds.lookup("node")
    [line] = await warnings(kv, delete_named(node, "n1"), delete_named(node, "n2"))
    assert line.startswith("Node n1: leaves 1 block and 1 workload endpoint behind")
    [line] = await warnings(kv, delete_named(kinds.lookup("wep"), "w"))
    assert line.startswith("WorkloadEndpoint default/w: 10.0.0.0/32 stays allocated")
    [line] = await warnings(kv, delete_named(kinds.lookup("pool"), "pool"))
    assert line.startswith("IPPool pool: 1 of its addresses stay in use")


async def test_a_profile_that_endpoints_have_is_missed_by_them() -> None:
    kv = FakeEtcd()
    for one in (
        namespaces.profile("shop"),
        resource("WorkloadEndpoint", "w", profiles=["kns.shop"]),
        resource("HostEndpoint", "h", node="n", interfaceName="*", profiles=["kns.shop", "own"]),
        resource("Profile", "own"),
        resource("Profile", "unused"),
    ):
        await put(kv, one)
    gone = [delete_named(kinds.lookup("profile"), name) for name in ("kns.shop", "own", "unused")]
    left = "what it allowed, and no policy does, is denied then"
    assert await warnings(kv, *gone) == [
        f"Profile kns.shop: 2 endpoints have it; {left}",
        f"Profile own: 1 endpoint has it; {left}",
    ]


def workload(name: str, address: str, *ports: dict[str, object], node: str = "n1") -> Resource:
    return resource("WorkloadEndpoint", name, node=node, ipNetworks=[address], ports=ports)


WEB = {"protocol": "TCP", "port": 80, "hostPort": 8080}


async def test_a_port_that_another_workload_of_the_node_publishes_is_taken_and_the_holder_named() -> None:
    kv = FakeEtcd()
    await put(kv, workload("a", "10.0.0.1/32", WEB))
    taken = workload("b", "10.0.0.2/32", {**WEB, "hostIP": "192.0.2.1"})
    [line] = await problems(kv, apply(given(taken)))
    assert line.startswith("x.yaml:1: WorkloadEndpoint default/b: spec.ports: ")
    assert "published by workload default/a" in line
    elsewhere = workload("b", "10.0.0.2/32", WEB, node="n2")
    other = workload(
        "c", "10.0.0.3/32", {**WEB, "protocol": "UDP"}, {"name": "web", "protocol": "TCP", "port": 80}
    )
    assert await warnings(kv, apply(given(elsewhere)), apply(given(other))) == []
    gone = delete_named(kinds.lookup("wep"), "a")
    assert not [line for line in await warnings(kv, gone, apply(given(taken))) if "published" in line]


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("::1", "::1 cannot be published"),
        ("node1", 'hostIP "node1" is not an address'),
        ("2001:db8::1", "the workload has no address of that family"),
    ],
)
async def test_what_no_port_can_be_published_at_is_refused(host: str, said: str) -> None:
    [line] = await problems(FakeEtcd(), apply(given(workload("a", "10.0.0.1/32", {**WEB, "hostIP": host}))))
    assert said in line
