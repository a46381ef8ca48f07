"""A node on an etcd with TLS, client certificates and users: joined, used from elsewhere, all certificates renewed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fabric.lab.lab import Lab
from tests.contract.pki import Authority
from tests.scenarios.fabric import AGENT, until

ETCD = "https://10.10.1.1:2379"
TOPOLOGY = """
name: tls
topology:
  defaults: {kind: linux, image: alpine, network-mode: none}
  nodes:
    etcd:
      exec: [ip address add 10.10.1.1/24 dev eth1, ip address add 10.10.2.1/24 dev eth2]
    node1:
      exec: [ip address add 10.10.1.2/24 dev eth1]
    desk:
      exec: [ip address add 10.10.2.2/24 dev eth1]
  links:
    - endpoints: ["etcd:eth1", "node1:eth1"]
    - endpoints: ["etcd:eth2", "desk:eth1"]
"""
CALICOCTL = """
apiVersion: projectcalico.org/v3
kind: CalicoAPIConfig
metadata:
spec:
  datastoreType: etcdv3
  etcdEndpoints: https://10.10.2.1:2379
  etcdCACertFile: ca.pem
  etcdCertFile: client.pem
  etcdKeyFile: client.key
  etcdUsername: desk
  etcdPassword: look only
"""


@dataclass(frozen=True)
class Site:
    """A lab, the folder with the clients' certificates, and the one with etcd's."""

    lab: Lab
    client: Path
    server: Path

    def renew(self, *, clients: bool = True) -> None:
        """Let a new CA sign etcd's certificate, and replace the clients' files unless told not to."""
        ca = Authority(self.server)
        ca.issue("server", "10.10.1.1", "10.10.2.1")
        ca.issue("client")
        if clients:
            self.hand_out()

    def hand_out(self) -> None:
        for name in ("ca.pem", "client.pem", "client.key"):
            shutil.copy(self.server / name, self.client / name)

    @contextmanager
    def etcd(self) -> Iterator[None]:
        """etcd, with what it held when it ran before."""
        here = self.server
        command = [
            *("etcd", "--data-dir", "/run/etcd", "--bcrypt-cost", "4", "--client-cert-auth"),
            *("--listen-client-urls", "https://0.0.0.0:2379", "--advertise-client-urls", ETCD),
            *("--trusted-ca-file", f"{here}/ca.pem", "--cert-file", f"{here}/server.pem"),
            *("--key-file", f"{here}/server.key"),
        ]
        with self.lab.popen("etcd", command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            until(lambda: self.etcdctl("endpoint", "health", check=False).returncode == 0)
            yield
            process.terminate()
            process.wait(timeout=20)

    def etcdctl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        here = self.server
        identity = [
            "--cacert",
            f"{here}/ca.pem",
            "--cert",
            f"{here}/client.pem",
            "--key",
            f"{here}/client.key",
        ]
        return self.lab.exec("etcd", ["etcdctl", "--endpoints", ETCD, *identity, *words], check=check)

    def ctl(self, node: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.lab.exec(node, ["fabricctl", *words], check=check)

    def datastore(self) -> Any:
        shown = self.ctl("node1", "node", "status", "-o", "json", check=False).stdout
        return json.loads(shown)["datastore"]

    def agent(self) -> str:
        return self.lab.exec("node1", ["pgrep", "-f", "--", AGENT]).stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("tls")
    client, server = folder / "client", folder / "server"
    client.mkdir()
    server.mkdir()
    (client / "password").write_text("write all\n")
    (client / "calicoctl.cfg").write_text(CALICOCTL)
    (folder / "tls.clab.yml").write_text(TOPOLOGY)
    with Lab.load(folder / "tls.clab.yml", name=f"tls-{os.getpid()}") as lab:
        yield Site(lab, client, server)


def test_a_node_lives_on_an_etcd_that_trusts_nobody_unknown_and_outlives_all_its_certificates(
    site: Site,
) -> None:
    here = site.client
    join = (
        *("node", "join", "--name", "node1", "--pool", "10.77.0.0/16", "--etcd", ETCD, "--etcd-ca", f"{here}/ca.pem"),
        *("--etcd-cert", f"{here}/client.pem", "--etcd-key", f"{here}/client.key"),
        *("--etcd-user", "node1", "--etcd-password-file", f"{here}/password"),
    )  # fmt: skip
    site.renew()
    with site.etcd():
        for user, secret in {"root": "root", "node1": "write all", "desk": "look only"}.items():
            site.etcdctl("user", "add", f"{user}:{secret}")
            site.etcdctl("role", "add", user)
            site.etcdctl("user", "grant-role", user, user)
        for user, right in {"node1": "readwrite", "desk": "read"}.items():
            site.etcdctl("role", "grant-permission", "--prefix=true", user, right, "/calico/")
        site.etcdctl("auth", "enable")

        site.ctl("node1", *join)
        site.lab.exec("node1", ["ip", "netns", "add", "web"])
        site.ctl("node1", "workload", "add", "web", "--netns", "/run/netns/web")

        desk = ("--config", f"{here}/calicoctl.cfg")
        assert site.ctl("desk", *desk, "get", "nodes", "-o", "name").stdout == "node/node1\n"
        refused = site.ctl("desk", *desk, "delete", "node", "node1", check=False)
        assert refused.returncode == 1
        assert 'user "desk" is refused by role' in refused.stderr
        agent = site.agent()

    site.renew(clients=False)
    with site.etcd():
        until(lambda: "its certificate is not trusted" in site.datastore()["lost"])
        site.hand_out()
        until(lambda: site.datastore()["in_sync"])
        site.ctl("node1", "workload", "del", "web")
        assert site.agent() == agent
