"""`fabricctl lab`: run a containerlab topology in namespaces; parses, calls fabric.lab, prints."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fabric.cli import completion
from fabric.cli.options import Output, without_dashes
from fabric.cli.output import Format, document, note, progress, table
from fabric.errors import LabError, NotFound

if TYPE_CHECKING:
    from fabric.lab.lab import Lab

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Run a containerlab topology in namespaces, without Docker.\n\n"
    "Example: fabricctl lab up containerlab/quickstart.clab.yml",
)

File = Annotated[
    Path,
    typer.Argument(
        click_type=completion.FILE, help="A containerlab topology (NAME.clab.yml).", show_default=False
    ),
]
NodeName = Annotated[str, typer.Argument(metavar="NODE", help="A node of the topology.", show_default=False)]
ReportTo = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FOLDER",
        click_type=completion.FILE,
        help="Measure what it costs every flow between the endpoints of NAME.verify.yml;"
        " report.json and timeline.svg go into this folder.",
    ),
]


WIDEST = 64  # characters of a column


class Part(StrEnum):
    """What `break` can break."""

    LINK = "link"
    NODE = "node"
    ROUTER = "router"
    SPEAKER = "speaker"
    AGENT = "agent"
    ETCD = "etcd"


@app.command()
def up(file: File) -> None:
    """Bring a lab up; one that is up already is left as it is.

    Example: fabricctl lab up containerlab/quickstart.clab.yml
    """
    from fabric.lab.lab import Lab

    _end_politely()
    lab = Lab.load(file)
    try:
        changed = lab.up(note)
    except KeyboardInterrupt:
        note(f"\nlab {lab.name}: interrupted; it was taken down")
        raise typer.Exit(130) from None
    count = len(lab.topology.nodes)
    typer.echo(f"lab {lab.name}: {count} nodes {'up' if changed else 'were up already; nothing changed'}")


@app.command()
def down(file: File) -> None:
    """Take a lab down, whatever state it and its file are in.

    Example: fabricctl lab down containerlab/quickstart.clab.yml
    """
    from fabric.lab.lab import down as take_down

    with progress("going down"):
        gone = take_down(file)
    for name in gone:
        typer.echo(f"lab {name}: down")
    if not gone:
        typer.echo(f"{file}: was not up; nothing changed")


@app.command("exec", context_settings={"allow_interspersed_args": False})
def exec_(
    file: File,
    node: NodeName,
    command: Annotated[list[str], typer.Argument(help="What to run there.", show_default=False)],
) -> None:
    """Run a command in a node, with its input, output and exit status.

    Example: fabricctl lab exec containerlab/quickstart.clab.yml tor -- vtysh -c "show bgp summary"
    """
    from fabric.lab.lab import Lab

    lab = Lab.load(file)
    # Options end at NODE, so that the command keeps its own; the customary "--" is then left to us.
    _become(lab.command(node, without_dashes(command)), lab.environment(node))


@app.command()
def inspect(file: File, output: Output = Format.TABLE) -> None:
    """Show the nodes of a lab and how they are linked.

    Example: fabricctl lab inspect containerlab/quickstart.clab.yml -o json
    """
    from fabric.lab.lab import Lab

    lab = Lab.load(file)
    states = lab.inspect()
    if lab.stale:
        note(f"lab {lab.name}: {file} has changed since it came up; what is shown is the file")
    if lab.damaged:
        note(f"lab {lab.name}: its backplane is gone, and with it every link; take the lab down")
    if output is not Format.TABLE:
        nodes = [{**asdict(s), "addresses": list(s.addresses), "links": list(s.links)} for s in states]
        document({"name": lab.name, "nodes": nodes}, output)
        return
    table(
        ("NODE", "PROFILE", "STATE", "PID", "ADDRESSES", "LINKS"),
        [
            (s.name, s.profile, s.state, s.pid or "-", " ".join(s.addresses) or "-", ", ".join(s.links))
            for s in states
        ],
    )


@app.command("list")
def list_(output: Output = Format.TABLE) -> None:
    """Show the labs of this host, and how many of their nodes run.

    Example: fabricctl lab list
    """
    from fabric.lab.lab import standing

    labs = standing()
    if output is not Format.TABLE:
        document([asdict(each) for each in labs], output)
        return
    rows = [(each.name, each.state, f"{each.running}/{each.nodes}", each.file) for each in labs]
    table(("LAB", "STATE", "NODES", "FILE"), rows)


@app.command()
def shell(file: File, node: NodeName) -> None:
    """Open a shell in a node.

    Example: fabricctl lab shell containerlab/quickstart.clab.yml node1
    """
    from fabric.lab.lab import Lab

    lab = Lab.load(file)
    environment = {**lab.environment(node), "PS1": f"{node}:\\w# "}
    _become(lab.command(node, ["/bin/bash", "--norc", "-i"]), environment)


@app.command()
def logs(
    file: File,
    node: NodeName,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on with what is said from now on.")
    ] = False,
) -> None:
    """Print what a node's daemons and its exec commands have printed.

    Example: fabricctl lab logs containerlab/quickstart.clab.yml etcd
    """
    from fabric.lab.lab import Lab

    lab = Lab.load(file)
    path = lab.log(node)
    if not path.exists():
        raise NotFound(f"lab {lab.name}: node {node} has no log: the lab is not up, or has not come as far")
    _become(["tail", "-n", "+1", *(["-F"] if follow else []), str(path)])


@app.command()
def save(file: File) -> None:
    """Save the running configuration of each router to clab-NAME/NODE/ beside the file.

    Example: fabricctl lab save containerlab/quickstart.clab.yml
    """
    from fabric.lab.lab import Lab

    lab = Lab.load(file)
    for path in lab.save():
        typer.echo(f"saved {path}")


@app.command("break")
def break_(
    file: File,
    part: Annotated[Part, typer.Argument(help="What to break.", show_default=False)],
    target: Annotated[
        str, typer.Argument(help="The node, or the link as END-END, each NODE:INTERFACE.", show_default=False)
    ],
    silent: Annotated[
        bool, typer.Option("--silent", help="Of a link: drop its frames and leave the carrier up.")
    ] = False,
    delay: Annotated[
        str, typer.Option(metavar="TIME", help="Of a link: delay its frames instead, by 50ms, say.")
    ] = "",
    loss: Annotated[
        str, typer.Option(metavar="PERCENT", help="Of a link: lose some of its frames instead, 5%, say.")
    ] = "",
    report: ReportTo = None,
    output: Output = Format.TABLE,
) -> None:
    """Break a link or a node, or kill what runs in it, until `lab restore`; our agent and speaker come back alone.

    Example: fabricctl lab break containerlab/two-tors.clab.yml link node1:eth1-tor1:eth2

    Example: fabricctl lab break containerlab/two-tors.clab.yml router tor1 --report out
    """
    from fabric.lab import faults
    from fabric.lab.lab import Lab

    if part is not Part.LINK and (silent or delay or loss):
        raise typer.BadParameter("--silent, --delay and --loss are for links")
    if silent and (delay or loss):
        raise typer.BadParameter("--silent drops every frame; --delay and --loss go without it")
    if delay and not re.fullmatch(r"\d+(\.\d+)?(us|ms|s)", delay):
        raise typer.BadParameter(f"--delay {delay}: write a number with us, ms or s, such as 50ms")
    if loss and not re.fullmatch(r"\d+(\.\d+)?%", loss):
        raise typer.BadParameter(f"--loss {loss}: write a percentage, such as 5%")
    lab = Lab.load(file)

    def act() -> str:
        if part is Part.LINK:
            if delay or loss:
                return faults.impair(lab, target, delay, loss)
            return faults.cut(lab, target, silent=silent)
        return faults.power_off(lab, target) if part is Part.NODE else faults.kill(lab, part.value, target)

    _measured(lab, file, act, report, output, mends=False)


@app.command()
def restore(file: File, report: ReportTo = None, output: Output = Format.TABLE) -> None:
    """Mend everything that `lab break` has broken.

    Example: fabricctl lab restore containerlab/two-tors.clab.yml
    """
    from fabric.lab import faults
    from fabric.lab.lab import Lab

    lab = Lab.load(file)

    def act() -> str:
        return "\n".join(faults.restore(lab, note)) or f"lab {lab.name}: nothing is broken"

    _measured(lab, file, act, report, output, mends=True)


@app.command()
def verify(
    file: File,
    within: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0, help="Time in which all has to come true, in place of the file's."
        ),
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", click_type=completion.FILE, help="Write the results as JUnit XML here as well."
        ),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Hold a running lab against NAME.verify.yml; exit status 1 if an expectation is not met.

    Example: fabricctl lab verify containerlab/quickstart.clab.yml
    """
    import signal
    from dataclasses import replace

    from fabric.lab import expect
    from fabric.lab import verify as verifying
    from fabric.lab.lab import Lab

    # A polite kill is an interrupt, which ends what was started; a script's background ignores interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    lab = Lab.load(file)
    expectations = expect.load(file, lab.topology)
    if within is not None:
        expectations = replace(expectations, within=within)
    with progress(f"lab {lab.name}: verifying"):
        results = verifying.verify(lab, expectations)
    if output is Format.TABLE:
        table(
            ("WHAT", "WHERE", "EXPECTED", "FOUND", "SECONDS", "RESULT"),
            [
                (
                    e.what,
                    e.where,
                    e.expected,
                    _short(r.found),
                    f"{r.seconds:.1f}",
                    "ok" if r.holds else "MISS",
                )
                for r in results
                for e in [r.expectation]
            ],
        )
    else:
        document(verifying.document(lab.name, results), output)
    if junit:
        from fabric.lab import junit as junits

        junits.write(junit, lab.name, expectations.path, results)
    missed = [result for result in results if not result.holds]
    for result in missed:
        e = result.expectation
        note(f"{expectations.path}:{e.line}: {e.what} {e.where}: expected {e.expected}, found {result.found}")
    note(f"lab {lab.name}: {len(results) - len(missed)} of {len(results)} expectations hold")
    if missed:
        raise typer.Exit(1)


