"""`fabricctl lab` beside up and down: list, logs, shell, save, and what it does in bad circumstances."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fabric.errors import LabError
from fabric.lab.home import RUN
from fabric.lab.lab import Lab
from tests.scenarios.labs import CLI, NOBODY, Trace, cli, ran, until


def test_list_shows_what_stands_and_from_which_file(write: Callable[[str], Path], name: str) -> None:
    file = write("    a:\n    b: {cmd: sleep 600, restart-policy: 'no'}\n")
    with Lab.load(file) as lab:
        shown = {each["name"]: each for each in json.loads(ran("list", "-o", "json").stdout)}
        assert shown[name] == {"name": name, "state": "up", "running": 2, "nodes": 2, "file": str(file)}
        lab.exec("b", ["pkill", "-x", "sleep"], check=False)
        until(lambda: f"{name}  up" in ran("list").stdout and "1/2" in ran("list").stdout)
    assert name not in ran("list").stdout


def test_logs_prints_what_the_node_said_and_follows(write: Callable[[str], Path]) -> None:
    file = write("    a: {exec: ['echo first']}\n")
    with Lab.load(file) as lab:
        assert "first\n" in ran("logs", str(file), "a").stdout
        with cli("logs", str(file), "a", "--follow") as process:
            assert process.stdout
            assert any("first" in line for line in process.stdout)
            lab.exec("a", ["sh", "-c", "echo second >>/proc/1/fd/2"])
            assert any("second" in line for line in process.stdout)
    assert 'has no node "z"' in ran("logs", str(file), "z").stderr


@contextmanager
def terminal(*argv: str) -> Iterator[Callable[[str, str], None]]:
    """Run `fabricctl lab ARGV` on a terminal; the function types a line and waits for an answer."""
    pid, fd = pty.fork()
    if not pid:
        os.execv(CLI[0], [*CLI, *argv])

    def ask(line: str, answer: str) -> None:
        os.write(fd, line.encode() + b"\n")
        heard, deadline = "", time.monotonic() + 10
        while answer not in heard:
            assert time.monotonic() < deadline, heard
            if select.select([fd], [], [], 0.1)[0]:
                heard += os.read(fd, 4096).decode()

    try:
        yield ask
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(fd)


def test_shell_is_an_interactive_shell_in_the_node(write: Callable[[str], Path]) -> None:
    file = write("    a:\n")
    with Lab.load(file), terminal("shell", str(file), "a") as ask:
        ask("echo $((6 * 7)) on $(hostname)", "42 on a")


def test_save_writes_the_running_configuration_of_routers(write: Callable[[str], Path], name: str) -> None:
    file = write("    r: {image: 'quay.io/frrouting/frr:8.4.1'}\n    a:\n")
    with Lab.load(file) as lab:
        lab.exec("r", ["vtysh", "-c", "configure terminal", "-c", "ip route 192.0.2.0/24 blackhole"])
        saved = file.parent / f"clab-{name}" / "r" / "frr.conf"
        assert ran("save", str(file)).stdout == f"saved {saved}\n"
        assert "ip route 192.0.2.0/24 blackhole" in saved.read_text()


def test_down_needs_no_sound_file(write: Callable[[str], Path], name: str) -> None:
    file = write("    a:\n")
    assert ran("up", str(file)).returncode == 0
    trace, text = Trace(name), file.read_text()
    try:
        file.write_text("name: [")
        done = ran("down", str(file))
        assert (done.returncode, done.stdout) == (0, f"lab {name}: down\n")
        trace.assert_nothing_left()
        again = ran("down", str(file))
        assert again.returncode == 1
        assert "not YAML" in again.stderr
    finally:
        file.write_text(text)


def test_down_ends_what_came_from_the_file_under_another_name(
    write: Callable[[str], Path], name: str
) -> None:
    file = write("    a:\n")
    assert ran("up", str(file)).returncode == 0
    text = file.read_text()
    file.write_text(text.replace(f"name: {name}", f"name: {name}-2"))
    try:
        assert ran("down", str(file)).stdout == f"lab {name}: down\n"
    finally:
        file.write_text(text)


def test_a_lab_without_its_backplane_is_damaged_and_goes_down(
    write: Callable[[str], Path], name: str
) -> None:
    file = write("    a:\n    b:\n  links: [{endpoints: ['a:eth1', 'b:eth1']}]\n")
    with Lab.load(file) as lab:
        lab.home.backplane().end()
        shown = {each["name"]: each for each in json.loads(ran("list", "-o", "json").stdout)}
        assert shown[name]["state"] == "damaged"
        assert "its backplane is gone; take the lab down" in ran("up", str(file)).stderr


def test_an_unknown_user_is_named(write: Callable[[str], Path]) -> None:
    file = write("    a: {user: nobody-of-this-name}\n")
    with Lab.load(file):
        done = ran("exec", str(file), "a", "true")
        assert done.returncode == 1
        assert "user nobody-of-this-name does not exist here" in done.stderr
        assert "Traceback" not in done.stderr


def test_names_may_be_as_long_as_a_host_name_and_a_path_allow(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    a, b, name = "a" * 63, "b" * 63, f"{tmp_path.parent.name}-".replace("_", "-") + "l" * 120
    file = write(f"    {a}:\n    {b}:\n  links: [{{endpoints: ['{a}:interface-of-15', '{b}:eth1']}}]\n")
    with Lab.load(file, name=name) as lab:
        assert lab.exec(a, ["hostname"]).stdout == a + "\n"
        assert "interface-of-15@" in lab.exec(a, ["ip", "-br", "link"]).stdout
        assert str(RUN / name / a) in str(lab.log(a))


LOOK = "+dac_read_search"


def test_without_root_nothing_is_touched_and_the_reason_said(write: Callable[[str], Path]) -> None:
    file = write("    a:\n")
    for parent in [file, *file.parents]:
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    for verb in ("up", "down"):
        done = subprocess.run(
            # It may look into every folder, since this checkout's may be root's alone; no more than that.
            [*NOBODY[:-1], f"--inh-caps={LOOK}", f"--ambient-caps={LOOK}", "--", *CLI, verb, str(file)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done
        assert "takes root; nothing was changed; run it with sudo" in done.stderr


# A namespace of its own for mounts, in which /run has next to no room.
FULL = """
mount -t tmpfs -o size=64k tmpfs /run
mkdir /run/fabricctl-lab
dd if=/dev/zero of=/run/filler bs=1k count=COUNT 2>/dev/null || true
exec "$@"
"""


@pytest.mark.parametrize("count", [64, 56], ids=["at once", "half-way"])
def test_a_full_disk_is_named_and_nothing_is_left(
    write: Callable[[str], Path], name: str, count: int
) -> None:
    file = write("".join(f"    n{i}: {{cmd: sleep 600}}\n" for i in range(12)))
    script = FULL.replace("COUNT", str(count))
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *CLI, "up", str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert not RUN.joinpath(name).exists()
    assert [pid for pid in Path("/proc").glob("[0-9]*") if name in environ(pid)] == []


def environ(process: Path) -> str:
    with suppress(OSError):
        return (process / "environ").read_text(errors="replace")
    return ""


def test_a_failing_node_says_what_a_user_can_do(write: Callable[[str], Path], name: str) -> None:
    with pytest.raises(LabError) as failure:
        Lab.load(write("    a: {exec: ['sh -c \"echo because >&2; exit 1\"']}\n")).up()
    message = str(failure.value)
    assert message.startswith("node a: exec[0]")
    assert "    because" in message
    assert message.endswith(f"lab {name} was taken down; mend the cause and bring it up again")
