"""Our decision beside BIRD's, on random tables that twelve peers announce to both.

BIRD hears the paths over twelve sessions, from senders that say exactly what they are told; ours are the same values,
with the same routes below them. What is compared is the whole way from adj-RIB-in to best path and next hops.

What BIRD does by rules of its own is not in the tables: it resolves a next hop through a default route, and not
through another BGP route; an AS path that begins with an AS_SET has for it no neighbour AS. Its defaults are our
rules: MED is compared within a neighbouring AS (`med metric` is off), and the path that was there first does not win
(`prefer older` is off). One is not: without `deterministic med`, its choice depends on the order of arrival.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, ip_address, ip_network
from pathlib import Path as File
from random import Random

import pytest

from bgp.decision import explain
from bgp.filters import ImportPolicy
from bgp.peering import Here, Peering, Policy, Uplink
from bgp.rib import AS_SET, Address, Origin, Path, Prefix, SessionSpec
from fabric.agent.loc_rib import Inputs, LocRib, loc_rib
from fabric.plan.routes import NextHop, Route, RouteKey
from tests.contract.bgp_peer import Sender
from tests.contract.netns import Namespace

ME, LOCAL_AS, PORT = IPv4Address("10.0.0.1"), 65001, 1179
PREFIXES = [ip_network(f"10.{64 + n // 256}.{n % 256}.0/24") for n in range(400)]
# Next hops on the link, and behind two routers, each at a cost; the last one is nowhere.
ON_LINK = [ip_address(f"192.0.2.{n}") for n in range(10, 14)]
BEHIND = {
    ip_address(f"198.51.100.{n}"): (ip_address(f"192.0.2.{10 + n % 2}"), 10 * (n // 2)) for n in range(8)
}
NOWHERE = ip_address("203.0.113.1")
DEADLINE = 20.0


@dataclass(frozen=True, slots=True)
class Peer:
    """Two of them have one BGP identifier, as two peers in different ASes may."""

    name: str
    address: Address
    asn: int
    identifier: IPv4Address


STATIC = "\n".join(
    f"  route {hop}/32 via {gw} {{ igp_metric = {cost}; }};" for hop, (gw, cost) in BEHIND.items()
)
PEERS = [
    Peer(f"p{n}", ip_address(f"10.0.0.{n}"), asn, IPv4Address(f"1.1.1.{identifier}"))
    for n, asn, identifier in (
        (11, 65010, 5),
        (12, 65010, 4),
        (13, 65020, 3),
        (14, 65020, 5),
        (15, 65030, 2),
        (16, 65030, 9),
        (21, LOCAL_AS, 11),
        (22, LOCAL_AS, 17),
        (23, LOCAL_AS, 12),
        (24, LOCAL_AS, 16),
        (25, LOCAL_AS, 1),
        (26, LOCAL_AS, 14),
    )
]

CONFIG = f"""
router id {ME};
protocol device {{ }}
protocol direct {{ ipv4; interface "up0"; }}
protocol static {{
  ipv4;
{STATIC}
}}
protocol kernel fib {{ merge paths on limit 16; ipv4 {{ import none; export where source = RTS_BGP; }}; }}
template bgp feed {{
  local {ME} port {PORT} as {LOCAL_AS};
  multihop; passive on; hold time 240; deterministic med on;
  ipv4 {{ import all; export none; }};
}}
""" + "\n".join(f"protocol bgp {p.name} from feed {{ neighbor {p.address} as {p.asn}; }}" for p in PEERS)


def paths(random: Random) -> list[Path]:
    """A random table: for each prefix some peers, and so few values of each attribute that ties reach every step."""
    return [
        _path(random, prefix, peer)
        for prefix in PREFIXES
        for peer in random.sample(PEERS, random.randint(1, len(PEERS)))
    ]


def _path(random: Random, prefix: Prefix, peer: Peer) -> Path:
    external = peer.asn != LOCAL_AS
    # Mostly one length and one preference: else the later steps would hardly be reached.
    length = random.choice((2, 2, 2, 2, 3))
    as_path = [random.choice((65010, 65020, 65030)) for _ in range(length)]
    if external:
        as_path[0] = peer.asn
    elif random.random() < 0.1:
        as_path = []
    as_sets = {65040, 65041} if as_path and random.random() < 0.1 else set()
    if as_sets:
        as_path[-1] = AS_SET
    return Path(
        prefix,
        random.choice((*ON_LINK, *ON_LINK, *BEHIND, NOWHERE)),
        peer.address,
        random.choice((Origin.IGP,) * 8 + (Origin.EGP, Origin.INCOMPLETE)),
        tuple(as_path),
        frozenset(as_sets),
        med=random.choice((None, 0, 0, 10)),
        local_pref=None if external else random.choice((100,) * 12 + (50, 200)),
        originator_id=None
        if external
        else random.choice((None, None, IPv4Address("1.1.1.12"), IPv4Address("1.1.1.3"))),
        cluster_list=() if external else tuple(map(IPv4Address, range(1, random.randint(1, 3)))),
    )


@dataclass(frozen=True, slots=True)
class Bird:
    """BIRD in a namespace that has its peers' addresses too."""

    host: Namespace
    control: str

    def ask(self, *words: str) -> str:
        return self.host.command("birdc", "-s", self.control, *words)

    def heard(self) -> int:
        found = re.search(
            r"(\d+) of \d+ routes", self.ask("show", "route", "where", "source = RTS_BGP", "count")
        )
        return int(found[1]) if found else 0

    def best(self) -> dict[Prefix, str]:
        """Return by whom the best path came; where no path's next hop resolves there is none."""
        said = self.ask("show", "route", "primary", "where", "source = RTS_BGP")
        return {
            ip_network(prefix): peer
            for prefix, kind, peer in re.findall(r"^(\S+/\d+)\s+(\w+) \[(\w+) ", said, re.MULTILINE)
            if kind == "unicast"
        }

    def next_hops(self) -> dict[Prefix, set[str]]:
        """Return where the kernel is told to send packets, paths merged."""
        found: dict[Prefix, set[str]] = {}
        for line in self.ask("show", "route", "export", "fib").splitlines():
            if network := re.match(r"(\S+/\d+)\s+unicast ", line):
                hops = found[ip_network(network[1])] = set()
            elif via := re.match(r"\s+via (\S+) on up0", line):
                hops.add(via[1])
        return found


