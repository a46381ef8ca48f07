"""What `bgp tor-config` prints, in the real FRR, BIRD and GoBGP, with our speaker at the other end of the sessions.

Two nodes and a router on one bridge; the nodes run the speaker, the router what was printed for it and, beside that,
a default route and a prefix that is none of the nodes' business.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from bgp.peering import Here, Peering, Uplink
from bgp.rib import Address, Announcement, Attributes, Prefix, SessionSpec
from bgp.rib import Path as BgpPath
from bgp.router import NodeEnd, Router, routers
from bgp.speaker.seam import Update, Wanted
from bgp.vendors import bird, frr, gobgp
from fabric.model.ippool import IPPool
from tests.contract.speaker_rig import Agent, Node, Process, agent_of, node, until

GOLDEN = Path(__file__).parents[1] / "unit" / "golden" / "tor"
POOL = IPPool.model_validate({"metadata": {"name": "pool"}, "spec": {"cidr": "10.77.0.0/16"}})
ROUTER, ROUTER6 = ip_address("10.0.0.254"), ip_address("2001:db8::254")
ROUTER_AS = 65000
BLOCKS = [ip_network("10.77.1.0/26"), ip_network("10.77.2.0/26")]
SHARED, DRAINED = ip_network("10.77.9.0/26"), ip_network("10.77.8.0/26")
FOREIGN, NOT_FOR_NODES = ip_network("192.0.2.0/24"), ip_network("198.51.100.0/24")
DEFAULT = ip_network("0.0.0.0/0")
SECRET = "SECRET-tor-md5"


@dataclass(frozen=True)
class Case:
    """Two sessions of nodes with the router, as their speakers have them; `nodes` of the fabric have such ones."""

    name: str
    as_numbers: tuple[int, int]
    peer: Address = ROUTER
    nodes: int = 2
    ttl_security: int = 0
    password: str = ""
    extended_next_hop: bool = False

    def spec(self, number: int) -> SessionSpec:
        return SessionSpec(
            peer=self.peer,
            peer_as=ROUTER_AS,
            source=ip_address(f"10.0.0.{number}" if self.peer.version == 4 else f"2001:db8::{number}"),
            local_as=self.as_numbers[min(number, 2) - 1],
            router_id=IPv4Address(f"10.0.0.{number}"),
            hold_time=9,
            restart_time=30,
            ttl_security=self.ttl_security,
            password=self.password,
            extended_next_hop=self.extended_next_hop,
        )

    def router(self) -> Router:
        links = {4: "10.0.0.{}/24", 6: "2001:db8::{}/64"}
        ends = [
            NodeEnd(
                f"node{number}",
                frozenset({IPv4Address(f"10.0.0.{number}")}),
                Here(uplinks=tuple(Uplink("eth0", ip_interface(t.format(number))) for t in links.values())),
                (Peering(self.spec(number)),),
            )
            for number in range(1, self.nodes + 1)
        ]
        [router] = routers(ends, [POOL])
        return router


CASES = [
    Case("external", (65001, 65002), ttl_security=1, password=SECRET),
    Case("listen range", (65001, 65001), nodes=4, ttl_security=1),
    Case("internal", (ROUTER_AS, ROUTER_AS)),
    Case("next hop of the other family", (65001, 65002), peer=ROUTER6, extended_next_hop=True),
]


def start_frr(node: Node) -> None:
    for daemon in ("zebra", "staticd", "bgpd"):
        node.run(f"/usr/lib/frr/{daemon}", "-d", "-A", "127.0.0.1")


class Frr:
    drained_local_pref = 0
    fills_the_kernel = True

    def __init__(self, node: Node, folder: Path, router: Router) -> None:
        self.node = node
        start_frr(node)
        beside = "".join(f"ip route {net} Null0\n" for net in (DEFAULT, NOT_FOR_NODES))
        beside += f"router bgp {router.local_as}\nbgp router-id {ROUTER}\naddress-family ipv4 unicast\n"
        beside += "".join(f"network {net}\n" for net in (DEFAULT, NOT_FOR_NODES))
        (folder / "printed").write_text(frr.render(router))
        (folder / "beside").write_text(beside)
        for name in ("printed", "beside"):
            node.run("vtysh", "-f", str(folder / name))

    async def local_prefs(self) -> dict[Prefix, int]:
        said = json.loads(await self.node.ask("vtysh", "-c", "show bgp ipv4 unicast json"))
        return {ip_network(net): paths[0].get("locPrf", 100) for net, paths in said["routes"].items()}


class Bird:
    drained_local_pref = 0
    fills_the_kernel = True

    def __init__(self, node: Node, folder: Path, router: Router) -> None:
        self.node = node
        routes = "".join(f"route {net} blackhole; " for net in (DEFAULT, NOT_FOR_NODES))
        text = f"{bird.render(router)}\nprotocol static {{ ipv4; {routes} }}\n"
        (folder / "printed").write_text(text)
        node.run("bird", "-c", str(folder / "printed"), "-s", "/run/bird.ctl")

    async def local_prefs(self) -> dict[Prefix, int]:
        found: dict[Prefix, int] = {}
        said = await self.node.ask("birdc", "-s", "/run/bird.ctl", "show", "route", "all")
        for line in said.splitlines():
            if line[:1].isdigit() and "/" in line.split()[0]:
                found[net := ip_network(line.split()[0])] = 100
            elif "BGP.local_pref" in line:
                found[net] = int(line.split()[1])
        return found


class Gobgp:
    drained_local_pref = 1  # its policies cannot set 0
    fills_the_kernel = False

    def __init__(self, node: Node, folder: Path, router: Router) -> None:
        self.node = node
        (folder / "printed").write_text(gobgp.render(router))
        with (folder / "log").open("w") as log:
            argv = node.argv("gobgpd", "-f", str(folder / "printed"), "--pprof-disable")
            self.popen = subprocess.Popen(argv, stdout=log, stderr=log)
        self.added = False

    async def local_prefs(self) -> dict[Prefix, int]:
        try:
            if not self.added:
                for net in (DEFAULT, NOT_FOR_NODES):
                    await self.node.ask("gobgp", "global", "rib", "add", str(net), "nexthop", str(ROUTER))
                self.added = True
            said = json.loads(await self.node.ask("gobgp", "global", "rib", "-j"))
        except AssertionError:  # not up yet
            return {}
        return {ip_network(net): _local_pref(paths[0]["attrs"]) for net, paths in said.items()}


def _local_pref(attributes: Sequence[dict[str, int]]) -> int:
    return next((a["value"] for a in attributes if a["type"] == 5), 100)


VENDORS: dict[str, type[Frr] | type[Bird] | type[Gobgp]] = {"frr": Frr, "bird": Bird, "gobgp": Gobgp}


@contextmanager
def running(vendor: str, node: Node, folder: Path, config: Router) -> Iterator[Frr | Bird | Gobgp]:
    router = VENDORS[vendor](node, folder, config)
    try:
        yield router
    finally:
        if isinstance(router, Gobgp):  # the others go with their node
            router.popen.kill()
            router.popen.wait()


@contextmanager
def bridged() -> Iterator[tuple[Node, Node, Node]]:
    """Two nodes, and a router that bridges their links."""
    with node() as first, node() as second, node() as router:
        router.run("ip", "link", "add", "br0", "type", "bridge")
        for number, here in ((1, first), (2, second)):
            ends = f"netns {here.pid} type veth peer name veth{number} netns {router.pid}"
            subprocess.run(["ip", "link", "add", "eth0", *ends.split()], check=True)
            router.run("ip", "link", "set", f"veth{number}", "master", "br0", "up")
        for number, here, device in ((1, first, "eth0"), (2, second, "eth0"), (254, router, "br0")):
            here.run("ip", "link", "set", device, "up")
            here.run("ip", "addr", "add", f"10.0.0.{number}/24", "dev", device)
            here.run("ip", "addr", "add", f"2001:db8::{number}/64", "dev", device, "nodad")
        yield first, second, router


@asynccontextmanager
async def speaking(
    case: Case, nodes: Sequence[Node], folder: Path
) -> AsyncIterator[list[tuple[Process, Agent]]]:
    """A speaker in each of the nodes, which announces what `announced` says."""
    async with AsyncExitStack() as owned:
        found = []
        for number, here in enumerate(nodes, 1):
            process = Process(here, folder / f"run{number}")
            owned.callback(process.end)
            agent = await owned.enter_async_context(agent_of(process))
            spec = case.spec(number)
            await agent.speaker.want(Wanted(frozenset([spec]), {spec.peer: announced(number)}))
            found.append((process, agent))
        yield found


def announced(number: int) -> frozenset[Announcement]:
    prefixes = [BLOCKS[number - 1], SHARED, *([FOREIGN] if number == 1 else [])]
    drained = Announcement(DRAINED, attributes=Attributes(communities=("65535:0",)))
    return frozenset(map(Announcement, prefixes)) | (frozenset([drained]) if number == 1 else frozenset())


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that FRR's user can read."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_what_is_printed_brings_the_sessions_up_and_lets_through_what_it_says(
    vendor: str, case: Case, folder: Path
) -> None:
    with ExitStack() as owned:
        first, second, beside = owned.enter_context(bridged())
        router = owned.enter_context(running(vendor, beside, folder, case.router()))
        async with speaking(case, (first, second), folder) as [(process, one), (_, two)]:
            for agent in (one, two):
                await agent.sees(lambda agent: agent.up(case.peer), 30.0)

            async def has_all() -> bool:
                return set(BLOCKS) | {SHARED, DRAINED, DEFAULT} <= (await router.local_prefs()).keys()

            await until(has_all, router.local_prefs)
            local_prefs = await router.local_prefs()
            assert FOREIGN not in local_prefs
            assert local_prefs[DRAINED] == router.drained_local_pref  # RFC 8326 §4.1
            await two.sees(lambda agent: {BLOCKS[0], DRAINED, DEFAULT} <= paths(agent, case).keys())
            await one.sees(lambda agent: {BLOCKS[1], DEFAULT} <= paths(agent, case).keys())
            assert not {FOREIGN, NOT_FOR_NODES} & paths(two, case).keys()
            block = paths(two, case)[BLOCKS[0]]
            assert case.spec(2).local_as not in block.as_path, "nodes of one AS would take it for a loop"
            assert block.next_hop in (case.peer, case.spec(1).source)
            if router.fills_the_kernel:
                await until(lambda: has_two_ways(beside), "a route with two next hops")
            if case.nodes > 2:  # of listed ones it is the speaker's own contract
                await outlives_a_restart(process, one, two, case)


def paths(agent: Agent, case: Case) -> dict[Prefix, BgpPath]:
    return agent.paths.get(case.peer, {})


async def has_two_ways(router: Node) -> bool:
    found = json.loads(await router.ask("ip", "-j", "route", "show", str(SHARED)))
    return bool(found) and len(found[0].get("nexthops", ())) == 2


async def outlives_a_restart(process: Process, one: Agent, two: Agent, case: Case) -> None:
    """What one node announced stays with the other while the one's BGP daemon dies and comes back (RFC 4724)."""
    two.deltas.clear()
    os.kill(process.exabgp(), signal.SIGKILL)
    await one.sees(lambda agent: not agent.up(case.peer))
    await one.sees(lambda agent: agent.up(case.peer), 40.0)
    assert not [delta for delta in two.deltas if isinstance(delta, Update) and BLOCKS[0] in delta.withdrawn]
    assert BLOCKS[0] in paths(two, case)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.bird")), ids=lambda path: path.name)
def test_bird_takes_the_golden_texts(path: Path) -> None:
    subprocess.run(["bird", "-p", "-c", str(path)], check=True, timeout=20)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.toml")), ids=lambda path: path.name)
def test_gobgp_takes_the_golden_texts(path: Path) -> None:
    subprocess.run(["gobgpd", "--dry-run", "-f", str(path)], check=True, timeout=20)


def test_frr_takes_the_golden_texts(folder: Path) -> None:
    for path in sorted(GOLDEN.glob("*.frr")):
        text = path.read_text()
        local_as = text.partition("router bgp ")[2].split()[0]
        (folder / path.name).write_text(text)
        with node() as here:
            start_frr(here)
            said = here.run("vtysh", "-f", str(folder / path.name))
            assert said.strip() == "Graceful restart configuration changed, reset all peers to take effect", (
                path
            )
            assert f"router bgp {local_as}" in here.run("vtysh", "-c", "show running-config")
