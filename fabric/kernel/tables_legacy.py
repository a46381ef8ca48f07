"""Touches the legacy tables of iptables through python-iptables: reads rules and counters as the kernel has them.

libiptc copies a table out of the kernel in one piece, and takes no lock: while somebody writes, it asks again. Of
twenty thousand rules that takes 130 ms, of a thousand 6, as iptables-save and the reading of what it prints do.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
import subprocess
import sysconfig
import threading
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

from fabric.errors import DataplaneError
from fabric.plan.tables import MARK, MARKED, PREFIX, ZERO, Chain, Counter, Held, Place, Version

TRIES = 100
_RAW_MARK = re.compile(rf"{MARK}([0-9a-f]{{16}})\0".encode())
# struct xt_entry_match and _target begin with size, name in 29 bytes, revision. Behind the name's end is what was in
# the memory before: the kernel copies no more of it.
_PART = struct.Struct("=H29sB")
_errno_location = ctypes.CDLL(None).__errno_location
_errno_location.restype = ctypes.POINTER(ctypes.c_int)
_one_at_a_time = threading.Lock()  # libiptc keeps what went wrong last in a variable of its own


class _Rule(NamedTuple):
    mark: str  # "" for somebody else's
    counter: Counter
    print: str  # of the rule, but for what the kernel itself writes into it
    target: str


class _Family(NamedTuple):
    calls: Any
    head: int  # the length of what has addresses, links and protocol
    parts: int  # where matches begin
    tool: str


def read(version: Version, tables: Iterable[str], texts: dict[str, str]) -> Held:
    """Return what is held in `tables`, which the kernel has loaded.

    `texts` is what was learned in earlier calls: the text of our rules in others' chains, which iptables alone
    can tell, by their print.
    """
    with _one_at_a_time:
        family = _families()[version]
        found = {
            Place(table, chain): (list(rules), built_in)
            for table in tables
            for chain, built_in, rules in _chains(family, table)
        }
    chains, jumps = {}, set()
    for place, (rules, built_in) in found.items():
        marks = tuple(rule.mark for rule in rules)
        if place.is_ours:
            shown = tuple(rule.print if rule.mark else "" for rule in rules)
        else:
            jumps |= {
                Place(place.table, r.target) for r in rules if not r.mark and r.target.startswith(PREFIX)
            }
            if not built_in and not any(marks):
                continue
            ours = [rule for rule in rules if rule.mark]
            if any(rule.print not in texts for rule in ours):
                told = _texts(family.tool, place)
                texts |= {rule.print: told[rule.mark] for rule in ours if rule.mark in told}
            shown = tuple(texts.get(rule.print, "") if rule.mark else "" for rule in rules)
        counters = tuple(rule.counter if rule.mark else ZERO for rule in rules)
        chains[place] = Chain(marks, counters, shown)
    return Held(chains, frozenset(jumps))


def _chains(family: _Family, table: str) -> Iterator[tuple[str, bool, list[_Rule]]]:
    calls = family.calls
    handle = _opened(family, table)
    try:
        names = []
        name = calls.iptc_first_chain(handle)
        while name:
            names.append(name)
            name = calls.iptc_next_chain(handle)
        for name in names:
            rules = []
            entry = calls.iptc_first_rule(name, handle)
            while entry:
                rules.append(_rule(family, entry, calls.iptc_get_target(entry, handle).decode()))
                entry = calls.iptc_next_rule(entry, handle)
            yield name.decode(), bool(calls.iptc_builtin(name, handle)), rules
    finally:
        calls.iptc_free(handle)


def _opened(family: _Family, table: str) -> Any:
    for _ in range(TRIES):
        if handle := family.calls.iptc_init(table.encode()):
            return handle
        code = int(_errno_location()[0])
        if code != errno.EAGAIN:  # it was written while it was copied
            break
    hint = "nothing was changed; the next pass tries again"
    raise DataplaneError(f"read table {table} of {family.tool}", code, hint)


def _rule(family: _Family, pointer: Any, target: str) -> _Rule:
    entry = pointer.contents
    end, counters = entry.next_offset, entry.counters
    raw = ctypes.string_at(pointer, end)
    mark, said = "", [raw[: family.head]]
    at = family.parts
    while at < end:
        size, name, revision = _PART.unpack_from(raw, at)
        name = name[: name.find(0)]
        if not name:
            # A jump has no name, and says where its chain begins, which moves with the chains before it.
            said.append(target.encode())
        elif name == b"comment" and (found := _RAW_MARK.match(raw, at + _PART.size)):
            mark = found[1].decode()
            said.append(found[1])
        else:
            said += name, bytes((revision,)), raw[at + _PART.size : at + size]
        at += size
    return _Rule(
        mark, Counter(counters.pcnt, counters.bcnt), f"{hash(tuple(said)):x}" if mark else "", target
    )


def _texts(tool: str, place: Place) -> dict[str, str]:
    """Return our rules in another's chain as iptables writes them, by their marks.

    By its save, which waits for no lock: others may hold it for long.
    """
    words = [f"{tool}-save", "-t", place.table]
    try:
        done = subprocess.run(
            words, capture_output=True, check=False, encoding="utf-8", errors="surrogateescape"
        )
    except OSError as err:
        hint = "nothing was changed; install iptables"
        raise DataplaneError(f"run {words[0]}", err.errno or errno.ENOENT, hint) from err
    if done.returncode:
        hint = f"{done.stderr.strip()}; nothing was changed; the next pass tries again"
        raise DataplaneError(f"read {place} by {words[0]}", errno.EIO, hint)
    start = f"-A {place.chain} "
    lines = (line.removeprefix(start) for line in done.stdout.split("\n") if line.startswith(start))
    return {mark[1]: line for line in lines if (mark := MARKED.search(line))}


@cache
def _families() -> dict[Version, _Family]:
    # Or it runs ldconfig, gcc and ld in search of a library that came with it.
    os.environ.setdefault("IPTABLES_LIBDIR", sysconfig.get_path("platlib"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports distutils, and has escapes that Python 3.12 warns of
        from iptc import ip4tc, ip6tc
    four, six = ip4tc.ipt_entry, ip6tc.ip6t_entry
    return {
        4: _Family(ip4tc.iptc, four.ip.size, four.elems.offset, "iptables-legacy"),
        6: _Family(ip6tc.ip6tc, six.ipv6.size, six.elems.offset, "ip6tables-legacy"),
    }
