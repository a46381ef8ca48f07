"""Decide which ports of this node lead to its containers, and the rules that lead there. Pure.

    raw  PREROUTING          127/8 that comes by a link
    nat  PREROUTING, OUTPUT  to a published port ─▶ to the container's
    nat  POSTROUTING         from 127/8, or from a container to itself: from the node's own address instead

Policy stands between, and sees the container's port and the client's address. `::1` cannot be published: IPv6 has no
route_localnet, and the answers that are for ::1 again when they come by a link are dropped. Nor can an address of
fe80::/10: what comes from another is not forwarded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Final, NamedTuple

from fabric.errors import ConfigError
from fabric.model.workloadendpoint import EndpointPort, WorkloadEndpoint
from fabric.plan.produced import LINKS, Address, Hook, Produced, produced
from fabric.plan.tables import Version

PROTOCOLS: Final = {"tcp": 6, "udp": 17, "sctp": 132}
_NUMBERS: Final = {number: name for name, number in PROTOCOLS.items()}
_WRITTEN: Final = re.compile(
    r"((?P<host>[0-9.]+|\[[0-9a-fA-F:.]+\]):)?(?P<at>[0-9]{1,9}):(?P<port>[0-9]{1,9})(/(?P<protocol>tcp|udp|sctp))?",
    re.IGNORECASE,
)
TUNNELS: Final = "is the one by which tunnels come in (FelixConfiguration vxlanPort); publish another"
_LOOPBACK: Final = "127.0.0.0/8"
_LINK_LOCAL: Final = "fe80::/10"


class Published(NamedTuple):
    """One port of one container that the node has too: what goes to `host_port` of `host` goes to `port` of `address`.

    `host` None is every address of the node, of the container's family. `holder` is NAMESPACE/NAME of the workload.
    """

    protocol: str
    host: Address | None
    host_port: int
    address: Address
    port: int
    holder: str

    def meets(self, other: Published) -> bool:
        """Whether a packet may be for both."""
        return (
            (self.protocol, self.host_port) == (other.protocol, other.host_port)
            and self.address.version == other.address.version
            and (self.host is None or other.host is None or self.host == other.host)
        )

    @property
    def at(self) -> str:
        where = f"of {self.host}" if self.host else f"of every IPv{self.address.version} address of the node"
        return f"port {self.host_port}/{self.protocol} {where}"


def parse(text: str) -> EndpointPort:
    """Return what `[HOSTIP:]HOSTPORT:PORT[/PROTOCOL]` says, an IPv6 HOSTIP in brackets.

    Raises:
        ConfigError: it does not say that, or asks for what cannot be.
    """
    found = _WRITTEN.fullmatch(text)
    if not found:
        why = "must be [HOSTIP:]HOSTPORT:PORT[/tcp|udp|sctp], such as 8080:80 or [2001:db8::1]:5353:53/udp"
    elif not 1 <= int(found["at"]) <= 65535:
        why = "HOSTPORT must be 1 to 65535"
    elif not 1 <= int(found["port"]) <= 65535:
        why = "PORT must be 1 to 65535"
    else:
        try:
            port = EndpointPort(
                protocol=(found["protocol"] or "tcp").upper(),
                port=int(found["port"]),
                host_port=int(found["at"]),
                host_ip=str(ip_address(found["host"].strip("[]"))) if found["host"] else "",
            )
        except ValueError:  # of the address
            why = f"{found['host']} is not an address"
        else:
            if not (why := _impossible(port)):
                return port
    raise ConfigError(f'publish "{text}": {why}; nothing was attached')


def words(port: EndpointPort) -> str:
    """Return a published port as it is listed: 10.0.0.1:8080->80/tcp."""
    at = f"[{port.host_ip}]:" if ":" in port.host_ip else f"{port.host_ip}:" if port.host_ip else ""
    return f"{at}{port.host_port}->{port.port}/{protocol_name(port)}"


def protocol_name(port: EndpointPort) -> str:
    """Return what iptables calls its protocol."""
    return _NUMBERS[port.protocol] if isinstance(port.protocol, int) else port.protocol.lower()


def host_address(port: EndpointPort) -> Address | None:
    """Return the address of the node that it is published at, None for every one of a family or of both."""
    found = ip_address(port.host_ip) if port.host_ip else None
    return None if found is None or found.is_unspecified else found


def of(endpoint: WorkloadEndpoint) -> tuple[EndpointPort, ...]:
    """Return the ports of an endpoint that are published, and not only named."""
    return tuple(port for port in endpoint.spec.ports if port.host_port)


def published(
    endpoints: Iterable[WorkloadEndpoint], tunnels: Collection[tuple[int, int]] = ()
) -> tuple[tuple[Published, ...], dict[str, str]]:
    """Return what `endpoints`, of one node, have published; and what not, by the endpoint's name, and why.

    Where two want the same, the older one has it. The UDP ports by which `tunnels` come in, each with its family, are
    nobody else's: what other nodes' containers send comes there.
    """
    found: dict[tuple[str, int], list[Published]] = {}
    problems: dict[str, str] = {}
    for endpoint in sorted((e for e in endpoints if of(e)), key=_age):
        for port in of(endpoint):
            wanted = wants(endpoint, port)
            if isinstance(wanted, str):
                problems[_name(endpoint)] = wanted
                continue
            for one in wanted:
                if one.protocol == "udp" and (one.address.version, one.host_port) in tunnels:
                    problems[_name(endpoint)] = f"{one.at} {TUNNELS}"
                    continue
                others = found.setdefault((one.protocol, one.host_port), [])
                if taken := next((other for other in others if one.meets(other)), None):
                    problems[_name(endpoint)] = (
                        f"{one.at} is asked for twice"
                        if taken.holder == one.holder
                        else f"{one.at} is published by workload {taken.holder}, which is older"
                    )
                else:
                    others.append(one)
    return tuple(one for those in found.values() for one in those), problems


def tunnelled(port: EndpointPort, tunnels: Iterable[tuple[int, int]]) -> str:
    """Return why `port` is not published, or not in both families, for the sake of `tunnels`; "" where it is."""
    host = host_address(port)
    met = {number for version, number in tunnels if host is None or host.version == version}
    if protocol_name(port) != "udp" or port.host_port not in met:
        return ""
    return f"port {port.host_port}/udp {TUNNELS}"


def wants(endpoint: WorkloadEndpoint, port: EndpointPort) -> Sequence[Published] | str:
    """Return what comes of one port of `endpoint`, one a family; or why nothing does."""
    if why := _impossible(port):
        return why
    addresses = {prefix.version: prefix.network_address for prefix in reversed(endpoint.spec.ip_networks)}
    asked = ip_address(port.host_ip).version if port.host_ip else None
    made = [
        Published(
            protocol_name(port), host_address(port), port.host_port, address, port.port, _holder(endpoint)
        )
        for version, address in sorted(addresses.items())
        if asked in (None, version)
    ]
    return made or f"hostIP {port.host_ip}: the workload has no address of that family to publish there"


def _impossible(port: EndpointPort) -> str:
    try:
        at = host_address(port)
    except ValueError:
        return f'hostIP "{port.host_ip}" is not an address'
    if at and at.version == 6 and at.is_loopback:
        return (
            "::1 cannot be published: the kernel drops the answers, which come for ::1 by a link; publish at "
            "127.0.0.1, or at an IPv6 address of a link of the node"
        )
    if at and at.version == 6 and at.is_link_local:
        return (
            f"{at} cannot be published: the kernel forwards nothing between one link's own addresses and a container; "
            "publish at another IPv6 address of the node"
        )
    return ""


def strange(port: EndpointPort, node: str, local: Collection[Address]) -> str:
    """Return why `node`, which has the addresses `local`, is not reached at the one of `port`, "" where it is."""
    host = host_address(port)
    if host is None or host in local or host.is_loopback:
        return ""
    fit = (held for held in local if held.version == host.version)
    named = ", ".join(sorted(str(held) for held in fit if not (held.is_loopback or held.is_link_local)))
    return f"{host} is no address of node {node}, which has {named or 'none of that family'}"


def occupied(port: EndpointPort, node: str, holders: Iterable[str]) -> str:
    """Return that processes of `node` have the port, "" where there are no `holders`."""
    if not (by := ", ".join(holders)):
        return ""
    return (
        f"port {port.host_port}/{protocol_name(port)} is taken on node {node}: by {by}; publish another port"
    )


def alone(endpoint: WorkloadEndpoint, versions: Iterable[int]) -> str:
    """Say which ports a node with addresses of `versions` has not in each family, since the workload has not."""
    own = {prefix.version for prefix in endpoint.spec.ip_networks}
    lacking = sorted(set(versions) - own)
    ports = ", ".join(words(port) for port in of(endpoint) if not port.host_ip)
    if not (ports and lacking):
        return ""
    return f"{ports}: not at the node's IPv{lacking[0]} addresses, since the workload has no IPv{lacking[0]} address"


def localnet(endpoint: WorkloadEndpoint) -> bool:
    """Whether packets from 127/8 go to the container: a port of it is published there."""
    return bool(endpoint.spec.ports) and any(
        one.address.version == 4 and (one.host is None or one.host.is_loopback)
        for port in of(endpoint)
        if not isinstance(made := wants(endpoint, port), str)
        for one in made
    )


def target(
    ports: Iterable[Published], protocol: int, host: Address, host_port: int
) -> tuple[Address, int] | None:
    """Return where a packet to `host_port` of `host`, an address of the node, is led, None where it is not."""
    return next(
        (
            (one.address, one.port)
            for one in ports
            if (PROTOCOLS[one.protocol], one.host_port) == (protocol, host_port)
            and one.address.version == host.version
            and one.host in (None, host)
        ),
        None,
    )


def produce(
    version: Version, ports: Iterable[Published], own: Address | None, *, guarded: bool = False
) -> Produced:
    """Return the rules of one family. `own` is the node's address of it; `guarded` has 127/8 closed in any case."""
    here = sorted((one for one in ports if one.address.version == version), key=_order)
    local = "-m addrtype --dst-type LOCAL" + (" ! -d ::1" if version == 6 else "")
    # Left to the host, which refuses at once: led away, no answer would ever come.
    to = (*((f"-d {_LINK_LOCAL} -j RETURN",) if version == 6 and here else ()), *map(_dnat, here))
    back = f"-j SNAT --to-source {own}" if own else "-j MASQUERADE"
    addresses = list(dict.fromkeys(one.address for one in here))
    sources = [f"-s {_LOOPBACK} {back}"] if version == 4 and here else []
    sources += [f"-s {address} -d {address} {back}" for address in addresses]
    closed = tuple(f"{end} {_LOOPBACK} -j DROP" for end in ("-s", "-d"))
    hooks = (
        Hook(
            "raw",
            "PREROUTING",
            "fab-loopback",
            closed if version == 4 and (here or guarded) else (),
            "! -i lo",
        ),
        Hook("nat", "PREROUTING", "fab-published", to, local),
        Hook("nat", "OUTPUT", "fab-published", to, local),
        Hook(
            "nat",
            "POSTROUTING",
            "fab-published-source",
            tuple(sources),
            f"-o {LINKS} -m conntrack --ctstate DNAT",
        ),
    )
    return produced(version, hooks, {})


def _dnat(one: Published) -> str:
    to = f"[{one.address}]" if one.address.version == 6 else str(one.address)
    at = f" -d {one.host}" if one.host else ""
    match = f"-p {one.protocol}{at} -m multiport --dports {one.host_port}"
    return f"{match} -j DNAT --to-destination {to}:{one.port}"


def _order(one: Published) -> tuple[str, int, str]:
    return one.protocol, one.host_port, str(one.host or "")


def _age(endpoint: WorkloadEndpoint) -> tuple[datetime, str]:
    return endpoint.metadata.creation_timestamp or datetime.max.replace(tzinfo=UTC), _name(endpoint)


def _name(endpoint: WorkloadEndpoint) -> str:
    return f"WorkloadEndpoint {endpoint.metadata.namespace}/{endpoint.metadata.name}"


def _holder(endpoint: WorkloadEndpoint) -> str:
    return f"{endpoint.metadata.namespace}/{endpoint.spec.workload or endpoint.metadata.name}"
