"""Decide how the kernel's ipsets get from the members they have to those they should have.

Two halves, since rules stand between them: what `before` does only widens sets and may be done while the old rules
are in force; what `after` does only narrows and destroys, once the new ones are. So no member is out of a set
that a rule in force goes by.

Ownership: a set is ours if its name begins with one of PREFIXES.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol, TypeAlias

from fabric.errors import DataplaneError

Kind: TypeAlias = Literal["hash:net", "hash:ip,port", "hash:net,iface", "bitmap:port"]
Version: TypeAlias = Literal[4, 6]

PREFIXES: Final[Mapping[Version, str]] = {4: "fab4-", 6: "fab6-"}  # a name has at most 31 characters

LARGE = 1000  # members; a change beyond it is made in a new set, if it is most of the set
ROOM = 1 << 20  # maxelem at least; it reserves no memory
# The kernel shares maxelem out among the regions of the hash, and one of them may fill before the others.
MARGIN = 2
BUCKET = 4  # members a hash bucket, on average, to begin with; the kernel doubles the hash as it fills
HASH = 64  # the smallest hash there is

# hash:net takes no /0, so everything is written as its halves.
_HALVES: Final[Mapping[str, frozenset[str]]] = {
    "0.0.0.0/0": frozenset({"0.0.0.0/1", "128.0.0.0/1"}),
    "::/0": frozenset({"::/1", "8000::/1"}),
}


@dataclass(frozen=True, slots=True)
class IPSet:
    """`members` are written as `ipset save` writes them: the prefix of a single address has no length.

    hash:net "10.0.0.0/26", "10.0.0.1" · hash:ip,port "10.0.0.1,tcp:80" (tcp, udp, sctp, udplite) ·
    hash:net,iface "10.0.0.1,fab0123456789ab" · bitmap:port "80".
    """

    kind: Kind
    version: Version
    members: frozenset[str]


@dataclass(frozen=True, slots=True)
class Held:
    """A set as the kernel has it; `room` is its maxelem, None where the type has none."""

    ipset: IPSet
    room: int | None


@dataclass(frozen=True, slots=True)
class Create:
    """Make the set, with all its members."""

    name: str
    ipset: IPSet


@dataclass(frozen=True, slots=True)
class Add:
    """Put `part`'s members in too."""

    name: str
    part: IPSet


@dataclass(frozen=True, slots=True)
class Delete:
    """Take `part`'s members out."""

    name: str
    part: IPSet


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Make the set anew beside the old one and swap them: rules see the one or the other."""

    name: str
    ipset: IPSet


@dataclass(frozen=True, slots=True)
class Destroy:
    name: str


Op: TypeAlias = Create | Add | Delete | Rewrite | Destroy


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do `before` the new rules are in, and `after`, once nothing goes by the old ones any more."""

    before: tuple[Op, ...] = ()
    after: tuple[Op, ...] = ()


class IPSets(Protocol):
    """The seam: `fabric.kernel.ipsets` for the kernel, `tests.fakes.ipsets.FakeIPSets` else.

    All raise DataplaneError if refused. Putting in what is there, taking out what is not, and destroying what is gone
    are no errors.
    """

    async def owned(self) -> Mapping[str, Held]:
        """Return every set with a name of ours."""

    async def sizes(self) -> Mapping[str, int]:
        """Return how many members each of them has, which costs little."""

    async def create(self, name: str, ipset: IPSet) -> None:
        """If refused, there is no such set."""

    async def add(self, name: str, part: IPSet) -> None:
        """If refused, some of the members may be in."""

    async def delete(self, name: str, part: IPSet) -> None:
        """If refused, some of the members may be out."""

    async def rewrite(self, name: str, ipset: IPSet) -> None:
        """If refused, the set is as it was."""

    async def destroy(self, name: str) -> None:
        """EBUSY while a rule goes by it."""