@contextmanager
def running_bird() -> Iterator[Bird]:
    with Namespace() as host, tempfile.TemporaryDirectory() as folder:
        for address in (ME, *(peer.address for peer in PEERS)):
            host.ip("address", "add", f"{address}/32", "dev", "lo")
        host.ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
        host.ip("address", "add", "192.0.2.1/24", "dev", "up0")
        for link in ("up0", "up1"):
            host.ip("link", "set", link, "up")
        config, control = File(folder, "bird.conf"), f"{folder}/ctl"
        config.write_text(CONFIG)
        daemon = host.call(partial(subprocess.Popen, ["bird", "-f", "-c", str(config), "-s", control]))
        try:
            bird = Bird(host, control)
            until(File(control).exists, "BIRD's socket")
            until(lambda: bird.ask("show", "protocols").count("Passive") == len(PEERS), "BIRD listens")
            yield bird
        finally:
            daemon.terminate()
            daemon.wait(10)


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE} s: {what}"
        time.sleep(0.05)


def ours(table: list[Path]) -> LocRib:
    """Return what we make of it; the policy lets everything in, as BIRD's does."""
    peerings = tuple(
        Peering(SessionSpec(peer.address, peer.asn, ME, LOCAL_AS, ME), import_policy=Policy.CALICO)
        for peer in PEERS
    )
    underlay = [Route(RouteKey(ip_network("192.0.2.0/24"), 0), frozenset({NextHop(None, "up0")}))]
    underlay += [
        Route(RouteKey(ip_network(hop), cost), frozenset({NextHop(gateway, "up0")}))
        for hop, (gateway, cost) in BEHIND.items()
    ]
    inputs = Inputs(
        peerings,
        ImportPolicy(frozenset(), frozenset(), frozenset()),
        tuple(underlay),
        {peer.address: {path.prefix: path for path in table if path.peer == peer.address} for peer in PEERS},
        {peer.address: peer.identifier for peer in PEERS},
        here=Here((Uplink("up0", IPv4Interface("192.0.2.1/24")),)),
    )
    return loc_rib(inputs, LocRib())


@pytest.mark.parametrize("seed", range(4))
def test_the_best_path_and_its_next_hops_are_those_of_bird(seed: int) -> None:
    """RFC 4271 §9.1.2, RFC 4456 §9."""
    print(f"seed {seed}")
    random = Random(seed)
    table = paths(random)
    with running_bird() as bird, ExitStack() as sessions:
        for peer in random.sample(PEERS, len(PEERS)):
            connect = partial(Sender.connect, str(peer.address), (str(ME), PORT), peer.asn, peer.identifier)
            sender = sessions.enter_context(bird.host.call(connect))
            sender.send(path for path in table if path.peer == peer.address)
        until(lambda: bird.heard() == len(table), f"{len(table)} paths in BIRD")
        theirs, theirs_hops = bird.best(), bird.next_hops()
    names = {peer.address: peer.name for peer in PEERS}
    found = ours(table)
    assert {prefix: names[best.best.path.peer] for prefix, best in found.best.items()} == theirs
    hops = {prefix: {str(hop.gateway) for hop in best.next_hops} for prefix, best in found.best.items()}
    assert hops == theirs_hops
    fates = [why for candidates in found.candidates.values() for why in explain(candidates).values()]
    met = Counter(re.match(r"[^(]*", why)[0] for why in fates)  # type: ignore[index]
    assert len(met) == 8, f"not every step has decided something: {met}"
    assert min(met.values()) > 20, met
