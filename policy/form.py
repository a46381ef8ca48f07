"""The neutral form of policy: what resources are compiled to once, and what is evaluated, rendered and compared.

    resources ─▶ compile ─▶ World ─┬─▶ evaluate   verdicts, named: trace, tests, diff, live connections
                                   └─▶ render     chains and ipsets of one node, one family at a time

Values only. Selectors are canonical text here (`str(policy.selector.parse(text))`), so equal ones are one set.
Protocols are IANA's numbers. Both families are in one form; what is of the other family falls out when it is
rendered, never widens (calico-semantics §2.6).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, Literal, NamedTuple, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Prefix: TypeAlias = IPv4Network | IPv6Network
Labels: TypeAlias = Mapping[str, str]

Action: TypeAlias = Literal["Allow", "Deny", "Pass", "Log"]
Direction: TypeAlias = Literal["Ingress", "Egress"]
# Where policy acts. A workload has "normal" alone; a host endpoint also what is forwarded through it, what is
# decided before DNAT (ingress), and what is not tracked (calico-semantics §4).
Hook: TypeAlias = Literal["normal", "forward", "pre-dnat", "untracked"]

DIRECTIONS: Final[tuple[Direction, ...]] = ("Ingress", "Egress")

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58
SCTP: Final = 132
UDPLITE: Final = 136
PROTOCOLS: Final[Mapping[str, int]] = {
    "TCP": TCP,
    "UDP": UDP,
    "ICMP": ICMP,
    "ICMPv6": ICMPV6,
    "SCTP": SCTP,
    "UDPLite": UDPLITE,
}


class Key(NamedTuple):
    """A resource by kind, namespace ("" where it has none) and name."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class PortRange(NamedTuple):
    """Both ends are in it."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class AddressSet:
    """The addresses of every endpoint and network set that `selector` matches."""

    selector: str


@dataclass(frozen=True, slots=True)
class PortSet:
    """Address and port of every endpoint that `selector` matches and that has a port of this name and protocol."""

    selector: str
    protocol: int
    name: str


class PortMember(NamedTuple):
    """One member of a PortSet."""

    address: Address
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class Icmp:
    type: int
    code: int | None = None


@dataclass(frozen=True, slots=True)
class End:
    """What one end of a packet must be: everything that is given must hold, () and None are not given.

    `nets` and `ports` with `named` are alternatives within themselves (a port is one of `ports` or in one of
    `named`); their opposites must all fail. An address that no endpoint has is in no set.
    """

    nets: tuple[Prefix, ...] = ()
    not_nets: tuple[Prefix, ...] = ()
    selected: AddressSet | None = None
    not_selected: AddressSet | None = None
    ports: tuple[PortRange, ...] = ()
    named: tuple[PortSet, ...] = ()
    not_ports: tuple[PortRange, ...] = ()
    not_named: tuple[PortSet, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule as written; `index` is its place in its list, from 0. Matches a packet that all of it matches.

    `version` is the family that it is of, by ipVersion, by ICMP or by its nets; None is both. `note` are its
    annotations, as "key=value".
    """

    index: int
    action: Action
    version: Literal[4, 6] | None = None
    protocol: int | None = None
    not_protocol: int | None = None
    icmp: Icmp | None = None
    not_icmp: Icmp | None = None
    source: End = End()
    destination: End = End()
    note: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy of any kind.

    `ingress` and `egress` are None where the policy is not of that type. A staged one counts and decides nothing.
    `broken` says why it could not be compiled: it then has no rules, and denies what it selects, both ways if its
    types are not known either. `keep` spares live connections that a change of it denies; `drop_log` has denied
    packets named.
    """

    key: Key
    tier: str
    order: float | None
    selector: str
    ingress: tuple[Rule, ...] | None
    egress: tuple[Rule, ...] | None
    staged: bool = False
    do_not_track: bool = False
    pre_dnat: bool = False
    apply_on_forward: bool = False
    keep: bool = False
    drop_log: bool = False
    broken: str = ""

    def rules(self, direction: Direction) -> tuple[Rule, ...] | None:
        return self.ingress if direction == "Ingress" else self.egress


@dataclass(frozen=True, slots=True)
class Profile:
    """Rules behind all policy; its labels are in those of its endpoints already."""

    name: str
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()

    def rules(self, direction: Direction) -> tuple[Rule, ...]:
        return self.ingress if direction == "Ingress" else self.egress


class NamedPort(NamedTuple):
    name: str
    protocol: int
    port: int


@dataclass(frozen=True)
class Endpoint:
    """A workload or host endpoint, anywhere in the cluster, with the labels that selectors see (§2.4).

    `interface` of a host endpoint is "" where it goes by its addresses, "*" where it is every link without one of its
    own. `shared` are the addresses of the rest of its container, which are its own too; `spoofed` are others that it
    may send from where the site lets it. `drop_log` is its namespace's or its node's wish.
    """

    key: Key
    node: str
    interface: str
    addresses: frozenset[Address]
    labels: Labels = field(default_factory=dict)
    profiles: tuple[str, ...] = ()
    ports: tuple[NamedPort, ...] = ()
    shared: tuple[Prefix, ...] = ()
    spoofed: tuple[Prefix, ...] = ()
    drop_log: bool = False

    @property
    def is_host(self) -> bool:
        return self.key.kind == "HostEndpoint"

    def other_sources(self, *, spoofing: bool) -> tuple[Prefix, ...]:
        """Return what a workload may send from beside its addresses; `spoofing` is the site's."""
        return self.shared + self.spoofed if spoofing else self.shared


