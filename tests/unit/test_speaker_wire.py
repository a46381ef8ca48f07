"""Lines of ExaBGP 5.0.15 itself, from runs against FRR 8.4.4 and, for every attribute, another ExaBGP.

Left out: `host`, `pid`, `ppid`, `counter`, and capabilities that are not read. Composed after its source,
since no router here sends them: an OPEN with the F bit, an unknown NOTIFICATION subcode.
"""

from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from bgp.rib import Address, Announcement, Attributes, Origin, Path, Prefix
from bgp.speaker.exabgp_wire import (
    Announce,
    Answered,
    Command,
    Down,
    EndOfRib,
    Heard,
    Neighbor,
    Neighbors,
    Opened,
    Received,
    SendEndOfRib,
    Sent,
    Teardown,
    Unreadable,
    Up,
    Withdraw,
    parse,
    render,
)

PEER = ip_address("10.0.0.2")
PEER6 = ip_address("2001:db8::2")
PEER_ID = IPv4Address("10.0.0.2")
V4, BOTH = frozenset({4}), frozenset({4, 6})
ENVELOPE = (
    '{ "exabgp": "5.0.0", "time": 1795236074.4, "type": "%s", '
    '"neighbor": { "address": { "local": "10.0.0.1", "peer": "10.0.0.2" }, '
    '"asn": { "local": 65001, "peer": 65002 }, "router-id": "10.0.0.1" , %s } }'
)
ENVELOPE6 = ENVELOPE.replace("10.0.0.2", "2001:db8::2")
OPEN = (
    '"direction": "receive", "open": { "version": 4, "asn": 65002, '
    '"hold_time": 180, "router_id": "10.0.0.2", '
    '"capabilities": { "1": { "name": "multiprotocol", "families": [ "ipv4/unicast" ] }%s } }'
)
GRACEFUL = (
    ', "64": { "name": "graceful restart", "time": 120, "address-family-flags": { "ipv4/unicast": [%s ] }, '
    '"restart-flags": [%s]  }'
)
OPEN6 = OPEN.replace('[ "ipv4/unicast" ]', '[ "ipv4/unicast", "ipv6/unicast", "l2vpn/evpn" ]')
EXTENDED = ', "5": { "name": "nexthop", "conversion": [ "ipv4/unicast/ipv6" ] }'
RECEIVE, SEND = '"direction": "receive", "message": { %s }', '"direction": "send", "message": { %s }'
SHOWN = (
    '[{"state": "up", "duration": 7, "fsm": "ESTABLISHED", '
    '"local": {"capabilities": {"asn4": true, "description": "75c1ff"}, '
    '"address": "10.0.0.1", "as": 65001, "id": "10.0.0.1", "hold": 9}, "peer": {"address": "10.0.0.2", '
    '"as": 65002, "id": "10.0.0.2", "hold": 180}, "messages": {"sent": {"open": 1}}}]'
)
ALL_ATTRIBUTES = (
    '"update": { "attribute": { "origin": "incomplete", "as-path": {"0": {"element": "as-sequence", '
    '"value": [65002, 65003]}, "1": {"element": "as-set", "value": [65010, 65011]}}, "med": 5, '
    '"local-preference": 200, "community": [ [ 65002, 1 ], [ 65535, 0 ] ], "originator-id": "10.0.0.9", '
    '"cluster-list": [ "1.1.1.1", "2.2.2.2" ], '
    '"extended-community": [ { "value": 842131417595911, "string": "target:65002:7" } ], '
    '"large-community": [ [ 65002, 1 , 2 ] ] }, "announce": { "ipv4 unicast": { '
    '"10.0.0.2": [ { "nlri": "0.0.0.0/0" }, { "nlri": "192.0.2.0/24" } ] } } }'
)
WITHDRAWN = (
    '"update": { "withdraw": { "ipv4 unicast": [ { "nlri": "10.1.0.64/26" }, { "nlri": "10.2.0.0/26" } ] } }'
)
BOTH_NEXT_HOPS = (
    '"update": { "attribute": { "origin": "igp" }, "announce": { "ipv6 unicast": { '
    '"%s": [ { "nlri": "2001:db8:2::/48" } ], "%s": [ { "nlri": "2001:db8:2::/48" } ] } } }'
)
WITHDRAWN6 = '"update": { "withdraw": { "ipv6 unicast": [ { "nlri": "2001:db8:2::/48" } ] } }'


