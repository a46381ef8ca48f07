"""The first process of a lab node: gives the node files and a name of its own, starts it, reaps orphans.

Run by `fabric.lab.node` as `python -I -S init.py` in the backplane's mount namespace; it imports the standard
library only. That process is the *nursery*: it forks a first process for each node that it is asked for, in
namespaces of the node's own, since to start Python for each would take ten times as long. It ends when its
channel, on standard input, is closed. Each first process then talks to the runner through pipes of its own,
one line each way:

    > (born)      < orders, as JSON      > (ready)     its links are made meanwhile
    < (link)      > (linked)             < (go)        > report, as JSON

then silence; the node ends when this process does. If its input ends before (go), the runner has died
and so does the node. Its standard error is the node's log.

Afterwards two signals tell it that its foreground process is broken on purpose (SIGUSR1: neither restart
it nor end with it) and mended again (SIGUSR2: start it).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pwd
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypedDict

READY_WITHIN = 30.0  # seconds from the start of the foreground process until `ready` holds
FIRST_RESTART, LAST_RESTART = 0.1, 10.0  # seconds before a restart: doubled each time, up to the second
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC = 0x1, 0x20, 0x1000, 0x2000, 0x4000
MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x2, 0x4, 0x8
CLONE_NEWNET = 0x40000000
NAMESPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000  # mount, UTS, IPC, pid
PR_SET_PDEATHSIG = 1
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 0x1
# What network a first process gets: one of its own, one that is there, or that of the runner.
OWN_NET, JOIN, SHARED = b"own", b"join", b"shared"
OWN = (Path("/etc"), Path("/var"))  # the node's to change, whatever is mounted below
KERNELS = tuple(map(Path, ("/dev", "/proc", "/run", "/sys")))  # what the kernel shows, and the node's /run
DISK = Path(
    "/run/.lab"
)  # where the node's disk is mounted: on it is what the host's directories were changed to
TOOLS = Path("/run/lab/bin")  # last on the PATH
HOLD, RESUME = signal.SIGUSR1, signal.SIGUSR2
LOG = 2
STDIN: list[int] = []  # both ends of the pipe from which foreground processes read nothing


class Interface(TypedDict):
    """One interface of the node; addresses have a prefix length, a gateway is one for its family."""

    name: str
    addresses: list[str]
    gateways: list[str]


class Orders(TypedDict):
    """What the runner asks of a node; paths are absolute, `delay` is in seconds.

    `disk` is a directory that outlives the node, `scratch` what is empty on it at first, `files` path
    to text, `hosts` lines of /etc/hosts, `restart` a restart policy of Docker's.
    """

    name: str
    disk: str
    binds: list[tuple[str, str, bool]]  # source on the host, target in the node, read-only
    scratch: list[str]
    files: dict[str, str]
    hosts: list[str]
    sysctls: dict[str, str]
    interfaces: list[Interface]
    env: dict[str, str]
    user: str
    delay: int
    start: str
    main: list[str]
    ready: str
    exec: list[list[str]]
    restart: str


class Report(TypedDict):
    """How the start went: `fault` is empty if all is well, else the log from `at` on shows why."""

    fault: str
    at: int


class StartError(Exception):
    """The node cannot start; the message is for the operator."""


def nursery() -> NoReturn:
    """Fork a first process for each message, and answer with the pid of the one that waits for it.

    A message comes with descriptors: the first process's standard input, output and error, and, if it is
    JOIN, the network namespace that it is to live in.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here waits for them
    with socket.socket(fileno=0) as channel:
        while True:
            network, descriptors, _, _ = socket.recv_fds(channel, 16, 4)
            if not network:
                sys.exit()
            pid = os.fork()
            if not pid:
                bear(network, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            channel.send(str(pid).encode())


def bear(network: bytes, descriptors: list[int]) -> NoReturn:
    """Become the parent of a first process: it waits, and takes the first process with it when it is killed."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()  # the terminal's Ctrl-C is for the runner
        for target, descriptor in enumerate(descriptors[:3]):
            os.dup2(descriptor, target)
        if network == JOIN:
            called("setns", descriptors[3], CLONE_NEWNET)
        called("unshare", NAMESPACES | (CLONE_NEWNET if network == OWN_NET else 0))
        for descriptor in descriptors:
            os.close(descriptor)
        if pid := os.fork():
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        else:
            called("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
            mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
            main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001  the node's log is where it is looked for
        sys.excepthook(*sys.exc_info())
    os._exit(abs(status))


def called(function: str, *arguments: int) -> None:
    """Call a function of libc that Python has not."""
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), function)


def main() -> NoReturn:
    say("born")
    orders: Orders = json.loads(hear())
    answer(furnish, orders, "ready")
    hear()
    answer(links_up, orders, "linked")
    hear()
    report, process = start(orders)
    say(json.dumps(report))
    with Path(os.devnull).open("r+b") as null:
        os.dup2(null.fileno(), 0)
        os.dup2(null.fileno(), 1)
    reap(process, orders)


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def hear() -> str:
    return sys.stdin.readline() or sys.exit("the runner is gone")


def answer(step: Callable[[Orders], None], orders: Orders, done: str) -> None:
    """Take a step and say `done`, or say why not and end."""
    try:
        step(orders)
    except (OSError, StartError) as err:
        why = f"{err.strerror}: {err.filename}" if isinstance(err, OSError) else str(err)
        say(json.dumps(Report(fault=why, at=0)))
        sys.exit(1)
    say(done)


def furnish(orders: Orders) -> None:
    # Opened first: what the node gets below hides the host's /run, where they may be, from it.
    sources = [os.open(source, os.O_PATH) for source, _, _ in orders["binds"]]
    Path(orders["disk"]).mkdir(exist_ok=True)
    disk = os.open(orders["disk"], os.O_PATH)
    try:
        mount("sysfs", "/sys", "sysfs")
    except OSError as err:
        if err.errno != errno.EBUSY:  # it shows this network already: the node shares the host's
            raise
    mount("tmpfs", "/run", "tmpfs", data="mode=755")
    DISK.mkdir()
    mount(f"/proc/self/fd/{disk}", str(DISK), flags=MS_BIND)
    own_root()
    name = orders["name"]
    # ExaBGP, for one, starts five seconds late if the host's name leads nowhere.
    hosts = ["127.0.0.1 localhost", f"127.0.1.1 {name}", "::1 localhost ip6-localhost", *orders["hosts"]]
    files = {"/etc/hosts": "\n".join([*hosts, ""]), "/etc/hostname": f"{name}\n", **orders["files"]}
    # /var/lib/fabricctl: a host that is a node of the fabric itself keeps its own state there.
    scratch = ["/run/lock", "/run/netns", "/var/log", "/var/lib/fabricctl", *orders["scratch"]]
    targets = [target for _, target, _ in orders["binds"]]
    # For all of them before any is mounted: a directory that becomes the node's own hides what is mounted below.
    made = [*files, *(path for path in (*scratch, *targets) if not Path(path).exists())]
    for path in sorted(made, key=standing):
        room(path)
    for path in scratch:
        fresh(path)
    socket.sethostname(name)
    # Images are of Alpine more often than hosts are, and its shell goes by this name.
    TOOLS.mkdir(parents=True)
    (TOOLS / "ash").symlink_to("/bin/sh")
    for path, text in files.items():
        room(path).write_text(text)
    for fd, (_, target, read_only) in zip(sources, orders["binds"], strict=True):
        bind(fd, target, read_only)
    for key, value in orders["sysctls"].items():
        # A dot separates, unless a slash does (an interface's name may have dots): sysctl(8).
        path = key if "/" in key else key.replace(".", "/")
        Path("/proc/sys", path).write_text(value)


def own_root() -> None:
    """Give the node a root of its own, with everything of the host's in its place and nothing to be changed there.

    A directory of the host's becomes an overlay on the node's disk. One with other mounts below, which an
    overlay would not show, becomes read-only with all of them; what the kernel shows (/proc and the like) stays.
    """
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    place = DISK / "root"
    place.mkdir(exist_ok=True)
    mount(str(place), str(place), flags=MS_BIND)
    for entry in sorted(Path("/").iterdir()):
        target = place / entry.name
        if entry.is_symlink():
            if not target.is_symlink():
                target.symlink_to(entry.readlink())
        elif not entry.is_dir():
            target.touch()
            mount(str(entry), str(target), flags=MS_BIND)
            read_only(target)
        else:
            target.mkdir(exist_ok=True)
            if entry in KERNELS:
                mount(str(entry), str(target), flags=MS_BIND | MS_REC)
            elif entry not in OWN and any(path.startswith(f"{entry}/") for path in mounts):
                mount(str(entry), str(target), flags=MS_BIND | MS_REC)
                read_only(target)
            else:
                own(entry, target)
    os.chdir(place)
    mount(".", "/", flags=MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def own(directory: Path, target: Path) -> None:
    """Show `directory` at `target`, where the node may write and the host does not see it: an overlay on its disk."""
    upper, work = (DISK / "own" / directory.relative_to("/") / part for part in ("upper", "work"))
    upper.mkdir(parents=True, exist_ok=True)
    work.mkdir(exist_ok=True)
    there = directory.stat()  # the overlay's own directory is the upper one
    os.chown(upper, there.st_uid, there.st_gid)
    upper.chmod(stat.S_IMODE(there.st_mode))
    mount("overlay", str(target), "overlay", data=f"lowerdir={directory},upperdir={upper},workdir={work}")


def read_only(target: Path) -> None:
    """Make the mount at `target` read-only, with all that are below it."""
    attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    libc, long = ctypes.CDLL(None, use_errno=True), ctypes.c_long
    path, size = str(target).encode(), long(len(attributes))
    if libc.syscall(long(SYS_MOUNT_SETATTR), long(AT_FDCWD), path, long(AT_RECURSIVE), attributes, size):
        code = ctypes.get_errno()
        raise OSError(code, f"cannot be made read-only: {os.strerror(code)}", str(target))


def standing(path: str) -> Path:
    """Return the nearest directory above `path` that is there, behind all symbolic links."""
    return next(parent for parent in Path(os.path.realpath(path)).parents if parent.exists())


def room(path: str) -> Path:
    """Return where `path` really is, once that may be made there: its directory is, and is the node's own."""
    parent = standing(path)
    if not os.access(parent, os.W_OK):
        own(parent, parent)
    real = Path(os.path.realpath(path))
    real.parent.mkdir(parents=True, exist_ok=True)
    return real


def fresh(path: str) -> None:
    """Give the node an empty directory at `path`: below /run at each start, elsewhere when its disk was."""
    directory = Path(os.path.realpath(path))
    if not directory.exists():
        room(path).mkdir()
    if directory.is_relative_to("/run"):
        mount("tmpfs", str(directory), "tmpfs", data="mode=755")
    else:
        place = DISK / "fresh" / directory.relative_to("/")
        place.mkdir(parents=True, exist_ok=True)
        mount(str(place), str(directory), flags=MS_BIND)


def bind(source: int, path: str, read_only: bool) -> None:
    held, target = f"/proc/self/fd/{source}", Path(os.path.realpath(path))
    if not target.exists():
        room(path)
        if Path(held).is_dir():
            target.mkdir()
        else:
            target.touch()
    mount(held, str(target), flags=MS_BIND | MS_REC)
    if read_only:
        mount("none", str(target), flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def mount(source: str, target: str, kind: str = "none", flags: int = 0, data: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()):
        code = ctypes.get_errno()
        raise OSError(code, f"cannot mount {kind}: {os.strerror(code)}", target)


def links_up(orders: Orders) -> None:
    lines = ["link set dev lo up"]
    for interface in orders["interfaces"]:
        name = interface["name"]
        lines.append(f"link set dev {name} up")
        for address in interface["addresses"]:
            # Nobody else can have it: a container does not wait for duplicates to answer either.
            lines.append(f"address add {address} dev {name}{' nodad' if ':' in address else ''}")
        lines += [f"route add default via {gateway} dev {name}" for gateway in interface["gateways"]]
    batch = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(["ip", "-batch", "-"], input=batch.encode(), stdout=LOG, check=False)
    if done.returncode:
        raise StartError("its links cannot be set up")


def start(orders: Orders) -> tuple[Report, subprocess.Popen[bytes] | None]:
    """Start everything, in the order a container would; return the foreground process, if there is one."""
    process = None
    at = 0
    os.environ.clear()
    os.environ.update(orders["env"])
    try:
        time.sleep(orders["delay"])
        if orders["start"]:
            run(["/bin/sh", "-eu", "-c", orders["start"]], "its daemons")
        if orders["main"]:
            process = foreground(orders)
            await_ready(process, orders)
        for i, command in enumerate(orders["exec"]):
            at = os.lseek(LOG, 0, os.SEEK_END)
            run(command, f"exec[{i}] {' '.join(command)!r}", orders["user"])
        if process and process.poll() is not None:
            at = 0
            raise StartError(f"{' '.join(orders['main'])}: {ended(process.returncode)}")
    except StartError as err:
        return Report(fault=str(err), at=at), process
    return Report(fault="", at=0), process


def run(command: list[str], what: str, user: str = "") -> None:
    process = spawn(command, user)
    if status := process.wait():
        raise StartError(f"{what}: {ended(status)}")


def foreground(orders: Orders) -> subprocess.Popen[bytes]:
    """Start what the node stands and falls with; a shell stays there, since its input does not end."""
    if not STDIN:
        STDIN.extend(os.pipe())
    return spawn(orders["main"], orders["user"], STDIN[0])


def spawn(command: list[str], user: str = "", stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [*become(user), *command],
            stdin=stdin,
            stdout=LOG,
            stderr=LOG,
            cwd="/",
            start_new_session=True,
        )
    except OSError as err:
        raise StartError(f"{command[0]}: {err.strerror}") from err


def become(user: str) -> list[str]:
    """Return what a command begins with that runs as `user`, NAME or UID with or without :GROUP."""
    name, _, group = user.partition(":")
    if name in ("", "root", "0"):
        return []
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        if not name.isdecimal():
            raise StartError(f"user {name} does not exist here") from None
        return ["setpriv", "--reuid", name, "--regid", group or name, "--clear-groups", "--"]
    groups = (
        ["--regid", group, "--clear-groups"] if group else ["--regid", str(entry.pw_gid), "--init-groups"]
    )
    return ["setpriv", "--reuid", str(entry.pw_uid), *groups, "--"]


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


def reap(process: subprocess.Popen[bytes] | None, orders: Orders) -> NoReturn:
    """Collect whatever dies; restart the foreground process, or end and the node with it, as the policy says."""
    # Blocked only now, when the daemons are started: children inherit the mask.
    awaited = {signal.SIGCHLD, HOLD, RESUME}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    held, delay, due, began = False, FIRST_RESTART, float("inf"), time.monotonic()
    while True:
        collect(process)
        now = time.monotonic()
        if process and process.returncode is not None and not held:
            status = process.returncode
            process = None
            if orders["restart"] == "no" or (orders["restart"] == "on-failure" and not status):
                sys.exit(abs(status))
            delay = FIRST_RESTART if now - began > LAST_RESTART else delay
            print(f"{' '.join(orders['main'])}: {ended(status)}; restarted in {delay:.1f} s", file=sys.stderr)
            due, delay = now + delay, min(2 * delay, LAST_RESTART)
        if now >= due and not held:
            process, due, began = again(orders), float("inf"), now
        told = signal.sigtimedwait(awaited, min(max(due - time.monotonic(), 0), 3600.0))
        if told and told.si_signo == HOLD:
            held = True
        elif told and told.si_signo == RESUME:
            collect(process)
            if held and orders["main"] and (process is None or process.returncode is not None):
                process, due = None, now
            held = False


def again(orders: Orders) -> subprocess.Popen[bytes]:
    before = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        return foreground(orders)
    except StartError as err:
        sys.exit(f"{err}; the node ends")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def collect(process: subprocess.Popen[bytes] | None) -> None:
    """Reap everything that has ended; `process`, if among it, gets its return code."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        if process and pid == process.pid:
            process.returncode = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    nursery()
