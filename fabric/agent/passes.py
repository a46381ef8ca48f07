"""Bring this node's kernel to what is desired: one planner and one apply for attach, period and restart.

Passes never overlap, and a long one lets others in between a few of its links or many of its routes, so that an
attach does not wait for it. What the kernel holds is remembered between read-backs, so that an attach costs what it
changes; a read-back (every 90 s or so, or after a netlink event) finds drift.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeAlias, TypeGuard

import structlog

from fabric.agent import rules
from fabric.agent.compose import Composed
from fabric.agent.desired import Desired
from fabric.agent.rules import Gap, Restore, Rules
from fabric.errors import DataplaneError
from fabric.plan import ipsets, links, routes, tunnels
from fabric.plan.links import HostLink, Links
from fabric.plan.routes import Fib, Prefix, Route, RouteKey
from fabric.plan.tables import VERSIONS, Counter, Place, Tables, Version
from fabric.plan.tunnels import HostTunnel, Tunnel, Tunnels

Op: TypeAlias = rules.Op | tunnels.Op | links.Op | routes.Op

log = structlog.get_logger()

AT_ONCE = 16  # links changed before whoever waits has a turn
ROUTES_AT_ONCE = 2000  # the same for routes; each turn plans anew, which costs as much as some 100 of them
NAMED = 5  # of what others changed, in one line of the log
GAP_AGAIN = 60.0  # seconds before another change of the same chain or set is told; metrics count each
LOGGED = 100  # routes that are logged each by itself
GIVE_WAY = 0.2  # seconds that a whole pass waits, at most, before each of its turns
LINGER = 30.0  # seconds without a packet after which an unwanted tunnel goes: others may not have heard yet


def _is_litter(op: object) -> bool:
    """Whether it removes a set that no rule of ours goes by: one of somebody else's may, and policy stands without."""
    return isinstance(op, ipsets.Destroy)


@dataclass(frozen=True, slots=True)
class Scope:
    """What a pass is limited to: link names and prefixes. Policy is never limited: reachability waits for it.

    Tunnels are left to whole passes.
    """

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
            case tunnels.Create() | tunnels.Repair() | tunnels.Remove():
                return False
            case _:
                return not _is_litter(op)


@dataclass(frozen=True)
class Outcome:
    """What a pass did, in order; of its operations those that the kernel refused, with why; what others had undone."""

    done: tuple[Op, ...] = ()
    refused: Mapping[Op, DataplaneError] = field(default_factory=dict)
    gaps: tuple[Gap, ...] = ()

    def then(self, later: Outcome) -> Outcome:
        """Return both together."""
        return Outcome(self.done + later.done, {**self.refused, **later.refused}, self.gaps + later.gaps)

    @property
    def unpoliced(self) -> DataplaneError | None:
        """Why policy is not in as desired, None where it is."""
        refused = self.refused.items()
        return next((why for op, why in refused if isinstance(op, rules.Op) and not _is_litter(op)), None)

    @property
    def policy_changed(self) -> bool:
        """Whether rules or members of sets are other than before, so that live connections may be denied now."""
        return any(isinstance(op, rules.Op) for op in self.done)


