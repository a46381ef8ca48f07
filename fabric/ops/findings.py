"""Decide what is wrong with a host that is to be, or is, a node: each finding with its cause and its cure.

Pure: facts in, findings out. The ids are stable and docs/reference/findings.md has a section for each.
`node check` shows them all, `node join` refuses on the errors among them and warns of the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import ip_network
from typing import Any

from fabric.ipam import assign
from fabric.ipam.types import Address, Prefix
from fabric.kernel.facts import Clock, HostAddress, Listener, Vxlan
from fabric.kernel.tables import NftEntry, Saved
from fabric.model.felixconfiguration import VXLAN_PORT, VXLAN_VNI, ActingSettings, FelixConfiguration
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from fabric.ops import firewall, managers, tunnels
from fabric.ops.firewall import Packet, Table
from fabric.plan import asked, mtu
from fabric.plan.encap import DEVICES, Kind, Pool
from fabric.plan.links import is_ours
from fabric.plan.routes import Route
from fabric.plan.tables import PREFIX
from policy.site import first, layers

BGP_PORT = 179
MIN_NEIGHBOURS = 1024  # the kernel's own gc_thresh3
DEFAULT_POOLS = ("192.168.0.0/16", *(f"172.{n}.0.0/16" for n in range(16, 32)))  # as Calico picks one

# What our processes run, and what enforcing policies runs; by Debian's package.
NODE_TOOLS = {"setpriv": "util-linux", "nsenter": "util-linux"}
POLICY_TOOLS = {"iptables-restore": "iptables", "ip6tables-restore": "iptables"}
DAEMONS = ("NetworkManager", "systemd-networkd", "firewalld")

# Calico's list of links that are not the host's own uplinks.
_NOT_UPLINKS = re.compile(
    r"(docker|cbr|dummy|virbr|lxcbr|veth|cali|tunl|flannel|kube-ipvs|cni|vxlan|br-).*|lo"
)
NO_WAY_OUT = DEVICES | {"lo"}
# Links on which a pool's own addresses are: ours, and Calico's on a host that it serves as well.
_CARRIES_POOLS = re.compile(r"(cali|tunl|vxlan|wireguard).*")


class Severity(StrEnum):
    """An error keeps the host from being a node; a warning may hurt it."""

    ERROR = "error"
    WARNING = "warning"


_E, _W = Severity.ERROR, Severity.WARNING
CATALOGUE: Mapping[str, tuple[Severity, str]] = {
    "FAB1001": (_E, "the kernel lacks what every node needs"),
    "FAB1002": (_E, "the kernel lacks a tunnel that a pool asks for"),
    "FAB1003": (_E, "a tool that the node's processes run is missing"),
    "FAB1004": (_E, "a tool that enforcing policies runs is missing"),
    "FAB1005": (_E, "the kernel cannot authenticate BGP sessions"),
    "FAB1101": (_E, f"port {BGP_PORT} is in use"),
    "FAB1102": (_E, "the VXLAN port is in use"),
    "FAB1103": (_E, "the VNI is in use"),
    "FAB1201": (_W, "the clock is not synchronised"),
    "FAB1202": (_E, "the clock is wrong"),
    "FAB1301": (_W, "strict reverse-path filtering on an uplink"),
    "FAB1302": (_E, "forwarding is off on a running node"),
    "FAB1303": (_W, "the neighbour table is small"),
    "FAB1304": (_W, "the connection table is nearly full"),
    "FAB1305": (_W, "the IPv6 default route will be lost"),
    "FAB1401": (_W, "the firewall drops forwarded packets"),
    "FAB1402": (_W, "the firewall blocks BGP"),
    "FAB1403": (_W, "the firewall blocks tunnels"),
    "FAB1404": (_W, "both iptables backends are in use"),
    "FAB1405": (_W, "another firewall rules beside ours"),
    "FAB1501": (_W, "NetworkManager manages the containers' links"),
    "FAB1502": (_W, "systemd-networkd removes routes that it did not make"),
    "FAB1503": (_W, "systemd-networkd manages the containers' links"),
    "FAB1601": (_E, "the node address is not clear"),
    "FAB1602": (_E, "no default pool is free"),
    "FAB1603": (_W, "a pool covers a network of this host"),
    "FAB1604": (_W, "the uplinks have different MTUs"),
    "FAB1605": (_W, "an uplink's MTU is too small for IPv6"),
    "FAB1606": (_E, "a pool covers a subnet of this host"),
    "FAB1607": (_E, "the node has no address for a pool's tunnels"),
    "FAB1608": (_E, "the MTU left to a pool is below its family's minimum"),
    "FAB1701": (_E, "the datastore does not answer"),
    "FAB1702": (_E, "etcd is reached by a route from BGP"),
    "FAB1703": (_W, "an etcd endpoint is inside a pool"),
    "FAB1801": (_W, "a BGP session is not Established"),
    "FAB1802": (_W, "a BGP session brings nothing that can be used"),
    "FAB1803": (_W, "a BGP session carries nothing to its peer"),
    "FAB1804": (_W, "a BGP session is near its limit of prefixes"),
    "FAB1805": (_W, "a BGP resource is not done as it says"),
}


_SOUND_CLOCK = Clock(synchronised=True, error=0)
_FAR = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Finding:
    """`cause` holds what was observed, `cure` what to do; severity and title come with the id."""

    id: str
    cause: str
    cure: str

    @property
    def severity(self) -> Severity:
        return CATALOGUE[self.id][0]

    @property
    def title(self) -> str:
        return CATALOGUE[self.id][1]

    def __str__(self) -> str:
        return f"{self.id} {self.title}: {self.cause}; {self.cure}"

    @property
    def refusal(self) -> str:
        """The message of an error that stops on this one."""
        return f"{self.id} {self.title}: {self.cause}; nothing was changed; {self.cure}"


@dataclass(frozen=True)
class Host:
    """What a host is, as read; the defaults are a sound one.

    Attributes:
        routes: prefix and link of those that are not ours and not a default route.
        tools: the commands that were found.
        missing_tunnels: of the kinds that pools ask for, what the kernel said; of VXLAN too where it has no IPIP.
        port_holders: who has the BGP port, apart from a node of ours that runs.
        vxlan_holders: who has the UDP port of the VXLAN.
        sysctls: by name with slashes; absent ones are left out.
        files: NetworkManager's, systemd-networkd's and nftables.service's, path to text.
        own_routes: those of the main table that a node of ours made.
        foreign_routes: the others.
        etcd: the endpoints, each with the addresses that its name has.
        running: whether it is a node whose processes run.
    """

    addresses: tuple[HostAddress, ...] = ()
    routes: tuple[tuple[Prefix, str], ...] = ()
    missing_features: tuple[str, ...] = ()
    missing_tunnels: Mapping[Kind, str] = field(default_factory=dict)
    tcp_md5: bool = True
    tools: frozenset[str] = frozenset({*NODE_TOOLS, *POLICY_TOOLS})
    port_holders: tuple[Listener, ...] = ()
    vxlans: tuple[Vxlan, ...] = ()
    vxlan_holders: tuple[Listener, ...] = ()
    clock: Clock = _SOUND_CLOCK
    now: datetime = _FAR
    sysctls: Mapping[str, str] = field(default_factory=dict)
    saved: tuple[Saved, ...] = ()
    native: tuple[NftEntry, ...] = ()
    daemons: frozenset[str] = frozenset()
    files: Mapping[str, str] = field(default_factory=dict)
    advertised_defaults: frozenset[str] = frozenset()
    running: bool = False
    own_routes: tuple[Route, ...] = ()
    foreign_routes: tuple[Route, ...] = ()
    etcd: Mapping[str, tuple[Address, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cluster:
    """What the datastore asks of a host.

    `born` is None before there is a cluster, `node` before the host has joined; `far` are the other nodes' addresses.
    """

    pools: tuple[IPPool, ...] = ()
    born: datetime | None = None
    passwords: bool = False
    node: Node | None = None
    far: tuple[Address, ...] = ()
    felix: tuple[FelixConfiguration, ...] = ()

    @property
    def own_pools(self) -> tuple[Pool, ...]:
        """What those ask for that select the node, and give its containers addresses."""
        labels = self.node.metadata.labels if self.node else {}
        return tuple(asked.pool(one) for one in self.pools if _holds(one) and assign.selects(one, labels))

    @property
    def tunnels(self) -> frozenset[Kind]:
        """The kinds that pools ask of the node."""
        return tunnels.kinds(self.own_pools)

    @property
    def vxlan_port(self) -> int:
        return first(self._settings(), lambda s: s.vxlan_port, VXLAN_PORT)

    @property
    def vxlan_vni(self) -> int:
        return first(self._settings(), lambda s: s.vxlan_vni, VXLAN_VNI)

    @property
    def received(self) -> frozenset[tuple[int, int]]:
        """The UDP ports by which tunnels come in that pools ask of the node, each with its family."""
        asking = (pool for pool in self.own_pools if "vxlan" in tunnels.kinds([pool]))
        return frozenset((pool.prefix.version, self.vxlan_port) for pool in asking)

    def _settings(self) -> tuple[ActingSettings, ...]:
        own = self.node.metadata if self.node else None
        return layers(own.name if own else "", own.labels if own else None, self.felix)


def _holds(pool: IPPool) -> bool:
    """Whether containers have addresses of it."""
    return "LoadBalancer" not in pool.spec.allowed_uses


def candidates(addresses: Iterable[HostAddress], version: int) -> list[HostAddress]:
    """Return the addresses that may be the node's: on an uplink, up, reachable from elsewhere."""
    return [
        a
        for a in addresses
        if a.up
        and a.address.version == version
        and not a.address.is_link_local
        and not a.address.is_loopback
        and not is_ours(a.link)
        and not _NOT_UPLINKS.fullmatch(a.link)
    ]


