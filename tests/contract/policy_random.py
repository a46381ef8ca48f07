"""Random fabrics, policies for them and packets, from one seed: what evaluator and kernel are compared on.

Values are few, so that things meet: a rule of no packet's port, or of nobody's label, tells nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, TypeVar

from fabric.model.base import Resource, Tree
from fabric.model.wire import from_tree
from fabric.model.workloadendpoint import name_of
from policy.form import ICMP, ICMPV6, TCP, UDP, Address, Icmp, Packet
from tests.contract.policy_host import (
    CONTAINERS,
    IPIP,
    LISTENING,
    NODE,
    OTHER,
    PLACES,
    REMOTE,
    ROUTER,
    ROUTERS,
)
from tests.probing import Shot

T = TypeVar("T")

NAMESPACES = ("red", "blue")
APPS = ("web", "db", "api")
PORT_NAMES = ("http", "dns")
SOURCE_PORTS = range(2000, 2600)
TIERS = ("default", "first", "last")
ORDERS = (None, None, 1, 2, 10.5)
NETS = {
    4: ("10.65.0.0/16", "10.65.0.1/32", "10.65.0.2/31", "198.51.100.0/24", "203.0.113.5/32", "0.0.0.0/0"),
    6: ("fd00:65::/32", "fd00:65::1/128", "fd00:65::2/127", "2001:db8:51::/48", "2001:db8:52::5/128", "::/0"),
}
EXCEPT = {
    4: ("10.65.0.3/32", "198.51.100.64/26", "10.65.9.0/24", "10.65.7.0/24"),
    6: ("fd00:65::3/128", "2001:db8:51::40/122", "fd00:65:9::/48"),
}
# What containers may send from beside their own; one has in it what another container has a narrower one of.
SPOOFED = (("10.65.0.0/16", "fd00:65::/32"), ("10.65.7.0/24", "fd00:65:7::/48"))


class Chance:
    """What one seed gives: resources as they are stored, then packets."""

    def __init__(self, seed: object) -> None:
        self.random = Random(str(seed))

    def one(self, choices: Sequence[T]) -> T:
        return self.random.choice(choices)

    def some(self, choices: Sequence[T], most: int = 3) -> list[T]:
        return self.random.sample(choices, self.random.randint(1, min(most, len(choices))))

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    # Resources

    def resources(self) -> list[Resource]:
        """Return a fabric with its policies, all of it valid."""
        trees = [
            *self._tiers(),
            *self._profiles(),
            *(self._workload(NODE, place.name, place.own) for place in CONTAINERS),
            *(self._workload("node2", f"far{i}", own) for i, own in enumerate(REMOTE)),
            *(self._set(i) for i in range(self.random.randint(0, 3))),
            *self._hosts(),
            *(self._policy(i) for i in range(self.random.randint(0, 9))),
        ]
        return [valid(tree) for tree in trees]

    def _tiers(self) -> list[Tree]:
        return [
            _tree("Tier", tier, {"order": order, "defaultAction": self.one(("Deny", "Pass"))})
            for tier, order in (("first", 10), ("last", 2_000_000))
        ]

    def _profiles(self) -> list[Tree]:
        made = []
        for namespace in NAMESPACES:
            spec: Tree = {
                "ingress": [{"action": "Allow"}] if self.chance(0.8) else self._rules("Profile", "", 2),
                "egress": [{"action": "Allow"}] if self.chance(0.8) else self._rules("Profile", "", 2),
                "labelsToApply": {
                    "pcns.projectcalico.org/name": namespace,
                    **({"pcns.team": self.one(("x", "y"))} if self.chance(0.6) else {}),
                },
            }
            made.append(_tree("Profile", f"kns.{namespace}", spec))
        made.append(
            _tree(
                "Profile", "extra", {"ingress": self._rules("Profile", "", 2), "labelsToApply": {"own": "p"}}
            )
        )
        return made

    def _workload(self, node: str, name: str, addresses: Sequence[Address]) -> Tree:
        namespace = self.one(NAMESPACES)
        place = next((p for p in CONTAINERS if p.name == name), None)
        spec: Tree = {
            "orchestrator": "fabricctl",
            "workload": name,
            "node": node,
            "endpoint": "eth0",
            "interfaceName": place.link if place else f"fabfa{name:0>10}"[:15],
            "ipNetworks": [f"{a}/{a.max_prefixlen}" for a in addresses],
            "profiles": self._profile_names(namespace),
            "ports": [
                {"name": port, "protocol": self.one(("TCP", "UDP")), "port": self.one(LISTENING[TCP])}
                for port in PORT_NAMES
                if self.chance(0.5)
            ],
        }
        if place and self.chance(0.2):
            exact = tuple(f"{a}/{a.max_prefixlen}" for a in place.foreign)
            spec["allowSpoofedSourcePrefixes"] = self.one((exact, *SPOOFED))
        full = name_of((node, "fabricctl", name, "eth0"))
        return _tree("WorkloadEndpoint", full, spec, namespace, self._labels())

    def _profile_names(self, namespace: str) -> list[str]:
        own = f"kns.{namespace}"
        return self.one(([own], [own], [own, "extra"], ["extra", own], ["missing", own], ["extra"], []))

    def _labels(self) -> dict[str, str]:
        labels = {"app": self.one(APPS)} if self.chance(0.9) else {}
        return labels | ({"own": self.one(("p", "q"))} if self.chance(0.4) else {})

    def _set(self, number: int) -> Tree:
        version = self.one((4, 6))
        nets = self.some([*NETS[version], *EXCEPT[version], *NETS[4], *NETS[6]], 4)
        spec: Tree = {"nets": nets}
        if self.chance(0.5):
            return _tree("GlobalNetworkSet", f"set{number}", spec, labels=self._labels())
        return _tree("NetworkSet", f"set{number}", spec, self.one(NAMESPACES), self._labels())

    def _hosts(self) -> list[Tree]:
        made = []
        for name in ("h1", "h2"):
            if self.chance(0.4):
                spec: Tree = {"node": NODE, **self._host_end()}
                spec["profiles"] = self.some(("extra", "kns.red"), 1) if self.chance(0.5) else []
                made.append(_tree("HostEndpoint", name, spec, labels=self._labels() | {"host": "yes"}))
        return made

    def _host_end(self) -> Tree:
        ips = [str(address) for address in ROUTERS]
        return self.one(
            (
                {"interfaceName": "up0"},
                {"expectedIPs": ips},
                {"interfaceName": "*"},
                {"interfaceName": "up0", "expectedIPs": ips},
            )
        )

    def _policy(self, number: int) -> Tree:
        kind = self.one(("NetworkPolicy", "NetworkPolicy", "GlobalNetworkPolicy", "GlobalNetworkPolicy"))
        if self.chance(0.15):
            kind = f"Staged{kind}"
        tier = self.one(("default", "default", *TIERS))
        namespace = "" if "Global" in kind else self.one(NAMESPACES)
        types = self.one((["Ingress"], ["Egress"], ["Ingress", "Egress"]))
        spec: Tree = {
            "tier": tier,
            "types": types,
            "selector": self.selector() if self.chance(0.8) else "all()",
        }
        if (order := self.one(ORDERS)) is not None:
            spec["order"] = order
        if not namespace:
            if self.chance(0.3):
                spec["namespaceSelector"] = self.one(
                    ("all()", "team == 'x'", "projectcalico.org/name != 'blue'")
                )
            spec |= self._flags(types)
            if self.chance(0.4):
                spec["selector"] = self.one(("has(host)", "has(host) || app == 'web'"))
        for direction in types:
            if self.chance(0.9):
                spec[direction.lower()] = self._rules(kind, namespace, 6)
        name = f"p{number}" if tier == "default" else f"{tier}.p{number}"
        return _tree(kind, name, spec, namespace)

    def _flags(self, types: list[str]) -> Tree:
        if self.chance(0.5):
            return {}
        choices: list[Tree] = [{"applyOnForward": True}, {"applyOnForward": True, "doNotTrack": True}]
        if types == ["Ingress"]:
            choices.append({"applyOnForward": True, "preDNAT": True})
        return self.one(choices)

    def selector(self, depth: int = 1) -> str:
        if depth and self.chance(0.25):
            return self.one((" && ", " || ")).join(f"({self.selector(0)})" for _ in range(2))
        return self.one(
            (
                f"app == '{self.one(APPS)}'",
                f"app != '{self.one(APPS)}'",
                f"app in {{'{self.one(APPS)}', '{self.one(APPS)}'}}",
                f"app not in {{'{self.one(APPS)}'}}",
                "has(own)",
                "!has(own)",
                "own == 'p'",
                "has(host)",
                "all()",
                "app starts with 'w'",
                "pcns.projectcalico.org/name == 'red'",
            )
        )

    # Rules

    def _rules(self, kind: str, namespace: str, most: int) -> list[Tree]:
        return [self._rule(kind, namespace) for _ in range(self.random.randint(0, most))]

    def _rule(self, kind: str, namespace: str) -> Tree:
        while True:
            rule = self._maybe_rule(kind)
            tree = _tree("NetworkPolicy", "p", {"ingress": [rule]}, namespace or "red")
            if isinstance(from_tree(tree), Resource):
                return rule

    def _maybe_rule(self, kind: str) -> Tree:
        actions = ["Allow"] * 6 + ["Deny"] * 4 + ["Log"] + ([] if kind == "Profile" else ["Pass"])
        rule: Tree = {"action": self.one(actions)}
        version = self.one((4, 6))
        if self.chance(0.15):
            rule["ipVersion"] = version
        protocol = self.one((None, None, "TCP", "TCP", "UDP", "ICMP", "ICMP", "ICMPv6", "ICMPv6", OTHER, 6))
        if protocol is not None:
            rule["protocol"] = protocol
        if self.chance(0.1):
            rule["notProtocol"] = self.one(("TCP", "UDP", OTHER, "ICMP"))
        for name in ("icmp", "notICMP"):
            if protocol in {"ICMP", "ICMPv6"} and self.chance(0.5):
                rule[name] = self._icmp(protocol)
        for side in ("source", "destination"):
            if self.chance(0.5) and (end := self._end(version, protocol, "Profile" in kind)):
                rule[side] = end
        return rule

    def _icmp(self, protocol: object) -> Tree:
        type_ = self.one((8, 13, 17) if protocol == "ICMP" else (128, 139))
        return {"type": type_} | ({"code": self.one((0, 1, 3))} if self.chance(0.4) else {})

    def _end(self, version: int, protocol: object, plain: bool) -> Tree:
        end: Tree = {}
        if self.chance(0.2):
            end["nets"] = self.some(NETS[version])
        if self.chance(0.15):
            end["notNets"] = self.some(EXCEPT[version])
        if self.chance(0.25):
            end["selector"] = self.selector()
        if self.chance(0.1):
            end["notSelector"] = self.selector()
        if not plain and self.chance(0.12):
            end["namespaceSelector"] = self.one(("all()", "team == 'x'", "!has(team)", "global()"))
        ported = protocol in {"TCP", "UDP", 6}
        for name, probability in (("ports", 0.4), ("notPorts", 0.12)):
            if (ported or protocol is None) and self.chance(probability):
                end[name] = self._ports(ported)
        return end

    def _ports(self, ported: bool) -> list[Any]:
        if ported and self.chance(0.05):
            # More than one multiport match holds.
            return [*range(100, 120), "1000:2100", *self.some(LISTENING[TCP])]
        choices: list[Any] = [*PORT_NAMES]
        if ported:
            choices += [*LISTENING[TCP], *LISTENING[UDP], "1:100", "400:500", "5000:9000", "2000:2300"]
        return list(dict.fromkeys(self.some(choices)))

    # Packets

    def packets(self, count: int) -> list[Shot]:
        """Return packets of both families, none of which conntrack could take for one of another's connection."""
        ports = iter(self.random.sample(SOURCE_PORTS, len(SOURCE_PORTS)))
        shots: list[Shot] = []
        portless: set[frozenset[Address]] = set()
        while len(shots) < count:
            shot = self._packet(next(ports))
            packet, ends = shot.packet, frozenset({shot.packet.source, shot.packet.destination})
            if packet.protocol in {OTHER, IPIP}:
                if ends in portless:
                    continue
                portless.add(ends)
            shots.append(shot)
        return shots

    def _packet(self, source_port: int) -> Shot:
        while True:
            place = self.one((*CONTAINERS, *PLACES[-2:], *PLACES[-2:]))
            version = self.one((4, 6))
            foreign = place.foreign if self.chance(0.03) else ()
            source = self.one([a for a in foreign or place.own if a.version == version])
            target = self.one(PLACES)
            destination = self.one([a for a in target.own if a.version == version])
            # A host may send to its own containers, always: seldom worth a packet.
            dull = place.name == ROUTER and target in CONTAINERS and self.chance(0.8)
            if target is not place and not dull:
                break
        shape = self._shape(version, source_port)
        return Shot(place.name, Packet(source, destination, *shape))

    def _shape(self, version: int, source_port: int) -> tuple[Any, ...]:
        chosen = self.random.random()
        if chosen < 0.45:
            return TCP, source_port, self.one(LISTENING[TCP])
        if chosen < 0.65:
            return UDP, source_port, self.one(LISTENING[UDP])
        if chosen < 0.94:
            types = (8, 8, 8, 13, 17) if version == 4 else (128, 128, 128, 139)
            return ICMP if version == 4 else ICMPV6, 0, 0, Icmp(self.one(types), self.one((0, 0, 1)))
        return self.one((OTHER, OTHER, IPIP)), 0, 0


def valid(tree: Tree) -> Resource:
    """Return the resource as it is stored."""
    found = from_tree(tree)
    assert isinstance(found, Resource), (tree, found)
    return found.as_written()


def _tree(
    kind: str, name: str, spec: Tree, namespace: str = "", labels: dict[str, str] | None = None
) -> Tree:
    metadata: Tree = {"name": name} | ({"namespace": namespace} if namespace else {})
    if labels:
        metadata["labels"] = labels
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec}
