import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bgp.speaker.pump


class Pump:
    """A pump with us in the places of ExaBGP (stdio) and of the speaker (`sock`)."""

    def __init__(self, directory: Path) -> None:
        path = directory / "pump.sock"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen()
            argv = [sys.executable, "-I", "-S", bgp.speaker.pump.__file__, str(path)]
            self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self.sock, _ = server.accept()
        self.sock.settimeout(10)
        self.lines = self.sock.makefile("rb")

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.lines.close()
        self.sock.close()


@pytest.fixture
def pump(tmp_path: Path) -> Iterator[Pump]:
    pump = Pump(tmp_path)
    try:
        yield pump
    finally:
        pump.end()


def test_it_says_whose_child_it_is_and_carries_both_ways(pump: Pump) -> None:
    assert pump.process.stdin is not None
    assert pump.process.stdout is not None
    assert pump.lines.readline() == b"pump %d\n" % os.getpid()
    pump.process.stdin.write(b"event\n")
    pump.process.stdin.flush()
    assert pump.lines.readline() == b"event\n"
    pump.sock.sendall(b"command\n")
    assert pump.process.stdout.readline() == b"command\n"


def test_a_speaker_that_does_not_read_never_blocks_exabgp(pump: Pump) -> None:
    assert pump.process.stdin is not None
    pump.lines.readline()
    flood = b"x" * 99 + b"\n"
    for _ in range(300):  # 30 MB, hundreds of times a socket buffer; a block would run into the timeout
        pump.process.stdin.write(flood * 1000)
    pump.process.stdin.flush()
    assert all(pump.lines.readline() == flood for _ in range(300_000))


def test_it_ends_with_exabgp(pump: Pump) -> None:
    assert pump.process.stdin is not None
    pump.process.stdin.close()
    pump.process.stdin = None
    assert pump.process.wait(5) == 0


def test_it_ends_with_the_speaker(pump: Pump) -> None:
    pump.lines.close()
    pump.sock.close()
    assert pump.process.wait(5) is not None
