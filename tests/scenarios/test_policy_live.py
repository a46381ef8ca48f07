"""Policy while it changes: what is cut and what is not, what heals, what is told, and that nothing opens on the way.

node1 has its rules in nftables, node2 in the legacy tables.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any, Literal

import pytest

from fabric.lab import faults
from fabric.model.base import Resource
from fabric.ops.files import sound
from policy.evaluate import verdicts
from policy.form import Key, Packet
from policy.items import key
from policy.scene import asking, packet, scene, who
from tests.probing import Shot, answered
from tests.scenarios.fabric import until
from tests.scenarios.policy_lab import NAMES, PATTERNS, PolicyLab, Stream, policies, suite, up

CUT_WITHIN = 1.0  # seconds from `apply` to the last packet of a connection that is denied now
TOLD_WITHIN = 2.0
HEALED_WITHIN = {"node1": 1.0, "node2": 10.0}  # nftables notify, the legacy tables are looked at
IPTABLES = {"node1": "iptables-nft", "node2": "iptables-legacy"}
PORT = "7000"
SEED = 5


@pytest.fixture(scope="module")
def lab() -> Iterator[PolicyLab]:
    """One lab for all of the tests below, each of which leaves it without policy."""
    with up() as lab:
        yield lab


def policy(name: str, spec: dict[str, Any], kind: str = "NetworkPolicy", **annotations: str) -> str:
    """Return a policy of the namespace prod."""
    metadata: dict[str, Any] = {
        "name": name,
        "annotations": {f"fabricctl.io/{k}": v for k, v in annotations.items()},
    }
    if not kind.startswith("Global"):
        metadata["namespace"] = "prod"
    return json.dumps(
        {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec}
    )


def denying(selector: str, *sources: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of a policy that denies these sources, and nothing else, to come in."""
    deny = [{"action": "Deny", "source": source} for source in sources]
    return {"selector": selector, "ingress": [*deny, {"action": "Allow"}]}


DEV = {"namespaceSelector": "purpose == 'testing'"}
OUTSIDE = {"nets": ["10.10.4.0/24"]}


def reaches(lab: PolicyLab, source: str, destination: str, word: str = "tcp/80") -> bool:
    sent = packet(who(lab.scene, source), who(lab.scene, destination), asking(word))
    shot = Shot(
        source, Packet(sent.source, sent.destination, sent.protocol, 0, sent.destination_port, sent.icmp)
    )
    return answered(lab.probers, [shot], 0.3) == [True]


# Live connections


@contextmanager
def published(lab: PolicyLab) -> Iterator[None]:
    """Port 7001 of node1 is prod/web's, as a container engine publishes one."""
    rule = ["PREROUTING", "-p", "tcp", "-d", "10.10.1.2", "--dport", "7001"]
    rule += ["-j", "DNAT", "--to-destination", f"{lab.address('prod/web')}:{PORT}"]
    lab.on("node1", "iptables", "-t", "nat", "-A", *rule)
    try:
        yield
    finally:
        lab.on("node1", "iptables", "-t", "nat", "-D", *rule)


def longest(times: list[float]) -> float:
    return max(after - before for before, after in pairwise(times))


@pytest.mark.alone
def test_a_change_cuts_what_it_denies_within_a_second_and_nothing_else(lab: PolicyLab) -> None:
    web, db = lab.address("prod/web"), lab.address("prod/db")
    with ExitStack() as running:
        running.enter_context(published(lab))
        running.enter_context(lab.stream("prod/web", "serve", PORT))
        running.enter_context(lab.stream("prod/db", "serve", PORT))

        def take(place: str, *words: str) -> Stream:
            return running.enter_context(lab.stream(place, "take", *words))

        cut = {
            "TCP, only the server sends": take("dev/client", "tcp", web, PORT),
            "UDP, only the server sends": take("dev/client", "udp", web, PORT),
            "from another node": take("dev/debug", "tcp", web, PORT),
            "from outside": take("outside", "udp", web, PORT),
            "to a published port": take("outside", "tcp", "10.10.1.2", "7001"),
            "IPv6": take("dev/client", "tcp", lab.address("prod/web", 6), PORT),
            "TCP, on node2": take("dev/debug", "tcp", db, PORT),
            "UDP, on node2": take("dev/debug", "udp", db, PORT),
        }
        spared = {
            "TCP": take("prod/batch", "tcp", web, PORT),
            "UDP": take("prod/batch", "udp", web, PORT),
            "from another node": take("prod/db", "tcp", web, PORT),
            "on node2": take("prod/api", "udp", db, PORT),
        }
        with lab.applied(policy("cut", denying("app in {'web', 'db'}", DEV, OUTSIDE))):
            changed = time.monotonic()
            for name, stream in cut.items():
                assert stream.line() == "silent", name
            ended = {name: stream.end()[-1] for name, stream in cut.items()}
        late = {name: last - changed for name, last in ended.items() if last > changed + CUT_WITHIN}
        assert not late
        for name, stream in spared.items():
            times = stream.end()
            assert times[-1] > max(ended.values()), name
            assert longest(times) < CUT_WITHIN / 2, name


