"""Whether a kernel has IPIP, by the files that its host has of it."""

import os
from pathlib import Path

import pytest

from fabric.kernel.probe import missing_unasked


@pytest.mark.parametrize(
    ("name", "line", "has"),
    [
        ("modules.dep", "kernel/net/ipv4/ipip.ko.xz: kernel/net/ipv4/tunnel4.ko.xz", True),
        ("modules.builtin", "kernel/net/ipv4/ipip.ko", True),
        ("modules.alias", "alias rtnl-link-ipip ipip", True),
        ("modules.dep", "kernel/net/ipv4/ip_gre.ko: kernel/net/ipv4/ipip2.ko", False),
        ("modules.dep", "kernel/net/ipv4/xipip.ko:", False),
        ("modules.alias", "alias rtnl-link-ip6tnl ip6_tunnel", False),
    ],
)
async def test_the_tree_of_modules_tells_without_any_being_loaded(
    tmp_path: Path, name: str, line: str, has: bool
) -> None:
    tree = tmp_path / os.uname().release
    tree.mkdir()
    (tree / "modules.dep").write_text("kernel/net/ipv4/tunnel4.ko:\n")
    with (tree / name).open("a") as file:
        file.write(f"{line}\n")
    why = {} if has else {"ipip": f"not in {tree}"}
    assert await missing_unasked(tmp_path, tmp_path / "none") == why


async def test_a_module_that_is_loaded_is_there_whatever_the_tree_says(tmp_path: Path) -> None:
    (tmp_path / "ipip").mkdir()
    (tmp_path / os.uname().release).mkdir()
    (tmp_path / os.uname().release / "modules.dep").touch()
    assert await missing_unasked(tmp_path, tmp_path) == {}
