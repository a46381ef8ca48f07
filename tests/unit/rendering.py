"""What tests render: a node, and resources as files have them; and the rules as text to review."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from policy import compile as compiler
from policy.form import TCP, UDP, Failsafe, Line, Rendered, Site
from policy.world import Resources, World
from tests.unit.loading import resources_in

SITE = Site(
    node="n1",
    links={
        "lo": frozenset({ip_address("127.0.0.1"), ip_address("::1")}),
        "eth0": frozenset({ip_address("192.0.2.13"), ip_address("2001:db8::13")}),
        "eth1": frozenset({ip_address("198.51.100.13")}),
    },
    nodes=frozenset(map(ip_address, ("192.0.2.13", "192.0.2.14", "2001:db8::13", "2001:db8::14"))),
    pools=frozenset((ip_network("10.0.0.0/16"), ip_network("fd00::/16"))),
    spoofing=True,
    failsafe_in=(
        Failsafe(TCP, 22),
        Failsafe(TCP, 179),
        Failsafe(UDP, 68),
        Failsafe(TCP, 2379, ip_network("192.0.2.0/24")),
    ),
    failsafe_out=(Failsafe(UDP, 53), Failsafe(UDP, 67), Failsafe(TCP, 179)),
)


def site(**changed: Any) -> Site:
    """Return SITE with some of it changed."""
    return replace(SITE, **changed)


def world(*texts: str) -> World:
    """Return what the resources of these files compile to."""
    return compiler.compile(Resources.of(resource for text in texts for resource in resources_in(text)))


def shown(rendered: Rendered) -> str:
    """Return what is rendered, a block a chain and a set."""
    return "".join(f"{block}\n" for block in (*_chains(rendered), *_sets(rendered)))


def _chains(rendered: Rendered) -> Iterator[str]:
    blocks: dict[tuple[str, str], list[str]] = {}
    for chains, where in ((rendered.first, "first "), (rendered.last, "last "), (rendered.chains, "")):
        for at, lines in chains.items():
            blocks.setdefault(at, []).extend(_line(line, where) for line in lines)
    for at, block in sorted(blocks.items()):
        yield "\n".join([" ".join(at), *block])


def _line(line: Line, where: str) -> str:
    origin = line.origin
    if origin is None:
        return f"    {where}{line.text}"
    words = [
        origin.what,
        origin.name,
        origin.direction.lower(),
        "" if origin.rule is None else str(origin.rule),
    ]
    named = " ".join(filter(None, [*words, "staged" if origin.staged else ""]))
    return f"    {where}{line.text}".ljust(60) + f"  # {named}"


def _sets(rendered: Rendered) -> Iterator[str]:
    for name, ipset in sorted(rendered.sets.items()):
        yield "\n".join([f"{name} {ipset.kind}", *(f"    {member}" for member in sorted(ipset.members))])