class Passes:
    """Owns the drivers; remembers what the kernel held when it was last read or written.

    A tunnel that is unwanted goes once nothing has come by it for `linger` seconds.
    """

    def __init__(
        self,
        kernel_links: Links,
        fib: Fib,
        kernel_rules: Rules,
        kernel_tunnels: Tunnels,
        *,
        linger: float = LINGER,
    ) -> None:
        self._driver, self._fib, self._rules, self._ends = kernel_links, fib, kernel_rules, kernel_tunnels
        self._linger = linger
        self._lock = asyncio.Lock()
        self._links: dict[str, HostLink] = {}
        self._routes: dict[RouteKey, Route] = {}
        self._tunnels: dict[str, HostTunnel] = {}
        # Tunnels, since when nobody is known to use them, by the loop's clock, and what they had received by then.
        self._unwanted: dict[str, tuple[float, int]] = {}
        self._known = False
        self._awaited = 0  # how many wait
        self._ended = asyncio.Event()  # one of them has what it waited for

    @property
    def held_routes(self) -> Mapping[RouteKey, Route]:
        """This node's routes as last read or written."""
        return self._routes

    @property
    def held_tunnels(self) -> Mapping[str, Tunnel]:
        """The tunnels that stand, as last read or written, by name; those that linger too."""
        return {name: held.tunnel for name, held in self._tunnels.items() if held.sound}

    @property
    def lingers_until(self) -> float | None:
        """When the next of the tunnels that linger is to go, by the loop's clock; None where none lingers."""
        return min(since for since, _ in self._unwanted.values()) + self._linger if self._unwanted else None

    @property
    def rules(self) -> Rules:
        """What of this node's policy the kernel holds."""
        return self._rules

    @property
    def localnet(self) -> bool:
        """Whether a link carries 127/8, as last read or written."""
        return any(link.localnet for link in self._links.values())

    async def look(self) -> None:
        """Read which devices an earlier agent left, where that is not known yet: guards stand as long as these do."""
        async with self._lock:
            if not self._known:
                await self._read_devices()

    async def counters(self, desired: Composed) -> Mapping[Version, Mapping[tuple[Place, int], Counter]]:
        """Return what the kernel has counted by now, for each rule that is in force as desired."""
        async with self._lock:
            return await self._rules.counters(desired)

    async def sets_edited(self) -> bool:
        """Whether others seem to have changed members of our sets."""
        async with self._lock:
            return await self._rules.sets_edited()

    async def use(self, filters: Tables) -> None:
        """Have the rules of later passes in another backend."""
        async with self._lock:
            self._rules.use(filters)

    def lack(self, why: DataplaneError) -> None:
        """Have later passes refuse policy, and what would be reachable without it: no backend works."""
        self._rules.lack(why)

    async def run(
        self,
        desire: Callable[[], Desired],
        *,
        read_back: bool = False,
        edited: AbstractSet[Version] = frozenset(),
        hurried: bool = False,
        scope: Scope | None = None,
    ) -> Outcome:
        """Plan and apply: policy, tunnels, links, routes; tunnels that go, after all of these.

        `read_back` has all but rules and sets read first, `edited` the rules of those families, and with both the sets.

        Nothing is removed unless what is desired has settled; within a `scope` it has: who names one knows it.

        `desire` is asked whenever it is our turn, not when the pass is asked for: while it waited for another
        pass, an attach may have changed what is desired.

        What is refused is planned again by the next pass; the rest is done all the same. A `hurried` one gives way to
        nobody.
        """
        await self._rules.ready.wait()
        return await self._run(desire, read_back, edited, scope, patient=not (hurried or scope))

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Until the block ends, somebody waits for what passes with a scope do: others give way."""
        self._awaited += 1
        try:
            yield
        finally:
            self._awaited -= 1
            self._ended.set()

    async def give_way(self) -> None:
        """Let those go first that somebody waits for. Else it would do their work, and answer none of them."""
        with suppress(TimeoutError):
            async with asyncio.timeout(GIVE_WAY):
                while self._awaited:
                    self._ended.clear()
                    await self._ended.wait()

    async def _run(
        self,
        desire: Callable[[], Desired],
        read_back: bool,
        edited: AbstractSet[Version],
        scope: Scope | None,
        *,
        patient: bool,
    ) -> Outcome:
        outcome = Outcome()
        while True:
            if patient:
                await self.give_way()
            async with self._lock:
                if read_back or not self._known:
                    await self._read()
                if edited:
                    gaps = await self._rules.read(edited, sets=len(edited) == len(VERSIONS))
                    outcome = outcome.then(Outcome(gaps=gaps))
                read_back, edited = False, frozenset()
                desired = desire()
                in_sync = desired.settled or scope is not None
                if desired.policy and not outcome.unpoliced:  # else it was tried in this pass
                    done, refused = await self._rules.apply(desired.policy, in_sync=desired.whole)
                    outcome = outcome.then(Outcome(tuple(done), dict(refused.items())))
                if not scope:
                    outcome = outcome.then(await self._raise_tunnels(desired, outcome))
                link_ops = links.plan(
                    desired.links, self._links, in_sync=in_sync, scope=scope.links if scope else None
                )
                outcome = outcome.then(_held_back(outcome.unpoliced, link_ops))
                due = [op for op in link_ops if op not in outcome.refused]
                outcome = outcome.then(await self._change_links(due[:AT_ONCE]))
                if len(due) > AT_ONCE:
                    continue
                route_ops = routes.plan(
                    desired.routes, self._routes, in_sync=in_sync, scope=scope.prefixes if scope else None
                )
                outcome = outcome.then(_held_back(outcome.unpoliced, link_ops, route_ops))
                outcome = outcome.then(_without_end(outcome.refused, route_ops, self._tunnels))
                due_routes = [op for op in route_ops if op not in outcome.refused]
                outcome = outcome.then(await self._change_routes(due_routes[:ROUTES_AT_ONCE]))
                if len(due_routes) <= ROUTES_AT_ONCE:
                    return outcome if scope else outcome.then(await self._lower_tunnels(desired, outcome))

    async def _raise_tunnels(self, desired: Desired, outcome: Outcome) -> Outcome:
        """Make and mend the tunnels, those that have to be made anew too; what was refused in this pass is left.

        Far ends go once no route leads to them any more.
        """
        wanted = tunnels.widened(desired.tunnels, self._tunnels)
        ops = [
            op
            for op in tunnels.plan(wanted, self._tunnels, in_sync=desired.whole)
            if op not in outcome.refused and not self._is_unwanted(op, desired)
        ]
        if why := outcome.unpoliced:  # what may come in by it is said there
            return Outcome(refused={op: why for op in ops if not isinstance(op, tunnels.Remove)})
        return await self._change_tunnels(ops)

    async def _lower_tunnels(self, desired: Desired, outcome: Outcome) -> Outcome:
        """Take far ends away, and tunnels that nobody needs any more, be it here or where others have not heard yet.

        Where a route was refused, what it leads through stays.
        """
        idle = await self._idle(self._tunnels.keys() - desired.tunnels.keys())
        used = {
            hop.device
            for op in outcome.refused
            if isinstance(op, routes.Replace | routes.Delete) and (held := self._routes.get(op.key))
            for hop in held.next_hops
        }
        ops = [
            op
            for op in tunnels.plan(desired.tunnels, self._tunnels, in_sync=desired.settled)
            if (op.name in idle if self._is_unwanted(op, desired) else isinstance(op, tunnels.Repair))
            and op not in outcome.refused
            and op.name not in used
        ]
        return Outcome() if outcome.unpoliced else await self._change_tunnels(ops)

    async def _idle(self, unwanted: AbstractSet[str]) -> frozenset[str]:
        """Return those of `unwanted` by which nothing has come for so long that nobody else uses them either."""
        now = asyncio.get_running_loop().time()
        over = {name for name, (since, _) in self._unwanted.items() if now - since >= self._linger}
        received: dict[str, int] = {}
        if unwanted & over or unwanted - self._unwanted.keys():
            received = {held.tunnel.name: held.received for held in await self._ends.owned()}
        known, self._unwanted = self._unwanted, {}
        for name in unwanted:
            before, count = known.get(name), received.get(name, 0)
            if before is None or (name in over and count != before[1]):
                before = now, count
            self._unwanted[name] = before
        return frozenset(name for name, (since, _) in self._unwanted.items() if now - since >= self._linger)

    @staticmethod
    def _is_unwanted(op: tunnels.Op, desired: Desired) -> TypeGuard[tunnels.Remove]:
        return isinstance(op, tunnels.Remove) and op.name not in desired.tunnels

    async def _change_tunnels(self, ops: Sequence[tunnels.Op]) -> Outcome:
        outcome = _outcome(ops, (await tunnels.apply(ops, self._ends)).items())
        for op in outcome.done:
            match op:
                case tunnels.Create(tunnel) | tunnels.Repair(tunnel):
                    self._tunnels[tunnel.name] = HostTunnel(tunnel)
                case tunnels.Remove(name):
                    del self._tunnels[name]
                    self._unwanted.pop(name, None)
        self._drop_routes({op.name for op in outcome.done if isinstance(op, tunnels.Remove)})
        return outcome

    async def _change_links(self, ops: Sequence[links.Op]) -> Outcome:
        outcome = _outcome(ops, (await links.apply(ops, self._driver)).items())
        for op in outcome.done:
            match op:
                case links.Create(veth) | links.Repair(veth):
                    self._links[veth.name] = links.as_made(veth)
                case links.Remove(name):
                    del self._links[name]
        self._drop_routes({op.name for op in outcome.done if isinstance(op, links.Remove)})
        return outcome

    def _drop_routes(self, gone: AbstractSet[str]) -> None:
        """The kernel drops a link's routes with it."""
        if gone:
            self._routes = {
                key: route
                for key, route in self._routes.items()
                if not any(hop.device in gone for hop in route.next_hops)
            }

    async def _change_routes(self, ops: Sequence[routes.Op]) -> Outcome:
        outcome = _outcome(ops, (await routes.apply(ops, self._fib)).items())
        for op in outcome.done:
            match op:
                case routes.Replace(route):
                    self._routes[route.key] = route
                case routes.Delete(key):
                    del self._routes[key]
        return outcome

    async def _read_devices(self) -> None:
        self._links = {link.name: link for link in await self._driver.owned_links()}
        self._tunnels = {held.tunnel.name: held for held in await self._ends.owned()}

    async def _read(self) -> None:
        await self._read_devices()
        self._routes = {route.key: route for route in await self._fib.owned_routes()}
        self._known = True


