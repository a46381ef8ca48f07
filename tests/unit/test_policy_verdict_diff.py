"""Between whom a change of policy changes verdicts."""

from __future__ import annotations

import json

from fabric.model.wire import to_json
from fabric.ops import change
from fabric.ops.files import Given
from fabric.ops.policy_diff import verdict_changes
from fabric.ops.resources import key_of
from fabric.store.kv import Put, Txn
from policy.items import key
from policy.verdict_diff import Found, compared
from tests.fakes.etcd import FakeEtcd
from tests.unit.changing import plan
from tests.unit.scenes import resources, stage, workload

ENDS = (
    workload("shop/web", "app: web", address="10.0.0.1/32"),
    workload("shop/db", "app: db", address="10.0.0.2/32"),
    workload("shop/old", "app: old", address="10.0.0.3/32"),
)


def policy(rules: str, *, name: str = "p", kind: str = "NetworkPolicy", types: str = "Ingress") -> str:
    return f"""
kind: {kind}
metadata: {{name: {name}, namespace: shop}}
spec: {{selector: app == 'db', types: [{types}], {types.lower()}: [{rules}]}}
"""


WEB_ONLY = "{action: Allow, protocol: TCP, source: {selector: app == 'web'}, destination: {ports: [5432]}}"


def found(before: str, after: str, most: int = 10_000) -> Found:
    old, new = resources(before), resources(after)
    return compared(stage(*ENDS, before), stage(*ENDS, after), {key(one) for one in (*old, *new)}, most)


def lines(of: Found) -> list[str]:
    return [
        f"{one.source} -> {one.destination} {', '.join(one.asked)}: {'allow' if one.allowed else 'deny'} by {one.by}"
        for one in of.changed
    ]


END = "end of tier default"


def test_a_new_policy_denies_what_its_rules_do_not_allow() -> None:
    result = found("", policy(WEB_ONLY))
    assert result.asked == ("tcp/5432", "any other tcp port")
    assert lines(result) == [
        f"shop/old -> shop/db tcp/5432, any other tcp port: deny by {END}",
        f"shop/web -> shop/db any other tcp port: deny by {END}",
        f"outside -> shop/db tcp/5432, any other tcp port: deny by {END}",
    ]
    assert (result.pairs, result.of) == (3, 3)


def test_a_policy_that_goes_allows_again() -> None:
    both = "Profile kns.shop egress rule 0 and Profile kns.shop ingress rule 0"
    assert lines(found(policy("", types="Egress"), "")) == [
        f"shop/db -> shop/old any other tcp port: allow by {both}",
        f"shop/db -> shop/web any other tcp port: allow by {both}",
        "shop/db -> outside any other tcp port: allow by Profile kns.shop egress rule 0",
    ]


def test_ranges_are_asked_at_both_ends_and_other_ports_are_in_none() -> None:
    rule = "{action: Allow, protocol: TCP, destination: {ports: ['1000:2000', '60000:65535']}}"
    result = found("", policy(f"{rule}, {{action: Allow, protocol: UDP}}, {{action: Allow, protocol: ICMP}}"))
    assert result.asked == (
        "tcp/1000",
        "tcp/2000",
        "tcp/60000",
        "tcp/65535",
        "icmp",
        "any other tcp port",
        "any other udp port",
    )
    assert {one.asked for one in result.changed} == {("any other tcp port",)}


def test_prefixes_of_the_rules_are_ends_too() -> None:
    rule = "{action: Allow, source: {nets: [198.51.100.0/24], notNets: [198.51.100.0/28]}}"
    assert lines(found(policy(""), policy(rule))) == [
        "198.51.100.0/24 -> shop/db any other tcp port: allow by NetworkPolicy shop/p ingress rule 0"
    ]


