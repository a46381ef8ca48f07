"""The real datastore: etcd's gRPC API as a KeyValueStore.

etcd3's generated stubs on asyncio channels; etcd3's own client is not used, because after an error
its watch dials again without pause and cannot be cancelled.

One channel an endpoint, one endpoint in use. The others are tried when it cannot be reached, or when
a call through it times out or finds it without a leader; that call itself is not repeated, for only
its caller knows whether a write may run twice. (One gRPC channel over all addresses would take
neither host names nor a member that is frozen or cut off but keeps its connection.)

A watch is alive while it speaks. When it is silent a linearizable read goes over the same connection,
so a frozen etcd is noticed after SILENCE + DEADLINE seconds; TCP and keepalive alone take far longer.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc
import grpc.aio

from fabric.errors import Compacted, ConfigError, Conflict, StoreError
from fabric.store.kv import Changes, Delete, Guard, KeyValue, Listing, Put, Txn

with warnings.catch_warnings():
    # The stubs build their descriptors in a way that protobuf has deprecated and still supports.
    warnings.simplefilter("ignore", DeprecationWarning)
    from etcd3.etcdrpc import kv_pb2, rpc_pb2, rpc_pb2_grpc

T = TypeVar("T")

DEADLINE = 3.0  # seconds for one call, however long the list: each page is a call
CONNECT = 1.0  # seconds for one endpoint to take a connection before the next one is tried
SILENCE = 3.0  # seconds without a word on a watch before etcd is asked whether it is there
PAGE = 500  # keys

# A member without a leader answers with an error at once, instead of never.
_METADATA = (("hasleader", "true"),)
_OPTIONS = (
    # A connection whose other end vanished is dialled again; not more often than etcd's minimum of 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's default grows to two minutes, all of which we would be stale after etcd is back.
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    # What one transaction wrote comes as one message; the stubs predate fragments, so none are asked for.
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
)
_TRY_ANOTHER = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
_UNTOUCHED = "nothing was read; try again"
_UNKNOWN = "whether it was written is unknown; read the keys again before deciding"
_WATCH_OVER = "changes since then are unseen; list again"


@dataclass(slots=True)
class _Endpoint:
    url: str
    channel: Any
    kv: Any
    watch: Any


class Etcd:
    """A KeyValueStore on one etcd cluster. Make it inside a running event loop, and close it.

    Args:
        endpoints: the cluster's members, `http://host:port` or `host:port`, in order of preference.

    Raises:
        ConfigError: an endpoint cannot be understood.
    """

    def __init__(self, endpoints: Sequence[str]) -> None:
        if not endpoints:
            raise ConfigError("etcd endpoints: the list is empty; name at least one http://host:2379")
        self._endpoints = [_endpoint(url) for url in endpoints]
        self._current = self._endpoints[0]

    async def get(self, key: str) -> KeyValue | None:
        request = rpc_pb2.RangeRequest(key=_bytes(key))
        response = await self._call("Range", request, f"get of {key}", _UNTOUCHED)
        return _key_value(response.kvs[0]) if response.kvs else None

    async def list(self, prefix: str) -> Listing:
        request = rpc_pb2.RangeRequest(**_below(prefix), limit=PAGE)
        items: list[KeyValue] = []
        while True:
            response = await self._call("Range", request, f"list of {prefix}", _UNTOUCHED)
            items += map(_key_value, response.kvs)
            # Later pages ask for the revision of the first, so that together they are one moment.
            request.revision = request.revision or response.header.revision
            if not response.more:
                return Listing(request.revision, tuple(items))
            request.key = response.kvs[-1].key + b"\0"

    async def commit(self, txn: Txn) -> int:
        request = rpc_pb2.TxnRequest(
            compare=[_compare(guard) for guard in txn.guards],
            success=[_operation(op) for op in txn.ops],
            failure=[_read_guarded(guard) for guard in txn.guards],
        )
        what = f"commit of {', '.join(op.key for op in txn.ops) or 'no operation'}"
        response = await self._call("Txn", request, what, _UNKNOWN)
        if not response.succeeded:
            raise _conflict(what, txn.guards, response)
        return int(response.header.revision)

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Changes, None]:
        stream = _Stream(await self._choose(), f"watch of {prefix} after revision {after}")
        try:
            with self._leaving(stream.endpoint):
                await stream.open(prefix, after)
            while True:
                with self._leaving(stream.endpoint):
                    events = await stream.read()
                for revision, group in groupby(events, key=lambda event: int(event.kv.mod_revision)):
                    yield _changes(revision, group)
        finally:
            stream.cancel()

    async def close(self) -> None:
        for endpoint in self._endpoints:
            await endpoint.channel.close()

    async def _call(self, method: str, request: Any, what: str, state: str) -> Any:
        endpoint = await self._choose()
        with self._leaving(endpoint):
            return await _ask(endpoint, method, request, what, state)

    async def _choose(self) -> _Endpoint:
        """Return the first endpoint that takes a connection, from the current one on."""
        start = self._endpoints.index(self._current)
        for endpoint in self._endpoints[start:] + self._endpoints[:start]:
            if await _connected(endpoint.channel):
                self._current = endpoint
                break
        # With none connected the call goes to the current one: gRPC's error says what is wrong.
        return self._current

    @contextmanager
    def _leaving(self, endpoint: _Endpoint) -> Iterator[None]:
        """Start the next call at another endpoint when this one fails through the member's fault."""
        try:
            yield
        except StoreError as err:
            cause = err.__cause__
            failed = isinstance(cause, TimeoutError) or (
                isinstance(cause, grpc.aio.AioRpcError) and cause.code() in _TRY_ANOTHER
            )
            if failed and self._current is endpoint:
                following = self._endpoints.index(endpoint) + 1
                self._current = self._endpoints[following % len(self._endpoints)]
            raise


