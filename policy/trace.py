"""Write what became of a packet, and why: as JSON values, and from those as text, tier by tier. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, Final

from policy import words
from policy.evaluate import Asked, Passage, Step
from policy.form import Key, Origin
from policy.scene import Scene, Who, titles

Json = Mapping[str, Any]

_OUTSIDE: Final = "outside"
_HOOKS: Final = {"forward": " (forwarded)", "pre-dnat": " (before DNAT)", "untracked": " (untracked)"}
_DONE: Final = {"allow": "allowed", "deny": "denied", "none": "nothing decides, it goes on"}


def document(scene: Scene, source: Who, destination: Who, passage: Passage) -> dict[str, Any]:
    """Return the whole trace; rules count from 0, `match` says what a rule asks for."""
    sent, names = passage.packet, titles(scene)
    return {
        "from": source.name,
        "to": destination.name,
        "packet": {
            "source": str(sent.source),
            "destination": str(sent.destination),
            "protocol": sent.protocol,
            "source_port": sent.source_port or None,
            "port": sent.destination_port or None,
            "icmp": {"type": sent.icmp.type, "code": sent.icmp.code} if sent.icmp else None,
            "text": words.of_what(sent.protocol, sent.destination_port, sent.icmp),
        },
        "verdict": "allow" if passage.allowed else "deny",
        "ends": [end(asked, names) | _nobody(scene, passage, asked) for asked in passage.asked],
    }


def _nobody(scene: Scene, passage: Passage, asked: Asked) -> dict[str, Any]:
    """Return how an end is called that is in a pool, and that no endpoint has."""
    address = passage.packet.source if asked.direction == "Egress" else passage.packet.destination
    pools = {pool for site in scene.sites.values() for pool in site.pools}
    if asked.endpoint or asked.node or not any(address in pool for pool in pools):
        return {}
    return {"name": str(address)}


def end(asked: Asked, names: Mapping[Key, str]) -> dict[str, Any]:
    """Return what one end said."""
    verdict, endpoint = asked.verdict, asked.endpoint
    said = "allow" if verdict.allowed else "deny"
    return {
        "direction": asked.direction,
        "node": asked.node,
        "endpoint": str(endpoint.key) if endpoint else None,
        "name": names.get(endpoint.key, str(endpoint.key)) if endpoint else asked.node or _OUTSIDE,
        "hook": asked.hook,
        "verdict": said if verdict.origin else "none",
        "by": origin(verdict.origin) if verdict.origin else None,
        "steps": [_step(step) for step in verdict.steps],
        "missing_profiles": list(asked.missing),
        "staged": [origin(one) for one in verdict.staged],
    }


def origin(of: Origin) -> dict[str, Any]:
    return {"what": of.what, "name": of.name, "rule": of.rule, "text": words.of_origin(of)}


def _step(step: Step) -> dict[str, Any]:
    return {
        "tier": step.tier,
        **origin(step.origin),
        "staged": step.origin.staged,
        "action": step.did,
        "matched": step.matched,
        "match": words.of_rule(step.rule) if step.rule else None,
    }


def lines(trace: Json) -> Iterator[str]:
    """Yield a trace as text; what decides has "=>" before it, what a staged policy would do "~>"."""
    packet = trace["packet"]
    ends = [
        f"{trace[end]} ({packet[address]})" if trace[end] != packet[address] else trace[end]
        for end, address in (("from", "source"), ("to", "destination"))
    ]
    staged = trace["verdict"] == "allow" and any(map(_would_deny, trace["ends"]))
    more = " (a staged policy would deny it)" if staged else ""
    yield f"{ends[0]} -> {ends[1]} {packet['text']}: {_DONE[trace['verdict']]}{more}"
    if not trace["ends"]:
        yield ""
        yield "it never leaves the workload: nobody is asked"
    for one in trace["ends"]:
        yield ""
        yield headline(one)
        yield from _asked(one)


def headline(one: Json) -> str:
    """Return what one end said, in a line."""
    at = f" on {one['node']}" if one["endpoint"] and one["node"] else ""
    where = f"{one['direction'].lower()} of {one['name']}{at}{_HOOKS.get(one['hook'], '')}"
    if one["by"] and one["by"]["what"] == "no-endpoint":
        known = one["node"] or one["name"] == _OUTSIDE
        return f"{where}: {'' if known else 'no endpoint has this address, '}nobody is asked"
    by = f" by {one['by']['text']}" if one["by"] else ""
    said = f"{where}: {_DONE[one['verdict']]}{by}"
    if one["by"] and one["by"]["what"] == "no-profile":
        said += "".join(f"; Profile {name} does not exist" for name in one["missing_profiles"])
    staged = _would_deny(one) if one["verdict"] != "deny" else ""
    return f"{said}; staged: {staged} would deny it" if staged else said


def _would_deny(one: Json) -> str:
    """Return what staged would deny at one end, "" for nothing."""
    denies = (
        step["text"]
        for step in one["steps"]
        if step["staged"] and step["matched"] and step["action"] == "Deny"
    )
    return next(denies, "")


def _asked(one: Json) -> Iterator[str]:
    if (
        len(one["steps"]) == 1
        and one["by"]
        and one["by"]["what"] not in {"policy", "broken", "profile", "tier"}
    ):
        return  # the headline says it
    for tier, steps in groupby(one["steps"], key=lambda step: step["tier"]):
        yield f"  tier {tier}" if tier else "  profiles"
        if not tier:
            yield from (f"    Profile {name}: does not exist" for name in one["missing_profiles"])
        for (what, name, staged), asked in groupby(
            steps, key=lambda step: (step["what"], step["name"], step["staged"])
        ):
            yield from _owner(what, name, staged, list(asked))


def _owner(what: str, name: str, staged: bool, steps: list[Json]) -> Iterator[str]:
    """Yield a policy or a profile with its rules, or the end of a list."""
    if what not in {"policy", "profile"}:
        [step] = steps
        yield f"{_mark(step)}  {step['text']}{' (staged)' if staged else ''}: {step['action']}"
        return
    title = f"Profile {name}" if what == "profile" else name
    if steps[0]["rule"] is None:
        yield f"    {title}{' (staged)' if staged else ''}: no rules in this direction"
        return
    yield f"    {title}{' (staged)' if staged else ''}"
    for step in steps:
        said = "matches" if step["matched"] else "no"
        yield f"{_mark(step)}    rule {step['rule']}  {step['action']:<5}  {step['match']}: {said}"


def _mark(step: Json) -> str:
    if not step["matched"] or step["action"] == "Log":
        return "  "
    return "~>" if step["staged"] else "=>"
