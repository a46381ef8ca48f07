"""Bring this node's kernel to what is desired: one planner and one apply for attach, period and restart.

Passes never overlap, and a long one lets others in between a few of its links or many of its routes, so that an
attach does not wait for it. What the kernel holds is remembered between read-backs, so that an attach costs what it
changes; a read-back (every 90 s or so, or after a netlink event) finds drift.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

import structlog

from fabric.agent.desired import Desired
from fabric.errors import DataplaneError
from fabric.plan import links, routes
from fabric.plan.links import HOST_MAC, HostLink, Links
from fabric.plan.routes import Fib, Prefix, Route, RouteKey

Op: TypeAlias = links.Op | routes.Op

log = structlog.get_logger()

AT_ONCE = 16  # links changed before whoever waits has a turn
ROUTES_AT_ONCE = 2000  # the same for routes; each turn plans anew, which costs as much as some 100 of them
LOGGED = 100  # routes that are logged each by itself
GIVE_WAY = 0.2  # seconds that a whole pass waits, at most, before each of its turns


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

    def then(self, later: Outcome) -> Outcome:
        """Return both together."""
        return Outcome(self.done + later.done, {**self.refused, **later.refused})


class Passes:
    """Owns the two drivers; remembers what the kernel held when it was last read or written."""

    def __init__(self, kernel_links: Links, fib: Fib) -> None:
        self._driver, self._fib = kernel_links, fib
        self._lock = asyncio.Lock()
        self._links: dict[str, HostLink] = {}
        self._routes: dict[RouteKey, Route] = {}
        self._known = False
        self._scoped = 0  # passes that somebody waits for
        self._ended = asyncio.Event()  # one of them has

    @property
    def held_routes(self) -> Mapping[RouteKey, Route]:
        """This node's routes as last read or written."""
        return self._routes

    async def run(
        self,
        desire: Callable[[], Desired],
        *,
        read_back: bool = False,
        scope: Scope | None = None,
    ) -> Outcome:
        """Plan and apply, links before routes.

        Nothing is removed unless what is desired has settled; within a `scope` it has: who names one knows it.

        `desire` is asked whenever it is our turn, not when the pass is asked for: while it waited for another
        pass, an attach may have changed what is desired.

        What is refused is planned again by the next pass; the rest is done all the same.
        """
        if scope is None:
            return await self._run(desire, read_back, None)
        self._scoped += 1
        try:
            return await self._run(desire, read_back, scope)
        finally:
            self._scoped -= 1
            self._ended.set()

    async def _run(self, desire: Callable[[], Desired], read_back: bool, scope: Scope | None) -> Outcome:
        outcome = Outcome()
        while True:
            if scope is None:
                await self._give_way()
            async with self._lock:
                if read_back or not self._known:
                    await self._read()
                    read_back = False
                desired = desire()
                in_sync = desired.settled or scope is not None
                link_ops = links.plan(
                    desired.links, self._links, in_sync=in_sync, scope=scope.links if scope else None
                )
                due = [op for op in link_ops if op not in outcome.refused]
                outcome = outcome.then(await self._change_links(due[:AT_ONCE]))
                if len(due) > AT_ONCE:
                    continue
                route_ops = routes.plan(
                    desired.routes, self._routes, in_sync=in_sync, scope=scope.prefixes if scope else None
                )
                due_routes = [op for op in route_ops if op not in outcome.refused]
                outcome = outcome.then(await self._change_routes(due_routes[:ROUTES_AT_ONCE]))
                if len(due_routes) <= ROUTES_AT_ONCE:
                    return outcome

    async def _give_way(self) -> None:
        """Let those go first that somebody waits for. Else it would do their work, and answer none of them."""
        with suppress(TimeoutError):
            async with asyncio.timeout(GIVE_WAY):
                while self._scoped:
                    self._ended.clear()
                    await self._ended.wait()

    async def _change_links(self, ops: Sequence[links.Op]) -> Outcome:
        outcome = _outcome(ops, (await links.apply(ops, self._driver)).items())
        for op in outcome.done:
            match op:
                case links.Create(veth) | links.Repair(veth):
                    self._links[veth.name] = HostLink(veth.name, 0, True, HOST_MAC, veth.neighbours, True)
                case links.Remove(name):
                    del self._links[name]
        # The kernel drops a link's routes with it.
        gone = {op.name for op in outcome.done if isinstance(op, links.Remove)}
        if gone:
            self._routes = {
                key: route
                for key, route in self._routes.items()
                if not any(hop.device in gone for hop in route.next_hops)
            }
        return outcome

    async def _change_routes(self, ops: Sequence[routes.Op]) -> Outcome:
        outcome = _outcome(ops, (await routes.apply(ops, self._fib)).items())
        for op in outcome.done:
            match op:
                case routes.Replace(route):
                    self._routes[route.key] = route
                case routes.Delete(key):
                    del self._routes[key]
        return outcome

    async def _read(self) -> None:
        self._links = {link.name: link for link in await self._driver.owned_links()}
        self._routes = {route.key: route for route in await self._fib.owned_routes()}
        self._known = True


def _outcome(ops: Sequence[Op], refused: Iterable[tuple[Op, DataplaneError]]) -> Outcome:
    why = dict(refused)
    return Outcome(tuple(op for op in ops if op not in why), why)


def log_done(outcome: Outcome) -> None:
    """One line a change; of a table of routes one for all that were set, and one for all that were removed."""
    many = [op for op in outcome.done if isinstance(op, routes.Replace | routes.Delete)]
    whole = len(many) > LOGGED
    for op in outcome.done:
        if not (whole and isinstance(op, routes.Replace | routes.Delete)):
            log.info("kernel changed", **_words(op))
    for kind, what in ((routes.Replace, "routes set"), (routes.Delete, "routes removed")):
        if whole and (count := sum(isinstance(op, kind) for op in many)):
            log.info("kernel changed", op=what, count=count)


def _words(op: Op) -> dict[str, str]:
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