class _Stream:
    """One watch on one endpoint: reads what it sends, and notices when that has died."""

    def __init__(self, endpoint: _Endpoint, what: str) -> None:
        self.endpoint = endpoint
        self._what = what
        self._call = endpoint.watch.Watch(metadata=_METADATA)
        self._reading: asyncio.Future[Any] | None = None

    async def open(self, prefix: str, after: int) -> None:
        """Return once etcd holds every event after `after` for us.

        The read at `after` raises Compacted when that revision is gone. etcd itself refuses only a
        watch that *starts* below the compacted revision, and one that starts at it has silently lost
        the deletions of that revision.
        """
        create = rpc_pb2.WatchCreateRequest(**_below(prefix), start_revision=after + 1, progress_notify=True)
        created = self._open(rpc_pb2.WatchRequest(create_request=create))
        self._checked(await _answer(created, self.endpoint, self._what, _WATCH_OVER))
        await self._probe(prefix, revision=after)

    async def _open(self, request: Any) -> Any:
        async with asyncio.timeout(DEADLINE):
            await self._call.write(request)
            return await self._call.read()

    async def read(self) -> Sequence[Any]:
        """Return the next events, none at all for a mere sign of life."""
        # A task of its own, since giving up a read would end the stream; and no TaskGroup, since one
        # that is open across the generator's yield would cancel the reader's code, not ours.
        self._reading = self._reading or asyncio.ensure_future(self._call.read())
        await asyncio.wait({self._reading}, timeout=SILENCE)
        if not self._reading.done():
            await self._probe("/", revision=0)
            return ()
        reading, self._reading = self._reading, None
        response = self._checked(await _answer(reading, self.endpoint, self._what, _WATCH_OVER))
        return response.events  # type: ignore[no-any-return]

    async def _probe(self, key: str, revision: int) -> None:
        request = rpc_pb2.RangeRequest(key=_bytes(key), count_only=True, revision=revision)
        await _ask(self.endpoint, "Range", request, self._what, _WATCH_OVER)

    def _checked(self, response: Any) -> Any:
        if response is grpc.aio.EOF:
            raise StoreError(f"{self._what}: etcd {self.endpoint.url} ended the stream; {_WATCH_OVER}")
        if response.canceled:
            said = response.cancel_reason or f"compacted up to revision {response.compact_revision}"
            kind = Compacted if response.compact_revision else StoreError
            raise kind(f"{self._what}: etcd {self.endpoint.url} cancelled it: {said}; {_WATCH_OVER}")
        return response

    def cancel(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self._call.cancel()


def _endpoint(url: str) -> _Endpoint:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.netloc or parts.path.strip("/"):
        raise ConfigError(f"etcd endpoint {url!r}: expected http://host:port; nothing was contacted")
    channel = grpc.aio.insecure_channel(f"dns:///{parts.netloc}", options=_OPTIONS)
    return _Endpoint(url, channel, rpc_pb2_grpc.KVStub(channel), rpc_pb2_grpc.WatchStub(channel))


async def _connected(channel: Any) -> bool:
    """Wait until the channel is connected, has failed to, or has had its time."""
    state = channel.get_state(try_to_connect=True)
    try:
        async with asyncio.timeout(CONNECT):
            while state not in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE):
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
    except TimeoutError:
        return False
    return state is grpc.ChannelConnectivity.READY


