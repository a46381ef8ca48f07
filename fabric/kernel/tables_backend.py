"""Touches both backends of iptables to choose one: looks who uses which, and where iptables itself writes.

Counting rules alone guessed wrong for others: their own rules were among them. So ours are left out, and where the
others' do not decide, a chain is written by the host's own iptables and looked for in both.
"""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from fabric.errors import DataplaneError
from fabric.kernel.tables import BACKENDS, saved_text
from fabric.kernel.threads import in_thread
from fabric.plan.tables import MARKED, PREFIX, VERSIONS, Backend

Wanted: TypeAlias = Literal["auto", "nft", "legacy"]

PATIENCE: Final = 1  # seconds: to be kept waiting for the lock says enough
PROBE: Final = f"{PREFIX}probe"  # as a chain of ours it is swept should we die before it is removed


@dataclass(frozen=True, slots=True)
class Choice:
    """`why` is for the log; `problem` is "" unless the host uses both backends."""

    backend: Backend
    why: str
    problem: str = ""


async def choose(wanted: Wanted) -> Choice:
    """Return the backend to use: the one that is wanted, or else that of the host's own rules, or of its iptables.

    Raises:
        DataplaneError: neither of the two can be written.
    """
    return await in_thread(lambda: _choose(wanted))


def _choose(wanted: Wanted) -> Choice:
    used = {backend: count for backend in BACKENDS if (count := _rules_of_others(backend))}
    if wanted != "auto":
        return Choice(wanted, "it is set", _problem(wanted, used))
    if len(used) == 1:
        [backend] = used
        return Choice(backend, f"the host has {used[backend]} rules there, and none in the other")
    backend, why = _written()
    return Choice(backend, why, _problem(backend, used))


def _problem(chosen: Backend, used: Mapping[Backend, int]) -> str:
    [other] = (backend for backend in BACKENDS if backend != chosen)
    if other not in used:
        return ""
    also = f", as it has {used[chosen]} there" if chosen in used else ""
    return (
        f"iptables: the host has {used[other]} rules in the {other} tables, and ours are in the {chosen} tables{also}: "
        "a packet has to pass both, and each tool shows only its own; move everything to one of them, and set "
        "iptablesBackend in FelixConfiguration to it"
    )


def _rules_of_others(backend: Backend) -> int:
    """Count them in both families; a policy of DROP is one."""
    lines = (line for version in VERSIONS for line in saved_text(backend, version).splitlines())
    return sum(
        (line.startswith("-A ") and not line.startswith(f"-A {PREFIX}") and not MARKED.search(line))
        or (line.startswith(":") and " DROP " in line)
        for line in lines
    )


def _written() -> tuple[Backend, str]:
    """Write a chain as the host itself would, and return where it shows; then by the tool of each backend."""
    refused = []
    for tool in ("iptables", "iptables-nft", "iptables-legacy"):
        if refusal := _iptables(tool, "-N"):
            if "xtables lock" in refusal:
                return "legacy", f"{tool} waits for the lock that the legacy tables alone have"
            refused.append(f"{tool}: {refusal}")
            continue
        try:
            for backend in BACKENDS:
                if f":{PROBE} " in saved_text(backend, 4):
                    return backend, f"a chain written by {tool} shows there"
        finally:
            _iptables(tool, "-X")
        refused.append(f"{tool}: the chain that it wrote shows nowhere")
    hint = f"{'; '.join(refused)}; no policy is enforced; install iptables, or use a kernel with nf_tables"
    raise DataplaneError("choose a backend of iptables", errno.ENOTSUP, hint)


def _iptables(tool: str, command: str) -> str:
    """Make or remove the probe; return why it could not be done."""
    words = [tool, "-w", str(PATIENCE), "-t", "filter", command, PROBE]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as err:
        return err.strerror or str(err)
    # A probe that is there already, left by one that was killed, serves as well.
    return "" if done.returncode == 0 or "exists" in done.stderr else done.stderr.strip() or "refused"
