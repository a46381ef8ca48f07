"""Puts what is marked `inside` into a user-mode kernel; on a pytest that runs there, writes down what becomes of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.uml import relay


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{relay.MARK}: runs in a user-mode kernel, all of them in one boot")
    if reports := os.environ.get(relay.REPORTS):
        config.pluginmanager.register(relay.Inside(config, Path(reports)))
    else:
        config.pluginmanager.register(relay.Outside(config))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the contract of tunnels leave out what the host's kernel can show: it has been asked in its own ring."""
    here = [item for item in items if isinstance(item, pytest.Function) and item.path.name == "test_tunl0.py"]
    left_out = [item for item in here if "ipip" not in item.fixturenames]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
