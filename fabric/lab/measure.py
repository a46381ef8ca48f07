"""Touches a running lab: sends traffic through it and watches its routes while something is done to it.

Each endpoint runs `traffic.py`, each node `routewatch.py`; both write into this process's memory as they go, so
what a node saw before it was killed is kept, and in one that comes up again they are started again. Beside
them the same traffic runs between two namespaces with one veth, made for this run, that nothing touches.

Ownership: every program ends when its standard input does, so none outlives this process; the control's
namespaces and their veth end with their programs. Nothing stands in the host's network namespace.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias, TypeVar

from fabric.errors import LabError, NotFound
from fabric.lab import node as nodes
from fabric.lab import report as reports
from fabric.lab import routewatch, traffic
from fabric.lab.addresses import SHOW, usable
from fabric.lab.expect import Endpoint, beside
from fabric.lab.lab import Lab
from fabric.lab.node import NodeProcess, Process
from fabric.lab.report import LATE, MS, Flow, Log, Report, Route, Window
from fabric.lab.traffic import EVERY, RECORD

Pair: TypeAlias = tuple[int, int]  # the numbers of who sends and who receives

Key = TypeVar("Key")

PORT = 7790  # UDP, of every endpoint
PYTHON = (sys.executable, "-I", "-S")
CHUNK = 65536
POLL = 0.05  # seconds
STEADY = 1.0  # seconds that a flow has to run before the act
SILENT = 2.0  # seconds after which a flow that has not begun is taken for one that does not run
START_WITHIN = 15.0  # seconds until all flows are the one or the other
RETRY = 0.2  # seconds between attempts to start a program in a node that is coming up
CONTROL = ("198.51.100.1", "198.51.100.2")


def measure(
    lab: Lab,
    endpoints: Sequence[Endpoint],
    act: Callable[[], str],
    *,
    mends: bool = False,
    settle: float = 3.0,
    limit: float = 60.0,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Return what `act` cost the flows between all of `endpoints`, and which routes it moved.

    The traffic is left alone until all flows have run for a second without loss (or are seen not to run),
    and goes on after the act until nothing has been lost for `settle` seconds, or `limit` seconds are over.
    In a node that comes up it begins a fraction of a second (RETRY) after it could, also while `act` goes on.
    Look at the report's `valid`: on a machine that is too busy it is False, and the figures mean nothing.

    Args:
        act: breaks or mends something, and returns in words what.
        mends: flows that do not run before the act are expected to run after it.
        settle, limit: seconds, from the act's end on.

    Raises:
        LabError: there are no two endpoints; traffic cannot be sent from one; or no flow runs, and `act` does
            not mend. Nothing was done then. What `act` raises passes through.
    """
    if len(endpoints) < 2:
        raise LabError(
            f"lab {lab.name}: its expectations define {len(endpoints) or 'no'} endpoints, and what is lost between"
            f" them is measured; nothing was done; name two or more in `endpoints:` of {beside(lab.file)}"
        )
    with Traffic(lab, endpoints) as running:
        running.begin(mends, progress)
        act_at = time.time_ns()
        with running.tended():
            what = act()
            took = time.time_ns() - act_at
        settled = running.settle(mends, settle, limit, progress)
        window = Window(running.epoch, act_at, time.time_ns() - LATE * MS)
    return Report(
        act=what,
        began=act_at / 1e9,
        took=round(took / MS, 1),
        until=window.since(window.end),
        settled=settled,
        flows=tuple(running.flows(running.pairs, window)),
        control=tuple(running.flows(running.control, window)),
        routes=tuple(running.routes(window)),
    )


class Program:
    """A program that runs until its standard input is closed; what it prints is kept beyond its end."""

    def __init__(self, command: Sequence[str]) -> None:
        self._out, self._err, self._read = os.memfd_create("out"), os.memfd_create("err"), 0
        self.process = NodeProcess(
            command,
            env=nodes.environment({}),
            text=True,
            stdin=subprocess.PIPE,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,  # the terminal's Ctrl-C is for us
        )

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def begun(self) -> bool:
        """Whether it has said anything, as all of ours do once they work."""
        return os.fstat(self._out).st_size > 0

    def news(self, grain: int = 1) -> bytes:
        """Return what it has printed since the last call, in multiples of `grain` bytes."""
        size = os.fstat(self._out).st_size - self._read
        data = os.pread(self._out, size - size % grain, self._read)
        self._read += len(data)
        return data

    def error(self) -> str:
        """Return the last line that it has complained with, or nothing."""
        lines = os.pread(self._err, CHUNK, 0).decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def tell(self, line: str) -> None:
        """Send it a line; that it has ended is no error."""
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        """Let it end, without waiting for that."""
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def end(self) -> None:
        """Wait for its end; `stop` all before, so that they end together."""
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)

    def close(self) -> None:
        os.close(self._out)
        os.close(self._err)


