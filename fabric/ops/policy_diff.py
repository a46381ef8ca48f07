"""Tell, before a change is made, between whom verdicts change by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fabric.ops import policy, resources
from fabric.ops.change import Step, Verb
from fabric.store.kv import KeyValueStore
from policy.items import key
from policy.scene import scene
from policy.verdict_diff import Found, compared

_POLICIES = frozenset({"NetworkPolicy", "GlobalNetworkPolicy"})
# What else a verdict depends on.
_OTHERS = frozenset(
    {
        "FelixConfiguration", "GlobalNetworkSet", "HostEndpoint", "NetworkSet", "Node", "Profile", "Tier",
        "WorkloadEndpoint",
    }
)  # fmt: skip
LINES = 200


async def verdict_changes(kv: KeyValueStore, steps: Sequence[Step]) -> list[str]:
    """Return what `steps` change between endpoints, a line each; nothing where they change no policy."""
    changing = [step for step in steps if step.verb is not Verb.UNCHANGED]
    kinds = {step.change.kind for step in changing}
    if not kinds & (_POLICIES | _OTHERS):
        return []
    stored = await policy.stored(kv)
    then = {resources.key_of(one): one for one in stored.resources}
    before = scene(then.values(), unread=stored.unread)
    then |= {step.change.key: step.after.as_written() for step in changing if step.after}
    rewritten = {step.change.what for step in changing}
    unread = tuple(one for one in stored.unread if str(one.key) not in rewritten)
    after = scene(then.values(), before, unread=unread)
    changed = {key(one) for step in changing for one in (step.before, step.after) if one}
    return list(_told(compared(before, after, None if kinds & _OTHERS else changed)))


def _told(found: Found) -> Iterator[str]:
    asked = ", ".join(found.asked)
    short = f"the first {found.pairs} of {found.of}" if found.pairs < found.of else f"{found.pairs}"
    looked = f"{short} pairs looked at, asked for {asked}"
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
