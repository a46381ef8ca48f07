"""Decide how one family's packet filter gets from the rules it has to those it should have.

`plan` is pure and gives the text of one iptables-restore, the same for both backends: changed chains alone, so that
the counters of the others go on. What is held is remembered from one step to the next, and read again now and then;
`edited` tells what others did between. `Tables` is where the kernel begins.

Ownership: a chain is ours if its name begins with fab-, a rule in another's chain if its comment is a mark of ours.
Marks are chained over the rules before, so a chain whose marks are right has our rules, all of them, in order.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain as chained
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

Version: TypeAlias = Literal[4, 6]
Backend: TypeAlias = Literal["nft", "legacy"]

PREFIX: Final = "fab-"  # of every chain of ours
MARK: Final = "fab:"  # begins the comment of every rule of ours; 16 hexadecimal digits follow
# As iptables-save has it: always in quotes, for its colon; those within somebody else's comment have a backslash.
MARKED: Final = re.compile(rf'--comment "{MARK}([0-9a-f]{{16}})"')
VERSIONS: Final[tuple[Version, ...]] = (4, 6)


class Place(NamedTuple):
    """A chain of a table."""

    table: str
    chain: str

    @property
    def is_ours(self) -> bool:
        return self.chain.startswith(PREFIX)

    def __str__(self) -> str:
        return f"chain {self.chain} of table {self.table}"


@dataclass(frozen=True)
class Ruleset:
    """What is ours in one family. Rules are as iptables-restore reads them, without `-A CHAIN` and without our mark.

    `chains` are whole chains of ours; `first` is at the top of a chain that is not, `last` at its end.
    """

    chains: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)
    first: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)
    last: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)


class Counter(NamedTuple):
    packets: int
    bytes: int


ZERO: Final = Counter(0, 0)


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain as it is in the kernel, an entry a rule, in order.

    A rule of somebody else has the mark "", and the text "". An own rule in another's chain is removed by its text,
    which is as the kernel shows it, and so can be compared with a later one, or if not `read` as we wrote it.
    """

    marks: tuple[str, ...] = ()
    counters: tuple[Counter, ...] = ()
    texts: tuple[str, ...] = ()
    read: bool = True


@dataclass(frozen=True)
class Held:
    """What one family has: every chain of ours, and those of others that are built in or hold a rule of ours.

    `wanted_by_others` are chains of ours that a rule of somebody else jumps to.
    """

    chains: Mapping[Place, Chain] = field(default_factory=dict)
    wanted_by_others: frozenset[Place] = frozenset()


@dataclass(frozen=True)
class Step:
    """`text` is to be restored, "" where there is nothing to do; `held` is what is there afterwards."""

    text: str
    held: Held
    changed: tuple[Place, ...] = ()


class Tables(Protocol):
    """The seam: `fabric.kernel.tables.KernelTables` for the kernel, `tests.fakes.tables.FakeTables` else.

    Whoever uses it neither reads nor restores while it does either.
    """

    backend: Backend

    async def read(self, version: Version) -> Held:
        """Return what is held, with counters; nothing is made by looking.

        Raises:
            DataplaneError: the kernel, or the tool, refused.
        """

    async def restore(self, version: Version, text: str) -> None:
        """Do what `text` says, each table whole or not at all, whatever others write meanwhile.

        Raises:
            DataplaneError: with the line that was refused. The table that it is in is as it was: read it again.
        """

    def changes(self) -> AsyncIterator[frozenset[Version]]:
        """Yield the families in which somebody else may have touched what is ours, without end: read those again."""


