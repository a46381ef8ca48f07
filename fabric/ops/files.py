"""Read resources from files, directories and standard input: what is in them, and everything wrong with them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fabric.errors import ConfigError
from fabric.model.base import API_VERSION, Resource
from fabric.model.base import Path as FieldPath
from fabric.model.ippool import IPPool
from fabric.model.tier import BUILT_IN
from fabric.model.wire import NO_SUCH_FIELD, Problem, shown
from fabric.model.yaml import MAX_BYTES, TOO_LARGE, Entry, entries, unreadable, with_unknown

STDIN = "-"
SUFFIXES = (".yaml", ".yml", ".json")
TESTS = (".test.yaml", ".test.yml")  # of `policy test`: they lie beside the policies, and hold no resources


@dataclass(frozen=True, slots=True)
class Given:
    """A resource as a file gives it; `where` is FILE:LINE.

    `unknown` are the fields that its kind does not have, each with the message that refuses it: a change keeps those
    that are stored already. `place` is FILE:LINE of a field.
    """

    resource: Resource
    where: str
    unknown: tuple[tuple[FieldPath, str], ...] = ()
    place: Callable[[FieldPath], str] | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """One resource of the file called `file`, sound or not; or, with an empty kind, why the file has none.

    `stored` is what the datastore holds for it, or why it can hold nothing.
    """

    file: str
    entry: Entry
    stored: Resource | tuple[Problem, ...]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with it; () if nothing is."""
        return () if isinstance(self.stored, Resource) else self.stored

    def where(self, path: FieldPath = ()) -> str:
        """Return FILE:LINE of what is at `path`; for a whole file, FILE."""
        line = self.entry.line(path)
        return f"{self.file}:{line}" if line else self.file

    def errors(self, problems: Iterable[Problem] = ()) -> list[str]:
        """Return `problems`, or else its own, each as `FILE:LINE: path: value: rule`."""
        return [_line(f"{self.where(problem.path)}: {problem}") for problem in problems or self.problems]


def read(names: Sequence[str], *, recursive: bool = False) -> list[Given]:
    """Return every resource in files, in order.

    Args:
        names: files, directories, or "-" for standard input. A directory stands for its *.yaml, *.yml and
            *.json files in alphabetical order, without those of TESTS.
        recursive: take those in a directory's subdirectories too.

    Raises:
        ConfigError: with every mistake in every file, a line each, and the last one that nothing was changed;
            so call it before the first change. Fields that a kind does not have are `unknown` if they are all.
    """
    found: list[Given] = []
    errors: list[str] = []
    broken = False
    for document in documents(names, recursive=recursive):
        given = _given(document)
        found += [given] if given else []
        broken = broken or given is None
        errors += document.errors()
    if broken:
        joint = "\n" if len(errors) > 1 else "; "
        raise ConfigError("\n".join(errors) + joint + "nothing was changed")
    return found


def sound(names: Sequence[str], *, recursive: bool = False) -> list[Resource]:
    """Return what is stored for each resource in files, for what is worked out from files alone; `names` as for `read`.

    Raises:
        ConfigError: with every mistake, a line each, as `validate` finds them.
    """
    found = list(documents(names, recursive=recursive))
    errors: list[str] = []
    for document, between in zip(found, among(found), strict=True):
        if problems := (*document.problems, *between):
            errors += document.errors(problems)
    if errors:
        raise ConfigError("\n".join(errors))
    return [document.stored.as_written() for document in found if isinstance(document.stored, Resource)]


def _given(document: Document) -> Given | None:
    """Return what `document` gives, or None if more is wrong with it than fields that its kind does not have."""
    if not all(problem.rule.startswith(NO_SUCH_FIELD) for problem in document.problems):
        return None
    read = with_unknown(document.entry)
    if not isinstance(read, Resource):
        return None
    unknown = zip((problem.path for problem in document.problems), document.errors(), strict=True)
    return Given(read, document.where(), tuple(unknown), document.where)