def test_a_connection_goes_on_that_is_allowed_again(lab: PolicyLab) -> None:
    web = lab.address("prod/web")
    with (
        lab.stream("prod/web", "serve", PORT),
        lab.stream("dev/client", "take", "udp", web, PORT) as udp,
        lab.stream("dev/client", "take", "tcp", web, PORT) as tcp,
    ):
        with lab.applied(policy("cut", denying("app == 'web'", DEV))):
            assert (udp.line(), tcp.line()) == ("silent", "silent")
        assert (udp.line(), tcp.line()) == ("comes", "comes")


@pytest.mark.alone
def test_a_policy_may_keep_what_is_live(lab: PolicyLab) -> None:
    kept = policy("kept", denying("app == 'web'", DEV), **{"on-change": "keep"})
    with (
        lab.stream("prod/web", "serve", PORT),
        lab.stream("prod/batch", "serve", PORT),
        lab.stream("dev/client", "take", "tcp", lab.address("prod/web"), PORT) as live,
        lab.stream("dev/client", "take", "tcp", lab.address("prod/batch"), PORT) as other,
        lab.applied(f"{kept}\n---\n{policy('cut', denying(_app('client'), DEV))}"),
    ):
        assert other.line() == "silent"
        assert not reaches(lab, "dev/client", "prod/web")
        last = other.end()[-1]
        times = live.end()
    assert times[-1] > last
    assert longest(times) < CUT_WITHIN / 2


def _app(name: str) -> str:
    return f"app == '{name}'"


# Labels


def test_a_label_of_a_namespace_changes_who_is_let_in(lab: PolicyLab) -> None:
    with lab.applied(policies("from-namespace")):
        until(lambda: not reaches(lab, "ops/monitor", "prod/web"))
        lab.ctl("apply", "-f", "-", stdin=namespace("ops", team="operations", purpose="testing"))
        until(lambda: reaches(lab, "ops/monitor", "prod/web"))
        lab.ctl("apply", "-f", "-", stdin=namespace("ops", team="operations", purpose="none"))
        until(lambda: not reaches(lab, "ops/monitor", "prod/web"))


def namespace(name: str, **labels: str) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})


# What is told


@pytest.mark.alone
def test_a_denied_packet_is_named_within_two_seconds(lab: PolicyLab) -> None:
    for node, source, destination in (("node1", "dev/client", "prod/web"), ("node2", "dev/debug", "prod/db")):
        app = destination.removeprefix("prod/")
        with lab.applied(policy("logged", denying(_app(app), DEV), **{"drop-log": "on"})):
            until(lambda s=source, d=destination: not reaches(lab, s, d))  # type: ignore[misc]

            def lines(node: str = node, source: str = source) -> list[Any]:
                return [one for one in lab.log(node, "packet denied") if one["source_endpoint"] == source]

            (line, *_) = until(lines, TOLD_WITHIN)
            assert {key: line[key] for key in ("destination_endpoint", "policy", "rule", "direction")} == {
                "destination_endpoint": destination,
                "policy": "NetworkPolicy prod/logged",
                "rule": 0,
                "direction": "ingress",
            }
            assert (line["protocol"], line["destination_port"]) == ("tcp", 80)


def test_show_counts_what_each_rule_met(lab: PolicyLab) -> None:
    with lab.applied(policy("counted", denying(_app("web"), DEV))):
        until(lambda: not reaches(lab, "dev/client", "prod/web"))
        before = counts(lab, "node1", "prod/web", "NetworkPolicy prod/counted")
        assert reaches(lab, "prod/batch", "prod/web")
        for _ in range(3):
            assert not reaches(lab, "dev/client", "prod/web")
        after = counts(lab, "node1", "prod/web", "NetworkPolicy prod/counted")
        assert [b - a for a, b in zip(before, after, strict=True)] == [3, 1]
        assert "prod/counted" in lab.on("node1", "fabricctl", "policy", "show", "prod/web").stdout