async def _ask(endpoint: _Endpoint, method: str, request: Any, what: str, state: str) -> Any:
    call = getattr(endpoint.kv, method)(request, timeout=DEADLINE, metadata=_METADATA)
    return await _answer(call, endpoint, what, state)


async def _answer(call: Awaitable[T], endpoint: _Endpoint, what: str, state: str) -> T:
    """Await `call`, and raise what went wrong as a StoreError that ends in `state`."""
    where = f"{what}: etcd {endpoint.url}"
    try:
        return await call
    except asyncio.CancelledError:
        # Closing a channel cancels its calls; only we know that nobody has cancelled us.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise StoreError(f"{where}: the connection was closed on our side; {state}") from None
    except TimeoutError as err:
        raise StoreError(f"{where}: no answer within {DEADLINE:g} s; {state}") from err
    except grpc.aio.AioRpcError as err:
        kind = Compacted if "has been compacted" in (err.details() or "") else StoreError
        raise kind(f"{where}: {err.details()} [{err.code().name}]; {state}") from err


def _conflict(what: str, guards: Sequence[Guard], response: Any) -> Conflict:
    found = [sum(kv.mod_revision for kv in r.response_range.kvs) for r in response.responses]
    wrong = [
        f"{guard.key} is at revision {revision}, not {guard.revision}"
        for guard, revision in zip(guards, found, strict=True)
        if revision != guard.revision
    ]
    return Conflict(f"{what}: {'; '.join(wrong)} (0: absent); nothing was written; read again, decide again")


# etcd's keys and values are bytes. What is not UTF-8 is not ours, but must pass through unchanged.


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _below(prefix: str) -> dict[str, bytes]:
    """Return the range of every key that starts with `prefix`: up to it with its last byte plus one."""
    key = _bytes(prefix)
    return {"key": key, "range_end": key[:-1] + bytes([key[-1] + 1])}


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(_text(kv.key), _text(kv.value), int(kv.mod_revision))


def _compare(guard: Guard) -> Any:
    return rpc_pb2.Compare(
        result=rpc_pb2.Compare.EQUAL,
        target=rpc_pb2.Compare.MOD,
        key=_bytes(guard.key),
        mod_revision=guard.revision,
    )


def _read_guarded(guard: Guard) -> Any:
    return rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=_bytes(guard.key), keys_only=True))


def _operation(op: Put | Delete) -> Any:
    match op:
        case Put(key, value):
            return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=_bytes(key), value=_bytes(value)))
        case Delete(key):
            return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=_bytes(key)))


def _changes(revision: int, events: Iterator[Any]) -> Changes:
    puts: list[KeyValue] = []
    deletes: list[str] = []
    for event in events:
        if event.type == kv_pb2.Event.PUT:
            puts.append(_key_value(event.kv))
        else:
            deletes.append(_text(event.kv.key))
    return Changes(revision, tuple(puts), tuple(deletes))