def _outcome(ops: Sequence[Op], refused: Iterable[tuple[Op, DataplaneError]]) -> Outcome:
    why = dict(refused)
    return Outcome(tuple(op for op in ops if op not in why), why)


def _held_back(
    why: DataplaneError | None, link_ops: Sequence[links.Op], route_ops: Sequence[routes.Op] = ()
) -> Outcome:
    """Where policy is not in, refuse what would become reachable: new links, and the routes to them.

    The host's 127/8 would, too, by a link that is to carry it.
    """
    if why is None:
        return Outcome()
    made = {
        op.veth.name: op
        for op in link_ops
        if isinstance(op, links.Create) or (isinstance(op, links.Repair) and op.veth.localnet)
    }
    to = [
        op
        for op in route_ops
        if isinstance(op, routes.Replace) and any(hop.device in made for hop in op.route.next_hops)
    ]
    return Outcome(refused=dict.fromkeys([*made.values(), *to], why))


def _without_end(
    refused: Mapping[Op, DataplaneError], route_ops: Sequence[routes.Op], held: Mapping[str, HostTunnel]
) -> Outcome:
    """Where a tunnel, a far end of one, or a link could not be made, refuse the routes to it for the same reason."""
    missing = {op.name: why for op, why in refused.items() if isinstance(op, tunnels.Create)}
    missing |= {op.veth.name: why for op, why in refused.items() if isinstance(op, links.Create)}
    ends = {
        (op.name, far.address): why
        for op, why in refused.items()
        if isinstance(op, tunnels.Repair) and op.name in held
        for far in op.tunnel.far - held[op.name].tunnel.far
    }
    found: dict[Op, DataplaneError] = {}
    for op in route_ops if missing or ends else ():
        for hop in op.route.next_hops if isinstance(op, routes.Replace) else ():
            device, end = hop.device or "", hop.gateway or op.key.prefix.network_address
            if why := missing.get(device) or ends.get((device, end)):
                found[op] = why
    return Outcome(refused=found)


