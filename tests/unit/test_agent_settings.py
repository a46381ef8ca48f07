"""Which settings hold for a node."""

import pytest

from fabric.agent.settings import Settings, settings
from fabric.agent.snapshot import Snapshot, fold
from fabric.model.felixconfiguration import FelixConfiguration
from fabric.model.node import Node
from fabric.model.wire import to_json
from fabric.ops.resources import key_of
from fabric.store.kv import Changes, KeyValue

ME = Node.model_validate({"metadata": {"name": "n1", "labels": {"rack": "a"}}})


def felix(name: str, created: str = "2026-01-01T00:00:00Z", **spec: object) -> FelixConfiguration:
    return FelixConfiguration.model_validate(
        {"metadata": {"name": name, "creationTimestamp": created}, "spec": spec}
    )


def snapshot(*configurations: FelixConfiguration) -> Snapshot:
    stored = [ME, *configurations]
    return fold(Snapshot(), Changes(5, tuple(KeyValue(key_of(r), to_json(r), 5) for r in stored)))


DEFAULT = felix("default", routeRefreshInterval="30s", ipForwarding="Disabled", logSeverityScreen="Error")
MINE = felix("node.n1", routeRefreshInterval="2m")
OTHERS = felix("node.n2", routeRefreshInterval="1s")
RACK = felix("rack-a", nodeSelector="rack == 'a'", routeRefreshInterval="45s", logSeverityScreen="Debug")
OLDER = felix("rack-a-first", "2025-01-01T00:00:00Z", nodeSelector="has(rack)", ipForwarding="Enabled")
ELSEWHERE = felix("rack-b", nodeSelector="rack == 'b'", routeRefreshInterval="1s")


@pytest.mark.parametrize(
    ("stored", "want"),
    [
        pytest.param([], Settings(90.0, True, "Info"), id="nothing said"),
        pytest.param([DEFAULT], Settings(30.0, False, "Error"), id="for all"),
        pytest.param([DEFAULT, OTHERS, ELSEWHERE], Settings(30.0, False, "Error"), id="others' do not count"),
        pytest.param([DEFAULT, RACK], Settings(45.0, False, "Debug"), id="by label, setting by setting"),
        pytest.param([DEFAULT, RACK, MINE], Settings(120.0, False, "Debug"), id="the node's own before all"),
        pytest.param([DEFAULT, RACK, OLDER], Settings(30.0, True, "Error"), id="of two the oldest alone"),
        pytest.param([felix("default", routeRefreshInterval="0")], Settings(0.0), id="never"),
        pytest.param(
            [felix("default", iptablesBackend="nft"), felix("node.n1", iptablesBackend="LEGACY")],
            Settings(backend="legacy"),
            id="a backend",
        ),
    ],
)
def test_settings(stored: list[FelixConfiguration], want: Settings) -> None:
    assert settings(snapshot(*stored), "n1") == want
