from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.model.base import Resource
from fabric.model.policy import StagedGlobalNetworkPolicy
from policy.compile import compile as compiled
from policy.form import (
    DIRECTIONS,
    AddressSet,
    Applied,
    Direction,
    End,
    Hook,
    Key,
    Policy,
    PortMember,
    PortSet,
    Prefix,
    Profile,
)
from policy.items import key
from policy.selector import parse
from policy.unread import Unread
from policy.world import Resources, World
from tests.unit.policing import (
    ALLOW,
    address,
    global_net_set,
    global_policy,
    host,
    namespace,
    net_set,
    node,
    policy,
    profile,
    staged,
    tier,
    workload,
    workload_key,
)

WEB, DB = workload_key("web"), workload_key("db")
HOST = Key("HostEndpoint", "", "h")
HOOKS: tuple[Hook, ...] = ("normal", "forward", "pre-dnat", "untracked")


def world(*resources: Resource, unread: tuple[Unread, ...] = ()) -> World:
    return compiled(replace(Resources.of(resources), unread=unread))


def layers(applied: Applied) -> list[tuple[str, list[str], str | None]]:
    """Return the tiers as text: each policy's name, and the default."""
    return [(tier.name, [each.key.name for each in tier.policies], tier.default) for tier in applied.tiers]


def nets(*texts: str) -> frozenset[Prefix]:
    return frozenset(map(ip_network, texts))


W = workload("web", "10.0.0.1", labels={"app": "web"})
D = workload("db", "10.0.0.2", labels={"app": "db"}, ports={"sql": 5432})
NAMESPACE = namespace("default", env="test")


# --- what applies -----------------------------------------------------------------------------------------------------


def test_an_endpoint_has_the_policies_that_select_it_of_the_direction_tier_by_tier() -> None:
    made = world(
        W,
        D,
        NAMESPACE,
        tier("first", 1, "Pass"),
        global_policy("first.all", tier="first", types=["Ingress", "Egress"]),
        policy("late", order=20, selector="app == 'web'", types=["Ingress"]),
        policy("early", order=10, types=["Ingress"]),
        policy("db", order=1, selector="app == 'db'", types=["Ingress"]),
        policy("elsewhere", "other", types=["Ingress"]),
        global_policy("kube-baseline.x", tier="kube-baseline", selector="app == 'web'", types=["Egress"]),
    )
    assert layers(made.applied(WEB, "Ingress")) == [
        ("first", ["first.all"], "Pass"),
        ("default", ["early", "late"], "Deny"),
    ]
    assert layers(made.applied(WEB, "Egress")) == [
        ("first", ["first.all"], "Pass"),
        ("kube-baseline", ["kube-baseline.x"], "Pass"),
    ]
    assert layers(made.applied(DB, "Ingress"))[1:] == [("default", ["db", "early"], "Deny")]
    assert [each.name for each in made.applied(WEB, "Egress").profiles] == ["kns.default"]


def test_profiles_are_in_the_endpoints_order_and_those_that_are_missing_left_out() -> None:
    made = world(workload("web", profiles=("b", "missing", "a")), profile("a"), profile("b"))
    assert [each.name for each in made.applied(WEB, "Ingress").profiles] == ["b", "a"]
    assert made.endpoints[WEB].profiles == ("b", "missing", "a")


def test_a_tier_of_staged_policies_alone_has_no_end() -> None:
    only = staged(StagedGlobalNetworkPolicy, "s", order=5)
    assert layers(world(W, only).applied(WEB, "Ingress")) == [("default", ["s"], None)]
    assert layers(world(W, only, policy("p", order=9)).applied(WEB, "Ingress")) == [
        ("default", ["s", "p"], "Deny")
    ]


def test_the_default_allow_profile_is_there_whatever_a_resource_says() -> None:
    name = "projectcalico-default-allow"
    for made in (world(), world(profile(name, {"a": "b"}).model_copy(update={"spec": profile("x").spec}))):
        assert [rule.action for rule in made.profiles[name].ingress] == ["Allow"]
        assert [rule.action for rule in made.profiles[name].egress] == ["Allow"]


