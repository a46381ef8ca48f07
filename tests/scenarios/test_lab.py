"""Labs for real: routers answer, commands run, and whatever happens `down` leaves nothing."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fabric.errors import LabError, NotFound, Taken
from fabric.lab import faults
from fabric.lab.home import RUN
from fabric.lab.lab import Lab
from fabric.lab.node import Process
from tests.scenarios.labs import CLI, Trace, cli, recorded, until

SHIPPED = Path(__file__).parents[2] / "containerlab"
PAIR = '    a:\n    b:\n  links: [{endpoints: ["a:eth1", "b:eth1"], mtu: 1400}]\n'
SLOW = "    a:\n    b: {startup-delay: 600}\n"


def await_slow(process: subprocess.Popen[str]) -> None:
    """Return once `up` has every node going and waits for the delayed one."""
    assert process.stderr
    assert any("node b: waiting for it to" in line for line in process.stderr)


# What a node says to the ToR in its own words, until it has an agent.
BIRD_IN_NODE1 = """
router id 10.10.1.2;
protocol device { }
protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }
protocol static { ipv4; route 10.77.0.0/26 blackhole;
  route 10.77.9.9/32 blackhole; route 10.99.0.0/24 blackhole; }
protocol bgp tor {
  local as 65001; neighbor 10.10.1.1 as 65000; connect delay time 1; error wait time 1, 2;
  ipv4 { import all; export where source = RTS_STATIC; next hop self; };
}
"""


@pytest.mark.parametrize(
    ("file", "ask"),
    [
        ("quickstart.clab.yml", ["vtysh", "-c", "show bgp summary"]),
        ("quickstart-bird.clab.yml", ["birdc", "show", "protocols"]),
    ],
)
def test_quickstart(file: str, ask: list[str], name: str, tmp_path: Path) -> None:
    lab = Lab.load(SHIPPED / file, name=name)
    config = tmp_path / "bird.conf"
    config.write_text(BIRD_IN_NODE1)
    with lab:
        trace = Trace(name)
        for node, tor in (("node1", "10.10.1.1"), ("node2", "10.10.2.1"), ("outside", "10.10.4.1")):
            lab.exec(node, ["ping", "-c1", "-W5", tor])
        assert (
            "healthy"
            in lab.exec("node2", ["etcdctl", "--endpoints", "10.10.3.2:2379", "endpoint", "health"]).stderr
            + lab.log("etcd").read_text()
        )
        assert lab.exec("tor", ask).stdout
        assert lab.exec("node1", ["ip", "route", "show", "default"]).stdout == ""
        with lab.popen("node1", ["bird", "-f", "-c", str(config), "-s", "/run/bird.ctl"]) as bird:
            until(lambda: "via 10.10.1.1" in lab.exec("node1", ["ip", "route", "show", "default"]).stdout)
            until(lambda: lab.exec("tor", ["ip", "route"]).stdout.count("10.77.") == 2)
            routes = lab.exec("tor", ["ip", "route"]).stdout
            assert "10.77.9.9 " in routes
            assert "10.99.0.0" not in routes
            lab.exec("node1", ["ping", "-c1", "-W5", "10.10.4.2"])
            bird.terminate()
    trace.assert_nothing_left()


def test_up_twice_changes_nothing_and_another_file_is_refused(write: Callable[[str], Path]) -> None:
    file = write(PAIR)
    lab = Lab.load(file)
    with lab:
        before = lab.inspect()
        assert [(state.profile, state.links) for state in before] == [
            ("plain", ("eth1 b:eth1",)),
            ("plain", ("eth1 a:eth1",)),
        ]
        assert Lab.load(file).up() is False
        assert Lab.load(file).inspect() == before
        assert "mtu 1400" in lab.exec("a", ["ip", "link", "show", "eth1"]).stdout
        write(PAIR.replace("1400", "1300"))
        with pytest.raises(LabError, match="another version of"):
            Lab.load(file).up()
        assert lab.inspect() == before
    assert lab.down() is False


def test_a_node_has_files_a_name_and_links_of_its_own(write: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "hello").write_text("bound\n")
    file = write(
        "    a:\n      binds: ['hello:/etc/new/hello:ro', 'hello:/run/hello', 'hello:/usr/lib/new/hello']\n"
        "      exec: ['sh -c \"echo $$LAB > /etc/lab; echo x > /var/lib/lab\"']\n"
    )
    with Lab.load(file) as lab:

        def sh(script: str) -> str:
            return lab.exec("a", ["sh", "-c", script]).stdout.strip()

        assert sh("cat /etc/new/hello /run/hello /usr/lib/new/hello") == "bound\nbound\nbound"
        assert sh("echo 1 >> /etc/new/hello || echo refused") == "refused"
        assert sh("cat /etc/lab") == lab.name
        assert sh("hostname; getent hosts a | cut -d' ' -f1; pwd; ls /sys/class/net") == "a\n127.0.1.1\n/\nlo"
        assert sh("dirname $(command -v python)") == str(Path(sys.executable).parent)
        assert sh("stat -c %i -L /proc/self/cwd") == sh("stat -c %i /")
        assert sh("ls /run/fabricctl-lab 2>/dev/null || echo none") == "none"
    for path in ("/etc/lab", "/var/lib/lab", "/etc/new", "/usr/lib/new"):
        assert not Path(path).exists()


PROFILE = """\
profiles:
  elsewhere:
    images: [elsewhere]
    scratch: [HERE/new/scratch, HERE/old/scratch, /run/scratch]
    files: {HERE/new/deep/file: mine, HERE/old/file: mine, HERE/link: mine, HERE/kept: mine}
    config: HERE/new/config