def _short(text: str) -> str:
    """Return what fits a column; what is missed is told whole below the table."""
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"


class Drawing(StrEnum):
    """What `graph` writes."""

    SVG = "svg"
    DOT = "dot"


@app.command()
def graph(
    file: File,
    form: Annotated[
        Drawing, typer.Option("-o", "--format", help="A picture, or the text that graphviz makes it of.")
    ] = Drawing.SVG,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", click_type=completion.FILE, help="Write it here, and not to standard output."
        ),
    ] = None,
) -> None:
    """Draw a lab; while it runs also its BGP sessions, coloured by state, and who announces which prefixes.

    Example: fabricctl lab graph containerlab/quickstart.clab.yml --to quickstart.svg
    """
    from fabric.lab import graph as graphs
    from fabric.lab import survey
    from fabric.lab.lab import Lab

    lab = Lab.load(file)
    with progress(f"lab {lab.name}: asking its nodes"):
        seen = survey.ask(lab)
    text = graphs.dot(lab.topology, seen)
    if form is Drawing.SVG:
        text = graphs.svg(text)
    if not to:
        typer.echo(text, nl=False)
        return
    try:
        to.write_text(text)
    except OSError as err:
        raise LabError(f"graph {to}: {err.strerror}; nothing was written") from err
    note(f"lab {lab.name}: {'running' if seen else 'not running'}; drawn to {to}")


