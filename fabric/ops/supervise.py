"""Keep this node's two processes, speaker and agent, running: started by `node join`, ended by a signal.

The speaker is not the agent's child, so that sessions stand while the agent is replaced. Both get a
signal when the supervisor dies, whatever kills it; ExaBGP in turn dies with the speaker. Serves a bare
host, a container and a lab's node alike, and needs no systemd.

Flow: lock (one supervisor a host) -> start both -> restart whichever ends, later each time -> on SIGTERM
or SIGINT stop the agent first, then the speaker, whose peers then hold the routes by graceful restart.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import structlog

from fabric import logs
from fabric.config import RUN, SUPERVISOR_LOCK
from fabric.errors import FabricError, Taken

log = structlog.get_logger()

CHILDREN = {
    "speaker": ["-m", "bgp.speaker", "--run-dir", str(RUN)],
    "agent": ["-m", "fabric.agent"],
}
FIRST_DELAY, LONGEST_DELAY = 0.1, 10.0  # seconds
HEALTHY_AFTER = 30.0  # seconds of life that make the next restart immediate again
STOP_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
STOPPED_WITHIN = 15.0  # seconds; both children may need their grace
POLL = 0.1


def hold_lock(path: Path = SUPERVISOR_LOCK) -> int:
    """Return a descriptor that holds the host's supervisor lock, with our pid in the file.

    Raises:
        Taken: another supervisor holds it; the message has its pid.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        holder = os.read(fd, 32).decode().strip()
        os.close(fd)
        raise Taken(f"supervisor: already running as pid {holder}; nothing was started") from err
    os.ftruncate(fd, 0)
    os.write(fd, str(os.getpid()).encode())
    return fd


def running(path: Path = SUPERVISOR_LOCK) -> int | None:
    """Return the pid of the supervisor that holds the lock, or None where none runs."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(fd, 32).decode() or 0) or None
    finally:
        os.close(fd)
    return None


def stop() -> bool:
    """Stop the host's supervisor, and with it agent and speaker; return whether one ran.

    Raises:
        FabricError: it did not end.
    """
    pid = running()
    if pid is None:
        return False
    with suppress(ProcessLookupError):  # it has just ended by itself
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOPPED_WITHIN
    while running() is not None:
        if time.monotonic() > deadline:
            raise FabricError(
                f"supervisor (pid {pid}): still running after {STOPPED_WITHIN:.0f} s; stop it by hand"
            )
        time.sleep(POLL)
    return True


async def supervise() -> None:
    """Run until a signal asks to stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    speaker_stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        agent = tasks.create_task(_keep("agent", stop))
        tasks.create_task(_keep("speaker", speaker_stop))
        await agent
        speaker_stop.set()


async def _keep(name: str, stop: asyncio.Event) -> None:
    delay = FIRST_DELAY
    while not stop.is_set():
        started = time.monotonic()
        try:
            process = await _start(name)
        except OSError as err:  # out of memory or of processes: the other child must not end for it
            log.error("process not started", process=name, error=str(err), retry_in=LONGEST_DELAY)
            await _sleep_or(stop, LONGEST_DELAY)
            continue
        log.info("process started", process=name, pid=process.pid)
        if await _ended_by_itself(process, stop):
            lived = time.monotonic() - started
            delay = FIRST_DELAY if lived > HEALTHY_AFTER else min(delay * 2, LONGEST_DELAY)
            log.warning("process ended", process=name, status=process.returncode, restart_in=round(delay, 1))
            await _sleep_or(stop, delay * random.uniform(0.8, 1.2))  # noqa: S311  jitter, not a secret
        else:
            await _terminate(process)
            log.info("process stopped", process=name, status=process.returncode)


async def _start(name: str) -> asyncio.subprocess.Process:
    # util-linux's setpriv arms PDEATHSIG before it becomes the child.
    return await asyncio.create_subprocess_exec(
        "setpriv",
        "--pdeathsig",
        "TERM",
        "--",
        sys.executable,
        *CHILDREN[name],
        stdin=asyncio.subprocess.DEVNULL,
    )


async def _ended_by_itself(process: asyncio.subprocess.Process, stop: asyncio.Event) -> bool:
    ended = asyncio.create_task(process.wait())
    asked = asyncio.create_task(stop.wait())
    await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not ended.done():
        ended.cancel()
        return False
    return not stop.is_set()


async def _terminate(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_GRACE):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _sleep_or(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


def main() -> None:
    """Entry of `python -m fabric.ops.supervise`."""
    logs.configure()
    lock = hold_lock()
    try:
        asyncio.run(supervise())
    finally:
        os.close(lock)


if __name__ == "__main__":
    main()
