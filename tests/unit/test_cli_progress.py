"""Progress is for people: on a terminal, when it takes long, and gone when it is done."""

import os
import pty
import subprocess
import sys

CODE = (
    "import threading\nfrom fabric.cli.output import progress\n"
    "with progress('counting sheep', after={after}):\n    threading.Event().wait({takes})\nprint('done')"
)


def run(after: float, takes: float) -> str:
    """What a terminal on stderr is sent."""
    ours, theirs = pty.openpty()
    try:
        code = CODE.format(after=after, takes=takes)
        subprocess.run(
            [sys.executable, "-c", code], stderr=theirs, stdout=subprocess.DEVNULL, timeout=60, check=True
        )
        os.write(theirs, b"$")  # so that there is something to read, and an end of it
        sent = b""
        while not sent.endswith(b"$"):
            sent += os.read(ours, 10_000)
        return sent.decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_what_takes_long_is_shown_on_one_line_and_wiped() -> None:
    sent = run(after=0.05, takes=0.5)
    assert sent.startswith("\r\x1b[Kcounting sheep ... 0 s")
    assert sent.endswith("\r\x1b[K$")
    assert "\n" not in sent


def test_what_is_quick_is_not_shown() -> None:
    assert "sheep" not in run(after=30, takes=0)


def test_nothing_is_shown_where_nobody_looks() -> None:
    code = CODE.format(after=0.01, takes=0.2)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("done\n", "")
