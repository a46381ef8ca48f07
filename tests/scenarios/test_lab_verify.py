"""`lab verify` for real: what holds is found to hold, and every kind of expectation is missed when it is broken."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml
from junitparser import JUnitXml

from fabric.lab import expect, faults
from fabric.lab import source as sources
from fabric.lab.lab import Lab
from fabric.lab.verify import Result, verify
from tests.scenarios.fabric import FRR, NODE1, NODE2, OURS, SUPERVISOR, Fabric, up
from tests.scenarios.labs import until

CLI = [sys.executable, "-m", "fabric.cli.main", "lab"]
SOON = 10.0  # seconds for what holds
MISSED = 0.5  # seconds for what does not

# a and b with a router in between, both families. The router refuses two ports, one in each way there is.
LINE = """
    a:
      exec:
        - ip address add 10.1.0.2/24 dev eth1
        - ip address add fd00:1::2/64 dev eth1 nodad
        - ip route add default via 10.1.0.1
        - ip route add default via fd00:1::1
        - ip route add 10.3.0.0/24 nexthop via 10.1.0.1 nexthop via 10.1.0.3
        - ip netns add inner
    r:
      exec:
        - sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
        - ip address add 10.1.0.1/24 dev eth1
        - ip address add 10.2.0.1/24 dev eth2
        - ip address add fd00:1::1/64 dev eth1 nodad
        - ip address add fd00:2::1/64 dev eth2 nodad
        - iptables -A FORWARD -p tcp --dport 98 -j DROP
        - ip6tables -A FORWARD -p udp --dport 99 -j REJECT
    b:
      exec:
        - ip address add 10.2.0.2/24 dev eth1
        - ip address add fd00:2::2/64 dev eth1 nodad
        - ip route add default via 10.2.0.1
        - ip route add default via fd00:2::1
  links:
    - {endpoints: ["a:eth1", "r:eth1"], mtu: 1500}
    - {endpoints: ["b:eth1", "r:eth2"], mtu: 1500}