@pytest.mark.parametrize(
    ("hook", "direction", "want"),
    [
        ("normal", "Ingress", [("default", ["forward", "plain"], "Deny")]),
        ("normal", "Egress", [("default", ["forward", "plain"], "Deny")]),
        ("forward", "Ingress", [("default", ["forward"], "Deny")]),
        ("forward", "Egress", [("default", ["forward"], "Deny")]),
        ("pre-dnat", "Ingress", [("default", ["early"], None)]),
        ("pre-dnat", "Egress", []),
        ("untracked", "Ingress", [("default", ["untracked"], None)]),
        ("untracked", "Egress", [("default", ["untracked"], None)]),
    ],
)
@pytest.mark.parametrize("endpoint", [WEB, HOST])
def test_hooks(endpoint: Key, hook: Hook, direction: Direction, want: list[object]) -> None:
    both = ["Ingress", "Egress"]
    made = world(
        W,
        host("h", interfaceName="eth0", profiles=["a"]),
        profile("a"),
        global_policy("plain", order=2, types=both),
        global_policy("forward", order=1, types=both, applyOnForward=True),
        global_policy("early", types=["Ingress"], applyOnForward=True, preDNAT=True),
        global_policy("untracked", types=both, applyOnForward=True, doNotTrack=True),
    )
    found = made.applied(endpoint, direction, hook)
    # A workload has the normal hook alone; of the others' policies it has none.
    assert layers(found) == (want if endpoint == HOST or hook == "normal" else [])
    assert [each.name for each in found.profiles] == (["a"] if (endpoint, hook) == (HOST, "normal") else [])


def test_a_host_endpoint_is_in_no_namespace() -> None:
    made = world(
        host("h", interfaceName="eth0"),
        policy("p"),
        global_policy("in-any", namespaceSelector="all()"),
        global_policy("everything"),
    )
    assert layers(made.applied(HOST, "Ingress")) == [("default", ["everything"], "Deny")]


def test_there_is_nothing_for_who_is_not_there() -> None:
    with pytest.raises(KeyError):
        world().applied(WEB, "Ingress")


def test_equal_ids_are_equal_chains() -> None:
    made = world(
        W,
        workload("web2", labels={"app": "web"}),
        D,
        workload("web3", labels={"app": "web"}, profiles=("kns.default", "other")),
        NAMESPACE,
        profile("other"),
        policy("p", selector="app == 'web'", types=["Ingress", "Egress"]),
    )
    web, web2, db, web3 = (made.applied(workload_key(n), "Ingress") for n in ("web", "web2", "db", "web3"))
    assert web is web2
    assert len({web.id, db.id, web3.id, made.applied(WEB, "Egress").id}) == 4


@pytest.mark.parametrize(
    ("change", "same"),
    [
        pytest.param([policy("p", order=1, ingress=[ALLOW])], True, id="rules are the policy's own chain"),
        pytest.param([policy("p", order=2)], True, id="an order that moves nothing"),
        pytest.param([policy("p", order=5)], False, id="an order that moves it"),
        pytest.param([policy("p", order=1), tier("default", 1_000_000)], True, id="the tier as it is"),
        pytest.param([policy("p", order=1, tier="kube-admin")], False, id="another tier"),
        pytest.param([policy("p", order=1, selector="app == 'db'")], False, id="who is selected"),
    ],
)
def test_what_an_id_stands_for(change: list[Resource], same: bool) -> None:
    others = (W, NAMESPACE, policy("q", order=3))
    before = world(*others, policy("p", order=1)).applied(WEB, "Ingress")
    assert (world(*others, *change).applied(WEB, "Ingress").id == before.id) is same


# --- sets -------------------------------------------------------------------------------------------------------------


def peer(everywhere: str) -> Resource:
    return global_policy(
        "peer", selector="none == 'x'", ingress=[{**ALLOW, "source": {"selector": everywhere}}]
    )


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize(
    ("selector", "want"),
    [
        ("app == 'web'", nets("10.0.0.1/32")),
        ("has(app)", nets("10.0.0.1/32", "10.0.0.2/32")),
        ("a == 'b'", nets("192.0.2.0/24", "198.51.100.0/25", "2001:db8::/64", "203.0.113.1/32")),
        ("has(projectcalico.org/namespace) && a == 'b'", nets("192.0.2.0/24")),
        ('pcns.env == "test" && a == "b"', nets("192.0.2.0/24")),
        ("!has(projectcalico.org/namespace)", nets("198.51.100.0/25", "2001:db8::/64", "203.0.113.1/32")),
        ("app == 'gone'", nets()),
    ],
)
def test_members_are_endpoints_and_network_sets(selector: str, want: frozenset[Prefix], used: bool) -> None:
    made = world(
        W,
        D,
        NAMESPACE,
        net_set("s", "192.0.2.0/24", labels={"a": "b"}),
        global_net_set("g", "198.51.100.0/25", "2001:db8::/64", labels={"a": "b"}),
        host("h", expectedIPs=["203.0.113.1"], labels={"a": "b"}),
        *([peer(selector)] if used else []),
    )
    wanted = AddressSet(str(parse(selector)))
    assert made.members(wanted) == want
    assert made.members(wanted) is made.members(wanted)
    for text in ("10.0.0.1", "10.0.0.2", "192.0.2.9", "198.51.100.200", "2001:db8::7", "203.0.113.1"):
        inside = any(address(text) in net for net in want)
        assert made.holds(wanted, address(text)) is inside, text


