"""Touches the network with one TCP connection: `send` sends so many bytes, `take` counts what arrives.

Run as a program in a namespace, by path, so it imports nothing but the standard library:

    bulk.py take PORT                  prints "ready", then how many bytes came by the first connection, once that ends
    bulk.py send ADDRESS PORT BYTES
"""

from __future__ import annotations

import socket
import sys

CHUNK = 1 << 16


def take(port: int) -> None:
    with socket.create_server(("", port)) as listener:
        print("ready", flush=True)
        connection, _ = listener.accept()
    with connection:
        came = 0
        while data := connection.recv(CHUNK):
            came += len(data)
    print(came, flush=True)


def send(address: str, port: int, count: int) -> None:
    with socket.create_connection((address, port)) as connection:
        for at in range(0, count, CHUNK):
            connection.sendall(bytes(min(CHUNK, count - at)))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["take", port]:
            take(int(port))
        case ["send", address, port, count]:
            send(address, int(port), int(count))
