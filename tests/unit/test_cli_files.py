"""`validate` and `convert` as processes: what they print, where, and how they end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.unit.loading import resources_in

POOL = """\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pods}
spec: {cidr: 10.0.0.0/16}
"""
BAD_POOL = """\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: bad}
spec:
  cidr: 10.0.0.1/16
  disabled: off
"""
FELIX = """\
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default}
spec: {bpfEnabled: true, natPortRange: "32768:65535"}
"""
BROKEN = "kind: IPPool\nspec: [\n"
WEB = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {podSelector: {}, ingress: [{ports: [{port: 80}]}]}
"""
WIDE = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: wide}
spec:
  ingress:
  - from:
    - ipBlock: {cidr: 10.0.0.0/33}
"""
NO_PREFIX = "must be a prefix, such as 10.0.0.0/16 or fd00::/48"
HOST_BITS = '"10.0.0.1/16": has host bits set; the prefix around it is 10.0.0.0/16'


def fabricctl(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fabric.cli.main", *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def documents(*texts: str) -> str:
    return "---\n".join(texts)


def test_validate_answers_a_line_of_json_for_every_document_in_order() -> None:
    done = fabricctl("validate", "-f", "-", "-o", "json", stdin=documents(POOL, BAD_POOL, BROKEN, WEB))
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"kind": "IPPool", "name": "pods", "valid": True, "errors": []},
        {
            "kind": "IPPool",
            "name": "bad",
            "valid": False,
            "errors": [
                {"path": "spec.cidr", "message": f"standard input:10: {HOST_BITS}"},
                {"path": "spec.disabled", "message": 'standard input:11: "off": must be true or false'},
            ],
        },
        {
            "kind": "IPPool",
            "name": None,
            "valid": False,
            "errors": [{"path": "", "message": "standard input:15: did not find expected node content"}],
        },
        {"kind": "NetworkPolicy", "name": "web", "valid": True, "errors": []},
    ]
    assert (done.returncode, done.stderr) == (1, "")


def test_validate_prints_every_mistake_with_its_line_and_counts_them(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(documents(POOL, BAD_POOL))
    (tmp_path / "b.yaml").write_bytes(b"\xff")
    done = fabricctl("validate", "-f", str(tmp_path))
    assert done.stdout.splitlines() == [
        f"{tmp_path}/a.yaml:10: spec.cidr: {HOST_BITS}",
        f'{tmp_path}/a.yaml:11: spec.disabled: "off": must be true or false',
        f"{tmp_path}/b.yaml:1: byte 0xff is not UTF-8; save the file as UTF-8",
        "3 checked, 2 invalid",
    ]
    assert done.returncode == 1


def test_what_the_terminal_cannot_write_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "ü.yaml").write_text(BAD_POOL)
    done = subprocess.run(
        [sys.executable, "-m", "fabric.cli.main", "validate", "-f", str(tmp_path)],
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"{tmp_path}/\\xfc.yaml:5: spec.cidr: ")


def test_validate_warns_of_what_is_kept_and_not_used() -> None:
    done = fabricctl("validate", "-f", "-", stdin=FELIX)
    assert (done.returncode, done.stdout) == (0, "1 checked, 0 invalid\n")
    what = "FelixConfiguration default: spec.bpfEnabled"
    assert done.stderr == f"warning: standard input:1: {what}: kept, not used\n"


def test_validate_looks_at_what_is_stored_for_kubernetes() -> None:
    said = "fabricctl.io/on-change: keep, fabricctl.io/drop-log: on"
    namespace = f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{{said}}}}}\n"
    done = fabricctl("validate", "-f", "-", stdin=documents(WEB, namespace))
    assert (done.returncode, done.stdout) == (0, "2 checked, 0 invalid\n")
    where = "standard input:6: Namespace shop"
    assert done.stderr == f"warning: {where}: metadata.annotations.fabricctl.io/on-change: kept, not used\n"


def test_convert_prints_what_can_be_read_again_and_nothing_of_what_is_refused() -> None:
    done = fabricctl("convert", "-f", "-", stdin=documents(WEB, WIDE, WEB.replace("web", "db"), POOL))
    assert [r.metadata.name for r in resources_in(done.stdout)] == ["web", "db"]
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f'fabricctl: standard input:12: spec.ingress[0].from[0].ipBlock.cidr: "10.0.0.0/33": {NO_PREFIX}',
        'standard input:20: kind: "IPPool": only NetworkPolicy of networking.k8s.io/v1 is converted',
        "what is named here was not converted",
    ]


CONVERTED = {
    "kind": "NetworkPolicy",
    "apiVersion": "projectcalico.org/v3",
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {
        "tier": "default",
        "order": 1000,
        "ingress": [{"action": "Allow", "protocol": "TCP", "source": {}, "destination": {"ports": [80]}}],
        "selector": "projectcalico.org/orchestrator == 'k8s'",
        "types": ["Ingress"],
    },
}


def test_convert_prints_yaml_or_json() -> None:
    done = fabricctl("convert", "-f", "-", stdin=WEB)
    assert (done.returncode, done.stderr) == (0, "")
    assert yaml.safe_load(done.stdout) == CONVERTED
    assert json.loads(fabricctl("convert", "-f", "-", "-o", "json", stdin=WEB).stdout) == CONVERTED


def test_convert_takes_a_list_and_prints_one_as_json() -> None:
    other = yaml.safe_load(WEB)
    other["metadata"]["name"] = "other"
    items = [yaml.safe_load(WEB), other]
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items})
    done = fabricctl("convert", "-f", "-", "-o", "json", stdin=listed)
    first, second = json.loads(done.stdout)["items"]
    assert (first, second["spec"]) == (CONVERTED, CONVERTED["spec"])
    assert fabricctl("validate", "-f", "-", stdin=done.stdout).stdout == "2 checked, 0 invalid\n"


@pytest.mark.parametrize("verb", ["validate", "convert"])
@pytest.mark.parametrize("args", [(), ("-f",), ("-f", "-", "-o", "xml"), ("file",)], ids=" ".join)
def test_a_usage_error_is_status_2(verb: str, args: tuple[str, ...]) -> None:
    done = fabricctl(verb, *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error" in done.stderr


def test_validate_loads_nothing_that_reaches_out(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(POOL)
    code = (
        "import sys\nfrom fabric.cli.main import main\n"
        f"try:\n    main(['validate', '-f', {str(path)!r}])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(*{'grpc', 'etcd3', 'aiohttp', 'pyroute2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1 checked, 0 invalid\n\n"