"""


def test_whatever_a_node_gets_and_wherever_the_host_has_nothing_of_it(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    here = tmp_path / "here"
    (here / "old").mkdir(parents=True)
    (here / "bound").mkdir()
    (here / "old/file").write_text("the host's")
    (tmp_path / "target").write_text("the host's")
    (here / "link").symlink_to(tmp_path / "target")
    (tmp_path / "outside").mkdir()
    (here / "away").symlink_to(tmp_path / "outside")
    (tmp_path / "hello").write_text("bound")
    (tmp_path / "lab-profiles.yml").write_text(PROFILE.replace("HERE", str(here)))

    def standing() -> dict[Path, str]:
        below = sorted(path for path in here.rglob("*"))
        outside = [tmp_path / "target", *(tmp_path / "outside").iterdir()]
        return {path: path.read_text() if path.is_file() else "" for path in (*below, *outside)}

    before = standing()
    wanted = {
        f"{here}/{path}": text
        for path, text in (
            *(("new/deep/file", "mine"), ("old/file", "mine"), ("link", "mine"), ("kept", "mine")),
            *(("new/config", "of the topology\n"), ("bound/hello", "bound"), ("new/bound/hello", "bound")),
            *(("away/hello", "bound"), ("bound.file", "bound")),
        )
    }
    binds = [f"{tmp_path}:{here}/bound", f"{tmp_path}:{here}/new/bound"]
    binds += [f"hello:{here}/away/hello", f"hello:{here}/bound.file"]
    file = write(f'    a: {{image: elsewhere, startup-config: "of the topology\\n", binds: {binds}}}\n')
    with Lab.load(file) as lab:
        for path, text in wanted.items():
            assert lab.exec("a", ["cat", path]).stdout == text
        scratch = [f"{here}/new/scratch", f"{here}/old/scratch", "/run/scratch"]
        lab.exec("a", ["touch", *(f"{directory}/x" for directory in scratch), f"{here}/x"])
        assert standing() == before
        assert lab.down()
        lab.up()
        for path, text in wanted.items():
            assert lab.exec("a", ["cat", path]).stdout == text
    assert standing() == before
    assert not Path("/run/scratch").exists()


def test_a_node_may_have_files_at_the_top_and_the_host_does_not(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "hello").write_text("bound\n")
    file = write(
        "    a: {binds: ['hello:/lab-test-file.txt', 'hello:/lab-test-dir/hello:ro', 'hello:/etc/hello']}\n"
    )
    before = sorted(Path("/").iterdir())
    with Lab.load(file) as lab:
        said = lab.exec("a", ["cat", "/lab-test-file.txt", "/lab-test-dir/hello", "/etc/hello"]).stdout
        assert said == "bound\n" * 3
        assert lab.exec("a", ["sh", "-c", "ip netns add x; ip netns; ls -d /bin /proc/1"]).stdout
        with lab.locked():
            faults.power_off(lab, "a")
            assert faults.restore(lab, lambda _: None) == ["node a: on again"]
        assert lab.exec("a", ["cat", "/lab-test-dir/hello"]).stdout == "bound\n"
    assert sorted(Path("/").iterdir()) == before


def test_whatever_a_node_writes_stays_in_it(write: Callable[[str], Path], name: str) -> None:
    places = [
        path / name
        for path in (Path("/"), *Path("/").iterdir())
        if path.is_dir() and not path.is_symlink() and path.name not in {"proc", "sys", "dev", "lost+found"}
    ]
    with Lab.load(write("    a:\n    b:\n")) as lab:
        # Where the host has other mounts below, nothing can be written.
        lab.exec(
            "a", ["sh", "-c", 'for path; do echo mine >"$path"; done', "sh", *map(str, places)], check=False
        )
        assert not [path for path in places if path.exists()]
        assert lab.exec("b", ["ls", *map(str, places)], check=False).stdout == ""
        for place in ("/", "/etc", "/usr"):
            assert lab.exec("a", ["cat", f"{place}/{name}"]).stdout == "mine\n"


def test_orphans_are_reaped(write: Callable[[str], Path]) -> None:
    with Lab.load(write("    a:\n")) as lab:
        lab.exec("a", ["sh", "-c", "(true &) ; (sleep 0.01 &)"])
        until(lambda: "Z" not in lab.exec("a", ["ps", "-eo", "stat="]).stdout)
        lab.exec("a", ["setsid", "-f", "sh", "-c", "exit 3"])
        until(lambda: "Z" not in lab.exec("a", ["ps", "-eo", "stat="]).stdout)


def test_exec_passes_status_input_and_output_through(write: Callable[[str], Path]) -> None:
    file = str(write("    a:\n"))
    with Lab.load(file) as lab:
        with cli("exec", file, "a", "--", "sh", "-c", "read x; echo got $x; echo err >&2; exit 7") as process:
            assert process.communicate("ping\n") == ("got ping\n", "err\n")
            assert process.returncode == 7
        assert lab.exec("a", ["cat"], input="in").stdout == "in"
        assert lab.exec("a", ["false"], check=False).returncode == 1
        with pytest.raises(LabError, match="node a: sh -c echo why >&2; exit 3: exit status 3: why"):
            lab.exec("a", ["sh", "-c", "echo why >&2; exit 3"])
        with pytest.raises(NotFound, match='no node "z"; it has a'):
            lab.exec("z", ["true"])
    with pytest.raises(NotFound, match="node a is not running"):
        lab.exec("a", ["true"])


def test_a_command_is_really_killed(write: Callable[[str], Path]) -> None:
    with Lab.load(write("    a:\n")) as lab:
        sleeping = ["pgrep", "-x", "sleep"]
        with pytest.raises(LabError, match="it was killed"):
            lab.exec("a", ["sh", "-c", "sleep 500; true"], timeout=0.3)
        until(lambda: not lab.exec("a", sleeping, check=False).stdout)
        with lab.popen("a", ["sleep", "600"]) as process:
            until(lambda: lab.exec("a", sleeping, check=False).stdout)
            process.send_signal(signal.SIGSTOP)
            until(lambda: "T" in lab.exec("a", ["ps", "-C", "sleep", "-o", "stat="]).stdout)
            process.send_signal(signal.SIGCONT)
            process.terminate()
            assert process.wait(10) != 0
        assert not lab.exec("a", sleeping, check=False).stdout
        with lab.popen("a", ["sleep", "700"]) as process:
            until(lambda: lab.exec("a", sleeping, check=False).stdout)
            os.kill(process.pid, signal.SIGKILL)  # nsenter alone, as an impatient operator would
        until(lambda: not lab.exec("a", sleeping, check=False).stdout)


@pytest.mark.parametrize(
    ("node", "want"),
    [
        pytest.param(
            "{exec: ['true', 'ls /nowhere', 'touch /run/x']}",
            [r"node b: exec[1] 'ls /nowhere': exit status 2", "cannot access '/nowhere'"],
            id="command",
        ),
        pytest.param("{exec: [nonsense]}", ["node b: nonsense: No such file"], id="no such command"),
        pytest.param(
            "{image: 'quay.io/coreos/etcd:v3.4', cmd: etcd --listen-peer-urls http://192.0.2.1:2380}",
            [
                "node b: etcd --listen-peer-urls http://192.0.2.1:2380: exit status 1",
                "cannot assign requested address",
            ],
            id="etcd",
        ),
        pytest.param(
            "{image: 'frrouting/frr:v8.4.1', binds: ['bad:/etc/frr/frr.conf']}",
            ["node b: its daemons: exit status", "router nonsense"],
            id="FRR",
        ),
        pytest.param(
            "{image: 'pierky/bird:2.15', binds: ['bad:/etc/bird/bird.conf']}",
            ["node b: bird -f", "syntax error"],
            id="BIRD",
        ),
    ],
)
def test_what_dies_at_start_is_shown_and_everything_goes_down(
    node: str, want: list[str], write: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    (tmp_path / "bad").write_text("router nonsense\n")
    seen: list[Process] = []
    second = node.removesuffix("}") + ", stages: {create: {wait-for: [{node: a, stage: healthy}]}}}"
    with pytest.raises(LabError) as failure:
        Lab.load(write(f"    a:\n    b: {second}\n")).up(lambda _: seen.extend(recorded(name)))
    for part in (*want, f"lab {name} was taken down"):
        assert part in str(failure.value)
    assert seen
    assert not [process for process in seen if process.alive]
    assert not (RUN / name).exists()


def test_an_image_that_nobody_knows_runs_as_plain_linux_with_a_warning(write: Callable[[str], Path]) -> None:
    said: list[str] = []
    lab = Lab.load(write("    a: {image: strange/thing}\n"))
    try:
        lab.up(said.append)
        assert said[0] == "node a: no profile for strange/thing; it runs as plain Linux"
        assert lab.inspect()[0].profile == "plain"
    finally:
        lab.down()


def test_a_node_ends_with_its_foreground_process(write: Callable[[str], Path]) -> None:
    lab = Lab.load(write("    a: {cmd: sleep infinity, restart-policy: 'no'}\n    b:\n"))
    with lab:
        lab.exec("a", ["pkill", "-x", "sleep"], check=False)
        until(lambda: lab.inspect()[0].pid is None)
        with pytest.raises(LabError, match="a ended since it came up; take it down first"):
            lab.up()


def test_a_runner_killed_half_way_leaves_what_down_ends(write: Callable[[str], Path], name: str) -> None:
    file = str(write(SLOW))
    with cli("up", file) as process:
        await_slow(process)
        trace = Trace(name)
        with pytest.raises(Taken, match="another command is at work on it"):
            Lab.load(file).down()
        process.kill()
        process.wait()
    # The backplane, which still waits for orders, ends with its runner; the nodes, which have theirs, do not.
    assert [each.alive for each in trace.processes].count(True) >= 4
    with cli("down", file) as process:
        assert process.wait(20) == 0
    trace.assert_nothing_left()


def test_a_runner_killed_half_way_does_not_stop_the_next_up(write: Callable[[str], Path], name: str) -> None:
    file = str(write(SLOW))
    with cli("up", file) as process:
        await_slow(process)
    seen = recorded(name)
    with Lab.load(write("    a:\n")) as lab:
        assert [each.alive for each in seen] == [False] * 6  # two a node, and the backplane's
        assert lab.exec("a", ["true"]).returncode == 0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupt_takes_down_what_was_made(
    sent: signal.Signals, write: Callable[[str], Path], name: str
) -> None:
    with cli("up", str(write(SLOW))) as process:
        await_slow(process)
        trace = Trace(name)
        process.send_signal(sent)
        assert process.wait(20) != 0
    trace.assert_nothing_left()


def test_a_recycled_pid_is_never_signalled(write: Callable[[str], Path], name: str) -> None:
    lab = Lab.load(write("    a:\n"))
    with lab:
        path = RUN / name / "a" / "process"
        text = path.read_text()
        with subprocess.Popen(["sleep", "600"]) as stranger:
            path.write_text(
                json.dumps({key: {"pid": stranger.pid, "started": 1} for key in ("init", "parent")})
            )
            assert lab.inspect()[0].pid is None
            for process in recorded(name):
                process.end()
            assert stranger.poll() is None
            stranger.kill()
        path.write_text(text)


def test_inspect_prints_json(write: Callable[[str], Path], name: str) -> None:
    file = str(write(PAIR))
    with Lab.load(file) as lab:
        done = subprocess.run(
            [*CLI, "inspect", file, "-o", "json"], capture_output=True, text=True, check=True
        )
        shown = json.loads(done.stdout)
        assert shown["name"] == name
        assert [node["pid"] for node in shown["nodes"]] == [lab.pid("a"), lab.pid("b")]
