"""Network namespaces that a test owns: each is held by a thread, and ends with it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

T = TypeVar("T")

CLONE_NEWNET, CLONE_NEWNS = 0x40000000, 0x00020000
MS_PRIVATE_ALL = 0x4000 | 1 << 18  # MS_REC | MS_PRIVATE
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A fresh network namespace and an event loop that runs inside it; on request with a /run of its own.

    The lock of the legacy tables is a file in /run.
    """

    def __init__(self, *, own_run: bool = False) -> None:
        self._own_run = own_run

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._live, name="test-netns")
        self._thread.start()
        assert self._ready.wait(10)
        self.ip("link", "set", "lo", "up")
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _live(self) -> None:
        assert _libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        if self._own_run:
            for failed in (
                _libc.unshare(CLONE_NEWNS),
                _libc.mount(b"none", b"/", None, MS_PRIVATE_ALL, None),
                _libc.mount(b"run", b"/run", b"tmpfs", 0, None),
            ):
                assert not failed, os.strerror(ctypes.get_errno())
        self.path = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"
        self._ready.set()
        self._loop.run_forever()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop inside the namespace."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def call(self, work: Callable[[], T]) -> T:
        """Call `work` in the thread that holds the namespace."""

        async def once() -> T:
            return work()

        return self.run(once())

    def ip(self, *words: str) -> str:
        """Run `ip` inside and return what it prints."""
        return self.command("ip", *words)

    def command(self, *words: str) -> str:
        done = self.call(lambda: subprocess.run(words, capture_output=True, text=True, timeout=20))
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout
