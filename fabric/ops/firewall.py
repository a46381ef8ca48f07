"""Decide whether a packet filter lets a kind of packet through at all; it says blocked only where no packet passes.

Rules are read from `iptables-save` and from `nft -j list ruleset` into one form. What a match means is known
for protocol, port, link and connection state; any other (an address, a set, a mark) may hold or not. A packet
passes if some packet of its kind does, so that a rule for the peers alone counts as an opening.

Chains of ours are not walked: they let some packets of a container through, and say nothing of others'.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from fabric.plan.links import is_ours
from fabric.plan.tables import PREFIX

HOOKS = ("input", "forward", "output")
_FINAL = {"ACCEPT": "accept", "QUEUE": "accept", "NFQUEUE": "accept", "DROP": "drop", "REJECT": "drop"}
# Matches that say nothing by themselves, only by their options.
_BY_OPTIONS = {"tcp", "udp", "conntrack", "state", "multiport", "comment"}
_PROTOCOLS = {"4": "ipencap", "ipip": "ipencap", "ipv4": "ipencap", "6": "tcp", "17": "udp"}
_ANY_PROTOCOL = {"all", "0"}


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection; `port` is the destination's, 0 is any, a link is "" where it has none."""

    protocol: str  # "tcp", "udp", "ipencap"
    port: int = 0
    in_link: str = ""
    out_link: str = ""


