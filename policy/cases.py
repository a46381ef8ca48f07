"""Read the files of `fabricctl policy test`, and judge what comes out of their cases. Pure.

    resources: [policies/, endpoints.yaml]    # files and directories, beside this one
    workloads:                                # those that are in no file, by their labels
      shop/web: {app: web}
      shop/db: {app: db}
    cases:
    - from: shop/web
      to: shop/db
      protocol: tcp
      port: 5432
      expect: allow
      by: NetworkPolicy shop/db ingress rule 0    # may be left out, and so may the rule
    - from: [shop/web, 198.51.100.7]          # each with each
      to: shop/db
      protocol: [tcp/22, icmp]
      expect: deny

An end is a workload, an address, a host endpoint or a node (policy/scene.py says how each is called).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

from fabric.errors import ConfigError
from fabric.model.base import Path, Resource
from fabric.model.kinds import did_you_mean
from fabric.model.namespaces import profile_name
from fabric.model.wire import dotted, from_tree, shown
from fabric.model.yaml import Document, documents
from policy import words
from policy.evaluate import Passage
from policy.form import Origin
from policy.scene import PORTED, Asking, Scene, asking, packet, sent_by, who

Expected: TypeAlias = Literal["allow", "deny"]

_TOP: Final = ("resources", "workloads", "cases")
_CASE: Final = ("from", "to", "protocol", "port", "source-port", "family", "expect", "by")
_ORCHESTRATOR: Final = "fabricctl"


@dataclass(frozen=True, slots=True)
class Case:
    """One packet and what is expected of it; `where` is FILE:LINE. A line with lists is as many cases."""

    where: str
    source: str
    destination: str
    asked: Asking
    family: Literal[4, 6] | None
    expect: Expected
    by: str = ""

    def __str__(self) -> str:
        return f"{self.source} -> {self.destination} {self.asked}"


@dataclass(frozen=True, slots=True)
class Suite:
    """One file: `resources` are names as it gives them, `workloads` those that stand in it."""

    file: str
    resources: tuple[str, ...]
    workloads: tuple[Resource, ...]
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case."""

    case: Case
    passage: Passage

    @property
    def holds(self) -> bool:
        if self.passage.allowed != (self.case.expect == "allow"):
            return False
        return not self.case.by or any(
            is_called(asked.verdict.origin, self.case.by)
            for asked in self.passage.decisive
            if asked.verdict.origin
        )


def is_called(origin: Origin, by: str) -> bool:
    """Whether `by` names what decided: in full, without the rule, or without the kind of a policy."""
    full = words.of_origin(origin)
    whole = words.of_origin(replace(origin, rule=None))
    return by in {name for text in (full, whole) for name in (text, text.partition(" ")[2])}


def judged(scene: Scene, case: Case) -> Outcome:
    """Return what becomes of `case` among the endpoints and policies of `scene`.

    Raises:
        ConfigError: an end is nobody's name, or the ends have no address of one family.
    """
    try:
        source, destination = who(scene, case.source), who(scene, case.destination)
        sent = packet(source, destination, case.asked, case.family)
        _is_there(scene, case.by)
    except ConfigError as err:
        raise ConfigError(f"{case.where}: {err}") from err
    return Outcome(case, sent_by(scene, source, sent))


def _is_there(scene: Scene, by: str) -> None:
    """Raises ConfigError where nothing that decides here could be called `by`."""
    world = scene.world
    known = {
        *words.WITHOUT_RULES,
        *(f"end of tier {tier.name}" for tier in world.tiers),
        *(str(policy.key) for tier in world.tiers for policy in tier.policies),
        *(f"Profile {name}" for name in world.profiles),
    }
    known |= {text.partition(" ")[2] for text in known}
    name = re.sub(r" (ingress|egress) rule [0-9]+$|, which is broken$", "", by)
    if by and name not in known:
        hint = did_you_mean(name, known) or "; docs/reference/policy-tests.md has what there is"
        raise ConfigError(f'by "{by}": no policy, profile or tier here is called that{hint}')


def read(text: str, file: str) -> Suite:
    """Return what a test file says.

    Raises:
        ConfigError: with everything that is wrong with it, a line each as `FILE:LINE: field: value: rule`.
    """
    found = documents(text, file)
    if len(found) != 1 or not isinstance(found[0].value, dict):
        line = found[1].line(()) if len(found) > 1 else 1
        raise ConfigError(f"{file}:{line}: a test file is one document with the fields {', '.join(_TOP)}")
    return _Reader(found[0], file).suite()


