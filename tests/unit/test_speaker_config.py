from dataclasses import fields, replace
from ipaddress import IPv4Address, ip_address

from bgp.rib import SessionSpec
from bgp.speaker.exabgp_config import fingerprint, render

V4 = SessionSpec(ip_address("10.0.0.2"), 65002, ip_address("10.0.0.1"), 65001, IPv4Address("10.0.0.1"))
V6 = SessionSpec(
    peer=ip_address("2001:db8::2"),
    peer_as=4200000001,
    source=ip_address("2001:db8::1"),
    local_as=65001,
    router_id=IPv4Address("10.0.0.1"),
    port=1790,
    passive=True,
    hold_time=30,
    restart_time=60,
    listen_port=1791,
    ttl_security=2,
    password='a "key"; }',
    extended_next_hop=True,
)
GOLDEN = """\
process speaker {
  run /usr/bin/python3 pump.py /run/pump.sock;
  encoder json;
}

neighbor 10.0.0.2 {
  description FINGERPRINT4;
  router-id 10.0.0.1;
  local-address 10.0.0.1;
  local-as 65001;
  peer-as 65002;
  hold-time 90;
  listen 179;
  connect 179;
  passive false;
  manual-eor true;
  adj-rib-in false;
  family { ipv4 unicast; }
  capability { asn4; route-refresh; graceful-restart 120; }
  api {
    processes [ speaker ];
    neighbor-changes;
    receive { parsed; open; update; }
    send { parsed; update; }
  }
}

neighbor 2001:db8::2 {
  description FINGERPRINT6;
  router-id 10.0.0.1;
  local-address 2001:db8::1;
  local-as 65001;
  peer-as 4200000001;
  hold-time 30;
  listen 1791;
  connect 1790;
  passive true;
  manual-eor true;
  adj-rib-in false;
  family { ipv4 unicast; ipv6 unicast; }
  md5-password YSAia2V5IjsgfQ==;
  md5-base64 true;
  incoming-ttl 254;
  outgoing-ttl 255;
  nexthop { ipv4 unicast ipv6; }
  capability { asn4; route-refresh; graceful-restart 60; nexthop; }
  api {
    processes [ speaker ];
    neighbor-changes;
    receive { parsed; open; update; }
    send { parsed; update; }
  }
}
""".replace("FINGERPRINT4", fingerprint(V4)).replace("FINGERPRINT6", fingerprint(V6))
PUMP = "/usr/bin/python3 pump.py /run/pump.sock"


def test_the_file_is_the_golden_one_in_whatever_order_the_sessions_come() -> None:
    assert render([V6, V4], PUMP) == render([V4, V6], PUMP) == GOLDEN


def test_the_order_is_by_number_so_that_a_reload_of_the_same_set_changes_nothing() -> None:
    tenth = replace(V4, peer=ip_address("10.0.0.10"))
    text = render([tenth, V4], PUMP)
    assert text.index("neighbor 10.0.0.2 ") < text.index("neighbor 10.0.0.10 ")
    assert text.isascii()


def test_each_setting_has_its_part_in_the_fingerprint() -> None:
    others = [
        replace(V4, peer_as=1),
        replace(V4, source=ip_address("10.0.0.9")),
        replace(V4, local_as=1),
        replace(V4, router_id=IPv4Address("10.0.0.9")),
        replace(V4, port=1),
        replace(V4, passive=True),
        replace(V4, hold_time=30),
        replace(V4, restart_time=30),
        replace(V4, listen_port=1),
        replace(V4, ttl_security=1),
        replace(V4, password="x"),
        replace(V4, extended_next_hop=True),
    ]
    assert len(others) == len(fields(V4)) - 1, "all but the peer's address"
    assert len({fingerprint(spec) for spec in [V4, *others]}) == len(others) + 1
