"""`fabricctl version`: of this program, and of the cluster it talks to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fabric.cli import output
from fabric.cli.output import Format

if TYPE_CHECKING:
    from fabric.model.clusterinformation import ClusterInformation

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def version(
    form: Annotated[Format, typer.Option("-o", "--output", help="How to print the answer.")] = Format.TABLE,
) -> None:
    """Show the version of this program and of the cluster; exit status 1 if the datastore does not answer.

    Example: fabricctl version -o json
    """
    from importlib.metadata import version as installed

    client = installed("fabricctl")
    if form is Format.TABLE:
        print(f"Client Version:    {client}", flush=True)  # known also where the datastore is not
    cluster = _cluster()
    spec = cluster.spec if cluster else None
    told = {
        "version": spec.calico_version if spec else "",
        "type": spec.cluster_type if spec else "",
        "guid": spec.cluster_guid if spec else "",
    }
    if form is Format.TABLE:
        for what, value in told.items():
            heading = f"Cluster {what.upper() if what == 'guid' else what.title()}:"
            print(f"{heading:<19}{value or 'unknown'}")
    else:
        known = {what: value or None for what, value in told.items()}
        output.document({"client": {"version": client}, "cluster": known}, form)


def _cluster() -> ClusterInformation | None:
    from fabric.cli.store import with_store
    from fabric.model.clusterinformation import ClusterInformation
    from fabric.model.kinds import lookup
    from fabric.ops.resources import listing

    found = with_store(lambda kv: listing(kv, ClusterInformation, lookup("clusterinformation")))
    for line in found.warnings:
        output.note(f"warning: {line}")
    return next(iter(found.resources), None)