def uplinks(addresses: Iterable[HostAddress]) -> list[str]:
    """Return the links with an address that may be the node's, each once."""
    addresses = list(addresses)
    return list(dict.fromkeys(a.link for version in (4, 6) for a in candidates(addresses, version)))


def judge(host: Host, cluster: Cluster | None) -> list[Finding]:
    """Return everything that is wrong with `host`, in the order of the ids; `cluster` None is not known."""
    known = cluster or Cluster()
    return [
        *_kernel(host, known),
        *_port(host.port_holders),
        *_vxlan(host, known),
        *_clock(host, known),
        *_sysctls(host, known),
        *_firewall(host, cluster),
        *_managers(host),
        *_networks(host, known),
        *_ends(host, known),
        *_room(host, known),
        *_way_to_etcd(host, known),
    ]


def of_tunnels(host: Host, cluster: Cluster) -> list[Finding]:
    """Return, of everything, what is wrong with this host's part in the tunnels, beside what its kernel lacks."""
    return [*_vxlan(host, cluster), *_room(host, cluster)]


def choices(host: Host, cluster: Cluster | None) -> list[Finding]:
    """Return what `node join` could not choose by itself on a host that has not joined."""
    version = 4 if candidates(host.addresses, 4) else 6
    found = [address_choice(host.addresses, version)]
    if cluster is None or not cluster.pools:
        prefixes = (prefix for prefix, _ in host.routes)
        found.append(None if free_pool(host.addresses, prefixes) else no_free_pool())
    return [finding for finding in found if finding]


