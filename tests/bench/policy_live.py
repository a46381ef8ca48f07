"""Touches one lab node: changes policy in etcd, and says when the kernel has it; prints the seconds of every turn.

Runs inside the node (tests/bench/policy.py starts it). What a change comes to is worked out here by the agent's own
code, so the bare tools are given the same in a namespace beside. Of both it is the kernel that says when the change
is in force: nftables tells of each commit, and the set that changes last is read until it has.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from select import select
from typing import Self

from fabric.agent.compose import Composed
from fabric.agent.host import read_host
from fabric.agent.policing import Policing, policing
from fabric.agent.routing import Host
from fabric.agent.snapshot import Snapshot, fold
from fabric.config import Config
from fabric.errors import FabricError
from fabric.kernel.ipsets import LIST, PROTOCOL, SETNAME, NetlinkIPSets
from fabric.kernel.netlink import (
    HEADER,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    attributes,
    messages,
    text,
)
from fabric.kernel.nfnetlink import NETLINK_NETFILTER, NFGENMSG, u8
from fabric.kernel.routes import NetlinkFib
from fabric.kernel.tables import KernelTables
from fabric.kernel.tables_watch import NFNLGRP_NFTABLES
from fabric.model.base import Tree
from fabric.model.wire import to_json
from fabric.ops import supervise
from fabric.ops.resources import key_of
from fabric.plan import ipsets, tables
from fabric.plan.tables import VERSIONS
from fabric.store.etcd import Etcd, connect
from fabric.store.keys import CALICO
from fabric.store.kv import Changes, KeyValue, Put, Txn
from tests.bench.policy import ENDPOINTS, NAMESPACES, RESTORE, as_files, endpoint, policy, profile, read, tree
from tests.bench.processes import run
from tests.contract.netns import Namespace
from tests.contract.policy_host import NODE
from tests.contract.policy_rules import Change, Rules

NEW_GENERATION = 10 << 8 | 15  # NFT_MSG_NEWGEN of NFNL_SUBSYS_NFTABLES: a commit is done
PROCESS_NAME = 3  # NFTA_GEN_PROC_NAME
LONGEST_NAME = 15
MEMBERS = 8  # IPSET_ATTR_ADT
SO_ATTACH_FILTER = 26
AT_ONCE = 100  # keys of one transaction
WITHIN = 20.0  # seconds
LOOK = 0.0001  # seconds between two looks at a set
REST = 0.5  # seconds for what the agent does after a change: it judges live connections
AGENT = "import time; from fabric.agent.main import main; print(time.perf_counter(), flush=True); main()"

Samples = dict[str, list[float]]


class Kernel:
    """Says when a change is in force in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._sets = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
        self._commits = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
        # Nothing but the ends of commits: to be woken for each rule would take the processor from who is measured.
        wanted = struct.unpack(">H", struct.pack("=H", NEW_GENERATION))[0]
        steps = [(0x28, 0, 0, 4), (0x15, 0, 1, wanted), (6, 0, 0, 0xFFFF), (6, 0, 0, 0)]
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
        program = struct.pack("HP", len(steps), ctypes.addressof(code))
        self._commits.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        self._commits.bind((0, 1 << (NFNLGRP_NFTABLES - 1)))
        self._commits.settimeout(WITHIN)

    def until(self, change: Change) -> asyncio.Task[float]:
        """Return a task, which is to return when all of `change`, which has yet to begin, was in force."""
        while select([self._commits], [], [], 0)[0]:
            self._commits.recv(65536)
        due = {RESTORE[v][:LONGEST_NAME]: step.text.count("COMMIT\n") for v, step in change.steps.items()}
        sets = change.sets.after or (() if any(due.values()) else change.sets.before)
        # A set that no rule goes by any more goes later, and takes nothing with it.
        last = [op.name for op in sets if not isinstance(op, ipsets.Destroy)][-1:]
        counts = {name: len(change.composed.sets[name].members) for name in last}
        assert not any(self._has(name, count) for name, count in counts.items()), (
            "its count would tell nothing"
        )
        return asyncio.create_task(asyncio.to_thread(self._until, due, counts))

    def _until(self, due: dict[str, int], counts: Mapping[str, int]) -> float:
        ended, deadline = 0.0, time.perf_counter() + WITHIN
        while any(left > 0 for left in due.values()):
            for _, _, _, payload in messages(self._commits.recv(65536)):
                name = dict(attributes(payload[NFGENMSG.size :]))[PROCESS_NAME].rstrip(b"\0").decode()
                due[name] = due.get(name, 0) - 1
            ended = time.perf_counter()
        for name, count in counts.items():
            while not self._has(name, count):
                assert time.perf_counter() < deadline, f"{name}: not changed within {WITHIN:.0f} s"
                time.sleep(LOOK)
            ended = time.perf_counter()
        return ended

    def _has(self, name: str, wanted: int) -> bool:
        """Whether the set has that many members."""
        body = NFGENMSG.pack(socket.AF_INET, 0, 0) + u8(1, PROTOCOL) + text(SETNAME, name)
        self._sets.send(HEADER.pack(HEADER.size + len(body), LIST, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body)
        count = 0
        while True:
            for kind, _, _, payload in messages(self._sets.recv(65536)):
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    return count == wanted
                found = dict(attributes(payload[NFGENMSG.size :]))
                count += len(list(attributes(found.get(MEMBERS, b""))))


class Bare:
    """A namespace in which the bare tools do what the agent does."""

    def __enter__(self) -> Self:
        self._owned = ExitStack()
        self._folder = Path(self._owned.enter_context(tempfile.TemporaryDirectory(dir="/run")))
        self._space = self._owned.enter_context(Namespace())
        self._kernel = self._space.call(Kernel)
        self._rules = Rules(self._space)
        return self

    def __exit__(self, *exc: object) -> None:
        self._owned.close()

    def plan(self, composed: Composed) -> Change:
        """Return what has to be done, here and where the agent is; it is taken for done."""
        return self._rules.plan(composed)

    async def do(self, change: Change) -> float:
        """Return the seconds until `change` was in force."""
        commands = as_files(change, self._folder)

        def work() -> float:
            began = time.perf_counter()
            for command, file in commands:
                run(command.split(), stdin=file)
            return began

        waiting = self._kernel.until(change)
        began = await asyncio.to_thread(self._space.call, work)
        return await waiting - began


class Bench:
    """The datastore, what the agent makes of it, and the samples."""

    def __init__(self, etcd: Etcd, host: Host) -> None:
        self.samples: dict[str, list[float]] = defaultdict(list)
        self._etcd, self._host = etcd, host
        self._kernel = Kernel()
        self._snapshot = Snapshot()
        self._policing: Policing | None = None

    async def read(self) -> Composed:
        """Read the datastore, and return what all of it comes to."""
        listing = await self._etcd.list(CALICO)
        self._snapshot, self._policing = Snapshot(), None
        return self._told(Changes(listing.revision, puts=listing.items))

    def _told(self, changes: Changes) -> Composed:
        self._snapshot = fold(self._snapshot, changes)
        self._policing = policing(NODE, self._snapshot, self._host, self._policing)
        return self._policing.composed

    async def put(self, bare: Bare, what: str, one: Tree) -> None:
        """Change it in the datastore; then by the bare tools. It is not noted without a name."""
        put, at = stored(one), self._snapshot.revision + 1
        change = bare.plan(self._told(Changes(at, puts=(KeyValue(put.key, put.value, at),))))
        waiting = self._kernel.until(change)
        began = time.perf_counter()
        await self._etcd.commit(Txn((), (put,)))
        ours = await waiting - began
        await self.rested()
        self._note(what, ours, await bare.do(change))

    async def cold(self) -> None:
        """Start an agent where there are no rules; then the bare tools where there are none."""
        for command in ("nft flush ruleset", "ipset destroy"):
            run(command.split())
        composed = await self.read()
        with Bare() as bare:
            change = bare.plan(composed)
            waiting = self._kernel.until(change)
            began = time.perf_counter()
            with subprocess.Popen([sys.executable, "-c", AGENT], stdout=subprocess.PIPE, text=True) as agent:  # noqa: ASYNC220
                try:
                    assert agent.stdout
                    entered = float(await asyncio.to_thread(agent.stdout.readline))
                    ours = await waiting - entered
                    await self.rested()
                finally:
                    agent.terminate()
            self.samples["start"].append(entered - began)
            self._note("cold", ours, await bare.do(change))

    def _note(self, what: str, ours: float, peer: float) -> None:
        if what:
            self.samples[f"live {what}: ours"].append(ours)
            self.samples[f"live {what}: peer"].append(peer)

    async def rested(self) -> None:
        """Return when the kernel has what the datastore comes to and the agent has nothing more to do."""
        deadline = time.monotonic() + WITHIN
        await asyncio.sleep(REST)
        while not await self._stands():
            assert time.monotonic() < deadline, "the kernel has something else than the datastore comes to"
            await asyncio.sleep(REST)

    async def _stands(self) -> bool:
        assert self._policing
        composed = self._policing.composed
        with NetlinkIPSets() as sets:
            plan = ipsets.plan(composed.sets, await sets.owned())
        texts = [tables.plan(composed.rulesets[v], await KernelTables("nft").read(v)).text for v in VERSIONS]
        return not (plan.before or plan.after or any(texts))


def stored(one: Tree) -> Put:
    (resource,) = read([one])
    return Put(key_of(resource), to_json(resource))


async def measure(etcd: str, rounds: int, policies: int) -> Mapping[str, list[float]]:
    """Return the seconds of each turn; the first round warms up and is not kept."""
    every = [
        *(policy(number) for number in range(policies)),
        *(endpoint(number) for number in range(ENDPOINTS)),
        *(profile(number) for number in range(NAMESPACES)),
        # A periodic read-back in the midst would be counted, and have lists removed that nobody is in any more.
        tree("FelixConfiguration", "default", {"routeRefreshInterval": "0s"}),
    ]
    puts = [*map(stored, every)]
    kv = connect(Config(etcd=(etcd,)))
    with NetlinkFib() as fib:
        bench = Bench(kv, await read_host(fib))
    try:
        for at in range(0, len(puts), AT_ONCE):
            await kv.commit(Txn((), tuple(puts[at : at + AT_ONCE])))
        with Bare() as bare:
            await bare.do(bare.plan(await bench.read()))
            await bench.rested()
            for number in range(rounds + 1):
                # A policy that changes takes the lists with it that nobody is in any more.
                for what, one in (
                    ("", policy(2, [1000 + number])),
                    ("label", endpoint(0, "other")),
                    ("", policy(2, [2000 + number])),
                    ("label", endpoint(0)),
                    ("label of others", endpoint(0, "a20")),
                    ("label of others", endpoint(0)),
                    ("", policy(2, [3000 + number])),
                    ("policy", policy(1, [4000 + number])),
                ):
                    await bench.put(bare, what if number else "", one)
        await asyncio.to_thread(supervise.stop)
        for _ in range(rounds):
            await bench.cold()
        return bench.samples
    finally:
        await kv.close()


if __name__ == "__main__":
    try:
        print(json.dumps(asyncio.run(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))))
    except FabricError as err:
        sys.exit(str(err))
