"""What is announced arrives as it was meant: attributes at FRR and BIRD, and IPv4 over an IPv6 session (RFC 8950)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any, TypeAlias

import pytest

from bgp.rib import Address, Announcement, Attributes, Origin, Prefix, SessionSpec
from bgp.speaker.seam import Wanted
from tests.contract.speaker_rig import (
    OUR6,
    OURS,
    PEER_AS,
    SPEC,
    SPEC6,
    THEIR6,
    THEIRS,
    Agent,
    Frr,
    RealRig,
    agent_of,
    bird_config,
    frr_config,
    real,
    until,
)

Seen: TypeAlias = dict[str, str]
Sent: TypeAlias = tuple[Attributes, Address | None]

PLAIN, RICH, SET = (ip_network(f"10.2.{n}.0/24") for n in range(3))
HOP = ip_address("10.0.0.77")
RICH_EXTERNAL = Attributes(
    origin=Origin.EGP,
    as_path=(65001, 65001, 4200000001),
    med=7,
    communities=("65001:1", "65535:0", "4200000001:1:2"),
)
RICH_INTERNAL = Attributes(
    origin=Origin.INCOMPLETE,
    as_path=(64512,),
    med=0,
    local_pref=2147482623,
    communities=("65002:9",),
    originator_id=IPv4Address("10.0.0.9"),
    cluster_list=(IPv4Address("10.9.9.1"), IPv4Address("10.9.9.2")),
)
WITH_SET = Attributes(as_path=(65001, 64512, 0), as_sets=frozenset({64601, 64600}))
EXTERNAL: dict[Prefix, Sent] = {
    PLAIN: (Attributes(), None),
    RICH: (RICH_EXTERNAL, HOP),
    SET: (WITH_SET, None),
}
INTERNAL: dict[Prefix, Sent] = {PLAIN: (Attributes(local_pref=100), None), RICH: (RICH_INTERNAL, HOP)}
ARRIVES_EXTERNAL: dict[Prefix, Seen] = {
    PLAIN: {"origin": "IGP", "as_path": "65001", "next_hop": "10.0.0.1"},
    RICH: {
        "origin": "EGP",
        "as_path": "65001 65001 4200000001",
        "next_hop": "10.0.0.77",
        "med": "7",
        "community": "65001:1 65535:0",
        "large_community": "4200000001:1:2",
    },
    SET: {"origin": "IGP", "as_path": "65001 64512 {64600,64601}", "next_hop": "10.0.0.1"},
}
ARRIVES_INTERNAL: dict[Prefix, Seen] = {
    PLAIN: {"origin": "IGP", "as_path": "", "next_hop": "10.0.0.1", "local_pref": "100"},
    RICH: {
        "origin": "incomplete",
        "as_path": "64512",
        "next_hop": "10.0.0.77",
        "med": "0",
        "local_pref": "2147482623",
        "community": "65002:9",
        "originator_id": "10.0.0.9",
        "cluster_list": "10.9.9.1 10.9.9.2",
    },
}


async def at_frr(rig: RealRig) -> dict[Prefix, Seen]:
    ours = [prefix for prefix in await rig.frr.routes() if prefix in EXTERNAL]
    shown = {prefix: await rig.frr.show(f"ipv4 unicast {prefix}") for prefix in ours}
    return {prefix: _frr(said["paths"][0]) for prefix, said in shown.items() if said}


def _frr(path: dict[str, Any]) -> Seen:
    found = {
        "origin": path["origin"],
        "as_path": path["aspath"]["string"].replace("Local", ""),
        "next_hop": path["nexthops"][0]["ip"],
        "med": str(path.get("metric", "")),
        "local_pref": str(path.get("locPrf", "")),
        "community": path.get("community", {}).get("string", "").replace("graceful-shutdown", "65535:0"),
        "large_community": path.get("largeCommunity", {}).get("string", ""),
        "originator_id": path.get("originatorId", ""),
        "cluster_list": " ".join(path.get("clusterList", {}).get("list", ())),
    }
    return _meant({name: value for name, value in found.items() if value or name == "as_path"})


async def at_bird(rig: RealRig) -> dict[Prefix, Seen]:
    said = await rig.bird.birdc("show", "route", "all", "protocol", "node")
    _, *blocks = re.split(r"^(\S+/\d+) ", said, flags=re.MULTILINE)
    return {ip_network(prefix): _bird(block) for prefix, block in zip(blocks[::2], blocks[1::2], strict=True)}


def _bird(block: str) -> Seen:
    found = dict(re.findall(r"BGP\.(\w+): ?(.*)", block))
    found["origin"] = found["origin"].replace("Incomplete", "incomplete")
    found["as_path"] = re.sub(r"\{(\d+) (\d+)\}", r"{\1,\2}", found["as_path"])
    for name in found.keys() & {"community", "large_community"}:
        found[name] = re.sub(r"[()]", "", re.sub(", ?", ":", found[name]))
    return _meant(found)


def _meant(found: Seen) -> Seen:
    if found["as_path"].startswith("65001"):
        found.pop("local_pref", None)  # of the router's own making, on a path from outside
    return found


IBGP = replace(SPEC, local_as=PEER_AS)
Look: TypeAlias = Callable[[RealRig], Awaitable[dict[Prefix, Seen]]]
CONFIGURATION: dict[str, tuple[Callable[[int], str], Look]] = {
    "frr": (lambda our_as: frr_config(expected_as=our_as), at_frr),
    "bird": (lambda our_as: bird_config().replace(f"as {SPEC.local_as};", f"as {our_as};"), at_bird),
}


async def shows(rig: RealRig, look: Look, want: dict[Prefix, Seen]) -> None:
    async def as_wanted() -> bool:
        return await look(rig) == want

    with suppress(AssertionError):
        await until(as_wanted, "it arrives", 5.0)
    assert await look(rig) == want


@pytest.mark.parametrize(
    ("spec", "announced", "arrives"),
    [
        pytest.param(SPEC, EXTERNAL, ARRIVES_EXTERNAL, id="external"),
        pytest.param(IBGP, INTERNAL, ARRIVES_INTERNAL, id="internal"),
    ],
)
@pytest.mark.parametrize("router", CONFIGURATION)
async def test_attributes_arrive(
    router: str, spec: SessionSpec, announced: dict[Prefix, Sent], arrives: dict[Prefix, Seen]
) -> None:
    """RFC 4271 §5.1, RFC 1997, RFC 8092 §3, RFC 4456 §8."""
    config, look = CONFIGURATION[router]
    with real(router, config(spec.local_as)) as rig:
        async with agent_of(rig) as agent:
            out = frozenset(Announcement(p, hop, attributes) for p, (attributes, hop) in announced.items())
            await agent.speaker.want(Wanted(frozenset([spec]), {spec.peer: out}))
            await agent.sees(Agent.synced)
            await shows(rig, look, arrives)
            # What changes is replaced, and what is withdrawn goes, whatever it was announced with.
            attributes, hop = announced[RICH]
            await agent.speaker.want(
                Wanted(frozenset([spec]), {spec.peer: frozenset([Announcement(PLAIN, hop, attributes)])})
            )
            await shows(rig, look, {PLAIN: arrives[RICH]})


MIXED = replace(SPEC6, extended_next_hop=True)
BIRD6 = f"""
protocol static theirs6 {{ ipv6; route {THEIR6} blackhole; }}
protocol bgp node6 {{
  local {MIXED.peer} as {PEER_AS}; neighbor {MIXED.source} as {MIXED.local_as}; graceful restart on;
  connect delay time 1; error wait time 1,2;
  IPV4 ipv6 {{ import all; export all; }};
}}
"""
FRR_EXTENDED = (
    frr_config()
    .replace("no neighbor 2001:db8::1 activate", "neighbor 2001:db8::1 activate")
    .replace(
        "neighbor 2001:db8::1 timers",
        "neighbor 2001:db8::1 capability extended-nexthop\n neighbor 2001:db8::1 timers",
    )
)
BIRD_EXTENDED = bird_config(
    more=BIRD6.replace("IPV4", "ipv4 { extended next hop on; import all; export all; };")
)


@pytest.mark.parametrize(
    ("router", "config"), [("frr", FRR_EXTENDED), ("bird", BIRD_EXTENDED)], ids=["frr", "bird"]
)
async def test_an_ipv6_session_carries_ipv4_with_its_next_hop(router: str, config: str) -> None:
    """RFC 8950 §3 and §4."""
    with real(router, config) as rig:
        async with agent_of(rig) as agent:
            both = frozenset(map(Announcement, [OURS[0], OUR6]))
            await agent.speaker.want(Wanted(frozenset([MIXED]), {MIXED.peer: both}))
            await agent.sees(lambda agent: agent.synced(MIXED.peer))
            await agent.sees(lambda agent: agent.learned(MIXED.peer) == {THEIRS, THEIR6})
            hops = {path.next_hop for path in agent.paths[MIXED.peer].values()}
            assert hops == {MIXED.peer}, "the address of the session, no link-local one"
            await until(lambda: has(rig, OURS[0], OUR6), "both arrive, with our IPv6 address as next hop")
            await agent.speaker.want(
                Wanted(frozenset([MIXED]), {MIXED.peer: frozenset([Announcement(OUR6)])})
            )
            await until(lambda: has(rig, OUR6), "one is withdrawn")
            assert agent.sessions[MIXED.peer].flaps == 0


async def has(rig: RealRig, *prefixes: Prefix) -> bool:
    """Whether the router has exactly these of ours, all by our IPv6 address."""
    found: dict[Prefix, str] = {}
    if isinstance(rig.router, Frr):
        for family in ("ipv4", "ipv6"):
            routes = await rig.frr.routes(family)
            found |= {prefix: path["nexthops"][0]["ip"] for prefix, path in routes.items() if path["path"]}
    else:
        said = await rig.bird.birdc("show", "route", "all", "protocol", "node6")
        _, *blocks = re.split(r"^(\S+/\d+) ", said, flags=re.MULTILINE)
        for prefix, block in zip(blocks[::2], blocks[1::2], strict=True):
            found[ip_network(prefix)] = _bird(block)["next_hop"]
    return found == dict.fromkeys(prefixes, str(MIXED.source))


async def test_a_peer_that_takes_no_ipv4_over_ipv6_gets_none() -> None:
    with real("frr") as rig:
        async with agent_of(rig) as agent:
            both = frozenset(map(Announcement, [OURS[0], OUR6]))
            await agent.speaker.want(Wanted(frozenset([MIXED]), {MIXED.peer: both}))
            await agent.sees(lambda agent: agent.synced(MIXED.peer))
            await until(lambda: has(rig, OUR6), "IPv6 alone arrives")
            assert agent.sessions[MIXED.peer].flaps == 0
