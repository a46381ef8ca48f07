from dataclasses import replace
from ipaddress import IPv4Address, ip_address

from bgp.rib import SessionSpec
from bgp.speaker.exabgp_config import render

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
)
GOLDEN = """\
process speaker {
  run /usr/bin/python3 pump.py /run/pump.sock;
  encoder json;
}

neighbor 10.0.0.2 {
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
  router-id 10.0.0.1;
  local-address 2001:db8::1;
  local-as 65001;
  peer-as 4200000001;
  hold-time 30;
  listen 179;
  connect 1790;
  passive true;
  manual-eor true;
  adj-rib-in false;
  family { ipv6 unicast; }
  capability { asn4; route-refresh; graceful-restart 60; }
  api {
    processes [ speaker ];
    neighbor-changes;
    receive { parsed; open; update; }
    send { parsed; update; }
  }
}
"""
PUMP = "/usr/bin/python3 pump.py /run/pump.sock"


def test_the_file_is_the_golden_one_in_whatever_order_the_sessions_come() -> None:
    assert render([V6, V4], PUMP) == render([V4, V6], PUMP) == GOLDEN


def test_the_order_is_by_number_so_that_a_reload_of_the_same_set_changes_nothing() -> None:
    tenth = replace(V4, peer=ip_address("10.0.0.10"))
    text = render([tenth, V4], PUMP)
    assert text.index("neighbor 10.0.0.2 ") < text.index("neighbor 10.0.0.10 ")
    assert text.isascii()
