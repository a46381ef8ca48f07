"""One real etcd on a loopback address of its own, its data on tmpfs, ended with its owner."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from urllib.error import URLError
from urllib.request import urlopen

START_DEADLINE = 20.0  # seconds


class EtcdServer:
    """Started on entering; freeze, kill, start and wipe it in between. `url` stays the same.

    A random address out of 127.0.0.0/8 in place of a random port: nobody else's etcd is there, and it
    is still ours when a killed one starts again.
    """

    def __init__(self) -> None:
        self.address = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
        self.url = f"http://{self.address}:2379"
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
        peer = f"http://{self.address}:2380"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                # Outliving a killed pytest is the kernel's to prevent; setpriv becomes etcd, same pid.
                ["setpriv", "--pdeathsig", "KILL", "etcd", "--data-dir", str(self.data),
                 "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
                 "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                 "--initial-cluster", f"default={peer}",
                 "--heartbeat-interval", "20", "--election-timeout", "200"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._await_health()

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

    def _await_health(self) -> None:
        deadline = time.monotonic() + START_DEADLINE
        while not self._healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"etcd on {self.url} did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.01)

    def _healthy(self) -> bool:
        try:
            with urlopen(f"{self.url}/health", timeout=1) as answer:
                return b'"true"' in answer.read()
        except (URLError, OSError):
            return False

    def _end(self) -> None:
        if self._process is not None:
            self.kill()
        self._dir.cleanup()
