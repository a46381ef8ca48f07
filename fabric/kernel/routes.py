"""Touches the kernel's main routing tables, v4 and v6: the `Fib` behind `fabric.plan.routes`."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from types import TracebackType
from typing import Self

from fabric.errors import DataplaneError
from fabric.kernel.netlink import (
    RTA_DST,
    RTA_GATEWAY,
    RTA_MULTIPATH,
    RTA_OIF,
    RTA_PRIORITY,
    RTA_VIA,
    RTMSG,
    RTN_BLACKHOLE,
    RTN_UNICAST,
    RTNEXTHOP,
    RTNH_F_ONLINK,
    Hop,
    Rtnl,
    attributes,
    dump_routes,
    route_delete,
    route_replace,
)
from fabric.plan.routes import FABRIC_PROTO, NextHop, Route, RouteKey

FAMILIES = (socket.AF_INET, socket.AF_INET6)


class NetlinkFib:
    """The FIB of the network namespace in which it was made."""

    def __init__(self) -> None:
        self._rtnl = Rtnl()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rtnl.__exit__(kind, err, trace)

    async def owned_routes(self) -> list[Route]:
        """Return our routes. A hop's device is read back only where `replace` set it: the kernel
        reports the one it chose itself too, and the plan would find a difference for ever.
        """
        found = [message for af in FAMILIES for message in await dump_routes(af, proto=FABRIC_PROTO)]
        return _routes(found, chosen_devices=False)

    async def foreign_routes(self) -> list[Route]:
        """Return the unicast routes of the main table that are not ours, each hop with its device.

        What next hops are resolved against. Keys may repeat: fe80::/64 is there once a link.
        """
        found = [message for af in FAMILIES for message in await dump_routes(af, kind=RTN_UNICAST)]
        foreign = [message for message in found if RTMSG.unpack_from(message)[5] != FABRIC_PROTO]
        return _routes(foreign, chosen_devices=True)

    async def replace(self, route: Route) -> None:
        what = _describe(route)
        hops = [_kernel_hop(hop, what) for hop in sorted(route.next_hops, key=str)]
        if bool(hops) == route.blackhole:
            hint = "a route has next hops or is a blackhole, not both; the previous route was kept"
            raise DataplaneError(what, errno.EINVAL, hint)
        request = route_replace(what, route.key.prefix, hops, proto=FABRIC_PROTO, metric=route.key.metric)
        self._rtnl.run([request], "the previous route was kept and the next pass retries")
        # The kernel answers at once: without this a full table would hold the event loop to its end.
        await asyncio.sleep(0)

    async def delete(self, key: RouteKey) -> None:
        what = f"remove route {key.prefix} (metric {key.metric})"
        try:
            request = route_delete(what, key.prefix, proto=FABRIC_PROTO, metric=key.metric)
            self._rtnl.run([request], "it is still there and the next pass retries")
        except DataplaneError as err:
            if err.code != errno.ESRCH:
                raise
        await asyncio.sleep(0)


def _describe(route: Route) -> str:
    if route.blackhole:
        return f"blackhole route {route.key.prefix} (metric {route.key.metric})"
    hops = sorted(map(str, route.next_hops))
    return f"route {route.key.prefix} {' '.join(hops)} (metric {route.key.metric})"


def _kernel_hop(hop: NextHop, what: str) -> Hop:
    try:
        index = socket.if_nametoindex(hop.device) if hop.device else 0
    except OSError as err:
        hint = f"link {hop.device} is not there; the previous route was kept and the next pass retries"
        raise DataplaneError(what, errno.ENODEV, hint) from err
    return Hop(index, hop.gateway, onlink=hop.gateway is not None and hop.device is not None)


def _routes(messages: Iterable[bytes], *, chosen_devices: bool) -> list[Route]:
    names = dict(socket.if_nameindex())
    return [_route(message, names, chosen_devices) for message in messages]


def _route(message: bytes, names: Mapping[int, str], chosen_devices: bool) -> Route:
    family, length, _, _, _, _, _, kind, flags = RTMSG.unpack_from(message)
    attrs = dict(attributes(message[RTMSG.size :]))
    anywhere = bytes(4 if family == socket.AF_INET else 16)
    key = RouteKey(ip_network((attrs.get(RTA_DST, anywhere), length)), _u32(attrs.get(RTA_PRIORITY)))
    if kind == RTN_BLACKHOLE:
        return Route(key, frozenset(), blackhole=True)
    several = attrs.get(RTA_MULTIPATH)
    found = [(flags, _u32(attrs.get(RTA_OIF)), attrs)] if several is None else _multipath(several)
    hops = (_next_hop(flags, index, attrs, names, chosen_devices) for flags, index, attrs in found)
    return Route(key, frozenset(hops))


def _multipath(data: bytes) -> Iterator[tuple[int, int, dict[int, bytes]]]:
    """Yield flags, link and attributes of each next hop."""
    at = 0
    while at + RTNEXTHOP.size <= len(data):
        length, flags, _hops, index = RTNEXTHOP.unpack_from(data, at)
        yield flags, index, dict(attributes(data[at + RTNEXTHOP.size : at + length]))
        at += (length + 3) & ~3


def _next_hop(
    flags: int, index: int, attrs: Mapping[int, bytes], names: Mapping[int, str], chosen_devices: bool
) -> NextHop:
    # RTA_VIA is the gateway of another family than the prefix, whose number comes before it.
    packed = attrs.get(RTA_GATEWAY) or attrs.get(RTA_VIA, b"")[2:]
    gateway = ip_address(packed) if packed else None
    if gateway and not chosen_devices and not flags & RTNH_F_ONLINK:
        return NextHop(gateway)
    # A link that went away between the two reads has no name any more; its number differs from any name.
    return NextHop(gateway, names.get(index, str(index)))


def _u32(data: bytes | None) -> int:
    return int.from_bytes(data, sys.byteorder) if data else 0
