"""Measure policy beside the bare tools, in one run, in namespaces and a lab of its own.

    python -m tests.bench.policy [--rounds N] [--policies N] [--seconds N] [--json FILE] [--plot FILE]

From resources as they are stored to rules in the kernel, by the agent's own parts: all of it at once, then one change
of a label and one of a policy. The peer restores the very text that ours came to, with ipset and iptables-nft-restore,
in a namespace beside. The same through a node, from etcd to the kernel. Then what forwarding costs through rules,
beside the same links without any. A missed target is printed, and is no failure of the run.
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from statistics import median

from fabric.errors import FabricError
from fabric.model.base import Resource, Tree
from fabric.model.wire import from_json
from fabric.plan import ipsets
from fabric.plan.tables import VERSIONS
from policy.form import Site
from policy.items import key
from policy.world import Resources
from tests.bench import report
from tests.bench.attach import ETCD, POOL, bench_lab, inside
from tests.bench.processes import run
from tests.bench.report import Figure, Row
from tests.contract.netns import Namespace
from tests.contract.policy_host import CONTAINERS, NODE, PolicyHost
from tests.contract.policy_rules import Change, Rules

ROUNDS, POLICIES, ENDPOINTS, SECONDS = 7, 1_000, 100, 3
NAMESPACES, APPS = 20, 50  # a policy selects one app of one namespace: 10 policies for each endpoint
BIG = 10_000
CONNECTIONS = 200
MOST_COLD, MOST_CHANGE, LEAST_FORWARDING, LEAST_WITH_POLICIES = 2.0, 3.0, 0.97, 0.90
SITE = Site(NODE)
TRACKED = """
add table ip t; add chain ip t forward { type filter hook forward priority 0; };
add rule ip t forward ct state established,related accept
"""
LIVE = "tests.bench.policy_live"
RESTORE = {4: "iptables-nft-restore", 6: "ip6tables-nft-restore"}

Samples = dict[str, list[float]]


# What is put in force


def policy(number: int, ports: Sequence[int] = (80, 443)) -> Tree:
    app, namespace = number % APPS, f"ns{number % NAMESPACES}"
    rule = {"action": "Allow", "protocol": "TCP", "destination": {"ports": [*ports]}}
    others = {"selector": f"app == 'a{(app + 1) % APPS}'", "namespaceSelector": "all()"}
    spec = {
        "order": number,
        "selector": f"app == 'a{app}'",
        "types": ["Ingress", "Egress"],
        "ingress": [
            {**rule, "source": others},
            {
                "action": "Deny",
                "source": {"nets": [f"10.{number % 200}.0.0/16"], "notNets": [f"10.{number % 200}.7.0/24"]},
            },
        ],
        "egress": [
            {**rule, "destination": others | {"ports": [*ports]}},
            {"action": "Allow", "protocol": "UDP", "destination": {"ports": [53]}},
        ],
    }
    return tree("NetworkPolicy", f"p{number}", spec, namespace)


def endpoint(number: int, label: str = "") -> Tree:
    namespace, app = f"ns{number % NAMESPACES}", label or f"a{number % APPS}"
    spec = {
        "orchestrator": "fabricctl",
        "workload": f"w{number}",
        "node": NODE,
        "endpoint": "eth0",
        "interfaceName": f"fab{number:012x}",
        "ipNetworks": [f"10.77.{number // 250}.{number % 250 + 1}/32", f"fd00:77::{number + 1:x}/128"],
        "profiles": [f"kns.{namespace}"],
    }
    return tree("WorkloadEndpoint", f"{NODE}-fabricctl-w{number}-eth0", spec, namespace, {"app": app})


def profile(number: int) -> Tree:
    allow = [{"action": "Allow"}]
    labels = {"pcns.projectcalico.org/name": f"ns{number}"}
    return tree("Profile", f"kns.ns{number}", {"ingress": allow, "egress": allow, "labelsToApply": labels})


def tree(kind: str, name: str, spec: Tree, namespace: str = "", labels: Tree | None = None) -> Tree:
    metadata: Tree = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": kind,
        "metadata": metadata | ({"labels": labels} if labels else {}),
        "spec": spec,
    }


def read(trees: Sequence[Tree]) -> list[Resource]:
    """Read them as the agent reads a value of the datastore."""
    return [from_json(text) for text in map(json.dumps, trees)]


# From resources to rules


def as_files(change: Change, folder: Path) -> list[tuple[str, Path]]:
    """Write what a change comes to as the bare tools take it, and return the commands with their input."""
    texts = {
        "before": ("ipset restore", "".join(_ipset_lines(change.sets.before))),
        **{str(v): (f"{RESTORE[v]} -w --noflush", change.steps[v].text) for v in VERSIONS},
        "after": ("ipset restore", "".join(_ipset_lines(change.sets.after))),
    }
    for name, (_, text) in texts.items():
        (folder / name).write_text(text)
    return [(command, folder / name) for name, (command, text) in texts.items() if text]


def _ipset_lines(ops: Sequence[ipsets.Op]) -> Iterator[str]:
    for op in ops:
        match op:
            case ipsets.Create(name, ipset):
                family = "inet" if ipset.version == 4 else "inet6"
                yield f"create {name} {ipset.kind} family {family} maxelem 1048576\n"
                yield from (f"add {name} {member}\n" for member in sorted(ipset.members))
            case ipsets.Rewrite(name, ipset):
                yield f"flush {name}\n"
                yield from (f"add {name} {member}\n" for member in sorted(ipset.members))
            case ipsets.Add(name, ipset):
                yield from (f"add {name} {member}\n" for member in sorted(ipset.members))
            case ipsets.Delete(name, ipset):
                yield from (f"del {name} {member}\n" for member in sorted(ipset.members))
            case ipsets.Destroy(name):
                yield f"destroy {name}\n"


def took(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


class Twins:
    """Two namespaces that go through the same changes: ours, and the bare tools'."""

    def __init__(self, folder: Path, samples: Samples) -> None:
        self.folder, self.samples = folder, samples

    def __enter__(self) -> Twins:
        self._owned = ExitStack()
        self.rules = Rules(self._owned.enter_context(Namespace()))
        self.peer = self._owned.enter_context(Namespace())
        return self

    def __exit__(self, *exc: object) -> None:
        self._owned.close()

    def change(self, what: str, make: Callable[[], Resources]) -> None:
        """Make the change with ours, then with the tools alone, and note what each took."""
        made: list[Change] = []

        def ours() -> None:
            made.append(self.rules.decide(make(), SITE))
            self.rules.apply(made[0])

        self.samples[f"{what}: ours"].append(took(ours))
        commands = as_files(made[0], self.folder)
        assert commands, what

        def bare() -> None:
            for command, file in commands:
                run(command.split(), stdin=file)

        self.samples[f"{what}: peer"].append(self.peer.call(lambda: took(bare)))


