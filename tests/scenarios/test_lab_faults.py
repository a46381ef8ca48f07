"""What `lab break` breaks is broken for real, what `lab restore` mends works again, and links behave as cables."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fabric.errors import LabError, NotFound
from fabric.lab import faults
from fabric.lab.lab import Lab
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
    with lab.locked():
        return faults.restore(lab, quiet)


def test_a_clean_cut_takes_both_carriers_and_leaves_addresses_and_routes(lab: Lab) -> None:
    before = lab.exec("a", ["ip", "route"]).stdout
    assert "both ends have lost their carrier" in faults.cut(lab, LINK)
    assert (carrier(lab, "a"), carrier(lab, "b")) == (False, False)
    assert lab.exec("a", ["ip", "route"]).stdout.replace(" linkdown", "") == before
    assert "is cut already" in faults.cut(lab, "a:eth1-b:eth1")
    assert restore(lab) == ["link a:eth1-b:eth1: whole again"]
    assert (carrier(lab, "a"), carrier(lab, "b")) == (True, True)
    assert pings(lab)
    assert restore(lab) == []


def test_a_silent_cut_drops_every_frame_with_both_carriers_up(lab: Lab) -> None:
    faults.cut(lab, LINK, silent=True)
    assert (carrier(lab, "a"), carrier(lab, "b")) == (True, True)
    assert not pings(lab)
    assert "already" in faults.cut(lab, LINK, silent=True)
    assert restore(lab) == ["link a:eth1-b:eth1: passes frames again"]
    assert pings(lab)


def test_an_interface_set_down_takes_the_carrier_from_its_neighbour(lab: Lab) -> None:
    lab.exec("a", ["ip", "link", "set", "eth1", "down"])
    until(lambda: not carrier(lab, "b"))
    lab.exec("a", ["ip", "link", "set", "eth1", "up"])
    until(lambda: carrier(lab, "b"))
    until(lambda: pings(lab))


def test_a_node_that_is_off_runs_nothing_and_comes_back_with_its_disk(lab: Lab) -> None:
    lab.exec("a", ["sh", "-c", "echo kept >/etc/kept; echo kept >/var/lib/fabricctl/kept; touch /run/lost"])
    lab.exec("b", ["sh", "-c", "echo b >/etc/kept"])
    trace = lab.pid("a")
    assert faults.power_off(lab, "a") == "node a: off"
    assert not Path(f"/proc/{trace}").exists()
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


def test_a_cut_link_of_a_node_that_was_off_is_whole_again_too(lab: Lab) -> None:
    faults.cut(lab, LINK)
    faults.power_off(lab, "b")
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
        assert "is down already" in faults.kill(lab, part, "a")
        assert "started again" in restore(lab)[0]
        assert running() == daemons
        assert lab.inspect()[0].state == "running"


def test_delay_and_loss_are_refused_by_name_where_the_kernel_has_no_netem(lab: Lab) -> None:
    probe = ["unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        with pytest.raises(LabError, match="delay 20ms: this kernel has no netem"):
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
        (("router", "a"), "no router runs there; nothing was killed", 1),
        (("etcd", "a"), "no etcd runs there; nothing was killed", 1),
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


def test_a_restore_that_is_killed_is_done_again(lab: Lab, write: Callable[[str], Path]) -> None:
    faults.power_off(lab, "a")
    with cli("restore", str(lab.file)) as process:
        process.kill()
        process.wait()
    until(lambda: "broken" not in {state.state for state in lab.inspect()} or restore(lab))
    until(lambda: pings(lab))