def log_done(outcome: Outcome) -> None:
    """One line a change; one for all sets, and of a table of routes one for all set and one for all removed."""
    many = [op for op in outcome.done if isinstance(op, routes.Replace | routes.Delete)]
    whole = len(many) > LOGGED
    if sets := sum(isinstance(op, ipsets.Op) for op in outcome.done):
        log.info("kernel changed", op="ipsets changed", count=sets)
    for op in outcome.done:
        if not isinstance(op, ipsets.Op) and not (whole and isinstance(op, routes.Replace | routes.Delete)):
            log.info("kernel changed", **_words(op))
    for kind, what in ((routes.Replace, "routes set"), (routes.Delete, "routes removed")):
        if whole and (count := sum(isinstance(op, kind) for op in many)):
            log.info("kernel changed", op=what, count=count)


class GapLog:
    """Tells what others changed, once for all that a read-back found; who changes it again and again is told seldom."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def tell(self, gaps: Sequence[Gap], now: float) -> None:
        """Tell of `gaps`, found at `now`, in seconds of any clock that only goes forward."""
        self._told = {name: at for name, at in self._told.items() if now - at < GAP_AGAIN}
        if new := [gap for gap in gaps if gap.name not in self._told]:
            self._told |= dict.fromkeys((gap.name for gap in new), now)
            names = [f"{gap.name}: {gap.what}" for gap in new]
            what = "; ".join(names[:NAMED])
            log.warning("policy was changed by somebody else; put back", count=len(new), what=what)


def _words(op: tunnels.Op | links.Op | routes.Op | Restore) -> dict[str, str]:
    match op:
        case tunnels.Create(tunnel):
            return {"op": "tunnel created", "link": tunnel.name, "address": str(tunnel.address)}
        case tunnels.Repair(tunnel):
            return {"op": "tunnel changed", "link": tunnel.name, "far_ends": str(len(tunnel.far))}
        case tunnels.Remove(name):
            return {"op": "tunnel removed", "link": name}
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
        case Restore(version, chains):
            return {"op": "rules written", "family": f"IPv{version}", "chains": str(len(chains))}