def counts(lab: PolicyLab, node: str, workload: str, name: str) -> list[int]:
    """Return the packets of each of the policy's ingress rules."""
    layers = lab.ask(node, "policy", "show", workload)["ingress"]
    (layer,) = [layer for layer in layers if layer["name"] == name]
    return [rule["packets"] for rule in layer["rules"]]


def test_trace_names_the_rule(lab: PolicyLab) -> None:
    with lab.applied(policy("traced", denying(_app("web"), DEV))):
        done = lab.lab.exec(
            "etcd",
            ["fabricctl", "--etcd", "127.0.0.1:2379", "policy", "trace", "dev/client", "prod/web", "tcp/80"],
            check=False,
        )
        assert done.returncode == 1
        assert "NetworkPolicy prod/traced ingress rule 0" in done.stdout


# Staging


def test_a_staged_policy_counts_and_denies_once_it_is_promoted(lab: PolicyLab) -> None:
    with lab.applied(policy("step", denying(_app("web"), DEV))):
        until(lambda: not reaches(lab, "dev/client", "prod/web"))
        lab.ctl("policy", "stage", "step", "-n", "prod")
        until(lambda: reaches(lab, "dev/client", "prod/web"))
        staged = "StagedNetworkPolicy prod/step"
        before = counts(lab, "node1", "prod/web", staged)[0]
        assert reaches(lab, "dev/client", "prod/web")
        assert counts(lab, "node1", "prod/web", staged)[0] == before + 1
        lab.ctl("policy", "promote", "step", "-n", "prod")
        until(lambda: not reaches(lab, "dev/client", "prod/web"))


# What others do


@pytest.mark.alone
def test_a_flush_by_somebody_else_is_healed_and_told_once(lab: PolicyLab) -> None:
    denied = {"node1": ("dev/client", "prod/web"), "node2": ("dev/debug", "prod/db")}
    with lab.applied(policies("deny-all-ingress")):
        for source, destination in denied.values():
            until(lambda s=source, d=destination: not reaches(lab, s, d))  # type: ignore[misc]
        told = {node: len(lab.log(node, GAP)) for node in denied}
        with ExitStack() as running:
            pokes = {
                node: running.enter_context(lab.stream(source, "poke", "tcp", lab.address(destination), "80"))
                for node, (source, destination) in denied.items()
            }
            flushed = {}
            for node in denied:
                lab.on(node, IPTABLES[node], "-F")
                flushed[node] = time.monotonic()
            for node in denied:
                until(lambda node=node: len(lab.log(node, GAP)) > told[node], 20)  # type: ignore[misc]
            through = {node: stream.end() for node, stream in pokes.items()}
        for node, times in through.items():
            assert all(at < flushed[node] + HEALED_WITHIN[node] for at in times), node
            assert len(lab.log(node, GAP)) == told[node] + 1
        for source, destination in denied.values():
            assert not reaches(lab, source, destination)


GAP = "policy was changed by somebody else; put back"


def test_dockers_policy_of_dropping_beside_us_changes_nothing(lab: PolicyLab) -> None:
    try:
        for node, tool in IPTABLES.items():
            lab.on(node, tool, "-P", "FORWARD", "DROP")
        assert lab.missed(suite("no-policy").cases) == []
        with lab.applied(policies("pod-and-namespace")):
            until(lambda: not lab.missed(suite("pod-and-namespace").cases))
    finally:
        for node, tool in IPTABLES.items():
            lab.on(node, tool, "-P", "FORWARD", "ACCEPT")


# Bad input


