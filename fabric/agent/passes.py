"""Bring this node's kernel to what is desired: one planner and one apply for attach, period and restart.

Passes never overlap. What the kernel holds is remembered between read-backs, so that an attach costs
what it changes; a read-back (every 90 s or so, or after a netlink event) finds drift.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TypeAlias

from fabric.agent.desired import Desired
from fabric.errors import DataplaneError
from fabric.plan import links, routes
from fabric.plan.links import HOST_MAC, HostLink, Links
from fabric.plan.routes import Fib, Prefix, Route, RouteKey

Op: TypeAlias = links.Op | routes.Op


@dataclass(frozen=True, slots=True)
class Scope:
    """What a pass is limited to: link names and prefixes."""

    links: AbstractSet[str]
    prefixes: AbstractSet[Prefix]

    def has(self, op: Op) -> bool:
        """Whether `op` is within it."""
        match op:
            case links.Create(veth) | links.Repair(veth):
                return veth.name in self.links
            case links.Remove(name):
                return name in self.links
            case routes.Replace(route):
                return route.key.prefix in self.prefixes
            case routes.Delete(key):
                return key.prefix in self.prefixes


@dataclass(frozen=True)
class Outcome:
    """What a pass did, in order, and those of its operations that the kernel refused, with why."""

    done: tuple[Op, ...] = ()
    refused: Mapping[Op, DataplaneError] = field(default_factory=dict)


class Passes:
    """Owns the two drivers; remembers what the kernel held when it was last read or written."""

    def __init__(self, kernel_links: Links, fib: Fib) -> None:
        self._driver, self._fib = kernel_links, fib
        self._lock = asyncio.Lock()
        self._links: dict[str, HostLink] = {}
        self._routes: dict[RouteKey, Route] = {}
        self._known = False

    @property
    def held_routes(self) -> Mapping[RouteKey, Route]:
        """This node's routes as last read or written."""
        return self._routes

    async def run(
        self,
        desire: Callable[[], Desired],
        *,
        in_sync: bool,
        read_back: bool = False,
        scope: Scope | None = None,
    ) -> Outcome:
        """Plan and apply, links before routes. Nothing is removed unless `in_sync`.

        `desire` is asked when the pass begins, not when it is asked for: while it waited for another
        pass, an attach may have changed what is desired.

        What is refused is planned again by the next pass; the rest is done all the same.
        """
        async with self._lock:
            if read_back or not self._known:
                await self._read()
            desired = desire()
            link_ops = links.plan(
                desired.links, self._links, in_sync=in_sync, scope=scope.links if scope else None
            )
            refused_links = await links.apply(link_ops, self._driver)
            links_done = [op for op in link_ops if op not in refused_links]
            self._remember_links(links_done)
            route_ops = routes.plan(
                desired.routes, self._routes, in_sync=in_sync, scope=scope.prefixes if scope else None
            )
            refused_routes = await routes.apply(route_ops, self._fib)
            routes_done = [op for op in route_ops if op not in refused_routes]
            self._remember_routes(routes_done)
            refused: list[tuple[Op, DataplaneError]] = [*refused_links.items(), *refused_routes.items()]
            return Outcome((*links_done, *routes_done), dict(refused))

    async def _read(self) -> None:
        self._links = {link.name: link for link in await self._driver.owned_links()}
        self._routes = {route.key: route for route in await self._fib.owned_routes()}
        self._known = True

    def _remember_links(self, done: Iterable[links.Op]) -> None:
        for op in done:
            match op:
                case links.Create(veth) | links.Repair(veth):
                    self._links[veth.name] = HostLink(veth.name, 0, True, HOST_MAC, veth.neighbours, True)
                case links.Remove(name):
                    del self._links[name]
                    self._forget_routes_on(name)

    def _forget_routes_on(self, device: str) -> None:
        """The kernel drops a link's routes with it."""
        gone = [k for k, route in self._routes.items() if any(h.device == device for h in route.next_hops)]
        for key in gone:
            del self._routes[key]

    def _remember_routes(self, done: Iterable[routes.Op]) -> None:
        for op in done:
            match op:
                case routes.Replace(route):
                    self._routes[route.key] = route
                case routes.Delete(key):
                    del self._routes[key]


def describe(op: Op) -> dict[str, str]:
    """Return one operation as words for a log line."""
    match op:
        case links.Create(veth):
            return {"op": "link created", "link": veth.name, "netns": veth.netns}
        case links.Repair(veth):
            return {"op": "link repaired", "link": veth.name, "netns": veth.netns}
        case links.Remove(name):
            return {"op": "link removed", "link": name}
        case routes.Replace(route):
            where = "blackhole" if route.blackhole else ", ".join(sorted(map(str, route.next_hops)))
            return {"op": "route set", "prefix": str(route.key.prefix), "where": where}
        case routes.Delete(key):
            return {"op": "route removed", "prefix": str(key.prefix)}
