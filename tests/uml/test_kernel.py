"""What the harness of user-mode kernels promises: they end, say why, and leave the host as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.lab.node import Process
from tests.scenarios.labs import until
from tests.uml.kernel import PROGRAM, Kernel, KernelError

BOOT = 20.0  # seconds, with plenty to spare


def booted(out: Path, *command: str, within: float = BOOT) -> Kernel:
    # On another processor than the tests that run inside meanwhile.
    return Kernel(out, command, where=Path("/"), within=within, processor=0)


def kernels(out: Path) -> list[int]:
    """Return the processes of the host that run the kernel which writes to `out`, itself and its own processes."""
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if f"OUT={out}".encode() in _read(path).split(b"\0")
    ]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_the_commands_exit_status_and_output_come_out(tmp_path: Path) -> None:
    with booted(tmp_path, "sh", "-c", "uname -r; echo results >/mnt/out/results; exit 7") as kernel:
        assert kernel.wait() == 7
    assert (tmp_path / "results").read_text() == "results\n"
    assert "6." in (tmp_path / "log").read_text()
    assert kernels(tmp_path) == []


def test_the_hosts_files_are_read_and_never_written(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("as it was")
    made = tmp_path / "made"
    script = f"cat {there} && echo changed >{there} && touch {made} && rm {__file__} && cat {there}"
    with booted(tmp_path / "out", "sh", "-c", script) as kernel:
        assert kernel.wait() == 0
    assert (tmp_path / "out" / "log").read_text().startswith("as it waschanged\n")
    assert (there.read_text(), made.exists(), Path(__file__).exists()) == ("as it was", False, True)


def test_a_kernel_that_panics_is_told_with_its_last_words(tmp_path: Path) -> None:
    with (
        booted(tmp_path, "sh", "-c", "echo c >/proc/sysrq-trigger") as kernel,
        pytest.raises(KernelError, match=r"Kernel panic.*; .*/command did not come to its end"),
    ):
        kernel.wait()
    assert kernels(tmp_path) == []


def test_a_kernel_has_a_deadline(tmp_path: Path) -> None:
    with (
        booted(tmp_path, "sleep", "100", within=4) as kernel,
        pytest.raises(KernelError, match="no end within 4 s"),
    ):
        kernel.wait()
    assert kernels(tmp_path) == []


def test_a_kernel_ends_with_the_block_that_booted_it(tmp_path: Path) -> None:
    def failing() -> None:
        with booted(tmp_path, "sleep", "100"):
            until(lambda: len(kernels(tmp_path)) > 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert kernels(tmp_path) == []


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has booted a kernel, as a test's runner has."""
    text = (
        "import sys; from pathlib import Path; from tests.uml.test_kernel import booted\n"
        "with booted(Path(sys.argv[1]), 'sleep', '100') as kernel: kernel.wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", text, str(tmp_path)], cwd=Path(__file__).parents[2]
    ) as process:
        yield process
        process.kill()


def test_a_kernel_ends_with_a_runner_that_is_killed(tmp_path: Path, runner: subprocess.Popen[bytes]) -> None:
    until(lambda: (tmp_path / "log").exists())
    left = [process for pid in kernels(tmp_path) if (process := Process.find(pid))]
    assert left
    os.kill(runner.pid, signal.SIGKILL)
    until(lambda: not any(process.alive for process in left))
    until(lambda: kernels(tmp_path) == [])


def test_a_host_without_the_kernel_says_which_package_has_it(tmp_path: Path) -> None:
    text = (
        "import sys; from pathlib import Path; from tests.uml.test_kernel import booted\n"
        "with booted(Path(sys.argv[1]), 'true'): pass"
    )
    done = subprocess.run(
        [sys.executable, "-c", text, str(tmp_path)],
        env={"PATH": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        f"{PROGRAM} is not installed; nothing was booted; `make setup` installs user-mode-linux"
        in done.stderr
    )
