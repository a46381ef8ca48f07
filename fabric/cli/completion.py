"""`fabricctl completion`: the script a shell sources, and the answers to what it then asks.

The script and its protocol are click's: the shell runs fabricctl again with VARIABLE set, and reads what may follow.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import click
import typer
from click.shell_completion import get_completion_class, shell_complete

app = typer.Typer(add_completion=False, rich_markup_mode=None)

PROGRAM, VARIABLE = "fabricctl", "_FABRICCTL_COMPLETE"
FILE = click.Path()  # `click_type` of an option that is a file: the shell itself lists them
# Spelled out here, since importing the kinds takes longer than a shell's user waits; a test holds the list.
KINDS = (
    "bgpconfiguration", "bgpfilter", "bgppeer", "blockaffinity", "caliconodestatus", "clusterinformation",
    "felixconfiguration", "globalnetworkpolicy", "globalnetworkset", "hostendpoint", "ipamconfiguration",
    "ipamblock", "ipamhandle", "ippool", "ipreservation", "kubecontrollersconfiguration", "livemigration",
    "networkpolicy", "networkset", "node", "profile", "stagedglobalnetworkpolicy",
    "stagedkubernetesnetworkpolicy", "stagednetworkpolicy", "tier", "workloadendpoint",
)  # fmt: skip


class Shell(StrEnum):
    """Those with a script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@app.command()
def completion(
    context: typer.Context, shell: Annotated[Shell, typer.Argument(help="The shell to print it for.")]
) -> None:
    """Print a script that completes commands, options and kinds.

    Example: source <(fabricctl completion bash)

    Example: fabricctl completion zsh >/usr/local/share/zsh/site-functions/_fabricctl

    Example: fabricctl completion fish >~/.config/fish/completions/fabricctl.fish
    """
    complete = get_completion_class(shell)
    assert complete, shell
    print(complete(context.find_root().command, {}, PROGRAM, VARIABLE).source())


def answer(root: click.Command, instruction: str) -> int:
    """Print what may follow the words that the shell hands over in the environment; return the exit status."""
    return shell_complete(root, {}, PROGRAM, VARIABLE, instruction)


def kinds(incomplete: str) -> list[str]:
    """`autocompletion` of an argument that is a kind."""
    return [kind for kind in KINDS if kind.startswith(incomplete)]
