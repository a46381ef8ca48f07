"""Drives the lab `policy`: a prober in every workload, on the nodes and outside, and real packets for cases."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fabric.config import LOG
from fabric.lab.lab import Lab
from fabric.lab.node import NodeProcess
from fabric.model.base import Resource
from fabric.model.wire import from_tree
from policy.cases import Case, Suite, read
from policy.form import TCP, UDP
from policy.scene import Scene, packet, scene, who
from tests.probing import PROGRAM, Prober, Shot, answered
from tests.scenarios.fabric import SHIPPED
from tests.scenarios.shipped import shipped

STREAM = Path(__file__).with_name("stream.py")
PATTERNS = SHIPPED / "policy" / "patterns"
NAMES = sorted(file.name.removesuffix(".test.yaml") for file in PATTERNS.glob("*.test.yaml"))
OUTSIDE = ("10.10.4.2", "10.10.4.70", "fd00:10:4::2", "fd00:10:4::70")
ETCD = ("fabricctl", "--etcd", "127.0.0.1:2379")
WAIT = 0.3  # seconds: an answer takes a few milliseconds where nothing is in its way
_KINDS = ("nodes", "workloadendpoints", "profiles")


def suite(name: str) -> Suite:
    """Return the cases of a pattern."""
    file = PATTERNS / f"{name}.test.yaml"
    return read(file.read_text(), str(file.relative_to(SHIPPED.parent)))


def policies(name: str) -> str:
    return (PATTERNS / f"{name}.yaml").read_text()


@dataclass(frozen=True, slots=True)
class Where:
    """How to get to a place from its node, and its addresses there."""

    node: str
    enter: tuple[str, ...]
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stream:
    """One run of tests/scenarios/stream.py."""

    process: NodeProcess

    def line(self) -> str:
        """Wait for the next line."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def end(self) -> list[float]:
        """Return when something came in."""
        self.process.terminate()
        out, _ = self.process.communicate(timeout=10)
        times: list[float] = json.loads(out.splitlines()[-1])
        return times


@dataclass(frozen=True)
class PolicyLab:
    """The lab while it is up, with who is there, and a prober at each: "prod/web", "node1", "outside"."""

    lab: Lab
    resources: tuple[Resource, ...]  # all but policy
    scene: Scene
    places: Mapping[str, Where]
    probers: Mapping[str, Prober]

    def ctl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run `fabricctl` beside the datastore, and return what it prints."""
        return self.lab.exec("etcd", [*ETCD, *arguments], input=stdin, check=check).stdout

    def on(self, node: str, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.lab.exec(node, argv, check=check)

    def ask(self, node: str, *arguments: str) -> Any:
        return json.loads(self.on(node, "fabricctl", *arguments, "-o", "json").stdout)

    def address(self, workload: str, version: int = 4) -> str:
        return next(str(a) for a in who(self.scene, workload).addresses if a.version == version)

    @contextmanager
    def applied(self, text: str) -> Iterator[None]:
        """These resources are there while the block runs."""
        self.ctl("apply", "-f", "-", stdin=text)
        try:
            yield
        finally:
            self.ctl("delete", "-f", "-", stdin=text)

    def log(self, node: str, event: str) -> list[Any]:
        """Return the lines of that event in a node's log."""
        lines = map(json.loads, self.on(node, "cat", str(LOG)).stdout.splitlines())
        return [line for line in lines if line["event"] == event]

    @contextmanager
    def stream(self, place: str, *arguments: str) -> Iterator[Stream]:
        """Run tests/scenarios/stream.py at a place while the block runs; it has begun when the block does."""
        where = self.places[place]
        argv = [*where.enter, sys.executable, "-I", "-S", str(STREAM), *arguments]
        with self.lab.popen(where.node, argv, stdout=subprocess.PIPE) as process:
            stream = Stream(process)
            try:
                assert stream.line() in {"ready", "comes"}
                yield stream
            finally:
                process.kill()

    def shot(self, case: Case) -> Shot:
        source, destination = who(self.scene, case.source), who(self.scene, case.destination)
        sent = packet(source, destination, case.asked, case.family)
        place = "outside" if str(sent.source) in OUTSIDE else case.source
        # From any port, unless the case gives one.
        return Shot(place, replace(sent, source_port=case.asked.source_port))

    def missed(self, cases: Sequence[Case]) -> list[str]:
        """Send them all at once, and return those that became of otherwise than expected."""
        came = answered(self.probers, [self.shot(case) for case in cases], WAIT)
        return [
            f"{case.where}: {case}: expected {case.expect}, {'came through' if got else 'did not come through'}"
            for case, got in zip(cases, came, strict=True)
            if got != (case.expect == "allow")
        ]


@contextmanager
def up() -> Iterator[PolicyLab]:
    """Bring the lab up under a name of this process's own, with everybody answering at all ports that cases ask for."""
    with ExitStack() as owned:
        lab = owned.enter_context(shipped("policy"))
        resources = tuple(_resources(lab))
        seen = scene(resources)
        places, probers = _places(seen), {}
        for place, where in places.items():
            pipe = subprocess.PIPE
            prober = Prober(lab.popen(where.node, [*where.enter, *PROGRAM], stdin=pipe, stdout=pipe))
            owned.callback(prober.close)
            prober.listen(where.addresses, _ports())
            probers[place] = prober
        yield PolicyLab(lab, resources, seen, places, probers)


def _resources(lab: Lab) -> Iterator[Resource]:
    for kind in _KINDS:
        listed = lab.exec(
            "etcd", [*ETCD, "get", kind, *(["-A"] if kind == "workloadendpoints" else []), "-o", "json"]
        )
        for item in json.loads(listed.stdout)["items"]:
            found = from_tree(item)
            assert isinstance(found, Resource), found
            yield found


def _places(seen: Scene) -> dict[str, Where]:
    found = {"outside": Where("outside", (), OUTSIDE)}
    for one in seen.resources.workloads:
        workload = one.spec.workload
        addresses = tuple(str(network.network_address) for network in one.spec.ip_networks)
        inside = ("nsenter", f"--net=/run/netns/{workload}")
        found[f"{one.metadata.namespace}/{workload}"] = Where(one.spec.node, inside, addresses)
    for node in seen.sites:
        found[node] = Where(node, (), tuple(map(str, who(seen, node).addresses)))
    return found


def _ports() -> dict[int, set[int]]:
    asked = [case.asked for name in NAMES for case in suite(name).cases]
    return {protocol: {a.port for a in asked if a.protocol == protocol} for protocol in (TCP, UDP)}
