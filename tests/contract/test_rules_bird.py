"""The rules of BGPFilters mean what BIRD makes of the expressions that Calico writes for them.

One BIRD evaluates them, with no protocol but the one it wants at least: it opens no session and reads no route.
"""

from __future__ import annotations

import random
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

import pytest

from bgp.rules import Seen, compiled, decide
from fabric.model.bgpfilter import BGPFilter

DEADLINE = 10.0
OPERATORS = {"Equal": "=", "NotEqual": "!=", "In": "~", "NotIn": "!~"}
CASES = 400


class Bird:
    def __init__(self, socket: Path) -> None:
        self.socket = socket

    def evaluate(self, expressions: Sequence[str]) -> list[bool]:
        asked = "".join(f"eval {expression}\n" for expression in expressions)
        answer = subprocess.run(
            ["birdc", "-s", self.socket], input=asked, capture_output=True, text=True, check=True, timeout=60
        ).stdout
        found = re.findall("(TRUE|FALSE)$", answer, re.MULTILINE)
        assert len(found) == len(expressions), answer
        return [value == "TRUE" for value in found]

    def judges(self, cases: Mapping[str, bool]) -> dict[str, bool]:
        """Return BIRD's answers in place of ours."""
        return dict(zip(cases, self.evaluate(list(cases)), strict=True))


@pytest.fixture(scope="module")
def bird() -> Iterator[Bird]:
    with tempfile.TemporaryDirectory() as home:
        config, socket = Path(home, "bird.conf"), Path(home, "s")
        config.write_text("router id 192.0.2.1;\nprotocol device {}\n")
        daemon = subprocess.Popen(["bird", "-f", "-c", config, "-s", socket])
        try:
            _wait_for(socket, daemon)
            yield Bird(socket)
        finally:
            daemon.terminate()
            daemon.wait(DEADLINE)


def _wait_for(socket: Path, daemon: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline and daemon.poll() is None:
        with suppress(subprocess.CalledProcessError):
            subprocess.run(["birdc", "-s", socket, "show", "status"], check=True, capture_output=True)
            return
        time.sleep(0.02)
    raise AssertionError("BIRD did not start")


def ours(version: int, match: dict[str, Any], seen: Seen) -> bool:
    found = BGPFilter.model_validate(
        {"metadata": {"name": "f"}, "spec": {f"importV{version}": [{"action": "Accept", **match}]}}
    )
    return decide(compiled([found], "import", external=True), seen) is not None


def prefix(chance: random.Random, bits: int) -> Any:
    """One of few around one place, so that one often contains the other."""
    length = bits - chance.randint(0, 4) if chance.random() < 0.9 else chance.randint(0, bits)
    kind, base = (IPv4Network, 10 << 24) if bits == 32 else (IPv6Network, 0x20010DB8 << 96)
    return kind((base + chance.randint(0, 15) >> (bits - length) << (bits - length), length))


@pytest.mark.parametrize(("version", "bits"), [(4, 32), (6, 128)])
def test_prefix_operators(bird: Bird, version: int, bits: int) -> None:
    chance = random.Random(version)
    cases = []
    for _ in range(CASES):
        cidr, operator = prefix(chance, bits), chance.choice(list(OPERATORS))
        match: dict[str, Any] = {"cidr": str(cidr), "matchOperator": operator}
        theirs = str(cidr)
        if "Equal" not in operator and chance.random() < 0.7:
            # As Calico clips them; BIRD refuses a configuration in which they cross.
            low, high = sorted(chance.randint(bits - 5, bits) for _ in range(2))
            shortest, longest = max(low, cidr.prefixlen), min(high, bits)
            if shortest <= longest:
                match["prefixLength"] = {"min": low, "max": high}
                theirs = f"[ {cidr}{{{shortest},{longest}}} ]"
        route = prefix(chance, bits)
        cases.append((f"{route} {OPERATORS[operator]} {theirs}", ours(version, match, Seen(route, 100))))
    assert bird.judges(dict(cases)) == dict(cases)


def test_as_path_prefixes(bird: Bird) -> None:
    chance = random.Random(1)
    cases = []
    for _ in range(CASES):
        path = [chance.randint(1, 3) for _ in range(chance.randint(0, 4))]
        wanted = [chance.randint(1, 3) for _ in range(chance.randint(1, 3))]
        theirs = "+empty+"
        for number in reversed(path):
            theirs = f"prepend({theirs}, {number})"
        seen = Seen(ip_network("10.0.0.0/8"), 100, as_path=tuple(path))
        mask = " ".join(map(str, wanted))
        cases.append((f"{theirs} ~ [= {mask} * =]", ours(4, {"asPathPrefix": wanted}, seen)))
    assert bird.judges(dict(cases)) == dict(cases)


def test_interfaces(bird: Bird) -> None:
    names = ["", "lo", "eth0", "eth01", "eth0.10", "veth0", "fab0123456789ab"]
    patterns = ["*", "lo", "eth*", "*0", "*th*", "eth0.1*", "eth0*10"]
    cases = [
        (
            f'"{name}" ~ "{pattern}"',
            ours(4, {"interface": pattern}, Seen(ip_network("10.0.0.0/8"), 100, device=name)),
        )
        for name in names
        for pattern in patterns
    ]
    assert bird.judges(dict(cases)) == dict(cases)


def test_a_prefix_is_never_equal_to_a_set_of_them_in_bird(bird: Bird) -> None:
    """The one difference: Equal with lengths, which BIRD cannot mean, is Equal and within the lengths here."""
    asked = ["10.0.0.0/8 = [ 10.0.0.0/8{8,24} ]", "10.0.0.0/8 != [ 10.0.0.0/8{8,24} ]"]
    assert bird.evaluate(asked) == [False, True]
    match = {"cidr": "10.0.0.0/8", "prefixLength": {"max": 24}}
    route = Seen(ip_network("10.0.0.0/8"), 100)
    assert ours(4, {**match, "matchOperator": "Equal"}, route)
    assert not ours(4, {**match, "matchOperator": "NotEqual"}, route)