def full(prefix: str) -> Path:
    return Path(
        prefix=ip_network(prefix),
        next_hop=PEER,
        peer=PEER,
        origin=Origin.INCOMPLETE,
        as_path=(65002, 65003, 0),
        as_sets=frozenset({65010, 65011}),
        med=5,
        local_pref=200,
        communities=("65002:1", "65535:0", "65002:1:2"),
        originator_id=IPv4Address("10.0.0.9"),
        cluster_list=(IPv4Address("1.1.1.1"), IPv4Address("2.2.2.2")),
    )


@pytest.mark.parametrize(
    ("line", "want"),
    [
        pytest.param("done", Answered(), id="ack"),
        pytest.param("error", Answered(done=False), id="refusal"),
        pytest.param("exabgp 5.0.15", None, id="the answer to a ping"),
        pytest.param("reload in progress", None, id="banner"),
        pytest.param('{ "exabgp": "5.0.0", "type": "notification", "notification": "shutdown" }', None),
        pytest.param(ENVELOPE % ("state", '"state": "connected"'), None, id="connected means nothing"),
        pytest.param(ENVELOPE % ("state", '"state": "up"'), Up(PEER), id="up"),
        pytest.param(
            ENVELOPE % ("state", '"state": "down", "reason": "closing connection"'),
            Down(PEER, "closing connection"),
            id="connection lost or refused",
        ),
        pytest.param(
            ENVELOPE % ("state", '"state": "down", "reason": "notification received (2,2)"'),
            Down(PEER, "notification received (2,2) bad peer AS", (2, 2)),
            id="wrong AS",
        ),
        pytest.param(
            ENVELOPE % ("state", '"state": "down", "reason": "notification sent (4,0)"'),
            Down(PEER, "notification sent (4,0) hold timer expired", (4, 0), sent_by_us=True),
            id="hold timer",
        ),
        pytest.param(
            ENVELOPE % ("state", '"state": "down", "reason": "notification received (6,77)"'),
            Down(PEER, "notification received (6,77) cease", (6, 77)),
            id="unknown subcode: the code's name",
        ),
        pytest.param(ENVELOPE % ("open", OPEN % ""), Opened(PEER, PEER_ID, V4), id="no graceful restart"),
        pytest.param(
            ENVELOPE % ("open", OPEN % GRACEFUL % ("", " ")),
            Opened(PEER, PEER_ID, V4, graceful=V4, restart_time=120),
            id="graceful, not restarting",
        ),
        pytest.param(
            ENVELOPE % ("open", OPEN % GRACEFUL % ("", ' "forwarding" ')),
            Opened(PEER, PEER_ID, V4, graceful=V4, forwarding_lost=V4, restart_time=120),
            id="restarted (R) and its forwarding did not survive (no F)",
        ),
        pytest.param(
            ENVELOPE % ("open", OPEN % GRACEFUL % (' "restart"', ' "forwarding" ')),
            Opened(PEER, PEER_ID, V4, graceful=V4, restart_time=120),
            id="restarted (R), forwarding preserved (F)",
        ),
        pytest.param(
            ENVELOPE6 % ("open", OPEN6 % EXTENDED),
            Opened(PEER6, PEER_ID, BOTH),
            id="IPv4 over IPv6 with its next hop (RFC 8950)",
        ),
        pytest.param(
            ENVELOPE6 % ("open", OPEN6 % ""),
            Opened(PEER6, PEER_ID, frozenset({6})),
            id="IPv4 over IPv6, with a next hop of its own",
        ),
        pytest.param(
            ENVELOPE % ("update", RECEIVE % ALL_ATTRIBUTES),
            Received(PEER, (full("0.0.0.0/0"), full("192.0.2.0/24"))),
            id="every attribute",
        ),
        pytest.param(
            ENVELOPE % ("update", RECEIVE % WITHDRAWN),
            Received(PEER, (), (ip_network("10.1.0.64/26"), ip_network("10.2.0.0/26"))),
            id="withdrawal",
        ),
        pytest.param(
            ENVELOPE6 % ("update", RECEIVE % WITHDRAWN6),
            Received(PEER6, (), (ip_network("2001:db8:2::/48"),)),
            id="IPv6 withdrawal",
        ),
        pytest.param(
            ENVELOPE6 % ("update", RECEIVE % BOTH_NEXT_HOPS % ("2001:db8::2", "fe80::2")),
            Received(PEER6, (Path(ip_network("2001:db8:2::/48"), PEER6, PEER6),)),
            id="a global next hop, then a link-local one (RFC 2545)",
        ),
        pytest.param(
            ENVELOPE6 % ("update", RECEIVE % BOTH_NEXT_HOPS % ("fe80::2", "2001:db8::2")),
            Received(PEER6, (Path(ip_network("2001:db8:2::/48"), PEER6, PEER6),)),
            id="the other way round",
        ),
        pytest.param(
            ENVELOPE % ("update", RECEIVE % '"eor": { "afi" : "ipv4", "safi" : "unicast" }'),
            EndOfRib(PEER, 4),
            id="the peer's End-of-RIB",
        ),
        pytest.param(
            ENVELOPE % ("update", SEND % '"eor": { "afi" : "ipv4", "safi" : "unicast" }'),
            EndOfRib(PEER, 4, ours=True),
            id="our End-of-RIB has left",
        ),
        pytest.param(
            ENVELOPE6 % ("update", RECEIVE % '"eor": { "afi" : "ipv6", "safi" : "unicast" }'),
            EndOfRib(PEER6, 6),
            id="the End-of-RIB of IPv6",
        ),
        pytest.param(
            ENVELOPE % ("update", RECEIVE % '"eor": { "afi" : "l2vpn", "safi" : "evpn" }'),
            None,
            id="the End-of-RIB of something else",
        ),
        pytest.param(ENVELOPE % ("update", SEND % ALL_ATTRIBUTES), Sent(PEER), id="our own update"),
        pytest.param(SHOWN, Neighbors(frozenset({Neighbor(PEER, "75c1ff")})), id="show neighbor json"),
        pytest.param("[]", Neighbors(frozenset()), id="show neighbor json, without any"),
        pytest.param(
            ENVELOPE
            % ("update", RECEIVE % WITHDRAWN.replace("10.1.0.64/26", "10.1.0.65/26").replace("10.2", "10.3")),
            Received(PEER, (), (ip_network("10.1.0.64/26"), ip_network("10.3.0.0/26"))),
            id="bits behind the length are irrelevant",
        ),
    ],
)
def test_parse(line: str, want: Heard | None) -> None:
    assert parse(line) == want