def test_members_of_a_named_port() -> None:
    made = world(
        D,
        workload("db6", "10.0.0.3", "fd00::3", labels={"app": "db"}, ports={"sql": 5433, "http": 80}),
        W,
        host("h", expectedIPs=["203.0.113.1"], ports=[{"name": "sql", "protocol": "UDP", "port": 1}]),
    )
    tcp = {("10.0.0.2", 5432), ("10.0.0.3", 5433), ("fd00::3", 5433)}
    assert made.members(PortSet("all()", 6, "sql")) == {PortMember(address(a), 6, port) for a, port in tcp}
    assert made.members(PortSet("all()", 17, "sql")) == {PortMember(address("203.0.113.1"), 17, 1)}
    assert made.members(PortSet('app == "web"', 6, "sql")) == frozenset()


def test_who_has_an_address() -> None:
    one, other = workload("b", "10.0.0.1"), workload("a", "10.0.0.1")
    made = world(
        one, other, host("h", expectedIPs=["10.0.0.1", "192.0.2.1"]), net_set("s", "10.0.0.1", "10.0.0.7")
    )
    assert made.at(address("10.0.0.1")) is made.endpoints[workload_key("a")]
    assert made.at(address("192.0.2.1")) is made.endpoints[HOST]
    assert made.at(address("10.0.0.7")) is None


def test_the_endpoints_of_a_node() -> None:
    made = world(W, workload("far", node="n2"), host("h", interfaceName="*"), D)
    assert [each.key for each in made.local("n1")] == [HOST, DB, WEB]
    assert [each.key for each in made.hosts("n1")] == [HOST]
    assert made.local("n3") == made.hosts("n3") == ()


def test_addresses_that_are_told_apart_by_nothing_are_in_the_same_sets() -> None:
    rule = {**ALLOW, "protocol": "TCP", "destination": {"selector": "app == 'db'", "ports": ["sql", 80]}}
    made = world(
        W,
        D,
        workload("db2", "10.0.0.3", labels={"app": "db", "x": "y"}, ports={"sql": 5432}),
        workload("db3", "10.0.0.4", labels={"app": "db"}, ports={"sql": 1}),
        net_set("s", "192.0.2.0/24", labels={"app": "db"}),
        policy("p", ingress=[rule]),
    )
    db, db2, db3, web, in_set, outside = (
        made.told_by(address(text))
        for text in ("10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.1", "192.0.2.7", "198.51.100.1")
    )
    assert db == db2
    assert len({db, db3, web, in_set}) == 4
    assert outside == web == frozenset()


def test_all_addresses_of_a_container_are_its_own() -> None:
    first, second = workload("w", "10.0.0.1", "fd00::1"), workload("w", "10.0.0.2", interface="eth1")
    alike = (workload("w", "10.0.0.8", namespace="other"), workload("w", "10.0.0.9", node="n2"))
    one, two = workload_key("w"), workload_key("w", interface="eth1")
    made = world(first, second, *alike)
    assert made.endpoints[one].shared == (ip_network("10.0.0.2/32"),)
    assert made.endpoints[two].shared == (ip_network("10.0.0.1/32"), ip_network("fd00::1/128"))
    assert [made.endpoints[key(each)].shared for each in alike] == [(), ()]
    alone = compiled(Resources.of([first, *alike]), made)
    assert alone.endpoints[one].shared == ()


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_problems_are_told_by_object() -> None:
    http = [{**ALLOW, "http": {"methods": ["GET"]}}]
    made = world(
        policy("fine"),
        global_policy("t.p", tier="t"),
        policy("h", ingress=http),
        profile("a"),
        unread=(
            Unread(Key("NetworkPolicy", "x", "u"), {"spec": {}}, "bad"),
            Unread(Key("Profile", "", "kns.x"), None, "bad"),
            Unread(Key("Tier", "", "u"), None, "bad"),
            Unread(Key("WorkloadEndpoint", "x", "w"), None, "not of policy"),
        ),
    )
    assert {name: why.partition(":")[0].partition(";")[0] for name, why in made.problems.items()} == {
        "GlobalNetworkPolicy t.p": "spec.tier",
        "NetworkPolicy default/h": "spec.ingress[0].http",
        "NetworkPolicy x/u": "bad",
        "Profile kns.x": "bad",
        "Tier u": "bad",
    }
    assert made.problems["GlobalNetworkPolicy t.p"] == (
        "spec.tier: there is no tier t; until there is, the policy comes behind all tiers, and what it selects and "
        "does not decide is denied there"
    )


