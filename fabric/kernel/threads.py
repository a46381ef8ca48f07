"""Touches network namespaces: runs a function in a one-shot thread, the only kind that may enter another one.

A namespace belongs to a thread. One that has entered another must not go back to a pool, and the event
loop's own must not leave; so each call has a thread of its own, which ends with it (0.2 ms).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from fabric.errors import DataplaneError

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)
_libc = ctypes.CDLL(None, use_errno=True)


async def in_thread(work: Callable[[], T]) -> T:
    """Return what `work` returns; when cancelled, wait for its end first, so that passes never overlap."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="netns")
    result = asyncio.get_running_loop().run_in_executor(pool, work)
    pool.shutdown(wait=False)  # the thread ends with its only piece of work
    try:
        return await asyncio.shield(result)
    except asyncio.CancelledError:
        await asyncio.wait([result])
        raise


def enter(namespace: int) -> None:
    """Move the calling thread into the network namespace open as file `namespace`."""
    if _libc.setns(namespace, CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def is_network_namespace(path: Path) -> bool:
    """Whether `path` is a network namespace; namespaces of every kind are files of one filesystem, nsfs.

    Raises:
        OSError: nothing is there, or it may not be looked at.
    """
    found = path.stat()
    # Only a file of nsfs is opened: a FIFO would hang, a device might act on it.
    if not stat.S_ISREG(found.st_mode) or found.st_dev != Path("/proc/self/ns/net").stat().st_dev:
        return False
    with path.open("rb") as file:
        return fcntl.ioctl(file, NS_GET_NSTYPE) == CLONE_NEWNET


def new_namespace() -> int:
    """Return an open file that holds a new, empty network namespace; it lives as long as the file is open."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(_unshared).result()


def _unshared() -> int:
    if _libc.unshare(CLONE_NEWNET):
        code = ctypes.get_errno()
        raise DataplaneError("make a network namespace", code, "nothing was changed; this needs root")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def home_and_target(path: str) -> Iterator[tuple[int, int]]:
    """Yield open files of the calling thread's network namespace and of the one at `path`.

    Raises:
        DataplaneError: nothing is there (ENOENT), it is something else, or the host's own namespace (EINVAL).
    """
    target = _opened(path)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.path.samestat(os.fstat(home), os.fstat(target)):
            hint = "it is the host's own; name the container's; nothing was changed"
            raise DataplaneError(f"network namespace {path}", errno.EINVAL, hint)
        yield home, target
    finally:
        os.close(home)
        os.close(target)


def _opened(path: str) -> int:
    what = f"network namespace {path}"
    try:
        if is_network_namespace(Path(path)):
            # O_NONBLOCK: a FIFO that has just taken its place must not hang the attach.
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as err:
        hint = "the container is gone; nothing was changed"
        raise DataplaneError(what, err.errno or errno.EIO, hint) from err
    # Such as /proc/PID/fd/N, whose process or descriptor is another one by now.
    hint = "what is there now is no network namespace, so it was not opened; nothing was changed"
    raise DataplaneError(what, errno.EINVAL, hint)