def unreachable(why: str) -> Finding:
    return Finding(
        "FAB1701",
        why,
        "start etcd, open the way to it, or name others with --etcd; a node that has joined forwards on without it",
    )


def _kernel(host: Host, cluster: Cluster) -> Iterator[Finding]:
    for missing in host.missing_features:
        yield Finding("FAB1001", missing, "use a kernel that has it")
    for trouble in tunnels.of_kernel(cluster.own_pools, host.missing_tunnels):
        yield Finding(*trouble)
    for id_, tools in (("FAB1003", NODE_TOOLS), ("FAB1004", POLICY_TOOLS)):
        for tool, package in tools.items():
            if tool not in host.tools:
                yield Finding(id_, f"tool {tool}: not found in PATH", f"install {package}")
    if cluster.passwords and not host.tcp_md5:
        cure = "use a kernel with CONFIG_TCP_MD5SIG, or peer without a password"
        yield Finding("FAB1005", "a BGPPeer has a password, and the kernel refuses TCP_MD5SIG", cure)


def _port(holders: Iterable[Listener]) -> Iterator[Finding]:
    for holder in holders:
        who = f"held by {holder.name or 'a process'} (pid {holder.pid or 'unknown'})"
        cure = "stop it, or let it peer from another host: two BGP daemons cannot share the port"
        yield Finding("FAB1101", who, cure)


