from pathlib import Path

import pytest

from fabric.config import Config, endpoints_of, load, required, save
from fabric.errors import ConfigError


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    config = Config(("192.0.2.10:2379", "[2001:db8::10]:2379"), "n1")
    save(config, tmp_path / "etc" / "fabricctl.cfg")
    assert load(tmp_path / "etc" / "fabricctl.cfg", {}) == config
    assert [p.name for p in (tmp_path / "etc").iterdir()] == ["fabricctl.cfg"]


def test_no_file_is_no_settings(tmp_path: Path) -> None:
    assert load(tmp_path / "absent", {}) == Config()


def test_the_environment_overrides_the_files_endpoints_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "fabricctl.cfg"
    save(Config(("192.0.2.10:2379",), "n1"), path)
    env = {"ETCD_ENDPOINTS": "http://192.0.2.11:2379, http://192.0.2.12:2379/"}
    assert load(path, env) == Config(("192.0.2.11:2379", "192.0.2.12:2379"), "n1")


@pytest.mark.parametrize(
    "text", ["[", "[]", "node: n1", "etcd: x\nnode: n1", "etcd: []\nnode: 5", "etcd: [nowhere]\nnode: n1"]
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fabricctl.cfg"
    path.write_text(text)
    with pytest.raises(ConfigError, match="nothing was done"):
        load(path, {})


@pytest.mark.parametrize("content", [b"\xff\xfe", None], ids=["not UTF-8", "a directory"])
def test_a_file_that_cannot_be_read_names_itself(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "fabricctl.cfg"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        load(path, {})


def test_without_an_endpoint_the_message_says_how_to_give_one() -> None:
    with pytest.raises(ConfigError, match="ETCD_ENDPOINTS"):
        required(Config(node="n1"))
    assert required(Config(("a:1",))).etcd == ("a:1",)


@pytest.mark.parametrize("text", ["192.0.2.10", "https://192.0.2.10:2379", ":2379", "a:port", "", "//a:1x"])
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be HOST:PORT"):
        endpoints_of([text])
