"""What policy renders, in a kernel: every rule is taken, in both families and backends; and what no evaluator says.

That evaluator and kernel agree otherwise is in test_policy_kernel.py.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Self

import pytest

from fabric.agent.compose import Composed, compose
from fabric.plan.tables import Backend, Held, Version, plan
from policy import render_sets
from policy.form import Site
from policy.render import render
from policy.world import World
from tests.contract.netns import Namespace
from tests.unit.rendering import SITE, site, world

GOLDEN = Path(__file__).parents[1] / "unit" / "golden" / "policy"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.yaml") if path.stem != "base")
BACKENDS: tuple[Backend, ...] = ("nft", "legacy")
FAMILY: dict[Version, str] = {4: "inet", 6: "inet6"}
TOOL: dict[Version, str] = {4: "iptables", 6: "ip6tables"}


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace() as namespace:
        yield namespace


def command(host: Namespace, words: list[str], text: str = "") -> str:
    done = host.call(
        lambda: subprocess.run(words, input=text, capture_output=True, text=True, timeout=60, check=False)
    )
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}{text}"
    return done.stdout


def load(host: Namespace, backend: Backend, version: Version, found: Composed) -> None:
    """Put it all into a kernel that has nothing of ours yet."""
    lines = [f"create {name} {one.kind} family {FAMILY[version]}" for name, one in found.sets.items()]
    lines += [f"add {name} {member}" for name, one in found.sets.items() for member in one.members]
    command(host, ["ipset", "restore"], "\n".join([*lines, ""]))
    assert set(command(host, ["ipset", "save"]).splitlines()).issuperset(lines[len(found.sets) :])
    text = plan(found.rulesets[version], Held()).text
    restore = [f"{TOOL[version]}-{backend}-restore", "-w", "--noflush"]
    command(host, [*restore, "--test"], text)
    command(host, restore, text)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("version", FAMILY)
@pytest.mark.parametrize("name", NAMES)
def test_the_kernel_takes_the_rules_and_sets(
    name: str, version: Version, backend: Backend, host: Namespace
) -> None:
    of = world(*((GOLDEN / f"{file}.yaml").read_text() for file in ("base", name)))
    other = site(to_host="Return", routed_before=False, vxlan_from_workloads=True)
    found = compose([render(of, other if name == "nothing" else SITE, version)])
    load(host, backend, version, found)
    saved = command(host, [f"{TOOL[version]}-{backend}-save"])
    chains = (found.chains[version], found.hooks[version])
    wanted = sum(len(lines) for places in chains for lines in places.values())
    assert sum(line.startswith("-A") for line in saved.splitlines()) == wanted


def test_any_number_of_workloads_may_send_from_the_same_prefix(host: Namespace) -> None:
    """The kernel has room for some 60 links of one prefix in a set."""
    workload = """
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {{name: n1-fabricctl-w{0}-eth0, namespace: prod}}
spec: {{orchestrator: fabricctl, workload: w{0}, node: n1, endpoint: eth0, interfaceName: fab{0:012x},
  ipNetworks: [10.0.0.{0}/32], allowSpoofedSourcePrefixes: [0.0.0.0/0]}}