def _vxlan(host: Host, cluster: Cluster) -> Iterator[Finding]:
    held = (host.vxlans, host.vxlan_holders)
    for trouble in tunnels.of_port(cluster.own_pools, cluster.vxlan_vni, cluster.vxlan_port, *held):
        yield Finding(*trouble)


def _clock(host: Host, cluster: Cluster) -> Iterator[Finding]:
    if not host.clock.synchronised:
        cure = "start an NTP client, or times in logs and resources will not match other nodes'"
        yield Finding("FAB1201", "the kernel says so (adjtimex)", cure)
    if cluster.born and host.now < cluster.born:
        says = f"it says {host.now:%Y-%m-%dT%H:%M:%SZ}, but the cluster was made at {cluster.born:%Y-%m-%dT%H:%M:%SZ}"
        yield Finding("FAB1202", says, "set the clock")


def _sysctls(host: Host, cluster: Cluster) -> Iterator[Finding]:
    read = host.sysctls.get
    for link in uplinks(host.addresses):
        every, own = "net/ipv4/conf/all/rp_filter", f"net/ipv4/conf/{link}/rp_filter"
        # The kernel takes the larger of the two; 2 is loose.
        if max(_number(read(every)), _number(read(own))) == 1:
            name = own if read(own) == "1" else every
            cause = (
                f"{name} = 1: what comes in by {link} is dropped where its source is routed by another uplink"
            )
            yield Finding("FAB1301", cause, f"set {own} = 2 (loose) in /etc/sysctl.d, then `sysctl --system`")
    if host.running and read("net/ipv4/ip_forward") == "0":
        cure = "set net/ipv4/ip_forward = 1, and take the 0 out of /etc/sysctl.d"
        yield Finding(
            "FAB1302", "net/ipv4/ip_forward = 0: somebody has turned it off since the node started", cure
        )
    for family in ("ipv4", "ipv6"):
        name = f"net/{family}/neigh/default/gc_thresh3"
        if name in host.sysctls and _number(read(name)) < MIN_NEIGHBOURS:
            cause = f"{name} = {read(name)}: hosts beyond that many cannot be reached on a link"
            yield Finding("FAB1303", cause, f"set it to {MIN_NEIGHBOURS} or more in /etc/sysctl.d")
    count, limit = (_number(read(f"net/netfilter/nf_conntrack_{word}")) for word in ("count", "max"))
    if limit and count >= 0.9 * limit:
        cause = f"{count} of {limit} entries are in use; new connections are dropped when it is full"
        yield Finding("FAB1304", cause, "raise net/netfilter/nf_conntrack_max in /etc/sysctl.d")
    if host.running and any(pool.spec.cidr.version == 6 for pool in cluster.pools):
        for link in sorted(host.advertised_defaults):
            name = f"net/ipv6/conf/{link}/accept_ra"
            if read(name) == "1":
                cause = (
                    f"{name} = 1, set back by somebody: a host that forwards IPv6 heeds no advertisement then"
                )
                yield Finding("FAB1305", cause, f"set {name} = 2, and take the 1 out of /etc/sysctl.d")


