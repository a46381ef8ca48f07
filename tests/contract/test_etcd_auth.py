"""etcd with users and roles: tokens that come and go, and what an operator reads when one is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fabric.config import Credentials
from fabric.errors import StoreError
from fabric.store.etcd import SILENCE
from fabric.store.kv import Delete, Put, Txn
from fabric.store.member import DEADLINE as OF_A_CALL
from fabric.store.sync import Lost, follow
from tests.contract.etcd_server import EtcdServer
from tests.contract.following import DEADLINE, opened, put, reading, until
from tests.contract.pki import private

ROOT = ("--user", "root:root")
NODE = Credentials(user="node", password="node")
READER = Credentials(user="reader", password="reader")


def with_users(server: EtcdServer) -> EtcdServer:
    """Two users: `node` may write below /t/, `reader` may read there; neither may anything else."""
    for user in ("root", "node", "reader"):
        server.ctl("user", "add", f"{user}:{user}")
        server.ctl("role", "add", user)
        server.ctl("user", "grant-role", user, user)
    server.ctl("role", "grant-permission", "node", "--prefix=true", "readwrite", "/t/")
    server.ctl("role", "grant-permission", "reader", "--prefix=true", "read", "/t/")
    server.ctl("auth", "enable")
    return server


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with EtcdServer("--bcrypt-cost", "4") as server:
        yield with_users(server)


def add_again(server: EtcdServer, user: str, password: str) -> None:
    """With the user go its tokens; a restart would not do, for etcd replays who logged in."""
    server.ctl(*ROOT, "user", "delete", user)
    server.ctl(*ROOT, "user", "add", f"{user}:{password}")
    server.ctl(*ROOT, "user", "grant-role", user, "node")


async def test_a_token_that_is_no_longer_valid_is_replaced_for_calls_and_watches(server: EtcdServer) -> None:
    async with opened(server.url, credentials=NODE) as kv, opened(server.url, credentials=NODE) as idle:
        start = await put(idle, a="1")
        async with reading(kv) as reader:
            await until(lambda: reader.state == {"/t/a": "1"})
            add_again(server, "node", "node")
            await put(kv, a="2")
            await until(lambda: reader.state == {"/t/a": "2"})

        async def first_change() -> int:
            async with aclosing(idle.watch("/t/", after=start)) as stream:
                return (await anext(stream)).revision

        with pytest.raises(StoreError, match=r"cancelled it: .*; changes since then are unseen; list again"):
            await first_change()
        assert await first_change() > start


async def test_tokens_expire_under_calls_and_under_an_idle_watch_and_nobody_notices(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key").write_bytes(private(key))
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "pub").write_bytes(public)
    jwt = f"jwt,pub-key={tmp_path}/pub,priv-key={tmp_path}/key,sign-method=ES256,ttl=1s"
    with EtcdServer("--bcrypt-cost", "4", "--auth-token", jwt) as server:
        with_users(server)
        async with (
            opened(server.url, credentials=NODE) as kv,
            opened(server.url, credentials=NODE) as idle,
            reading(idle) as reader,
        ):
            await put(kv, a="0")
            await until(lambda: reader.state == {"/t/a": "0"})
            end = time.monotonic() + SILENCE + 0.5
            while time.monotonic() < end:  # each of these must succeed
                await kv.get("/t/a")
                await asyncio.sleep(0.01)
            await put(kv, a="1")
            await until(lambda: reader.state == {"/t/a": "1"})
            assert "Lost" not in reader.kinds


async def test_of_many_callers_none_waits_for_the_logins_of_the_others(
    server: EtcdServer, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("wrong")
    async with opened(server.url, credentials=Credentials(user="node", password_file=str(file))) as kv:
        with pytest.raises(StoreError, match="wrong name or password"):
            await kv.get("/t/a")
        file.write_text("node")
        with server.frozen():
            started = time.monotonic()
            results = await asyncio.gather(*(kv.get("/t/a") for _ in range(5)), return_exceptions=True)
            assert time.monotonic() - started < 2 * OF_A_CALL
        assert {"no answer within 3 s" in str(result) for result in results} == {True}
        await kv.get("/t/a")


async def test_a_changed_password_is_read_from_its_file(server: EtcdServer, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first\n")
    server.ctl(*ROOT, "user", "add", "changing:first")
    server.ctl(*ROOT, "user", "grant-role", "changing", "node")
    async with opened(server.url, credentials=Credentials(user="changing", password_file=str(file))) as kv:
        await put(kv, a="1")
        add_again(server, "changing", "second")
        with pytest.raises(StoreError, match=f"wrong name or password; nothing was written; correct {file}"):
            await put(kv, a="2")
        file.write_text("second\n")
        await put(kv, a="2")
        file.unlink()
    async with opened(server.url, credentials=Credentials(user="changing", password_file=str(file))) as kv:
        with pytest.raises(StoreError, match=f"{file}: No such file or directory; nothing was sent"):
            await put(kv, a="3")


@pytest.mark.parametrize(
    ("credentials", "said"),
    [
        (Credentials(user="node", password="guess"), 'user "node": wrong name or password; .*ETCD_PASSWORD'),
        (Credentials(user="nobody", password="x"), 'user "nobody": wrong name or password; .*ETCD_PASSWORD'),
        (Credentials(), "asks for a user, and none is configured; .*ETCD_USERNAME, ETCD_PASSWORD"),
        (
            READER,
            'user "reader" is refused by role: permission denied; .*grant-permission ROLE readwrite /t/a',
        ),
    ],
)
async def test_a_refused_write_says_who_was_refused_what_and_what_to_do(
    server: EtcdServer, credentials: Credentials, said: str
) -> None:
    async with opened(server.url, credentials=credentials) as kv:
        with pytest.raises(StoreError, match=f"commit of /t/a: etcd {server.url}: {said}") as caught:
            await put(kv, a="1")
    assert "nothing was written" in str(caught.value)


async def test_a_transaction_of_which_one_key_is_forbidden_writes_nothing(server: EtcdServer) -> None:
    async with opened(server.url, credentials=NODE) as kv:
        before = await put(kv, a="before")
        with pytest.raises(
            StoreError, match=r"refused by role: .* nothing was written; .*each of these keys"
        ):
            await kv.commit(Txn((), (Put("/t/a", "after"), Delete("/other"))))
        item = await kv.get("/t/a")
        assert item is not None
        assert item.revision == before


async def test_a_reader_without_the_right_is_told_so_and_waits_for_it(server: EtcdServer) -> None:
    server.ctl(*ROOT, "role", "revoke-permission", "reader", "/t/", "/t0")
    async with opened(server.url, credentials=READER) as kv, aclosing(follow(kv, "/t/")) as events:
        async with asyncio.timeout(DEADLINE):
            lost = await anext(events)
            assert isinstance(lost, Lost)
            assert 'user "reader" is refused by role' in lost.reason
            assert "grant-permission ROLE --prefix=true read /t/" in lost.reason
            server.ctl(*ROOT, "role", "grant-permission", "reader", "--prefix=true", "read", "/t/")
            assert not isinstance(await anext(events), Lost)


async def test_a_user_is_no_hindrance_where_etcd_has_none_yet() -> None:
    with EtcdServer("--bcrypt-cost", "4") as server:
        async with opened(server.url, credentials=NODE) as kv:
            await put(kv, a="1")
            with_users(server)
            await put(kv, a="2")
