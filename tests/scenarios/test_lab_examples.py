"""Topologies in the shape of containerlab's public examples, as their authors write them, come up and do their work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from fabric.lab.lab import Lab
from tests.scenarios.labs import until

TRIANGLE = {
    1: (("eth1", 12, 1), ("eth2", 13, 1)),
    2: (("eth1", 12, 2), ("eth2", 23, 1)),
    3: (("eth1", 13, 2), ("eth2", 23, 2)),
}

# What a triangle's links and PCs are in both forms; a PC's default route is on the management network.
ENDS = """
{pcs}
  links:
    - endpoints: ["router1:eth1", "router2:eth1"]
    - endpoints: ["router1:eth2", "router3:eth1"]
    - endpoints: ["router2:eth2", "router3:eth2"]
    - endpoints: ["PC1:eth1", "router1:eth3"]
    - endpoints: ["PC2:eth1", "router2:eth3"]
    - endpoints: ["PC3:eth1", "router3:eth3"]
"""
PC = """\
    PC{n}:
      kind: linux
      image: praqma/network-multitool:latest
      exec:
        - ip address add 192.168.{n}0.2/24 dev eth1
        - ip route add 192.168.0.0/16 via 192.168.{n}0.1
"""
LINUX = """\
topology:
  nodes:
    router1:
      kind: linux
      image: frrouting/frr:v8.4.1
      binds: [router1/daemons:/etc/frr/daemons, router1/frr.conf:/etc/frr/frr.conf]
    router2:
      kind: linux
      image: quay.io/frrouting/frr:8.4.1
      binds: [router2/daemons:/etc/frr/daemons, router2/frr.conf:/etc/frr/frr.conf]
    router3:
      kind: linux
      image: docker.io/frrouting/frr:latest
      binds: [router3:/etc/frr]
"""
FRR = """\
mgmt: {network: ospf, ipv4-subnet: 172.100.100.0/24}
topology:
  kinds:
    frr: {image: quay.io/frrouting/frr:10.4.1}
  groups:
    routers:
      startup-config: __clabNodeName__/frr.conf
      extras: {frr: {daemons: [ospfd]}}
  nodes:
    router1: {kind: frr, group: routers}
    router2: {kind: frr, group: routers}
    router3: {kind: frr, group: routers, mgmt-ipv4: 172.100.100.33}
"""
DAEMONS = """\
zebra=yes
bgpd=no
ospfd=yes
ospfd_options="   -A 127.0.0.1"
vtysh_enable=yes
zebra_options=" -s 90000000 --daemon -A 127.0.0.1"
"""


def config(n: int) -> str:
    """Return the configuration of router `n`; its timers find neighbours, and their absence, in seconds."""
    lines = ["frr defaults traditional", f"hostname router{n}", "service integrated-vtysh-config", "!"]
    for interface, net, host in TRIANGLE[n]:
        lines += [
            f"interface {interface}",
            f" ip address 10.0.{net}.{host}/30",
            " ip ospf network point-to-point",
        ]
        lines += [" ip ospf hello-interval 1", " ip ospf dead-interval 4", "!"]
    lines += [
        "interface eth3",
        f" ip address 192.168.{n}0.1/24",
        "!",
        "router ospf",
        f" ospf router-id 1.1.1.{n}",
    ]
    lines += [" passive-interface eth3", " timers throttle spf 10 50 500", " timers throttle lsa all 0"]
    lines += [" timers lsa min-arrival 0"]
    lines += [f" network {net} area 0" for net in ("10.0.0.0/8", f"192.168.{n}0.0/24")]
    return "\n".join([*lines, "!", "line vty", ""])


@pytest.fixture
def up(tmp_path: Path, name: str) -> Iterator[Callable[[str], Lab]]:
    """Bring up a topology that has no name yet; it goes down at the end."""
    file = tmp_path / "test.clab.yml"
    labs: list[Lab] = []

    def up(body: str) -> Lab:
        file.write_text(f"name: {name}\n{body}")
        lab = Lab.load(file)
        labs.append(lab)
        lab.up()
        return lab

    yield up
    for lab in labs:
        lab.down()


def answers(lab: Lab, node: str, address: str) -> bool:
    return lab.exec(node, ["ping", "-nc1", "-W1", address], check=False).returncode == 0


@pytest.mark.parametrize("form", [LINUX, FRR], ids=["kind linux", "kind frr"])
def test_three_routers_in_a_triangle_reach_what_is_behind_each_other(
    form: str, up: Callable[[str], Lab], tmp_path: Path
) -> None:
    for n in TRIANGLE:
        (tmp_path / f"router{n}").mkdir()
        (tmp_path / f"router{n}/daemons").write_text(DAEMONS)
        (tmp_path / f"router{n}/frr.conf").write_text(config(n))
    lab = up(form + ENDS.format(pcs="".join(PC.format(n=n) for n in TRIANGLE)))
    for here, there in ((1, 2), (2, 3), (3, 1)):
        until(partial(answers, lab, f"PC{here}", f"192.168.{there}0.2"))
    # Straight, not round through the third, nor on the management network.
    route = ["ip", "route", "get", "192.168.20.2"]
    until(lambda: "via 10.0.12.2 " in lab.exec("router1", route).stdout)


def test_two_shells_with_a_link(up: Callable[[str], Lab]) -> None:
    lab = up("""\
