"""The real datastore: etcd's gRPC API as a KeyValueStore.

etcd3's generated stubs on asyncio channels; etcd3's own client is not used, because after an error
its watch dials again without pause and cannot be cancelled.

One channel a member, one member in use. The others are tried when it cannot be reached, or when
a call through it times out or finds it without a leader. A read is then repeated there, and a write only
if it was not begun: its caller alone knows whether it may run twice. (One gRPC channel over all addresses would take
neither host names nor a member that is frozen or cut off but keeps its connection.)

A watch is alive while it speaks. When it is silent a linearizable read goes over the same connection,
so a frozen etcd is noticed after SILENCE + DEADLINE seconds; TCP and keepalive alone take far longer. A
connection that was silent is not used again: a path that loses its large packets never answers on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import grpc
import grpc.aio

from fabric import config as configuration
from fabric.config import NO_CREDENTIALS, Config, Credentials
from fabric.errors import Compacted, ConfigError, Conflict, StoreError
from fabric.store.kv import Changes, Delete, Guard, KeyValue, Listing, Put, Txn, Unwritten
from fabric.store.member import DEADLINE, Doing, Member
from fabric.store.stubs import kv_pb2, rpc_pb2

CONNECT = 1.0  # seconds for one member to take a connection before the next one is tried
SILENCE = 3.0  # seconds without a word on a watch before etcd is asked whether it is there
PAGE = 500  # keys

_NO_LEADER = "etcdserver: no leader"  # found before anything is done, thanks to `hasleader`


def connect(config: Config) -> Etcd:
    """Return the cluster that `config` names. Call it inside a running event loop, and close the result.

    Raises:
        ConfigError: it names none, or its certificates are unusable; nothing was sent.
    """
    return Etcd(configuration.required(config).etcd, config.credentials)


class Etcd:
    """A KeyValueStore on one etcd cluster. Make it inside a running event loop, and close it.

    Args:
        endpoints: the cluster's members in order of preference: `http://host:port`, `host:port`, or for TLS
            `https://host:port`.
        credentials: CA, client certificate and user, where etcd asks for them.

    Raises:
        ConfigError: an endpoint cannot be understood, or the certificates are unusable.
    """

    def __init__(self, endpoints: Sequence[str], credentials: Credentials = NO_CREDENTIALS) -> None:
        if not endpoints:
            raise ConfigError("etcd endpoints: the list is empty; name at least one http://host:2379")
        self._members = [_member(url, credentials) for url in endpoints]
        self._current = self._members[0]

    async def get(self, key: str) -> KeyValue | None:
        request = rpc_pb2.RangeRequest(key=_bytes(key))
        response = await self._call("Range", request, _reading(f"get of {key}", f"read {key}"))
        return _key_value(response.kvs[0]) if response.kvs else None

    async def list(self, prefix: str) -> Listing:
        request = rpc_pb2.RangeRequest(**_below(prefix), limit=PAGE)
        doing = _reading(f"list of {prefix}", f"--prefix=true read {prefix}")
        items: list[KeyValue] = []
        while True:
            response = await self._call("Range", request, doing)
            items += map(_key_value, response.kvs)
            # Later pages ask for the revision of the first, so that together they are one moment.
            request.revision = request.revision or response.header.revision
            if not response.more:
                return Listing(request.revision, tuple(items))
            request.key = response.kvs[-1].key + b"\0"

    async def commit(self, txn: Txn) -> int:
        request = rpc_pb2.TxnRequest(
            compare=[*map(_compare, txn.guards), *map(_compare_all, txn.unwritten)],
            success=[_operation(op) for op in txn.ops],
            failure=[_read_guarded(guard) for guard in txn.guards],
        )
        doing = _writing(txn)
        response = await self._call("Txn", request, doing)
        if not response.succeeded:
            raise _conflict(doing.what, txn, response)
        return int(response.header.revision)

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Changes, None]:
        doing = _watching(prefix, after)
        member = await self._choose(doing)
        with self._leaving(member):
            await member.log_in(doing)
        stream = _Stream(member, prefix, doing)
        try:
            with self._leaving(member):
                await stream.open(after)
            while True:
                with self._leaving(member):
                    events = await stream.read()
                for revision, group in groupby(events, key=lambda event: int(event.kv.mod_revision)):
                    yield _changes(revision, group)
        finally:
            stream.cancel()

    async def close(self) -> None:
        for member in self._members:
            await member.close()

    async def _call(self, method: str, request: Any, doing: Doing) -> Any:
        members_left = len(self._members)
        while True:
            member = await self._choose(doing)
            members_left -= 1
            try:
                with self._leaving(member):
                    return await member.ask(method, request, doing)
            except StoreError as err:
                repeatable = method == "Range" or _NO_LEADER in str(err)
                if not members_left or self._current is member or not repeatable:
                    raise

    async def _choose(self, doing: Doing) -> Member:
        """Return the first member that takes a connection, from the current one on."""
        start = self._members.index(self._current)
        patience = CONNECT if len(self._members) > 1 else DEADLINE
        for member in self._members[start:] + self._members[:start]:
            if await member.connected(patience):
                self._current = member
                return member
        why = await asyncio.gather(*(member.why_not() for member in self._members))
        raise StoreError(f"{doing.what}: {'; '.join(why)}; {doing.refused}; try again")

    @contextmanager
    def _leaving(self, member: Member) -> Iterator[None]:
        """Start the next call at another member when this one fails through the member's fault."""
        try:
            yield
        except StoreError as err:
            cause = err.__cause__
            code = cause.code() if isinstance(cause, grpc.aio.AioRpcError) else None
            silent = isinstance(cause, TimeoutError) or code is grpc.StatusCode.DEADLINE_EXCEEDED
            if silent:
                member.suspect()
            if (silent or code is grpc.StatusCode.UNAVAILABLE) and self._current is member:
                following = self._members.index(member) + 1
                self._current = self._members[following % len(self._members)]
            raise


