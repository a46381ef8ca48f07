"""Touches the kernel's main routing tables, v4 and v6: the `Fib` behind `fabric.plan.routes`."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network
from types import TracebackType
from typing import Any, Self

from fabric.errors import DataplaneError
from fabric.kernel.netlink import (
    RT_TABLE_MAIN,
    RTN_BLACKHOLE,
    RTN_UNICAST,
    RTNH_F_ONLINK,
    Hop,
    Rtnl,
    dump,
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
        found = [message for af in FAMILIES for message in await _main_table(af, proto=FABRIC_PROTO)]
        return _routes(found, chosen_devices=False)

    async def foreign_routes(self) -> list[Route]:
        """Return the unicast routes of the main table that are not ours, each hop with its device.

        What next hops are resolved against. Keys may repeat: fe80::/64 is there once a link.
        """
        found = [message for af in FAMILIES for message in await _main_table(af, type=RTN_UNICAST)]
        foreign = [message for message in found if message["proto"] != FABRIC_PROTO]
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


async def _main_table(af: int, **match: int) -> list[Any]:
    # The kernel itself picks table, proto and type (NETLINK_GET_STRICT_CHK).
    return await dump("route", family=af, table=RT_TABLE_MAIN, **match)


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


def _routes(messages: Iterable[Any], *, chosen_devices: bool) -> list[Route]:
    names = dict(socket.if_nameindex())
    return [_route(message, names, chosen_devices) for message in messages]


def _route(message: Any, names: Mapping[int, str], chosen_devices: bool) -> Route:
    default = "0.0.0.0" if message["family"] == socket.AF_INET else "::"
    prefix = ip_network(f"{message.get_attr('RTA_DST') or default}/{message['dst_len']}")
    key = RouteKey(prefix, message.get_attr("RTA_PRIORITY") or 0)
    if message["type"] == RTN_BLACKHOLE:
        return Route(key, frozenset(), blackhole=True)
    hops = message.get_attr("RTA_MULTIPATH") or [message]
    return Route(key, frozenset(_next_hop(hop, names, chosen_devices) for hop in hops))


def _next_hop(hop: Any, names: Mapping[int, str], chosen_devices: bool) -> NextHop:
    gateway = hop.get_attr("RTA_GATEWAY")
    if gateway and not chosen_devices and not hop["flags"] & RTNH_F_ONLINK:
        return NextHop(ip_address(gateway))
    # In a multipath route the link is a field, in a single one an attribute.
    index = hop["oif"] if "hops" in hop else hop.get_attr("RTA_OIF")
    # A link that went away between the two reads has no name any more; its number differs from any name.
    return NextHop(ip_address(gateway) if gateway else None, names.get(index, str(index)))
