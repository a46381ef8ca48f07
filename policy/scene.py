"""Put together what verdicts depend on, from resources alone, and find out whom an operator means by a name. Pure.

What only a host knows is filled in as far as resources tell it: a node's links are those its Node lists, and those its
host endpoints name. Endpoints without an address, as files for tests may have them, get one that stands for it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from typing import Final, TypeVar

from fabric.errors import ConfigError
from fabric.model.base import Resource
from fabric.model.felixconfiguration import FelixConfiguration
from fabric.model.hostendpoint import HostEndpoint
from fabric.model.ippool import IPPool
from fabric.model.namespaces import NAMESPACE_PROFILE
from fabric.model.namespaces import profile as namespace_profile
from fabric.model.node import Node
from fabric.model.profile import Profile
from fabric.model.workloadendpoint import WorkloadEndpoint
from policy import words
from policy.compile import compile as compiled
from policy.evaluate import Passage, verdicts
from policy.form import ICMP, ICMPV6, PROTOCOLS, SCTP, TCP, UDP, UDPLITE, Address, Icmp, Key, Packet, Site
from policy.items import key as key_of
from policy.site import layers, site
from policy.unread import Unread
from policy.world import Resources, World

R = TypeVar("R", bound=Resource)

# For benchmarks between hosts (RFC 2544, RFC 5180): no container has one of these.
STAND_INS: Final[tuple[IPv4Network | IPv6Network, ...]] = (
    ip_network("198.18.0.0/15"),
    ip_network("2001:2::/48"),
)
PROTOCOL_NAMES: Final = {name.lower(): number for name, number in PROTOCOLS.items()}
PORTED: Final = frozenset({TCP, UDP, SCTP, UDPLITE})
ECHO: Final = {ICMP: 8, ICMPV6: 128}  # the type of a request
EPHEMERAL: Final = 49152  # the port that a packet comes from where nobody says


@dataclass(frozen=True)
class Scene:
    """Resources, what they compile to, and every node that they name."""

    resources: Resources
    world: World
    sites: Mapping[str, Site]


def scene(
    found: Iterable[Resource],
    before: Scene | None = None,
    *,
    unread: tuple[Unread, ...] = (),
    stand_ins: bool = False,
) -> Scene:
    """Return what `found` makes up; what is of no kind that verdicts depend on is left out.

    Args:
        before: a scene that is much alike; what did not change is not compiled again.
        unread: what is stored and cannot be read.
        stand_ins: give workloads what files for tests leave out: an address, and their namespace's profile.
    """
    found = list(found)
    resources = replace(_resources(found, stand_ins=stand_ins), unread=unread)
    world = compiled(resources, before.world if before else None)
    configurations = tuple(_of(FelixConfiguration, found))
    pools = tuple(_of(IPPool, found))
    nodes = {node.metadata.name: node for node in resources.nodes}
    every_host = world.parts.hosts  # also those of which not all can be read
    named = {one.spec.node for one in resources.workloads} | {one.spec.node for one in every_host}
    sites = {}
    for name in sorted((named | nodes.keys()) - {""}):
        node = nodes.get(name)
        settings = layers(name, node.metadata.labels if node else None, configurations)
        hosts = [one for one in every_host if one.spec.node == name]
        sites[name] = site(name, settings, nodes.values(), pools, links=_links(node, hosts))
    return Scene(resources, world, sites)


def _resources(found: Sequence[Resource], *, stand_ins: bool) -> Resources:
    given = Resources.of(found)
    if not stand_ins:
        return given
    workloads = tuple(_with_addresses(given.workloads))
    return replace(given, workloads=workloads, profiles=tuple(_profiles(given.profiles, workloads)))


def _of(kind: type[R], found: Iterable[Resource]) -> Iterator[R]:
    return (one for one in found if isinstance(one, kind))


def _profiles(given: Iterable[Profile], workloads: Iterable[WorkloadEndpoint]) -> Iterator[Profile]:
    """Yield the profiles, and of each namespace without one the one that its first workload brings along."""
    there = {one.metadata.name: one for one in given}
    yield from there.values()
    named = {name for one in workloads for name in one.spec.profiles if name.startswith(NAMESPACE_PROFILE)}
    for name in sorted(named - there.keys()):
        yield namespace_profile(name.removeprefix(NAMESPACE_PROFILE))


def _with_addresses(workloads: Sequence[WorkloadEndpoint]) -> Iterator[WorkloadEndpoint]:
    stand_ins = zip(*(net.hosts() for net in STAND_INS), strict=False)
    for one in workloads:
        if one.spec.ip_networks:
            yield one
        else:
            nets = tuple(ip_network(address) for address in next(stand_ins))
            yield one.model_copy(update={"spec": one.spec.model_copy(update={"ip_networks": nets})})


def _links(node: Node | None, hosts: Iterable[HostEndpoint]) -> dict[str, frozenset[Address]]:
    """Return a node's links. One that nobody names, and that an address is on, is called by that address."""
    links: dict[str, set[Address]] = defaultdict(set)
    for interface in node.spec.interfaces if node else ():
        for text in interface.addresses:
            with suppress(ValueError):
                links[interface.name].add(ip_interface(text).ip)
    by_address: list[Address] = []
    for one in hosts:
        if one.spec.interface_name in {None, "*"}:
            by_address += one.spec.expected_ips
        else:
            links[str(one.spec.interface_name)].update(one.spec.expected_ips)
    bare = [name for name, held in links.items() if not held]
    for address in (*(held.ip for held in node.addresses), *by_address) if node else by_address:
        if not any(address in held for held in links.values()):
            links[bare[0] if len(bare) == 1 else str(address)].add(address)
    return {name: frozenset(held) for name, held in links.items()}