def among(found: Sequence[Document]) -> list[tuple[Problem, ...]]:
    """Return, for each of `found`, what is wrong between it and the others.

    That is: it is given twice; a pool overlaps another; a policy's tier is not there.
    """
    first: dict[tuple[str, str, str], Document] = {}
    all_of_them = [document.stored for document in found if isinstance(document.stored, Resource)]
    pools = [resource for resource in all_of_them if isinstance(resource, IPPool)]
    tiers = {resource.metadata.name for resource in all_of_them if resource.kind == "Tier"} | BUILT_IN.keys()
    problems = []
    for document in found:
        resource = document.stored
        wrong: list[Problem] = []
        if isinstance(resource, Resource):
            metadata, entry = resource.metadata, document.entry
            key = (resource.kind, metadata.namespace or "default", metadata.name)
            if (other := first.setdefault(key, document)) is not document:
                rule = f"this {entry.kind} is given twice, first at {other.where()}"
                wrong.append(Problem(("metadata", "name"), shown(entry.name or metadata.name), rule))
            if (tier := getattr(getattr(resource, "spec", None), "tier", "default")) not in tiers:
                rule = "there is no such Tier, built in or in these files; check it together with its Tier"
                wrong.append(Problem(("spec", "tier"), shown(tier), rule))
        if isinstance(resource, IPPool):
            wrong += [_overlap(resource, pool) for pool in pools if _overlaps(resource, pool)]
        problems.append(tuple(wrong))
    return problems


def _overlaps(pool: IPPool, other: IPPool) -> bool:
    return pool.metadata.name != other.metadata.name and pool.spec.cidr.overlaps(other.spec.cidr)


def _overlap(pool: IPPool, other: IPPool) -> Problem:
    rule = f"overlaps IPPool {other.metadata.name} ({other.spec.cidr})"
    return Problem(("spec", "cidr"), shown(str(pool.spec.cidr)), rule)


def documents(names: Sequence[str], *, recursive: bool = False) -> Iterator[Document]:
    """Yield every resource in files, sound or not, in order; `names` and `recursive` as for `read`.

    A name that cannot be read, or that holds no resource, yields one document that says so.
    """
    for name in names:
        empty = True
        for document in _documents(name, recursive):
            empty = False
            yield document
        if empty:
            yield _unreadable(name, "no resource in it")


def _documents(name: str, recursive: bool) -> Iterator[Document]:
    if not name:  # the variable of some script that is not set; to Path it is the current directory
        yield _unreadable('""', "a file's name is empty")
        return
    try:
        if name == STDIN or not Path(name).is_dir():
            yield from _file(name)
            return
        paths = _within(Path(name), recursive)
    except OSError as err:
        yield _unreadable(err.filename or name, _reason(err))
        return
    if not paths:
        hint = "" if recursive else "; -R looks into its directories too"
        yield _unreadable(name, f"a directory without {', '.join(SUFFIXES)} files{hint}")
    for path in paths:
        yield from _file(str(path))


def _within(directory: Path, recursive: bool) -> list[Path]:
    found: list[Path] = []
    for path in sorted(directory.iterdir()):
        if not path.is_dir():
            found += [path] * (path.suffix in SUFFIXES and not path.name.endswith(TESTS))
        elif recursive and not path.is_symlink():  # a link may lead back up
            found += _within(path, recursive)
    return found


def _file(name: str) -> Iterator[Document]:
    try:
        data = _bytes(name)
    except (OSError, ValueError) as err:
        yield _unreadable(name, _reason(err))
        return
    if len(data) > MAX_BYTES:
        yield _unreadable(name, TOO_LARGE)
        return
    for entry in entries(data.decode(errors="surrogateescape")):
        yield Document(_shown(name), entry, _stored(entry.read))


def _stored(read: Resource | tuple[Problem, ...]) -> Resource | tuple[Problem, ...]:
    if not isinstance(read, Resource):
        return read
    if read.api_version == API_VERSION and read.kind != "StagedKubernetesNetworkPolicy":
        return read
    from fabric.model.convert import stored  # only here: rules take long to import

    return stored(read)


def _bytes(name: str) -> bytes:
    """Return the content, and of one that is too large only a little more than the limit."""
    if name != STDIN:
        with Path(name).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    if sys.stdin is None:  # where the process was started with it closed
        raise ValueError("is closed")
    return sys.stdin.buffer.read(MAX_BYTES + 1)


def _reason(err: OSError | ValueError) -> str:
    return err.strerror if isinstance(err, OSError) and err.strerror else str(err)


def _unreadable(name: str, rule: str, line: int = 0) -> Document:
    entry = unreadable(line, rule)
    return Document(_shown(name), entry, entry.read)


def _shown(name: str) -> str:
    return "standard input" if name == STDIN else _line(name)


def _line(text: str) -> str:
    """Return `text` as one line: keys and names in it may have line ends and a terminal's control codes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
