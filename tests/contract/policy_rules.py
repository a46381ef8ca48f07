"""Rules in force in one namespace, all the way from resources by the agent's own parts, without an agent."""

from __future__ import annotations

from dataclasses import dataclass, field

from fabric.agent.compose import Composed, compose
from fabric.kernel.ipsets import NetlinkIPSets
from fabric.kernel.tables import KernelTables
from fabric.plan import ipsets, tables
from fabric.plan.tables import VERSIONS, Backend, Version
from policy.compile import compile as compiled
from policy.form import Rendered, Site
from policy.render import render
from policy.world import Resources, World
from tests.contract.netns import Namespace


@dataclass(frozen=True)
class Change:
    """What has to be done: the ipsets' operations, and the text of each family."""

    composed: Composed
    sets: ipsets.Plan
    steps: dict[Version, tables.Step]


@dataclass
class Rules:
    """What is in force, and what it was made from, as the agent remembers it."""

    space: Namespace
    backend: Backend = "nft"
    world: World | None = None
    rendered: dict[Version, Rendered] = field(default_factory=dict)
    composed: Composed | None = None
    held: dict[Version, tables.Held] = field(default_factory=dict)
    sets: dict[str, ipsets.Held] = field(default_factory=dict)

    def put(self, resources: Resources, of: Site) -> World:
        """Put the rules of these resources in the place of those before."""
        change = self.decide(resources, of)
        self.apply(change)
        assert self.world
        return self.world

    def decide(self, resources: Resources, of: Site) -> Change:
        """Return what has to be done for these resources; it is taken for done."""
        self.world = compiled(resources, self.world)
        for version in VERSIONS:
            self.rendered[version] = render(self.world, of, version, self.rendered.get(version))
        self.composed = compose(self.rendered.values(), self.composed)
        return self.plan(self.composed)

    def plan(self, composed: Composed) -> Change:
        """Return what has to be done for what was rendered; it is taken for done."""
        plan = ipsets.plan(composed.sets, self.sets)
        self.sets = ipsets.done(self.sets, [*plan.before, *plan.after])
        steps = {}
        for version, ruleset in composed.rulesets.items():
            steps[version] = tables.plan(ruleset, self.held.get(version, tables.Held()))
            self.held[version] = steps[version].held
        return Change(composed, plan, steps)

    def apply(self, change: Change) -> None:
        self.space.run(self._apply(change))

    async def _apply(self, change: Change) -> None:
        with NetlinkIPSets() as sets:
            assert not await ipsets.apply(change.sets.before, sets)
            for version, step in change.steps.items():
                if step.text:
                    await KernelTables(self.backend).restore(version, step.text)
            assert not await ipsets.apply(change.sets.after, sets)

    def check(self) -> None:
        """Hold what is remembered against what is there, and that to what is wanted."""
        assert self.composed
        self.space.run(self._check(self.composed))

    async def _check(self, composed: Composed) -> None:
        with NetlinkIPSets() as sets:
            held = await sets.owned()
        assert ipsets.plan(composed.sets, held) == ipsets.Plan()
        for version, ruleset in composed.rulesets.items():
            read = await KernelTables(self.backend).read(version)
            assert not tables.edited(self.held[version], read)
            assert not tables.plan(ruleset, read).text