class Traffic:
    """The programs of one measurement, and what they have said so far.

    A sender is known by its number: the endpoints' come first, in order, then the two of the control.
    """

    def __init__(self, lab: Lab, endpoints: Sequence[Endpoint]) -> None:
        self.lab, self.endpoints, self.epoch = lab, endpoints, time.time_ns()
        count = len(endpoints)
        self.names = [*(endpoint.name for endpoint in endpoints), "control a", "control b"]
        self.control = [(count, count + 1), (count + 1, count)]
        self.addresses: dict[int, str] = dict(zip((count, count + 1), CONTROL, strict=True))
        self.nodes = [node.name for node in lab.topology.nodes if node.network in ("none", "mgmt")]
        self.sent: dict[int, dict[int, int]] = defaultdict(dict)
        self.received: dict[Pair, dict[int, int]] = defaultdict(dict)
        self.tables: dict[str, list[Log]] = {}
        self._runs: dict[Pair, tuple[int, int]] = {}  # the present unbroken run: its first number, its last
        self._ran: set[Pair] = set()  # before the act
        # All that were started; the last is the one that may be running.
        self._senders: dict[int, list[Program]] = defaultdict(list)
        self._watches: dict[str, list[Program]] = defaultdict(list)
        self._tended = 0.0

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.push(self.__exit__)
            self._lay_control()
            self._tend()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        programs = [
            program for started in (*self._senders.values(), *self._watches.values()) for program in started
        ]
        for program in programs:
            program.stop()
        for program in programs:
            program.end()
        self._read()
        for node, watches in self._watches.items():
            self.tables[node] = [_log(watch.news()) for watch in watches]
        for program in programs:
            program.close()

    @property
    def pairs(self) -> list[Pair]:
        """The flows among the endpoints whose addresses are known by now."""
        known = [i for i in range(len(self.endpoints)) if i in self.addresses]
        return [(a, b) for a in known for b in known if a != b and self._related(a, b)]

    def _related(self, a: int, b: int) -> bool:
        """Whether both are of one address family; the one does not reach the other."""
        return (":" in self.addresses[a]) == (":" in self.addresses[b])

    # Waiting

    def begin(self, mends: bool, progress: Callable[[str], None]) -> None:
        """Return once every flow has run for a second, or is seen not to run."""
        for i, endpoint in enumerate(self.endpoints):
            if i not in self.addresses:
                progress(f"endpoint {endpoint.name}: {endpoint.place} has no address yet, or does not run")
        progress(f"{len(self.pairs)} flows among {len(self.endpoints)} endpoints: waiting until they run")
        flows, began = [*self.pairs, *self.control], time.monotonic()
        late = set(flows)
        while late or not self._watching():
            self._read()
            self._complain()
            late = {pair for pair in flows if not self._steady(pair, STEADY)}
            elapsed = time.monotonic() - began
            # One that has delivered nothing so far does not run; one that has gaps may yet.
            if elapsed > START_WITHIN or (elapsed > SILENT and late.isdisjoint(self._runs)):
                break
            time.sleep(POLL)
        self._ran = set(self.pairs) - late
        if not mends and not self._ran:
            raise LabError(
                f"lab {self.lab.name}: none of the {len(self.pairs)} flows among its endpoints runs;"
                " nothing was done; see what `lab verify` says"
            )
        for a, b in sorted(late):
            progress(f"{self.names[a]} to {self.names[b]}: does not run")

    def settle(self, mends: bool, settle: float, limit: float, progress: Callable[[str], None]) -> bool:
        """Return whether nothing was lost any more for `settle` seconds, within `limit` seconds.

        What cannot run is not waited for: a flow whose node is gone, or, if nothing is mended, one that did
        not run before.
        """
        began, told = time.monotonic(), 0
        while True:
            self._read()
            self._tend()
            awaited = self.pairs if mends else sorted(self._ran)
            up = {i for i, endpoint in enumerate(self.endpoints) if self._process(endpoint.node)}
            able = [pair for pair in awaited if up.issuperset(pair)]
            elapsed = time.monotonic() - began
            if elapsed >= settle and all(self._steady(pair, settle) for pair in able):
                return True
            if elapsed >= limit:
                return False
            down = sum(not self._steady(pair, 0) for pair in awaited)
            if down != told:
                told = down
                progress(f"{elapsed:.1f} s: {down} of {len(awaited)} flows are down")
            time.sleep(POLL)

    def _steady(self, pair: Pair, seconds: float) -> bool:
        """Whether a flow has run for so long without a gap."""
        now = time.time_ns() - LATE * MS - self.epoch
        first, last = self._runs.get(pair, (0, -1))
        return last * EVERY >= now and first * EVERY <= now - seconds * 1e9

    def _watching(self) -> bool:
        return all(program.begun for _, program in _latest(self._watches))

    def _complain(self) -> None:
        """Raise LabError if a program has ended by itself."""
        for sender, program in _latest(self._senders):
            if program.ended:
                raise self._fault(f"endpoint {self.names[sender]}: its traffic", program)
        for node, program in _latest(self._watches):
            if program.ended:
                raise self._fault(f"node {node}: watching its routes", program)

    def _fault(self, what: str, program: Program) -> LabError:
        status = program.process.returncode
        return LabError(
            f"lab {self.lab.name}: {what} ended with status {status}: {program.error() or 'it said nothing'};"
            " nothing was done"
        )

    # What was seen; to be asked when all has ended

    def flows(self, pairs: Iterable[Pair], window: Window) -> Iterator[Flow]:
        for a, b in pairs:
            names = self.names[a], self.names[b]
            yield reports.flow(*names, self.sent[a], self.received[a, b], window)

    def routes(self, window: Window) -> Iterator[Route]:
        for node in self.nodes:
            yield from reports.routes(node, self.tables.get(node, ()), window)

    def _read(self) -> None:
        """Take in what the senders have written."""
        for sender, programs in self._senders.items():
            for program in programs:
                for source, number, at in RECORD.iter_unpack(program.news(RECORD.size)):
                    if source == sender:
                        self.sent[sender][number] = at
                        continue
                    pair = source, sender
                    self.received[pair][number] = at
                    first, last = self._runs.get(pair, (number, number - 1))
                    if number > last:
                        self._runs[pair] = first if number == last + 1 else number, number

    # Programs

    @contextmanager
    def tended(self) -> Iterator[None]:
        """Tend in a thread meanwhile: what the block mends is to be seen running then, and not at its end."""
        over = threading.Event()
        before = {sender: len(programs) for sender, programs in self._senders.items()}

        def tend() -> None:
            last = False  # when all is done everything has its address
            while not last:
                last = over.wait(RETRY)
                self._tend()
                for sender, endpoint in enumerate(self.endpoints):
                    if len(self._senders[sender]) > before.get(sender, 0):
                        self._correct(sender, endpoint)

        with ThreadPoolExecutor(1) as pool:
            try:
                tending = pool.submit(tend)
                yield
            finally:
                over.set()
        tending.result()

    def _correct(self, sender: int, endpoint: Endpoint) -> None:
        """End a sender that was started before its node had the address that it has now; `_tend` does the rest."""
        process, program = self._process(endpoint.node), self._senders[sender][-1]
        if process and self._address(endpoint, process) not in ("", self.addresses[sender]):
            program.stop()
            program.end()

    def _tend(self) -> None:
        """Start what should run and does not, where there is a node to run it in."""
        if time.monotonic() < self._tended + RETRY:
            return
        self._tended = time.monotonic()
        for sender, endpoint in enumerate(self.endpoints):
            if process := self._lacking(endpoint.node, self._senders[sender]):
                self._send(sender, endpoint, process)
        for node in self.nodes:
            if process := self._lacking(node, self._watches[node]):
                self._watches[node].append(Program(nodes.enter(process, [*PYTHON, routewatch.__file__])))

    def _send(self, sender: int, endpoint: Endpoint, process: Process) -> None:
        """Start an endpoint's sender, if it has an address, and tell the others of that."""
        address = self._address(endpoint, process)
        if not address:
            return
        if self.addresses.get(sender) != address:
            self.addresses[sender] = address
            for other, program in _latest(self._senders):
                if other < len(self.endpoints) and other != sender and self._related(sender, other):
                    program.tell(json.dumps({str(sender): address}))
        self._senders[sender].append(
            Program(nodes.enter(process, [*_inside(endpoint), *self._program(sender)]))
        )

    def _address(self, endpoint: Endpoint, process: Process) -> str:
        """Return the endpoint's address, or nothing where it has none yet."""
        if not _there(endpoint, process):
            return ""
        if endpoint.address:
            return str(endpoint.address)
        command = nodes.enter(process, [*_inside(endpoint), *SHOW])
        shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return next(iter(usable(shown, self.lab.topology, endpoint.family)), "")

    def _lacking(self, node: str, started: Sequence[Program]) -> Process | None:
        """Return the node's first process if it runs, and the last program that was started there does not."""
        return None if started and not started[-1].ended else self._process(node)

    def _process(self, node: str) -> Process | None:
        try:
            return Process.find(self.lab.pid(node))
        except NotFound:
            return None

    def _program(self, sender: int) -> list[str]:
        flows = [*self.pairs, *self.control]
        peers = {str(b): self.addresses[b] for a, b in flows if a == sender}
        orders = traffic.Orders(
            me=sender, epoch=self.epoch, address=self.addresses[sender], port=PORT, peers=peers
        )
        return [*PYTHON, traffic.__file__, json.dumps(orders)]

    def _lay_control(self) -> None:
        """Start the control's two senders, each in a namespace of its own, and join these by a veth."""
        pids = []
        for sender, _ in self.control:
            program = Program(["unshare", "--net", "--", *self._program(sender)])
            self._senders[sender].append(program)
            pids.append(program.process.pid)
        deadline = time.monotonic() + START_WITHIN
        while not all(self._senders[sender][0].begun for sender, _ in self.control):
            self._complain()
            if time.monotonic() > deadline:
                raise LabError(
                    f"lab {self.lab.name}: the control flow does not begin within {START_WITHIN:.0f} s: this machine is"
                    " too busy to measure; nothing was done; try again"
                )
            time.sleep(0.005)
        near, far = (f"netns {pid}" for pid in pids)
        _run("ip", *f"link add control {near} type veth peer name control {far}".split())
        for pid, address in zip(pids, CONTROL, strict=True):
            inside = ("nsenter", f"--net=/proc/{pid}/ns/net", "--", "ip")
            _run(*inside, "address", "add", f"{address}/30", "dev", "control")
            _run(*inside, "link", "set", "control", "up")


