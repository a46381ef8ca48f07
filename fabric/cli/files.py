"""`fabricctl validate` and `fabricctl convert`: look at files, and touch neither etcd nor the agent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from fabric.cli import output
from fabric.cli.options import Files, Recursive
from fabric.errors import ConfigError

if TYPE_CHECKING:
    from fabric.model.wire import Problem
    from fabric.ops.files import Document

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class Report(StrEnum):
    """`validate -o`."""

    TABLE = "table"
    JSON = "json"


class Written(StrEnum):
    """`convert -o`."""

    YAML = "yaml"
    JSON = "json"


@app.command()
def validate(
    filename: Files,
    recursive: Recursive = False,
    report: Annotated[
        Report, typer.Option("-o", "--output", help="Every mistake, or a line of JSON for every document.")
    ] = Report.TABLE,
) -> None:
    """Check the resources in files; exit status 1 if one is invalid. Nothing is asked of etcd.

    Example: fabricctl validate -R -f policies/
    """
    from fabric.model.effects import KEPT
    from fabric.ops import files

    total = invalid = 0
    found = list(files.documents(filename, recursive=recursive))
    for document, between in zip(found, files.among(found), strict=True):
        total += 1
        problems = (*document.problems, *between)
        invalid += bool(problems)
        if report is Report.JSON:
            print(json.dumps(_verdict(document, problems)), flush=True)
            continue
        for line in document.errors(problems):
            print(line)
        for path in _not_used(document):
            what = f"{document.where()}: {document.entry.kind} {document.entry.name}"
            output.note("warning: " + ": ".join(filter(None, (what, path, KEPT))))
    if report is Report.TABLE:
        print(f"{total} checked, {invalid} invalid")
    raise typer.Exit(1 if invalid else 0)


@app.command()
def convert(
    filename: Files,
    recursive: Recursive = False,
    written: Annotated[
        Written, typer.Option("-o", "--output", help="How to print the policies.")
    ] = Written.YAML,
) -> None:
    """Print Kubernetes' NetworkPolicies as Calico's, which mean the same; what has no such form is refused.

    Example: kubectl get networkpolicies -A -o yaml | fabricctl convert -f -
    """
    from fabric.model.base import Resource, tree
    from fabric.model.yaml import dump
    from fabric.ops import convert as use_case

    found = list(use_case.convert(filename, recursive=recursive))
    policies = [policy for policy in found if isinstance(policy, Resource)]
    if written is Written.YAML:
        print("---\n".join(map(dump, policies)), end="")
    elif len(found) > 1:
        items = [tree(policy) for policy in policies]
        print(json.dumps({"kind": "List", "apiVersion": "v1", "items": items}, indent=2))
    elif policies:
        print(json.dumps(tree(policies[0]), indent=2))
    errors = [line for refused in found if not isinstance(refused, Resource) for line in refused]
    if errors:
        raise ConfigError("\n".join([*errors, "what is named here was not converted"]))


def _not_used(document: Document) -> tuple[str, ...]:
    from fabric.model.base import Resource
    from fabric.model.effects import not_used

    return not_used(document.stored) if isinstance(document.stored, Resource) else ()


def _verdict(document: Document, problems: Sequence[Problem]) -> dict[str, object]:
    from fabric.model.wire import dotted

    entry = document.entry
    errors = []
    for problem in problems:
        parts = (document.where(problem.path), problem.value, problem.rule)
        errors.append({"path": dotted(problem.path), "message": ": ".join(filter(None, parts))})
    return {"kind": entry.kind or None, "name": entry.name or None, "valid": not errors, "errors": errors}