@dataclass(frozen=True, slots=True)
class Who:
    """One end of a packet as it was named; `key` is None for what is no endpoint. IPv4 addresses come first."""

    name: str
    key: Key | None
    addresses: tuple[Address, ...]


def who(of: Scene, name: str) -> Who:
    """Return whom `name` means: an address, a workload (its name or its endpoint's, `namespace/name` or the name
    alone), a host endpoint, or a node, which is the host itself.

    Raises:
        ConfigError: nobody, or more than one; the message names them.
    """
    with suppress(ValueError):
        return Who(name, None, (ip_address(name),))
    found = list(_called(of, name))
    if len(found) == 1:
        return found[0]
    if not found:
        known = sorted(text for one in _everybody(of) for text in one[0])
        close = get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f'"{name}" is no address, workload, host endpoint or node{hint}')
    meant = ", ".join(sorted(str(one.key or f"Node {one.name}") for one in found))
    raise ConfigError(f'"{name}" is more than one: {meant}; say NAMESPACE/NAME, or the endpoint\'s own name')


def titles(of: Scene) -> dict[Key, str]:
    """Return how endpoints are called for people: a workload by namespace and name, a host endpoint by its name."""
    named = {}
    for one in of.resources.workloads:
        key, spec = key_of(one), one.spec
        named[key] = f"{key.namespace}/{spec.workload or spec.pod or spec.container_id or key.name}"
    twice = {name for name, count in Counter(named.values()).items() if count > 1}
    return {
        **{key: f"{key.namespace}/{key.name}" if name in twice else name for key, name in named.items()},
        **{key_of(one): f"host endpoint {one.metadata.name}" for one in of.resources.hosts},
    }


def _called(of: Scene, name: str) -> Iterator[Who]:
    for names, key, addresses in _everybody(of):
        if name in names:
            yield Who(name, key, in_order(addresses))


def _everybody(of: Scene) -> Iterator[tuple[set[str], Key | None, Iterable[Address]]]:
    for workload in of.resources.workloads:
        spec, key = workload.spec, key_of(workload)
        called = {key.name, *filter(None, (spec.workload, spec.pod, spec.container_id))}
        names = called | {f"{key.namespace}/{one}" for one in called}
        addresses = (network.network_address for network in spec.ip_networks)
        yield names, key, addresses
    hosts = {one.metadata.name: one for one in of.resources.hosts}
    for name, host in hosts.items():
        yield {name}, key_of(host), _addresses_of(of, host)
    for name in of.sites.keys() - hosts.keys():
        yield {name}, None, _own_addresses(of, name)


def hosts(of: Scene, node: str) -> list[Who]:
    """Return a node's host endpoints, that for every link last, and behind them the node itself."""
    here = [one for one in of.resources.hosts if one.spec.node == node]
    here.sort(key=lambda one: (one.spec.interface_name == "*", one.metadata.name))
    found = [
        Who(f"host endpoint {one.metadata.name}", key_of(one), in_order(_addresses_of(of, one)))
        for one in here
    ]
    return [*found, Who(f"node {node}", None, in_order(_own_addresses(of, node)))]


