"""Ask this node's agent, over HTTP on its unix socket.

The standard library's client and nothing else: the command line starts fast by importing little.
"""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from fabric import errors
from fabric.config import AGENT_SOCKET
from fabric.errors import AgentError, FabricError


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def call(
    method: str, path: str, body: object = None, *, timeout: float = 30.0, at: Path = AGENT_SOCKET
) -> Any:
    """Return the agent's answer, decoded.

    Args:
        method, path: as in docs/reference/api.md, for example "GET", "/v1/status".
        body: sent as JSON where it is not None.
        timeout: seconds for the whole answer.

    Raises:
        AgentError: no agent answered; what was asked for may or may not have been done.
        FabricError: the agent's own refusal, of the class it had there.
    """
    text = fetch(method, path, body, timeout=timeout, at=at)
    return json.loads(text) if text else None


def fetch(
    method: str, path: str, body: object = None, *, timeout: float = 30.0, at: Path = AGENT_SOCKET
) -> str:
    """Return the answer's text as it came; otherwise as `call`."""
    connection = _UnixConnection(at, timeout)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        text = response.read().decode()
    except (FileNotFoundError, ConnectionRefusedError) as err:
        raise AgentError(
            f"agent at {at}: not running ({err.strerror}); nothing was done; start it with `fabricctl node start`, "
            "or on a host that is no node yet with `fabricctl node join`"
        ) from err
    except PermissionError as err:
        raise AgentError(f"agent at {at}: permission denied; nothing was done; run this as root") from err
    except (OSError, http.client.HTTPException) as err:
        raise AgentError(
            f"agent at {at}: no answer to {method} {path} ({err or type(err).__name__}); it may or may not have been "
            "done; look at `fabricctl node status` and ask again"
        ) from err
    finally:
        connection.close()
    if response.status >= 400:
        raise _refusal(text)
    return text


def _refusal(text: str) -> FabricError:
    """The agent names the class of its error, so that callers tell a taken address from a full pool."""
    try:
        answer = json.loads(text)
        name, message = answer["error"], answer["message"]
    except (ValueError, KeyError, TypeError):
        return AgentError(f"agent: unexpected answer: {text[:200]}")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, FabricError) and kind is not errors.DataplaneError:
        return kind(message)
    return FabricError(message)
