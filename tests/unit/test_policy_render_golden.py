"""Files in golden/policy: resources, and the rules of a node for them, each family apart.

What is in `nothing` too is left out of the others. `python -m tests.unit.test_policy_render_golden` writes the rules
anew; they are reviewed as a diff.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from policy.form import Rendered
from policy.render import render
from policy.render_match import Version
from tests.unit.rendering import SITE, shown, world

GOLDEN = Path(__file__).parent / "golden" / "policy"
ALONE = {"nothing", "workloads"}  # the others have the workloads of base.yaml
NAMES = sorted(path.stem for path in GOLDEN.glob("*.yaml") if path.stem != "base")
VERSIONS: tuple[Version, ...] = (4, 6)


def rendered(name: str, version: Version) -> Rendered:
    files = [name] if name in ALONE else ["base", name]
    return render(world(*((GOLDEN / f"{file}.yaml").read_text() for file in files)), SITE, version)


def rules(name: str, version: Version) -> str:
    """Return what the file of this name and family is to hold."""
    found = rendered(name, version)
    if name == "nothing":
        return shown(found)
    known = rendered("nothing", version)
    return shown(
        replace(
            found,
            chains={at: lines for at, lines in found.chains.items() if known.chains.get(at) != lines},
            first={at: lines for at, lines in found.first.items() if known.first.get(at) != lines},
            last={},
            sets={called: ipset for called, ipset in found.sets.items() if known.sets.get(called) != ipset},
        )
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_the_rules_are_the_golden_ones(name: str, version: Version) -> None:
    assert rules(name, version) == (GOLDEN / f"{name}.{version}.rules").read_text()


def write() -> None:
    for name in NAMES:
        for version in VERSIONS:
            (GOLDEN / f"{name}.{version}.rules").write_text(rules(name, version))


if __name__ == "__main__":
    write()
