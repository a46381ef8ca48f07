"""Policy test files: what they mean, how they come out, what is wrong with them. Whole texts are in golden/verdicts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fabric.cli.main import main
from fabric.errors import ConfigError
from policy.cases import read
from policy.form import ICMP, TCP, Icmp
from policy.scene import Asking, asking

GOLDEN = Path(__file__).with_name("golden") / "verdicts"


def golden(name: str) -> str:
    return (GOLDEN / name).read_text()


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> object:
    """Run the command where the files are, as a user would; return its exit status."""
    monkeypatch.chdir(GOLDEN)
    with pytest.raises(SystemExit) as end:
        main(["policy", "test", *args])
    return end.value.code


def test_the_report_is_like_a_diff(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "cases.yaml") == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == (golden("report.txt"), "")


def test_nothing_but_the_count_is_told_where_all_is_as_expected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    good = [line for line in golden("cases.yaml").splitlines() if "telnet" not in line and "443" not in line]
    path = tmp_path / "good.yaml"
    path.write_text("\n".join(line.replace("udp/53, expect: allow", "udp/53, expect: deny") for line in good))
    assert run(monkeypatch, str(path), "-f", "shop") == 0
    assert capsys.readouterr().out == "11 cases, 0 not as expected\n"


def test_as_json_every_case_has_both_its_verdicts_and_who_was_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "cases.yaml", "-o", "json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [case["line"] for case in found if not case["holds"]] == [15, 16, 17]
    assert found[0] | {"ends": len(found[0]["ends"])} == {
        "file": "cases.yaml",
        "line": 6,
        "from": "shop/web",
        "to": "shop/db",
        "asked": "tcp/5432",
        "holds": True,
        "expected": {"verdict": "allow", "by": "NetworkPolicy shop/db"},
        "actual": {
            "verdict": "allow",
            "by": [
                {"what": "profile", "name": "kns.shop", "rule": 0, "text": "Profile kns.shop egress rule 0"},
                {
                    "what": "policy",
                    "name": "NetworkPolicy shop/db",
                    "rule": 0,
                    "text": "NetworkPolicy shop/db ingress rule 0",
                },
            ],
        },
        "ends": 2,
    }


def test_junit_has_a_case_each_and_what_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "cases.yaml", "--junit", str(tmp_path / "report.xml")) == 1
    text = (tmp_path / "report.xml").read_text()
    assert re.sub(r' time="[^"]*"', "", text).rstrip() == golden("junit.xml").rstrip()
    assert run(monkeypatch, "cases.yaml", "--junit", str(tmp_path / "no" / "report.xml")) == 1
    assert "the report was not written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mistakes", "nobody"])
def test_all_mistakes_are_told_with_their_lines_and_no_case_is_tried(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, f"{name}.yaml") == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", golden(f"{name}.txt"))


def test_files_that_are_not_there_or_of_another_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for text, why in (
        ("[]", "a test file is one document with the fields resources, workloads, cases"),
        ("cases: [{from: a/b, to: a/b, protocol: tcp/1, expect: deny}]", "names no resources; give them there"),
        ("resources: [gone]\ncases: [{from: 192.0.2.1, to: 192.0.2.2, protocol: tcp/1, expect: deny}]", "gone: No"),
        ("cases: {", "expected"),
    ):  # fmt: skip
        path = tmp_path / "cases.yaml"
        path.write_text(text)
        assert run(monkeypatch, str(path)) == 1
        assert why in capsys.readouterr().err
    assert run(monkeypatch, "nowhere.yaml") == 1
    assert capsys.readouterr().err == "fabricctl: nowhere.yaml: No such file or directory\n"


def test_a_directory_is_its_test_files_and_those_are_no_policies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "policies.yaml").write_text(golden("shop/policies.yaml"))
    (tmp_path / "endpoints.yml").write_text(golden("shop/endpoints.yaml"))
    for name in ("a.test.yaml", "deep/b.test.yml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        cases = golden("cases.yaml").replace("[shop]", "['..']" if "deep" in name else "[./]")
        path.write_text(
            "\n".join(line for line in cases.splitlines() if "tcp/5432" in line or "{from" not in line)
        )
    assert run(monkeypatch, str(tmp_path)) == 0
    assert capsys.readouterr().out.startswith("6 cases")
    assert run(monkeypatch, str(tmp_path), "-R") == 0
    assert capsys.readouterr().out.startswith("12 cases")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run(monkeypatch, str(empty)) == 1
    assert "a directory without *.test.yaml or *.test.yml files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("by", "why"),
    [
        ("NetworkPolicy shop/dbb", "; did you mean NetworkPolicy shop/db?"),
        ("shop/gone ingress rule 0", "no policy, profile or tier here is called that"),
        ("end of tier defualt", "; did you mean end of tier default?"),
        ("the firewall", "; docs/reference/policy-tests.md has what there is"),
    ],
)
def test_a_by_that_nothing_is_called_is_a_mistake(
    by: str, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "cases.yaml"
    text = golden("cases.yaml").partition("cases:")[0]
    path.write_text(
        f'{text}cases: [{{from: shop/web, to: shop/db, protocol: tcp/1, expect: deny, by: "{by}"}}]\n'
    )
    assert run(monkeypatch, str(path), "-f", "shop") == 1
    told = capsys.readouterr().err
    assert f'cases.yaml:5: by "{by}"' in told
    assert why in told


def test_lists_are_each_with_each() -> None:
    [*cases] = read(
        """
