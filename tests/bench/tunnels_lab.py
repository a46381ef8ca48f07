"""Touches a lab of its own: pairs of nodes with a container each, and what a way from the one to the other carries.

Each way has a pair of its own, in a network of its own: one veth of 1,500 bytes between two nodes and nothing else, so
that what passes is what these nodes let through. Bare nodes have the addresses and routes that ours have, no agent, and
no rules, or the least that knows of connections. A fabric has its etcd on the first node. Of Docker each node has a
dockerd, and the far container is reached by a port that its node publishes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fabric.errors import LabError
from fabric.lab.lab import Lab
from tests.bench import datagrams

BARE, TRACKED, DOCKER = "bare veth", "one rule with conntrack", "Docker bridge + NAT"
NATIVE, VXLAN, IPIP = "native", "VXLAN", "IPIP"
# What makes a pool's packets go so; by which device they go then, and the MTU of a container.
MODES = {NATIVE: {}, VXLAN: {"vxlanMode": "Always"}, IPIP: {"ipipMode": "Always"}}
DEVICES = {NATIVE: ("eth1", 1500), VXLAN: ("vxlan.fabric", 1450), IPIP: ("tunl0", 1480)}
POOL, POOL_NAME = "10.77.0.0/16", "default-ipv4-ippool"
NODES = {1: "10.10.1.1", 2: "10.10.1.2"}
CONTAINERS = {1: "10.77.1.1", 2: "10.77.2.1"}
IPERF, TRIPS = 5201, 7800  # ports
DATAGRAMS = (sys.executable, "-I", "-S", str(datagrams.__file__))
WITHIN = 120.0  # seconds for anything to happen
CONTROL = "cubic"  # of congestion: the kernel's default, where a host may have one that paces
QUIET_FOR, QUIET_WITHIN, QUIET_SHARE = 0.25, 5.0, 0.05  # seconds, seconds, of one core
CGROUPS = Path("/sys/fs/cgroup")
INSTALL = "apt-get install docker.io (Debian 12)"
# Programs in a pair run on a processor each, so that where the scheduler puts them does not decide.
FIRST, LAST = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))

CABLE = "ip address add {node}/24 dev eth1; ip link set eth1 up mtu 1500"
CONTAINER = """
ip netns add box
ip link add box0 mtu 1500 address ee:ee:ee:ee:ee:ee type veth peer name eth0 netns box
ip link set box0 up
ip -n box link set lo up
ip -n box link set eth0 up address 02:00:00:00:00:01 mtu 1500
ip -n box address add {container}/32 dev eth0
ip -n box neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0
ip -n box route add 169.254.1.1 dev eth0 scope link
ip -n box route add default via 169.254.1.1 dev eth0
ip neigh add {container} lladdr 02:00:00:00:00:01 dev box0
ip route add {container}/32 dev box0
ip route add {far_container}/32 via {far_node}
"""
ONE_RULE = """
nft -f - <<END
add table ip t; add chain ip t forward {{ type filter hook forward priority 0; }}
add rule ip t forward ct state established,related accept
END
"""
# In a user-mode kernel a start can outlast the command's patience; it goes on, and is found by the next.
WORKLOAD = """
join() {{ fabricctl node join --name node{number} --etcd 10.10.1.1:2379 --pool {pool}; }}
join || join
ip netns add box
fabricctl workload add box{number} --netns box --ip {container}
"""
# An image of links alone, to programs of the host's: what runs in the container is what runs in the others.
DOCKERD = """
mkdir -p /run/docker /run/image/usr
cd /run/image
ln -s usr/bin usr/lib usr/lib64 .
dockerd --data-root /run/docker --storage-driver vfs --cgroup-parent /{group} >/var/log/dockerd.log 2>&1 &
until docker version >/dev/null 2>&1; do
    kill -0 $! || {{ cat /var/log/dockerd.log >&2; exit 1; }}
    sleep 0.1
done
tar -c . | docker import - box
docker run --detach --name box --volume /usr:/usr:ro -p {iperf}:{iperf} -p {trips}:{trips}/udp box sleep infinity
"""
# The processors' time is read right beside the transfer, without the way into the node.
TIMED = """
read -r line </proc/stat; echo "$line"
"$@" || exit
read -r line </proc/stat; echo "$line"
"""

Samples = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Place:
    """A network namespace in a node, by its path there."""

    node: str
    netns: str

    def inside(self, processor: int, *argv: str) -> list[str]:
        return ["nsenter", f"--net={self.netns}", "--", "taskset", "--cpu-list", str(processor), *argv]


@dataclass(frozen=True, slots=True)
class Way:
    """From one container to the other, whose address there is `address`."""

    name: str
    source: Place
    target: Place
    address: str


def lacks_docker() -> str:
    """Return which of Docker's programs this host lacks, or ""."""
    return ", ".join(program for program in ("dockerd", "docker", "runc") if not shutil.which(program))


