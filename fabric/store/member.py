"""One member of an etcd cluster: our connection, our token, and its failures in words.

A token is a member's: etcd's simple tokens live in one process each and are renewed where they are used,
so after a fail-over the other member's copy may have expired. Calls carry it as prepared metadata; only
a call that is refused for its token pays for a new one, and is then repeated: etcd checks the token
before it does anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio

from fabric.config import Credentials
from fabric.errors import Compacted, ConfigError, Forbidden, StoreError
from fabric.store import tls
from fabric.store.stubs import rpc_pb2, rpc_pb2_grpc

T = TypeVar("T")

DEADLINE = 3.0  # seconds for one call, however long the list: each page is a call

# A member without a leader answers with an error at once, instead of never.
_LEADER = (("hasleader", "true"),)
_OPTIONS = (
    # A connection whose other end vanished is dialled again; not more often than etcd's minimum of 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's default grows to two minutes, all of which we would be stale after etcd is back.
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    # The same for names: the default asks DNS again after 30 s, if it was away when the host came up.
    ("grpc.dns_min_time_between_resolutions_ms", 3_000),
    # What one transaction wrote comes as one message; the stubs predate fragments, so none are asked for.
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    # Else a new client of this process waits out the back-off of one that was closed before it.
    ("grpc.use_local_subchannel_pool", 1),
)
_STALE_TOKEN = ("invalid auth token", "user name is empty", "revision of auth store is old")
# etcd's own refusals: it has done nothing. After any other failure a write may have happened.
_REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@dataclass(frozen=True, slots=True)
class Doing:
    """What a call is for, in the words of its error.

    `refused` is the state after etcd declined, `lost` after no answer came; `right` is what `etcdctl role
    grant-permission ROLE` would be given for it.
    """

    what: str
    refused: str
    lost: str
    right: str


class Member:
    """Make it inside a running event loop, and close it.

    Raises:
        ConfigError: the certificates are unusable.
    """

    def __init__(self, host: str, port: int, credentials: Credentials, *, secure: bool) -> None:
        self.url = f"{'https' if secure else 'http'}://{host}:{port}"
        self.metadata: tuple[tuple[str, str], ...] = _LEADER
        self._host, self._port, self._secure = host, port, secure
        self._credentials = credentials
        self._logged_in = not credentials.user
        self._login = asyncio.Lock()
        self._suspect = False
        self._closing: set[asyncio.Task[None]] = set()
        self._dial()

    def _dial(self) -> None:
        self._dialled = asyncio.get_running_loop().time()
        target = f"dns:///{self._host}:{self._port}"
        if self._secure:
            # Before reading: a file that changes meanwhile is read once more, not once too few.
            self._stamp = tls.stamp(self._credentials)
            pem = tls.read(self._credentials)
            identity = grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert)
            self._channel = grpc.aio.secure_channel(target, identity, options=_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._kv = rpc_pb2_grpc.KVStub(self._channel)
        self._auth = rpc_pb2_grpc.AuthStub(self._channel)
        self._watch = rpc_pb2_grpc.WatchStub(self._channel)

    async def close(self) -> None:
        await asyncio.gather(self._channel.close(), *self._closing)

    def suspect(self) -> None:
        """Have the next caller dial anew: a call had no answer in time, which may be its path's fault.

        One that was made before the last dialling says nothing about the connection there is now.
        """
        self._suspect = asyncio.get_running_loop().time() - self._dialled >= DEADLINE

    async def connected(self, patience: float) -> bool:
        """Wait until the connection is up, has failed, or has had `patience` seconds."""
        if self._suspect:
            self._suspect = False
            self._dial_again()
        state = self._channel.get_state(try_to_connect=True)
        if state is grpc.ChannelConnectivity.READY:
            return True
        if self._with_new_files():
            state = self._channel.get_state(try_to_connect=True)
        try:
            async with asyncio.timeout(patience):
                while state not in (
                    grpc.ChannelConnectivity.READY,
                    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
                    grpc.ChannelConnectivity.SHUTDOWN,
                ):
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
        except TimeoutError:
            return False
        return state is grpc.ChannelConnectivity.READY

    def _with_new_files(self) -> bool:
        """Dial with the certificates that are on the disk now, if they are others; a bad set is left alone."""
        if not self._secure or tls.stamp(self._credentials) == self._stamp:
            return False
        return self._dial_again()

    def _dial_again(self) -> bool:
        """Put a new connection in the place of this one, unless its certificates are a bad set."""
        old = self._channel
        try:
            self._dial()
        except ConfigError:
            return False  # `why_not` tells it
        # What is under way may end; a watch has no end, and is ended by this.
        closing = asyncio.ensure_future(old.close(DEADLINE))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        return True

    async def why_not(self) -> str:
        """Return why it cannot be connected to."""
        why = await tls.diagnose(
            self._host.strip("[]"), self._port, self._credentials if self._secure else None
        )
        return f"etcd {self.url}: {why}"

    async def ask(self, method: str, request: Any, doing: Doing) -> Any:
        """Return the answer of a KV method.

        Raises:
            StoreError: there was none; its cause is gRPC's error, or a TimeoutError.
        """
        if not self._logged_in:
            await self.log_in(doing)
        used = self.metadata
        try:
            return await self._called(method, request, doing)
        except StoreError as err:
            if not self._is_stale(err.__cause__):
                raise
        if self.metadata is used:  # nobody else has renewed it meanwhile
            self.log_out()
            await self.log_in(doing)
        return await self._called(method, request, doing)

    async def _called(self, method: str, request: Any, doing: Doing) -> Any:
        # The stub is looked up at each call: new certificates bring a new one.
        call = getattr(self._kv, method)(request, timeout=DEADLINE, metadata=self.metadata)
        return await self.answer(call, doing)

    def open_watch(self) -> Any:
        """Return a new watch stream, not yet opened; log in first."""
        return self._watch.Watch(metadata=self.metadata)

    async def log_in(self, doing: Doing) -> None:
        """Get a token if a user is configured and there is none.

        Raises:
            StoreError: wrong name or password, or no answer; what was to be done was not begun.
        """
        before = Doing(doing.what, doing.refused, f"{doing.refused}; try again", doing.right)
        await self.answer(self._fetch_token(before), before)

    async def _fetch_token(self, doing: Doing) -> None:
        # The deadline counts the wait for others too: of many callers each would else wait for all before it.
        async with asyncio.timeout(DEADLINE), self._login:
            if self._logged_in:
                return
            request = rpc_pb2.AuthenticateRequest(
                name=self._credentials.user, password=_password(self._credentials)
            )
            try:
                answer = await self.answer(self._auth.Authenticate(request), doing)
            except StoreError as err:
                if "authentication is not enabled" not in str(err):
                    raise
                self.metadata = _LEADER
            else:
                self.metadata = (*_LEADER, ("token", answer.token))
            self._logged_in = True

    def log_out(self) -> None:
        """Let the next call get a new token."""
        self._logged_in = not self._credentials.user

    async def answer(self, call: Awaitable[T], doing: Doing) -> T:
        """Await `call`, and raise what went wrong as a StoreError that says in which state we are."""
        try:
            return await call
        except asyncio.CancelledError:
            # Closing a channel cancels its calls; only we know that nobody has cancelled us.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise StoreError(
                f"{doing.what}: etcd {self.url}: the connection was closed on our side; {doing.lost}"
            ) from None
        except TimeoutError as err:
            raise StoreError(
                f"{doing.what}: etcd {self.url}: no answer within {DEADLINE:g} s; {doing.lost}"
            ) from err
        except grpc.aio.AioRpcError as err:
            details = err.details() or ""
            kind = Compacted if "has been compacted" in details else StoreError
            if err.code() is grpc.StatusCode.PERMISSION_DENIED:
                kind = Forbidden
            state = doing.refused if err.code() in _REFUSALS else doing.lost
            raise kind(self.told(details, doing, f" [{err.code().name}]; {state}")) from err

    def told(self, details: str, doing: Doing, rest: str) -> str:
        """Return etcd's `details` in words that say what to do; `rest` where there is nothing to add."""
        where, user = f"{doing.what}: etcd {self.url}", self._credentials.user
        if "permission denied" in details:
            return (
                f"{where}: {self._who()} is refused by role: permission denied; {doing.refused}; give a role of that "
                f"user the right: etcdctl role grant-permission ROLE {doing.right}"
            )
        if "user name is empty" in details and not user:
            return (
                f"{where}: asks for a user, and none is configured; {doing.refused}; set etcd_user and etcd_password "
                "(ETCD_USERNAME, ETCD_PASSWORD)"
            )
        if "authentication failed" in details:
            return (
                f'{where}: user "{user}": wrong name or password; {doing.refused}; correct '
                f"{self._credentials.password_file or 'etcd_user and etcd_password (ETCD_USERNAME, ETCD_PASSWORD)'}"
            )
        if "request is too large" in details or "message larger than max" in details:
            rest += "; etcd takes 1.5 MB at once (its --max-request-bytes): make the object smaller, or split it in two"
        if "database space exceeded" in details:
            rest += "; etcd is full: compact and defragment it, then run `etcdctl alarm disarm`"
        return f"{where}: {details}{rest}"

    def _who(self) -> str:
        if self._credentials.user:
            return f'user "{self._credentials.user}"'
        if self._credentials.cert:
            return "the user that our client certificate names"
        return "a client without a user"

    def _is_stale(self, cause: BaseException | None) -> bool:
        return (
            bool(self._credentials.user)
            and isinstance(cause, grpc.aio.AioRpcError)
            and any(text in (cause.details() or "") for text in _STALE_TOKEN)
        )


def _password(credentials: Credentials) -> str:
    """Read anew each time, so that a changed password needs no restart; a final newline is the editor's."""
    if not credentials.password_file:
        return credentials.password
    try:
        return Path(credentials.password_file).read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as err:
        why = err.strerror if isinstance(err, OSError) else "is not UTF-8"
        raise StoreError(
            f"etcd_password_file: {credentials.password_file}: {why}; nothing was sent; mend it"
        ) from err