# Whether a packet meets a condition; None is "perhaps".
Condition = Callable[[Packet], bool | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """`verdict` is accept, drop, return, jump, goto, or "" for one that only counts, logs or marks."""

    text: str
    verdict: str
    target: str = ""
    conditions: tuple[Condition, ...] = ()


@dataclass(slots=True)
class Table:
    """One filter: its base chains by hook, each with the policy at its end, and the rules of every chain."""

    name: str
    versions: tuple[int, ...]
    base: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    rules: dict[str, list[Rule]] = field(default_factory=dict)


def blocker(table: Table, hook: str, packet: Packet) -> str:
    """Return the rule or policy that stops every such packet at `hook`, "" where one may pass."""
    for chain, policy in table.base.get(hook, ()):
        accepted, fell, stopped = _walk(table, chain, packet)
        if accepted or (fell and policy == "accept"):
            continue
        return f"policy {policy.upper()} of {chain}" if fell else stopped
    return ""


def _walk(table: Table, chain: str, packet: Packet) -> tuple[bool, bool, str]:
    """Return whether a packet may be accepted, whether one may reach the chain's end, and what stops the rest."""
    fell = False
    for rule in table.rules.get(chain, ()):
        met = _met(rule, packet)
        if met is False or not rule.verdict:
            continue
        if rule.verdict == "accept":
            return True, fell, ""
        through, stopped = rule.verdict == "return", rule.text
        if rule.target:
            accepted, through, stopped = _walk(table, rule.target, packet)
            if accepted:
                return True, fell, ""
        # From a jump the packet comes back to the next rule, else it leaves this chain.
        if rule.verdict != "jump":
            fell = fell or through
        if met and not (rule.verdict == "jump" and through):
            return False, fell, stopped
    return False, True, ""


def _met(rule: Rule, packet: Packet) -> bool | None:
    answers = [condition(packet) for condition in rule.conditions]
    if False in answers:
        return False
    return None if None in answers else True


# Conditions


def _protocol(wanted: Iterable[str]) -> Condition:
    names = {_PROTOCOLS.get(name, name) for name in map(str, wanted)}
    return lambda packet: packet.protocol in names


def _port(ranges: Sequence[tuple[int, int]]) -> Condition:
    return lambda packet: any(low <= packet.port <= high for low, high in ranges) if packet.port else None


def _link(patterns: Iterable[str], which: Callable[[Packet], str]) -> Condition:
    globs = list(patterns)
    return lambda packet: any(fnmatchcase(which(packet), glob) for glob in globs)


def _state(states: Iterable[str]) -> Condition:
    new = "new" in {state.lower() for state in states}
    return lambda _packet: new


def _perhaps(_packet: Packet) -> None:
    return None


def _negated(condition: Condition) -> Condition:
    def opposite(packet: Packet) -> bool | None:
        answer = condition(packet)
        return None if answer is None else not answer

    return opposite


# iptables


def from_iptables(text: str, name: str, version: int) -> Table:
    """Read the filter table out of what `iptables-save` prints."""
    table = Table(name, (version,))
    inside = False
    for line in text.splitlines():
        if line.startswith("*"):
            inside = line == "*filter"
        elif inside and line.startswith(":"):
            chain, policy, *_ = line[1:].split()
            table.rules.setdefault(chain, [])
            if policy != "-":
                table.base[chain.lower()] = [(chain, policy.lower())]
        elif inside and line.startswith("-A "):
            chain = line.split()[1]
            table.rules.setdefault(chain, []).append(_iptables_rule(line, table.rules))
    return table


def count_rules(text: str) -> Mapping[str, int]:
    """Return how many rules each table has in what `iptables-save` prints; a dropping policy counts as one."""
    found: dict[str, int] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A ") or (line.startswith(":") and " DROP" in line):
            found[table] = found.get(table, 0) + 1
    return found


def _iptables_rule(line: str, chains: Mapping[str, object]) -> Rule:
    words = shlex.split(line)[2:]
    verdict = target = ""
    conditions: list[Condition] = []
    while words:
        negated = words[0] == "!"
        option, *words = words[negated:]
        values = []
        while words and (option == "--comment" or (words[0] != "!" and not words[0].startswith("-"))):
            values.append(words.pop(0))
            if option == "--comment":
                break
        if option in {"-j", "-g"}:
            target = values[0]
            verdict = _FINAL.get(target, "return" if target == "RETURN" else "")
            if target.startswith(PREFIX):
                verdict = "accept"
                conditions.append(lambda packet: is_ours(packet.in_link) or is_ours(packet.out_link))
            elif target in chains:
                verdict = "goto" if option == "-g" else "jump"
            break  # what follows are the target's own options
        if (condition := _iptables_condition(option, values)) is not None:
            conditions.append(_negated(condition) if negated else condition)
    return Rule(line, verdict, target if verdict in {"goto", "jump"} else "", tuple(conditions))


def _iptables_condition(option: str, values: list[str]) -> Condition | None:
    match option:
        case "--comment":
            return None
        case "-m":
            return None if values[0] in _BY_OPTIONS else _perhaps
        case "-p":
            return None if values[0] in _ANY_PROTOCOL else _protocol(values)
        case "--dport" | "--dports":
            return _port([_iptables_range(part) for part in values[0].split(",")])
        case "-i":
            return _link([values[0].replace("+", "*")], lambda packet: packet.in_link)
        case "-o":
            return _link([values[0].replace("+", "*")], lambda packet: packet.out_link)
        case "--ctstate" | "--state":
            return _state(values[0].split(","))
        case _:
            return _perhaps


def _iptables_range(text: str) -> tuple[int, int]:
    low, colon, high = text.partition(":")
    return int(low or 0), int(high or (65535 if colon else low))


# nft


def from_nft(entries: Iterable[Mapping[str, Any]]) -> list[Table]:
    """Read the tables of nft that filter packets, without those that belong to iptables-nft."""
    entries = list(entries)
    tables: dict[tuple[str, str], Table] = {}
    foreign = {
        _table(entry["chain"]) for entry in entries if "chain" in entry and entry["chain"]["name"].isupper()
    }
    for entry in entries:
        chain = entry.get("chain", {})
        if chain and chain["family"] in {"inet", "ip", "ip6"} and _table(chain) not in foreign:
            versions = {"ip": (4,), "ip6": (6,)}.get(chain["family"], (4, 6))
            name = f"nft table {chain['family']} {chain['table']}"
            table = tables.setdefault(_table(chain), Table(name, versions))
            table.rules[chain["name"]] = []
            if chain.get("hook") in HOOKS and chain.get("type") == "filter":
                table.base.setdefault(chain["hook"], []).append(
                    (chain["name"], chain.get("policy", "accept"))
                )
    for entry in entries:
        rule = entry.get("rule", {})
        if rule and _table(rule) in tables:
            tables[_table(rule)].rules[rule["chain"]].extend(_nft_rules(rule))
    return list(tables.values())


def _table(entry: Mapping[str, Any]) -> tuple[str, str]:
    return entry["family"], entry["table"]


def _nft_rules(rule: Mapping[str, Any]) -> Iterator[Rule]:
    text = f"rule {rule.get('handle', '?')} of chain {rule['chain']}"
    conditions: list[Condition] = []
    word: str
    value: Any
    for statement in rule.get("expr", ()):
        [(word, value)] = statement.items() if isinstance(statement, dict) else [(statement, None)]
        if word == "match":
            conditions += _nft_conditions(value)
        elif word in {"accept", "return"}:
            yield Rule(text, word, conditions=tuple(conditions))
        elif word in {"drop", "reject"}:
            yield Rule(text, "drop", conditions=tuple(conditions))
        elif word in {"jump", "goto"}:
            yield Rule(text, word, value["target"], tuple(conditions))
        elif word == "queue":
            yield Rule(text, "accept", conditions=tuple(conditions))
        elif word == "vmap":
            yield from _nft_map(text, value, conditions)
        elif word in {"limit", "xt"}:
            conditions.append(_perhaps)


def _nft_map(text: str, vmap: Mapping[str, Any], conditions: Sequence[Condition]) -> Iterator[Rule]:
    """Return a rule for each entry of a verdict map; one that stands elsewhere may accept anything."""
    if not isinstance(vmap["data"], dict):
        yield Rule(text, "accept", conditions=(*conditions, _perhaps))
        return
    for value, verdict in vmap["data"]["set"]:
        [(word, target)] = verdict.items()
        met = _nft_conditions({"op": "==", "left": vmap["key"], "right": value})
        yield Rule(text, word, (target or {}).get("target", ""), (*conditions, *met))


def _nft_conditions(match: Mapping[str, Any]) -> list[Condition]:
    left, values = match["left"], _nft_values(match["right"])
    made: list[Condition]
    if values is None or not isinstance(left, dict):
        return [_perhaps]
    match left:
        case {"meta": {"key": "l4proto"}} | {"payload": {"field": "protocol" | "nexthdr"}}:
            made = [_protocol(values)]
        case {"payload": {"protocol": "tcp" | "udp" as protocol, "field": "dport"}}:
            port = _port([value if isinstance(value, tuple) else (value, value) for value in values])
            return [_protocol([protocol]), _negated(port) if match["op"] == "!=" else port]
        case {"payload": {"protocol": "tcp" | "udp" | "icmp" | "icmpv6" as protocol}}:
            return [_protocol([protocol]), _perhaps]
        case {"meta": {"key": "iif" | "iifname"}}:
            made = [_link(map(str, values), lambda packet: packet.in_link)]
        case {"meta": {"key": "oif" | "oifname"}}:
            made = [_link(map(str, values), lambda packet: packet.out_link)]
        case {"ct": {"key": "state"}}:
            made = [_state(map(str, values))]
        case _:
            return [_perhaps]
    return [_negated(condition) for condition in made] if match["op"] == "!=" else made


def _nft_values(right: Any) -> list[Any] | None:
    """Return what a match compares with, ranges as pairs; None for what stands elsewhere, as a named set."""
    if isinstance(right, dict) and "set" in right:
        right = right["set"]
    values = right if isinstance(right, list) else [right]
    found: list[Any] = []
    for value in values:
        if isinstance(value, dict) and "range" in value:
            found.append(tuple(value["range"]))
        elif isinstance(value, dict) or (isinstance(value, str) and value.startswith("@")):
            return None
        else:
            found.append(value)
    return found
