"""The agent's end of the speaker's unix socket: `SpeakerClient`, the real `Speaker` of the seam."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from bgp.speaker.codec import decode, encode
from bgp.speaker.rewanted import Rewanted, difference
from bgp.speaker.seam import Event, Reset, Wanted
from fabric.errors import SpeakerError

LINE_LIMIT = 1 << 28  # a snapshot of 100,000 paths is one line of some 20 MB
ANSWER_SECONDS = 10.0  # to take what we write; it never blocks, so longer means it is stopped


class SpeakerClient:
    """One connection; after an error make another, whose first event is a whole snapshot again."""

    def __init__(self, path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._path, self._reader, self._writer = path, reader, writer
        self._wanted: Wanted | None = None  # the last one handed down here

    @classmethod
    async def connect(cls, path: Path) -> SpeakerClient:
        """Raises SpeakerError when no speaker listens at `path`."""
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=LINE_LIMIT)
        except OSError as err:
            raise SpeakerError(
                f"connect to the BGP speaker at {path}: {err.strerror}; sessions and routes stand as they "
                "were; start it with: python -m bgp.speaker"
            ) from err
        return cls(path, reader, writer)

    async def want(self, wanted: Wanted) -> None:
        """Hand down the whole desired state; returns when the speaker's socket has taken it."""
        before, self._wanted = self._wanted, wanted
        message = wanted if before is None else difference(before, wanted)
        await self._say(message, "hand down the wanted sessions")

    async def reset(self, reset: Reset) -> None:
        """End one session; returns when the speaker's socket has taken the order."""
        await self._say(reset, f"reset the session with {reset.peer}")

    async def _say(self, message: Wanted | Rewanted | Reset, what: str) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                self._writer.write(encode(message))
                await self._writer.drain()
        except (OSError, TimeoutError) as err:
            raise self._ended(what, err) from err

    async def events(self) -> AsyncIterator[Event]:
        """Yield a Snapshot, then deltas, until the connection ends."""
        while True:
            try:
                line = await self._reader.readline()
            except OSError as err:
                raise self._ended("read events", err) from err
            if not line.endswith(b"\n"):
                raise self._ended("read events", EOFError("connection closed"))
            message = decode(line)
            if isinstance(message, Wanted | Rewanted | Reset):
                kind = type(message).__name__
                raise SpeakerError(f"read events from {self._path}: got a {kind}, which only goes down")
            yield message

    async def close(self) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return  # it was broken before: closed is what we wanted

    def _ended(self, what: str, err: Exception) -> SpeakerError:
        return SpeakerError(
            f"{what}, speaker at {self._path}: {err or type(err).__name__}; it goes on as it was told last; "
            "connect again and hand down what is wanted"
        )