def _addresses_of(of: Scene, host: HostEndpoint) -> set[Address]:
    link = of.sites[host.spec.node].links.get(host.spec.interface_name or "", frozenset())
    everywhere = _own_addresses(of, host.spec.node) if host.spec.interface_name == "*" else ()
    return {*host.spec.expected_ips, *link, *everywhere}


def _own_addresses(of: Scene, node: str) -> list[Address]:
    """Return a node's addresses, those that it is known by to other nodes alone if it has any."""
    held = [address for link in of.sites[node].links.values() for address in link]
    return [address for address in held if address in of.sites[node].nodes] or held


def in_order(addresses: Iterable[Address]) -> tuple[Address, ...]:
    """Return addresses once each, IPv4 first."""
    return tuple(sorted(set(addresses), key=lambda address: (address.version, int(address))))


@dataclass(frozen=True, slots=True)
class Asking:
    """What is asked for between two ends, whoever they are."""

    protocol: int
    port: int = 0
    source_port: int = 0
    icmp: Icmp | None = None

    def __str__(self) -> str:
        return words.of_what(self.protocol, self.port, self.icmp)


def asking(text: str) -> Asking:
    """Return what `text` asks for: `tcp/443`, `udp/53`, `icmp`, `icmp/8/0`, or a protocol's number.

    ICMP without a type is an echo request.

    Raises:
        ValueError: with the rule.
    """
    word, *numbers = text.lower().split("/")
    number = PROTOCOL_NAMES.get(word) or (int(word) if re.fullmatch(r"[1-9][0-9]{0,2}", word) else 0)
    if not 1 <= number <= 255:
        raise ValueError(f"a protocol is one of {', '.join(PROTOCOL_NAMES)}, or 1 to 255")
    if not all(re.fullmatch(r"[0-9]{1,5}", one) for one in numbers):
        raise ValueError("ports and ICMP's types are numbers, as in tcp/443 or icmp/8/0")
    given = [int(one) for one in numbers]
    if number in {ICMP, ICMPV6}:
        if len(given) > 2 or any(one > 255 for one in given):
            raise ValueError("ICMP has a type and a code, 0 to 255 each, as in icmp/8/0")
        kind, code = [*given, ECHO[number], 0][:2] if not given else [*given, 0][:2]
        return Asking(number, icmp=Icmp(kind, code))
    if number in PORTED and (len(given) != 1 or not 1 <= given[0] <= 65535):
        raise ValueError(f"{word} needs one port, 1 to 65535, as in {word}/443")
    if number not in PORTED and given:
        raise ValueError(f"{word} has no ports")
    return Asking(number, given[0] if given else 0)


def packet(source: Who, destination: Who, asked: Asking, version: int | None = None) -> Packet:
    """Return the first packet that asks for it; of both families where there is a choice, IPv4.

    Raises:
        ConfigError: the ends have no address of one family, or the protocol is of the other one.
    """
    wanted = {ICMP: 4, ICMPV6: 6}.get(asked.protocol, version)
    if version not in {None, wanted}:
        raise ConfigError(
            f"{words.protocol(asked.protocol)} is of IPv{wanted} alone, and family {version} is asked for"
        )
    for family in (4, 6) if wanted is None else (wanted,):
        pair = [[a for a in end.addresses if a.version == family] for end in (source, destination)]
        if all(pair):
            port = asked.source_port or (EPHEMERAL if asked.port else 0)
            return Packet(pair[0][0], pair[1][0], asked.protocol, port, asked.port, asked.icmp)
    held = "; ".join(
        f"{e.name} has {', '.join(map(str, e.addresses)) or 'none'}" for e in (source, destination)
    )
    rule = f"an IPv{wanted} address each" if wanted else "addresses of one family"
    raise ConfigError(f"{source.name} and {destination.name} need {rule}: {held}")


def sent_by(of: Scene, source: Who, sent: Packet) -> Passage:
    """Return what becomes of a packet that `source` sends."""
    sender = source.key if source.key and source.key.kind == "WorkloadEndpoint" else None
    return verdicts(of.world, sent, of.sites, sender=sender)
