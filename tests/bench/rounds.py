"""Touches one lab node: attaches and detaches there, ours and the peers in turn, and prints every sample.

Runs inside the node (tests/bench/attach.py starts it), so that whatever it makes ends with the node. All
network namespaces are made before the first measurement and none is removed, since the kernel
removes one in the background, at the next measurement's cost. Before each measurement the agent must
have become quiet: what it still does for the last one is no part of the next.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from urllib.request import urlopen

from fabric.api import client
from fabric.config import AGENT_SOCKET
from fabric.errors import AgentError, FabricError
from fabric.plan.links import GATEWAY4, HOST_MAC
from tests.bench.processes import run

PTP = "/usr/lib/cni/ptp"
CNI = {
    "cniVersion": "1.0.0",
    "name": "bench",
    "type": "ptp",
    "ipam": {
        "type": "host-local",
        "subnet": "10.78.0.0/16",
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": "/run/bench-cni",  # tmpfs, as etcd's data is
    },
}
PEER_ADDRESSES = IPv4Address("10.79.0.0")
SCRATCH = Path("/run/bench")
QUIET_FOR, QUIET_WITHIN = 0.04, 10.0  # seconds
QUIET_SHARE = 0.01  # of one core, over QUIET_FOR
PROPOSALS = re.compile(r"^etcd_server_proposals_committed_total (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that can attach workload `number` to the namespace at a path, and detach it again."""

    name: str
    add: Callable[[int, Path], None]
    delete: Callable[[int, Path], None]


def ours_add(number: int, netns: Path) -> None:
    client.call("POST", "/v1/workloads", {"name": f"w{number}", "namespace": "default", "netns": str(netns)})


def ours_delete(number: int, netns: Path) -> None:
    client.call("DELETE", f"/v1/workloads/default/w{number}")


def first_add(number: int, netns: Path) -> None:
    """Attach into a namespace of its own, so by a list of profiles that no other workload has."""
    client.call("POST", "/v1/workloads", {"name": "first", "namespace": f"n{number}", "netns": str(netns)})


def first_delete(number: int, netns: Path) -> None:
    client.call("DELETE", f"/v1/workloads/n{number}/first")


def cli_add(number: int, netns: Path) -> None:
    run(["fabricctl", "workload", "add", f"w{number}", "--netns", str(netns)])


def batch_add(number: int, netns: Path) -> None:
    run(["ip", "-batch", "-"], stdin=SCRATCH / f"host-{number}")
    run(["ip", "-n", netns.name, "-batch", "-"], stdin=SCRATCH / f"container-{number}")


def batch_delete(number: int, netns: Path) -> None:
    run(["ip", "link", "del", f"peer{number}"])


def ptp_add(number: int, netns: Path) -> None:
    _ptp("ADD", number, netns)


def ptp_delete(number: int, netns: Path) -> None:
    _ptp("DEL", number, netns)


def _ptp(command: str, number: int, netns: Path) -> None:
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": f"bench-{number}",
        "CNI_NETNS": str(netns),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(Path(PTP).parent),
        "PATH": os.environ["PATH"],
    }
    run([PTP], stdin=SCRATCH / "ptp.json", env=env)


OURS = Contender("ours", ours_add, ours_delete)
CONTENDERS = (
    OURS,
    Contender("first of its list", first_add, first_delete),
    Contender("ip -batch", batch_add, batch_delete),
    Contender("ptp + host-local", ptp_add, ptp_delete),
)
CLI = (OURS, Contender("fabricctl", cli_add, ours_delete))


def write_batches(number: int, netns: Path) -> None:
    """Write what `ip` is to do for the same links, addresses, neighbours and routes as ours."""
    address, host = PEER_ADDRESSES + number, f"peer{number}"
    mac = f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
    (SCRATCH / f"host-{number}").write_text(
        f"link add {host} address {HOST_MAC} mtu 1500 type veth"
        f" peer name eth0 address {mac} mtu 1500 netns {netns.name}\n"
        f"link set {host} up\n"
        f"neigh replace {address} lladdr {mac} dev {host} nud permanent\n"
        f"route add {address}/32 dev {host} scope link\n"
    )
    (SCRATCH / f"container-{number}").write_text(
        "link set lo up\n"
        "link set eth0 up\n"
        f"address add {address}/32 dev eth0\n"
        f"neigh replace {GATEWAY4} lladdr {HOST_MAC} dev eth0 nud permanent\n"
        f"route add {GATEWAY4}/32 dev eth0 scope link\n"
        f"route add default via {GATEWAY4} dev eth0\n"
    )


