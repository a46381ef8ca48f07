"""Files in golden/refused: what is wrong in each of them, and every message that says so.

`python -m tests.unit.test_ops_files_refused` writes the messages anew; they are reviewed as a diff.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from fabric.errors import ConfigError
from fabric.ops import files

GOLDEN = Path(__file__).parent / "golden" / "refused"
FILES = sorted(GOLDEN.glob("*.yaml"))


def told(path: Path) -> str:
    """Return what `validate` says of the file, its directory left out."""
    found = list(files.documents([str(path)]))
    lines = []
    for document, between in zip(found, files.among(found), strict=True):
        lines += document.errors(problems) if (problems := (*document.problems, *between)) else []
    return "".join(f"{line}\n" for line in lines).replace(f"{path.parent}/", "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_mistake_is_told_where_it_is_and_why(path: Path) -> None:
    assert told(path) == path.with_suffix(".txt").read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_of_the_file_is_taken(path: Path) -> None:
    for read in (files.read, files.sound):
        with pytest.raises(ConfigError):
            read([str(path)])


def of_rule(**rule: object) -> dict[str, Any]:
    return {"ingress": [{"action": "Allow", "protocol": "TCP", **rule}]}


NETS = [f"10.0.{n}.0/24" for n in range(256)]
PORTS = list(range(1, 51))
LONG = f"a == '{'x' * 1017}'"  # 1024 characters


@pytest.mark.parametrize(
    ("most", "more", "rule"),
    [
        (of_rule(source={"nets": NETS}), of_rule(source={"nets": [*NETS, "10.1.0.0/24"]}), "256 entries"),
        (of_rule(source={"notNets": NETS}), of_rule(source={"notNets": [*NETS, "fd00::/8"]}), "256 entries"),
        (
            of_rule(destination={"ports": PORTS}),
            of_rule(destination={"ports": [*PORTS, 99]}),
            "50 entries",
        ),
        (of_rule(source={"notPorts": PORTS}), of_rule(source={"notPorts": [*PORTS, 99]}), "50 entries"),
        ({"egress": [{"action": "Pass"}] * 1024}, {"egress": [{"action": "Pass"}] * 1025}, "1024 entries"),
        ({"selector": LONG}, {"selector": f"{LONG} "}, "1024 characters"),
        (of_rule(source={"selector": LONG}), of_rule(source={"selector": f" {LONG}"}), "1024 characters"),
        ({"tier": "default"}, {"tier": "a" * 64}, "63 lower-case"),
    ],
)
def test_as_much_as_calico_takes_is_taken_and_no_more(
    tmp_path: Path, most: dict[str, Any], more: dict[str, Any], rule: str
) -> None:
    def written(spec: dict[str, Any]) -> str:
        head = {"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy", "metadata": {"name": "web"}}
        path.write_text(json.dumps({**head, "spec": spec}))
        return str(path)

    path = tmp_path / "web.json"
    assert len(files.sound([written(most)])) == 1
    for read in (files.read, files.sound):
        with pytest.raises(ConfigError, match=f"at most {rule}"):
            read([written(more)])


if __name__ == "__main__":
    for path in FILES:
        path.with_suffix(".txt").write_text(told(path))