class _Stream:
    """One watch on one member: reads what it sends, and notices when that has died."""

    def __init__(self, member: Member, prefix: str, doing: Doing) -> None:
        self._member, self._prefix, self._doing = member, prefix, doing
        self._call = member.open_watch()
        self._reading: asyncio.Future[Any] | None = None

    async def open(self, after: int) -> None:
        """Return once etcd holds every event after `after` for us.

        The read at `after` raises Compacted when that revision is gone. etcd itself refuses only a
        watch that *starts* below the compacted revision, and one that starts at it has silently lost
        the deletions of that revision.
        """
        create = rpc_pb2.WatchCreateRequest(
            **_below(self._prefix), start_revision=after + 1, progress_notify=True
        )
        created = self._open(rpc_pb2.WatchRequest(create_request=create))
        self._checked(await self._member.answer(created, self._doing))
        await self._probe(revision=after)

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
            await self._probe(revision=0)
            return ()
        reading, self._reading = self._reading, None
        response = self._checked(await self._member.answer(reading, self._doing))
        return response.events  # type: ignore[no-any-return]

    async def _probe(self, revision: int) -> None:
        """Read one key, which any role that may watch may read too."""
        request = rpc_pb2.RangeRequest(key=_bytes(self._prefix), count_only=True, revision=revision)
        await self._member.ask("Range", request, self._doing)

    def _checked(self, response: Any) -> Any:
        what, url, lost = self._doing.what, self._member.url, self._doing.lost
        if response is grpc.aio.EOF:
            raise StoreError(f"{what}: etcd {url} ended the stream; {lost}")
        if response.canceled:
            said = response.cancel_reason or f"compacted up to revision {response.compact_revision}"
            kind = Compacted if response.compact_revision else StoreError
            if kind is StoreError:
                # For its token, perhaps; some etcds then speak of permission. The next call gets a new one.
                self._member.log_out()
            raise kind(self._member.told(f"cancelled it: {said}", self._doing, f"; {lost}"))
        return response

    def cancel(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self._call.cancel()


def _member(url: str, credentials: Credentials) -> Member:
    match = configuration.ENDPOINT.fullmatch(url)
    if match is None:
        raise ConfigError(
            f"etcd endpoint {url!r}: expected http://host:port or https://host:port; nothing was contacted"
        )
    return Member(match["host"], int(match["port"]), credentials, secure=match["scheme"] == "https")


def _reading(what: str, right: str) -> Doing:
    return Doing(what, "nothing was read", "nothing was read; try again", right)


def _writing(txn: Txn) -> Doing:
    keys = [op.key for op in txn.ops]
    return Doing(
        f"commit of {', '.join(keys) or 'no operation'}",
        "nothing was written",
        "whether it was written is unknown; read the keys again before deciding",
        f"readwrite {keys[0]}" if len(keys) == 1 else "readwrite KEY, for each of these keys",
    )


def _watching(prefix: str, after: int) -> Doing:
    state = "changes since then are unseen"
    return Doing(
        f"watch of {prefix} after revision {after}",
        state,
        f"{state}; list again",
        f"--prefix=true read {prefix}",
    )


def _conflict(what: str, txn: Txn, response: Any) -> Conflict:
    found = [sum(kv.mod_revision for kv in r.response_range.kvs) for r in response.responses]
    wrong = [
        f"{guard.key} is at revision {revision}, not {guard.revision}"
        for guard, revision in zip(txn.guards, found, strict=True)
        if revision != guard.revision
    ]
    wrong = wrong or [
        f"a key below {u.prefix} was written after revision {u.revision}" for u in txn.unwritten
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


def _compare_all(unwritten: Unwritten) -> Any:
    return rpc_pb2.Compare(
        result=rpc_pb2.Compare.LESS,
        target=rpc_pb2.Compare.MOD,
        mod_revision=unwritten.revision + 1,
        **_below(unwritten.prefix),
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