def test_an_untracked_policy_of_every_link_is_a_problem() -> None:
    untracked = global_policy("u", selector="has(app)", doNotTrack=True, applyOnForward=True)
    hosts = [host(name, labels={"app": "x"}, interfaceName="*") for name in ("b", "a")]
    one = host("c", labels={"app": "x"}, interfaceName="eth0")
    made = world(untracked, one, W)
    assert made.problems == {}
    after = compiled(Resources.of([untracked, one, W, *hosts]), made)
    assert after.problems == {
        "GlobalNetworkPolicy u": "spec.doNotTrack: it selects HostEndpoint a, which is for every link: what is "
        "not tracked is decided on links that have a host endpoint of their own"
    }
    assert compiled(Resources.of([untracked, one, W]), after).problems == {}


def test_a_policy_that_cannot_be_read_closes_what_it_selects_and_nothing_else() -> None:
    broken = Unread(
        Key("NetworkPolicy", "default", "b"), {"spec": {"selector": "app == 'web'", "ingress": "?"}}, "bad"
    )
    made = world(W, D, NAMESPACE, policy("p", order=1, ingress=[ALLOW]), unread=(broken,))
    (tier,) = made.applied(WEB, "Ingress").tiers
    assert [(each.key.name, each.broken) for each in tier.policies] == [("p", ""), ("b", "bad")]
    assert layers(made.applied(DB, "Ingress")) == [("default", ["p"], "Deny")]


def test_a_tier_that_cannot_be_read_stands_where_it_says() -> None:
    unread = (Unread(Key("Tier", "", "t"), {"spec": {"order": 1, "defaultAction": "?"}}, "bad"),)
    made = world(W, global_policy("t.p", tier="t"), policy("q"), unread=unread)
    assert layers(made.applied(WEB, "Ingress")) == [("t", ["t.p"], "Deny"), ("default", ["q"], "Deny")]


def test_a_host_endpoint_that_cannot_be_read_is_there_all_the_same() -> None:
    spec = {"node": "n1", "interfaceName": "eth0", "ports": "?"}
    lost = Unread(HOST, {"metadata": {"labels": {"app": "x"}}, "spec": spec}, "bad")
    made = world(global_policy("p", selector="app == 'x'"), unread=(lost,))
    assert [each.interface for each in made.hosts("n1")] == ["eth0"]
    assert layers(made.applied(HOST, "Ingress")) == [("default", ["p"], "Deny")]
    assert made.problems == {"HostEndpoint h": "bad; what of it can be read stands"}
    blind = Unread(HOST, {"spec": {"node": "n1"}}, "bad")
    after = compiled(replace(made.parts.resources, unread=(blind,)), made)
    assert after.hosts("n1") == ()
    assert "so it closes none" in after.problems["HostEndpoint h"]


# --- from the World before --------------------------------------------------------------------------------------------


def sets_of(policies: Iterable[Policy | Profile]) -> Iterator[AddressSet | PortSet]:
    for each in policies:
        for rule in (*(each.ingress or ()), *(each.egress or ())):
            yield from in_end(rule.source)
            yield from in_end(rule.destination)


def in_end(end: End) -> Iterator[AddressSet | PortSet]:
    yield from filter(None, (end.selected, end.not_selected))
    yield from (*end.named, *end.not_named)