def from_resources(folder: Path, rounds: int, policies: int, samples: Samples) -> None:
    stored = [
        *(policy(number) for number in range(policies)),
        *(endpoint(number) for number in range(ENDPOINTS)),
        *(profile(number) for number in range(NAMESPACES)),
    ]
    for number in range(rounds):
        with Twins(folder, samples) as twins:
            twins.change("cold", partial(Resources.of, Later(stored)))
            world = Resources.of(read(stored))
            twins.rules.decide(world, SITE)  # equal values, of other identities: that is not what is measured
            labelled = changed(world, endpoint(0, "other"))
            twins.change("label", partial(changed, world, endpoint(0, "other")))
            twins.rules.decide(labelled, SITE)
            twins.change("policy", partial(changed, labelled, policy(1, [8000 + number])))
            twins.rules.check()


class Later:
    """Resources that are read when they are asked for."""

    def __init__(self, trees: Sequence[Tree]) -> None:
        self.texts = [*map(json.dumps, trees)]

    def __iter__(self) -> Iterator[Resource]:
        return map(from_json, self.texts)


def changed(before: Resources, one: Tree) -> Resources:
    """Return `before` with one resource as it is now; what did not change is the same object, as in the agent."""
    (now,) = read([one])
    found = Resources.of([now])
    (name,) = [field.name for field in fields(found) if getattr(found, field.name)]
    others = [each for each in getattr(before, name) if key(each) != key(now)]
    return replace(before, **{name: (*others, now)})


def big_set(folder: Path, rounds: int, samples: Samples) -> None:
    nets = [f"172.{16 + n // 65536}.{n // 256 % 256}.{n % 256}/32" for n in range(BIG)]
    rule = {"action": "Deny", "source": {"selector": "big == 'yes'"}}
    spec = {"selector": "all()", "types": ["Ingress"], "ingress": [rule]}
    some, many, other = (
        tree("GlobalNetworkSet", "big", {"nets": held}, labels={"big": "yes"})
        for held in (nets[:1], nets, [*nets[1:], "192.0.2.1/32"])
    )
    for _ in range(rounds):
        with Twins(folder, samples) as twins:
            before = Resources.of(
                read([tree("GlobalNetworkPolicy", "block", spec), endpoint(0), profile(0), some])
            )
            twins.change("", partial(replace, before))
            twins.change("set", partial(changed, before, many))
            twins.change("member", partial(changed, changed(before, many), other))


