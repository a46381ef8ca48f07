"""Try the cases of policy test files on the resources in files: no cluster, no root, nothing but files is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric.errors import ConfigError
from fabric.ops import files, resources
from policy import cases, trace, words
from policy.cases import Case, Outcome, Suite
from policy.scene import Scene, scene, titles


@dataclass(frozen=True)
class Tried:
    """One test file: how its cases came out, and in which scene."""

    suite: Suite
    scene: Scene
    outcomes: tuple[Outcome, ...]


def tried(names: Sequence[str], given: Sequence[str] = (), *, recursive: bool = False) -> list[Tried]:
    """Return how the cases in the test files `names` come out.

    Args:
        names: test files; a directory is its *.test.yaml and *.test.yml.
        given: files and directories of resources, in place of those that the test files name.
        recursive: take those in a directory's subdirectories too.

    Raises:
        ConfigError: with all mistakes, a line each, in test files and resources; no case was tried.
    """
    errors: list[str] = []
    suites = []
    for name in names:
        try:
            suites += [cases.read(_text(file), file) for file in _files(name, recursive)]
        except ConfigError as err:
            errors.append(str(err))
    if errors:
        raise ConfigError("\n".join(errors))
    found = [_suite(suite, given, recursive, errors) for suite in suites]
    if errors:
        raise ConfigError("\n".join(errors))
    return [one for one in found if one]


def _files(name: str, recursive: bool) -> list[str]:
    if not Path(name).is_dir():
        return [name]
    within = Path(name).rglob("*") if recursive else Path(name).iterdir()
    found = sorted(str(path) for path in within if path.name.endswith(files.TESTS))
    if not found:
        raise ConfigError(
            f"{name}: a directory without {' or '.join(f'*{end}' for end in files.TESTS)} files"
        )
    return found


def _text(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, ValueError) as err:
        reason = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
        raise ConfigError(f"{name}: {reason}") from err


def _suite(suite: Suite, given: Sequence[str], recursive: bool, errors: list[str]) -> Tried | None:
    """Try the cases of a file; None where that cannot be done, and `errors` say why."""
    beside = Path(suite.file).parent
    names = list(given) or [str(beside / name) for name in suite.resources]
    if not names:
        errors.append(f"{suite.file}: names no resources; give them there, or with -f")
        return None
    try:
        read = files.sound(names, recursive=recursive)
    except ConfigError as err:
        errors.append(str(err))
        return None
    here = scene([*(resources.placed(one, None) for one in read), *suite.workloads], stand_ins=True)
    outcomes = []
    for case in suite.cases:
        try:
            outcomes.append(cases.judged(here, case))
        except ConfigError as err:
            errors.append(str(err))
    return Tried(suite, here, tuple(outcomes))


def problems(one: Tried) -> list[str]:
    """Return what is wrong with the policy that a file was tried on, a line each."""
    return [f"{name}: {why}" for name, why in one.scene.world.problems.items()]


def failed(found: Iterable[Tried]) -> int:
    """Return how many cases came out otherwise than expected."""
    return sum(not outcome.holds for one in found for outcome in one.outcomes)


def report(found: Iterable[Tried]) -> Iterator[str]:
    """Yield each case that came out otherwise as lines of a diff."""
    for one in found:
        names = titles(one.scene)
        for outcome in one.outcomes:
            if outcome.holds:
                continue
            yield f"{outcome.case.where}: {outcome.case}"
            yield f"- {expected(outcome.case)}"
            yield f"+ {actual(outcome)}"
            for asked in outcome.passage.asked:
                yield f"    {trace.headline(trace.end(asked, names))}"


def expected(case: Case) -> str:
    return f"{case.expect} by {case.by}" if case.by else case.expect


def actual(outcome: Outcome) -> str:
    """Return what became of it, by all that decided."""
    said = "allow" if outcome.passage.allowed else "deny"
    by = [words.of_origin(a.verdict.origin) for a in outcome.passage.decisive if a.verdict.origin]
    return f"{said} by {' and '.join(dict.fromkeys(by))}" if by else said


def document(found: Iterable[Tried]) -> list[dict[str, Any]]:
    """Return every case as JSON values."""
    return [_case(outcome, one.scene) for one in found for outcome in one.outcomes]


def _case(outcome: Outcome, of: Scene) -> dict[str, Any]:
    case, names = outcome.case, titles(of)
    file, _, line = case.where.rpartition(":")
    return {
        "file": file,
        "line": int(line),
        "from": case.source,
        "to": case.destination,
        "asked": str(case.asked),
        "holds": outcome.holds,
        "expected": {"verdict": case.expect, "by": case.by or None},
        "actual": {
            "verdict": "allow" if outcome.passage.allowed else "deny",
            "by": [trace.origin(a.verdict.origin) for a in outcome.passage.decisive if a.verdict.origin],
        },
        "ends": [trace.end(asked, names) for asked in outcome.passage.asked],
    }