def test_a_named_port_is_asked_as_the_number_that_it_has() -> None:
    named = workload(
        "shop/db", "app: db", address="10.0.0.2/32", more=", ports: [{name: sql, protocol: TCP, port: 5432}]"
    )
    text = policy("{action: Allow, protocol: TCP, destination: {ports: [sql]}}")
    before, after = stage(ENDS[0], named), stage(ENDS[0], named, text)
    assert compared(before, after, {key(resources(text)[0])}).asked == ("tcp/5432", "any other tcp port")


def test_staged_policies_change_nothing() -> None:
    assert found("", policy("{action: Deny}", kind="StagedNetworkPolicy")).changed == ()


def test_it_ends_after_so_many_verdicts_and_says_of_how_many() -> None:
    result = found("", policy(WEB_ONLY), most=4)
    assert (result.pairs, result.of) == (2, 3)


async def stored(*texts: str) -> FakeEtcd:
    kv = FakeEtcd()
    namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"
    held = [one for text in (namespace, *texts) for one in resources(text)]
    await kv.commit(Txn((), tuple(Put(key_of(one), to_json(one)) for one in held)))
    return kv


async def told(kv: FakeEtcd, text: str) -> list[str]:
    steps = await plan(kv, [change.apply(Given(one, "x.yaml:1")) for one in resources(text)])
    return await verdict_changes(kv, steps)


async def test_diff_tells_what_a_file_would_change() -> None:
    kv = await stored(*ENDS)
    assert await told(kv, policy(WEB_ONLY)) == [
        "verdicts that change (3 pairs of ends tried, each with tcp/5432, any other tcp port):",
        f"  shop/old -> shop/db  all of these: allow -> deny by {END}",
        f"  shop/web -> shop/db  any other tcp port: allow -> deny by {END}",
        f"  outside -> shop/db  all of these: allow -> deny by {END}",
    ]
    await kv.commit(Txn((), tuple(Put(key_of(one), to_json(one)) for one in resources(policy(WEB_ONLY)))))
    assert await told(kv, policy(WEB_ONLY)) == []
    more = policy(WEB_ONLY).replace("selector: app == 'db'", "order: 3, selector: app == 'db'")
    assert await told(kv, more) == [
        "no verdict changes (3 pairs of ends tried, each with tcp/5432, any other tcp port)"
    ]


async def test_other_things_that_verdicts_depend_on_are_looked_at_too() -> None:
    kv = await stored(*ENDS, policy(WEB_ONLY))
    labels = ENDS[2].replace("app: old", "app: web")
    by = "Profile kns.shop egress rule 0 and NetworkPolicy shop/p ingress rule 0"
    changed = [line for line in await told(kv, labels) if "->" in line]
    assert changed == [f"  shop/old -> shop/db  tcp/5432: deny -> allow by {by}"]
    pool = "\nkind: IPPool\nmetadata: {name: a}\nspec: {cidr: 10.9.0.0/24}\n"
    assert await told(kv, pool) == []


async def test_what_is_mended_no_longer_counts_as_broken() -> None:
    kv = await stored(*ENDS)
    [good] = resources(policy("{action: Allow}"))
    broken = json.loads(to_json(good))
    broken["spec"]["ingress"][0]["action"] = "Perhaps"
    await kv.commit(Txn((), (Put(key_of(good), json.dumps(broken)),)))
    steps = await plan(kv, [change.delete(Given(good, "x.yaml:1"))])
    assert any("deny -> allow" in line for line in await verdict_changes(kv, steps))


NODE = """
kind: Node
metadata: {name: n1}
spec: {bgp: {ipv4Address: 192.0.2.11/24}}
"""
HOST = """
kind: HostEndpoint
metadata: {name: n1-eth0}
spec: {node: n1, interfaceName: eth0}
"""
SETTINGS = """
kind: FelixConfiguration
metadata: {name: default}
spec: {%s}
"""
WEB = ENDS[0]


def between(lines: list[str], *, first: str = "") -> list[str]:
    return [line.strip() for line in lines if "->" in line and line.strip().startswith(first)]