def plan(desired: Mapping[str, IPSet], actual: Mapping[str, Held], *, in_sync: bool = True) -> Plan:
    """Return the operations that turn `actual` into `desired`; deterministic, empty after a full apply.

    Nothing is taken out or destroyed until the datastore is `in_sync`. A set of another type or family than desired is
    destroyed and made anew, which the kernel refuses while a rule goes by it.
    """
    before: list[Op] = []
    after: list[Op] = []
    for name, wanted in sorted(desired.items()):
        ipset = _without_everything(wanted)
        held = actual.get(name)
        if held is None:
            before.append(Create(name, ipset))
        elif (held.ipset.kind, held.ipset.version) != (ipset.kind, ipset.version):
            before += [Destroy(name), Create(name, ipset)]
        elif held.ipset.members != ipset.members:
            before += _widen(name, ipset, held)
            after += _narrow(name, ipset, held)
    after += [Destroy(name) for name in sorted(actual.keys() - desired.keys())]
    return Plan(tuple(before), tuple(after) if in_sync else ())


def _without_everything(ipset: IPSet) -> IPSet:
    if ipset.kind != "hash:net" or not (found := ipset.members & _HALVES.keys()):
        return ipset
    return replace(ipset, members=(ipset.members - found).union(*(_HALVES[member] for member in found)))


def _widen(name: str, ipset: IPSet, held: Held) -> list[Op]:
    old = held.ipset.members
    if not (added := ipset.members - old):
        return []
    if _large(added, old) or (held.room is not None and (len(old) + len(added)) * MARGIN > held.room):
        return [Rewrite(name, replace(ipset, members=old | added))]
    return [Add(name, replace(ipset, members=added))]


def _narrow(name: str, ipset: IPSet, held: Held) -> list[Op]:
    removed = held.ipset.members - ipset.members
    if not removed:
        return []
    if _large(removed, ipset.members):
        return [Rewrite(name, ipset)]
    return [Delete(name, replace(ipset, members=removed))]


def _large(change: frozenset[str], rest: frozenset[str]) -> bool:
    return len(change) > LARGE and len(change) >= len(rest)


def room(count: int) -> int:
    """Return the maxelem of a new set of `count` members."""
    return max(ROOM, _power_of_two(count * MARGIN))


def hashsize(count: int) -> int:
    """Return the number of buckets of a new set of `count` members."""
    return max(HASH, _power_of_two(count // BUCKET))


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


def done(held: Mapping[str, Held], ops: Iterable[Op]) -> dict[str, Held]:
    """Return what the kernel holds once `ops` are done, to plan the next pass from without a read-back."""
    sets = dict(held)
    for op in ops:
        match op:
            case Create(name, ipset) | Rewrite(name, ipset):
                limit = None if ipset.kind == "bitmap:port" else room(len(ipset.members))
                sets[name] = Held(ipset, limit)
            case Add(name, part):
                both = sets[name].ipset.members | part.members
                sets[name] = replace(sets[name], ipset=replace(part, members=both))
            case Delete(name, part):
                left = sets[name].ipset.members - part.members
                sets[name] = replace(sets[name], ipset=replace(part, members=left))
            case Destroy(name):
                sets.pop(name, None)
    return sets


async def apply(ops: Iterable[Op], sets: IPSets) -> dict[Op, DataplaneError]:
    """Run `ops` in order and return the refused ones; sets are independent, so go on.

    The next pass plans the refused ones again. A rule that goes by a set that could not be made is refused with its
    whole table, so the old rules stay.
    """
    refused: dict[Op, DataplaneError] = {}
    for op in ops:
        try:
            match op:
                case Create(name, ipset):
                    await sets.create(name, ipset)
                case Add(name, part):
                    await sets.add(name, part)
                case Delete(name, part):
                    await sets.delete(name, part)
                case Rewrite(name, ipset):
                    await sets.rewrite(name, ipset)
                case Destroy(name):
                    await sets.destroy(name)
        except DataplaneError as err:
            refused[op] = err
    return refused
