"""`fabricctl apply` and `fabricctl get`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fabric.cli import output
from fabric.cli.options import Output
from fabric.cli.output import Format
from fabric.errors import ConfigError

if TYPE_CHECKING:
    from fabric.model.base import Resource
    from fabric.store.kv import KeyValueStore

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def apply(
    filename: Annotated[
        list[str], typer.Option("-f", "--filename", help="A YAML or JSON file, or - for standard input.")
    ],
) -> None:
    """Create or update the resources in files; nothing is written unless every file is sound.

    Example: fabricctl apply -f pool.yaml -f peers.yaml
    """
    from fabric.cli.store import with_store
    from fabric.ops import resources

    wanted = [resource for name in filename for resource in _load(name)]
    if not wanted:
        raise ConfigError(f"{', '.join(map(_shown, filename))}: no resource in it; nothing was applied")
    keys = [resources.key_of(resource) for resource in wanted]  # refuses a foreign kind before any is written
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(
            f"{', '.join(filename)}: {twice.rpartition('org/')[2]} is given twice; nothing was applied"
        )

    async def all_of_them(kv: KeyValueStore) -> None:
        await resources.refuse_pools(kv, wanted)
        for resource in wanted:
            for line in resources.without_effect(resource):
                output.note(f"warning: {line}")
            done = await resources.apply(kv, resource)
            print(f"{resource.kind} {resource.metadata.name}: {done.verb}", flush=True)

    with_store(all_of_them)


@app.command()
def get(
    kind: Annotated[str, typer.Argument(help="A kind, as node, ippools or wep.")],
    names: Annotated[list[str] | None, typer.Argument(help="Names; all of the kind without any.")] = None,
    namespace: Annotated[
        str | None,
        typer.Option("-n", "--namespace", help="Namespace.", show_default="default for a name, else all"),
    ] = None,
    form: Output = Format.TABLE,
) -> None:
    """Show resources.

    Example: fabricctl get ippools -o yaml
    """
    from fabric.cli.store import fetch
    from fabric.model.base import tree

    found = fetch(kind, names or (), namespace)
    if form is Format.TABLE:
        namespaced = any(r.metadata.namespace for r in found)
        headings = ["NAMESPACE", "NAME"] if namespaced else ["NAME"]
        output.table(headings, [(*([r.metadata.namespace] * namespaced), r.metadata.name) for r in found])
    elif names and len(found) == 1:
        output.document(tree(found[0]), form)
    else:
        items = [tree(resource) for resource in found]
        output.document({"kind": "List", "apiVersion": "v1", "items": items}, form)


def _load(name: str) -> list[Resource]:
    from fabric.model.yaml import load_resources

    try:
        return load_resources(_read(name), _shown(name))
    except ConfigError as err:
        raise ConfigError(
            f"{err}; nothing was applied" if "\n" not in str(err) else f"{err}\nnothing was applied"
        ) from err


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "not UTF-8 text"
        raise ConfigError(f"{_shown(name)}: {reason}") from err


def _shown(name: str) -> str:
    return "standard input" if name == "-" else name