WITHOUT_NEXT_HOP = (
    '"update": { "attribute": { "origin": "igp" }, "announce": { "ipv4 unicast": { "no-nexthop": '
    '[ { "nlri": "192.0.2.0/24" }, { "nlri": "198.51.100.0/24" } ] } }, '
    '"withdraw": { "ipv4 unicast": [ { "nlri": "10.1.0.64/26" } ] } }'
)
NAMED = tuple(map(ip_network, ("192.0.2.0/24", "198.51.100.0/24", "10.1.0.64/26")))


@pytest.mark.parametrize(
    ("line", "peer", "withdrawn"),
    [
        pytest.param(
            ENVELOPE % ("update", RECEIVE % WITHOUT_NEXT_HOP), PEER, NAMED, id="an UPDATE without NEXT_HOP"
        ),
        pytest.param(
            ENVELOPE % ("update", RECEIVE % ALL_ATTRIBUTES.replace("incomplete", "9")),
            PEER,
            (ip_network("0.0.0.0/0"), ip_network("192.0.2.0/24")),
            id="an ORIGIN nobody knows",
        ),
        pytest.param(
            ENVELOPE % ("update", RECEIVE % WITHOUT_NEXT_HOP.replace("192.0.2.0/24", "?")),
            PEER,
            NAMED[1:],
            id="a prefix that is none spares the others",
        ),
        pytest.param(ENVELOPE % ("update", RECEIVE % '"update": []'), PEER, (), id="no update at all"),
        pytest.param(ENVELOPE % ("open", OPEN.replace('"1"', "1")), None, (), id="no JSON"),
        pytest.param(ENVELOPE % ("open", '"direction": "receive"'), PEER, (), id="an OPEN without its body"),
        pytest.param(ENVELOPE % ("state", '"state": "down"'), PEER, (), id="a state without its reason"),
        pytest.param('{ "neighbor": 7 }', None, (), id="another shape"),
        pytest.param("[7]", None, (), id="another list"),
        pytest.param("[", None, (), id="cut off"),
        pytest.param("[" * 100_000, None, (), id="nested beyond the recursion limit"),
    ],
)
def test_a_line_that_cannot_be_read_names_what_to_withdraw(
    line: str, peer: Address | None, withdrawn: tuple[Prefix, ...]
) -> None:
    heard = parse(line)
    assert isinstance(heard, Unreadable)
    assert (heard.peer, heard.withdrawn) == (peer, withdrawn)
    assert line[:40] in heard.why


