"""Where the secrets of sessions are read from, and what is none."""

import os
from pathlib import Path

import pytest

from bgp.sessions import SECRET_BYTES
from fabric.agent.secrets import read

TOR = ("bgp", "tor-1")
FOLDER = Path("etc/fabricctl/secrets/bgp")
VARIABLE = "FABRICCTL_SECRET_BGP_TOR_1"


def given(root: Path, content: bytes, name: str = "tor-1") -> Path:
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return root


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"hush", "hush"),
        (b"hush\n", "hush"),
        (b"hush\r\n", "hush"),
        (b" hush \n", " hush "),
        ("geheim-ß".encode(), "geheim-ß"),
        (b"x" * SECRET_BYTES + b"\r\n", "x" * SECRET_BYTES),
    ],
)
def test_a_secret_is_a_files_content_less_the_line_end(tmp_path: Path, content: bytes, secret: str) -> None:
    assert read({TOR}, given(tmp_path, content), {}) == {TOR: secret}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"x" * (SECRET_BYTES + 1),
        "ß".encode() * (SECRET_BYTES // 2 + 1),
        b"\xff",
        b"two\nlines",
        b"a\0b",
    ],
    ids=["empty", "blank", "too long", "too many bytes", "no text", "two lines", "a zero byte"],
)
def test_what_cannot_sign_a_session_is_no_secret(tmp_path: Path, content: bytes) -> None:
    assert read({TOR}, given(tmp_path, content), {}) == {}


def test_what_is_not_there_or_no_file_is_no_secret(tmp_path: Path) -> None:
    assert read({TOR}, tmp_path, {}) == {}
    os.mkfifo(given(tmp_path, b"x", "other") / FOLDER / "tor-1")
    assert read({TOR}, tmp_path, {}) == {}


def test_without_a_file_the_environment_has_it_and_a_file_wins(tmp_path: Path) -> None:
    assert read({TOR}, tmp_path, {VARIABLE: "loud"}) == {TOR: "loud"}
    assert read({TOR}, given(tmp_path, b"hush\n"), {VARIABLE: "loud"}) == {TOR: "hush"}
    assert read({TOR}, tmp_path / "no", {VARIABLE: "x" * (SECRET_BYTES + 1)}) == {}


@pytest.mark.parametrize(
    "ref",
    [("..", "shadow"), (".", "secret"), ("bgp", "../secret"), ("../..", "etc"), ("bgp/..", "secret"), ("", "secret"),
     ("bgp", ""), ("bgp\0", "tor-1")],
)  # fmt: skip
def test_a_name_leads_nowhere_out_of_its_folder(tmp_path: Path, ref: tuple[str, str]) -> None:
    root = given(tmp_path, b"hush")
    for outside in (root / FOLDER.parent / "secret", root / FOLDER.parent.parent / "shadow"):
        outside.write_bytes(b"stolen")
    assert read({ref}, root, {}) == {}