def everything(made: World) -> dict[str, object]:
    """Return all that a World answers, and so have it worked out."""
    named = sets_of([*made.profiles.values(), *(each for tier in made.tiers for each in tier.policies)])
    others = (AddressSet("has(app)"), AddressSet("env == 'b'"), PortSet("has(app)", 6, "sql"))
    wanted = sorted({*named, *others}, key=str)
    addresses = [address(f"10.0.0.{n}") for n in range(9)]
    return {
        "tiers": made.tiers,
        "profiles": made.profiles,
        "endpoints": made.endpoints,
        "problems": made.problems,
        "local": [made.local(node) for node in ("n1", "n2")],
        "applied": [
            made.applied(key, direction, hook)
            for key in sorted(made.endpoints)
            for direction in DIRECTIONS
            for hook in HOOKS
        ],
        "members": {each: made.members(each) for each in wanted},
        "holds": [made.holds(each, a) for each in wanted if isinstance(each, AddressSet) for a in addresses],
        "at": [made.at(each) for each in addresses],
    }


TCP = {"action": "Allow", "protocol": "TCP"}
CLIENTS = [
    {**TCP, "source": {"selector": "has(app)"}, "destination": {"ports": ["sql", 80]}},
    {**TCP, "source": {"namespaceSelector": "env == 'a'", "notSelector": "app == 'db'"}},
]
SERVERS = [
    {"action": "Deny", "destination": {"notSelector": "app == 'web' || !has(app)"}},
    {"action": "Pass"},
]
BOTH = ["Ingress", "Egress"]


def app(name: str, value: str, *addresses: str, **more: Any) -> Resource:
    return workload(name, *addresses, labels={"app": value}, **more)


def logged(name: str, on: str, **labels: str) -> Resource:
    return profile(name, labels, annotations={"fabricctl.io/drop-log": on})


# What a walk changes, one object each, and what may be in its place; nothing may be, too.
PLACES: Sequence[Sequence[Resource | Unread]] = (
    [app("a", "web", "10.0.0.1"), app("a", "db", "10.0.0.1"), app("a", "web", "10.0.0.2", ports={"sql": 1})],
    [
        app("a", "web", "10.0.0.3", interface="eth1"),
        app("a", "web", "10.0.0.4", interface="eth1", ports={"sql": 2}),
    ],
    [app("b", "db", "10.0.0.1", ports={"sql": 3}), app("b", "web", profiles=("p", "kns.default"))],
    [
        app("c", "db", "10.0.0.5", namespace="other"),
        workload("c", "10.0.0.5", namespace="other", profiles=("p",)),
    ],
    [
        app("d", "web", "10.0.0.6", node="n2", orchestrator="k8s"),
        workload("d", node="n2", orchestrator="k8s"),
    ],
    [
        host("h", interfaceName="eth0", expectedIPs=["10.0.0.7"]),
        host("h", "n2", {"app": "db"}, interfaceName="*"),
        Unread(
            HOST,
            {"metadata": {"labels": {"app": "web"}}, "spec": {"node": "n1", "expectedIPs": ["10.0.0.7"]}},
            "bad",
        ),
        Unread(HOST, {"spec": {"node": "n1"}}, "bad"),
    ],
    [
        net_set("s", "10.0.0.1", "10.0.0.0/29", labels={"app": "x"}),
        net_set("s", "10.0.0.1", labels={"env": "a"}),
    ],
    [global_net_set("g", "10.0.0.0/29", labels={"app": "web"}), global_net_set("g", "10.0.0.8")],
    [
        namespace("default", env="a"),
        namespace("default", env="b"),
        logged("kns.default", "on", **{"pcns.env": "a"}),
    ],
    [
        namespace("other", env="a"),
        Unread(Key("Profile", "", "kns.other"), {"spec": {"labelsToApply": {"app": "q"}}}, "bad"),
    ],
    [profile("p", {"env": "a"}), profile("p", {"env": "b"}, {"source": {"selector": "env == 'a'"}})],
    [node("n1", drop_log="on"), node("n1")],
    [node("n2", drop_log="on")],
    [
        tier("t", 1),
        tier("t", 1, "Pass"),
        tier("t"),
        Unread(Key("Tier", "", "t"), {"spec": {"order": 2e6}}, "bad"),
    ],
    [tier("u", 1)],
    [
        policy("p", ingress=CLIENTS, egress=SERVERS),
        policy("p", ingress=CLIENTS[:1], selector="app == 'web'", order=2),
    ],
    [
        policy("q", order=1),
        policy("q", order=3, selector="app != 'web'"),
        policy("q", ingress=[{**ALLOW, "http": {}}]),
    ],
    [policy("r", "other", ingress=CLIENTS), policy("r", "other", order=1, types=["Ingress"])],
    [
        global_policy("t.g", tier="t", types=BOTH),
        global_policy("t.g", tier="t", selector="env == 'a'", egress=SERVERS),
    ],
    [
        global_policy(
            "u.g",
            tier="u",
            selector="env in {'a'}",
            ingress=[{**TCP, "source": {"selector": "has(app)", "ports": ["sql", 1]}}],
        ),
        global_policy("u.g", tier="t", order=1, egress=SERVERS),
    ],
    [
        global_policy("f", applyOnForward=True),
        global_policy("f", applyOnForward=True, doNotTrack=True, types=BOTH),
    ],
    [
        global_policy("n", namespaceSelector="env == 'a'"),
        Unread(Key("GlobalNetworkPolicy", "", "n"), {"spec": {}}, "bad"),
    ],
    [
        staged(StagedGlobalNetworkPolicy, "s", tier="t"),
        staged(StagedGlobalNetworkPolicy, "s", stagedAction="Ignore"),
    ],
)
STEP = st.tuples(st.integers(0, len(PLACES) - 1), st.integers(-1, 3))


