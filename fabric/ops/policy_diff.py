"""Tell, before a change is made, between whom verdicts change by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fabric.errors import ConfigError
from fabric.model import kinds
from fabric.model.base import Resource
from fabric.ops import policy, resources
from fabric.ops.change import Step, Verb
from fabric.store.kv import KeyValueStore
from policy.items import key
from policy.scene import Scene, scene
from policy.staging import ENFORCED, enforced_key, promoted
from policy.verdict_diff import Found, compared

_POLICIES = frozenset({"NetworkPolicy", "GlobalNetworkPolicy"})
# Whom they concern is told by what of them changes: lists, or what is beside lists on a node.
_BY_WHAT_CHANGES = _POLICIES | {"FelixConfiguration"}
# What else a verdict depends on.
_OTHERS = frozenset(
    {"GlobalNetworkSet", "HostEndpoint", "NetworkSet", "Node", "Profile", "Tier", "WorkloadEndpoint"}
)
LINES = 200


async def verdict_changes(kv: KeyValueStore, steps: Sequence[Step]) -> list[str]:
    """Return what `steps` change between endpoints, a line each; nothing where they change no policy.

    Of staged policies: what would change if they were promoted.
    """
    changing = [step for step in steps if step.verb is not Verb.UNCHANGED]
    given = {step.change.kind for step in changing}
    staged = [step.after.as_written() for step in changing if step.after and step.change.kind in ENFORCED]
    acting = given & (_BY_WHAT_CHANGES | _OTHERS)
    if not acting and not staged:
        return []
    stored = await policy.stored(kv)
    then = {resources.key_of(one): one for one in stored.resources}
    before = scene(then.values(), unread=stored.unread)
    then |= {step.change.key: step.after.as_written() for step in changing if step.after}
    for step in changing:
        if not step.after:
            then.pop(step.change.key, None)
    rewritten = {step.change.what for step in changing}
    unread = tuple(one for one in stored.unread if str(one.key) not in rewritten)
    after = scene(then.values(), before, unread=unread)
    changed = {key(one) for step in changing for one in (step.before, step.after) if one}
    told = list(_told(compared(before, after, None if given & _OTHERS else changed))) if acting else []
    return [*told, *(_promoted(then, staged, after) if staged else ())]


def _promoted(then: Mapping[str, Resource], staged: Sequence[Resource], now: Scene) -> Iterator[str]:
    """Yield what would change if `staged`, which are in `then`, were promoted."""
    found, changed = dict(then), set()
    for one in staged:
        try:
            made = promoted(one)
        except ConfigError:
            continue  # there is nothing to enforce
        target = enforced_key(key(one))
        kind = kinds.named(target.kind)
        assert kind, target
        place = resources.key(kind, target.name, target.namespace)
        changed.add(target)
        found.pop(resources.key_of(one), None)
        found.pop(place, None)
        if made:
            found[place] = made
    unread = tuple(one for one in now.resources.unread if one.key not in changed)
    told = _told(compared(now, scene(found.values(), now, unread=unread), changed))
    yield from (f"once promoted: {line}" if at == 0 else line for at, line in enumerate(told))


def _told(found: Found) -> Iterator[str]:
    short = f"only the first {found.pairs} of {found.of}" if found.pairs < found.of else f"{found.pairs}"
    looked = f"{short} pairs of ends tried, each with {', '.join(found.asked)}"
    for name in found.untold:
        yield f"what {name} decides cannot be told: neither its expectedIPs nor its Node says which addresses it has"
    if not found.changed:
        yield f"no verdict changes ({looked})"
        return
    yield f"verdicts that change ({looked}):"
    for one in found.changed[:LINES]:
        what = "all of these" if len(one.asked) == len(found.asked) > 1 else ", ".join(one.asked)
        now = "deny -> allow" if one.allowed else "allow -> deny"
        yield f"  {one.source} -> {one.destination}  {what}: {now} by {one.by}"
    if len(found.changed) > LINES:
        yield f"  and {len(found.changed) - LINES} more"
