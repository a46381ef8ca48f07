"""The first process of a lab node: gives the node files and a name of its own, starts it, reaps orphans.

Run by `fabric.lab.node` as `python -I -S init.py` in fresh namespaces; it imports the standard library
only, since every node waits for it. The conversation, one line each way, is the whole protocol:

    > (born)      < orders, as JSON      > (ready)     the links are made meanwhile
    < (go)        > report, as JSON      then silence; the node ends when this process does

If its input ends before (go), the runner has died and so does the node. Its standard error is the
node's log.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn, TypedDict

READY_WITHIN = 30.0  # seconds from the start of `main` until `ready` holds
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC = 0x1, 0x20, 0x1000, 0x4000
# What a node may change without the host or its neighbours seeing it. /run comes first: the tmpfs
# there holds what is written to the others.
OWN = ("/etc", "/var")
LAYERS = Path("/run/.lab")
LOG = 2


class Orders(TypedDict):
    """What the runner asks of a node; paths are absolute, `delay` is in seconds."""

    name: str
    binds: list[tuple[str, str, bool]]  # source on the host, target in the node, read-only
    scratch: list[str]
    interfaces: list[str]
    env: dict[str, str]
    delay: int
    start: str
    main: list[str]
    ready: str
    exec: list[list[str]]


class Report(TypedDict):
    """How the start went: `fault` is empty if all is well, else the log from `at` on shows why."""

    fault: str
    at: int


class StartError(Exception):
    """The node cannot start; the message is for the operator."""


def main() -> NoReturn:
    say("born")
    orders: Orders = json.loads(hear())
    try:
        furnish(orders)
    except OSError as err:
        say(json.dumps(Report(fault=f"{err.strerror}: {err.filename}", at=0)))
        sys.exit(1)
    say("ready")
    hear()
    report, process = start(orders)
    say(json.dumps(report))
    with Path(os.devnull).open("r+b") as null:
        os.dup2(null.fileno(), 0)
        os.dup2(null.fileno(), 1)
    reap(process)


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def hear() -> str:
    return sys.stdin.readline() or sys.exit("the runner is gone")


def furnish(orders: Orders) -> None:
    # The sources are opened first: what the node gets below hides the host's /run from it.
    sources = [os.open(source, os.O_PATH) for source, _, _ in orders["binds"]]
    mount("sysfs", "/sys", "sysfs")
    mount("tmpfs", "/run", "tmpfs", data="mode=755")
    for directory in OWN:
        own(Path(directory))
    # /var/lib/fabricctl: a node of the fabric that runs labs keeps its own state there.
    for path in ("/run/lock", "/run/netns", "/var/log", "/var/lib/fabricctl", *orders["scratch"]):
        Path(path).mkdir(parents=True, exist_ok=True)
        mount("tmpfs", path, "tmpfs", data="mode=755")
    name = orders["name"]
    # ExaBGP, for one, starts five seconds late if the host's name leads nowhere.
    Path("/etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost\n")
    Path("/etc/hostname").write_text(name + "\n")
    socket.sethostname(name)
    for fd, (_, target, read_only) in zip(sources, orders["binds"], strict=True):
        bind(fd, Path(target), read_only)


def own(directory: Path) -> None:
    """Let the node write to `directory` without the host seeing it: an overlay on the node's tmpfs."""
    upper, work = (LAYERS / directory.relative_to("/") / part for part in ("upper", "work"))
    upper.mkdir(parents=True)
    work.mkdir()
    mount("overlay", str(directory), "overlay", data=f"lowerdir={directory},upperdir={upper},workdir={work}")


def bind(source: int, target: Path, read_only: bool) -> None:
    path = f"/proc/self/fd/{source}"
    if not target.exists():
        _make_room(target, directory=Path(path).is_dir())
    mount(path, str(target), flags=MS_BIND | MS_REC)
    if read_only:
        mount("none", str(target), flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def _make_room(target: Path, *, directory: bool) -> None:
    # The node shares the host's files: a mount point may only be made where the node has its own.
    parent = next(path for path in target.parents if path.exists())
    if not any(parent.is_relative_to(path) for path in (*OWN, "/run")):
        if parent == Path("/"):
            raise OSError(
                errno.EROFS, "a node has the host's /: bind below a directory that exists", str(target)
            )
        own(parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    if directory:
        target.mkdir()
    else:
        target.touch()


def mount(source: str, target: str, kind: str = "none", flags: int = 0, data: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()):
        code = ctypes.get_errno()
        raise OSError(code, f"cannot mount {kind}: {os.strerror(code)}", target)


def start(orders: Orders) -> tuple[Report, subprocess.Popen[bytes] | None]:
    """Start everything, in the order a container would; return the foreground process, if there is one."""
    process = None
    at = 0
    os.environ.clear()
    os.environ.update(orders["env"])
    try:
        links_up(orders["interfaces"])
        time.sleep(orders["delay"])
        if orders["start"]:
            run(["/bin/sh", "-eu", "-c", orders["start"]], "its daemons")
        if orders["main"]:
            process = spawn(orders["main"])
            await_ready(process, orders)
        for i, command in enumerate(orders["exec"]):
            at = os.lseek(LOG, 0, os.SEEK_END)
            run(command, f"exec[{i}] {' '.join(command)!r}")
        if process and process.poll() is not None:
            at = 0
            raise StartError(f"{' '.join(orders['main'])}: {ended(process.returncode)}")
    except StartError as err:
        return Report(fault=str(err), at=at), process
    return Report(fault="", at=0), process


def links_up(interfaces: list[str]) -> None:
    batch = "".join(f"link set dev {name} up\n" for name in ["lo", *interfaces])
    done = subprocess.run(["ip", "-batch", "-"], input=batch.encode(), stdout=LOG, check=False)
    if done.returncode:
        raise StartError("its links cannot be set up")


def run(command: list[str], what: str) -> None:
    process = spawn(command)
    if status := process.wait():
        raise StartError(f"{what}: {ended(status)}")


def spawn(command: list[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=LOG, stderr=LOG, cwd="/", start_new_session=True
        )
    except OSError as err:
        raise StartError(f"{command[0]}: {err.strerror}") from err


def await_ready(process: subprocess.Popen[bytes], orders: Orders) -> None:
    what, deadline = " ".join(orders["main"]), time.monotonic() + READY_WITHIN
    while process.poll() is None:
        if not orders["ready"] or not os.system(f"{{ {orders['ready']}\n}} >/dev/null 2>&1"):  # noqa: S605
            return
        if time.monotonic() > deadline:
            raise StartError(f"{what}: not ready after {READY_WITHIN:.0f} s")
        time.sleep(0.02)
    raise StartError(f"{what}: {ended(process.returncode)}")


def ended(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"ended by {signal.Signals(-status).name}"


def reap(process: subprocess.Popen[bytes] | None) -> NoReturn:
    """Collect whatever dies; end, and the node with it, when the foreground process does."""
    # Blocked only now, when nothing more is started: children inherit the mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while process is None or process.poll() is None:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pid, status = 0, 0
        if process and pid == process.pid:
            sys.exit(abs(os.waitstatus_to_exitcode(status)))
        if not pid:
            signal.sigwait({signal.SIGCHLD})
    sys.exit(abs(process.returncode))


if __name__ == "__main__":
    main()
