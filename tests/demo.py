"""Show the main job on real routers, by the public commands: two racks with two ToRs each come up, everybody reaches
everybody, a link is cut and a ToR dies, and each time the loss is measured; then a policy refuses a probe.

Exit status 0 only if everything was reached, before and after, but for that probe. What came up goes down at the end,
on Ctrl-C too.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fabric.lab.home import RUN
from fabric.lab.lab import Lab

ROOT = Path(__file__).parent.parent
FILE = "containerlab/two-racks.clab.yml"
REPORTS = Path("build/demo")
RUNS = 3  # attempts at a valid measurement
DB = "10.77.3.1"
FABRICCTL = [sys.executable, "-c", "from fabric.cli.main import program; program()"]

_started = time.monotonic()


class Failed(Exception):
    """A command of the demo had another exit status than 0; it has said why."""


class Interrupted(Exception):
    """Somebody wants the demo to end; the command that ran then has ended, and cleaned up."""


def heading(text: str) -> None:
    print(f"\n== [{time.monotonic() - _started:.0f} s] {text}", flush=True)


class Commands:
    """Runs commands one by one; an interrupt is passed on to the one that runs, once, and no other begins."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.interrupted = False

    def interrupt(self, *_: object) -> None:
        """Handle a signal. It raises nothing: between fork and wait that would leave a command on its own."""
        first, self.interrupted = not self.interrupted, True
        if first and self.process:
            self.process.send_signal(signal.SIGINT)

    def lab(self, command: str, *arguments: str | Path, expect: int = 0) -> None:
        """Run `fabricctl lab COMMAND FILE ARGUMENTS`; its exit status is to be `expect`."""
        argv = ["lab", command, FILE, *map(str, arguments)]
        print(f"\n$ fabricctl {shlex.join(argv)}", flush=True)
        # In a session of its own: the terminal's Ctrl-C is for us.
        self.process = subprocess.Popen([*FABRICCTL, *argv], cwd=ROOT, start_new_session=True)
        if self.interrupted:
            self.process.send_signal(signal.SIGINT)
        status = self.process.wait()
        self.process = None
        if self.interrupted:
            raise Interrupted
        if status != expect:
            raise Failed(f"fabricctl lab {command}: exit status {status}")


def measured(lab: Callable[..., None], name: str, *what: str) -> None:
    """Break something under traffic; a run whose control flow had gaps means nothing, and is made again."""
    for attempt in range(RUNS):
        try:
            lab("break", *what, "--report", REPORTS / name)
            return
        except Failed:
            if attempt == RUNS - 1:
                raise
            lab("restore")


def show(lab: Callable[..., None]) -> None:
    """Print what a newcomer wants to see."""
    heading("What the operator said, once for all nodes; and what they and their routers know")
    lab("exec", "node1", "--", "fabricctl", "get", "bgppeer", "tors", "-o", "yaml")
    lab("exec", "node1", "--", "fabricctl", "node", "list")
    lab("exec", "node1", "--", "fabricctl", "bgp", "peers")
    lab("exec", "node1", "--", "ip", "route")
    lab("exec", "spine", "--", "vtysh", "-c", "show bgp ipv4 unicast")
    lab("exec", "tor2", "--", "birdc", "show", "route")


def police(lab: Callable[..., None]) -> None:
    """Show a probe that is answered, that a policy refuses, and which rule of it that is."""
    probe = ("fabricctl", "workload", "exec", "web", "--", "ping", "-c", "2", "-W", "1", DB)
    heading("A policy: db is for api alone")
    lab("exec", "node1", "--", *probe)
    lab("exec", "node1", "--", "cat", "/root/policy.yml")
    lab("exec", "node1", "--", "fabricctl", "apply", "-f", "/root/policy.yml")
    lab("exec", "node1", "--", "sh", "-c", f"while {shlex.join(probe)} >/dev/null; do sleep 0.1; done")
    lab("exec", "node1", "--", *probe, expect=1)
    lab("exec", "node1", "--", "fabricctl", "policy", "trace", "web", "db", "icmp", expect=1)
    lab("exec", "node2", "--", "fabricctl", "policy", "trace", "api", "db", "icmp")
    lab("exec", "node3", "--", "fabricctl", "policy", "show", "db")


def demonstrate(lab: Callable[..., None]) -> None:
    heading("Two racks, each with two ToRs (FRR and BIRD), below a spine: the nodes join and attach")
    lab("up")
    heading("Who reaches whom, and is all as it should be?")
    lab("verify")
    show(lab)
    heading("A link is cut under traffic")
    measured(lab, "link-cut", "link", "tor1:eth2-node1:eth1")
    lab("restore")
    lab("verify")
    heading("A ToR is killed under traffic")
    measured(lab, "tor-killed", "node", "tor1")
    lab("restore")
    heading("And is all as it was?")
    lab("verify")
    police(lab)


def main() -> int:
    """Return the exit status."""
    name = Lab.load(ROOT / FILE).name
    if (RUN / name).exists():
        print(f"demo: lab {name} is up already; it was left alone; take it down first", file=sys.stderr)
        return 1
    commands = Commands()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, commands.interrupt)
    try:
        demonstrate(commands.lab)
        status, said = 0, f"everything was reached; the timelines are in {REPORTS}"
    except Interrupted:
        status, said = 130, "interrupted; everything was taken down"
    except Failed as err:
        status, said = 1, str(err)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        Commands().lab("down")
    heading(said)
    return status


if __name__ == "__main__":
    sys.exit(main())
