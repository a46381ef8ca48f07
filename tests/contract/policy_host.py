"""A node of its own to hold policy to: a router's namespace, containers behind links of ours, and what is outside.

a b c d ─ fab… ─ router (node1) ─ up0 ─ outside: strangers, and the workloads of node2
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Self

from policy.form import ICMP, ICMPV6, TCP, UDP, Address, Site
from tests.contract.netns import Namespace
from tests.probing import Prober

NODE: Final = "node1"
ROUTER: Final = "router"
OUTSIDE: Final = "outside"
OTHER: Final = 99  # a protocol that has neither ports nor a tracker of its own
IPIP: Final = 4
LISTENING: Final[Mapping[int, tuple[int, ...]]] = {
    TCP: (22, 80, 443, 5432, 8080, 8081),
    UDP: (53, 80, 443, 4789, 8080),
}
_HEARD = [(4, p) for p in (TCP, UDP, ICMP, OTHER, IPIP)] + [(6, p) for p in (TCP, UDP, ICMPV6, OTHER, IPIP)]
_MAC = "ee:ee:ee:ee:ee:ee"


@dataclass(frozen=True, slots=True)
class Place:
    """Who sends from where: `own` are addresses of its own, `foreign` some that it has no right to."""

    name: str
    link: str
    own: tuple[Address, ...]
    foreign: tuple[Address, ...] = ()


def _addresses(*texts: str) -> tuple[Address, ...]:
    return tuple(ip_address(text) for text in texts)


CONTAINERS: Final = tuple(
    Place(
        name,
        f"fab{number:012x}",
        _addresses(f"10.65.0.{number}", f"fd00:65::{number}"),
        _addresses(f"10.65.7.{number}", f"fd00:65:7::{number}"),
    )
    for number, name in enumerate("abcd", 1)
)
REMOTE: Final = (_addresses("10.65.9.1", "fd00:65:9::1"), _addresses("10.65.9.2", "fd00:65:9::2"))  # on node2
STRANGERS: Final = (
    _addresses("198.51.100.1", "2001:db8:51::1"),
    _addresses("198.51.100.77", "2001:db8:51::77"),
    _addresses("203.0.113.5", "2001:db8:52::5"),
)
NODE2: Final = _addresses("192.0.2.2", "2001:db8::2")
ROUTERS: Final = _addresses("192.0.2.1", "2001:db8::1")
PLACES: Final = (
    *CONTAINERS,
    Place(OUTSIDE, "up0", tuple(address for pair in (*REMOTE, *STRANGERS, NODE2) for address in pair)),
    Place(ROUTER, "", ROUTERS),
)
LINKS: Final[Mapping[str, frozenset[Address]]] = {
    "up0": frozenset(ROUTERS),
    "lo": frozenset(_addresses("127.0.0.1", "::1")),
}
NODES: Final = frozenset((*ROUTERS, *NODE2))


class PolicyHost:
    """The namespaces and the probers in them; all gone at the end of the block."""

    def __enter__(self) -> Self:
        with ExitStack() as owned:
            self.spaces = {place.name: owned.enter_context(Namespace()) for place in PLACES}
            self.router = self.spaces[ROUTER]
            for space in self.spaces.values():
                space.command("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
            self.router.command("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
            for place in CONTAINERS:
                self._attach(place)
            self._uplink(next(place for place in PLACES if place.name == OUTSIDE))
            self.probers = {}
            for place in PLACES:
                prober = self.spaces[place.name].call(Prober.here)
                owned.callback(prober.close)
                self.probers[place.name] = prober
                prober.listen(map(str, (*place.own, *place.foreign)), LISTENING, _HEARD)
            self._owned = owned.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._owned.close()

    def _attach(self, place: Place) -> None:
        inside, link = self.spaces[place.name], place.link
        mac = f"02:00:00:00:00:{int(link[3:], 16):02x}"
        self.router.ip(
            *("link", "add", link, "address", _MAC, "type", "veth"),
            *("peer", "eth0", "address", mac, "netns", inside.path),
        )
        lines = ["link set eth0 up"]
        lines += [f"address add {address} dev eth0 nodad" for address in place.own]
        lines += [f"address add {address} dev lo nodad" for address in place.foreign]
        lines += [
            f"neigh add 169.254.1.1 lladdr {_MAC} dev eth0",
            "route add default via 169.254.1.1 dev eth0 onlink",
            f"neigh add fe80::1 lladdr {_MAC} dev eth0",
            "route add default via fe80::1 dev eth0 onlink",
        ]
        _batch(inside, lines)
        held = (*place.own, *place.foreign)
        _batch(
            self.router,
            [
                f"link set {link} up",
                *(f"route add {address} dev {link}" for address in held),
                *(f"neigh add {address} lladdr {mac} dev {link}" for address in held),
            ],
        )

    def _uplink(self, place: Place) -> None:
        inside, link = self.spaces[place.name], place.link
        self.router.ip("link", "add", link, "type", "veth", "peer", "eth0", "netns", inside.path)
        lines = [
            "link set eth0 up",
            "address add 192.0.2.2/24 dev eth0",
            "address add 2001:db8::2/64 dev eth0 nodad",
        ]
        behind = [address for address in place.own if address not in NODE2]
        lines += [f"address add {address} dev lo nodad" for address in behind]
        lines += ["route add default via 192.0.2.1", "-6 route add default via 2001:db8::1"]
        _batch(inside, lines)
        _batch(
            self.router,
            [
                f"link set {link} up",
                f"address add 192.0.2.1/24 dev {link}",
                f"address add 2001:db8::1/64 dev {link} nodad",
                *(
                    f"route add {address} via {'192.0.2.2' if address.version == 4 else '2001:db8::2'}"
                    for address in behind
                ),
            ],
        )

    def forget_connections(self) -> None:
        self.router.command("conntrack", "-F")


def _batch(space: Namespace, lines: list[str]) -> None:
    for line in lines:
        space.ip(*line.split())


def site(**changes: object) -> Site:
    return Site(node=NODE, links=LINKS, nodes=NODES, **changes)  # type: ignore[arg-type]
