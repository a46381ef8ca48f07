"""The API child of ExaBGP: carries bytes between its stdio and the speaker's unix socket, and nothing else.

ExaBGP writes to its child with blocking writes: a child that does not read stalls every session until
the hold time. So this one always reads, holds what the speaker has not taken yet in memory without a
bound, and ends as soon as either side does. Run as a file by `python -I -S`: standard library only.
"""

from __future__ import annotations

import os
import select
import socket
import sys

CHUNK = 1 << 16


class Channel:
    """Bytes on their way from one descriptor to another."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = source, sink
        self.waiting = bytearray()

    def fill(self) -> bool:
        """Read once; False at the end of the stream."""
        try:
            data = os.read(self.source, CHUNK)
        except BlockingIOError:
            return True
        self.waiting += data
        return bool(data)

    def drain(self) -> None:
        """Write what the other side takes now."""
        try:
            del self.waiting[: os.write(self.sink, self.waiting[:CHUNK])]
        except BlockingIOError:
            return


def pump(channels: list[Channel]) -> None:
    """Carry bytes until one of the sources ends."""
    poll = select.poll()
    while True:
        wanted: dict[int, int] = {}
        for channel in channels:
            wanted[channel.source] = wanted.get(channel.source, 0) | select.POLLIN
            if channel.waiting:
                wanted[channel.sink] = wanted.get(channel.sink, 0) | select.POLLOUT
        for fd, events in wanted.items():
            poll.register(fd, events)
        ready = dict(poll.poll())
        for fd in wanted:
            poll.unregister(fd)
        if not all(step(channel, ready) for channel in channels):
            return


def step(channel: Channel, ready: dict[int, int]) -> bool:
    if ready.get(channel.sink, 0) & ~select.POLLIN:
        channel.drain()
    return not ready.get(channel.source, 0) & ~select.POLLOUT or channel.fill()


def main(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        # The speaker takes this greeting only from the child of the ExaBGP it runs now.
        sock.sendall(b"pump %d\n" % os.getppid())
        for fd in (0, 1, sock.fileno()):
            os.set_blocking(fd, False)
        pump([Channel(0, sock.fileno()), Channel(sock.fileno(), 1)])


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except OSError as err:
        # ExaBGP or the speaker is gone: the next pair starts afresh, so there is nothing to save.
        sys.exit(f"pump: {err}")
