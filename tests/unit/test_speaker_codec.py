from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from bgp.rib import (
    Announcement,
    Attributes,
    Notification,
    Origin,
    Path,
    SessionSpec,
    SessionState,
    SessionStatus,
    Traffic,
)
from bgp.speaker.codec import Message, decode, encode
from bgp.speaker.rewanted import difference
from bgp.speaker.seam import Counted, Reset, SessionChanged, SessionGone, Snapshot, Update, Wanted
from fabric.errors import SpeakerError

PEER, PEER6 = ip_address("10.0.0.2"), ip_address("2001:db8::2")
ROUTER_ID = IPv4Address("10.0.0.1")
PLAIN = Path(ip_network("192.0.2.0/24"), PEER, PEER)
FULL = Path(
    prefix=ip_network("2001:db8:5::/48"),
    next_hop=PEER6,
    peer=PEER6,
    origin=Origin.EGP,
    as_path=(1, 0, 4200000001),
    as_sets=frozenset({7, 8}),
    med=0,
    local_pref=4294967295,
    communities=("1:2", "1:2:3"),
    originator_id=IPv4Address("9.9.9.9"),
    cluster_list=(IPv4Address("1.1.1.1"),),
)
UP = SessionStatus(SessionState.ESTABLISHED, 1795236074.25, synced=True)
DOWN = SessionStatus(SessionState.CONNECT, 0.0, 'a "quoted" reason\n', 3)
IDLE = SessionStatus(
    state=SessionState.IDLE,
    since=1.5,
    peer_id=IPv4Address("10.0.0.2"),
    notification=Notification(6, 1, True, 1.5),
    idle_until=901.5,
)
RICH = Attributes(
    origin=Origin.INCOMPLETE,
    as_path=(1, 0, 4200000001),
    as_sets=frozenset({7, 8}),
    med=0,
    local_pref=4294967295,
    communities=("1:2", "1:2:3"),
    originator_id=IPv4Address("9.9.9.9"),
    cluster_list=(IPv4Address("1.1.1.1"),),
)
WANTED = Wanted(
    frozenset(
        {
            SessionSpec(PEER, 65002, ip_address("10.0.0.1"), 65001, ROUTER_ID),
            SessionSpec(
                PEER6,
                1,
                ip_address("2001:db8::1"),
                2,
                ROUTER_ID,
                port=1790,
                passive=True,
                hold_time=30,
                restart_time=60,
                listen_port=1791,
                ttl_security=1,
                password='a "key"',
                extended_next_hop=True,
            ),
        }
    ),
    {
        PEER: frozenset(
            {Announcement(ip_network("10.1.0.0/26")), Announcement(ip_network("10.2.0.0/26"), PEER)}
        ),
        PEER6: frozenset({Announcement(ip_network("2001:db8::/64"), None, RICH)}),
    },
    {PEER: 10_000},
)


@pytest.mark.parametrize(
    "message",
    [
        Wanted(),
        WANTED,
        difference(Wanted(), WANTED),
        difference(WANTED, Wanted()),
        Snapshot(),
        Snapshot(
            {PEER: UP, PEER6: DOWN},
            {PEER: frozenset({PLAIN}), PEER6: frozenset({FULL})},
            WANTED,
            {PEER: Traffic(3, 4)},
        ),
        SessionChanged(PEER6, DOWN),
        SessionChanged(PEER, IDLE),
        Counted(PEER, Traffic(1, 2)),
        Reset(PEER, 2),
        SessionGone(PEER),
        Update(PEER, (PLAIN,)),
        Update(PEER6, (FULL,), (ip_network("::/0"),)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_decode_is_the_inverse_of_encode(message: Message) -> None:
    line = encode(message)
    assert decode(line) == message
    assert line.count(b"\n") == 1
    assert encode(decode(line)) == line


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (b'"peer":"2001:db8::2"', b'"peer":"2001:db8::2%a; } neighbor 192.0.2.9 {"'),
        (b'"peer":"10.0.0.2"', b'"peer":167772162'),
        (b'"source":"2001:db8::1"', b'"source":"fe80::1%eth0"'),
        (b'"router_id":"10.0.0.1"', b'"router_id":1'),
        (b'"peer_as":1,', b'"peer_as":"1; passive true",'),
        (b'"10.1.0.0/26"', b'"fd00::%a/64"'),
        (b'["10.0.0.2","igp"', b'["fe80::1%a","igp"'),
        (b'"1:2:3"', b'"1:2:3 ] nlri"'),
        (b'"1:2:3"', b'"no-export"'),
        (b"[1,0,4200000001]", b'["1",0,4200000001]'),
        (b'"listen_port":1791', b'"listen_port":"1791; passive false"'),
    ],
)
def test_nothing_but_addresses_and_numbers_reaches_exabgp(good: bytes, bad: bytes) -> None:
    line = encode(WANTED)
    assert good in line
    with pytest.raises(SpeakerError, match="is not a"):
        decode(line.replace(good, bad))


@pytest.mark.parametrize(
    "line", [b"", b"{}\n", b"[]\n", b'{"type":"other"}\n', b'{"type":"gone","peer":"x"}\n', b"\xff\n"]
)
def test_a_stranger_s_line_is_refused_with_what_to_do(line: bytes) -> None:
    with pytest.raises(SpeakerError, match="restart the older one"):
        decode(line)
