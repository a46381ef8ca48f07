"""Say rules, verdicts and packets as operators read them: one wording for traces, tests, counters and logs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from policy.form import ICMP, ICMPV6, PROTOCOLS, End, Icmp, Origin, PortRange, Rule
from policy.labels import ANY_WORKLOAD, IN_A_NAMESPACE
from policy.selector import All, And, Selector, parse

_NAMES: Final = {number: name.lower() for name, number in PROTOCOLS.items()}

_PLAIN: Final = {
    "no-profile": "end of profiles",
    "tier": "end of tier {name}",
    "staged-tier": "end of tier {name}",
    "spoofed": "anti-spoofing",
    "unknown-link": "unknown link",
    "invalid": "connection tracking",
    "cut": "cut of a live connection",
    "tunnel": "tunnel guard",
    "to-host": "defaultEndpointToHostAction {name}",
    "from-host": "from-host rule",
    "failsafe": "failsafe ports",
    "no-endpoint": "no endpoint",
    "forward": "forwarding guard",
}
# What decides and has no rules, as it is called wherever that does not depend on a name.
WITHOUT_RULES: Final = frozenset(
    text.format(name=action)
    for what, text in _PLAIN.items()
    if what not in {"tier", "staged-tier"}
    for action in ("Drop", "Accept", "Return")
)


def protocol(number: int) -> str:
    return _NAMES.get(number, f"protocol {number}")


def of_origin(origin: Origin) -> str:
    """Return what decided: `NetworkPolicy shop/web ingress rule 0`, `end of tier default`, `failsafe ports`."""
    if origin.what in {"policy", "profile"}:
        name = f"Profile {origin.name}" if origin.what == "profile" else origin.name
        return name if origin.rule is None else f"{name} {origin.direction.lower()} rule {origin.rule}"
    if origin.what == "broken":
        return f"{origin.name}, which is broken"
    return _PLAIN[origin.what].format(name=origin.name)


def of_what(number: int, port: int, icmp: Icmp | None) -> str:
    """Return what a packet asks for: `tcp/443`, `icmp/8/0`, `protocol 47`."""
    if icmp is not None:
        return f"{protocol(number)}/{_icmp(icmp)}"
    return f"{protocol(number)}/{port}" if port else protocol(number)


def of_rule(rule: Rule) -> str:
    """Return what a rule matches, in one line: `tcp from role == "web" to port 80`; "everything" if all does."""
    said = []
    if rule.version is not None:
        said.append(f"IPv{rule.version}")
    if rule.protocol is not None:
        said.append(protocol(rule.protocol))
    if rule.not_protocol is not None:
        said.append(f"not {protocol(rule.not_protocol)}")
    if rule.icmp is not None:
        said.append(f"type {_icmp(rule.icmp)}")
    if rule.not_icmp is not None:
        said.append(f"not type {_icmp(rule.not_icmp)}")
    if rule.version is not None and rule.protocol in {ICMP, ICMPV6}:
        said.pop(0)  # the protocol says it
    for word, end in (("from", rule.source), ("to", rule.destination)):
        if text := _end(end):
            said.append(f"{word} {text}")
    return " ".join(said) or "everything"


def _icmp(icmp: Icmp) -> str:
    return str(icmp.type) if icmp.code is None else f"{icmp.type}/{icmp.code}"


def _end(end: End) -> str:
    said = []
    if end.nets:
        said.append(", ".join(map(str, end.nets)))
    if end.not_nets:
        said.append(f"not {', '.join(map(str, end.not_nets))}")
    if end.selected is not None:
        said.append(_selector(end.selected.selector))
    elif end.named and end.named[0].selector != str(All()):
        # That of all of them: who has such a port is asked among these alone.
        said.append(_selector(end.named[0].selector))
    if end.not_selected is not None:
        said.append(f"not {_selector(end.not_selected.selector)}")
    if end.ports or end.named:
        said.append(_ports(end.ports, tuple(one.name for one in end.named)))
    if end.not_ports or end.not_named:
        said.append(f"not {_ports(end.not_ports, tuple(one.name for one in end.not_named))}")
    return " ".join(said)


def _selector(text: str) -> str:
    """Return a selector without the terms that stand for all workloads and all namespaces: nobody wrote those."""
    terms = list(_terms(parse(text)))
    asked = [term for term in terms if term not in {ANY_WORKLOAD, IN_A_NAMESPACE}]
    if len(asked) == len(terms):
        return text
    where = "any namespace" if IN_A_NAMESPACE in terms else ""
    if not asked:
        return where or "any workload"
    said = str(asked[0] if len(asked) == 1 else And(tuple(asked)))
    return f"{said} in {where}" if where else said


def _terms(term: Selector) -> Iterator[Selector]:
    if isinstance(term, And):
        for each in term.terms:
            yield from _terms(each)
    else:
        yield term


def _ports(ranges: tuple[PortRange, ...], names: tuple[str, ...]) -> str:
    texts = [str(low) if low == high else f"{low}:{high}" for low, high in ranges]
    return f"port {','.join(dict.fromkeys([*texts, *names]))}"