"""
    found = compose([render(world("---".join(workload.format(n) for n in range(1, 150))), SITE, 4)])
    assert {"fab4-own", "fab4-own-1", "fab4-own-2"} <= found.sets.keys()
    load(host, "nft", 4, found)


class Crossing:
    """The node n1 between two neighbours: a, behind eth0, and b, behind eth1, which listens at 80 and 81."""

    def __enter__(self) -> Self:
        with ExitStack() as owned:
            self.n1, self.a, self.b = (owned.enter_context(Namespace()) for _ in range(3))
            self.n1.command("sysctl", "-qw", "net.ipv4.ip_forward=1")
            for name, peer, net in (("eth0", self.a, "192.0.2"), ("eth1", self.b, "198.51.100")):
                self.n1.ip("link", "add", name, "type", "veth", "peer", "eth0", "netns", peer.path)
                self.n1.ip("address", "add", f"{net}.13/24", "dev", name)
                self.n1.ip("link", "set", name, "up")
                peer.ip("address", "add", f"{net}.2/24", "dev", "eth0")
                peer.ip("link", "set", "eth0", "up")
                peer.ip("route", "add", "default", "via", f"{net}.13")
            for listening in (("0.0.0.0", 80), ("0.0.0.0", 81)):
                listener = self.b.call(partial(socket.create_server, listening))
                owned.callback(listener.close)
            self._owned = owned.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._owned.close()

    def load(self, backend: Backend, of: World, at: Site = SITE) -> None:
        load(self.n1, backend, 4, compose([render(of, at, 4)]))

    def dnat(self, backend: Backend, chain: str, port: int, to: str) -> None:
        """Have what goes to this port, of whatever address, go elsewhere."""
        rule = ["-A", chain, "-p", "tcp", "--dport", str(port), "-j", "DNAT", "--to", to]
        self.n1.command(f"iptables-{backend}", "-w", "-t", "nat", *rule)


@pytest.fixture
def crossing() -> Iterator[Crossing]:
    with Crossing() as found:
        yield found


def connects(space: Namespace, address: str, port: int) -> bool:
    def attempt() -> bool:
        try:
            socket.create_connection((address, port), timeout=0.5).close()
        except TimeoutError:
            return False
        return True

    return space.call(attempt)


def policy(spec: str) -> str:
    return f"""
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {{name: n1-a, labels: {{link: a}}}}
spec: {{node: n1, interfaceName: eth0, profiles: [projectcalico-default-allow]}}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {{name: n1-b, labels: {{link: b}}}}
spec: {{node: n1, interfaceName: eth1, profiles: [projectcalico-default-allow]}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {{name: tested}}
spec: {spec}
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_the_host_sends_is_asked_of_the_link_that_dnat_turns_it_to(
    backend: Backend, crossing: Crossing
) -> None:
    for port, to in ((8080, 80), (8081, 81)):
        crossing.dnat(backend, "OUTPUT", port, f"198.51.100.2:{to}")
    spec = """
  selector: has(link)
  types: [Egress]
  egress: [{action: Deny, protocol: TCP, destination: {ports: [80, 8081]}}, {action: Allow}]"""
    crossing.load(backend, world(policy(spec)))
    assert not connects(crossing.n1, "192.0.2.2", 8080)  # it goes to port 80
    assert connects(crossing.n1, "192.0.2.2", 8081)  # to 81


@pytest.mark.parametrize("backend", BACKENDS)
def test_policy_before_dnat_sees_where_a_packet_was_sent_to(backend: Backend, crossing: Crossing) -> None:
    for port in (8080, 8081):
        crossing.dnat(backend, "PREROUTING", port, "198.51.100.2:80")
    spec = """
  selector: link == 'a'
  preDNAT: true
  applyOnForward: true
  types: [Ingress]
  ingress: [{action: Deny, protocol: TCP, destination: {ports: [8080]}}]"""
    crossing.load(backend, world(policy(spec)))
    assert not connects(crossing.a, "192.0.2.13", 8080)
    assert connects(crossing.a, "192.0.2.13", 8081)


B = ip_network("198.51.100.0/24")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("at", "passes"),
    [
        pytest.param(site(routed_before=True), True, id="a router before"),
        pytest.param(site(routed_before=False), False, id="no router before"),
        pytest.param(site(routed_before=False, pools=frozenset({B})), True, id="to a pool"),
    ],
)
def test_the_host_becomes_no_router_between_its_own_links(
    at: Site, passes: bool, backend: Backend, crossing: Crossing
) -> None:
    crossing.load(backend, world(), at)
    assert connects(crossing.a, "198.51.100.2", 80) == passes


def test_frames_of_a_bridge_are_none_of_ours(host: Namespace) -> None:
    """A bridge shows its frames to iptables where it is told to: they are not routed."""
    host.command("sysctl", "-qw", "net.ipv4.ip_forward=1")
    with Namespace() as a, Namespace() as b:
        host.ip("link", "add", "br0", "type", "bridge")
        host.ip("link", "set", "br0", "up")
        for number, space in enumerate((a, b), 1):
            host.ip("link", "add", f"p{number}", "type", "veth", "peer", "eth0", "netns", space.path)
            host.ip("link", "set", f"p{number}", "master", "br0", "up")
            space.ip("address", "add", f"192.0.2.{number}/24", "dev", "eth0")
            space.ip("link", "set", "eth0", "up")
        host.command("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
        links = {"br0": frozenset({ip_address("192.0.2.13")})}
        load(host, "nft", 4, compose([render(world(), site(routed_before=False, links=links), 4)]))
        with b.call(lambda: socket.create_server(("0.0.0.0", 80))):
            assert connects(a, "192.0.2.2", 80)


def test_an_allowed_source_holds_where_another_link_has_a_longer_prefix_around_it(host: Namespace) -> None:
    found = render_sets.linked(4, ["10.0.0.0/24,fab1", "10.0.0.5,fab2", "10.0.0.0/8,fab3"])
    names = [f"fab4-own-{number}" for number in range(len(found))]
    lines = [f"create {name} hash:net,iface" for name in names]
    lines += [f"add {name} {pair}" for name, one in zip(names, found, strict=True) for pair in one.members]
    command(host, ["ipset", "restore"], "\n".join([*lines, ""]))

    def holds(pair: str) -> bool:
        tests = [["ipset", "--quiet", "test", name, pair] for name in names]
        done = host.call(lambda: [subprocess.run(words, timeout=60, check=False) for words in tests])
        return any(one.returncode == 0 for one in done)

    assert all(map(holds, ("10.0.0.5,fab1", "10.0.0.5,fab2", "10.0.0.5,fab3", "10.0.0.6,fab1")))
    assert not any(map(holds, ("10.0.0.6,fab2", "10.0.1.1,fab1", "11.0.0.1,fab3", "10.0.0.5,fab4")))