def _measured(
    lab: Lab, file: Path, act: Callable[[], str], folder: Path | None, output: Format, *, mends: bool
) -> None:
    """Do it and say what was done; with a folder, also what it cost. Exit status 1 where that cannot be told."""
    _end_politely()
    if not folder:
        with lab.held():
            typer.echo(act())
        return
    from fabric.lab import expect, measure, timeline
    from fabric.lab import report_forms as forms

    endpoints = expect.load(file, lab.topology).endpoints
    # What could keep the figures from being kept is found out before anything is broken.
    timeline.check()
    _keep(folder / "report.json", "")
    try:
        with lab.held():
            # Links are mended at once, BGP comes back later, and moves traffic once more.
            settle = 10.0 if mends else 3.0
            found = measure.measure(lab, endpoints, act, mends=mends, settle=settle, progress=note)
    except KeyboardInterrupt:
        (folder / "report.json").unlink()
        note("\ninterrupted; nothing was written; what is broken stays so until `fabricctl lab restore`")
        raise typer.Exit(130) from None
    if output is Format.TABLE:
        typer.echo(f"{found.act}\n")
        table(forms.FLOW_HEADINGS, forms.flow_rows(found))
        if rows := forms.route_rows(found):
            typer.echo()
            table(forms.ROUTE_HEADINGS, rows)
    else:
        document(forms.as_json(found), output)
    _keep(folder / "report.json", forms.as_text(found))
    timeline.write_svg(found, folder / "timeline.svg")
    note(f"written: {folder}/report.json, {folder}/timeline.svg")
    if not found.settled:
        note("some flows still lost datagrams at the end")
    if not found.valid:
        note(f"these figures mean nothing: {found.invalid}; restore the lab and measure again")
        raise typer.Exit(1)


def _keep(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as err:
        raise LabError(f"{path} cannot be written: {err.strerror}; name another folder") from err


def _end_politely() -> None:
    """Let a polite kill clean up as Ctrl-C does."""
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _become(argv: list[str], environment: Mapping[str, str] = os.environ) -> None:
    sys.stdout.flush()
    os.execvpe(argv[0], argv, environment)  # noqa: S606  a shell would split the arguments again
