"""Decide what a lab's expectations mean: NAME.verify.yml beside NAME.clab.yml in, frozen values out.

    within: 30                     # seconds in which everything has to come true
    endpoints:                     # who talks to whom; a node's name stands for the node itself
      web: {node: node1, netns: web}
      web6: {node: node1, netns: web, family: 6}
      vip: {node: node2, address: 192.0.2.1}
    sessions:
      - {node: tor, peers: [10.10.1.2]}
    routes:                        # in the kernel's main table, or the router's own with `table: bgp`
      - {node: tor, table: bgp, present: [10.77.9.0/26], absent: [10.77.9.9/32]}
      - {node: node1, next-hops: {10.77.9.0/26: 2}}
    reach:                         # each `from` with each `to`: ping, or a tcp or udp port
      - {from: [web, host], to: vip}
      - {from: host, to: web, udp: 53, expect: refused}
    mtu:
      - {from: web, to: vip, bytes: 1500}
    untranslated:
      - {from: web, to: [vip, host], tcp: 80}
    encapsulated:                  # how packets cross a link: ipip, vxlan or native
      - {from: web, to: vip, as: vxlan, on: "tor:eth1"}
    translated:                    # as whom a server sees the client
      - {from: web, to: host, tcp: 80, as: 10.10.1.2}
    published:                     # a port of an address, and what it leads to: `port` of the endpoint `at`
      - {from: host, to: 10.10.1.2, tcp: 8080, at: web, port: 80}
      - {from: node1, to: 127.0.0.1, tcp: 8080, at: web, port: 80, sees: 10.10.1.2}
    leaks: none

Each line becomes as many expectations as it names peers, prefixes and pairs. fabric/lab/verify.py says what
each of them takes to hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

from fabric.errors import ConfigError
from fabric.lab import source as sources
from fabric.lab.routers import speaks_bgp
from fabric.lab.source import Place, Source, did_you_mean
from fabric.lab.topology import HOST, Node, Topology

WITHIN = 30.0  # seconds
OUR_NODE = "node"  # the profile of a node of the fabric
IPAM = "ipam"  # a place to look for leaks, beside nodes and HOST

Address: TypeAlias = IPv4Address | IPv6Address
Prefix: TypeAlias = IPv4Network | IPv6Network
_Entry = TypeVar("_Entry", bound="_Section")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A network namespace of a node, its own or one that `ip netns` knows there, and one of its addresses.

    The address is `address`, or else the first global one, of `family` if that is given, of IPv4 before IPv6
    if not. Those of the management network do not count.
    """

    name: str
    node: str
    netns: str = ""
    family: int | None = None
    address: Address | None = None

    @property
    def place(self) -> str:
        return f"{self.node}/{self.netns}" if self.netns else self.node


@dataclass(frozen=True, slots=True)
class Door:
    """An address and a port of it that lead to an endpoint's own."""

    address: Address
    port: int


@dataclass(frozen=True, slots=True)
class Flow:
    """What is sent: a ping, or something to a port, the target's own unless it is sent to a `door`."""

    source: Endpoint
    target: Endpoint
    protocol: Literal["ping", "tcp", "udp"] = "ping"
    port: int = 0
    door: Door | None = None

    def __str__(self) -> str:
        if door := self.door:
            behind = f"{self.target.name} {self.port}"
            return f"{self.source.name} -> {door.address} {self.protocol} {door.port} ({behind})"
        port = f" {self.protocol} {self.port}" if self.port else ""
        return f"{self.source.name} -> {self.target.name}{port}"


@dataclass(frozen=True, slots=True)
class SessionUp:
    """The node has an Established BGP session with `peer`."""

    line: int
    node: str
    peer: str
    what = "session"
    expected = "Established"

    @property
    def where(self) -> str:
        return f"{self.node} {self.peer}"


@dataclass(frozen=True, slots=True)
class Route:
    """Exactly `prefix` is in the node's table, or is not."""

    line: int
    node: str
    table: Literal["bgp", "kernel"]
    prefix: Prefix
    present: bool
    what = "route"

    @property
    def where(self) -> str:
        return f"{self.node} {self.table} {self.prefix}"

    @property
    def expected(self) -> str:
        return "present" if self.present else "absent"


@dataclass(frozen=True, slots=True)
class NextHops:
    """`prefix` is in the node's table with `count` different next hops."""

    line: int
    node: str
    table: Literal["bgp", "kernel"]
    prefix: Prefix
    count: int
    what = "next hops"

    @property
    def where(self) -> str:
        return f"{self.node} {self.table} {self.prefix}"

    @property
    def expected(self) -> str:
        return str(self.count)


