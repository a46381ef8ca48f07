"""Real etcds, one on a loopback address of its own or a cluster of three, data on tmpfs, ended with their owner."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from urllib.error import URLError
from urllib.request import urlopen

from tests.contract.netns import Namespace

START_DEADLINE = 20.0  # seconds


class EtcdServer:
    """Started on entering; freeze, kill, start and wipe it in between. `url` stays the same.

    A random address out of 127.0.0.0/8 in place of a random port: nobody else's etcd is there, and it
    is still ours when a killed one starts again.

    Args:
        options: more of etcd's own.
        scheme: https with the options for its certificates.
        also: one more URL to serve.
        address: the address of a member of a cluster, `cluster` that cluster, address by name, and
            `inside` the network namespace of both.
    """

    def __init__(
        self,
        *options: str,
        scheme: str = "http",
        also: str = "",
        address: str = "",
        cluster: Mapping[str, str] | None = None,
        inside: str = "",
    ) -> None:
        self.address = address or (
            f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
        )
        self.url = f"{scheme}://{self.address}:2379"
        self.options, self._also = options, also
        self._cluster = cluster or {self.address: "default"}
        self._inside = inside
        self._dir = tempfile.TemporaryDirectory(prefix="etcd-", dir="/dev/shm")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EtcdServer:
        try:
            self.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._end()

    def start(self) -> None:
        self.launch()
        self.await_health()

    def launch(self) -> None:
        peer = f"http://{self.address}:2380"
        enter = ["nsenter", f"--net={self._inside}"] if self._inside else []
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                # Outliving a killed pytest is the kernel's to prevent; setpriv becomes etcd, same pid.
                ["setpriv", "--pdeathsig", "KILL", *enter, "etcd", "--data-dir", str(self.data),
                 "--name", self._cluster[self.address],
                 "--listen-client-urls", ",".join(filter(None, [self.url, self._also])),
                 "--advertise-client-urls", self.url,
                 "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                 "--initial-cluster",
                 ",".join(f"{name}=http://{address}:2380" for address, name in self._cluster.items()),
                 # In plain text whatever the clients speak.
                 "--listen-metrics-urls", self._metrics,
                 "--heartbeat-interval", "20", "--election-timeout", "200", *self.options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def _metrics(self) -> str:
        return f"http://{self.address}:2381"

    @property
    def log(self) -> Path:
        return Path(self._dir.name, "log")

    @property
    def data(self) -> Path:
        return Path(self._dir.name, "data")

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "etcd was not started"
        return self._process

    def stop(self) -> None:
        """Freeze it: its connections stay, and it answers nothing."""
        self.process.send_signal(signal.SIGSTOP)
        # The signal is only sent: a thread still running may answer one more request.
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def cont(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it without warning; `start` finds the data again."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    def wipe(self) -> None:
        """Start it again with nothing in it, at revision 1: what a lost disk looks like."""
        self.kill()
        self.data.rename(self.data.with_name(f"lost-{time.monotonic_ns()}"))
        self.start()

    def ctl(self, *words: str) -> str:
        """Run etcdctl: somebody else's hand on the same store."""
        command = ["etcdctl", "--endpoints", self.url, *words]
        return subprocess.run(
            command,
            env={"ETCDCTL_API": "3", "PATH": "/usr/bin"},
            check=True,
            capture_output=True,
            text=True,
            timeout=20,
        ).stdout

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.cont()

    def await_health(self) -> None:
        deadline = time.monotonic() + START_DEADLINE
        while not self._healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"etcd on {self.url} did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.01)

    def _healthy(self) -> bool:
        try:
            with urlopen(f"{self._metrics}/health", timeout=1) as answer:
                return b'"true"' in answer.read()
        except (URLError, OSError):
            return False

    def metrics(self) -> bytes:
        with urlopen(f"{self._metrics}/metrics", timeout=5) as answer:
            text: bytes = answer.read()
        return text

    def _end(self) -> None:
        if self._process is not None:
            self.kill()
        self._dir.cleanup()