def _firewall(host: Host, cluster: Cluster | None) -> Iterator[Finding]:
    filters = [firewall.from_iptables(s.text, f"{_tool(s)} filter table", s.version) for s in host.saved]
    filters += firewall.from_nft(host.native)
    port = cluster.vxlan_port if cluster else VXLAN_PORT
    carriers: dict[Kind, Packet] = {"ipip": Packet("ipencap"), "vxlan": Packet("udp", port)}
    if cluster:
        carriers = {kind: packet for kind, packet in carriers.items() if kind in cluster.tunnels}
    # Where our rules are, or will be, they accept what policy allows ahead of the host's own, such as Docker's.
    yielding = {f"{_tool(s)} filter table" for s in host.saved if s.backend == _own_backend(host.saved)}
    for table in filters:
        for stopped in _forwarding(host, table) if table.name not in yielding else ():
            cause = f"{stopped} stops packets to or from containers; an accept of ours stands in another chain, and a "
            cure = "accept links named fab*, as input and as output, ahead of it"
            yield Finding("FAB1401", f"{cause}packet has to pass both", cure)
    for table in filters:
        for stopped in _blocked(host, table, Packet("tcp", BGP_PORT)):
            cure = f"accept tcp port {BGP_PORT} from and to the peers ahead of it"
            yield Finding("FAB1402", f"{stopped} stops every new session (tcp port {BGP_PORT})", cure)
    for table in filters:
        for kind, packet in carriers.items():
            what = f"udp port {packet.port}" if packet.port else "protocol 4"
            for stopped in _blocked(host, table, packet) if kind == "vxlan" or 4 in table.versions else ():
                cure = f"accept {what} from and to the other nodes ahead of it"
                yield Finding("FAB1403", f"{stopped} stops every {kind.upper()} packet ({what})", cure)
    yield from _mixed(host.saved)
    for name, does, cure in managers.firewalls(host.daemons, host.files, [s.text for s in host.saved]):
        yield Finding("FAB1405", f"{name}: {does}", cure)


def _own_backend(saved: Iterable[Saved]) -> str:
    """The backend that our rules are in, or will be: the one that the host uses; "" where it uses both."""
    ours = {s.backend for s in saved if f"\n:{PREFIX}" in s.text}
    backends = ours or {s.backend for s in saved if firewall.count_rules(s.text)}
    return backends.pop() if len(backends) == 1 else ""


def _tool(saved: Saved) -> str:
    return f"{'iptables' if saved.version == 4 else 'ip6tables'}-{saved.backend}"


def _forwarding(host: Host, table: Table) -> list[str]:
    found = []
    for link in _served(host, table):
        ours = managers.SAMPLE_LINK
        ways = (Packet("tcp", 0, ours, link), Packet("tcp", 0, link, ours))
        found += [firewall.blocker(table, "forward", packet) for packet in ways]
    return _named(table, found)


def _blocked(host: Host, table: Table, packet: Packet) -> list[str]:
    found = []
    for link in _served(host, table):
        incoming = Packet(packet.protocol, packet.port, in_link=link)
        outgoing = Packet(packet.protocol, packet.port, out_link=link)
        found.append(firewall.blocker(table, "input", incoming))
        found.append(firewall.blocker(table, "output", outgoing))
    return _named(table, found)


def _named(table: Table, stopped: Iterable[str]) -> list[str]:
    return [f"{table.name}: {what}" for what in dict.fromkeys(stopped) if what]


def _served(host: Host, table: Table) -> list[str]:
    """The uplinks whose packets pass the table: those with an address of one of its families."""
    return list(dict.fromkeys(a.link for v in table.versions for a in candidates(host.addresses, v)))


def _mixed(saved: Iterable[Saved]) -> Iterator[Finding]:
    counts = {s: firewall.count_rules(s.text) for s in saved}
    for version in (4, 6):
        used = {s.backend: tables for s, tables in counts.items() if s.version == version and tables}
        if len(used) > 1:
            said = "; ".join(
                f"{backend} has {sum(tables.values())} rules ({', '.join(sorted(tables))})"
                for backend, tables in sorted(used.items())
            )
            cure = (
                "move everything to one of them (`update-alternatives --config iptables`, then restart what made the "
                "rules): a packet has to pass both, and each tool shows only its own"
            )
            yield Finding("FAB1404", f"IPv{version}: {said}", cure)