@dataclass(frozen=True)
class AppliedTier:
    """The policies of one tier that select an endpoint in one direction, in order, staged ones among them.

    `default` is what becomes of a packet that none of them decides. It is None where all of them are staged, or where
    the hook has no end (pre-DNAT, untracked): then the packet goes on to the next tier.
    """

    name: str
    policies: tuple[Policy, ...]
    default: Literal["Deny", "Pass"] | None


@dataclass(frozen=True)
class Applied:
    """Everything that decides one direction of one endpoint at one hook, in the order in which it is asked.

    Endpoints with equal `id` share chains. `profiles` are asked behind the last tier, in the endpoint's order; those
    that do not exist are left out. At the hooks but "normal" there are none.
    """

    id: str
    tiers: tuple[AppliedTier, ...] = ()
    profiles: tuple[Profile, ...] = ()


# What decides a packet, or counts it, apart from rules.
What: TypeAlias = Literal[
    "policy",  # a rule of a policy; `name` is str(key)
    "broken",  # a policy that could not be compiled
    "profile",  # a rule of a profile
    "tier",  # the end of a tier; `name` is the tier's
    "no-profile",  # no tier decided, and no profile allowed
    "staged-tier",  # the end of a tier whose policies are all staged would have denied
    "spoofed",  # a workload's packet from an address that is not its own
    "unknown-link",  # a link of ours that no endpoint has
    "invalid",  # conntrack cannot place the packet
    "cut",  # a live connection that a change of policy denied
    "tunnel",  # VXLAN or IPIP from within a workload
    "to-host",  # a workload to its own host: defaultEndpointToHostAction
    "from-host",  # a host to its own workloads is always allowed
    "failsafe",  # a port of a host endpoint that is always open
    "no-endpoint",  # no endpoint of ours at this end: nothing is asked
    "forward",  # forwarding that is none of ours keeps the verdict it had before us
]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a verdict, a counter or a logged packet is named after; `rule` counts from 0."""

    what: What
    name: str = ""
    direction: Direction = "Ingress"
    rule: int | None = None
    staged: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One rule of a chain as iptables-restore reads it, without `-A CHAIN` and the comment that marks it as ours."""

    text: str
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class IPSet:
    """`kind` is ipset's type; members are written as `ipset save` writes them, "10.0.0.0/26,fab0123456789ab"."""

    kind: Literal["hash:net", "hash:ip,port", "hash:net,iface", "bitmap:port"]
    version: Literal[4, 6]
    members: frozenset[str]


@dataclass(frozen=True)
class Rendered:
    """The rules of one family on one node: chains by table and name, jumps into them, the sets that they match.

    `first` are put at the top of a built-in chain, `last` at its end; both by (table, chain).
    """

    version: Literal[4, 6]
    chains: Mapping[tuple[str, str], tuple[Line, ...]]
    first: Mapping[tuple[str, str], tuple[Line, ...]]
    last: Mapping[tuple[str, str], tuple[Line, ...]]
    sets: Mapping[str, IPSet]


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection; ports are 0 and ICMP's fields None where the protocol has none."""

    source: Address
    destination: Address
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    icmp: Icmp | None = None


class Failsafe(NamedTuple):
    """A port of host endpoints that stays open; `net` narrows it to a far end, None is everyone."""

    protocol: int
    port: int
    net: Prefix | None = None


@dataclass(frozen=True)
class Site:
    """What of this node, beside the datastore's policy, its rules depend on.

    `links` are the host's own links, each with its addresses. `nodes` are the addresses of all nodes, ours included;
    `pools` all pools' prefixes. `spoofing` says that `Endpoint.spoofed` counts, `routed_before` that the host forwarded
    packets before we made it a router.
    """

    node: str
    links: Mapping[str, frozenset[Address]] = field(default_factory=dict)
    nodes: frozenset[Address] = frozenset()
    pools: frozenset[Prefix] = frozenset()
    to_host: Literal["Drop", "Accept", "Return"] = "Drop"
    failsafe_in: tuple[Failsafe, ...] = ()
    failsafe_out: tuple[Failsafe, ...] = ()
    vxlan_port: int = 4789
    vxlan_from_workloads: bool = False
    ipip_from_workloads: bool = False
    spoofing: bool = False
    drop_invalid: bool = True
    routed_before: bool = True
    mark_mask: int = 0xFFFF0000
