"""Drives a quickstart lab as its operator would, and looks at what the command line does not say for itself.

What a test attaches stays until the lab goes down: the lab's owner is the fixture or block that brought it up.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar

from fabric.lab.lab import Lab
from fabric.lab.node import NodeProcess
from tests.scenarios.labs import NOBODY

T = TypeVar("T")

SHIPPED = Path(__file__).parents[2] / "containerlab"
FLOW = Path(__file__).with_name("flow.py")
ETCD = "10.10.3.2:2379"
POOL = ip_network("10.77.0.0/16")
OUTSIDE = "outside"
OUTSIDE_ADDRESS = "10.10.4.2"
PORT = 7777  # of every echo
DEADLINE = 30.0  # seconds for any one condition

# What each process of ours is called by in `ps`, as pgrep takes it.
SUPERVISOR, AGENT, SPEAKER = "-m fabric.ops.supervise", "-m fabric.agent", "-m bgp.speaker"
EXABGP = "exabgp_main.py server"
OURS = "fabric.ops|fabric.agent|bgp.speaker|exabgp|speaker/pump"


def until(condition: Callable[[], T], within: float = DEADLINE) -> T:
    """Return what `condition` gives once that is true; its last answer is in the failure."""
    deadline = time.monotonic() + within
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"still {answer!r} after {within:.0f} s"
        time.sleep(0.05)
    return answer


@dataclass(frozen=True, slots=True)
class Member:
    """One node of the lab, and its peer."""

    name: str
    address: str
    as_number: int
    router: str


NODE1 = Member("node1", "10.10.1.2", 65001, "10.10.1.1")
NODE2 = Member("node2", "10.10.2.2", 65002, "10.10.2.1")


@dataclass(frozen=True, slots=True)
class Router:
    """The top-of-rack router and how to read its mind.

    `table` gives its BGP table, prefix to next hops, our default route left out; `updates` how many UPDATEs
    (BIRD: prefixes in them, withdrawals included) a node has sent in this session; `up` whether that stands.
    """

    name: str
    file: Path
    table: Callable[[Lab], dict[str, list[str]]]
    updates: Callable[[Lab, Member], int]
    up: Callable[[Lab, Member], bool]


def _vtysh(lab: Lab, command: str) -> Any:
    return json.loads(lab.exec("tor", ["vtysh", "-c", f"{command} json"]).stdout)


def _frr_table(lab: Lab) -> dict[str, list[str]]:
    routes = _vtysh(lab, "show bgp ipv4 unicast")["routes"]
    return {
        prefix: sorted(hop["ip"] for path in paths for hop in path["nexthops"])
        for prefix, paths in routes.items()
    }


def _frr_neighbour(lab: Lab, member: Member) -> Any:
    return _vtysh(lab, f"show bgp neighbors {member.address}")[member.address]


def _bird_table(lab: Lab) -> dict[str, list[str]]:
    text = lab.exec("tor", ["birdc", "show", "route", "table", "master4"]).stdout
    found = re.findall(r"^(\S+/\d+) +unicast .*\n\tvia (\S+)", text, re.MULTILINE)
    return {prefix: [next_hop] for prefix, next_hop in found}


def _bird_protocol(lab: Lab, member: Member) -> str:
    return lab.exec("tor", ["birdc", "show", "protocols", "all", member.name]).stdout


def _bird_updates(lab: Lab, member: Member) -> int:
    return sum(map(int, re.findall(r"Import (?:updates|withdraws): +(\d+)", _bird_protocol(lab, member))))


FRR = Router(
    "frr",
    SHIPPED / "quickstart.clab.yml",
    _frr_table,
    lambda lab, member: int(_frr_neighbour(lab, member)["messageStats"]["updatesRecv"]),
    lambda lab, member: _frr_neighbour(lab, member)["bgpState"] == "Established",
)
BIRD = Router(
    "bird",
    SHIPPED / "quickstart-bird.clab.yml",
    _bird_table,
    _bird_updates,
    lambda lab, member: "Established" in _bird_protocol(lab, member),
)
ROUTERS = (FRR, BIRD)


@dataclass(frozen=True, slots=True)
class Report:
    """What a flow's sender says at its end; `pause` is the longest between two datagrams sent, in seconds."""

    sent: int
    lost: list[int]
    pause: float
    seen_as: list[str]


