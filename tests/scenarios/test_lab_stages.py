"""Nodes wait for each other's stages, run commands at them, and a daemon that ends is started again as Docker does."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fabric.errors import LabError
from fabric.lab.lab import Lab
from tests.scenarios.labs import Trace, cli, until


def test_a_node_waits_until_another_has_ended_its_stage(write: Callable[[str], Path], tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.touch()
    file = write(
        f"    first: {{startup-delay: 1, binds: [{seen}:/run/seen], exec: [\"sh -c 'echo first >>/run/seen'\"]}}\n"
        f"    second:\n      binds: [{seen}:/run/seen]\n"
        "      exec: [\"sh -c 'echo second >>/run/seen'\"]\n"
        "      stages: {configure: {wait-for: [{node: first, stage: configure}]}}\n"
        f"    third:\n      binds: [{seen}:/run/seen]\n"
        "      exec: [\"sh -c 'echo third >>/run/seen'\"]\n"
        "      stages: {create: {wait-for: [{node: second, stage: healthy}]}}\n"
        "  links: [{endpoints: ['first:eth1', 'third:eth1']}]\n"
    )
    with Lab.load(file) as lab:
        assert seen.read_text().split() == ["first", "second", "third"]
        until(lambda: "LOWER_UP" in lab.exec("first", ["ip", "link", "show", "eth1"]).stdout)


def test_a_node_waits_for_the_end_of_one_that_does_its_work_and_ends(write: Callable[[str], Path]) -> None:
    file = write(
        "    work: {cmd: sleep 0.5, restart-policy: 'no'}\n"
        "    after: {stages: {configure: {wait-for: [{node: work, stage: exit}]}}}\n"
    )
    with Lab.load(file) as lab:
        assert [state.state for state in lab.inspect()] == ["stopped", "running"]


def test_commands_of_a_stage_run_in_the_node_or_on_the_host(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    file = write(
        "    a:\n      stages:\n"
        "        create: {exec: {on-exit: [\"sh -c 'ls /sys/class/net >/run/before'\"]}}\n"
        "        create-links:\n          exec:\n"
        "            - {command: \"sh -c 'ls /sys/class/net >/run/after'\", phase: on-exit}\n"
        f"            - {{command: 'touch {tmp_path}/on-host', target: host, phase: on-enter}}\n"
        "    b:\n  links: [{endpoints: ['a:eth1', 'b:eth1']}]\n"
    )
    with Lab.load(file) as lab:
        assert lab.exec("a", ["cat", "/run/before"]).stdout.split() == ["lo"]
        assert lab.exec("a", ["cat", "/run/after"]).stdout.split() == ["eth1", "lo"]
    assert (tmp_path / "on-host").exists()


@pytest.mark.parametrize("target", ["container", "host"])
def test_a_failing_command_of_a_stage_takes_the_lab_down_and_is_shown(
    target: str, write: Callable[[str], Path]
) -> None:
    command = f"{{command: \"sh -c 'echo why >&2; exit 3'\", target: {target}, phase: on-enter}}"
    file = write(f"    a:\n    b: {{stages: {{configure: {{exec: [{command}]}}}}}}\n")
    with pytest.raises(LabError) as failure:
        Lab.load(file).up()
    message = str(failure.value)
    assert 'node b: stage configure: "sh -c echo why >&2; exit 3": exit status 3' in message.replace("'", '"')
    assert "\n    why\n" in message
    assert "was taken down" in message


def test_an_interrupt_ends_a_command_on_the_host_and_what_it_started(
    write: Callable[[str], Path], name: str
) -> None:
    command = f"{{command: \"sh -c 'sleep 611; true # {name}'\", target: host, phase: on-enter}}"
    with cli("up", str(write(f"    a: {{stages: {{configure: {{exec: [{command}]}}}}}}\n"))) as process:
        until(lambda: subprocess.run(["pgrep", "-f", "^sleep 611"], capture_output=True, check=False).stdout)
        process.terminate()
        assert process.wait(10) == 130
        assert process.stderr
        assert f"lab {name}: interrupted; it was taken down" in process.stderr.read()
    assert not subprocess.run(["pgrep", "-f", "^sleep 611"], capture_output=True, check=False).stdout


def test_an_interrupt_while_nodes_wait_for_each_other_leaves_nothing(
    write: Callable[[str], Path], name: str
) -> None:
    slow = (
        "    a: {exec: ['sleep 600']}\n    b: {stages: {create: {wait-for: [{node: a, stage: configure}]}}}\n"
    )
    with cli("up", str(write(slow))) as process:
        assert process.stderr
        assert any("node b: waiting for a (configure) before create" in line for line in process.stderr)
        trace = Trace(name)
        process.terminate()
        assert process.wait(20) != 0
    trace.assert_nothing_left()


RESTARTING = "    a: {cmd: sleep 600, restart-policy: POLICY}\n"


def test_a_shell_as_foreground_process_stays_as_it_does_on_the_terminal_of_a_container(
    write: Callable[[str], Path],
) -> None:
    with Lab.load(write("    a: {cmd: ash, restart-policy: 'no', exec: [ash -c 'echo here']}\n")) as lab:
        assert lab.exec("a", ["pgrep", "-x", "ash"]).stdout
        assert "here" in lab.log("a").read_text()


def test_a_foreground_process_that_ends_is_restarted_and_keeps_the_links(
    write: Callable[[str], Path],
) -> None:
    body = RESTARTING.replace("POLICY", "always") + "    b:\n  links: [{endpoints: ['a:eth1', 'b:eth1']}]\n"
    with Lab.load(write(body)) as lab:
        before = lab.exec("a", ["pgrep", "-x", "sleep"]).stdout
        lab.exec("a", ["pkill", "-x", "sleep"])
        until(lambda: lab.exec("a", ["pgrep", "-x", "sleep"], check=False).stdout not in ("", before))
        assert "restarted in" in lab.log("a").read_text()
        assert "eth1" in lab.exec("a", ["ls", "/sys/class/net"]).stdout
        assert lab.up() is False


@pytest.mark.parametrize(
    ("policy", "ends", "alive"),
    [("on-failure", "exit 3", True), ("on-failure", "exit 0", False), ("'no'", "exit 3", False)],
)
def test_a_restart_policy_means_what_it_means_to_docker(
    policy: str, ends: str, alive: bool, write: Callable[[str], Path]
) -> None:
    script = f"sh -c 'while [ ! -e /run/end ]; do sleep 0.05; done; rm /run/end; echo ending; {ends}'"
    with Lab.load(write(f'    a: {{cmd: "{script}", restart-policy: {policy}}}\n')) as lab:
        lab.exec("a", ["touch", "/run/end"])
        until(lambda: "ending" in lab.log("a").read_text())
        if alive:
            until(lambda: "restarted in" in lab.log("a").read_text())
            assert lab.inspect()[0].pid
        else:
            until(lambda: lab.inspect()[0].pid is None)


def test_user_entrypoint_sysctls_and_env_files_are_as_in_a_container(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "more.env").write_text("# a comment\nFROM_FILE=yes\nLAB=overridden by env\n")
    (tmp_path / "who").touch()
    (tmp_path / "who").chmod(0o666)
    file = write(
        "    a: {user: daemon, entrypoint: sleep, cmd: '600', binds: ['who:/run/who'], env-files: [more.env],\n"
        "        exec: [\"sh -c 'id -un >/run/who'\"],\n"
        "        sysctls: {net.ipv4.ip_forward: 1, net.ipv4.conf.all.rp_filter: 2}}\n"
    )
    with Lab.load(file) as lab:
        assert (tmp_path / "who").read_text() == "daemon\n"
        assert lab.exec("a", ["ps", "-o", "user=", "-C", "sleep"]).stdout == "daemon\n"
        assert lab.exec("a", ["id", "-un"]).stdout == "daemon\n"
        assert lab.exec("a", ["sh", "-c", "echo $FROM_FILE $LAB"]).stdout == f"yes {lab.name}\n"
        asked = ["sysctl", "-n", "net.ipv4.ip_forward", "net.ipv4.conf.all.rp_filter"]
        assert lab.exec("a", asked).stdout == "1\n2\n"


def test_a_node_is_held_to_its_memory_and_processors(write: Callable[[str], Path], name: str) -> None:
    with Lab.load(write("    a: {cpu: 0.5, memory: 64mb}\n")) as lab:
        groups = lab.exec("a", ["cat", "/proc/self/cgroup"]).stdout
        if f"fabricctl-lab/{name}/a" in groups:
            eat = "x = bytearray(256 << 20); print(len(x))"
            done = lab.exec("a", ["python3", "-c", eat], check=False)
            assert done.returncode == 137 or done.returncode == -9, done
        else:
            assert "the limit is not kept" in "".join(map(str, warnings(lab)))
    assert not list(Path("/sys/fs/cgroup").glob(f"*/fabricctl-lab/{name}"))


def warnings(lab: Lab) -> list[str]:
    said: list[str] = []
    lab.down()
    lab.up(said.append)
    return said