# Through rules


def forwarding(rounds: int, counts: Sequence[int], seconds: int, samples: Samples) -> None:
    """One pair of hosts with rules, one without, in turn; and one with the least that knows of connections."""
    with PolicyHost() as ours, PolicyHost() as bare, PolicyHost() as tracked:
        tracked.router.command("nft", TRACKED)
        a, b = CONTAINERS[:2]
        containers = [
            tree(
                "WorkloadEndpoint",
                f"{NODE}-fabricctl-{place.name}-eth0",
                {
                    "orchestrator": "fabricctl",
                    "workload": place.name,
                    "node": NODE,
                    "endpoint": "eth0",
                    "interfaceName": place.link,
                    "ipNetworks": [f"{address}/{address.max_prefixlen}" for address in place.own],
                    "profiles": ["kns.ns0"],
                },
                "ns0",
            )
            for place in (a, b)
        ]
        rules = Rules(ours.router)
        for count in counts:
            selecting = [
                tree(
                    "GlobalNetworkPolicy",
                    f"p{n}",
                    {"order": n, "types": ["Ingress"], "ingress": [_rule(n, count)]},
                )
                for n in range(count)
            ]
            rules.put(Resources.of(read([*containers, *selecting, profile(0)])), SITE)
            turn = [("ours", ours), ("peer", bare), *([] if count else [("tracked", tracked)])]
            for _ in range(rounds):
                turn.reverse()
                for name, host in turn:
                    for what, value in _through(host, str(b.own[0]), seconds).items():
                        samples[f"{what}, {count} policies: {name}"].append(value)


def _rule(number: int, count: int) -> Tree:
    """Return a rule that does not match, and for the last policy one that does."""
    if number == count - 1:
        return {"action": "Allow"}
    return {
        "action": "Allow",
        "protocol": "TCP",
        "source": {"nets": [f"172.16.{number // 256}.{number % 256}/32"]},
    }


CONNECT = """
import json, socket, sys, time
def once(standing):
    began = time.perf_counter()
    if standing:
        standing.send(b"x"); standing.recv(1)
    else:
        socket.create_connection((sys.argv[1], 9)).close()
    return time.perf_counter() - began
many = range(int(sys.argv[2]))
standing = socket.create_connection((sys.argv[1], 9))
standing.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
print(json.dumps([[once(s) for _ in many] for s in (standing, None)]))
"""
ANSWER = """
import socket, threading
def answer(connection):
    while data := connection.recv(64):
        connection.send(data)
listener = socket.create_server(("", 9), backlog=1024)
print("ready", flush=True)
while True:
    threading.Thread(target=answer, args=listener.accept()[:1], daemon=True).start()
"""


def _through(host: PolicyHost, address: str, seconds: int) -> Mapping[str, float]:
    """Return Gbit/s, and microseconds of a round trip on a standing connection and of a new connection."""
    a, b = (host.spaces[place.name] for place in CONTAINERS[:2])
    pipe = subprocess.PIPE
    python = [sys.executable, "-I", "-S", "-c"]
    found = {}
    with ExitStack() as running:
        for argv in (["iperf3", "-s", "--forceflush"], [*python, ANSWER]):
            server = b.call(lambda argv=argv: subprocess.Popen(argv, stdout=pipe, text=True))  # type: ignore[misc]
            running.enter_context(server)
            running.callback(server.kill)
            assert server.stdout
            # iperf3 draws a line first.
            assert server.stdout.readline()
        _listening(b, 5201)
        said = _output(a, ["iperf3", "-c", address, "-t", str(seconds), "-J"])
        found["throughput"] = json.loads(said)["end"]["sum_received"]["bits_per_second"] / 1e9
        standing, new = json.loads(_output(a, [*python, CONNECT, address, str(CONNECTIONS)]))
        found["round trip"], found["new connection"] = median(standing) * 1e6, median(new) * 1e6
    return found


