"""`fabricctl get`, and the verbs that write: apply, create, replace, patch, label, delete; and diff."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fabric.cli import completion, output
from fabric.cli.options import Files, MaybeFiles, Recursive, pairs
from fabric.cli.output import Format
from fabric.errors import ConfigError, FabricError, Forbidden, NotFound

if TYPE_CHECKING:
    from fabric.model.base import Resource, Tree
    from fabric.ops.change import Change, Step
    from fabric.ops.files import Given
    from fabric.store.kv import KeyValueStore

app = typer.Typer(add_completion=False, rich_markup_mode=None)

DIFFERS, TROUBLE = 1, 2  # exit statuses of diff, as kubectl's

JSONPATH = "jsonpath="
FORMS = ("table", "wide", "json", "yaml", "name")


class How(StrEnum):
    """`patch -t`."""

    STRATEGIC = "strategic"
    MERGE = "merge"
    JSON = "json"


def _forms(incomplete: str) -> list[str]:
    return [form for form in (*FORMS, JSONPATH) if form.startswith(incomplete)]


DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, say what would be done, write nothing.")
]
InNamespace = Annotated[
    str | None,
    typer.Option(
        "-n", "--namespace", help="Namespace of what has one and names none.", show_default="default"
    ),
]
_KIND_HELP = "A kind, as node, ippools or wep."
KindWord = Annotated[str, typer.Argument(metavar="KIND", help=_KIND_HELP, autocompletion=completion.kinds)]
MaybeKind = Annotated[
    str | None,
    typer.Argument(metavar="[KIND", help=_KIND_HELP, show_default=False, autocompletion=completion.kinds),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The object's name.")]


@app.command(epilog=f"Kinds: {', '.join(completion.KINDS)}.")
def get(
    kind: MaybeKind = None,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...]", help="Names; all of the kind without any.")
    ] = None,
    filename: MaybeFiles = None,
    recursive: Recursive = False,
    namespace: InNamespace = None,
    all_namespaces: Annotated[
        bool, typer.Option("-A", "--all-namespaces", help="Those of every namespace.")
    ] = False,
    form: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="FORM",
            help=f"{', '.join(FORMS)} or {JSONPATH}TEMPLATE.",
            autocompletion=_forms,
        ),
    ] = "table",
) -> None:
    """Show resources: all of a kind, those named, or those that files describe.

    Example: fabricctl get ippools -o wide

    Example: fabricctl get wep -A -o jsonpath='{.items[*].spec.ipNetworks[0]}'

    Example: fabricctl get netpol -A -o yaml
    """
    if form not in FORMS and (not form.startswith(JSONPATH) or form == JSONPATH):
        raise typer.BadParameter(
            f'"{form}" is none of {", ".join(FORMS)}, {JSONPATH}TEMPLATE', param_hint="'-o'"
        )
    if (kind is None) == (not filename):
        raise typer.BadParameter("give either a KIND, or files with -f", param_hint="'KIND' / '-f'")
    if all_namespaces and (names or namespace):
        raise typer.BadParameter("excludes -n and names: a name is of one namespace", param_hint="'-A'")
    if filename:
        _show(_described(filename, recursive, namespace), form, namespaces=True, single=True)
        return
    from fabric.cli.store import fetch

    word = kind or ""
    found = fetch(word, names or (), None if all_namespaces else namespace or "default")
    namespaces = all_namespaces or namespace is not None
    _show(found, form, namespaces=namespaces, single=bool(names), word=word)


def _described(filename: Sequence[str], recursive: bool, namespace: str | None) -> list[Resource]:
    """Return what is stored of the objects that files describe."""
    from fabric.cli.store import with_store
    from fabric.ops import files, resources

    given = [resources.placed(g.resource, namespace) for g in files.read(filename, recursive=recursive)]
    wanted = [resources.asked(resource) for resource in given]

    async def all_of_them(kv: KeyValueStore) -> list[Resource]:
        found, missing = [], []
        for kind, metadata in wanted:
            try:
                found += await resources.get(kv, kind, [metadata.name], metadata.namespace)
            except NotFound as err:
                missing.append(str(err))
        if missing:
            raise NotFound("\n".join(missing))
        return found

    return with_store(all_of_them)


def _show(
    found: Sequence[Resource], form: str, *, namespaces: bool, single: bool, word: str | None = None
) -> None:
    """Print resources; `single` says that one alone is no list, `word` which kind is meant where there are none."""
    from fabric.model.change import shown

    trees = [shown(resource) for resource in found]
    if form in {"table", "wide"}:
        _tables(trees, wide=form == "wide", namespaces=namespaces, word=word)
    elif form == "name":
        for tree in trees:
            print(f"{_word(tree).lower()}/{tree['metadata']['name']}")
    else:
        value = (
            trees[0] if single and len(trees) == 1 else {"kind": "List", "apiVersion": "v1", "items": trees}
        )
        if form.startswith(JSONPATH):
            from fabric.cli.jsonpath import evaluate

            print(evaluate(form.removeprefix(JSONPATH), value), end="")
        else:
            output.document(value, Format(form))


def _tables(trees: Sequence[Tree], *, wide: bool, namespaces: bool, word: str | None) -> None:
    """Print a table for each kind, in the order in which they come."""
    from fabric.cli import columns
    from fabric.model import kinds

    by_kind: dict[str, list[Tree]] = {kinds.lookup(word).word: []} if word else {}
    for tree in trees:
        by_kind.setdefault(_word(tree), []).append(tree)
    for at, (name, rows) in enumerate(by_kind.items()):
        if at:
            print()
        with_namespace = namespaces and kinds.lookup(name).namespaced
        output.table(*columns.table(name, rows, wide=wide, namespaces=with_namespace))


def _word(tree: Tree) -> str:
    from fabric.model import kinds

    kind = kinds.named(tree["kind"], tree["apiVersion"])
    return kind.word if kind else str(tree["kind"])


@app.command()
def apply(
    filename: Files,
    recursive: Recursive = False,
    namespace: InNamespace = None,
    dry_run: DryRun = False,
) -> None:
    """Create or update the resources in files; nothing is written unless every file is sound.

    A file with a resourceVersion, as `get -o yaml` prints it, is written only if nobody has written since.

    Example: fabricctl apply -f pool.yaml -f peers.yaml
    """
    from fabric.ops import change

    _change(_from_files(change.apply, filename, recursive, namespace), dry_run)


@app.command()
def create(
    filename: Files,
    recursive: Recursive = False,
    namespace: InNamespace = None,
    skip_exists: Annotated[bool, typer.Option("--skip-exists", help="Leave alone what exists.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Create the resources in files; one that exists is an error, and nothing is written.

    Example: fabricctl create -f pool.yaml --skip-exists
    """
    from fabric.ops import change

    def verb(given: Given) -> Change:
        return change.create(given, skip_exists=skip_exists)

    _change(_from_files(verb, filename, recursive, namespace), dry_run)


