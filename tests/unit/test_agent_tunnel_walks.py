"""A whole node over the fakes, from each situation of tunnels, NAT and published ports to each other one.

On each way every single call of the kernel is refused once, and after some of these the agent begins anew. Nothing bad
is so after any call, and two passes later the node is at its goal.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, count
from typing import Any, TypeVar, cast

import pytest

from bgp.rib import Path
from fabric.agent.passes import Outcome, Passes
from fabric.agent.policing import Policing, policing
from fabric.agent.ribs import Ribs
from fabric.agent.routing import Host, Routing, routing
from fabric.agent.rules import Rules
from fabric.agent.snapshot import Snapshot
from fabric.agent.state import State
from fabric.errors import DataplaneError
from fabric.model.extensions import NETNS
from fabric.model.felixconfiguration import FelixConfiguration
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from fabric.model.workloadendpoint import EndpointPort, WorkloadEndpoint
from fabric.plan.encap import IPIP, VXLAN, VXLAN6
from fabric.plan.links import host_name
from fabric.plan.routes import Route, RouteKey, RouteSet
from fabric.plan.tables import Place
from fabric.plan.tunnels import Tunnel
from policy.flows import Ends, Flow
from policy.form import UDP
from tests.fakes.conntrack import FakeConntrack
from tests.fakes.fib import FakeFib
from tests.fakes.ipsets import FakeIPSets
from tests.fakes.node import RoutedLinks
from tests.fakes.tables import FakeTables
from tests.fakes.tunnels import FakeTunnels
from tests.unit.overlays import (
    DEFAULTS,
    HERE,
    LINKS,
    address,
    block,
    endpoint,
    network,
    node,
    own_address,
    pool,
    stored,
)

T = TypeVar("T")

OWN = ("10.244.1.9", "fd00:10:0:1::9")
WEB = host_name("default", "web")
STEADY = network("10.250.2.0/26")  # a block of n2 in a pool that is as it is in every situation
CLIENT = address("198.51.100.1")


@dataclass(frozen=True)
class Situation:
    snapshot: Snapshot
    ribs: Ribs
    host: Host
    published: bool


def web(*ports: EndpointPort) -> WorkloadEndpoint:
    made = endpoint("web", 1, *OWN)
    spec = {"ports": ports, "mac": "02:00:00:00:00:01", "interface_name": WEB}
    noted = made.metadata.model_copy(update={"annotations": {NETNS: "/run/netns/web"}})
    return made.model_copy(update={"metadata": noted, "spec": made.spec.model_copy(update=spec)})


PORTS = (
    EndpointPort(protocol="UDP", port=5353, host_port=53),
    EndpointPort(protocol="TCP", port=80, host_port=8080),
)


def moved(far: Node, **spec: object) -> Node:
    """The node `far` with something else in its specification."""
    tree = far.model_dump(by_alias=True, exclude_none=True, mode="json")
    return Node.model_validate({**tree, "spec": {**tree["spec"], **spec}})


def situation(
    *pools: IPPool,
    ports: tuple[EndpointPort, ...] = (),
    mtu: int = 1500,
    far: Node | None = None,
    without: Collection[int] = (),
    workload: bool = True,
    **settings: object,
) -> Situation:
    """n1's, with these pools; `far` is another n3 than usual, `without` the nodes that have gone."""
    steady = IPPool.model_validate({"metadata": {"name": "steady"}, "spec": {"cidr": "10.250.0.0/16"}})
    third = far or node(3, IPIP, VXLAN, VXLAN6)
    nodes = {1: node(1, IPIP, VXLAN, VXLAN6), 2: node(2, IPIP, VXLAN, VXLAN6), 3: third}
    there = {number: one for number, one in nodes.items() if number not in without}
    felix = FelixConfiguration.model_validate({"metadata": {"name": "default"}, "spec": settings})
    snapshot = stored(
        *there.values(),
        *pools,
        steady,
        *([web(*ports)] if workload else []),
        *([felix] if settings else []),
        ends=(IPIP, VXLAN, VXLAN6),
        blocks_of=there,
    )
    tables = {}
    for number in there.keys() - {1}:
        for own in (held.ip for held in there[number].addresses):
            blocks = [block(number, own.version), *([STEADY] if (number, own.version) == (2, 4) else [])]
            tables[own] = {prefix: Path(prefix, own, own, as_path=()) for prefix in blocks}
    links = {"lo": frozenset({address("127.0.0.1")}), "eth1": frozenset(u.address.ip for u in HERE.uplinks)}
    host = Host(HERE, (*LINKS, *DEFAULTS), mtu, {"eth1": mtu}, links)
    ribs = Ribs(connected=True, settled=True, adj_rib_in=tables)
    return Situation(replace(snapshot, in_sync=True), ribs, host, bool(ports))


