"""Touches the speaker: hears what it says of sessions and paths, and tells it what is wanted and which sessions end.

One connection at a time. While there is none, the routes stand as they are.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import structlog

from bgp.rib import Address
from bgp.speaker.client import SpeakerClient
from bgp.speaker.seam import Reset, SessionChanged, Snapshot, Speaker, Update, Wanted
from fabric.agent import failover, ribs
from fabric.agent.desired import Desired, joined
from fabric.agent.state import State
from fabric.config import SPEAKER_SOCKET
from fabric.errors import SpeakerError

log = structlog.get_logger()

SETTLE = 120.0  # seconds a silent peer may hold deletions; Calico's restart time
RECONNECT = 0.2  # seconds between attempts to reach the speaker


@dataclass
class SpeakerLink:
    """The connection to the speaker while there is one, and what was handed down on it.

    `over` are the sessions that were ended because their link has lost its carrier.
    """

    speaker: Speaker | None = None
    told: Wanted | None = None
    over: frozenset[Address] = frozenset()


async def follow(state: State, link: SpeakerLink) -> None:
    """Keep one connection to the speaker, and fold what it says, for ever."""
    while True:
        try:
            speaker = await SpeakerClient.connect(SPEAKER_SOCKET)
        except SpeakerError:
            await asyncio.sleep(RECONNECT)
            continue
        try:
            await listen(state, link, speaker)
        except SpeakerError as err:
            log.warning("speaker lost; routes stand as they are", error=str(err))
        finally:
            link.speaker = link.told = None
            await speaker.close()
        state.update(ribs=ribs.lost(state.ribs, time.time()))


async def listen(state: State, link: SpeakerLink, speaker: Speaker) -> None:
    """Fold what is heard on one connection, until that ends with a SpeakerError."""
    async for event in speaker.events():
        heard = ribs.fold(state.ribs, event, asyncio.get_running_loop().time(), SETTLE)
        match event:
            case Snapshot(wanted=wanted):
                link.speaker, link.told, link.over = speaker, wanted, frozenset()
                log.info("speaker connected", sessions=len(event.sessions))
            case Update():
                state.reaction.heard(time.monotonic())
            case SessionChanged(peer, now):
                before = state.ribs.sessions.get(peer)
                if before is None or (before.state, before.reason) != (now.state, now.reason):
                    log.info("session changed", peer=str(peer), state=str(now.state), reason=now.reason)
        state.update(ribs=heard)


async def hand_down(desired: Desired, link: SpeakerLink) -> None:
    """Tell the speaker what changed. Before all that the datastore wants is known, nothing is withdrawn."""
    speaker, wanted = link.speaker, desired.wanted
    if not desired.whole and link.told:
        wanted = joined(link.told, wanted)
    if speaker is None or link.told == wanted:
        return
    try:
        await speaker.want(wanted)
    except SpeakerError as err:
        log.warning("speaker did not take what is wanted; it will after it is back", error=str(err))
        return
    if link.speaker is not speaker:
        return  # lost meanwhile: the next one has not been told
    link.told = wanted
    log.info("speaker told", sessions=len(wanted.sessions), announced=sum(map(len, wanted.announce.values())))


async def fail_over(state: State, link: SpeakerLink) -> None:
    """End the sessions whose link has lost its carrier."""
    if (speaker := link.speaker) is None:
        return
    found = failover.ending(state.host.here, state.desired.peerings.peerings, state.ribs, link.over)
    link.over = found.over
    for peer in sorted(found.due, key=str):
        log.warning("session ended: its link has lost its carrier", peer=str(peer))
        try:
            await speaker.reset(Reset(peer))
        except SpeakerError as err:
            link.over -= {peer}
            log.warning("speaker did not end a session; its hold timer will", peer=str(peer), error=str(err))