def _managers(host: Host) -> Iterator[Finding]:
    if "NetworkManager" in host.daemons and not managers.networkmanager_ignores_us(host.files):
        cause = (
            "it runs, and none of its files leaves links named fab* unmanaged: it may take their routes away"
        )
        yield Finding("FAB1501", cause, _write(managers.NM_SNIPPET, "systemctl reload NetworkManager"))
    if "systemd-networkd" not in host.daemons:
        return
    if not managers.networkd_keeps_routes(host.files):
        cause = "it runs, and ManageForeignRoutes is not no: routes from BGP go when it restarts or a link changes"
        yield Finding(
            "FAB1502", cause, _write(managers.NETWORKD_SNIPPET, "systemctl restart systemd-networkd")
        )
    if path := managers.networkd_file_for_us(host.files):
        cause = f"{path} matches links named fab*: it may take their routes and neighbours away"
        yield Finding("FAB1503", cause, _write(managers.LINK_SNIPPET, "networkctl reload"))


def _write(snippet: tuple[str, str], then: str) -> str:
    path, text = snippet
    lines = " ".join(f"'{line}'" for line in text.splitlines())
    return (
        f"write it and reload: mkdir -p {path.rpartition('/')[0]} && printf '%s\\n' {lines} >{path} && {then}"
    )


def _networks(host: Host, cluster: Cluster) -> Iterator[Finding]:
    subnets = {a.address.network: a.link for a in host.addresses}
    met = [(pool, *at) for pool in cluster.pools for at in _own_networks(host, subnets, pool.spec.cidr)]
    at_odds = [prefix in subnets and _holds(pool) and not pool.spec.disabled for pool, prefix, _ in met]
    for (pool, prefix, link), _ in filter(lambda one: not one[1], zip(met, at_odds, strict=True)):
        cure = "disable the pool and add one elsewhere: addresses of the two cannot be told apart here"
        yield Finding("FAB1603", _meets(pool, prefix, link), cure)
    mtus = _mtus(host)
    if len(set(mtus.values())) > 1:
        sizes = ", ".join(f"{link} {size}" for link, size in sorted(mtus.items()))
        cause = f"{sizes}; containers get the smallest of those in use"
        yield Finding("FAB1604", cause, "give them one MTU")
    for link, size in sorted(mtus.items()):
        if size < (least := mtu.MINIMUM[6]):
            yield Finding(
                "FAB1605", f"{link} has {size}, IPv6 needs {least}", f"`ip link set {link} mtu 1500`"
            )
    for (pool, prefix, link), _ in filter(lambda one: one[1], zip(met, at_odds, strict=True)):
        cure = "name another prefix, or disable the pool and add one elsewhere: a container could get a host's address"
        yield Finding("FAB1606", _meets(pool, prefix, link), cure)


def _meets(pool: IPPool, prefix: Prefix, link: str) -> str:
    return f"pool {pool.metadata.name} ({pool.spec.cidr}) meets {prefix} on {link}"


def _mtus(host: Host) -> dict[str, int]:
    return {a.link: a.mtu for version in (4, 6) for a in candidates(host.addresses, version)}


def _own_networks(host: Host, subnets: Mapping[Prefix, str], pool: Prefix) -> Iterator[tuple[Prefix, str]]:
    """The host's subnets that meet `pool`, and what it routes inside it by a link that carries no pool.

    A route around the pool, such as a default or a summary, leads out: the pool's own are narrower and win.
    """
    routed = {prefix: link for prefix, link in host.routes if prefix.prefixlen >= pool.prefixlen}
    for prefix, link in {**routed, **subnets}.items():
        meets = prefix.version == pool.version and prefix.overlaps(pool)
        if meets and not is_ours(link) and not _CARRIES_POOLS.fullmatch(link):
            yield prefix, link


def _ends(host: Host, cluster: Cluster) -> Iterator[Finding]:
    own = cluster.node
    has = {a.version for a in own.addresses} if own else {v for v in (4, 6) if candidates(host.addresses, v)}
    for trouble in tunnels.of_ends(cluster.own_pools, has):
        yield Finding(*trouble)