NEVER, NEVER6 = pool(4), pool(6)
ALWAYS, ALWAYS6 = pool(4, vxlanMode="Always"), pool(6, vxlanMode="Always")
N3 = node(3, VXLAN, VXLAN6)
SITUATIONS = {
    "no tunnel": situation(NEVER, NEVER6),
    "vxlan": situation(ALWAYS, ALWAYS6),
    "another vni and port": situation(ALWAYS, ALWAYS6, vxlanVNI=77, vxlanPort=4790),
    "another end": situation(ALWAYS, ALWAYS6, far=moved(N3, ipv4VXLANTunnelAddr=str(block(3)[40]))),
    "a far node elsewhere": situation(ALWAYS, ALWAYS6, far=moved(N3, bgp={"ipv4Address": "10.2.0.33/24"})),
    "a far node gone and a narrow link": situation(ALWAYS, ALWAYS6, without=[3], mtu=1400),
    "ipip and no workload": situation(pool(4, ipipMode="Always"), NEVER6, workload=False),
    "fallback": situation(
        pool(4, ipipMode="Always", fallback=True), NEVER6, far=node(3, VXLAN, VXLAN6, lacks="ipip")
    ),
    "vxlan across subnets, nat and ports": situation(
        pool(4, vxlanMode="CrossSubnet", natOutgoing=True),
        pool(6, vxlanMode="CrossSubnet", natOutgoing=True),
        ports=PORTS,
    ),
}


_known: dict[tuple[object, ...], tuple[object, ...]] = {}


def once(what: str, make: Callable[[], T], *by: object) -> T:
    """Return what `make` returns, which is asked once for the same `by`: equal tunnels, and else the same objects."""
    key = (what, *(one if isinstance(one, tuple) else id(one) for one in by))
    if key not in _known:
        _known[key] = (make(), by)
    return cast("T", _known[key][0])


class RoutedTunnels(FakeTunnels):
    """Tunnels whose routes in `fib` go with them, as in the kernel."""

    def __init__(self, fib: FakeFib) -> None:
        super().__init__()
        self._fib = fib

    async def remove(self, name: str) -> None:
        await super().remove(name)
        for key in [k for k, r in self._fib.routes.items() if any(h.device == name for h in r.next_hops)]:
            del self._fib.routes[key]


CALLS = {
    "tunnels": ("create", "remove"),
    "links": ("create", "remove"),
    "fib": ("replace", "delete"),
    "sets": ("create", "add", "delete", "rewrite", "destroy"),
    "tables": ("restore",),
    "conntrack": ("flows", "forget"),
}


