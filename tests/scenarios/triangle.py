"""A lab for what needs routes that move: three routers in a triangle, FRR and BIRD, and a host at two of them.

h1 ─ r1 (FRR) ─── r2 (FRR) ─ h2
         └─ r3 (BIRD) ─┘
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path

from fabric.lab import routers
from fabric.lab.lab import Lab
from tests.scenarios.labs import until

FRR = """\
router bgp {number}
 no bgp ebgp-requires-policy
 no bgp network import-check
 bgp router-id {router}
{neighbours} address-family ipv4 unicast
  network {prefix}
"""
NEIGHBOUR = """\
 neighbor {peer} remote-as {number}
 neighbor {peer} timers 1 3
 neighbor {peer} timers connect 1
"""
BIRD = """\
router id 10.0.0.3;
protocol device { scan time 1; }
protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }
template bgp PEER {
  local as 65003; hold time 3; keepalive time 1; connect delay time 1; error wait time 1, 2;
  ipv4 { import all; export where source = RTS_BGP; next hop self; };
}
protocol bgp r1 from PEER { neighbor 10.0.13.1 as 65001; }
protocol bgp r2 from PEER { neighbor 10.0.23.1 as 65002; }
"""
TOPOLOGY = """\
name: {name}
topology:
  defaults: {{kind: linux, image: alpine, network-mode: none}}
  nodes:
    r1:
      image: frrouting/frr:v8.4.1
      binds: ["daemons:/etc/frr/daemons", "r1.conf:/etc/frr/frr.conf"]
      exec:
        - sysctl -qw net.ipv4.ip_forward=1
        - ip address add 10.0.12.1/30 dev r2
        - ip address add 10.0.13.1/30 dev r3
        - ip address add 10.1.0.1/24 dev h1
    r2:
      image: frrouting/frr:v8.4.1
      binds: ["daemons:/etc/frr/daemons", "r2.conf:/etc/frr/frr.conf"]
      exec:
        - sysctl -qw net.ipv4.ip_forward=1
        - ip address add 10.0.12.2/30 dev r1
        - ip address add 10.0.23.1/30 dev r3
        - ip address add 10.2.0.1/24 dev h2
    r3:
      image: pierky/bird:2.15
      binds: ["r3.conf:/etc/bird/bird.conf"]
      exec:
        - sysctl -qw net.ipv4.ip_forward=1
        - ip address add 10.0.13.2/30 dev r1
        - ip address add 10.0.23.2/30 dev r2
    h1: {{exec: [ip address add 10.1.0.2/24 dev eth1, ip route add default via 10.1.0.1]}}
    h2: {{exec: [ip address add 10.2.0.2/24 dev eth1, ip route add default via 10.2.0.1]}}
  links:
    - endpoints: ["r1:r2", "r2:r1"]
    - endpoints: ["r1:r3", "r3:r1"]
    - endpoints: ["r2:r3", "r3:r2"]
    - endpoints: ["r1:h1", "h1:eth1"]
    - endpoints: ["r2:h2", "h2:eth1"]
"""
DIRECT = "r1:r2-r2:r1"  # the link between the routers that have a host
P1, P2 = ip_network("10.1.0.0/24"), ip_network("10.2.0.0/24")


@contextmanager
def up(folder: Path, name: str) -> Iterator[Lab]:
    """Bring it up, converged; `folder` gets its files."""
    (folder / "daemons").write_text("bgpd=yes\n")
    for router, number, peers, prefix in (
        ("r1", 65001, {"10.0.12.2": 65002, "10.0.13.2": 65003}, P1),
        ("r2", 65002, {"10.0.12.1": 65001, "10.0.23.2": 65003}, P2),
    ):
        neighbours = "".join(NEIGHBOUR.format(peer=peer, number=number) for peer, number in peers.items())
        config = FRR.format(number=number, router=f"10.0.0.{router[1]}", neighbours=neighbours, prefix=prefix)
        (folder / f"{router}.conf").write_text(config)
    (folder / "r3.conf").write_text(BIRD)
    file = folder / "triangle.clab.yml"
    file.write_text(TOPOLOGY.format(name=name))
    with Lab.load(file) as lab:
        until(lambda: converged(lab))
        yield lab


def converged(lab: Lab) -> bool:
    """Whether every router goes the shortest way, and has the other one to fall back on."""
    routes = [routers.kernel_table(lab, router) for router in ("r1", "r2", "r3")]
    established = [s.established for router in ("r1", "r2", "r3") for s in routers.sessions(lab, router)]
    return established == [True] * 6 and (
        (routes[0].get(P2), routes[1].get(P1)) == (one_way("10.0.12.2"), one_way("10.0.12.1"))
        and (routes[2].get(P1), routes[2].get(P2)) == (one_way("10.0.13.1"), one_way("10.0.23.1"))
    )


def one_way(next_hop: str) -> frozenset[str]:
    return frozenset({next_hop})