def _listening(space: Namespace, port: int) -> None:
    deadline = time.monotonic() + 10
    while not space.command("ss", "-Hltn", f"sport = :{port}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _output(space: Namespace, argv: Sequence[str]) -> str:
    done = space.call(lambda: subprocess.run(argv, capture_output=True, text=True, timeout=50))
    if done.returncode:
        raise FabricError(f"{argv[0]}: exit status {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


# What is told


def measure(rounds: int, policies: int, seconds: int) -> Samples:
    samples: Samples = defaultdict(list)
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)  # as the agent has it
    with tempfile.TemporaryDirectory(dir="/run") as folder:
        from_resources(Path(folder), rounds, policies, samples)
        big_set(Path(folder), rounds, samples)
    with ExitStack() as owned:
        lab = bench_lab(owned)
        lab.exec("node", ["fabricctl", "node", "join", "--name", NODE, "--etcd", ETCD, "--pool", POOL])
        samples.update(
            {what: [*each] for what, each in inside(lab, "node", LIVE, ETCD, rounds, policies).items()}
        )
    forwarding(rounds, (0, 100, policies), seconds, samples)
    return samples


def rows(samples: Samples, policies: int) -> list[Row]:
    tools = "ipset + iptables-nft-restore"
    named = {
        "cold": f"{policies} policies, {ENDPOINTS} endpoints: stored to in force",
        "label": "a label changed",
        "policy": "a policy changed",
        "live cold": "the same by a node: agent at its start to in force",
        "live label": "label changed in etcd to in force, a list of its own",
        "live policy": "policy changed in etcd to in force",
        "live label of others": "label changed in etcd to in force, a list that others have",
        "set": f"a set of {BIG} filled",
        "member": "one of its members changed",
    }
    made = [
        Row.beside(name, "ms", _times(samples, what, "ours"), _times(samples, what, "peer"), tools)
        for what, name in named.items()
    ]
    made.append(
        Row("of an agent's start, Python and imports before that", "ms", Figure.of(_ms(samples["start"])))
    )
    units = {"throughput": "Gbit/s", "round trip": "us", "new connection": "us"}
    for what, unit in units.items():
        tracked, none = samples[f"{what}, 0 policies: tracked"], samples[f"{what}, 0 policies: peer"]
        made.append(
            Row.beside(f"{what}, one rule that lets established through", unit, tracked, none, "no rules")
        )
        for count in (0, 100, policies):
            key = f"{what}, {count} policies"
            made.append(Row.beside(key, unit, samples[f"{key}: ours"], samples[f"{key}: peer"], "no rules"))
    return made


def _times(samples: Samples, what: str, whose: str) -> list[float]:
    return _ms(samples[f"{what}: {whose}"])


def _ms(samples: Sequence[float]) -> list[float]:
    return [seconds * 1000 for seconds in samples]


def targets(made: Sequence[Row], policies: int) -> list[str]:
    """Return one line a target: what it is, and whether this run met it."""
    ratio = {row.name: row.ratio.median for row in made if row.ratio}
    limits = (MOST_COLD, MOST_CHANGE, MOST_CHANGE) * 2
    timed = [(row.name, ratio[row.name], most) for row, most in zip(made, limits, strict=False)]
    none, many = ratio["throughput, 0 policies"], ratio[f"throughput, {policies} policies"]
    return [
        *(
            f"{_verdict(found <= most)}: {name}: at most {most:g} times the restore: {found:.2f}x"
            for name, found, most in timed
        ),
        f"{_verdict(none >= LEAST_FORWARDING)}: throughput without policy at least {LEAST_FORWARDING:g}: {none:.2f}x",
        f"{_verdict(many >= LEAST_WITH_POLICIES)}: with {policies} at least {LEAST_WITH_POLICIES:g}: {many:.2f}x",
    ]


def _verdict(met: bool) -> str:
    return "met   " if met else "MISSED"


def main(argv: Sequence[str]) -> int:
    """Return 0 if everything was measured, 130 if interrupted, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.policy")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns (default: %(default)s)")
    parser.add_argument("--policies", type=int, default=POLICIES, help="how many (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of traffic (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write an SVG to this file")
    chosen = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        made = rows(measure(chosen.rounds, chosen.policies, chosen.seconds), chosen.policies)
    except KeyboardInterrupt:
        return 130
    except FabricError as err:
        print(f"bench: {err}", file=sys.stderr)
        return 1
    report.print_table(made)
    print("\n" + "\n".join(targets(made, chosen.policies)))
    if chosen.json:
        report.write_json(made, chosen.json)
    if chosen.plot:
        report.write_plot(made, chosen.plot, log=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
