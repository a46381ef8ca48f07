"""Completion, as the shells ask for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fabric.cli.completion import KINDS, VARIABLE, Shell
from fabric.model import kinds

BIN = Path(sys.executable).parent
ENV = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}


FILES = "(files)"
# The words so far, the last of which is being written, and what may stand in its place.
ASKED = {
    "no": "node",
    "node le": "leave",
    "bgp routes ": "received best advertised",
    "node join --p": "--peer --pool",
    "--config /x node li": "list",
    "bgp peers -o j": "json",
    "get ipp": "ippool",
    "delete tie": "tier",
    "apply -f /etc/ho": FILES,
    "lab up ": FILES,
    "completion ": "bash zsh fish",
}


def test_bash_completes_commands_options_kinds_and_files() -> None:
    # bash lists files itself when a completion asks for it by `compopt`, which it refuses outside of one.
    script = f"""source <(fabricctl completion bash)
        compopt() {{ COMPREPLY=("{FILES}"); }}
        for line; do
            IFS=' ' read -ra COMP_WORDS <<<"fabricctl $line"
            [[ $line == *' ' ]] && COMP_WORDS+=('')
            COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMPREPLY=()
            _fabricctl_completion fabricctl
            echo "${{COMPREPLY[*]}}"
        done"""
    done = subprocess.run(
        ["bash", "-c", script, "bash", *ASKED],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert dict(zip(ASKED, done.stdout.splitlines(), strict=True)) == ASKED


@pytest.mark.parametrize("shell", Shell)
def test_each_shell_has_a_script_that_asks_us_and_is_answered(shell: Shell) -> None:
    program = [str(BIN / "fabricctl")]
    script = subprocess.run(
        [*program, "completion", shell], capture_output=True, text=True, check=True
    ).stdout
    assert f"{VARIABLE}={shell}_complete" in script
    # bash and zsh give the index of the word, fish the word itself.
    asked = {VARIABLE: f"{shell}_complete", "COMP_WORDS": "fabricctl node jo", "COMP_CWORD": "2"}
    if shell is Shell.FISH:
        asked["COMP_CWORD"] = "jo"
    done = subprocess.run(program, env={**ENV, **asked}, capture_output=True, text=True, check=True)
    assert "join" in done.stdout
    assert "leave" not in done.stdout


def test_the_kinds_offered_are_those_there_are() -> None:
    assert list(KINDS) == [kind.name.lower() for kind in kinds.KINDS]


def test_another_shell_is_a_usage_error() -> None:
    done = subprocess.run(
        [BIN / "fabricctl", "completion", "csh"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
