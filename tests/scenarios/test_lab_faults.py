"""What `lab break` breaks is broken for real, what `lab restore` mends works again, and links behave as cables."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from fabric.errors import LabError, NotFound
from fabric.lab import faults
from fabric.lab.lab import Lab
from tests.scenarios.fabric import AGENT, FRR, NODE1, SPEAKER, Fabric, up
from tests.scenarios.labs import Trace, cli, ran, until

PAIR = """\
    a: {exec: ["ip address replace 192.0.2.1/24 dev eth1", "ip route replace 198.51.100.0/24 via 192.0.2.2"]}
    b: {exec: ["ip address replace 192.0.2.2/24 dev eth1"]}
  links: [{endpoints: ["a:eth1", "b:eth1"]}]
"""
LINK = "b:eth1-a:eth1"


def quiet(_: str) -> None:
    pass


@pytest.fixture
def lab(write: Callable[[str], Path]) -> Iterator[Lab]:
    with Lab.load(write(PAIR)) as lab:
        until(lambda: pings(lab))
        yield lab


def pings(lab: Lab) -> bool:
    return lab.exec("a", ["ping", "-nc1", "-W1", "192.0.2.2"], check=False).returncode == 0


def carrier(lab: Lab, node: str, interface: str = "eth1") -> bool:
    flags = json.loads(lab.exec(node, ["ip", "-j", "link", "show", interface]).stdout)[0]["flags"]
    assert "UP" in flags, "the interface itself was set down"
    return "LOWER_UP" in flags


def restore(lab: Lab) -> list[str]:
    with lab.held():
        return faults.restore(lab, quiet)


def test_a_clean_cut_takes_both_carriers_and_leaves_addresses_and_routes(lab: Lab) -> None:
    before = lab.exec("a", ["ip", "route"]).stdout
    assert "both ends have lost their carrier" in faults.cut(lab, LINK)
    assert (carrier(lab, "a"), carrier(lab, "b")) == (False, False)
    assert lab.exec("a", ["ip", "route"]).stdout.replace(" linkdown", "") == before
    assert "(it was before)" in faults.cut(lab, "a:eth1-b:eth1")
    assert [state.links for state in lab.inspect()] == [("eth1 b:eth1 (cut)",), ("eth1 a:eth1 (cut)",)]
    with pytest.raises(LabError, match="a:eth1-b:eth1 broken by `lab break`; `lab restore` it first"):
        lab.up()
    assert restore(lab) == ["link a:eth1-b:eth1: whole again"]
    assert (carrier(lab, "a"), carrier(lab, "b")) == (True, True)
    assert pings(lab)
    assert restore(lab) == []


def test_a_silent_cut_drops_every_frame_with_both_carriers_up(lab: Lab) -> None:
    faults.cut(lab, LINK, silent=True)
    assert (carrier(lab, "a"), carrier(lab, "b")) == (True, True)
    assert not pings(lab)
    assert "(it was before)" in faults.cut(lab, LINK, silent=True)
    assert not pings(lab)
    assert restore(lab) == ["link a:eth1-b:eth1: passes frames again"]
    assert pings(lab)


def test_an_interface_set_down_takes_the_carrier_from_its_neighbour(lab: Lab) -> None:
    lab.exec("a", ["ip", "link", "set", "eth1", "down"])
    until(lambda: not carrier(lab, "b"))
    lab.exec("a", ["ip", "link", "set", "eth1", "up"])
    until(lambda: carrier(lab, "b"))
    until(lambda: pings(lab))


@pytest.mark.parametrize(("here", "there"), [("a", "b"), ("b", "a")])
def test_a_lab_that_is_up_has_lost_no_carrier_on_the_way(lab: Lab, here: str, there: str) -> None:
    lab.exec(there, ["ip", "link", "set", "eth1", "down"])
    until(lambda: not carrier(lab, here))
    # Once when it was made, and now.
    assert lab.exec(here, ["cat", "/sys/class/net/eth1/carrier_down_count"]).stdout == "2\n"


def test_a_node_that_is_off_runs_nothing_and_comes_back_with_its_disk(lab: Lab) -> None:
    lab.exec("a", ["sh", "-c", "echo kept >/etc/kept; echo kept >/var/lib/fabricctl/kept; touch /run/lost"])
    lab.exec("b", ["sh", "-c", "echo b >/etc/kept"])
    pid = lab.pid("a")
    assert faults.power_off(lab, "a") == "node a: off"
    assert not Path(f"/proc/{pid}").exists()
    until(lambda: not carrier(lab, "b"))
    assert [state.state for state in lab.inspect()] == ["broken", "running"]
    assert faults.power_off(lab, "a") == "node a: is off already"
    with pytest.raises(NotFound, match="node a is not running; `lab restore` it"):
        lab.pid("a")
    with pytest.raises(LabError, match="a broken by `lab break`"):
        lab.up()
    assert restore(lab) == ["node a: on again"]
    assert lab.exec("a", ["cat", "/etc/kept", "/var/lib/fabricctl/kept"]).stdout == "kept\nkept\n"
    assert lab.exec("a", ["ls", "/run/lost"], check=False).returncode
    assert "198.51.100.0/24 via 192.0.2.2" in lab.exec("a", ["ip", "route"]).stdout
    until(lambda: pings(lab))
    assert carrier(lab, "b")


def test_what_a_killed_command_has_marked_and_not_done_is_done_by_the_next(lab: Lab) -> None:
    for what in ("cut", "silent", "slow"):
        lab.home.wire_mark(0, what).touch()
    lab.home.mark("a", "off").touch()
    assert faults.power_off(lab, "a") == "node a: off"
    with pytest.raises(
        LabError, match="a node at its end does not run; nothing was changed; restore it first"
    ):
        faults.cut(lab, LINK)
    said = restore(lab)
    assert said[0] == "node a: on again"
    assert len(said) == 4
    until(lambda: pings(lab))
    lab.home.wire_mark(0, "cut").touch()
    faults.cut(lab, LINK)
    assert not carrier(lab, "a")


def test_a_file_that_has_changed_is_not_broken_by(lab: Lab) -> None:
    text = lab.file.read_text()
    lab.file.write_text(text.replace("192.0.2.2/24", "192.0.2.3/24"))
    done = ran("break", str(lab.file), "link", LINK)
    lab.file.write_text(text)
    assert done.returncode == 1
    assert "runs another version of" in done.stderr
    assert pings(lab)


def test_a_lab_that_is_not_up_cannot_be_broken_or_restored(write: Callable[[str], Path]) -> None:
    file = str(write(PAIR))
    for arguments in (("break", file, "link", LINK), ("restore", file)):
        done = ran(*arguments)
        assert done.returncode == 1
        assert "is not up; nothing was changed; bring it up first" in done.stderr


def test_those_who_share_a_network_through_others_go_off_and_on_together(
    write: Callable[[str], Path],
) -> None:
    body = "    a:\n    b: {network-mode: 'container:a'}\n    c: {network-mode: 'container:b'}\n    d:\n"
    with Lab.load(write(body + "  links: [{endpoints: ['a:eth1', 'd:eth1']}]\n")) as lab:
        assert faults.power_off(lab, "a") == "node a: off, with b, c, which share its network"
        assert restore(lab) == ["node a: on again", "node b: on again", "node c: on again"]
        assert "eth1" in lab.exec("c", ["ls", "/sys/class/net"]).stdout


def test_a_neighbour_that_ended_by_itself_does_not_keep_a_node_off(write: Callable[[str], Path]) -> None:
    body = "    a:\n    b: {cmd: sleep 600, restart-policy: 'no'}\n  links: [{endpoints: ['a:eth1', 'b:eth1']}]\n"
    with Lab.load(write(body)) as lab:
        lab.exec("b", ["pkill", "-x", "sleep"], check=False)
        until(lambda: lab.inspect()[1].pid is None)
        faults.power_off(lab, "a")
        assert restore(lab) == ["node a: on again"]


def started_again(fabric: Fabric, pattern: str, before: list[int]) -> bool:
    return fabric.pids("node1", pattern) not in ([], before)


def test_agent_and_speaker_are_killed_and_come_back_by_themselves() -> None:
    with up(FRR, "faults") as fabric:
        fabric.join(NODE1)
        for part, pattern in (("agent", AGENT), ("speaker", SPEAKER)):
            before = fabric.pids("node1", pattern)
            assert "its supervisor starts it again" in faults.kill(fabric.lab, part, "node1")
            until(partial(started_again, fabric, pattern, before))
        until(lambda: not fabric.run("node1", "fabricctl", "node", "status", check=False).returncode)
        assert restore(fabric.lab) == []


def test_a_daemon_that_restore_could_not_start_is_not_killed(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "bird.conf").write_text("router id 192.0.2.1;\nprotocol device { }\n")
    node = "{image: 'ghcr.io/srl-labs/bird:2.13', binds: ['bird.conf:/etc/bird.conf'], cmd: CMD}"
    script = "\"sh -c 'bird -f -c /etc/bird.conf -s /run/bird/bird.ctl; sleep 600'\""
    with Lab.load(write(f"    a: {node}\n".replace("CMD", script))) as lab:
        with pytest.raises(LabError, match="no router runs there that `lab restore` could start again"):
            faults.kill(lab, "router", "a")
        assert lab.exec("a", ["pgrep", "-x", "bird"]).stdout


def test_a_router_that_runs_though_it_was_held_is_restored(write: Callable[[str], Path]) -> None:
    with Lab.load(write("    a: {image: 'quay.io/frrouting/frr:8.4.1'}\n")) as lab:
        lab.home.mark("a", "held").write_text("staticd zebra")
        assert restore(lab) == ["node a: staticd, zebra started again"]
        assert "zebra" in lab.exec("a", ["vtysh", "-c", "show daemons"]).stdout


def test_a_cut_link_of_a_node_that_was_off_is_whole_again_too(lab: Lab) -> None:
    faults.cut(lab, LINK)
    faults.power_off(lab, "b")
    assert restore(lab) == ["node b: on again", "link a:eth1-b:eth1: whole again"]
    until(lambda: pings(lab))


def test_a_node_that_was_cut_off_in_the_middle_of_a_conversation_may_go_off(lab: Lab) -> None:
    # The kernel keeps a network whose connections have something to say until they give up, minutes later.
    talk = "import socket; s = socket.socket(); s.bind(('192.0.2.1', 7)); s.listen(); print(); s.accept()[0].recv(9)"
    call = "import socket; s = socket.create_connection(('192.0.2.1', 7)); print(); s.recv(9)"
    with lab.popen("a", [sys.executable, "-u", "-c", talk], stdout=subprocess.PIPE) as listening:
        assert listening.stdout
        listening.stdout.readline()
        with lab.popen("b", [sys.executable, "-u", "-c", call], stdout=subprocess.PIPE) as calling:
            assert calling.stdout
            calling.stdout.readline()
            faults.cut(lab, LINK)
            assert faults.power_off(lab, "b") == "node b: off"
        listening.kill()
    assert restore(lab) == ["node b: on again", "link a:eth1-b:eth1: whole again"]
    until(lambda: pings(lab))


@pytest.mark.parametrize(
    ("image", "part", "daemons"),
    [
        ("quay.io/frrouting/frr:8.4.1", "router", {"zebra", "staticd"}),
        ("ghcr.io/srl-labs/bird:2.13", "router", {"bird"}),
        ("quay.io/coreos/etcd:v3.4.33", "etcd", {"etcd"}),
    ],
)
def test_killed_daemons_stay_down_until_they_are_restored(
    image: str, part: str, daemons: set[str], write: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "bird.conf").write_text("router id 192.0.2.1;\nprotocol device { }\n")
    node = f'{{image: "{image}", binds: ["bird.conf:/etc/bird.conf"]}}'
    with Lab.load(write(f"    a: {node}\n")) as lab:

        def running() -> set[str]:
            return set(lab.exec("a", ["ps", "-eo", "comm="]).stdout.split()) & daemons

        assert running() == daemons
        said = faults.kill(lab, part, "a")
        assert all(daemon in said for daemon in daemons)
        assert not running()
        assert lab.inspect()[0].state == "broken"
        assert "down already" in faults.kill(lab, part, "a")
        assert "started again" in restore(lab)[0]
        assert running() == daemons
        assert lab.inspect()[0].state == "running"


def test_delay_and_loss_are_refused_by_name_where_the_kernel_has_no_netem(lab: Lab) -> None:
    probe = ["unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        with pytest.raises(LabError, match="delay 20ms: this kernel refuses netem"):
            faults.impair(lab, LINK, "20ms", "")
        assert restore(lab) == []
    else:
        assert "delay 20ms" in faults.impair(lab, LINK, "20ms", "")
        assert restore(lab) == ["link a:eth1-b:eth1: neither delay nor loss any more"]
    assert pings(lab)


@pytest.mark.parametrize(
    ("arguments", "want", "status"),
    [
        (("link", "a:eth1-c:eth1"), 'has no link "a:eth1-c:eth1"; it has a:eth1-b:eth1', 1),
        (("node", "c"), 'has no node "c"', 1),
        (("router", "a"), "no router runs there that `lab restore` could start again", 1),
        (("etcd", "a"), "no etcd runs there that `lab restore` could start again", 1),
        (("agent", "a"), "no agent runs there; nothing was killed", 1),
        (("node", "a", "--silent"), "--silent, --delay and --loss are for links", 2),
        (("link", LINK, "--silent", "--loss", "1%"), "--silent drops every frame", 2),
        (("cable", LINK), "'cable' is not one of", 2),
    ],
)
def test_what_cannot_be_broken_is_said_and_nothing_is(
    lab: Lab, arguments: tuple[str, ...], want: str, status: int
) -> None:
    done = ran("break", str(lab.file), *arguments)
    assert done.returncode == status, done
    assert want in " ".join(done.stderr.replace("│", " ").split())
    assert pings(lab)
    assert restore(lab) == []


def test_a_lab_with_broken_parts_goes_down_like_any_other(lab: Lab) -> None:
    trace = Trace(lab.name)
    faults.cut(lab, LINK)
    faults.power_off(lab, "a")
    assert ran("down", str(lab.file)).returncode == 0
    trace.assert_nothing_left()


def test_a_restore_that_is_killed_is_done_again(lab: Lab) -> None:
    faults.power_off(lab, "a")
    with cli("restore", str(lab.file)) as process:
        assert process.stderr
        assert "node a: up" in process.stderr.readline()
        process.kill()
        process.wait()
    # Whether it came to its end before it was killed or not.
    assert restore(lab) in (["node a: on again"], [])
    assert [state.state for state in lab.inspect()] == ["running", "running"]
    until(lambda: pings(lab))