@app.command()
def replace(
    filename: Files,
    recursive: Recursive = False,
    namespace: InNamespace = None,
    dry_run: DryRun = False,
) -> None:
    """Replace existing resources by those in files, whole: what a file leaves out is gone.

    Example: fabricctl get ippool a -o yaml | sed s/Never/Always/ | fabricctl replace -f -
    """
    from fabric.ops import change

    _change(_from_files(change.replace, filename, recursive, namespace), dry_run)


@app.command()
def delete(
    kind: MaybeKind = None,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...]", help="Names of it.")] = None,
    filename: MaybeFiles = None,
    recursive: Recursive = False,
    namespace: InNamespace = None,
    skip_not_exists: Annotated[
        bool, typer.Option("-s", "--skip-not-exists", help="Take no notice of what does not exist.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Delete the resources that are named, or that files describe.

    A pool is disabled first, then its blocks are released; addresses in use stay valid. A node goes even if it is
    alive, and its blocks and endpoints stay: `fabricctl node leave` on the node gives them back first.

    Example: fabricctl delete bgppeer tor1 tor2
    """
    from fabric.model import kinds
    from fabric.ops import change

    if bool(names) == bool(filename) or bool(kind) != bool(names):
        raise typer.BadParameter("give either KIND and NAME, or files with -f", param_hint="'KIND' / '-f'")

    def verb(given: Given) -> Change:
        return change.delete(given, skip_not_exists=skip_not_exists)

    if filename:
        _change(_from_files(verb, filename, recursive, namespace), dry_run)
        return
    of = kinds.lookup(kind or "")
    wanted = list(dict.fromkeys(names or ()))
    _change(
        [change.delete_named(of, name, namespace, skip_not_exists=skip_not_exists) for name in wanted],
        dry_run,
    )


@app.command()
def patch(
    kind: KindWord,
    name: Name,
    text: Annotated[str, typer.Option("-p", "--patch", help="The patch, JSON or YAML.")],
    how: Annotated[
        How,
        typer.Option(
            "-t", "--type", help="merge: RFC 7396; json: RFC 6902; strategic: as merge, as calicoctl does."
        ),
    ] = How.STRATEGIC,
    namespace: InNamespace = None,
    dry_run: DryRun = False,
) -> None:
    """Change parts of one resource.

    Example: fabricctl patch ippool a -p '{"spec": {"disabled": true}}'

    Example: fabricctl patch node n1 -t json -p '[{"op": "remove", "path": "/spec/bgp/asNumber"}]'
    """
    from fabric.model import kinds, yaml
    from fabric.ops import change

    try:
        documents = yaml.documents(text, "--patch")
    except ConfigError as err:
        raise ConfigError(f"{err}; nothing was written") from err
    if len(documents) != 1:
        raise ConfigError(f"--patch: has {len(documents)} documents in it, must be one; nothing was written")
    of = kinds.lookup(kind)
    _change([change.patch(of, name, namespace, documents[0].value, how.value)], dry_run)


@app.command()
def label(
    kind: KindWord,
    name: Name,
    labels: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE|KEY-...", help="Labels to set; KEY- removes one.")
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Change labels that have another value.")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove: each argument is a KEY.")] = False,
    namespace: InNamespace = None,
    dry_run: DryRun = False,
) -> None:
    """Set or remove labels of one resource.

    Example: fabricctl label node n1 rack=r1 zone-
    """
    from fabric.model import kinds
    from fabric.ops import change

    if remove and overwrite:
        raise typer.BadParameter("excludes --overwrite", param_hint="'--remove'")
    gone = labels if remove else [text[:-1] for text in labels if text.endswith("-") and "=" not in text]
    wanted = {} if remove else pairs([t for t in labels if "=" in t or not t.endswith("-")], "KEY=VALUE")
    if both := wanted.keys() & set(gone):
        raise typer.BadParameter(f'"{min(both)}" is both set and removed', param_hint="KEY=VALUE")
    of = kinds.lookup(kind)
    _change([change.label(of, name, namespace, wanted, gone, overwrite=overwrite)], dry_run)


@app.command()
def diff(filename: Files, recursive: Recursive = False, namespace: InNamespace = None) -> None:
    """Show what `apply` would change; exit status 0: nothing, 1: something, 2: it cannot be applied.

    Where that is policy, or what policy goes by, it is also told between which endpoints verdicts change.

    Example: fabricctl diff -R -f policies/
    """
    from fabric.cli.store import with_store
    from fabric.ops import change
    from fabric.ops.diff import diff as differences
    from fabric.ops.policy_diff import verdict_changes

    async def work(kv: KeyValueStore) -> tuple[list[str], list[str]]:
        steps = await _planned(changes)(kv)
        return list(differences(steps)), await verdict_changes(kv, steps)

    try:
        changes = _from_files(change.apply, filename, recursive, namespace)
        texts, verdicts = with_store(work)
    except FabricError as err:
        output.note(f"fabricctl: {err}")
        raise typer.Exit(TROUBLE) from err
    print("".join(texts), end="")
    if verdicts:
        print("", *verdicts, sep="\n")
    raise typer.Exit(DIFFERS if texts else 0)


def _from_files(
    verb: Callable[[Given], Change], filename: Sequence[str], recursive: bool, namespace: str | None
) -> list[Change]:
    from fabric.ops import change, files

    return change.gather(verb, files.read(filename, recursive=recursive), namespace)


def _planned(changes: Sequence[Change]) -> Any:
    """Return work for `with_store`: decide and check everything, tell the warnings, write nothing."""
    from fabric.ops import change, check, pools
    from fabric.ops.refuse import refuse
    from fabric.ops.refuse_tunnels import Here

    async def work(kv: KeyValueStore) -> list[Step]:
        steps, refusals = await change.decided(kv, changes)
        host = await pools.host_subnets() if any(c.kind == "IPPool" for c in changes) else []
        node = check.this_node()
        here = Here(node, check.read_tunnels, check.unpublishable) if node else None
        for line in await refuse(kv, steps, host, refusals, changes, here):
            output.note(f"warning: {line}")
        return steps

    return work


def _change(changes: Sequence[Change], dry_run: bool) -> None:
    """Carry the changes out, a line each as it is done."""
    from fabric.cli.store import with_store
    from fabric.ops import change, cluster

    async def all_of_them(kv: KeyValueStore) -> None:
        steps = await _planned(changes)(kv)
        if dry_run:
            for step in steps:
                print(f"{step.change.what}: {step.verb} (dry run)")
            return
        why = ""
        if any(step.after and step.verb is not change.Verb.UNCHANGED for step in steps):
            try:
                await cluster.found(kv)
            except Forbidden as err:  # no reason to keep an operator from what is theirs to write
                why = str(err)
        async for step in change.carry_out(kv, steps):
            print(f"{step.change.what}: {step.verb}", flush=True)
        if why:  # last: who may write nothing at all is told that alone
            output.note(f"warning: what every cluster has was not looked after: {why}")

    with_store(all_of_them)