"""
BETWEEN = "endpoints: {b6: {node: b, family: 6}, other: {node: b, address: 10.2.0.9}}\n"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    name = f"line-{os.getpid()}"
    file = tmp_path_factory.mktemp("line") / "line.clab.yml"
    defaults = "{kind: linux, image: alpine, network-mode: none}"
    file.write_text(f"name: {name}\ntopology:\n  defaults: {defaults}\n  nodes:{LINE}")
    with Lab.load(file) as lab:
        whole: defaultdict[str, list[object]] = defaultdict(list)
        for text in [str(param.values[0]) for param in BROKEN]:
            for section, entries in yaml.safe_load(text).items():
                whole[section] += entries
        holds(lab, f"{BETWEEN}leaks: none\n{yaml.safe_dump(dict(whole))}")
        yield lab


def results(lab: Lab, text: str, within: float) -> list[Result]:
    source = sources.parse(f"within: {within}\n{text}", Path("test.verify.yml"), state="nothing was asked")
    return verify(lab, expect.resolve(source, lab.topology))


def holds(lab: Lab, text: str) -> None:
    assert [r for r in results(lab, text, SOON) if not r.holds] == []


def missed(lab: Lab, text: str) -> list[str]:
    """Return what was found in place of each expectation that is not met."""
    return [f"{r.expectation.where}: {r.found}" for r in results(lab, text, MISSED) if not r.holds]


@contextmanager
def changed(lab: Lab, node: str, *changes: tuple[str, str]) -> Iterator[None]:
    """Run commands in a node, and those that undo them after."""
    with ExitStack() as undo:
        for do, undone in changes:
            lab.exec(node, do.split())
            undo.callback(lab.exec, node, undone.split())
        yield


def rule(text: str, tables: str = "iptables") -> tuple[str, str]:
    """Return how a rule is put before all others, and taken away."""
    return f"{tables} {text.replace('-A', '-I')}", f"{tables} {text.replace('-A', '-D')}"


BROKEN = [
    pytest.param(
        "reach: [{from: a, to: b}]",
        "r",
        [rule("-A FORWARD -p icmp -j DROP")],
        ["a -> b: no answer"],
        id="ping",
    ),
    pytest.param(
        "reach: [{from: a, to: b6}]",
        "r",
        [rule("-A FORWARD -p icmpv6 -j REJECT --reject-with icmp6-adm-prohibited", "ip6tables")],
        ["a -> b6: Permission denied"],
        id="ping of IPv6",
    ),
    pytest.param(
        "reach: [{from: a, to: b, tcp: 80}]",
        "r",
        [rule("-A FORWARD -p tcp -j REJECT --reject-with tcp-reset")],
        ["a -> b tcp 80: Connection refused"],
        id="tcp",
    ),
    pytest.param(
        "reach: [{from: [a, r], to: b6, tcp: 80}]",
        "r",
        [rule("-A FORWARD -p tcp --sport 80 -j DROP", "ip6tables")],
        ["a -> b6 tcp 80: no answer"],
        id="tcp of IPv6, from one of two",
    ),
    pytest.param(
        "reach: [{from: a, to: b, udp: 53}]",
        "r",
        [rule("-A FORWARD -p udp --sport 53 -j DROP")],
        ["a -> b udp 53: arrived, but no answer"],
        id="udp, of which the answer is lost",
    ),
    pytest.param(
        "reach: [{from: a, to: b, tcp: 98, expect: refused}]",
        "r",
        [rule("-A FORWARD -p tcp --dport 98 -j ACCEPT")],
        ["a -> b tcp 98: reached"],
        id="a dropped port opened",
    ),
    pytest.param(
        "reach: [{from: a, to: b6, udp: 99, expect: refused}]",
        "r",
        [rule("-A FORWARD -p udp --dport 99 -j ACCEPT", "ip6tables")],
        ["a -> b6 udp 99: reached"],
        id="a rejected port opened",
    ),
    pytest.param(
        "reach: [{from: a, to: b6, udp: 99, expect: refused}]",
        "r",
        [
            rule("-A FORWARD -p udp --dport 99 -j ACCEPT", "ip6tables"),
            rule("-A FORWARD -p udp --sport 99 -j DROP", "ip6tables"),
        ],
        ["a -> b6 udp 99: arrived, but no answer"],
        id="a rejected port opened one way",
    ),
    pytest.param(
        "mtu: [{from: a, to: [b, b6], bytes: 1500}]",
        "r",
        [("ip link set dev eth2 mtu 1400", "ip link set dev eth2 mtu 1500")],
        ["a -> b: 1400", "a -> b6: 1400"],
        id="mtu lowered",
    ),
    pytest.param(
        "mtu: [{from: a, to: b, bytes: 1500}]",
        "r",
        [rule("-A FORWARD -m length --length 1301:65535 -j DROP")],
        ["a -> b: 1300"],
        id="large packets lost in silence",
    ),
    pytest.param(
        "untranslated: [{from: a, to: [b, b6]}]",
        "r",
        [
            rule("-A POSTROUTING -t nat -o eth2 -j MASQUERADE"),
            rule("-A POSTROUTING -t nat -o eth2 -j MASQUERADE", "ip6tables"),
        ],
        [
            "a -> b: 10.2.0.1 -> 10.2.0.2 at b, r; 10.2.0.2 -> 10.2.0.1 at b, r",
            "a -> b6: fd00:2::1 -> fd00:2::2 at b, r; fd00:2::2 -> fd00:2::1 at b, r",
        ],
        id="source translated",
    ),
    pytest.param(
        "untranslated: [{from: a, to: [b, b6], tcp: 80}]",
        "r",
        [rule("-A POSTROUTING -t nat -p tcp -o eth2 -j SNAT --to-source 10.2.0.1")],
        ["a -> b tcp 80: 10.2.0.1 -> 10.2.0.2 at b, r; 10.2.0.2 -> 10.2.0.1 at b, r"],
        id="source of tcp translated",
    ),
    pytest.param(
        "translated: [{from: a, to: b, tcp: 80, as: 10.1.0.2}, {from: a, to: b6, udp: 53, as: 'fd00:1::2'}]",
        "r",
        [
            rule("-A POSTROUTING -t nat -o eth2 -j MASQUERADE"),
            rule("-A POSTROUTING -t nat -o eth2 -j MASQUERADE", "ip6tables"),
        ],
        ["a -> b tcp 80: as 10.2.0.1", "a -> b6 udp 53: as fd00:2::1"],
        id="seen as another than expected",
    ),
    pytest.param(
        "routes: [{node: a, present: [0.0.0.0/0, '::/0']}]",
        "a",
        [("ip -6 route del default", "ip -6 route add default via fd00:1::1")],
        ["a kernel ::/0: absent"],
        id="a route gone",
    ),
    pytest.param(
        "routes: [{node: a, absent: [10.9.0.0/16, 'fd09::/32']}]",
        "a",
        [("ip route add blackhole 10.9.0.0/16", "ip route del 10.9.0.0/16")],
        ["a kernel 10.9.0.0/16: blackhole"],
        id="a route too many",
    ),
    pytest.param(
        "routes: [{node: a, next-hops: {10.3.0.0/24: 2}}]",
        "a",
        [
            (
                "ip route replace 10.3.0.0/24 via 10.1.0.1",
                "ip route replace 10.3.0.0/24 nexthop via 10.1.0.1 nexthop via 10.1.0.3",
            )
        ],
        ["a kernel 10.3.0.0/24: 1: via 10.1.0.1"],
        id="a next hop gone",
    ),
]


@pytest.mark.parametrize(("text", "node", "changes", "found"), BROKEN)
def test_what_holds_is_missed_when_it_is_broken(
    line: Lab, text: str, node: str, changes: list[tuple[str, str]], found: list[str]
) -> None:
    """That it holds while the lab is whole is what `line` has found of all of them at once."""
    with changed(line, node, *changes):
        assert missed(line, BETWEEN + text) == found


def test_a_translated_destination_is_seen_although_the_answer_comes(line: Lab) -> None:
    translation = rule("-A PREROUTING -t nat -d 10.2.0.9 -j DNAT --to-destination 10.2.0.2")
    with changed(line, "r", translation):
        holds(line, BETWEEN + "reach: [{from: a, to: other}]")
        (found,) = missed(line, BETWEEN + "untranslated: [{from: a, to: other}]")
    assert found == "a -> other: 10.1.0.2 -> 10.2.0.2 at b, r; 10.2.0.2 -> 10.1.0.2 at b, r"


PUBLISHED = "published: [{{from: a, to: 10.1.0.1, tcp: 8080, at: b, port: 80{more}}}]"


def test_a_published_port_is_what_leads_to_another(line: Lab) -> None:
    where = "a -> 10.1.0.1 tcp 8080 (b 80)"
    itself, as_router, shut = (
        PUBLISHED.format(more=more) for more in ("", ", sees: 10.2.0.1", ", expect: refused")
    )
    translation = rule("-A PREROUTING -t nat -p tcp -d 10.1.0.1 --dport 8080 -j DNAT --to 10.2.0.2:80")
    assert missed(line, itself) == [f"{where}: Connection refused"]
    holds(line, shut)
    with changed(line, "r", translation):
        holds(line, itself)
        assert missed(line, as_router) == [f"{where}: as 10.1.0.2"]
        assert missed(line, shut) == [f"{where}: reached"]
        with changed(line, "r", rule("-A POSTROUTING -t nat -o eth2 -j MASQUERADE")):
            holds(line, as_router)
            assert missed(line, itself) == [f"{where}: as 10.2.0.1"]


def test_what_carries_a_flow_is_seen_on_the_link(line: Lab) -> None:
    text = "endpoints: {far: {node: b, address: 10.5.0.2}}\nencapsulated:\n"
    far = f"{text}- {{from: a, to: far, as: vxlan, on: 'r:eth1'}}\n"
    near = "- {from: a, to: b, as: native, on: 'r:eth2'}\n"
    with ExitStack() as undo:
        for node, remote, address in (("a", "10.2.0.2", "10.5.0.1"), ("b", "10.1.0.2", "10.5.0.2")):
            add = f"ip link add v up type vxlan id 7 dev eth1 remote {remote} dstport 8472"
            undo.enter_context(changed(line, node, (add, "ip link del v")))
            line.exec(node, f"ip address add {address}/24 dev v".split())
        holds(line, far + near)
        other = (far + near).replace("vxlan", "ipip").replace("native", "vxlan")
        assert missed(line, other) == ["a -> far on r:eth1: vxlan 7 at port 8472", "a -> b on r:eth2: native"]
        # The link's other end tells the same.
        holds(line, far.replace("r:eth1", "a:eth1"))


def test_a_path_that_carries_more_than_expected_is_a_miss(line: Lab) -> None:
    assert missed(line, BETWEEN + "mtu: [{from: a, to: [b, b6], bytes: 1280}]") == [
        "a -> b: 1500",
        "a -> b6: 1500",
    ]


def test_a_namespace_or_address_that_is_not_there_is_a_miss_that_says_so(line: Lab) -> None:
    text = "endpoints: {x: {node: a, netns: none}, y: {node: a, netns: inner}, z: {node: b, address: 10.1.0.77}}\n"
    no_namespace = "a/none: cannot open /run/netns/none: No such file or directory"
    assert missed(
        line, text + "reach: [{from: x, to: b}, {from: b, to: [x, y]}, {from: a, to: z, udp: 53}]"
    ) == [
        f"x -> b: {no_namespace}",
        f"b -> x: {no_namespace}",
        "b -> y: a/inner has no global address",
        "a -> z udp 53: b: Cannot assign requested address",
    ]
    # What is watched elsewhere is none the worse for it.
    assert missed(line, text + "untranslated: [{from: [a, x], to: b}]") == [f"x -> b: {no_namespace}"]


def test_an_unreachable_network_is_no_proof_of_a_refusal_by_a_target_that_is_not_there(line: Lab) -> None:
    text = "endpoints: {y: {node: a, netns: inner}}\nreach: [{from: b, to: y, tcp: 80, expect: refused}]"
    assert missed(line, text) == ["b -> y tcp 80: a/inner has no global address"]


def test_a_program_that_listens_already_is_what_is_reached(line: Lab) -> None:
    server = [sys.executable, "-m", "http.server", "--bind", "0.0.0.0", "8080"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with line.popen("b", server, **quiet) as process:
        until(lambda: ":8080" in line.exec("b", ["ss", "-Hltn"]).stdout)
        holds(line, "reach: [{from: a, to: b, tcp: 8080}]\nuntranslated: [{from: a, to: b, tcp: 8080}]")
        assert process.poll() is None
        process.kill()


def test_what_stands_in_the_host_for_the_lab_is_left_over(line: Lab) -> None:
    name, first = f"lk{os.getpid()}", str(line.pid("r"))
    ip = ["ip", "link", "add", name, "type", "veth", "peer", "name", "leak", "netns", first]
    # In the node's pid namespace, where the node's end will be its own, and in the host's network.
    inside = ["nsenter", "--target", first, "--pid", "--mount", "--", sys.executable, "-c"]
    listen = (
        "import socket, sys\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "print(server.getsockname()[1], flush=True)\n"
        "sys.stdin.read()\n"
    )
    subprocess.run(ip, check=True)
    pipe = subprocess.PIPE
    with subprocess.Popen([*inside, listen], stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout
            port = process.stdout.readline().strip()
            pid = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().strip()
            what = f"process {pid} ({Path('/proc', pid, 'comm').read_text().strip()}) of r"
            assert missed(line, "leaks: none") == [f"host: link {name}; {what}; tcp port {port} of {what}"]
        finally:
            process.communicate("")
            subprocess.run(["ip", "link", "del", name], check=True)
    holds(line, "leaks: none")


def test_where_the_host_cannot_tell_it_is_said_what_was_attempted(line: Lab, tmp_path: Path) -> None:
    (tmp_path / "ip").write_text("#!/bin/sh\necho no netlink today >&2\nexit 3\n")
    (tmp_path / "ip").chmod(0o755)
    script = (
        "import sys\n"
        "from fabric.errors import LabError\n"
        "from fabric.lab.lab import Lab\n"
        "from fabric.lab.leaks import leaks\n"
        "try: leaks(Lab.load(sys.argv[1]), 'host')\n"
        "except LabError as err: print(err)\n"
    )
    argv = [sys.executable, "-c", script, str(line.file)]
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "links of the host: ip -j link: exit status 3: no netlink today\n"


def test_what_the_topology_asks_for_in_the_host_is_not_left_over(tmp_path: Path, name: str) -> None:
    own, published = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    with own, published:
        ports = [each.getsockname()[1] for each in (own, published)]
    serve = f"python3 -m http.server --bind 127.0.0.1 {ports[0]}"
    nodes = {
        "a": {"network-mode": "host", "cmd": serve},
        "b": {"network-mode": "container:a", "cmd": "sleep 60"},
        "c": {"ports": [f"127.0.0.1:{ports[1]}:80", f"127.0.0.1:{ports[1]}:80/udp"]},
    }
    file = tmp_path / "x.clab.yml"
    topology = {"defaults": {"kind": "linux", "image": "alpine"}, "nodes": nodes}
    file.write_text(yaml.safe_dump({"name": name, "topology": topology}))
    with Lab.load(file) as lab:
        until(lambda: f":{ports[0]} " in lab.exec("a", ["ss", "-Hltn"]).stdout)
        holds(lab, "leaks: none")


def test_what_is_not_so_yet_is_waited_for_and_what_must_not_be_has_to_go(line: Lab, tmp_path: Path) -> None:
    text = "within: 60\nreach: [{from: a, to: b, udp: 53}, {from: a, to: b, tcp: 97, expect: refused}]\n"
    closed, opened = rule("-A FORWARD -p udp --dport 53 -j DROP")
    refuse, undo = rule("-A FORWARD -p tcp --dport 97 -j DROP")
    line.exec("r", closed.split())
    with command(line, tmp_path, text, "-o", "json") as process:
        until(lambda: any("listen udp" in each for each in probes(line, "b")))
        assert not any("listen tcp" in each for each in probes(line, "b"))
        line.exec("r", opened.split())
        until(lambda: any("listen tcp" in each for each in probes(line, "b")))
        line.exec("r", refuse.split())
        out, err = process.communicate(timeout=60)
        line.exec("r", undo.split())
    assert process.returncode == 0, out + err
    assert [each["found"] for each in json.loads(out)["expectations"]] == ["reached", "no answer"]


def probes(lab: Lab, node: str) -> list[str]:
    """Return what `verify` runs in the node."""
    return lab.exec(node, ["pgrep", "-f", "-a", "lab/probe.py"], check=False).stdout.splitlines()


@contextmanager
def command(lab: Lab, folder: Path, text: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run `fabricctl lab verify` of a running lab against `text`."""
    (folder / "x.clab.yml").write_text(lab.file.read_text())
    (folder / "x.verify.yml").write_text(text)
    argv = [*CLI, "verify", str(folder / "x.clab.yml"), *options]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