topology:
  defaults: {kind: linux, image: "alpine:3"}
  nodes:
    n1:
      cmd: ash -c "ip link set eth1 up && ip addr add 10.10.10.1/24 dev eth1 && sleep infinity"
    n2:
      cmd: ash
      exec: [ash -c 'ip addr add 10.10.10.2/24 dev eth1 && echo $$0 ready']
  links: [endpoints: ["n1:eth1", "n2:eth1"]]
""")
    lab.exec("n2", ["ping", "-nc1", "-W5", "10.10.10.1"])
    assert lab.exec("n2", ["ash", "-c", "echo here"]).stdout == "here\n"
    assert "ash ready" in lab.log("n2").read_text()


def test_servers_that_come_up_one_after_the_other(up: Callable[[str], Lab], tmp_path: Path) -> None:
    (tmp_path / "order").mkdir()
    lab = up("""\
prefix: __lab-name
topology:
  defaults: {kind: linux, image: "debian:bookworm-slim", binds: ["order:/srv/order"]}
  nodes:
    last:
      exec: [bash -c "ls /srv/order >/srv/order/last"]
      stages: {create: {wait-for: [{node: middle, stage: healthy}]}}
    middle:
      exec: [bash -c "ls /srv/order >/srv/order/middle"]
      stages:
        create: {wait-for: [{node: first, stage: configure}]}
        configure: {wait-for: [{node: setup, stage: exit}]}
    first:
      startup-delay: 1
      exec: [bash -c "ls /srv/order >/srv/order/first"]
    setup:
      cmd: bash -c "until [ -e /srv/order/first ]; do sleep 0.1; done; touch /srv/order/setup"
      restart-policy: "no"
""")
    assert (tmp_path / "order/first").read_text().split() == ["first"]
    assert (tmp_path / "order/middle").read_text().split() == ["first", "middle", "setup"]
    assert (tmp_path / "order/last").read_text().split() == ["first", "last", "middle", "setup"]
    lab.exec("last", ["ping", "-nc1", "-W5", f"{lab.name}-first"])


def test_a_tool_in_the_network_of_a_router(up: Callable[[str], Lab]) -> None:
    lab = up("""\
topology:
  nodes:
    router:
      kind: linux
      image: frrouting/frr:v8.4.1
      network-mode: none
      exec: [ip addr add 192.0.2.1/30 dev eth1]
    tool:
      kind: linux
      image: nicolaka/netshoot:latest
      network-mode: container:router
    peer:
      kind: linux
      image: alpine
      network-mode: none
      exec: [ip addr add 192.0.2.2/30 dev eth1]
  links:
    - endpoints: ["router:eth1", "peer:eth1"]
""")
    lab.exec("tool", ["ping", "-nc1", "-W5", "192.0.2.2"])
    assert lab.exec("tool", ["ls", "/sys/class/net"]).stdout.split() == ["eth1", "lo"]
