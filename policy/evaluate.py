"""Decide what becomes of one packet, and name everything that was asked on the way, in the order of asking.

`evaluate` asks one list: one direction of one endpoint at one hook. `verdicts` follows a packet from end to end: who
is asked where. Both are held to the kernel by a property test (tests/contract/test_policy_kernel.py), so what they
do is what the rules of `policy.render` do, and nothing else. Source: calico-semantics §§2.2, 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from policy import hosts
from policy.form import (
    ICMPV6,
    UDP,
    Address,
    Applied,
    AppliedTier,
    Direction,
    End,
    Endpoint,
    Failsafe,
    Hook,
    Icmp,
    Key,
    Origin,
    Packet,
    Policy,
    PortMember,
    PortSet,
    Prefix,
    Rule,
    Site,
    What,
)
from policy.world import World

IPIP: Final = 4  # the protocol's number
NEIGHBOUR_DISCOVERY: Final = range(133, 137)  # ICMPv6 types

Did: TypeAlias = Literal["Allow", "Deny", "Pass", "Log", ""]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was asked: a rule, a policy without rules in this direction, or the end of a list.

    `tier` is "" behind the tiers. `matched` says whether it had an answer, `did` what the answer was; a rule that did
    not match has its action all the same.
    """

    tier: str
    origin: Origin
    did: Did
    matched: bool
    rule: Rule | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one list says; `origin` is None where nothing in it decided, and the packet goes on.

    `staged` are the staged rules that had an answer, one a tier, and the ends of tiers that would have denied if
    their staged policies were enforced; each with what it would have done in `steps`.
    """

    allowed: bool
    origin: Origin | None
    steps: tuple[Step, ...] = ()
    staged: tuple[Origin, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """One end of a packet: who was asked on which node, at which hook, and the answer.

    `endpoint` is None where nobody is asked there. `missing` are the profiles that it names and that do not exist.
    """

    direction: Direction
    node: str
    endpoint: Endpoint | None
    hook: Hook
    verdict: Verdict
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Passage:
    """Everybody who is asked about a packet, in the order in which it meets them, also behind one that denies."""

    packet: Packet
    asked: tuple[Asked, ...]

    @property
    def allowed(self) -> bool:
        return all(asked.verdict.allowed for asked in self.asked)

    @property
    def decisive(self) -> tuple[Asked, ...]:
        """Those that decided: the first that denies, or else all that allow and are not nobody."""
        denies = tuple(asked for asked in self.asked if not asked.verdict.allowed)
        return denies[:1] or tuple(
            asked
            for asked in self.asked
            if asked.verdict.origin and asked.verdict.origin.what != "no-endpoint"
        )


def evaluate(
    world: World, applied: Applied, direction: Direction, packet: Packet, hook: Hook = "normal"
) -> Verdict:
    """Ask one list. At the hooks but "normal" what nothing decides goes on; there it is denied."""
    return _Asking(world, applied, direction, packet, hook).verdict()


class _Asking:
    def __init__(
        self, world: World, applied: Applied, direction: Direction, packet: Packet, hook: Hook
    ) -> None:
        self.world, self.applied, self.packet = world, applied, packet
        self.direction, self.hook = direction, hook
        self.steps: list[Step] = []
        self.staged: list[Origin] = []

    def verdict(self) -> Verdict:
        for tier in self.applied.tiers:
            step = self._tier(tier)
            if step and step.did in {"Allow", "Deny"}:
                return self._made(step.did == "Allow", step.origin)
        if self.hook != "normal":
            return self._made(True, None)
        for profile in self.applied.profiles:
            rules = profile.rules(self.direction)
            step = self._rules("", Origin("profile", profile.name, self.direction), rules)
            if step and step.did in {
                "Allow",
                "Deny",
            }:  # Pass leaves this profile, and there is no further tier
                return self._made(step.did == "Allow", step.origin)
        end = Origin("no-profile", "", self.direction)
        self.steps.append(Step("", end, "Deny", True))
        return self._made(False, end)

    def _made(self, allowed: bool, origin: Origin | None) -> Verdict:
        return Verdict(allowed, origin, tuple(self.steps), tuple(self.staged))

    def _tier(self, tier: AppliedTier) -> Step | None:
        """Ask a tier; None where it has no answer, and the next one is asked."""
        staged = False  # a staged policy had an answer in this tier
        for policy in tier.policies:
            if policy.staged and staged:
                continue
            step = self._policy(tier.name, policy)
            if step is None:
                continue
            if not policy.staged:
                return step
            staged = True
            self.staged.append(step.origin)
        if tier.default is not None:
            end = Step(tier.name, Origin("tier", tier.name, self.direction), tier.default, True)
            self.steps.append(end)
            return end
        if not staged and self.hook in {"normal", "forward"} and self._denies_at_end(tier.name):
            origin = Origin("staged-tier", tier.name, self.direction, staged=True)
            self.steps.append(Step(tier.name, origin, "Deny", True))
            self.staged.append(origin)
        return None

    def _denies_at_end(self, tier: str) -> bool:
        return any(one.name == tier and one.default == "Deny" for one in self.world.tiers)

    def _policy(self, tier: str, policy: Policy) -> Step | None:
        name = str(policy.key)
        if policy.broken:
            broken = Origin("broken", name, self.direction, staged=policy.staged)
            self.steps.append(Step(tier, broken, "Deny", True))
            return self.steps[-1]
        origin = Origin("policy", name, self.direction, staged=policy.staged)
        rules = policy.rules(self.direction) or ()
        if not rules:
            self.steps.append(Step(tier, origin, "", False))
        return self._rules(tier, origin, rules)

    def _rules(self, tier: str, owner: Origin, rules: tuple[Rule, ...]) -> Step | None:
        """Ask rules in order; a Log goes on with the next one."""
        for rule in rules:
            origin = Origin(owner.what, owner.name, owner.direction, rule.index, owner.staged)
            step = Step(tier, origin, rule.action, matches(self.world, rule, self.packet), rule)
            self.steps.append(step)
            if step.matched and rule.action != "Log":
                return step
        return None


def matches(world: World, rule: Rule, packet: Packet) -> bool:
    """Whether all that `rule` asks for holds."""
    if rule.version is not None and rule.version != packet.source.version:
        return False
    if rule.protocol is not None and rule.protocol != packet.protocol:
        return False
    if rule.not_protocol is not None and rule.not_protocol == packet.protocol:
        return False
    if rule.icmp is not None and not _is_icmp(rule.icmp, packet.icmp):
        return False
    if rule.not_icmp is not None and _is_icmp(rule.not_icmp, packet.icmp):
        return False
    return _end_matches(
        world, rule.source, packet.source, packet.protocol, packet.source_port
    ) and _end_matches(world, rule.destination, packet.destination, packet.protocol, packet.destination_port)


def _is_icmp(wanted: Icmp, icmp: Icmp | None) -> bool:
    return icmp is not None and wanted.type == icmp.type and wanted.code in {None, icmp.code}


def _end_matches(world: World, end: End, address: Address, protocol: int, port: int) -> bool:
    if end.nets and not _within(address, end.nets):
        return False
    if _within(address, end.not_nets):
        return False
    if end.selected is not None and not world.holds(end.selected, address):
        return False
    if end.not_selected is not None and world.holds(end.not_selected, address):
        return False
    if (end.ports or end.named) and not (
        any(low <= port <= high for low, high in end.ports)
        or _named(world, end.named, address, protocol, port)
    ):
        return False
    return not (
        any(low <= port <= high for low, high in end.not_ports)
        or _named(world, end.not_named, address, protocol, port)
    )


def _within(address: Address, nets: tuple[Prefix, ...]) -> bool:
    return any(address in net for net in nets if net.version == address.version)


def _named(world: World, wanted: tuple[PortSet, ...], address: Address, protocol: int, port: int) -> bool:
    return any(PortMember(address, protocol, port) in world.members(one) for one in wanted)


def verdicts(
    world: World,
    packet: Packet,
    sites: Mapping[str, Site],
    *,
    sender: Key | None = None,
    arrived: Packet | None = None,
) -> Passage:
    """Follow a packet from its source's node to its destination's.

    `sites` are the nodes, as far as they are known. An address is that of a workload, else of a node's link or of a
    host endpoint, else outside of the cluster. `sender` is the workload that sends where that is not whose address
    the source is: it is then spoofed, or not allowed for. `arrived` is the packet as it was before DNAT: the hooks
    ahead of that see it so.
    """
    return Passage(packet, tuple(_Way(world, packet, sites, sender, arrived or packet).asked()))


class _Way:
    def __init__(
        self, world: World, packet: Packet, sites: Mapping[str, Site], sender: Key | None, arrived: Packet
    ) -> None:
        self.world, self.packet, self.sites, self.arrived = world, packet, sites, arrived
        self.source = world.endpoints[sender] if sender else world.at(packet.source)
        self.destination = world.at(packet.destination)
        self.from_node = self.source.node if self.source else self._node_of(packet.source)
        self.to_node = self.destination.node if self.destination else self._node_of(packet.destination)

    def asked(self) -> Iterator[Asked]:
        source, destination = self.source, self.destination
        if source is not None and source is destination and not source.is_host:
            return  # it never leaves the container
        local = self.from_node == self.to_node != ""
        from_workload = source is not None and not source.is_host
        to_workload = destination is not None and not destination.is_host
        if local and not from_workload:
            # To its own workloads a host may always; what it sends to itself leaves by no link.
            what: What = "from-host" if to_workload else "no-endpoint"
            yield _said("Egress", self.from_node, source, Origin(what, "", "Egress"))
            yield _said("Ingress", self.to_node, destination, Origin(what, "", "Ingress"))
            return
        if source is not None and from_workload:
            yield self._workload_sends(source, to_host=local and not to_workload)
            if local and not to_workload:
                yield self._to_host(destination)
                return
            if not local:
                yield from self._host("Egress", source.node, "forward")
        elif self.from_node:
            yield from self._host("Egress", self.from_node, "normal")
        else:
            yield _said("Egress", "", None, Origin("no-endpoint", "", "Egress"))
        if destination is not None and to_workload:
            if not local:
                yield from self._host("Ingress", destination.node, "forward")
            yield self._list("Ingress", destination, "normal")
        elif self.to_node:
            yield from self._host("Ingress", self.to_node, "normal")
        else:
            yield _said("Ingress", "", None, Origin("no-endpoint", "", "Ingress"))

    def _workload_sends(self, source: Endpoint, *, to_host: bool) -> Asked:
        packet, site = self.packet, self._site(source.node)
        others = source.other_sources(spoofing=site.spoofing)
        if packet.source not in source.addresses and not _within(packet.source, others):
            origin = Origin("spoofed", "", "Egress")
            return _said("Egress", source.node, source, origin, allowed=False)
        if to_host and _is_neighbour_discovery(packet):
            return _said("Egress", source.node, source, Origin("failsafe", "", "Egress"))
        tunnel = _tunnelled(packet, site)
        if (tunnel == "VXLAN" and not site.vxlan_from_workloads) or (
            tunnel == "IPIP" and not site.ipip_from_workloads
        ):
            origin = Origin("tunnel", "", "Egress")
            return _said("Egress", source.node, source, origin, allowed=False)
        return self._list("Egress", source, "normal")

    def _to_host(self, destination: Endpoint | None) -> Asked:
        if _is_neighbour_discovery(self.packet):
            return _said("Ingress", self.to_node, destination, Origin("failsafe", "", "Ingress"))
        # "Return" leaves it to the rules that the host has beside ours.
        action = self._site(self.to_node).to_host
        origin = Origin("to-host", action, "Ingress")
        return _said("Ingress", self.to_node, destination, origin, allowed=action != "Drop")

    def _list(self, direction: Direction, endpoint: Endpoint, hook: Hook) -> Asked:
        applied = self.world.applied(endpoint.key, direction, hook)
        verdict = evaluate(self.world, applied, direction, self._at(hook), hook)
        named = endpoint.profiles if hook == "normal" else ()
        missing = tuple(name for name in named if name not in self.world.profiles)
        return Asked(direction, endpoint.node, endpoint, hook, verdict, missing)

    def _host(self, direction: Direction, node: str, last: Literal["normal", "forward"]) -> Iterator[Asked]:
        """Ask the host endpoint of the link that the packet enters or leaves `node` by; `last` is its last hook."""
        endpoint = self._host_endpoint(direction, node, last)
        if endpoint is None:
            if last == "normal":
                yield _said(direction, node, None, Origin("no-endpoint", "", direction))
            return
        for hook in _hooks(direction, last):
            if hook != "normal" and not self.world.applied(endpoint.key, direction, hook).tiers:
                continue
            if hook == "untracked" and endpoint.interface == "*":
                continue  # nothing is untracked at all links at once (calico-semantics §4)
            if hook == "forward" or not _failsafe(direction, self._site(node), self._at(hook), hook):
                asked = self._list(direction, endpoint, hook)
            elif hook == "normal":
                asked = _said(direction, node, endpoint, Origin("failsafe", "", direction))
            else:
                continue  # it passes this hook, and no more: what answers a failsafe port goes by a port alone
            yield asked
            if asked.verdict.origin:
                return

    def _host_endpoint(
        self, direction: Direction, node: str, last: Literal["normal", "forward"]
    ) -> Endpoint | None:
        """Return the host endpoint of the link in question, as far as the site tells which one that is."""
        site = self._site(node)
        active = hosts.active(self.world, node, site.links)
        end = self.source if direction == "Egress" else self.destination
        links: list[str] = []
        if last == "normal":
            address = self.packet.source if direction == "Egress" else self.packet.destination
            links = [name for name, held in site.links.items() if address in held and name != "lo"]
            if not links and end and end.is_host:
                return end
        links = links or _uplinks(site, self.packet)
        return next((active[link] for link in links if link in active), None) or active.get("*")

    def _at(self, hook: Hook) -> Packet:
        return self.arrived if hook in {"untracked", "pre-dnat"} else self.packet

    def _site(self, node: str) -> Site:
        return self.sites.get(node) or Site(node)

    def _node_of(self, address: Address) -> str:
        for node, site in self.sites.items():
            if any(address in held for held in site.links.values()):
                return node
        return ""


def _uplinks(site: Site, packet: Packet) -> list[str]:
    """Return the links that what is forwarded may enter and leave by: those with a node's address, or else all."""
    version = packet.source.version
    found = [
        name
        for name, held in sorted(site.links.items())
        if name != "lo" and any(a.version == version and a in site.nodes for a in held)
    ]
    return found or sorted(site.links.keys() - {"lo"})