async def test_a_new_host_endpoint_closes_its_node_but_for_failsafe_ports() -> None:
    kv = await stored(WEB, NODE)
    found = await told(kv, HOST)
    [inwards] = between(found, first="outside -> host endpoint n1-eth0")
    assert inwards.endswith("any other tcp port: allow -> deny by end of profiles")
    assert "tcp/22" in found[0]
    assert "tcp/22" not in inwards
    [outwards] = between(found, first="host endpoint n1-eth0 -> outside")
    assert outwards.endswith("allow -> deny by end of profiles")
    assert "tcp/8080" not in str(found)


async def test_what_a_workload_may_to_its_own_host_is_looked_at() -> None:
    kv = await stored(WEB, NODE)
    found = await told(kv, SETTINGS % "defaultEndpointToHostAction: Accept")
    [line] = between(found)
    assert line.startswith("shop/web -> node n1  all of these: deny -> allow by ")
    assert line.endswith("defaultEndpointToHostAction Accept")
    assert between(await told(kv, SETTINGS % "defaultEndpointToHostAction: Drop")) == []


async def test_failsafe_ports_that_are_opened_or_closed_are_asked_for() -> None:
    kv = await stored(WEB, NODE, HOST)
    ports = "failsafeInboundHostPorts: [{protocol: TCP, port: 8080}]"
    found = between(await told(kv, SETTINGS % ports), first="outside -> host endpoint n1-eth0")
    assert [line for line in found if "tcp/8080: deny -> allow by failsafe ports" in line]
    assert [line for line in found if "tcp/22" in line and "allow -> deny" in line]


async def test_settings_that_decide_nothing_concern_nobody() -> None:
    kv = await stored(WEB, NODE)
    [line] = await told(kv, SETTINGS % "logSeverityScreen: Debug")
    assert line.startswith("no verdict changes (0 pairs")


async def test_a_policy_for_a_host_concerns_workloads_only_where_it_acts_on_what_is_forwarded() -> None:
    text = """
kind: GlobalNetworkPolicy
metadata: {name: closed}
spec: {selector: "!has(projectcalico.org/orchestrator)", types: [Ingress, Egress], applyOnForward: %s}
"""
    kv = await stored(WEB, NODE, HOST)
    assert not [line for line in between(await told(kv, text % "false")) if "shop/web" in line]
    denied = between(await told(kv, text % "true"), first="shop/web -> outside")
    assert denied == ["shop/web -> outside  any other tcp port: allow -> deny by end of tier default"]


async def test_a_host_endpoint_that_nothing_tells_the_address_of_is_named() -> None:
    found = await told(await stored(WEB), HOST)
    assert found[0].startswith(
        "what host endpoint n1-eth0 decides cannot be told: neither its expectedIPs nor"
    )


async def test_of_a_staged_policy_it_is_told_what_it_would_change() -> None:
    kv = await stored(*ENDS)
    staged = policy(WEB_ONLY, kind="StagedNetworkPolicy")
    assert await told(kv, staged) == [
        "once promoted: verdicts that change (3 pairs of ends tried, each with tcp/5432, any other tcp port):",
        f"  shop/old -> shop/db  all of these: allow -> deny by {END}",
        f"  shop/web -> shop/db  any other tcp port: allow -> deny by {END}",
        f"  outside -> shop/db  all of these: allow -> deny by {END}",
    ]
    ignored = staged.replace("spec: {", "spec: {stagedAction: Ignore, ")
    [line] = await told(kv, ignored)
    assert line.startswith("once promoted: no verdict changes")
    await kv.commit(Txn((), tuple(Put(key_of(one), to_json(one)) for one in resources(policy(WEB_ONLY)))))
    deletion = (
        "\nkind: StagedNetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {stagedAction: Delete}\n"
    )
    assert any("deny -> allow" in line for line in await told(kv, deletion))