NEVER = """
within: 600
endpoints: {b6: {node: b, family: 6}}
reach: [{from: a, to: b, tcp: 98}, {from: a, to: b6, udp: 99}]
mtu: [{from: a, to: b, bytes: 1600}]
untranslated: [{from: a, to: b, tcp: 98}]
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_whatever_it_started_has_ended_when_it_is_interrupted(
    line: Lab, tmp_path: Path, number: signal.Signals
) -> None:
    def running() -> list[str]:
        return [each for node in ("a", "r", "b") for each in probes(line, node)]

    with command(line, tmp_path, NEVER) as process:
        for words in ("listen tcp", "listen udp", "watch", "knock", "measure"):
            until(lambda words=words: any(words in each for each in running()))  # type: ignore[misc]
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
        assert process.returncode
        if number != signal.SIGKILL:
            assert "Traceback" not in err
        # Each dies of its parent's death, which the kernel tells it in its own time.
        until(lambda: not running(), within=2.0)
    assert "ok" not in out


def test_a_polite_kill_ends_it_in_the_background_of_a_script_too(line: Lab, tmp_path: Path) -> None:
    # There a shell has interrupts ignored for it, and what the test starts inherits that.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with command(line, tmp_path, NEVER) as process:
            until(lambda: probes(line, "a"))
            process.terminate()
            assert process.wait(10) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    until(lambda: not [each for node in ("a", "r", "b") for each in probes(line, node)])


def test_the_exit_status_tells_and_every_form_of_the_answer_says_the_same(line: Lab, tmp_path: Path) -> None:
    text = "within: 0.3\nreach: [{from: a, to: b}]\nroutes:\n- {node: a, present: [10.8.0.0/16]}\n"
    told: dict[str, str] = {}
    for form in ("table", "json", "yaml"):
        with command(line, tmp_path, text, "-o", form, "--junit", str(tmp_path / "junit.xml")) as process:
            told[form], err = process.communicate(timeout=60)
        assert process.returncode == 1
        wrong = f"{tmp_path}/x.verify.yml:4: route a kernel 10.8.0.0/16: expected present, found absent"
        assert err.splitlines() == [wrong, f"lab {line.name}: 1 of 2 expectations hold"]
    asked = json.loads(told["json"])
    assert (asked["lab"], asked["holds"]) == (line.name, False)
    shown = {
        (e["what"], e["where"], e["expected"], e["found"], e["holds"], e["line"])
        for e in asked["expectations"]
    }
    assert shown == {
        ("route", "a kernel 10.8.0.0/16", "present", "absent", False, 4),
        ("reach", "a -> b", "reached", "reached", True, 2),
    }
    assert [e["found"] for e in yaml.safe_load(told["yaml"])["expectations"]] == ["absent", "reached"]
    heading, route, reach = told["table"].splitlines()
    assert heading.split() == ["WHAT", "WHERE", "EXPECTED", "FOUND", "SECONDS", "RESULT"]
    assert route.split()[-1] == "MISS"
    assert reach.split()[-1] == "ok"
    junit = JUnitXml.fromfile(str(tmp_path / "junit.xml"))
    (suite,) = junit
    assert (junit.tests, junit.failures, suite.name) == (2, 1, line.name)
    failed, passed = suite
    assert [result.message for result in failed.result] == ["expected present, found absent"]
    assert (failed.classname, failed.name) == ("lab.route", "a kernel 10.8.0.0/16")
    assert passed.is_passed


def test_within_on_the_command_line_takes_the_place_of_the_files(line: Lab, tmp_path: Path) -> None:
    with command(line, tmp_path, NEVER, "--within", "0.5") as process:
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert [row.split()[-1] for row in out.splitlines()[1:]] == ["MISS"] * 4


def refused(folder: Path, topology: str, expectations: str | None) -> str:
    (folder / "x.clab.yml").write_text(topology)
    if expectations is not None:
        (folder / "x.verify.yml").write_text(expectations)
    argv = [*CLI, "verify", str(folder / "x.clab.yml")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def test_what_cannot_be_verified_is_refused_before_anything_is_asked(line: Lab, tmp_path: Path) -> None:
    topology = line.file.read_text()
    assert "x.verify.yml: there is no such file" in refused(tmp_path, topology, None)
    said = refused(tmp_path, topology, "reach:\n- from: a\n  to: [b, c]\n")
    assert f'{tmp_path}/x.verify.yml:3: reach.0.to: there is no endpoint "c", and no such node' in said
    away = topology.replace(line.name, f"away-{os.getpid()}")
    said = refused(tmp_path, away, "reach: [{from: a, to: b}]\n")
    assert f"lab away-{os.getpid()} is not up; nothing was asked" in said


def test_a_node_that_has_died_misses_what_is_expected_of_it(write: Callable[[str], Path]) -> None:
    file = write(
        '    a: {exec: [ip address add 10.1.0.1/24 dev eth1]}\n    b:\n  links: [{endpoints: ["a:eth1", "b:eth1"]}]\n'
    )
    with Lab.load(file) as lab:
        os.kill(lab.pid("b"), signal.SIGKILL)
        until(lambda: not lab.home.running("b"))
        away = f"lab {lab.name}: node b is not running; bring the lab up"
        text = "routes: [{node: b, absent: ['::/0']}, {node: a, present: [10.1.0.0/24]}]\nreach: [{from: a, to: b}]"
        assert missed(lab, text) == [f"b kernel ::/0: {away}", f"a -> b: {away}"]


# With routers and nodes of the fabric


SESSIONS = """
sessions: [{node: tor, peers: [10.10.1.2, 10.10.2.2]}, {node: node2, peers: [10.10.2.1]}]
routes:
- {node: tor, table: bgp, present: [10.77.9.0/26]}
- {node: node1, table: bgp, present: [10.77.9.0/26]}
- {node: tor, next-hops: {10.77.9.0/26: 1}}
"""


def test_a_fabric_that_is_broken_is_missed_in_all_that_it_loses_and_leaves_behind() -> None:
    """The quickstart, joined and attached as docs/quickstart.md does."""
    with up(FRR, "verify-broken") as fabric:
        fabric.join(NODE1, NODE2)
        fabric.attach("node1", "web")
        fabric.attach("node2", "db", "--ip", "10.77.9.9")
        holds(fabric.lab, f"{SESSIONS}leaks: none")
        lost_with_a_session(fabric)
        left_behind(fabric)


def lost_with_a_session(fabric: Fabric) -> None:
    shutdown = ("configure terminal", "router bgp 65000", "neighbor 10.10.2.2 shutdown")
    fabric.run("tor", "vtysh", *(word for line in shutdown for word in ("-c", line)))
    first, *rest = results(fabric.lab, SESSIONS, MISSED)
    assert (first.holds, first.found) == (True, "Established")
    assert [each.expectation.where for each in rest if each.holds] == []
    assert rest[0].found == "Idle"
    assert rest[1].found in {"Idle", "Connect", "Active"}
    assert {each.found for each in rest[2:]} == {"absent"}


def left_behind(fabric: Fabric) -> None:
    handle = "/calico/ipam/v2/handle/fabricctl.default.gone"
    fabric.run("etcd", "etcdctl", "put", handle, '{"handleID":"fabricctl.default.gone","block":{}}')
    # An agent would clear away a host end that is nobody's.
    fabric.kill("node2", SUPERVISOR)
    until(lambda: not fabric.pids("node2", OURS))
    (own,) = fabric.links("node2")
    fabric.run("node2", *["ip", "link", "add", "fab00000000dead", "type", "veth", "peer", "name", "x"])
    node, ipam = missed(fabric.lab, "leaks: none")
    assert f"node2: link {own}; link fab00000000dead; route 10.77.9.9; no workloads known: " in node
    assert ipam == "ipam: handle fabricctl.default.gone: no block names it"


THREE = {
    "frr.conf": """