def _failsafe(direction: Direction, site: Site, packet: Packet, hook: Hook) -> bool:
    """Whether it is always let through; untracked, what answers has to be let through as well."""
    inwards = direction == "Ingress"
    far = packet.source if inwards else packet.destination
    own, others = (site.failsafe_in, site.failsafe_out)[:: 1 if inwards else -1]
    if _is_neighbour_discovery(packet) or _is_open(own, packet.protocol, packet.destination_port, far):
        return True
    tunnel = _tunnelled(packet, site)
    if own and far in site.nodes and (tunnel == "VXLAN" or (tunnel == "IPIP" and far.version == 4)):
        return True
    return hook == "untracked" and _is_open(others, packet.protocol, packet.source_port, far)


def _is_neighbour_discovery(packet: Packet) -> bool:
    icmp = packet.icmp
    return packet.protocol == ICMPV6 and icmp is not None and icmp.type in NEIGHBOUR_DISCOVERY


def _tunnelled(packet: Packet, site: Site) -> str:
    """Return which of our tunnels a packet is of, "" for none."""
    if packet.protocol == UDP and packet.destination_port == site.vxlan_port:
        return "VXLAN"
    return "IPIP" if packet.protocol == IPIP else ""


def _is_open(failsafes: tuple[Failsafe, ...], protocol: int, port: int, far: Address) -> bool:
    return any(
        (open_.protocol, open_.port) == (protocol, port) and (open_.net is None or _within(far, (open_.net,)))
        for open_ in failsafes
    )


def _said(
    direction: Direction,
    node: str,
    endpoint: Endpoint | None,
    origin: Origin,
    *,
    allowed: bool = True,
) -> Asked:
    """Return an end where one thing decides, without a list."""
    step = Step("", origin, "Allow" if allowed else "Deny", True)
    return Asked(direction, node, endpoint, "normal", Verdict(allowed, origin, (step,)))


def _hooks(direction: Direction, last: Literal["normal", "forward"]) -> tuple[Hook, ...]:
    # What is forwarded does not pass the OUTPUT chain of raw.
    if direction == "Ingress":
        return ("untracked", "pre-dnat", last)
    return ("untracked", "normal") if last == "normal" else ("forward",)