def test_a_policy_that_cannot_be_read_denies_what_it_selects_and_is_told_once(lab: PolicyLab) -> None:
    spec = {
        "selector": _app("web"),
        "types": ["Ingress"],
        "ingress": [{"action": "Allow", "protocol": "TCP", "destination": {"ports": ["90:80"]}}],
    }
    key = "/calico/resources/v3/projectcalico.org/networkpolicies/prod/upside-down"
    lab.on("etcd", "etcdctl", "put", key, policy("upside-down", spec))
    try:
        until(lambda: not reaches(lab, "prod/batch", "prod/web"))
        assert reaches(lab, "prod/batch", "prod/api")
        assert reaches(lab, "prod/web", "prod/api")
        until(lambda: "upside-down" in lab.on("node1", "fabricctl", "node", "status", check=False).stdout)
        with lab.applied(policies("deny-all-egress")):
            until(lambda: not reaches(lab, "prod/web", "prod/api"))
        until(lambda: reaches(lab, "prod/web", "prod/api"))
        told = [
            line
            for line in lab.on("node1", "cat", "/var/lib/fabricctl/node.log").stdout.splitlines()
            if f'"key": "{key}"' in line  # connections that it denies are told of as well
        ]
        assert len(told) == 1, told
    finally:
        lab.on("etcd", "etcdctl", "del", key)
    until(lambda: reaches(lab, "prod/batch", "prod/web"))


# Walks


FLOWS = {"node1": ("prod/batch", "prod/web"), "node2": ("prod/db", "prod/api")}  # never to be let through
CALLED = "tcp/23"
LEGS = 8  # every second of which an agent is killed


@dataclass(frozen=True)
class Document:
    """One resource of a pattern, as its file has it and as it is stored."""

    text: str
    stored: Resource

    @property
    def is_tier(self) -> bool:
        return self.stored.kind == "Tier"


State = dict[Key, Document]
Step = tuple[Literal["apply", "delete"], Document]


def documents(name: str) -> State:
    stored = sound([str(PATTERNS / f"{name}.yaml")])
    texts = policies(name).split("\n---\n")
    return {key(one): Document(text, one) for text, one in zip(texts, stored, strict=True)}


def denies(lab: PolicyLab, state: State) -> bool:
    """Whether both flows are denied where this is all the policy there is."""
    of = scene([*lab.resources, *(document.stored for document in state.values())])
    return not any(
        verdicts(of.world, packet(who(of, a), who(of, b), asking(CALLED)), of.sites).allowed
        for a, b in FLOWS.values()
    )


def after(state: State, step: Step) -> State:
    verb, document = step
    rest = {k: v for k, v in state.items() if k != key(document.stored)}
    return rest if verb == "delete" else rest | {key(document.stored): document}


def leg(lab: PolicyLab, state: State, goal: State, random: Random) -> list[Step]:
    """Return a way from one state to the other, one resource at a time, that is closed all along; or none."""
    steps: list[Step] = [("apply", one) for name, one in goal.items() if state.get(name) != one]
    steps += [("delete", one) for name, one in state.items() if name not in goal]
    random.shuffle(steps)
    # A tier is there before its policies, and goes after them.
    steps.sort(key=lambda step: step[1].is_tier if step[0] == "delete" else -step[1].is_tier)
    way: list[Step] = []
    while steps:
        step = next((one for one in steps if denies(lab, after(state, one))), None)
        if step is None:
            return []
        steps.remove(step)
        way.append(step)
        state = after(state, step)
    return way


def test_no_change_opens_a_gap_also_where_agents_are_killed_meanwhile(lab: PolicyLab) -> None:
    random = Random(SEED)
    closed = [name for name in NAMES if denies(lab, documents(name))]
    name, legs = random.choice(closed), 0
    state = documents(name)
    lab.ctl("apply", "-f", "-", stdin=policies(name))
    until(lambda: not any(reaches(lab, *flow, CALLED) for flow in FLOWS.values()))
    with ExitStack() as running:
        pokes = [
            running.enter_context(lab.stream(source, "poke", "tcp", lab.address(destination), CALLED[4:]))
            for source, destination in FLOWS.values()
        ]
        while legs < LEGS:
            name = random.choice(closed)
            goal = documents(name)
            for verb, document in leg(lab, state, goal, random):
                lab.ctl(verb, "-f", "-", stdin=document.text)
                state = after(state, (verb, document))
            if state != goal:
                continue
            legs += 1
            print(name)
            if legs % 2 == 0:
                faults.kill(lab.lab, "agent", random.choice([*FLOWS]))
            until(lambda name=name: not lab.missed(suite(name).cases))  # type: ignore[misc]
        opened = [stream.end() for stream in pokes]
    lab.ctl("delete", "-f", "-", stdin=policies(name))
    assert opened == [[], []]