def plan(
    desired: Ruleset, held: Held, *, in_sync: bool = True, distrust: AbstractSet[Place] = frozenset()
) -> Step:
    """Return the one text that turns `held` into `desired`.

    Nothing is removed until the datastore is `in_sync`: a chain we have not heard of yet looks exactly like one no
    longer wanted. `distrust` are chains that are written anew although their marks are right (`edited` tells them). A
    chain that goes is emptied, and removed unless somebody else jumps to it: the kernel would refuse the whole table.
    Deterministic; after a restore it is "".
    """
    draft = _Draft(dict(held.chains))
    for place, lines in desired.chains.items():
        has = held.chains.get(place)
        if has is None or place in distrust or has.marks != marks_of(place, lines):
            draft.write(place, lines)
    others = {place for place in held.chains if not place.is_ours}
    for place in sorted(desired.first.keys() | desired.last.keys() | others):
        first, last = desired.first.get(place, ()), desired.last.get(place, ())
        if in_sync or first or last:
            draft.hook(place, first, last, place in distrust)
    for place in [place for place in held.chains if place.is_ours and place not in desired.chains]:
        if in_sync:
            draft.drop(place, keep=place in held.wanted_by_others)
    text = "".join(draft.texts[table].whole(table) for table in sorted(draft.texts))
    return Step(text, Held(draft.chains, held.wanted_by_others), tuple(sorted(draft.changed)))


@dataclass(slots=True)
class _Text:
    """One table's part: chains are declared (which empties them) before rules name them, and removed after."""

    declared: list[str] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def whole(self, table: str) -> str:
        return "\n".join([f"*{table}", *self.declared, *self.rules, *self.removed, "COMMIT", ""])


@dataclass(slots=True)
class _Draft:
    """What a plan comes to: the text of each table, and the chains as they are after it."""

    chains: dict[Place, Chain]
    texts: dict[str, _Text] = field(default_factory=dict)
    changed: list[Place] = field(default_factory=list)

    def write(self, place: Place, lines: tuple[str, ...]) -> None:
        """Make one of our chains what it should be, whatever is in it."""
        marks = marks_of(place, lines)
        text = self._change(place, Chain(marks, (ZERO,) * len(marks), read=False))
        text.declared.append(f":{place.chain} - [0:0]")
        text.rules += [f"-A {place.chain} {rule}" for rule in _marked(marks, lines)]

    def hook(self, place: Place, first: tuple[str, ...], last: tuple[str, ...], anew: bool) -> None:
        """Put ours at both ends of somebody else's chain, unless they are there and need not be put `anew`."""
        tops, ends = marks_of(place, first, "first"), marks_of(place, last, "last")
        has = self.chains.get(place, Chain())
        if _stand(has.marks, tops, ends) and not anew:
            return
        top, end = list(_marked(tops, first)), list(_marked(ends, last))
        foreign = ("",) * has.marks.count("")
        marks = (*tops, *foreign, *ends)
        text = self._change(place, Chain(marks, (ZERO,) * len(marks), (*top, *foreign, *end), read=False))
        text.rules += [f"-D {place.chain} {shown}" for shown in has.texts if shown]
        # In reverse, each at the top: whatever somebody else inserts meanwhile, ours stand together.
        text.rules += [f"-I {place.chain} 1 {rule}" for rule in reversed(top)]
        text.rules += [f"-A {place.chain} {rule}" for rule in end]

    def drop(self, place: Place, *, keep: bool) -> None:
        """Empty one of our chains, and remove it unless it must `keep` standing."""
        if keep and not self.chains[place].marks:
            return
        text = self._change(place, Chain())
        text.declared.append(f":{place.chain} - [0:0]")
        if not keep:
            text.removed.append(f"-X {place.chain}")
            del self.chains[place]

    def _change(self, place: Place, to: Chain) -> _Text:
        self.chains[place] = to
        self.changed.append(place)
        return self.texts.setdefault(place.table, _Text())


def _marked(marks: Sequence[str], lines: Sequence[str]) -> Iterator[str]:
    """Matches are asked in the order in which they are written: the comment, which is one, is asked last."""
    for mark, line in zip(marks, lines, strict=True):
        yield f"{line} -m comment --comment {MARK}{mark}"