class EtcdCluster:
    """Three members, each in a network namespace of its own, on one bridge; cut any of them off.

    The client stays in our namespace, with a veth to that bridge: gRPC's threads would not follow one of
    its threads into another.
    """

    def __enter__(self) -> EtcdCluster:
        net = f"198.{random.randint(18, 19)}.{random.randint(0, 255)}"  # RFC 2544: nobody's
        names = {f"{net}.{number}": f"m{number}" for number in (1, 2, 3)}
        with ExitStack() as stack:
            hub = stack.enter_context(Namespace())
            hub.ip("link", "add", "br0", "up", "type", "bridge")
            # Each veth goes with the namespace its other end is in.
            _plug(hub, f"etcd{random.randrange(1 << 32):x}", f"{net}.254", _ours)
            self._inside = {}
            self.members = []
            for address in names:
                self._inside[address] = inside = stack.enter_context(Namespace())
                _plug(hub, "eth0", address, inside.ip, into=inside.path)
                # Slower to elect than one alone: the three share a busy machine with the tests.
                member = EtcdServer(
                    *("--heartbeat-interval", "50", "--election-timeout", "500"),
                    address=address,
                    cluster=names,
                    inside=inside.path,
                )
                self.members.append(stack.push(member))
                member.launch()
            self.repair()
            self._owned = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._owned.close()

    @property
    def leader(self) -> EtcdServer:
        return next(member for member in self.members if b"\netcd_server_is_leader 1" in member.metrics())

    def others(self, member: EtcdServer) -> list[EtcdServer]:
        return [other for other in self.members if other is not member]

    @contextmanager
    def cut_off(self, member: EtcdServer) -> Iterator[None]:
        """Drop every packet to and from `member`; its connections stand."""
        with self._dropping(member, "0.0.0.0/0"):
            yield

    @contextmanager
    def losing_what_stands(self, member: EtcdServer) -> Iterator[None]:
        """Drop every packet of the connections that clients have to `member` now; new ones are served."""
        inside = self._inside[member.address]
        standing = inside.command("ss", "-tnH", "state", "established", "sport = :2379")
        ports = {line.split()[-1].rpartition(":")[2] for line in standing.splitlines()}
        assert ports, "no connection stands"
        try:
            for port in ports:
                inside.command("iptables", "-w", "-A", "INPUT", "-p", "tcp", "--sport", port, "-j", "DROP")
                inside.command("iptables", "-w", "-A", "OUTPUT", "-p", "tcp", "--dport", port, "-j", "DROP")
            yield
        finally:
            inside.command("iptables", "-w", "-F")

    @contextmanager
    def alone(self, member: EtcdServer) -> Iterator[None]:
        """Drop what `member` and the other two say to each other, until it knows that it has no leader; we reach it."""
        with self._dropping(member, ",".join(other.address for other in self.others(member))):
            deadline = time.monotonic() + START_DEADLINE
            while b"\netcd_server_has_leader 0" not in member.metrics():
                assert time.monotonic() < deadline, "it still has a leader"
                time.sleep(0.01)
            yield

    @contextmanager
    def _dropping(self, member: EtcdServer, others: str) -> Iterator[None]:
        inside = self._inside[member.address]
        try:
            inside.command("iptables", "-w", "-A", "INPUT", "-i", "eth0", "-s", others, "-j", "DROP")
            inside.command("iptables", "-w", "-A", "OUTPUT", "-o", "eth0", "-d", others, "-j", "DROP")
            yield
        finally:
            inside.command("iptables", "-w", "-F")

    def repair(self) -> None:
        """Start what is dead, and wait until all serve."""
        for member in self.members:
            if member.process.poll() is not None:
                member.launch()
        for member in self.members:
            member.await_health()


def _plug(hub: Namespace, name: str, address: str, ip: Callable[..., object], into: str = "") -> None:
    """Put a veth into `hub`'s bridge, its other end `name` into the namespace where `ip` runs."""
    port = f"p{address.rpartition('.')[2]}"
    hub.ip("link", "add", port, "master", "br0", "up", "type", "veth", "peer", "name", name,
           "netns", into or str(os.getpid()))  # fmt: skip
    ip("addr", "add", f"{address}/24", "dev", name)
    ip("link", "set", name, "up")


def _ours(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=20)
