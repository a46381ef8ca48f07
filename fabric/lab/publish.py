"""Passes on what arrives at the ports that a lab publishes on the host.

A child of the lab's backplane, run with the standard library only and the list of `Published` as JSON in its
argument. The sockets listen in the host's namespace: the runner opened them there, and they are inherited;
what they accept goes on from the backplane's namespace, over the management network. So nothing of it is in
the host's routes or rules, and the ports are free again when the lab ends.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn, TypedDict

CHUNK = 65536
RETRY = 0.1  # seconds
IDLE = 60.0  # seconds until an unused return path of UDP is given up


class Published(TypedDict):
    """A listening socket's inherited descriptor, and where in the lab what it accepts goes."""

    fd: int
    protocol: str
    address: str
    port: int


def main() -> None:
    ports: list[Published] = json.loads(sys.argv[1])
    threads = [
        threading.Thread(target=pass_stream if port["protocol"] == "tcp" else pass_datagrams, args=(port,))
        for port in ports
    ]
    for thread in threads:
        thread.start()


def pass_stream(port: Published) -> NoReturn:
    with socket.socket(fileno=port["fd"]) as listener:
        while True:
            try:
                client, _ = listener.accept()
            except OSError as err:  # too many open files, or the client is gone: the next may do better
                print(f"port {port['port']}/tcp: {err.strerror}", file=sys.stderr)
                time.sleep(RETRY)
                continue
            threading.Thread(target=join, args=(client, (port["address"], port["port"])), daemon=True).start()


def join(client: socket.socket, target: tuple[str, int]) -> None:
    with client:
        try:
            server = socket.create_connection(target, timeout=10)
        except OSError:
            return  # refused there: closed here
        server.settimeout(None)
        with server:
            back = threading.Thread(target=copy, args=(server, client), daemon=True)
            back.start()
            copy(client, server)
            back.join()


def copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while chunk := source.recv(CHUNK):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, target):
            with suppress(OSError):  # its other half has ended it already
                end.shutdown(socket.SHUT_RDWR)


def pass_datagrams(port: Published) -> NoReturn:
    target = (port["address"], port["port"])
    paths: dict[object, socket.socket] = {}

    def answer(client: object, path: socket.socket) -> None:
        with path:
            try:
                while True:
                    listener.sendto(path.recv(CHUNK), client)  # type: ignore[call-overload]
            except OSError:
                paths.pop(client, None)  # silent for long, or refused

    with socket.socket(fileno=port["fd"]) as listener:
        while True:
            try:
                data, client = listener.recvfrom(CHUNK)
            except OSError:  # an ICMP error for an answer that nobody waited for
                continue
            path = paths.get(client)
            if path is None:
                path = paths[client] = socket.socket(
                    socket.AF_INET6 if ":" in target[0] else socket.AF_INET, socket.SOCK_DGRAM
                )
                path.settimeout(IDLE)
                path.connect(target)
                threading.Thread(target=answer, args=(client, path), daemon=True).start()
            try:
                path.send(data)
            except OSError:
                paths.pop(client, None)


if __name__ == "__main__":
    main()