@lru_cache(maxsize=1 << 15)
def marks_of(place: Place, lines: tuple[str, ...], part: str = "") -> tuple[str, ...]:
    """Return the mark of each rule: a hash over where it stands, the rule before it and its own text."""
    found, before = [], f"{place.table} {place.chain} {part}"
    for line in lines:
        before = hashlib.blake2b(f"{before}\0{line}".encode(), digest_size=8).hexdigest()
        found.append(before)
    return tuple(found)


def _stand(marks: tuple[str, ...], tops: tuple[str, ...], ends: tuple[str, ...]) -> bool:
    """Whether ours are at the top and at the end of another's chain, and nowhere else in it."""
    ours = [mark for mark in marks if mark]
    return (
        len(ours) == len(tops) + len(ends)
        and marks[: len(tops)] == tops
        and marks[len(marks) - len(ends) :] == ends
    )


def edited(before: Held, now: Held) -> dict[Place, str]:
    """Return what others did to ours since: `before` is what a read or a step left, `now` what is read."""
    found: dict[Place, str] = {}
    for place in sorted(before.chains.keys() | now.chains.keys()):
        was, is_now = before.chains.get(place), now.chains.get(place)
        said = _edit(was, is_now) if place.is_ours else _moved(was or Chain(), is_now or Chain())
        if said:
            found[place] = said
    return found


def _edit(was: Chain | None, is_now: Chain | None) -> str:
    if was is None:
        return "was added"
    if is_now is None:
        return "is gone"
    if gone := sum(mark not in is_now.marks for mark in was.marks):
        return f"{gone} of its {len(was.marks)} rules are gone"
    if added := len(is_now.marks) - len(was.marks):
        return f"{added} rules were added"
    if was.marks != is_now.marks:
        return "its rules are in another order"
    return _rewritten(was, is_now)


def _moved(was: Chain, is_now: Chain) -> str:
    """What became of ours in another's chain, where rules come and go that are not ours."""
    ours, still = [mark for mark in was.marks if mark], [mark for mark in is_now.marks if mark]
    if gone := sum(mark not in still for mark in ours):
        return f"{gone} of our {len(ours)} rules are gone"
    if ours != still:
        return "our rules were doubled or are in another order"
    # Where no other rule was, it cannot be told which of ours were to be first; `plan` knows.
    first = was.marks.index("") if "" in was.marks else None
    splits = range(len(ours) + 1) if first is None else (first,)
    if not any(_stand(is_now.marks, tuple(ours[:at]), tuple(ours[at:])) for at in splits):
        return "rules of others are around ours"
    return _rewritten(was, is_now)


def _rewritten(was: Chain, is_now: Chain) -> str:
    """A rule of ours may have been changed and its comment kept, as where a saved text is edited and restored."""
    texts = [[text for text in chain.texts if text] for chain in (was, is_now)]
    return "a rule was changed under its comment" if was.read and is_now.read and texts[0] != texts[1] else ""


def counters(desired: Ruleset, held: Held) -> dict[tuple[Place, int], Counter]:
    """Return the counter of each rule that is held, by its index; that of `last` goes on where `first` ends."""
    found: dict[tuple[Place, int], Counter] = {}
    for place, lines in desired.chains.items():
        has = held.chains.get(place, Chain())
        if has.marks == marks_of(place, lines):
            found |= {(place, at): counter for at, counter in enumerate(has.counters)}
    for place in desired.first.keys() | desired.last.keys():
        has = held.chains.get(place, Chain())
        numbers = dict(zip(has.marks, has.counters, strict=False))
        wanted = chained(
            marks_of(place, desired.first.get(place, ()), "first"),
            marks_of(place, desired.last.get(place, ()), "last"),
        )
        found |= {(place, at): numbers[mark] for at, mark in enumerate(wanted) if mark in numbers}
    return found


async def clear(tables: Tables) -> None:
    """Remove all that is ours of both families.

    Raises:
        DataplaneError: the kernel refused; what is of the other family, or of another table, may be gone.
    """
    for version in VERSIONS:
        step = plan(Ruleset(), await tables.read(version))
        if step.text:
            await tables.restore(version, step.text)