class _Reader:
    def __init__(self, document: Document, file: str) -> None:
        self.document, self.file = document, file
        self.problems: list[str] = []

    def suite(self) -> Suite:
        top = self.document.value
        self._known((), top, _TOP)
        resources = tuple(self._texts(("resources",), top.get("resources", [])))
        workloads = tuple(self._workloads(top.get("workloads", {})))
        cases = top.get("cases")
        if not isinstance(cases, list) or not cases:
            self._wrong(("cases",), cases, "must be a list of cases, and not empty")
            cases = []
        made = tuple(case for at, one in enumerate(cases) for case in self._cases(("cases", at), one))
        if self.problems:
            raise ConfigError("\n".join(self.problems))
        return Suite(self.file, resources, workloads, made)

    def _workloads(self, given: object) -> Iterator[Resource]:
        if not isinstance(given, dict):
            self._wrong(("workloads",), given, "must be a mapping: NAMESPACE/NAME to labels")
            return
        for name, labels in given.items():
            path = ("workloads", name)
            namespace, slash, workload = name.partition("/")
            if not (slash and namespace and workload):
                self._wrong(path, None, "a workload is called NAMESPACE/NAME")
                continue
            read = from_tree(_endpoint(namespace, workload, {} if labels is None else labels))
            if isinstance(read, Resource):
                yield read
            else:
                for problem in read:
                    self._wrong(path, None, problem.rule)

    def _cases(self, path: Path, given: object) -> Iterator[Case]:
        if not isinstance(given, dict):
            self._wrong(path, given, "a case is a mapping with from, to, protocol, port, expect")
            return
        before = len(self.problems)
        self._known(path, given, _CASE)
        for field in ("from", "to", "protocol", "expect"):
            if field not in given:
                self._wrong((*path, field), None, "is required")
        sources = self._texts((*path, "from"), given.get("from", []))
        destinations = self._texts((*path, "to"), given.get("to", []))
        asked = list(self._asked(path, given))
        family = self._one_of((*path, "family"), given.get("family"), (4, 6))
        expect = self._one_of((*path, "expect"), given.get("expect"), ("allow", "deny"))
        by = given.get("by", "")
        if not isinstance(by, str):
            self._wrong((*path, "by"), by, "must be text, such as NetworkPolicy shop/web ingress rule 0")
        if len(self.problems) > before:
            return
        where = f"{self.file}:{self.document.line(path)}"
        for source in sources:
            for destination in destinations:
                for one in asked:
                    yield Case(where, source, destination, one, family, expect, by)

    def _asked(self, path: Path, given: Mapping[str, Any]) -> Iterator[Asking]:
        """Yield each protocol with each port."""
        port_from = (
            self._ports((*path, "source-port"), given["source-port"]) if "source-port" in given else [0]
        )
        ports: list[int] | list[None] = (
            self._ports((*path, "port"), given["port"]) if "port" in given else [None]
        )
        for field, word in self._items((*path, "protocol"), given.get("protocol", [])):
            for port in ports:
                try:
                    one = asking(str(word) if port is None else f"{word}/{port}")
                except ValueError as err:
                    self._wrong(field, word, str(err))
                    break
                if one.protocol not in PORTED and port is not None:
                    self._wrong((*path, "port"), port, f"{word} has no ports")
                    break
                yield from (replace(one, source_port=source_port) for source_port in port_from)

    def _ports(self, path: Path, given: object) -> list[int]:
        found = []
        for field, port in self._items(path, given):
            if isinstance(port, int) and not isinstance(port, bool) and 1 <= port <= 65535:
                found.append(port)
            else:
                self._wrong(field, port, "must be a port's number, 1 to 65535")
        return found

    def _one_of(self, path: Path, given: Any, words: Sequence[Any]) -> Any:
        if given is not None and (given not in words or isinstance(given, bool)):
            self._wrong(path, given, f"must be {' or '.join(map(str, words))}")
        return given

    def _texts(self, path: Path, given: object) -> list[str]:
        found = []
        for field, text in self._items(path, given):
            if isinstance(text, str) and text:
                found.append(text)
            else:
                self._wrong(field, text, "must be text, or a list of texts")
        return found

    def _items(self, path: Path, given: object) -> Iterator[tuple[Path, object]]:
        if isinstance(given, list):
            yield from (((*path, at), item) for at, item in enumerate(given))
        else:
            yield path, given

    def _known(self, path: Path, given: Mapping[str, Any], fields: Sequence[str]) -> None:
        for field in (name for name in given if name not in fields):
            self._wrong((*path, field), None, f"no such field{did_you_mean(field, fields)}")

    def _wrong(self, path: Path, value: object, rule: str) -> None:
        where = f"{self.file}:{self.document.line(path)}"
        self.problems.append(": ".join(filter(None, (where, dotted(path), shown(value), rule))))


def _endpoint(namespace: str, workload: str, labels: object) -> dict[str, object]:
    """Return the endpoint of a workload that is no more than its labels."""
    spec = {
        "orchestrator": _ORCHESTRATOR,
        "workload": workload,
        "node": "test",
        "endpoint": "eth0",
        "profiles": [profile_name(namespace)],
    }
    metadata = {"name": workload, "namespace": namespace, "labels": labels}
    return {"kind": "WorkloadEndpoint", "metadata": metadata, "spec": spec}