def placed(state: Mapping[int, int], old: Resources) -> Resources:
    """Return what stands at each place, with the tuples of `old` that are the same, as an agent hands them over."""
    there = [PLACES[place][choice % len(PLACES[place])] for place, choice in state.items() if choice >= 0]
    new = Resources.of(each for each in there if isinstance(each, Resource))
    new = replace(new, unread=tuple(each for each in there if isinstance(each, Unread)))
    same = {
        name: value
        for name, value in vars(old).items()
        if len(value) == len(now := getattr(new, name))
        and all(a is b for a, b in zip(value, now, strict=True))
    }
    return replace(new, **same)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-1, 3), min_size=len(PLACES), max_size=len(PLACES)),
    st.lists(st.lists(STEP, max_size=3), max_size=8),
)
def test_a_world_depends_on_the_resources_and_not_on_the_one_before(
    first: list[int], walk: list[list[tuple[int, int]]]
) -> None:
    state = dict(enumerate(first))
    resources = placed(state, Resources())
    made = compiled(resources)
    everything(made)
    for step in walk:
        state.update(step)
        resources = placed(state, resources)
        made = compiled(resources, made)
        assert everything(made) == everything(compiled(resources))


def test_what_did_not_change_is_the_same_object() -> None:
    rule = {**ALLOW, "protocol": "TCP", "source": {"selector": "app == 'db'", "ports": ["sql", 80]}}
    other = policy("q", selector="app == 'db'", ingress=[ALLOW])
    resources = Resources.of([W, D, NAMESPACE, policy("p", selector="app == 'web'", ingress=[rule]), other])
    before = compiled(resources)
    everything(before)
    new = workload("new", "10.0.0.9", labels={"app": "new"})
    after = compiled(replace(resources, workloads=(*resources.workloads, new)), before)
    assert after.tiers is before.tiers
    for each in (WEB, DB):
        assert after.endpoints[each] is before.endpoints[each]
        assert all(after.applied(each, d) is before.applied(each, d) for d in DIRECTIONS)
    for wanted in set(sets_of(before.tiers[1].policies)):
        assert after.members(wanted) is before.members(wanted)


def test_a_changed_policy_leaves_the_others_lists_alone() -> None:
    mine, other = policy("p", selector="app == 'web'", ingress=[ALLOW]), policy("q", selector="app == 'db'")
    before = compiled(Resources.of([W, D, NAMESPACE, mine, other]))
    everything(before)
    changed = policy("p", selector="app == 'web'", ingress=[{"action": "Deny"}])
    after = compiled(replace(before.parts.resources, policies=(changed, other)), before)
    assert after.applied(DB, "Ingress") is before.applied(DB, "Ingress")
    was, now = before.applied(WEB, "Ingress"), after.applied(WEB, "Ingress")
    assert (was.id, was == now) == (now.id, False)


def test_the_world_before_stays_what_it_was() -> None:
    before = compiled(Resources.of([W, NAMESPACE, policy("p", selector="app == 'web'")]))
    want = everything(before)
    compiled(Resources.of([D, policy("p")]), before)
    assert everything(before) == want
