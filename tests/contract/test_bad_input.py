"""Pools that this host, a node, cannot do: refused by every verb, by `node join` and `node check`, before a write.

Real etcd and real devices in a namespace; the node's own configuration stands in an /etc of its own.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from fabric.kernel import probe
from tests.contract.etcd_server import EtcdServer
from tests.contract.netns import Namespace

# Nothing that is written stays, and what was started ends with the command.
ALONE = """\
set -e
mount -t tmpfs own /run
mount -t tmpfs own /var/lib
mkdir /run/etc /run/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work own /etc
if [ "$1" ]; then
  mkdir /etc/fabricctl
  printf '{"node": "%s"}' "$1" >/etc/fabricctl/fabricctl.cfg
fi
shift
exec "$@"
"""
V6 = {"cidr": "2001:db8:77::/64"}
CALICO = "ip link add vxlan.calico type vxlan id 4096 dstport 4789 local 192.0.2.1"
OVS = "ip link add vxlan_sys type vxlan external dstport 4789"


@dataclass(frozen=True)
class Node:
    """The host 192.0.2.1/24 with its etcd, that is node n1 for the commands it is told so."""

    namespace: Namespace
    etcd: EtcdServer

    def fabricctl(self, *args: str, node: str = "n1", text: str = "") -> tuple[int, str, str]:
        endpoint = self.etcd.url.removeprefix("http://")
        words = [sys.executable, "-m", "fabric.cli.main", "--etcd", endpoint, *args]
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ALONE, "sh", node]
        done = self.namespace.call(
            lambda: subprocess.run(
                [*apart, *words], input=text, capture_output=True, text=True, timeout=60, check=False
            )
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    def ctl(self, *words: str) -> str:
        return self.namespace.call(partial(self.etcd.ctl, *words))

    def store(self, **resources: Any) -> None:
        """Write them unasked."""
        for key, value in resources.items():
            self.ctl("put", _path(key), json.dumps(value))

    def revision(self) -> int:
        return int(json.loads(self.ctl("get", "--prefix", "/", "-w", "json"))["header"]["revision"])

    def refused(self, *args: str, text: str = "", node: str = "n1") -> str:
        """What the command says, once it is sure that it has written nothing."""
        before = self.revision()
        code, out, err = self.fabricctl(*args, text=text, node=node)
        assert (code, out) == (1, ""), err
        assert self.revision() == before
        return err


def _path(key: str) -> str:
    kind, _, name = key.partition("_")
    return f"/calico/resources/v3/projectcalico.org/{kind.lower()}s/{name}"


def tree(kind: str, name: str, spec: object, **annotations: str) -> dict[str, Any]:
    metadata = {"name": name, "annotations": {f"fabricctl.io/{k}": text for k, text in annotations.items()}}
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec}


def pool(**spec: Any) -> dict[str, Any]:
    return tree("IPPool", "p", {"cidr": "10.77.0.0/16", **spec})


N1 = tree("Node", "n1", {"bgp": {"ipv4Address": "192.0.2.1/24"}})
NATIVE, VXLAN = pool(), pool(vxlanMode="Always")


@pytest.fixture(scope="module")
def host() -> Iterator[Node]:
    with Namespace() as namespace:
        namespace.ip("link", "add", "eth0", "type", "veth", "peer", "name", "veth-far")
        for link in ("eth0", "veth-far"):
            namespace.ip("link", "set", link, "up")
        namespace.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
        server = namespace.call(lambda: EtcdServer().__enter__())
        try:
            yield Node(namespace, server)
        finally:
            namespace.call(lambda: server.__exit__(None, None, None))


@pytest.fixture
def node(host: Node) -> Iterator[Node]:
    """The node registered, and nothing else; links that a test adds go."""
    yield host
    host.ctl("del", "--prefix", "/calico/")
    host.namespace.ip("link", "set", "eth0", "mtu", "1500")
    for link in ("vxlan.calico", "vxlan_sys"):
        host.namespace.command("sh", "-c", f"ip link del {link} 2>/dev/null || true")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"ipipMode": "Always", "vxlanMode": "CrossSubnet"}, "spec.vxlanMode: \"CrossSubnet\": excludes ipipMode"),
        ({**V6, "ipipMode": "Always"}, 'spec.ipipMode: "Always": must be Never for IPv6: IPIP carries IPv4 only'),
        ({"cidr": "192.0.0.0/16"}, "overlaps the subnet 192.0.2.0/24 of interface eth0 of this host"),
        ({**V6, "vxlanMode": "Always"}, "pool p has vxlanMode, and n1 no IPv6 address to send from"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(node: Node, spec: dict[str, Any], said: str) -> None:
    node.store(Node_n1=N1)
    assert said in node.refused("apply", "-f", "-", text=json.dumps(pool(**spec)))


def test_every_verb_refuses(node: Node) -> None:
    node.store(Node_n1=N1)
    said, wanted = "pool p has vxlanMode, and n1 no IPv6 address to send from", pool(**V6, vxlanMode="Always")
    assert said in node.refused("create", "-f", "-", text=json.dumps(wanted))
    node.store(IPPool_p=pool(**V6))
    assert said in node.refused("replace", "-f", "-", text=json.dumps(wanted))
    assert said in node.refused("patch", "ippool", "p", "-p", "spec: {vxlanMode: CrossSubnet}")


@pytest.mark.parametrize(
    ("commands", "wanted", "id_", "said"),
    [
        ([CALICO], VXLAN, "FAB1103", "VNI 4096 on udp port 4789 is held by the device vxlan.calico"),
        ([OVS, "ip link set vxlan_sys up"], VXLAN, "FAB1102", "udp port 4789 is held by the VXLAN device vxlan_sys"),
        (["ip link set eth0 mtu 625"], VXLAN, "FAB1608", "an MTU of 625, and vxlanMode takes 50: 575 are left"),
        ([], pool(**V6, vxlanMode="Always"), "FAB1607", "no IPv6 address to send from"),
    ],
    ids=["VNI", "port", "MTU", "family"],
)  # fmt: skip
def test_apply_check_and_join_say_what_the_host_cannot_do(
    node: Node, commands: list[str], wanted: dict[str, Any], id_: str, said: str
) -> None:
    for command in commands:
        node.namespace.command(*command.split())
    node.store(Node_n1=N1)
    err = node.refused("apply", "-f", "-", text=json.dumps(wanted))
    assert said in err
    assert f"({id_}); nothing was written" in err
    node.store(IPPool_p=wanted)
    code, out, err = node.fabricctl("node", "check", "-o", "json")
    [told] = [finding for finding in json.loads(out) if finding["id"] == id_]
    assert (code, told["severity"], said in told["cause"]) == (1, "error", True)
    node.ctl("del", _path("Node_n1"))
    err = node.refused("node", "join", "--name", "n1", node="")
    assert "this host cannot join yet; nothing was changed" in err
    assert f"{id_} {told['title']}: {told['cause']}" in err


def test_a_first_pool_over_the_hosts_own_subnet_is_refused_by_join(node: Node) -> None:
    err = node.refused("node", "join", "--name", "n1", "--pool", "192.0.2.0/24", node="")
    assert "FAB1606 a pool covers a subnet of this host: pool default-ipv4-ippool (192.0.2.0/24) meets" in err
    assert "192.0.2.0/24 on eth0" in err


def test_a_process_that_holds_the_port_is_named(node: Node) -> None:
    node.store(Node_n1=N1)
    with node.namespace.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as held:
        held.bind(("", 4789))
        told = node.refused("apply", "-f", "-", text=json.dumps(VXLAN))
    assert re.search(r"udp port 4789 is held by (pytest|python).* \(pid [0-9]+\)", told)


def test_a_kernel_without_ipip_is_told_which_pool_which_module_and_that_vxlan_is_there(node: Node) -> None:
    lacks = bool(node.namespace.run(probe.missing_tunnels({"ipip"})))
    far = tree("Node", "n2", {"bgp": {"ipv4Address": "192.0.2.2/24"}}, lacks="ipip")
    node.store(Node_n1=N1, Node_n2=far)
    wanted = pool(ipipMode="CrossSubnet")
    names = "n1, n2" if lacks else "n2"
    err = node.refused("apply", "-f", "-", text=json.dumps(wanted))
    assert (
        f"spec.ipipMode: CrossSubnet: pool p has ipipMode, and the kernel of {names} no module ipip; VXLAN"
        in err
    )
    assert (
        "VXLAN is there: set vxlanMode in place of ipipMode on p, or annotate it fabricctl.io/tunnel-fallback"
        in err
    )
    with_fallback = tree("IPPool", "p", wanted["spec"], **{"tunnel-fallback": "vxlan"})
    code, out, err = node.fabricctl("apply", "-f", "-", text=json.dumps(with_fallback))
    assert (code, out) == (0, "IPPool p: created\n"), err
    node.store(IPPool_p=wanted)
    node.ctl("del", _path("Node_n1"))
    for args in (("node", "check"), ("node", "join", "--name", "n1")) if lacks else ():
        code, out, err = node.fabricctl(*args, node="")
        assert code == 1
        assert "FAB1002" in out + err
        assert "and the kernel of this host no module ipip (Operation not supported)" in out + err
