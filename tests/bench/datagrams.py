"""Touches the network from one end of a way: round trips of a small datagram, for so many seconds.

Run as a program in a namespace, by path, so it imports nothing but the standard library:

    datagrams.py serve PORT                     prints "ready"; answers datagrams, until its input ends
    datagrams.py ask ADDRESS PORT SECONDS       prints how long each round trip took, in seconds, as JSON
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

SMALL = b"x" * 64
PATIENCE = 1.0  # seconds for an answer; a round trip that takes longer is none


def serve(port: int) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as echo:
        echo.bind(("", port))
        threading.Thread(target=answer, args=(echo,), daemon=True).start()
        print("ready", flush=True)
        sys.stdin.read()


def answer(echo: socket.socket) -> None:
    while True:
        data, client = echo.recvfrom(len(SMALL))
        echo.sendto(data, client)


def ask(address: str, port: int, seconds: float) -> list[float]:
    took = []
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect((address, port))
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            sock.send(SMALL)
            sock.recv(len(SMALL))
            took.append(time.monotonic() - began)
    return took


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port]:
            serve(int(port))
        case ["ask", address, port, seconds]:
            print(json.dumps(ask(address, int(port), float(seconds))))
