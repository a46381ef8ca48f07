"""The trace of a packet on what is stored, as text and as JSON; whole ones are in golden/verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fabric.errors import ConfigError
from fabric.model.wire import to_json
from fabric.ops import policy
from fabric.ops.resources import key_of
from fabric.store.kv import Delete, Put, Txn
from policy import trace, words
from policy.form import AddressSet, End, Icmp, PortRange, PortSet, Rule
from tests.fakes.etcd import FakeEtcd
from tests.unit.scenes import resources, workload

GOLDEN = Path(__file__).with_name("golden") / "verdicts"
NODE = """
kind: Node
metadata: {name: node1}
spec: {bgp: {ipv4Address: 192.0.2.11/24}}
"""
SHOP = """
apiVersion: v1
kind: Namespace
metadata: {name: shop}
"""
STORED = (
    SHOP,
    (GOLDEN / "shop" / "policies.yaml").read_text(),
    (GOLDEN / "shop" / "endpoints.yaml").read_text(),
    workload("shop/web", "app: web", node="node1", address="10.77.1.1/32"),
    workload("shop/db", "app: db", node="node1", address="10.77.1.2/32"),
    NODE,
)


async def etcd(*more: str) -> FakeEtcd:
    kv = FakeEtcd()
    found = [one for text in (*STORED, *more) for one in resources(text)]
    await kv.commit(Txn((), tuple(Put(key_of(one), to_json(one)) for one in found)))
    return kv


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("allowed", ("shop/web", "shop/db", "tcp/5432")),
        ("denied", ("198.51.100.7", "shop/db", "tcp/5432")),
        ("telnet", ("shop/web", "shop/cache", "tcp/23")),
        ("to-host", ("shop/web", "node1", "tcp/22")),
        ("from-host", ("node1", "shop/db", "tcp/22")),
        ("host-endpoint", ("node1", "node2-eth0", "tcp/80")),
        ("failsafe", ("node1", "node2-eth0", "tcp/22")),
    ],
)
async def test_a_trace_names_every_tier_policy_and_rule_and_what_decides(
    name: str, asked: tuple[str, str, str]
) -> None:
    found = await policy.traced(await etcd(), *asked)
    text = "\n".join(trace.lines(found.trace)) + "\n"
    assert text == (GOLDEN / f"trace-{name}.txt").read_text()
    assert found.allowed == (found.trace["verdict"] == "allow")
    assert found.warnings == ()


async def test_as_json_it_has_the_same() -> None:
    found = await policy.traced(await etcd(), "shop/web", "shop/db", "tcp/5432")
    assert found.trace == json.loads((GOLDEN / "trace-allowed.json").read_text())


async def test_a_profile_that_is_not_stored_allows_nothing_as_on_the_nodes() -> None:
    kv = await etcd()
    path = "/calico/resources/v3/projectcalico.org/profiles/kns.shop"
    assert (await policy.traced(kv, "shop/web", "shop/cache", "tcp/80")).allowed
    await kv.commit(Txn((), (Delete(path),)))
    found = await policy.traced(kv, "shop/web", "shop/cache", "tcp/80")
    assert found.trace["ends"][0]["by"]["text"] == "end of profiles"


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"kind": "Widget"}'])
@pytest.mark.parametrize("place", ["globalnetworkpolicies/odd", "widgets/odd", "tiers/odd"])
async def test_garbage_of_others_stops_no_trace(place: str, text: str) -> None:
    kv = await etcd()
    await kv.commit(Txn((), (Put(f"/calico/resources/v3/projectcalico.org/{place}", text),)))
    assert (await policy.traced(kv, "shop/web", "shop/db", "tcp/5432")).allowed


async def test_a_stored_policy_that_cannot_be_read_denies_what_it_selects_and_is_told() -> None:
    kv = await etcd()
    broken = {
        "kind": "NetworkPolicy",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "broken", "namespace": "shop"},
        "spec": {"order": 1, "selector": "app == 'db'", "types": ["Ingress"], "ingress": [{"action": "Perhaps"}]},
    }  # fmt: skip
    path = "/calico/resources/v3/projectcalico.org/networkpolicies/shop/broken"
    await kv.commit(Txn((), (Put(path, json.dumps(broken)),)))
    found = await policy.traced(kv, "shop/web", "shop/db", "tcp/5432")
    assert not found.allowed
    assert found.trace["ends"][-1]["by"]["text"] == "NetworkPolicy shop/broken, which is broken"
    [warning] = found.warnings
    assert "NetworkPolicy shop/broken" in warning


async def test_a_profile_that_does_not_exist_is_named() -> None:
    kv = await etcd()
    await kv.commit(Txn((), (Delete("/calico/resources/v3/projectcalico.org/profiles/kns.shop"),)))
    text = list(trace.lines((await policy.traced(kv, "shop/web", "shop/cache", "tcp/80")).trace))
    assert text[2] == (
        "egress of shop/web on node1: denied by end of profiles; Profile kns.shop does not exist"
    )
    assert "    Profile kns.shop: does not exist" in text


async def test_what_never_leaves_and_what_nobody_has_are_said() -> None:
    pool = "kind: IPPool\nmetadata: {name: a}\nspec: {cidr: 10.77.0.0/16}\n"
    kv = await etcd(pool)
    found = await policy.traced(kv, "shop/web", "shop/web", "tcp/80")
    assert list(trace.lines(found.trace)) == [
        "shop/web (10.77.1.1) -> shop/web (10.77.1.1) tcp/80: allowed",
        "",
        "it never leaves the workload: nobody is asked",
    ]
    found = await policy.traced(kv, "shop/web", "10.77.9.9", "tcp/80")
    assert list(trace.lines(found.trace))[-1] == (
        "ingress of 10.77.9.9: no endpoint has this address, nobody is asked"
    )
    found = await policy.traced(kv, "shop/web", "198.51.100.7", "tcp/80")
    assert list(trace.lines(found.trace))[-1] == "ingress of outside: nobody is asked"


@pytest.mark.parametrize(("asked", "family"), [("icmp", 6), ("icmpv6/128", 4)])
async def test_a_family_that_the_protocol_is_not_of_is_refused(asked: str, family: int) -> None:
    with pytest.raises(ConfigError, match=f"is of IPv. alone, and family {family} is asked for"):
        await policy.traced(await etcd(), "shop/web", "shop/db", asked, family)


async def test_a_name_that_is_nobodys_and_a_protocol_that_there_is_not() -> None:
    kv = await etcd()
    with pytest.raises(ConfigError, match=r'"shop/wbe" is no address, workload, .* did you mean shop/web'):
        await policy.traced(kv, "shop/wbe", "shop/db", "tcp/1")
    with pytest.raises(ConfigError, match='"tcp": tcp needs one port'):
        await policy.traced(kv, "shop/web", "shop/db", "tcp")


ANY, IN = "has(projectcalico.org/orchestrator)", "has(projectcalico.org/namespace)"


def test_a_rule_in_words() -> None:
    web, sql = AddressSet('app == "web"'), PortSet("all()", 6, "sql")
    for rule, want in (
        (Rule(0, "Allow"), "everything"),
        (Rule(0, "Allow", version=4), "IPv4"),
        (Rule(0, "Allow", protocol=6), "tcp"),
        (Rule(0, "Allow", not_protocol=89), "not protocol 89"),
        (Rule(0, "Allow", version=4, protocol=1, icmp=Icmp(8)), "icmp type 8"),
        (Rule(0, "Allow", version=6, protocol=58, not_icmp=Icmp(3, 1)), "icmpv6 not type 3/1"),
        (
            Rule(
                0,
                "Allow",
                protocol=6,
                source=End(selected=web, not_ports=(PortRange(1, 9),)),
                destination=End(ports=(PortRange(80, 80),), named=(sql,)),
            ),
            'tcp from app == "web" not port 1:9 to port 80,sql',
        ),
        (
            Rule(0, "Allow", destination=End(named=(PortSet('app == "db"', 6, "sql"),))),
            'to app == "db" port sql',
        ),
        (
            Rule(0, "Allow", source=End(selected=AddressSet(f'(pcns.a == "b" && ({ANY} && app == "c"))'))),
            'from (pcns.a == "b" && app == "c")',
        ),
        (Rule(0, "Allow", source=End(selected=AddressSet(ANY))), "from any workload"),
        (Rule(0, "Allow", source=End(selected=AddressSet(f"({IN} && {ANY})"))), "from any namespace"),
        (
            Rule(0, "Deny", source=End(selected=AddressSet(f"({IN} && has(a))"))),
            "from has(a) in any namespace",
        ),
    ):
        assert words.of_rule(rule) == want
