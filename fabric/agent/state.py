"""The agent's inputs, each an immutable value that is replaced whole, and the wake-ups that follow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from bgp.rib import SessionState
from fabric.agent.counts import LastCounts
from fabric.agent.desired import Desired, desire
from fabric.agent.md5 import SignatureWatch
from fabric.agent.passes import Outcome
from fabric.agent.policing import Policing, policing, with_own
from fabric.agent.reaction import Reaction
from fabric.agent.ribs import Ribs
from fabric.agent.routing import Host, Routing, routing
from fabric.agent.rules import Gap
from fabric.agent.snapshot import Snapshot, fold, written
from fabric.model.node import Node
from fabric.plan.encap import Encap
from fabric.plan.tables import Version
from fabric.plan.tunnels import Create, Repair, Tunnel
from fabric.store.kv import Txn

NO_REQUIRED_SESSION = "no required session is Established"


@dataclass
class State:
    """What this node knows, and what it last made of it.

    `fault` is why the last pass could not be completed, "" where it was; `copy_problem` why there is no copy
    of the datastore on disk to start from; `upkeep_problems` what IPAM could not give this node; `filter_problem` what
    is wrong with the host's packet filters, of which `backend` is in use; `put_back` what others had last changed of
    ours, and when (Unix epoch); `policy_told` which problems of policy are in the log.

    `snapshot`, `ribs` and `host` change through `update`, which wakes the pass loop and everyone who waits in
    `until`; what the pass loop itself reads of the host needs no waking. `secrets` has those of `secret_refs` that
    are there. `carriers` is what was heard of links since the host was last read; `hurried` says that the next pass
    cannot wait for that; `edited` are the families whose rules others have changed since they were last read;
    `policy_changed` says that live connections are to be judged by what is in force now. `bgp` is this host's
    configuration. `tunnels` are those that stand, by name, wanted or not; `no_offload` those whose link does not take
    their checksums right; `waiting` says, by object, what tunnels wait for, and since when (Unix epoch).
    """

    node: str
    snapshot: Snapshot = field(default_factory=Snapshot)
    ribs: Ribs = field(default_factory=Ribs)
    host: Host = field(default_factory=Host)
    secret_refs: frozenset[tuple[str, str]] = frozenset()
    secrets: Mapping[tuple[str, str], str] = field(default_factory=dict, repr=False)
    routing: Routing = field(default_factory=Routing)
    policing: Policing | None = None
    desired: Desired = field(default_factory=Desired)
    outcome: Outcome = field(default_factory=Outcome)
    fault: str = ""
    copy_problem: str = ""
    upkeep_problems: tuple[str, ...] = ()
    filter_problem: str = ""
    backend: str = ""
    put_back: tuple[float, tuple[Gap, ...]] | None = None
    policy_told: Mapping[str, str] = field(default_factory=dict)
    passes: int = 0
    policed: bool = False  # policy has been in force once
    bgp: bool = True
    tunnels: Mapping[str, Tunnel] = field(default_factory=dict)
    no_offload: frozenset[Encap] = frozenset()
    probed: Mapping[str, str] = field(default_factory=dict)  # what far ends answered, by device, in words
    waiting: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    cuts: int = 0
    reaction: Reaction = field(default_factory=Reaction)
    counts: LastCounts = field(default_factory=LastCounts)
    signatures: SignatureWatch = field(default_factory=SignatureWatch)
    dirty: asyncio.Event = field(default_factory=asyncio.Event)
    carriers: dict[str, bool] = field(default_factory=dict)
    hurried: bool = False
    edited: set[Version] = field(default_factory=set)
    policy_changed: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _policing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def update(
        self, *, snapshot: Snapshot | None = None, ribs: Ribs | None = None, host: Host | None = None
    ) -> None:
        """Replace what is given."""
        self.snapshot = snapshot or self.snapshot
        self.ribs = ribs or self.ribs
        self.host = host or self.host
        self.dirty.set()
        self._notify()

    def wrote(self, txn: Txn, revision: int) -> None:
        """Read our own write: what is decided next is decided on it, whenever the watch tells of it."""
        self.update(snapshot=fold(self.snapshot, written(txn, revision), watched=False))

    def compute(self) -> Desired:
        """Return what the node should have now, and remember it.

        Its part in BGP and its policy are as they were last worked out, but for its own workloads, whose policy must
        be there before they are.
        """
        if self.policing:
            self.policing = with_own(self.node, self.snapshot, self.policing)
        policy = self.policing.composed if self.policing else None
        self.desired = desire(
            self.node,
            self.snapshot,
            self.host,
            self.routing,
            self.desired.adj_ribs_out,
            policy,
            self.no_offload,
        )
        return self.desired

    async def route(self) -> None:
        """Work out this node's part in BGP anew, in a thread: a full table takes long, and attaches go on meanwhile.

        One at a time; what is heard meanwhile is for the next.
        """
        here = replace(self.host.here, secrets=self.secrets)
        host = replace(self.host, here=here)
        self.reaction.planned()
        self.routing = await asyncio.to_thread(
            routing, self.node, self.snapshot, self.ribs, host, self.routing
        )
        now, before = time.time(), self.waiting
        self.waiting = {
            name: (why, before[name][1] if name in before and before[name][0] == why else now)
            for name, why in self.routing.overlay.waiting.items()
        }

    async def police(self, *, tidy: bool = False, localnet: bool = False) -> None:
        """Work out this node's policy anew, in a thread: many policies take long, and attaches go on meanwhile.

        `localnet` says that a link carries 127/8.
        """
        async with self._policing:
            made = await asyncio.to_thread(
                policing,
                self.node,
                self.snapshot,
                self.host,
                self.policing,
                tidy=tidy,
                tunnels=self.all_tunnels,
                localnet=localnet,
            )
            # What was attached meanwhile is in force: who asks before the next pass must not take it for a stranger.
            self.policing = with_own(self.node, self.snapshot, made)

    def judged(self, cut: int) -> None:
        """Note that live connections are as policy has them, for which so many were cut."""
        self.cuts += cut
        self._notify()

    @property
    def all_tunnels(self) -> tuple[Tunnel, ...]:
        """Those that are to stand, and those that do and are not wanted, or not by that port."""
        wanted = self.routing.overlay.tunnels
        comes_by = {(tunnel.name, tunnel.port) for tunnel in wanted}
        return (*wanted, *(one for one in self.tunnels.values() if (one.name, one.port) not in comes_by))

    def raised(self, tunnels: Mapping[str, Tunnel]) -> None:
        """Note which tunnels stand now."""
        if tunnels != self.tunnels:
            self.tunnels = tunnels
            self.dirty.set()  # rules are about these

    def asked(self, answers: Mapping[str, str]) -> None:
        """Note what the far ends of tunnels answered, by device."""
        self.probed = answers
        self._notify()

    def passed(self, outcome: Outcome) -> None:
        """Note a whole pass."""
        self.outcome = outcome
        self.passes += 1
        self.policed |= outcome.unpoliced is None
        if outcome.gaps:
            self.put_back = time.time(), outcome.gaps
        self.reaction.applied(time.monotonic())
        self._notify()

    @property
    def ready(self) -> bool:
        """The datastore is in sync and has this node, the speaker answers, a whole pass went through and put policy
        in force, no tunnel is refused, and of the sessions that are required, where there are any, one is Established.
        """
        return not self.missing

    @property
    def missing(self) -> tuple[str, ...]:
        """What this node lacks to be ready, in words; the last of them is what routers owe it."""
        lacks = {
            "the datastore is not in sync": not self.snapshot.in_sync,
            "the datastore is locked": self.snapshot.locked,
            f"Node {self.node} is not in the datastore": not self.registered,
            "the speaker does not answer": not self.ribs.connected,
            "no pass has gone through": not self.passes,
            "policy is not in force": self.passes > 0 and not self.policed,
        }
        found = [what for what, is_so in lacks.items() if is_so]
        return (*found, *self.missing_tunnels, *([] if self._required_up() else [NO_REQUIRED_SESSION]))

    @property
    def missing_tunnels(self) -> tuple[str, ...]:
        """The tunnels that this node is asked for and does not get, each with why."""
        return tuple(f"tunnel {name} does not stand: {why}" for name, why in sorted(self.unmade.items()))

    @property
    def unmade(self) -> Mapping[str, str]:
        """Why this node has not the tunnels that pools ask of it, by device; what is being made is not among them."""
        refused = {
            op.tunnel.name: str(why)
            for op, why in self.outcome.refused.items()
            if isinstance(op, Create | Repair) and op.tunnel.name not in self.tunnels
        }
        return {**refused, **self.routing.overlay.unmade}

    def _required_up(self) -> bool:
        peerings = self.desired.peerings
        seen = (self.ribs.sessions.get(p.spec.peer) for p in peerings.peerings if p.required)
        up = any(status and status.state is SessionState.ESTABLISHED for status in seen)
        return up or not peerings.required

    @property
    def policy_problems(self) -> Mapping[str, str]:
        """What of the policy could not be compiled, or has no effect here, by object, and why.

        What could not be read is told apart.
        """
        if not self.policing:
            return {}
        unread = {str(one.key) for one in self.policing.resources.unread}
        compiled = {name: why for name, why in self.policing.world.problems.items() if name not in unread}
        return {**self.policing.problems, **compiled}

    @property
    def registered(self) -> bool:
        """Whether the datastore has a Node of this name that can be read."""
        return self.snapshot.get(Node, self.node) is not None

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Return once `predicate` holds; it is looked at after each change."""
        while not predicate():
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