@dataclass(frozen=True, slots=True)
class Fabric:
    """One lab and its router."""

    lab: Lab
    router: Router

    def run(
        self, node: str, *argv: str, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.lab.exec(node, argv, check=check, input=stdin)

    def run_as_nobody(self, node: str, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run as a user without rights, to whom this checkout is open in the node, wherever it is.

        Its folders may be root's alone; the node has them as overlays, so the host's stay as they are.
        """
        if closed := [str(folder) for folder in SHIPPED.parents if not folder.stat().st_mode & 0o001]:
            self.run(node, "chmod", "o+x", *closed)
        return self.run(node, *NOBODY, *argv, check=check)

    def ctl(self, node: str, *arguments: str, stdin: str | None = None) -> str:
        """Return what `fabricctl` prints; it must succeed."""
        return self.run(node, "fabricctl", *arguments, stdin=stdin).stdout

    def ask(self, node: str, *arguments: str) -> Any:
        return json.loads(self.ctl(node, *arguments, "-o", "json"))

    def refused(self, node: str, *arguments: str) -> str:
        """Return the message of a `fabricctl` that must fail, as an operator's mistake and not as a crash."""
        done = self.run(node, "fabricctl", *arguments, check=False)
        assert done.returncode == 1, done
        assert "Traceback" not in done.stderr
        return done.stderr

    # Nodes and containers

    def join_arguments(self, member: Member, *options: str) -> list[str]:
        return [
            *("node", "join", "--name", member.name, "--etcd", ETCD, "--pool", str(POOL)),
            *("--as", str(member.as_number), "--peer", f"{member.router}=65000", *options),
        ]

    def join(self, *members: Member) -> None:
        """Join them all at the same moment."""
        with ExitStack() as running:
            pipe = subprocess.PIPE
            joining = [
                running.enter_context(
                    self.lab.popen(m.name, ["fabricctl", *self.join_arguments(m)], stdout=pipe, stderr=pipe)
                )
                for m in members
            ]
            for process in joining:
                out, err = process.communicate(timeout=60)
                assert process.returncode == 0, out + err

    def netns(self, node: str, name: str) -> str:
        """Make a namespace and return its path."""
        self.run(node, "ip", "netns", "add", name)
        return f"/run/netns/{name}"

    def attach(self, node: str, name: str, *options: str) -> str:
        """Attach a namespace of its own as workload `name` and return its first address."""
        path = self.netns(node, name)
        attached = self.ask(node, "workload", "add", name, "--netns", path, *options)
        address: str = attached[0]["addresses"][0]
        return address

    def workloads(self, node: str) -> dict[str, Any]:
        return {w["name"]: w for w in self.ask(node, "workload", "list")}

    def pings(self, node: str, address: str, name: str = "") -> bool:
        """Whether `address` answers, from workload `name` of the node or from the node itself."""
        inside = ["nsenter", f"--net=/run/netns/{name}"] if name else []
        return not self.run(node, *inside, "ping", "-nc1", "-W2", address, check=False).returncode

    # What is so

    def sessions(self, node: str) -> list[Any]:
        sessions: list[Any] = self.ask(node, "bgp", "peers")
        return sessions

    def established(self, *nodes: str) -> bool:
        return all(s["state"] == "Established" for node in nodes for s in self.sessions(node))

    def blocks(self, node: str) -> list[str]:
        return [block["prefix"] for block in self.ask(node, "node", "status")["blocks"]]

    def table(self) -> dict[str, list[str]]:
        return self.router.table(self.lab)

    def keys(self) -> dict[str, str]:
        """Return everything in etcd."""
        return {key: value for key, (_, value) in self.revisions().items()}

    def revisions(self) -> dict[str, tuple[int, str]]:
        """Return all that is in etcd, with its revision, but for what nodes publish by themselves."""
        answer = json.loads(self.run("etcd", "etcdctl", "get", "--prefix", "/", "-w", "json").stdout)
        return {
            key: (kv["mod_revision"], _text(kv.get("value", "")))
            for kv in answer.get("kvs", [])
            if not (key := _text(kv["key"])).startswith("/fabric/v1/bgp/")
        }

    def links(self, node: str) -> list[str]:
        """Return the host ends of ours that the kernel has."""
        shown = json.loads(self.run(node, "ip", "-j", "link", "show", "type", "veth").stdout)
        return sorted(link["ifname"] for link in shown if link["ifname"].startswith("fab"))

    def routes(self, node: str) -> dict[str, str]:
        """Return the routes of ours that the kernel has, of both families: to the device, or "blackhole"."""
        shown = [
            *json.loads(self.run(node, "ip", "-j", "route", "show", "proto", "143").stdout or "[]"),
            *json.loads(self.run(node, "ip", "-6", "-j", "route", "show", "proto", "143").stdout or "[]"),
        ]
        return {r["dst"]: "blackhole" if r.get("type") == "blackhole" else r["dev"] for r in shown}

    def neighbours(self, node: str) -> dict[str, str]:
        """Return the permanent neighbour entries on links of ours, address to MAC."""
        shown = [
            entry
            for family in ("-4", "-6")
            for entry in json.loads(
                self.run(node, "ip", family, "-j", "neigh", "show", "nud", "permanent").stdout or "[]"
            )
        ]
        return {e["dst"]: e["lladdr"] for e in shown if e["dev"].startswith("fab")}

    def host_state(self, node: str) -> Mapping[str, object]:
        """Return all that fabricctl may change on a host: kernel, files, processes."""
        # Less what the kernel does by itself in the first seconds of a link: its IPv6 address and routes.
        shown = (
            *("ip -br -4 addr", "ip -br link", "ip netns", "ip neigh show nud permanent"),
            *("ip -4 route show table all", "ip -6 route show proto 143"),
        )
        files = ("/etc/fabricctl", "/var/lib/fabricctl", "/run/fabricctl")
        return {
            **{command: self.run(node, *command.split()).stdout for command in shown},
            "forwarding": self.run(node, "sysctl", "-n", "net.ipv4.ip_forward").stdout,
            "rules": self.rules(node),
            "ipsets": sorted(self.run(node, "ipset", "save").stdout.splitlines()),
            "files": self.run(node, "find", *files, "-type", "f,s", check=False).stdout,
            "processes": self.pids(node, OURS),
        }

    def rules(self, node: str) -> dict[str, list[str]]:
        """Return the packet filter's rules, of both families and backends, without counters."""
        tools = ("iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save")
        return {
            tool: [
                line for line in self.run(node, tool).stdout.splitlines() if line.startswith(("-A", ":fab"))
            ]
            for tool in tools
        }

    # Processes

    def pids(self, node: str, pattern: str) -> list[int]:
        """Return the processes of the node's own pid namespace that match."""
        return [int(pid) for pid in self.run(node, "pgrep", "-f", "--", pattern, check=False).stdout.split()]

    def kill(self, node: str, *patterns: str) -> None:
        """Kill -9 one process for each pattern, all in the same call."""
        pids = []
        for pattern in patterns:
            found = self.pids(node, pattern)
            assert len(found) == 1, f"{pattern}: {found}"
            pids.append(str(found[0]))
        self.run(node, "kill", "-9", *pids)

    @contextmanager
    def frozen_etcd(self) -> Iterator[None]:
        """etcd accepts connections and answers nothing until the block ends."""
        (pid,) = self.pids("etcd", "^etcd ")
        self.run("etcd", "kill", "-STOP", str(pid))
        try:
            yield
        finally:
            self.run("etcd", "kill", "-CONT", str(pid))

    # Traffic

    @contextmanager
    def echo(self, node: str, netns: str = "") -> Iterator[None]:
        """Answer datagrams in a namespace of the node, or in its own."""
        with self._flow(node, netns, "echo", str(PORT)) as process:
            yield
            process.kill()

    @contextmanager
    def sender(self, node: str, netns: str, address: str) -> Iterator[Callable[[], Report]]:
        """Send to an echo, which answers already when the block begins; call the result to end it."""
        with self._flow(node, netns, "send", address, str(PORT)) as process:

            def finish() -> Report:
                process.terminate()
                out, _ = process.communicate(timeout=10)
                return Report(**json.loads(out))

            yield finish

    @contextmanager
    def _flow(self, node: str, netns: str, *arguments: str) -> Iterator[NodeProcess]:
        inside = ["nsenter", f"--net={netns}"] if netns else []
        argv = [*inside, sys.executable, "-I", "-S", str(FLOW), *arguments]
        with self.lab.popen(node, argv, stdout=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stdout.readline() == "ready\n", f"{node}: no answer for {' '.join(arguments)}"
            yield process


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode()


def in_pool(address: str) -> IPv4Address | IPv6Address:
    found = ip_address(address)
    assert found in POOL
    return found


@contextmanager
def up(router: Router, name: str) -> Iterator[Fabric]:
    """Bring a lab up under a name of this process's own; nobody has joined."""
    with Lab.load(router.file, name=f"{name}-{router.name}-{os.getpid()}") as lab:
        yield Fabric(lab, router)