frr defaults datacenter
router bgp 65001
 bgp router-id 10.1.0.1
 no bgp ebgp-requires-policy
 neighbor 10.1.0.2 remote-as 65010
 neighbor 10.1.0.2 timers connect 1
 neighbor fd00:1::2 remote-as 65010
 neighbor fd00:1::2 timers connect 1
 address-family ipv4 unicast
  no neighbor fd00:1::2 activate
 exit-address-family
 address-family ipv6 unicast
  neighbor fd00:1::2 activate
 exit-address-family
""",
    "daemons": "bgpd=yes\n",
    "bird.conf": """
router id 10.2.0.1;
protocol device { }
template bgp X { local as 65002; connect delay time 1; error wait time 1, 2; }
protocol bgp x4 from X { neighbor 10.2.0.2 as 65010; ipv4 { import all; export none; }; }
protocol bgp x6 from X { neighbor fd00:2::2 as 65010; ipv6 { import all; export none; }; }
""",
    "gobgp.conf": """
[global.config]
  as = 65003
  router-id = "10.3.0.1"
[[neighbors]]
  [neighbors.config]
    neighbor-address = "10.3.0.2"
    peer-as = 65010
  [neighbors.timers.config]
    connect-retry = 1
    idle-hold-time-after-reset = 1