def _latest(started: Mapping[Key, Sequence[Program]]) -> Iterator[tuple[Key, Program]]:
    return ((key, programs[-1]) for key, programs in started.items() if programs)


def _inside(endpoint: Endpoint) -> list[str]:
    """Return what a command in the endpoint's node begins with."""
    return ["nsenter", f"--net=/run/netns/{endpoint.netns}", "--"] if endpoint.netns else []


def _there(endpoint: Endpoint, process: Process) -> bool:
    """Whether the endpoint's namespace is there, in a node that may be coming up."""
    run = Path(f"/proc/{process.pid}/root/run")
    try:
        # Until it has files of its own it sees ours, and a namespace of that name may be a stranger's.
        own = run.stat().st_dev != Path("/run").stat().st_dev
        return own and (not endpoint.netns or (run / "netns" / endpoint.netns).exists())
    except OSError:  # it has just gone
        return False


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(
            f"the control flow cannot be laid: {' '.join(command)}: {done.stderr.strip()}; nothing was done"
        )


def _log(lines: bytes) -> Log:
    """Return what routewatch.py printed; a last line that was cut off by a kill is left out."""
    found = []
    for line in lines.splitlines(keepends=True):
        if line.endswith(b"\n"):
            said = json.loads(line)
            found.append((said["at"], {prefix: tuple(hops) for prefix, hops in said["routes"].items()}))
    return found