@dataclass(frozen=True, slots=True)
class Reach:
    """The target answers, or, if `refused`, nothing gets through."""

    line: int
    flow: Flow
    refused: bool
    what = "reach"

    @property
    def where(self) -> str:
        return str(self.flow)

    @property
    def expected(self) -> str:
        return "refused" if self.refused else "reached"


@dataclass(frozen=True, slots=True)
class Mtu:
    """A packet of `size` bytes, IP header included, gets there in one piece, and none of one byte more."""

    line: int
    flow: Flow
    size: int
    what = "mtu"

    @property
    def where(self) -> str:
        return str(self.flow)

    @property
    def expected(self) -> str:
        return str(self.size)


@dataclass(frozen=True, slots=True)
class Untranslated:
    """Receiver and nodes on the way see the sender's own address, and the target's, there and back."""

    line: int
    flow: Flow
    what = "untranslated"
    expected = "own addresses"

    @property
    def where(self) -> str:
        return str(self.flow)


@dataclass(frozen=True, slots=True)
class Encapsulated:
    """Whatever of the flow crosses the link that ends at `interface` of `node` is carried as `kind` says."""

    line: int
    flow: Flow
    kind: Literal["ipip", "vxlan", "native"]
    node: str
    interface: str
    what = "encapsulated"

    @property
    def where(self) -> str:
        return f"{self.flow} on {self.node}:{self.interface}"

    @property
    def expected(self) -> str:
        return self.kind


@dataclass(frozen=True, slots=True)
class Translated:
    """The target sees the sender as `address`, and answers it."""

    line: int
    flow: Flow
    address: Address
    what = "translated"

    @property
    def where(self) -> str:
        return str(self.flow)

    @property
    def expected(self) -> str:
        return f"as {self.address}"


@dataclass(frozen=True, slots=True)
class Published:
    """Behind the flow's door the target answers, and sees the sender as `sees` (None: as what it is).

    If `refused`, nothing gets through.
    """

    line: int
    flow: Flow
    sees: Address | None
    refused: bool
    what = "published"

    @property
    def where(self) -> str:
        return str(self.flow)

    @property
    def expected(self) -> str:
        if self.refused:
            return "refused"
        return f"reached, as {self.sees}" if self.sees else "reached, as itself"


@dataclass(frozen=True, slots=True)
class NoLeaks:
    """Nothing is left over at `place`: HOST, a node of the fabric, or IPAM."""

    line: int
    place: str
    what = "leaks"
    expected = "none"

    @property
    def where(self) -> str:
        return self.place


Expectation: TypeAlias = (
    SessionUp
    | Route
    | NextHops
    | Reach
    | Mtu
    | Untranslated
    | Encapsulated
    | Translated
    | Published
    | NoLeaks
)


@dataclass(frozen=True, slots=True)
class Expectations:
    """All of a file, in its order; `within` is in seconds, `endpoints` are those that the file defines."""

    path: Path
    within: float
    endpoints: tuple[Endpoint, ...]
    all: tuple[Expectation, ...]


# What the file may say


def _list(value: object) -> object:
    if value == []:
        raise ValueError("names nothing")
    return [value] if isinstance(value, str) else value