[[neighbors]]
  [neighbors.config]
    neighbor-address = "fd00:3::2"
    peer-as = 65010
  [neighbors.timers.config]
    connect-retry = 1
    idle-hold-time-after-reset = 1
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "ipv6-unicast"
""",
}
ROUTERS = {
    "frr": ("frrouting/frr:v8.4.1", ["frr.conf:/etc/frr/frr.conf", "daemons:/etc/frr/daemons"]),
    "bird": ("ghcr.io/srl-labs/bird:2.13", ["bird.conf:/etc/bird.conf"]),
    "gobgp": ("osrg/gobgp", ["gobgp.conf:/etc/gobgp/gobgp.conf"]),
}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """FRR, BIRD and GoBGP, each with a session of each family to x, which announces a prefix in each."""
    folder, name = tmp_path_factory.mktemp("three"), f"three-{os.getpid()}"
    announcer = ["router id 10.0.0.9;", "protocol device { }"]
    announcer += ["protocol static s4 { ipv4; route 10.50.0.0/24 blackhole; }"]
    announcer += ["protocol static s6 { ipv6; route fd50::/64 blackhole; }"]
    announcer += ["template bgp R { local as 65010; connect delay time 1; error wait time 1, 2; }"]
    theirs: list[str] = []
    nodes = {"x": {"image": ROUTERS["bird"][0], "binds": ["x.conf:/etc/bird.conf"], "exec": theirs}}
    links = []
    for n, (router, (image, binds)) in enumerate(ROUTERS.items(), 1):
        addresses = [(f"10.{n}.0", "/24", 4), (f"fd00:{n}:", "/64 nodad", 6)]
        mine = []
        for network, length, family in addresses:
            separator = ":" if family == 6 else "."
            mine.append(f"ip address add {network}{separator}1{length.replace(' nodad', '')} dev eth1")
            theirs.append(f"ip address add {network}{separator}2{length} dev eth{n}")
            export = f"ipv{family} {{ import none; export where source = RTS_STATIC; next hop self; }};"
            as_number = 65000 + n
            announcer.append(
                f"protocol bgp {router}{family} from R"
                f" {{ neighbor {network}{separator}1 as {as_number}; {export} }}"
            )
        nodes[router] = {"image": image, "binds": binds, "exec": mine}
        links.append({"endpoints": [f"{router}:eth1", f"x:eth{n}"]})
    for config, text in (THREE | {"x.conf": "\n".join(announcer)}).items():
        (folder / config).write_text(text)
    defaults = {"kind": "linux", "network-mode": "none"}
    file = folder / "three.clab.yml"
    topology = {"defaults": defaults, "nodes": nodes, "links": links}
    file.write_text(yaml.safe_dump({"name": name, "topology": topology}))
    with Lab.load(file) as lab:
        yield lab


def test_the_same_is_found_whichever_daemon_is_asked(three: Lab) -> None:
    text = "".join(
        f"- {{node: {router}, table: bgp, present: [10.50.0.0/24, 'fd50::/64'], absent: [10.51.0.0/24],"
        " next-hops: {10.50.0.0/24: 1, 'fd50::/64': 1}}\n"
        for router in ROUTERS
    )
    up = "".join(f"- {{node: {r}, peers: [10.{n}.0.2, 'fd00:{n}::2']}}\n" for n, r in enumerate(ROUTERS, 1))
    holds(three, f"sessions:\n{up}routes:\n{text}")
    for router in ROUTERS:
        three.exec("x", ["birdc", "disable", f"{router}6"])
    found = results(three, f"sessions:\n{up}routes:\n{text}", within=1)
    for router in ROUTERS:
        three.exec("x", ["birdc", "enable", f"{router}6"])
    words = {r.expectation.where: r.found for r in found if not r.holds}
    for n, router in enumerate(ROUTERS, 1):
        assert words.pop(f"{router} fd00:{n}::2") in {"Idle", "Connect", "Active"}
        assert words.pop(f"{router} bgp fd50::/64") == "absent"
    assert not words


def test_a_peer_that_a_router_does_not_know_is_missed_with_those_it_knows(three: Lab) -> None:
    asked = "".join(f"- {{node: {router}, peers: 10.9.9.9}}\n" for router in ROUTERS)
    assert missed(three, f"sessions:\n{asked}") == [
        f"{router} 10.9.9.9: no such peer; there is 10.{n}.0.2, fd00:{n}::2"
        for n, router in enumerate(ROUTERS, 1)
    ]


def test_a_router_that_hangs_cannot_tell(three: Lab) -> None:
    """Nothing is taken for absent because nobody answers."""
    three.exec("frr", ["pkill", "-STOP", "-x", "bgpd"])
    try:
        (found,) = missed(three, "routes: [{node: frr, table: bgp, absent: [10.99.0.0/16]}]")
    finally:
        three.exec("frr", ["pkill", "-CONT", "-x", "bgpd"])
    assert "no end within" in found


def test_a_router_that_is_dead_cannot_tell(three: Lab) -> None:
    asked = "".join(f"- {{node: {router}, table: bgp, absent: [10.99.0.0/16]}}\n" for router in ROUTERS)
    for router in ROUTERS:
        faults.kill(three, "router", router)
    found = missed(three, f"routes:\n{asked}")
    faults.restore(three, lambda _: None)
    assert len(found) == len(ROUTERS)
    for router, each in zip(ROUTERS, found, strict=True):
        assert each.startswith(f"{router} bgp 10.99.0.0/16: node {router}: "), each
        assert ": exit status " in each
    holds(three, f"routes:\n{asked}")
