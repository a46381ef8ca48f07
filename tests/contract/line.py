"""A host, routers' kernel or a bridge, and a far host behind a link of 1,400 bytes: each in a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.contract.netns import Namespace

FAR = ("10.2.0.2", "fd00:2::2")


class Line(NamedTuple):
    """`between` has the link to the host, "left", and that to the far host, "right", which carries 1,400 bytes."""

    host: Namespace
    between: Namespace
    far: Namespace


@contextmanager
def line() -> Iterator[Line]:
    """Make the links, without addresses."""
    with ExitStack() as stack:
        made = Line(*(stack.enter_context(Namespace()) for _ in range(3)))
        there = made.between.path.split("/")[-3]
        for space, link in ((made.host, "left"), (made.far, "right")):
            space.ip("link", "add", "eth0", "type", "veth", "peer", "name", link, "netns", there)
            for end, name in ((made.between, link), (space, "eth0")):
                no_dad = Path(f"/proc/sys/net/ipv6/conf/{name}/accept_dad")
                end.call(partial(no_dad.write_text, "0"))  # it would hold addresses back for a second
                end.ip("link", "set", name, "up")
        made.between.ip("link", "set", "right", "mtu", "1400")
        yield made


def addressed(space: Namespace, *addresses: str, link: str = "eth0") -> None:
    """Add addresses that hold at once."""
    for address in addresses:
        space.ip("address", "add", address, "dev", link, *(["nodad"] if ":" in address else []))


@contextmanager
def routed() -> Iterator[Line]:
    """Make a line with a router in the middle; the far host has FAR."""
    with line() as made:
        addressed(made.host, "10.1.0.2/24", "fd00:1::2/64")
        addressed(made.far, "10.2.0.2/24", "fd00:2::2/64")
        addressed(made.between, "10.1.0.1/24", "fd00:1::1/64", link="left")
        addressed(made.between, "10.2.0.1/24", "fd00:2::1/64", link="right")
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            made.between.call(partial(Path("/proc/sys/net", name).write_text, "1"))
        for space, number in ((made.host, 1), (made.far, 2)):
            space.ip("route", "add", "default", "via", f"10.{number}.0.1")
            space.ip("-6", "route", "add", "default", "via", f"fd00:{number}::1")
        yield made
