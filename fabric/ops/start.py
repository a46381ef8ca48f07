"""Start this host's processes under the supervisor: away from this terminal or attached to it, until they work."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Set
from typing import Any

from fabric import config as configuration
from fabric.api import client
from fabric.config import Config
from fabric.errors import AgentError, ConfigError, FabricError, Taken
from fabric.ops import check, supervise

READY_WITHIN = 30.0  # seconds for agent and speaker to start and read everything
ESTABLISHED_WITHIN = 15.0  # seconds for the sessions asked for to come up
POLL = 0.1


def start(config: Config, *, foreground: bool = False) -> subprocess.Popen[bytes] | None:
    """Start the supervisor and return it; None where one runs already with this configuration.

    One with another configuration is replaced, under graceful restart. In the foreground it shares our
    output and our death; else it leaves this terminal, and logs to LOG, the last run's log kept beside it.

    Raises:
        Taken: the foreground was asked for, and one runs already.
    """
    pid = supervise.running()
    if pid is not None and foreground:
        raise Taken(
            f"supervisor: runs already as pid {pid}; it was left alone; stop it to run in the foreground"
        )
    if pid is not None and configuration.saved() == config:
        return None
    supervise.stop()
    configuration.save(config)
    command = [sys.executable, "-m", "fabric.ops.supervise"]
    if foreground:
        return subprocess.Popen(["setpriv", "--pdeathsig", "TERM", "--", *command], stdin=subprocess.DEVNULL)
    log = configuration.LOG
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def joined(config: Config) -> Config:
    """Return `config` if this host is a node.

    Raises:
        ConfigError: it is none, or this is not root; nothing was changed.
    """
    check.need_root()
    if not config.node:
        raise ConfigError("this host is not a node; nothing was changed; `fabricctl node join` makes it one")
    return config


def wait_working(process: subprocess.Popen[bytes] | None) -> dict[str, Any]:
    """Return the agent's status once it is ready, or does what it last read of a datastore that is away or locked.

    Raises:
        FabricError: it does none of these; the message has the last lines of its log.
    """

    def works(status: dict[str, Any]) -> bool:
        store = status["datastore"]
        return bool(status["locally_ready"] or store["stale_since"] or store["locked"])

    return _wait(process, works)


def wait_ready(process: subprocess.Popen[bytes] | None, peers: Set[str]) -> dict[str, Any]:
    """Return the agent's status once it is ready, its sessions, those to `peers` among them, up or out of time.

    Those of the mesh are not waited for: a node that is down would hold up every other one's join. Where it is
    not ready after that, it is for want of a required session, or of a tunnel.

    Raises:
        FabricError: its processes did not become ready; the message has the last lines of its log.
    """
    status = _wait(process, lambda status: bool(status["ready"] or status["locally_ready"]))
    deadline = time.monotonic() + ESTABLISHED_WITHIN
    while not (status["ready"] and _sessions_up(status, peers)) and time.monotonic() < deadline:
        time.sleep(POLL)
        status = _status() or status
    return status


def _wait(
    process: subprocess.Popen[bytes] | None, enough: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    deadline = time.monotonic() + READY_WITHIN
    while not (status := _status()) or not enough(status):
        if (process and process.poll() is not None) or time.monotonic() > deadline:
            raise FabricError(
                "node: its processes did not become ready; they are left as they are; the end of "
                f"{configuration.LOG}:\n{_log_tail()}"
            )
        time.sleep(POLL)
    return status


def _sessions_up(status: dict[str, Any], peers: Set[str]) -> bool:
    up = {s["peer"]: s["state"] == "Established" for s in status["sessions"] if s["type"] != "NodeMesh"}
    return peers <= up.keys() and all(up.values())


def _status() -> dict[str, Any] | None:
    try:
        status: dict[str, Any] = client.call("GET", "/v1/status", timeout=5)
    except AgentError:
        return None
    return status


def _log_tail(lines: int = 8) -> str:
    try:
        return "\n".join(
            configuration.LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        )
    except FileNotFoundError:
        return "(no log)"
