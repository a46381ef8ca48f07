"""The management network, published ports, links to the host, shared namespaces: what leaves a node but is no link."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fabric.errors import LabError, Taken
from fabric.lab.lab import Lab
from tests.scenarios.labs import until

# Echoes whatever arrives, over UDP or TCP.
ECHO = """\
import socket, socketserver, sys
class TCP(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536): self.request.sendall(data)
class UDP(socketserver.BaseRequestHandler):
    def handle(self): self.request[1].sendto(self.request[0], self.client_address)
kind, handler = (socketserver.ThreadingTCPServer, TCP) if sys.argv[1] == "tcp" else (socketserver.UDPServer, UDP)
kind(("0.0.0.0", int(sys.argv[2])), handler).serve_forever()
"""


@pytest.fixture
def topology(tmp_path: Path, name: str) -> Iterator[Callable[[str], Path]]:
    """Write a topology whose nodes are on the management network."""
    file = tmp_path / "test.clab.yml"

    def write(body: str) -> Path:
        file.write_text(f"name: {name}\n{body}")
        return file

    yield write
    if file.exists():
        Lab.load(file).down()


TWO = (
    "topology:\n  defaults: {kind: linux, image: alpine}\n  nodes:\n    a:\n    b: {mgmt-ipv4: 172.20.20.9}\n"
)


def host_links() -> str:
    return subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_nodes_know_and_reach_each_other_by_name_and_the_host_has_nothing_of_it(
    topology: Callable[[str], Path], name: str
) -> None:
    before = host_links()
    with Lab.load(topology(TWO)) as lab:
        assert host_links() == before
        for target in ("b", f"clab-{name}-b", "172.20.20.9", "172.20.20.1", "3fff:172:20:20::1"):
            lab.exec("a", ["ping", "-nc1", "-W5", target])
        assert "default via 172.20.20.1 dev eth0" in lab.exec("a", ["ip", "route"]).stdout
        assert "default via 3fff:172:20:20::1 dev eth0" in lab.exec("a", ["ip", "-6", "route"]).stdout
        assert [state.addresses for state in lab.inspect()] == [
            ("172.20.20.2", "3fff:172:20:20::2"),
            ("172.20.20.9", "3fff:172:20:20::3"),
        ]


def test_two_labs_with_the_same_management_network_do_not_meet(
    topology: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    other = tmp_path / "other.clab.yml"
    other.write_text(f"name: {name}-2\n{TWO}")
    with Lab.load(topology(TWO)) as first, Lab.load(other) as second:
        second.exec("b", ["ip", "address", "del", "172.20.20.9/24", "dev", "eth0"])
        first.exec("a", ["ping", "-nc1", "-W5", "172.20.20.9"])
        assert second.exec("a", ["ping", "-nc1", "-W1", "172.20.20.9"], check=False).returncode


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_published_port_is_reached_on_the_host_and_free_again_after(
    protocol: str, topology: Callable[[str], Path], tmp_path: Path
) -> None:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    port = free_port(kind)
    (tmp_path / "echo.py").write_text(ECHO)
    body = f"{TWO}    c: {{ports: ['127.0.0.1:{port}:7/{protocol}'], binds: ['echo.py:/run/echo.py']}}\n"
    with Lab.load(topology(body)) as lab:
        command = [sys.executable, "-I", "/run/echo.py", protocol, "7"]
        with lab.popen("c", command) as server:
            until(lambda: lab.exec("c", ["ss", "-Hlntu", "sport = :7"]).stdout)
            for payload in (b"one", b"two" * 1000):
                with socket.socket(socket.AF_INET, kind) as client:
                    client.settimeout(5)
                    client.connect(("127.0.0.1", port))
                    client.sendall(payload)
                    got = b""
                    while len(got) < len(payload):
                        got += client.recv(65536)
                    assert got == payload
            server.kill()
        with pytest.raises(
            Taken, match=f"node c: port {port}/{protocol} of the host: Address already in use"
        ):
            Lab.load(lab.file, name=f"{lab.name}-2").up()
    with closing(socket.socket(socket.AF_INET, kind)) as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_a_link_to_the_host_stands_in_its_namespace_only_while_the_lab_does(
    topology: Callable[[str], Path],
) -> None:
    body = TWO + "  links:\n    - endpoints: ['a:eth1', 'host:labtest0']\n"
    with Lab.load(topology(body)) as lab:
        assert "labtest0" in host_links()
        lab.exec("a", ["ip", "address", "add", "198.51.100.1/30", "dev", "eth1"])
        subprocess.run(["ip", "address", "add", "198.51.100.2/30", "dev", "labtest0"], check=True)
        subprocess.run(["ping", "-nc1", "-W5", "198.51.100.1"], check=True, capture_output=True)
        with pytest.raises(Taken, match="the host has an interface labtest0 already"):
            Lab.load(lab.file, name=f"{lab.name}-2").up()
    assert "labtest0" not in host_links()


def test_a_link_to_the_management_network_is_a_port_of_its_bridge(topology: Callable[[str], Path]) -> None:
    body = TWO + (
        "    c: {network-mode: none, exec: ['ip address add 172.20.20.99/24 dev eth1']}\n"
        "  links:\n    - {type: mgmt-net, endpoint: {node: c, interface: eth1}, host-interface: c-mgmt}\n"
    )
    with Lab.load(topology(body)) as lab:
        lab.exec("c", ["ping", "-nc1", "-W5", "172.20.20.9"])


def test_a_node_may_live_in_the_network_of_another(topology: Callable[[str], Path]) -> None:
    body = TWO + "    side: {network-mode: 'container:a'}\n"
    with Lab.load(topology(body)) as lab:
        assert "172.20.20.2/24" in lab.exec("side", ["ip", "address"]).stdout
        assert lab.exec("side", ["hostname"]).stdout == "side\n"
        lab.exec("a", ["sh", "-c", "setsid -f sleep 612 >/dev/null 2>&1"])
        assert lab.exec("side", ["pgrep", "-x", "sleep"], check=False).returncode == 1


def test_a_node_may_live_in_the_network_of_the_host_and_changes_nothing_there(
    topology: Callable[[str], Path],
) -> None:
    before = host_links()
    with Lab.load(topology(TWO + "    here: {network-mode: host}\n")) as lab:
        assert lab.exec("here", ["ip", "-br", "link"]).stdout == before
    assert host_links() == before


def test_an_endpoint_gets_the_address_and_mac_that_an_extended_link_gives(
    topology: Callable[[str], Path],
) -> None:
    body = TWO + (
        "  links:\n    - type: veth\n      mtu: 1400\n      endpoints:\n"
        "        - {node: a, interface: eth1, mac: '02:00:00:00:00:0a', ipv4: 198.51.100.1/30}\n"
        "        - {node: b, interface: eth1, ipv4: 198.51.100.2/30}\n"
    )
    with Lab.load(topology(body)) as lab:
        lab.exec("a", ["ping", "-nc1", "-W5", "198.51.100.2"])
        shown = lab.exec("a", ["ip", "link", "show", "eth1"]).stdout
        assert "mtu 1400" in shown
        assert "02:00:00:00:00:0a" in shown


def test_a_port_of_a_node_that_fails_is_free_again(topology: Callable[[str], Path]) -> None:
    port = free_port()
    body = TWO + f"    c: {{ports: ['{port}:80'], exec: ['false']}}\n"
    with pytest.raises(LabError, match="exit status 1"):
        Lab.load(topology(body)).up()
    with closing(socket.create_server(("127.0.0.1", port))):
        pass