resources: [.]
cases:
- {from: [a, b], to: [c, d], protocol: [tcp, udp], port: [1, 2], source-port: [3, 4], family: 6, expect: deny}
""",
        "x.yaml",
    ).cases
    assert len({(c.source, c.destination, c.asked) for c in cases}) == 32
    assert {(c.family, c.expect, c.where) for c in cases} == {(6, "deny", "x.yaml:4")}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("tcp/443", Asking(TCP, 443)),
        ("TCP/443", Asking(TCP, 443)),
        ("6/443", Asking(TCP, 443)),
        ("icmp", Asking(ICMP, icmp=Icmp(8, 0))),
        ("icmp/3", Asking(ICMP, icmp=Icmp(3, 0))),
        ("icmp/3/4", Asking(ICMP, icmp=Icmp(3, 4))),
        ("icmpv6", Asking(58, icmp=Icmp(128, 0))),
        ("47", Asking(47)),
    ],
)
def test_what_is_asked_for(text: str, want: Asking) -> None:
    assert asking(text) == want


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tcp",
        "tcp/",
        "tcp/0",
        "tcp/65536",
        "tcp/1/2",
        "tcp/a",
        "icmp/256",
        "icmp/1/2/3",
        "47/1",
        "0",
        "256",
    ],
)
def test_what_cannot_be_asked_for(text: str) -> None:
    with pytest.raises(ValueError, match=r"one of|needs one port|no ports|numbers|type and a code"):
        asking(text)


def test_a_workload_in_a_test_file_is_its_labels_and_its_namespaces() -> None:
    with pytest.raises(ConfigError, match=r"x.yaml:2: workloads.web: a workload is called NAMESPACE/NAME"):
        read("workloads:\n  web: {}\ncases: [{from: a, to: b, protocol: tcp/1, expect: deny}]", "x.yaml")


PAGE = Path(__file__).parents[2] / "docs/reference/policy-tests.md"


def test_the_example_of_the_reference_does_what_the_page_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policies, cases = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "db.yaml").write_text(policies)
    (tmp_path / "db.test.yaml").write_text(cases)
    with pytest.raises(SystemExit) as end:
        main(["policy", "test", str(tmp_path)])
    told = capsys.readouterr().out
    assert (end.value.code, f"\n{told}```" in PAGE.read_text()) == (0, True)


def test_the_reference_has_every_field_and_every_word_for_what_decides() -> None:
    page = PAGE.read_text()
    words = {"from", "to", "protocol", "port", "source-port", "family", "expect", "by"}
    assert {word for word in words if f"`{word}`" not in page} == set()
    told = [
        *("end of tier NAME", "end of profiles", "defaultEndpointToHostAction Drop", "from-host rule"),
        *("failsafe ports", "anti-spoofing", "tunnel guard", "KIND NAME, which is broken"),
    ]
    assert [text for text in told if f"`{text}`" not in page] == []
