"""etcd with TLS: who is trusted, by which name, and what an operator reads when somebody is not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from fabric.config import NO_CREDENTIALS, Credentials
from fabric.errors import ConfigError, StoreError
from fabric.store.etcd import Etcd
from tests.contract.etcd_server import EtcdServer
from tests.contract.following import opened, put, reading, until
from tests.contract.pki import Authority


@dataclass(frozen=True)
class Site:
    """An etcd that wants client certificates. Its own names its address and localhost, not 127.0.0.1."""

    server: EtcdServer
    ca: Authority
    port: int
    folder: Path

    def client(self, valid: timedelta = timedelta(days=1)) -> Credentials:
        return Credentials(self.ca.path, *self.ca.issue("client", valid=valid))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("pki")
    ca = Authority(folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    server = EtcdServer(scheme="https", also=f"https://127.0.0.1:{port}")
    cert, key = ca.issue("server", server.address, "localhost")
    server.options = (
        "--cert-file",
        cert,
        "--key-file",
        key,
        "--trusted-ca-file",
        ca.path,
        "--client-cert-auth",
    )
    with server:
        yield Site(server, ca, port, folder)


def text_of(path: str) -> str:
    return Path(path).read_text()


async def test_members_named_by_address_and_by_host_name_serve_who_shows_a_certificate(site: Site) -> None:
    for endpoint in (site.server.url, f"https://localhost:{site.port}"):
        async with opened(endpoint, credentials=site.client()) as kv, reading(kv) as reader:
            await put(kv, a=endpoint)
            await until(lambda: reader.state == {"/t/a": endpoint})  # noqa: B023 - awaited in this round


async def test_certificates_given_as_text_serve_as_well(site: Site) -> None:
    files = site.client()
    ca, cert, key = map(text_of, (files.ca, files.cert, files.key))
    async with opened(site.server.url, credentials=Credentials(ca, cert, key)) as kv:
        assert await put(kv, a="1")


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("a CA of somebody else", "its certificate is not trusted: .*etcd_ca, .*/other.pem"),
        ("no CA", "its certificate is not trusted: .*etcd_ca, which is not set"),
        ("another name", "its certificate is not for 127.0.0.1: IP address mismatch.*name it as its certificate"),
        ("no client certificate", "wants a client certificate .*etcd_cert and etcd_key are not set; set them"),
        ("an expired one", r"refuses our client certificate .*/client.pem .*: expired, or signed by a CA"),
        ("one of another CA", r"refuses our client certificate .*/stranger.pem .*: expired, or signed by a CA"),
        ("plain text", "speaks TLS and is named without; write https://"),
    ],
)  # fmt: skip
async def test_who_is_not_trusted_is_told_why(site: Site, case: str, said: str) -> None:
    other = Authority(site.folder, "other")
    good = site.client()
    url = site.server.url
    endpoint, credentials = {
        "a CA of somebody else": (url, Credentials(other.path, good.cert, good.key)),
        "no CA": (url, Credentials(cert=good.cert, key=good.key)),
        "another name": (f"https://127.0.0.1:{site.port}", good),
        "no client certificate": (url, Credentials(site.ca.path)),
        "an expired one": (url, site.client(valid=timedelta(hours=-1)) if case == "an expired one" else good),
        "one of another CA": (url, Credentials(site.ca.path, *other.issue("stranger"))),
        "plain text": (url.removeprefix("https://"), NO_CREDENTIALS),
    }[case]
    async with opened(endpoint, credentials=credentials) as kv:
        with pytest.raises(StoreError, match=said) as caught:
            await put(kv, a="1")
    assert endpoint in str(caught.value)
    assert str(caught.value).endswith("nothing was written; try again")


async def test_tls_to_who_speaks_none_is_told() -> None:
    with EtcdServer() as server:
        async with opened(f"https://{server.address}:2379") as kv:
            with pytest.raises(StoreError, match="does not speak TLS; write http://"):
                await kv.get("/t/a")


async def test_renewed_files_are_read_without_a_restart(site: Site) -> None:
    async with opened(site.server.url, credentials=site.client(valid=timedelta(hours=-1))) as kv:
        with pytest.raises(StoreError, match="refuses our client certificate"):
            await kv.get("/t/a")
        site.client()  # in the same files
        await kv.get("/t/a")


async def test_the_name_in_a_client_certificate_is_a_user(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    server = EtcdServer(scheme="https")
    cert, key = ca.issue("server", server.address)
    server.options = (
        "--cert-file",
        cert,
        "--key-file",
        key,
        "--trusted-ca-file",
        ca.path,
        "--client-cert-auth",
    )
    with server:
        root = ("--cacert", ca.path, "--cert", cert, "--key", key)
        for words in ("user add root:root", "user grant-role root root", "user add node:x", "role add node",
                      "role grant-permission node --prefix=true readwrite /t/", "user grant-role node node",
                      "auth enable"):  # fmt: skip
            server.ctl(*root, *words.split())
        async with opened(server.url, credentials=Credentials(ca.path, *ca.issue("node"))) as kv:
            assert await put(kv, a="1")
        async with opened(server.url, credentials=Credentials(ca.path, *ca.issue("stranger"))) as kv:
            with pytest.raises(
                StoreError, match="the user that our client certificate names is refused by role"
            ):
                await put(kv, a="1")


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("absent CA", "etcd_ca: /absent.pem cannot be read: No such file"),
        ("no CA in it", "etcd_ca: .*/client.key holds no certificate in PEM"),
        ("another's key", "etcd_key: .*/other.key is not the key of the certificate .*/client.pem"),
        ("no certificate", "etcd_cert and etcd_key: .* no certificate and key in PEM"),
        ("an empty CA", "etcd_ca: .*/empty holds nothing in PEM"),
        ("an empty key", "etcd_key: .*/empty holds nothing in PEM"),
    ],
)
async def test_unusable_files_are_refused_before_anything_is_sent(
    tmp_path: Path, case: str, said: str
) -> None:
    ca = Authority(tmp_path)
    cert, key = ca.issue("client")
    _, other = ca.issue("other")
    (empty := tmp_path / "empty").touch()
    credentials = {
        "absent CA": Credentials("/absent.pem"),
        "no CA in it": Credentials(key),
        "another's key": Credentials(ca.path, cert, other),
        "no certificate": Credentials(ca.path, key, key),
        "an empty CA": Credentials(str(empty)),
        "an empty key": Credentials(ca.path, cert, str(empty)),
    }[case]
    with pytest.raises(ConfigError, match=f"{said}.*; nothing was sent; mend"):
        Etcd(["https://127.0.0.1:1"], credentials)
