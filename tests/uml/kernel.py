"""Boots a user-mode Linux kernel on this host's files, for what this host's own kernel lacks, and ends it.

Nothing of the host's is changed: `init.sh` beside this has what the kernel sees. The whole of it, a process for each
of its own, lives in a pid namespace whose first process dies with whoever booted it, however that ends.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAM = "linux.uml"
MEMORY = "1024M"
INIT = Path(__file__).with_name("init.sh")
POPULATE = Path(__file__).with_name("populate.c")
ROOT = Path(__file__).parents[2]
PACKAGES = ("fabric", "bgp", "policy", "tests")
OUT = Path("/mnt/out")  # inside: the one place from which anything gets out
TIMED_OUT = 124  # timeout's exit status
GRACE = 5.0  # seconds between its deadline and SIGKILL


class KernelError(Exception):
    """The kernel did not do what it was booted for."""


class Kernel:
    """One boot: runs `command` inside, in `where`; its output goes to `out`/log, and all that it writes to /mnt/out.

    As a context manager it runs inside and is gone after, within `within` seconds at most. `processor` is an index
    into those that this process may use.
    """

    def __init__(
        self,
        out: Path,
        command: Sequence[str],
        *,
        where: Path,
        environment: Mapping[str, str] | None = None,
        within: float,
        processor: int = -1,
    ) -> None:
        self.out, self._within, self._processor = out, within, processor
        out.mkdir(parents=True, exist_ok=True)
        exports = [f"export {name}={shlex.quote(value)}" for name, value in (environment or {}).items()]
        lines = [*exports, f"cd {shlex.quote(str(where))}", f"exec {shlex.join(command)}"]
        (out / "command").write_text("".join(f"{line}\n" for line in lines))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        program = shutil.which(PROGRAM)
        if program is None:
            raise KernelError(
                f"{PROGRAM} is not installed; nothing was booted; `make setup` installs user-mode-linux"
            )
        # What is newer than its compiled form would be compiled again by every process in there.
        subprocess.run([sys.executable, "-m", "compileall", "-q", *PACKAGES], cwd=ROOT, check=True)
        compiled = self.out / POPULATE.with_suffix(".so").name
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", compiled, POPULATE], check=True)
        owned = "setpriv --pdeathsig KILL -- unshare --mount --pid --fork --kill-child=KILL --mount-proc --"
        # It goes back and forth between its kernel and its processes at each of their faults and system calls:
        # on one processor that takes a third of the time.
        pinned = f"taskset --cpu-list {sorted(os.sched_getaffinity(0))[self._processor]}"
        deadline = f"timeout --kill-after {GRACE} {self._within}"
        kernel = f"{program} root=/dev/root rootfstype=hostfs rootflags=/ ro mem={MEMORY} quiet"
        settings = (f"init={INIT}", f"OUT={self.out}", f"uml_dir={self.out}/", "con=null", "con0=null,fd:1")
        self._alive, theirs = os.pipe()
        with (self.out / "console").open("wb") as console, os.fdopen(theirs, "wb"):
            self._process = subprocess.Popen(
                [*f"{owned} {pinned} {deadline} {kernel}".split(), *settings],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                pass_fds=[theirs],
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process
        self._process.kill()
        self._process.wait()
        os.read(self._alive, 1)  # ends when the last process that has the other end does
        os.close(self._alive)

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def wait(self) -> int:
        """Return the exit status of the command.

        Raises:
            KernelError: it did not come to its end: a panic, or the deadline.
        """
        assert self._process
        status = self._process.wait()
        try:
            return int((self.out / "status").read_text())
        except (FileNotFoundError, ValueError):
            raise KernelError(self._why(status)) from None

    def _why(self, status: int) -> str:
        said = (self.out / "console").read_text(errors="replace").splitlines()
        why = next((line for line in said if "Kernel panic" in line), f"it ended with status {status}")
        why = f"no end within {self._within:.0f} s" if status == TIMED_OUT else why
        return f"{PROGRAM}: {why}; {self.out / 'command'} did not come to its end{self.last_words()}"

    def last_words(self, lines: int = 15) -> str:
        """Return the ends of what the command and the console said, indented, to stand below a message."""
        said = ""
        for path in (self.out / "log", self.out / "console"):
            text = path.read_text(errors="replace") if path.exists() else ""
            said += "".join(f"\n    {path.name}: {line}" for line in text.splitlines()[-lines:])
        return said