class Kernel:
    """n1: its agent over fakes that look after each call whether something bad is so.

    `refuse` is the number of the call, from now on, that is refused; `same` are the routes that are to be left alone.
    """

    def __init__(self) -> None:
        self.fib = FakeFib()
        self.links, self.tunnels = RoutedLinks(self.fib), RoutedTunnels(self.fib)
        self.sets, self.tables, self.conntrack = FakeIPSets(), FakeTables(), FakeConntrack()
        self.refuse, self.bad = 0, list[str]()
        self.same: dict[RouteKey, Route] = {}
        for driver, names in CALLS.items():
            for name in names:
                self._watch(driver, name)
        self.restart()

    def _watch(self, driver: str, name: str) -> None:
        call: Callable[..., Awaitable[Any]] = getattr(getattr(self, driver), name)

        async def watched(*given: Any) -> Any:
            self.refuse -= 1
            if self.refuse == 0:
                raise DataplaneError(f"{driver}.{name}", errno.EBUSY, "refused, as asked for")
            if driver == "fib":
                key = given[0].key if name == "replace" else given[0]
                if key in self.same and self.fib.routes.get(key) == self.same[key]:
                    self.bad.append(f"fib.{name} of {key.prefix}, which is to be as it is")
            found = await call(*given)
            self.bad += [f"after {driver}.{name}: {what}" for what in self.wrong()]
            return found

        setattr(getattr(self, driver), name, watched)

    def restart(self) -> None:
        """Have another agent, which remembers nothing."""
        self.state = State("n1")
        rules = Rules(self.sets, self.tables, self.conntrack)
        self.passes = Passes(self.links, self.fib, rules, self.tunnels, linger=0.0)

    async def run(self, goal: Situation, *, tidy: bool = False) -> Outcome:
        """One pass, as the agent's loop has it; one that is `tidy` reads everything back."""
        state = self.state
        state.update(snapshot=goal.snapshot, ribs=goal.ribs, host=goal.host)
        state.routing = once(
            "routing", partial(routing, "n1", goal.snapshot, goal.ribs, goal.host, Routing()), goal
        )
        await self.passes.look()
        state.raised(self.passes.held_tunnels)
        known, stand, localnet = state.policing, state.all_tunnels, self.passes.localnet
        police = partial(policing, "n1", goal.snapshot, goal.host, known, tidy=tidy)
        police = partial(police, tunnels=stand, localnet=localnet)
        state.policing = once("policing", police, goal, known, tidy, stand, localnet)
        desire = partial(once, "desired", state.compute, goal, state.policing)
        outcome = await self.passes.run(desire, read_back=tidy)
        state.raised(self.passes.held_tunnels)
        state.passed(outcome)
        return outcome

    def wrong(self) -> Iterator[str]:
        """What must never be so, whatever is done next."""
        devices = {"eth1", *self.links.links, *self.tunnels.tunnels}
        for route in self.fib.routes.values():
            for hop in route.next_hops:
                if hop.device and hop.device not in devices:
                    yield f"{route.key.prefix} leads through {hop.device}, which does not stand"
                held = self.tunnels.tunnels.get(hop.device or "")
                if held and held.tunnel.encap.kind == "vxlan":
                    to = hop.gateway or route.key.prefix.network_address
                    if to not in {far.address for far in held.tunnel.far}:
                        yield f"{route.key.prefix} leads to {to}, of which {hop.device} does not know"
        for held in self.tunnels.tunnels.values():
            if not self._is_guarded(held.tunnel):
                yield f"{held.tunnel.name} stands unguarded"
        if any(link.localnet for link in self.links.links.values()) and not self._is_closed():
            yield "127/8 is open"

    def _is_guarded(self, tunnel: Tunnel) -> bool:
        version = tunnel.encap.version
        outer = f"-p udp -m udp --dport {tunnel.port}" if tunnel.encap.kind == "vxlan" else "-p 4"
        return self._leads(version, "filter", "INPUT", "fab-tunnels", f"{outer} -j DROP")

    def _is_closed(self) -> bool:
        return self._leads(4, "raw", "PREROUTING", "fab-loopback", "-d 127.0.0.0/8 -j DROP")

    def _leads(self, version: Any, table: str, at: str, chain: str, rule: str) -> bool:
        rules = self.tables.rules[version]
        return any(f"-j {chain} " in line for line in rules.get(Place(table, at), ())) and any(
            line.startswith(f"{rule} ") for line in rules.get(Place(table, chain), ())
        )

    def connect(self, to: object, at: int) -> None:
        """Have a client's connection to the port that is published, which leads to `at` of `to`."""
        asked = Ends(CLIENT, address(own_address(1)), UDP, 40000, 53)
        self.conntrack.insert(Flow(asked, Ends(address(to), CLIENT, UDP, at, 40000)))

    @property
    def all(self) -> object:
        """Everything that the kernel holds."""
        return (
            self.fib.routes,
            {name: replace(link, index=0) for name, link in self.links.links.items()},
            self.tunnels.tunnels,
            {name: held.ipset for name, held in self.sets.sets.items()},
            {
                v: {at: lines for at, lines in rules.items() if lines}
                for v, rules in self.tables.rules.items()
            },
        )


@dataclass(frozen=True)
class Settled:
    """What a node comes to that has never been in any other situation."""

    goal: Situation
    kernel: object
    routes: RouteSet
    policing: Policing


async def settled(goal: Situation) -> Settled:
    kernel = Kernel()
    for tidy in (False, True):
        assert not (await kernel.run(goal, tidy=tidy)).refused
    assert not kernel.bad
    assert kernel.state.policing
    return Settled(goal, kernel.all, dict(kernel.fib.routes), kernel.state.policing)


async def go(kernel: Kernel, before: Settled, after: Settled, refuse: int) -> bool:
    """Bring `kernel` from one to the other while one call is refused; return whether there were as many."""
    kernel.same = {key: route for key, route in before.routes.items() if after.routes.get(key) == route}
    if before.goal.published != after.goal.published:
        kernel.connect(*(OWN[0], 5353) if before.goal.published else (own_address(1), 53))
    kernel.refuse = refuse
    await kernel.run(after.goal)
    reached, kernel.refuse = kernel.refuse <= 0, 0
    if refuse % 3 == 0:
        kernel.restart()
    passes = [await kernel.run(after.goal, tidy=tidy) for tidy in (True, False)]
    assert not kernel.bad
    assert not any(one.refused for one in passes)
    assert kernel.all == after.kernel
    assert not kernel.conntrack.entries
    assert await kernel.run(after.goal) == Outcome()
    kernel.state.policing = after.policing  # equal, and what comes of it is known
    return reached


@pytest.mark.parametrize("pair", list(combinations(SITUATIONS, 2)), ids=" and ".join)
async def test_whatever_is_refused_once_nothing_is_open_or_lost_and_two_passes_later_all_is_as_desired(
    pair: tuple[str, str],
) -> None:
    one, other = [await settled(SITUATIONS[name]) for name in pair]
    kernel = Kernel()
    await kernel.run(one.goal)
    await kernel.run(one.goal, tidy=True)
    kernel.state.policing = one.policing
    for call in count(1):  # the last ones have nothing refused
        there = await go(kernel, one, other, call)
        if not (await go(kernel, other, one, call) or there):
            break