def _room(host: Host, cluster: Cluster) -> Iterator[Finding]:
    links = {a.link: a.mtu for a in host.addresses if a.up and not (is_ours(a.link) or a.link in NO_WAY_OUT)}
    smallest = min(_mtus(host).values(), default=0)
    least = mtu.egress(host.foreign_routes, links, cluster.far, smallest)
    link = min((name for name, size in links.items() if size == least), default="")
    for trouble in tunnels.of_room(cluster.own_pools, link, least) if link else ():
        yield Finding(*trouble)


def _way_to_etcd(host: Host, cluster: Cluster) -> Iterator[Finding]:
    """What of BGP would take etcd away: the node must reach it when its last session is down."""
    own = {a.address.ip for a in host.addresses}
    for endpoint, addresses in host.etcd.items():
        for address in sorted({*addresses} - own, key=str):
            what = f"etcd endpoint {endpoint}" + (f" ({address})" if str(address) not in endpoint else "")
            if route := _learned(address, host):
                vias = sorted(str(hop.gateway) for hop in route.next_hops if hop.gateway)
                cause = f"{what} is reached by {route.key.prefix} via {', '.join(vias)}, which BGP made"
                cure = (
                    f"give the host a route of its own, such as `ip route add {address} via {vias[0]}`, and keep it in "
                    "its network configuration: without a session the node would lose etcd as well"
                )
                yield Finding("FAB1702", cause, cure)
            for pool in cluster.pools:
                if address.version == pool.spec.cidr.version and address in pool.spec.cidr:
                    cause = f"{what} is an address of pool {pool.metadata.name} ({pool.spec.cidr})"
                    cure = "move one of them: a node that holds the block around it would draw the packets to etcd"
                    yield Finding("FAB1703", cause, cure)


def _learned(address: Address, host: Host) -> Route | None:
    """The route to `address`, where it is one that BGP made: of ours, and over a gateway, as no workload's is."""
    ways = [
        (route.key.prefix.prefixlen, -route.key.metric, not is_own, route)
        for is_own, routes in ((True, host.own_routes), (False, host.foreign_routes))
        for route in routes
        if route.key.prefix.version == address.version and address in route.key.prefix
    ]
    if not ways:
        return None
    *_, foreign, route = max(ways, key=lambda way: way[:3])
    return None if foreign or not any(hop.gateway for hop in route.next_hops) else route


def of_sessions(sessions: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Return what the agent says is likely wrong with its sessions, as its socket reports them."""
    return [
        Finding(hint["id"], f"peer {session['peer']}: {hint['cause']}", hint["cure"])
        for session in sessions
        for hint in session["hints"]
        if hint["id"] in CATALOGUE
    ]


def of_resources(problems: Iterable[str]) -> list[Finding]:
    """Return a finding for each thing that the agent says it does not do of BGP's resources and its Node."""
    cure = "correct the resource, or give it what it names; `fabricctl bgp peers` says it no longer when it is done"
    return [Finding("FAB1805", problem, cure) for problem in problems]


def address_choice(addresses: Iterable[HostAddress], version: int) -> Finding | None:
    """Return what is wrong where not exactly one address can be the node's."""
    found = candidates(addresses, version)
    if len(found) == 1:
        return None
    if not found:
        cause = f"no link that is up has an IPv{version} address of its own"
        return Finding("FAB1601", cause, "give the host one, or name it with --ip")
    listed = ", ".join(f"{a.address} on {a.link}" for a in found)
    return Finding(
        "FAB1601", f"{len(found)} candidates ({listed})", f"choose one with --ip {found[0].address.ip}"
    )


def free_pool(addresses: Iterable[HostAddress], routes: Iterable[Prefix]) -> Prefix | None:
    """Return the first of Calico's default prefixes that meets no address or route of this host."""
    used = [a.address.network for a in addresses] + [r for r in routes if r.prefixlen]
    for pool in map(ip_network, DEFAULT_POOLS):
        if not any(net.version == pool.version and net.overlaps(pool) for net in used):
            return pool
    return None


def no_free_pool() -> Finding:
    return Finding(
        "FAB1602",
        "192.168.0.0/16 and every 172.16-31.0.0/16 meet this host's own networks",
        "name a free prefix with --pool",
    )


def _number(text: str | None) -> int:
    return int(text) if text and text.lstrip("-").isdecimal() else 0