class Pairs:
    """The lab, up inside the block: the ways there are to measure, and the measuring."""

    def __init__(self, folder: Path, ways: Sequence[str]) -> None:
        self._wanted = {f"pair{number}": way for number, way in enumerate(ways)}
        self._group = f"fabricctl-bench-{os.getpid()}"
        self._lab = Lab.load(self._topology(folder))

    def __enter__(self) -> Pairs:
        with ExitStack() as owned:
            owned.callback(self._remove_groups)
            owned.enter_context(self._lab)
            owned.callback(self._stop_containers)
            self._ways = [self._set_up(pair, way) for pair, way in self._wanted.items()]
            self._owned = owned.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._owned.close()

    def turns(self, rounds: int, seconds: int) -> Samples:
        """Return what each way carries, "METRIC: WAY", turn by turn."""
        samples: Samples = {}
        order = [*self._ways]
        with ExitStack() as serving:
            for way in order:
                serving.enter_context(self._serving(way.target))
            for number in range(rounds + 1):
                for way in order:
                    found = {"otherwise": self._rested(), **self._carried(way, seconds)}
                    # The first round warms up.
                    for what, value in found.items() if number else ():
                        samples.setdefault(f"{what}: {way.name}", []).append(value)
                order.reverse()
        return samples

    # Measuring

    @contextmanager
    def _serving(self, target: Place) -> Iterator[None]:
        pipe = subprocess.PIPE
        with ExitStack() as running:
            for argv, first in (
                (["iperf3", "-s", "-p", str(IPERF), "--forceflush"], "---"),
                ([*DATAGRAMS, "serve", str(TRIPS)], "ready"),
            ):
                inside = target.inside(LAST, *argv)
                server = running.enter_context(self._lab.popen(target.node, inside, stdin=pipe, stdout=pipe))
                running.callback(server.kill)
                assert server.stdout
                said = server.stdout.readline()
                if not said.startswith(first):
                    raise LabError(f"node {target.node}: {argv[0]} does not start: {said.strip()}")
            self._until(
                lambda: self._run(target.node, f"nsenter --net={target.netns} ss -Hltn sport = :{IPERF}"),
                f"iperf3 listens in {target.node}",
            )
            yield

    def _carried(self, way: Way, seconds: int) -> Mapping[str, float]:
        """Return Gbit/s, seconds of all processors for 10^9 bytes, and microseconds of a round trip."""
        argv = ["iperf3", "-c", way.address, "-p", str(IPERF), "-t", str(seconds), "-J", "-C", CONTROL]
        timed = way.source.inside(FIRST, "sh", "-c", TIMED, "sh", *argv)
        said = self._lab.exec(way.source.node, timed, timeout=seconds + WITHIN).stdout
        before, _, rest = said.partition("\n")
        text, _, after = rest.rstrip().rpartition("\n")
        received = json.loads(text)["end"]["sum_received"]
        argv = [*DATAGRAMS, "ask", way.address, str(TRIPS), str(seconds)]
        asked = self._lab.exec(way.source.node, way.source.inside(FIRST, *argv), timeout=seconds + WITHIN)
        trips = sorted(json.loads(asked.stdout))
        return {
            "throughput": received["bits_per_second"] / 1e9,
            "processor": (_busy(after) - _busy(before)) / (received["bytes"] / 1e9),
            "p50": trips[len(trips) // 2] * 1e6,
            "p99": trips[len(trips) * 99 // 100] * 1e6,
        }

    def _rested(self) -> float:
        """Wait for the machine to be quiet, for a while; return what it does, in percent of a core."""
        deadline, share = time.monotonic() + QUIET_WITHIN, 1.0
        while share > QUIET_SHARE and time.monotonic() < deadline:
            before, began = _busy(_now()), time.monotonic()
            time.sleep(QUIET_FOR)
            share = (_busy(_now()) - before) / (time.monotonic() - began)
        return share * 100

    def _until(self, holds: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + WITHIN
        while not holds():
            if time.monotonic() > deadline:
                raise LabError(f"not within {WITHIN:.0f} s: {what}; the run was given up")
            time.sleep(0.05)

    # Setting up

    def _topology(self, folder: Path) -> Path:
        etcd = (
            "etcd --data-dir /var/lib/datastore"
            f" --listen-client-urls http://0.0.0.0:2379 --advertise-client-urls http://{NODES[1]}:2379"
        )
        plain = {"image": "alpine"}
        nodes: dict[str, object] = {}
        for pair, way in self._wanted.items():
            first = second = plain
            if way in MODES:
                second = {"image": "fabricctl/node"}
                first = second | {"cmd": etcd}
            elif way == DOCKER:
                first = second = {**plain, "binds": [f"{CGROUPS}:{CGROUPS}"]}  # type: ignore[dict-item]
            nodes |= {f"{pair}-1": first, f"{pair}-2": second}
        body = {"defaults": {"kind": "linux", "network-mode": "none"}, "nodes": nodes}
        file = folder / "bench-tunnels.clab.yml"
        file.write_text(json.dumps({"name": f"bench-tunnels-{os.getpid()}", "topology": body}))
        return file

    def _set_up(self, pair: str, way: str) -> Way:
        one, other = f"{pair}-1", f"{pair}-2"
        # Not by the lab's own links, which pass through another namespace on their way.
        ends = [("eth1", "netns", str(self._lab.pid(node))) for node in (one, other)]
        subprocess.run(["ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1]], check=True)
        self._both(pair, CABLE)
        if way == DOCKER:
            self._both(pair, DOCKERD)
            return Way(way, self._docker_box(one), self._docker_box(other), NODES[2])
        if way in MODES:
            self._run(one, "etcdctl --command-timeout=30s endpoint health")
            self._both(pair, WORKLOAD)
            self._set_mode(pair, way)
        else:
            self._both(pair, CONTAINER)
        if way == TRACKED:
            self._both(pair, ONE_RULE)
        return Way(way, Place(one, "/run/netns/box"), Place(other, "/run/netns/box"), CONTAINERS[2])

    def _both(self, pair: str, script: str) -> None:
        fixed = {"pool": POOL, "group": self._group, "iperf": IPERF, "trips": TRIPS}
        for number, far in ((1, 2), (2, 1)):
            near = {"number": number, "node": NODES[number], "container": CONTAINERS[number]}
            other = {"far_node": NODES[far], "far_container": CONTAINERS[far]}
            self._run(f"{pair}-{number}", script.format(**fixed, **near, **other))

    def _set_mode(self, pair: str, way: str) -> None:
        """Have the pool's packets go so, and return once they do, with containers of the MTU that goes with it."""
        spec = json.dumps({"spec": MODES[way]})
        self._run(f"{pair}-1", f"fabricctl patch ippool {POOL_NAME} -p '{spec}'")
        device, mtu = DEVICES[way]
        shows = re.compile(rf" dev {re.escape(device)} .* mtu {mtu} ", re.DOTALL)
        for number, far in ((1, 2), (2, 1)):
            look = f"ip route get {CONTAINERS[far]}; ip -n box link show dev eth0"
            node = f"{pair}-{number}"
            self._until(partial(self._shows, shows, node, look), f"{node}: packets go {way}")

    def _shows(self, pattern: re.Pattern[str], node: str, look: str) -> bool:
        return bool(pattern.search(self._run(node, look)))

    def _docker_box(self, node: str) -> Place:
        pid = self._run(node, "docker inspect --format '{{.State.Pid}}' box").strip()
        return Place(node, f"/proc/{pid}/ns/net")

    # Taking down

    def _stop_containers(self) -> None:
        for pair, way in self._wanted.items():
            for number in NODES if way == DOCKER else ():
                self._lab.exec(f"{pair}-{number}", ["docker", "rm", "--force", "box"], check=False)

    def _remove_groups(self) -> None:
        """Remove what dockerd made of control groups, which are the host's."""
        for top in (*CGROUPS.glob(f"*/{self._group}"), CGROUPS / self._group):
            for group in (*sorted(top.glob("**/"), reverse=True), top):
                with suppress(OSError):
                    group.rmdir()

    def _run(self, node: str, script: str) -> str:
        return self._lab.exec(node, ["sh", "-euc", script], timeout=WITHIN).stdout


def _now() -> str:
    return Path("/proc/stat").read_text().partition("\n")[0]


def _busy(line: str) -> float:
    """Return the seconds that all processors together had worked since the boot, by the first line of /proc/stat."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