def _checked(read: Callable[[str], object]) -> PlainValidator:
    def check(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError("must be text")
        return read(value)

    return PlainValidator(check)


def _netns(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+", text):
        raise ValueError(f'"{text}": name it as `ip netns` does')
    return text


def _family(text: str) -> int:
    if text not in ("4", "6"):
        raise ValueError(f'"{text}": 4 or 6')
    return int(text)


def _interface(text: str) -> tuple[str, str]:
    node, colon, interface = text.partition(":")
    if not (node and colon and interface):
        raise ValueError(f'"{text}": name an end of a link, as NODE:INTERFACE')
    return node, interface


_Prefix = Annotated[Prefix, _checked(ip_network)]
_Address = Annotated[Address, _checked(ip_address)]
_Names = Annotated[tuple[str, ...], BeforeValidator(_list)]
_Number = Annotated[int, Field(ge=1, le=65535)]
_Port = _Number | None


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Endpoint(_Section):
    node: str
    netns: Annotated[str, _checked(_netns)] = ""
    family: Annotated[int | None, _checked(_family)] = None
    address: Annotated[Address | None, _checked(ip_address)] = None


class _Sessions(_Section):
    node: str
    peers: _Names


class _Routes(_Section):
    node: str
    table: Literal["bgp", "kernel"] = "kernel"
    present: tuple[_Prefix, ...] = ()
    absent: tuple[_Prefix, ...] = ()
    next_hops: dict[_Prefix, Annotated[int, Field(ge=1)]] = Field(default_factory=dict, alias="next-hops")


class _Pairs(_Section):
    from_: _Names = Field(alias="from")
    to: _Names


class _Flows(_Pairs):
    tcp: _Port = None
    udp: _Port = None


class _Reach(_Flows):
    expect: Literal["reached", "refused"] = "reached"


class _Mtu(_Pairs):
    bytes: int = Field(ge=576, le=65535)


class _Encapsulated(_Flows):
    as_: Literal["ipip", "vxlan", "native"] = Field(alias="as")
    on: Annotated[tuple[str, str], _checked(_interface)]


class _Translated(_Flows):
    as_: _Address = Field(alias="as")


class _Published(_Section):
    from_: _Names = Field(alias="from")
    to: _Address
    tcp: _Port = None
    udp: _Port = None
    at: str
    port: _Number
    sees: _Address | None = None
    expect: Literal["reached", "refused"] = "reached"


class _File(_Section):
    within: float = Field(WITHIN, gt=0)
    endpoints: dict[str, _Endpoint] = Field(default_factory=dict)
    sessions: tuple[_Sessions, ...] = ()
    routes: tuple[_Routes, ...] = ()
    reach: tuple[_Reach, ...] = ()
    mtu: tuple[_Mtu, ...] = ()
    untranslated: tuple[_Flows, ...] = ()
    encapsulated: tuple[_Encapsulated, ...] = ()
    translated: tuple[_Translated, ...] = ()
    published: tuple[_Published, ...] = ()
    leaks: Literal["none"] | None = None


# What it means


def beside(topology_file: Path) -> Path:
    """Return where the expectations of a topology file are.

    >>> str(beside(Path("labs/rack.clab.yml")))
    'labs/rack.verify.yml'
    """
    name = re.sub(r"(\.clab)?\.ya?ml$", "", topology_file.name)
    return topology_file.with_name(f"{name}.verify.yml")


def load(topology_file: Path, topology: Topology) -> Expectations:
    """Return the expectations beside a topology file.

    Raises:
        ConfigError: there are none, or they are wrong; every fault with its line.
    """
    path = beside(topology_file)
    if not path.exists():
        raise ConfigError(
            f"{path}: there is no such file; it would say who talks to whom in {topology_file}, and what is expected"
            " of it; nothing was asked, and nothing done; docs/labs.md says how to write it"
        )
    return resolve(sources.read(path, what="a lab's expectations", state="nothing was asked"), topology)


def resolve(source: Source, topology: Topology) -> Expectations:
    """Return what a file means for `topology`; raises ConfigError as `load` does."""
    file = sources.validated(source, _File)
    reader = _Reader(source, topology, file)
    found = tuple(reader.all())
    if not found and not source.found:
        source.fault((), "expects nothing, so it would always hold; write what should be true")
    source.check()
    defined = tuple(reader.endpoints[name] for name in file.endpoints)
    return Expectations(source.path, file.within, defined, found)


class _Reader:
    """Turns sections into expectations; what a section names must exist in the topology."""

    def __init__(self, source: Source, topology: Topology, file: _File) -> None:
        self.source, self.file, self.topology = source, file, topology
        self.nodes = {node.name: node for node in topology.nodes}
        self.endpoints = {node: Endpoint(node, node) for node in self.nodes}
        for name, fields in file.endpoints.items():
            self._known(("endpoints", name, "node"), fields.node)
            self.endpoints[name] = Endpoint(name, fields.node, fields.netns, fields.family, fields.address)

    def all(self) -> Iterator[Expectation]:
        yield from self._sessions()
        yield from self._routes()
        for place, each, line in self._each("reach", self.file.reach):
            for flow in self._flows(place, each):
                yield Reach(line, flow, each.expect == "refused")
        for place, mtu, line in self._each("mtu", self.file.mtu):
            for source, target in self._pairs(place, mtu):
                yield Mtu(line, Flow(source, target), mtu.bytes)
        for place, flows, line in self._each("untranslated", self.file.untranslated):
            for flow in self._flows(place, flows):
                yield Untranslated(line, flow)
        for place, carried, line in self._each("encapsulated", self.file.encapsulated):
            self._link((*place, "on"), carried.on)
            for flow in self._flows(place, carried):
                yield Encapsulated(line, flow, carried.as_, *carried.on)
        for place, seen, line in self._each("translated", self.file.translated):
            if not (seen.tcp or seen.udp):
                self.source.fault(place, "who answers a ping cannot be asked whom it saw: give it tcp or udp")
            for flow in self._flows(place, seen):
                yield Translated(line, flow, seen.as_)
        yield from self._published()
        yield from self._leaks()

    def _sessions(self) -> Iterator[Expectation]:
        for place, each, _ in self._each("sessions", self.file.sessions):
            self._known((*place, "node"), each.node, bgp=True)
            for i, peer in enumerate(each.peers):
                yield SessionUp(self.source.line((*place, "peers", i)), each.node, peer)

    def _routes(self) -> Iterator[Expectation]:
        for place, each, _ in self._each("routes", self.file.routes):
            self._known((*place, "node"), each.node, bgp=each.table == "bgp")
            if not (each.present or each.absent or each.next_hops):
                self.source.fault(place, "names no prefix: give it `present`, `absent` or `next-hops`")
            for key, prefixes in (("present", each.present), ("absent", each.absent)):
                for i, prefix in enumerate(prefixes):
                    line = self.source.line((*place, key, i))
                    yield Route(line, each.node, each.table, prefix, present=key == "present")
            for prefix, count in each.next_hops.items():
                line = self.source.line((*place, "next-hops", str(prefix)))
                yield NextHops(line, each.node, each.table, prefix, count)

    def _published(self) -> Iterator[Expectation]:
        for place, each, line in self._each("published", self.file.published):
            port = each.tcp or each.udp
            if not port or (each.tcp and each.udp):
                self.source.fault(place, "give it tcp or udp, the port that is published")
                continue
            target = self._endpoint((*place, "at"), each.at)
            sources = [e for name in each.from_ if (e := self._endpoint((*place, "from"), name))]
            for source in sources if target else ():
                assert target
                door = Door(each.to, port)
                flow = Flow(source, target, "tcp" if each.tcp else "udp", each.port, door)
                yield Published(line, flow, each.sees, each.expect == "refused")

    def _leaks(self) -> Iterator[Expectation]:
        if not self.file.leaks:
            return
        line = self.source.line(("leaks",))
        ours = [name for name, node in self.nodes.items() if of_the_fabric(node)]
        for place in [HOST, *ours, *([IPAM] if ours else [])]:
            yield NoLeaks(line, place)

    def _each(self, section: str, entries: Iterable[_Entry]) -> Iterator[tuple[Place, _Entry, int]]:
        for i, entry in enumerate(entries):
            place = (section, i)
            yield place, entry, self.source.line(place)

    def _flows(self, place: Place, fields: _Flows) -> Iterator[Flow]:
        if fields.tcp and fields.udp:
            self.source.fault(place, "tcp and udp are two expectations: write two")
        protocol: Literal["ping", "tcp", "udp"] = "tcp" if fields.tcp else "udp" if fields.udp else "ping"
        for source, target in self._pairs(place, fields):
            yield Flow(source, target, protocol, fields.tcp or fields.udp or 0)

    def _pairs(self, place: Place, fields: _Pairs) -> Iterator[tuple[Endpoint, Endpoint]]:
        sources = [e for name in fields.from_ if (e := self._endpoint((*place, "from"), name))]
        targets = [e for name in fields.to if (e := self._endpoint((*place, "to"), name))]
        pairs = [(a, b) for a in sources for b in targets if a.place != b.place]
        if sources and targets and not pairs:
            self.source.fault(place, "is from an endpoint to itself")
        yield from pairs

    def _endpoint(self, place: Place, name: str) -> Endpoint | None:
        if not (endpoint := self.endpoints.get(name)):
            hint = did_you_mean(name, self.endpoints)
            self.source.fault(place, f'there is no endpoint "{name}", and no such node{hint}')
        return endpoint

    def _link(self, place: Place, end: tuple[str, str]) -> None:
        ends = {(each.node, each.interface) for link in self.topology.links for each in (link.a, link.b)}
        if end not in ends:
            names = [":".join(each) for each in sorted(ends)]
            hint = did_you_mean(":".join(end), names)
            self.source.fault(place, f"no link of the topology ends at {end[0]}:{end[1]}{hint}")

    def _known(self, place: Place, node: str, *, bgp: bool = False) -> None:
        if node not in self.nodes:
            self.source.fault(place, f'the topology has no node "{node}"{did_you_mean(node, self.nodes)}')
        elif bgp and not speaks_bgp(self.nodes[node]):
            self.source.fault(place, f"{node} is {self.nodes[node].image}, whose BGP cannot be asked")


def of_the_fabric(node: Node) -> bool:
    """Return whether the node is one that fabricctl runs on."""
    return node.profile is not None and node.profile.name == OUR_NODE