FULL = Attributes(
    origin=Origin.EGP,
    as_path=(65001, 4200000001, 0, 7),
    as_sets=frozenset({9, 8}),
    med=0,
    local_pref=100,
    communities=("1:2", "3:4:5", "6:7"),
    originator_id=IPv4Address("9.9.9.9"),
    cluster_list=(IPv4Address("1.1.1.1"), IPv4Address("2.2.2.2")),
)
WRITTEN = (
    "origin egp as-path [ 65001 4200000001 ] ( 8 9 ) [ 7 ] med 0 local-preference 100 "
    "community [ 1:2 6:7 ] large-community [ 3:4:5 ] originator-id 9.9.9.9 cluster-list [ 1.1.1.1 2.2.2.2 ]"
)


def announce(*prefixes: str, via: str = "", attributes: Attributes | None = None) -> frozenset[Announcement]:
    next_hop = ip_address(via) if via else None
    return frozenset(Announcement(ip_network(p), next_hop, attributes or Attributes()) for p in prefixes)


@pytest.mark.parametrize(
    ("command", "want"),
    [
        pytest.param(
            Announce(PEER, announce("10.1.0.64/26", "10.1.0.0/26") | announce("10.2.0.0/26", via="10.0.0.7")),
            [
                "neighbor 10.0.0.2 announce attributes next-hop 10.0.0.7 nlri 10.2.0.0/26",
                "neighbor 10.0.0.2 announce attributes next-hop self nlri 10.1.0.0/26 10.1.0.64/26",
            ],
            id="a line for each next hop",
        ),
        pytest.param(
            Announce(PEER, announce("10.1.0.0/26", "10.2.0.0/26", attributes=FULL)),
            [f"neighbor 10.0.0.2 announce attributes next-hop self {WRITTEN} nlri 10.1.0.0/26 10.2.0.0/26"],
            id="every attribute, once for all that share them",
        ),
        pytest.param(
            Announce(PEER, announce("10.1.0.0/26", attributes=Attributes(as_path=()))),
            ["neighbor 10.0.0.2 announce attributes next-hop self nlri 10.1.0.0/26"],
            id="an empty AS path is ExaBGP's own",
        ),
        pytest.param(
            Announce(
                PEER,
                announce("10.1.0.0/26", via="10.0.0.7", attributes=Attributes(as_path=(1,)))
                | announce("10.2.0.0/26", attributes=Attributes(med=1))
                | announce("10.3.0.0/26"),
            ),
            [
                "neighbor 10.0.0.2 announce attributes next-hop self nlri 10.3.0.0/26",
                "neighbor 10.0.0.2 announce attributes next-hop self med 1 nlri 10.2.0.0/26",
                "neighbor 10.0.0.2 announce attributes next-hop 10.0.0.7 as-path [ 1 ] nlri 10.1.0.0/26",
            ],
            id="our own before what is passed on",
        ),
        pytest.param(
            Announce(PEER6, announce("2001:db8:1::/64", "10.1.0.0/26", via="2001:db8::1")),
            [
                "neighbor 2001:db8::2 announce attributes next-hop 2001:db8::1 nlri 10.1.0.0/26",
                "neighbor 2001:db8::2 announce attributes next-hop 2001:db8::1 nlri 2001:db8:1::/64",
            ],
            id="a line for each family",
        ),
        pytest.param(
            Withdraw(PEER6, frozenset(map(ip_network, ("2001:db8:1::/64", "10.1.0.0/26")))),
            [
                "neighbor 2001:db8::2 withdraw attributes next-hop self nlri 10.1.0.0/26",
                "neighbor 2001:db8::2 withdraw attributes next-hop self nlri 2001:db8:1::/64",
            ],
            id="withdraw",
        ),
        pytest.param(SendEndOfRib(PEER6, 4), ["neighbor 2001:db8::2 announce eor ipv4 unicast"], id="eor"),
        pytest.param(Teardown(PEER, 4), ["neighbor 10.0.0.2 teardown 4"], id="teardown"),
        pytest.param(Announce(PEER, frozenset()), [], id="nothing"),
    ],
)
def test_render(command: Command, want: list[str]) -> None:
    assert list(render(command)) == want


def test_a_thousand_prefixes_a_line() -> None:
    many = announce(*(f"10.{n >> 8}.{n & 255}.0/24" for n in range(2500)))
    lines = list(render(Announce(PEER, many)))
    assert [line.count("/24") for line in lines] == [1000, 1000, 500]
