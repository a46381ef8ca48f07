"""Touches the certificate files of the etcd client, and asks an endpoint that cannot be used what is wrong.

gRPC says of most failures no more than that the socket was closed; a handshake of our own says which
certificate was refused, by whom and why.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from fabric.config import Credentials
from fabric.errors import ConfigError

PATIENCE = 2.0  # seconds for connection, handshake and first answer together
# HTTP/2's connection preface and an empty SETTINGS frame (RFC 9113 §3.4): whoever speaks it answers.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_BEGIN = "-----BEGIN"  # of anything in PEM
_TLS_ALERT = b"\x15\x03"
_NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"}
_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH = 62, 64  # OpenSSL's X509_V_ERR_…

_NOT_TLS = "does not speak TLS; write http://, and take the certificates back, if that is meant"

Stamp: TypeAlias = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Pem:
    """What the files hold, None where there is none."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None


def read(credentials: Credentials) -> Pem:
    """Return CA, certificate and key, known to fit each other.

    Raises:
        ConfigError: one cannot be read, is not PEM, or the key is another certificate's.
    """
    pem = Pem(
        _bytes(credentials.ca, "etcd_ca"),
        _bytes(credentials.cert, "etcd_cert"),
        _bytes(credentials.key, "etcd_key"),
    )
    _checked(pem, credentials)
    return pem


def stamp(credentials: Credentials) -> Stamp:
    """Return what changes when one of the files is replaced or rewritten."""
    found = []
    for value in (credentials.ca, credentials.cert, credentials.key):
        try:
            at = None if not value or _inline(value) else Path(value).stat()
        except OSError:
            at = None
        found.append(at and (at.st_ino, at.st_mtime_ns, at.st_size))
    return tuple(found)


async def diagnose(host: str, port: int, credentials: Credentials | None) -> str:
    """Return why no connection to `host` comes about, and what to do; with TLS where `credentials` is not None."""
    context = None
    try:
        if credentials:
            await _reached(host, port)  # an outage shall not cost the reading of all the public CAs
            context = _context(read(credentials), credentials)
        answer = await _first_answer(host, port, context)
    except ConfigError as err:
        return str(err)
    except ssl.SSLError as err:
        return _explained(err, host, credentials)
    except TimeoutError:
        return f"does not answer within {PATIENCE:g} s"
    except socket.gaierror as err:
        return f"{host} has no address: {err.strerror}"
    except ConnectionResetError:  # a close with bytes of ours not read yet
        answer = b""
    except OSError as err:
        if why := os.strerror(err.errno) if err.errno else str(err):
            return why
        answer = b""
    if answer.startswith(_TLS_ALERT) or (
        not answer and not context and await _answers(host, port, _anybody())
    ):
        return "speaks TLS and is named without; write https:// and name its CA by etcd_ca"
    if not answer and context and await _answers(host, port, None):
        return _NOT_TLS
    return "answers now, and did not a moment ago" if answer else "closed the connection"


async def _reached(host: str, port: int) -> None:
    async with asyncio.timeout(PATIENCE):
        _, writer = await asyncio.open_connection(host, port)
        writer.transport.abort()


async def _first_answer(host: str, port: int, context: ssl.SSLContext | None) -> bytes:
    """Return what it says to HTTP/2; a client certificate is refused no sooner than that (TLS 1.3)."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        try:
            writer.write(_PREFACE)
            return await reader.read(9)
        finally:
            writer.transport.abort()


async def _answers(host: str, port: int, context: ssl.SSLContext | None) -> bool:
    try:
        return bool(await _first_answer(host, port, context))
    except ssl.SSLError as err:  # refusing us is an answer too
        return err.reason not in _NO_TLS
    except (OSError, TimeoutError):
        return False


def _anybody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def _explained(err: ssl.SSLError, host: str, credentials: Credentials | None) -> str:
    files = credentials or Credentials()
    reason = err.reason or str(err)
    if isinstance(err, ssl.SSLCertVerificationError):
        why = err.verify_message.rstrip(".")
        if err.verify_code in (_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH):
            return f"TLS: its certificate is not for {host}: {why}; name it as its certificate does"
        return (
            f"TLS: its certificate is not trusted: {why}; compare it with the CA of etcd_ca, "
            f"{_shown(files.ca) or 'which is not set'}"
        )
    if "ALERT" in reason and ("CERT" in reason or "UNKNOWN_CA" in reason):
        said = reason.partition("ALERT_")[2].replace("_", " ").lower()
        if not files.cert:
            return f"TLS: it wants a client certificate ({said}), and etcd_cert and etcd_key are not set; set them"
        return (
            f"TLS: it refuses our client certificate {_shown(files.cert)} ({said}): expired, or signed by a CA it does "
            "not trust; renew it"
        )
    if reason in _NO_TLS:
        return _NOT_TLS
    return f"TLS: the handshake failed: {reason}"


def _checked(pem: Pem, credentials: Credentials) -> None:
    if pem.ca or pem.cert:
        _context(pem, credentials)


def _context(pem: Pem, credentials: Credentials) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=pem.ca.decode("ascii") if pem.ca else None)
    except (ssl.SSLError, ValueError) as err:
        raise ConfigError(_unusable("etcd_ca", credentials.ca, "holds no certificate in PEM")) from err
    if pem.cert and pem.key:
        _load_pair(context, pem.cert, pem.key, credentials)
    context.set_alpn_protocols(["h2"])
    return context


def _load_pair(context: ssl.SSLContext, cert: bytes, key: bytes, credentials: Credentials) -> None:
    with ExitStack() as stack:
        paths = []
        for content in (cert, key):  # ssl takes paths alone
            file = stack.enter_context(os.fdopen(os.memfd_create("pem"), "wb"))
            file.write(content)
            file.flush()
            paths.append(f"/proc/self/fd/{file.fileno()}")
        try:
            context.load_cert_chain(paths[0], paths[1], password=_no_password)
        except ssl.SSLError as err:
            if err.reason == "KEY_VALUES_MISMATCH":
                why = f"is not the key of the certificate {_shown(credentials.cert)}"
                raise ConfigError(_unusable("etcd_key", credentials.key, why)) from err
            names = f"{_shown(credentials.cert)} and {_shown(credentials.key)}"
            why = f" ({err.reason.replace('_', ' ').lower()})" if err.reason else ""
            raise ConfigError(
                f"etcd_cert and etcd_key: {names} are no certificate and key in PEM, without a passphrase{why}; "
                "nothing was sent; mend them"
            ) from err


def _no_password() -> str:
    # An empty one is refused by OpenSSL; without this function it would ask at the terminal.
    return ""


def _bytes(value: str, setting: str) -> bytes | None:
    if not value:
        return None
    if _inline(value):
        return value.encode()
    try:
        content = Path(value).read_bytes()
    except OSError as err:
        raise ConfigError(_unusable(setting, value, f"cannot be read: {err.strerror}")) from err
    # An empty file may be one that is being written. As a CA it would stand for all the public ones, and for a
    # key gRPC aborts the process.
    if _BEGIN.encode() not in content:
        raise ConfigError(_unusable(setting, value, "holds nothing in PEM"))
    return content


def _unusable(setting: str, value: str, why: str) -> str:
    return f"{setting}: {_shown(value)} {why}; nothing was sent; mend it"


def _inline(value: str) -> bool:
    return _BEGIN in value


def _shown(value: str) -> str:
    return "(the text in the configuration)" if _inline(value) else value