class Bench:
    """The samples, by name, in seconds or (transactions) as a count."""

    def __init__(self, etcd: str) -> None:
        self.samples: dict[str, list[float]] = defaultdict(list)
        self._etcd = etcd
        self._schedstat = Path(f"/proc/{_agent_pid()}/schedstat")
        self._made = 0

    def stand(self) -> None:
        """Attach a workload that stays: those of ours that come and go find its list of policies there."""
        ours_add(*self._namespace())
        self._quiet()

    def rounds(self, contenders: Sequence[Contender], count: int, label: str) -> None:
        """Let each contender attach and detach once a round; the first round warms up and is not kept."""
        turns = [(contender, *self._namespace()) for _ in range(count + 1) for contender in contenders]
        for at, (contender, number, netns) in enumerate(turns):
            for verb, work in (("add", contender.add), ("del", contender.delete)):
                self._measure(
                    f"{label} {verb}: {contender.name}",
                    partial(work, number, netns),
                    keep=at >= len(contenders),
                )

    def starts(self, count: int) -> None:
        """Time programs that only start and end."""
        for _ in range(count):
            for argv in (["fabricctl", "--help"], ["python3", "-c", "pass"]):
                self._measure(f"start: {' '.join(argv)}", partial(run, argv), keep=True)

    def _namespace(self) -> tuple[int, Path]:
        """Make the next namespace; return the number of its workload and its path."""
        self._made += 1
        run(["ip", "netns", "add", f"bench-{self._made}"])
        path = Path(f"/run/netns/bench-{self._made}")
        write_batches(self._made, path)
        return self._made, path

    def _measure(self, name: str, work: Callable[[], None], *, keep: bool) -> None:
        before = proposals(self._etcd)
        self._quiet()
        started = time.perf_counter()
        work()
        taken = time.perf_counter() - started
        self._quiet()
        if keep:
            self.samples[name].append(taken)
            self.samples[f"transactions, {name}"].append(proposals(self._etcd) - before)

    def _quiet(self) -> None:
        """Wait until the agent's event loop has hardly run for a while."""
        deadline = time.monotonic() + QUIET_WITHIN
        ran = self._ran()
        while time.monotonic() < deadline:
            time.sleep(QUIET_FOR)
            before, ran = ran, self._ran()
            if ran - before < QUIET_FOR * QUIET_SHARE:
                return
        raise AgentError(f"agent: still busy {QUIET_WITHIN:.0f} s after a request; the run was given up")

    def _ran(self) -> float:
        """Return the seconds that the agent's main thread has run."""
        try:
            return int(self._schedstat.read_text().split()[0]) / 1e9
        except (FileNotFoundError, ProcessLookupError) as err:
            raise AgentError("agent: ended during the benchmark; the run was given up") from err


def proposals(etcd: str) -> float:
    """Return how many changes etcd has put through consensus, refused transactions included."""
    with urlopen(f"http://{etcd}/metrics", timeout=5) as answer:
        found = PROPOSALS.search(answer.read().decode())
    assert found, "etcd does not say how many proposals it committed"
    return float(found[1])


def _agent_pid() -> int:
    with socket.socket(socket.AF_UNIX) as agent:
        agent.connect(str(AGENT_SOCKET))
        peer = agent.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", peer)[0]
    return pid


def main(etcd: str, count: int, cli_count: int) -> None:
    SCRATCH.mkdir(exist_ok=True)
    (SCRATCH / "ptp.json").write_text(json.dumps(CNI))
    bench = Bench(etcd)
    bench.stand()
    bench.rounds(CONTENDERS, count, "socket")
    bench.rounds(CLI, cli_count, "cli")
    bench.starts(cli_count)
    print(json.dumps(bench.samples))


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    except FabricError as err:
        sys.exit(str(err))
