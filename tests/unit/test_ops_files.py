"""What `apply`, `validate` and `convert` read: which files there are, and every mistake in them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fabric.errors import ConfigError
from fabric.model.ippool import IPPool
from fabric.ops import files

HEAD = "apiVersion: projectcalico.org/v3\nkind: {}\nmetadata:\n  name: {}\n"


def node(name: str) -> str:
    return HEAD.format("Node", name)


def names(*given: Path, recursive: bool = False) -> list[tuple[str, str]]:
    read = files.read([str(path) for path in given], recursive=recursive)
    return [(g.resource.metadata.name, g.where) for g in read]


def refusal(*given: Path | str, recursive: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        files.read([str(path) for path in given], recursive=recursive)
    return str(caught.value)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three files in a directory, one in a directory of that, and a link from there back up."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.yaml").write_text(node("b1") + "---\n" + node("b2"))
    (tmp_path / "a.yml").write_text(node("a"))
    (tmp_path / "c.json").write_text(
        '{"apiVersion": "projectcalico.org/v3", "kind": "Node",\n"metadata": {"name": "c"}}'
    )
    (tmp_path / "README.md").write_text("not ours")
    (tmp_path / "deep" / "d.yaml").write_text(node("d"))
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    return tmp_path


def test_a_directory_stands_for_its_files_in_order(tree: Path) -> None:
    assert names(tree) == [
        ("a", f"{tree}/a.yml:1"),
        ("b1", f"{tree}/b.yaml:1"),
        ("b2", f"{tree}/b.yaml:6"),
        ("c", f"{tree}/c.json:1"),
    ]


def test_only_a_recursive_read_takes_directories_within_and_no_link_leads_it_in_circles(tree: Path) -> None:
    assert [name for name, _ in names(tree, recursive=True)] == ["a", "b1", "b2", "c", "d"]


def test_a_file_that_is_named_needs_no_suffix(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(node("x"))
    assert names(tmp_path / "x") == [("x", f"{tmp_path}/x:1")]


def test_standard_input_is_read_where_a_dash_is_named() -> None:
    code = "from fabric.ops import files\n[given] = files.read(['-'])\nprint(given.where)"
    done = subprocess.run(
        [sys.executable, "-c", code], input="---\n" + node("x"), capture_output=True, text=True, check=True
    )
    assert done.stdout == "standard input:2\n"


def test_a_closed_standard_input_is_said_to_be_closed() -> None:
    code = "from fabric.ops import files\nfor d in files.documents(['-']): print(*d.errors())"
    command = ["sh", "-c", 'exec "$0" -c "$1" <&-', sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "standard input: is closed\n"


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w") as pipe:
        pipe.write(node("x"))
        pipe.close()
        assert names(Path(f"/dev/fd/{reading}")) == [("x", f"/dev/fd/{reading}:1")]


def test_every_mistake_in_every_file_is_named_at_once(tmp_path: Path) -> None:
    good, bad, worse = (tmp_path / f"{name}.yaml" for name in ("good", "bad", "worse"))
    good.write_text(node("n"))
    bad.write_text(node("N") + "---\n" + HEAD.format("IPPool", "p") + "spec: {cidr: 10.0.0.1/16}\n")
    worse.write_text("a: 1\n---\nb: [\n---\n" + HEAD.format("Nod", "n"))
    assert refusal(worse, good, tmp_path / "none.yaml", bad).splitlines() == [
        f"{worse}:1: apiVersion: must be projectcalico.org/v3, networking.k8s.io/v1 or v1",
        f"{worse}:4: did not find expected node content",
        f'{worse}:6: kind: "Nod": no kind of projectcalico.org/v3; did you mean Node?',
        f"{tmp_path}/none.yaml: No such file or directory",
        f"{bad}:4: metadata.name: \"N\": a name is lower-case letters, digits, '-' and '.', at most 253 characters",
        f'{bad}:10: spec.cidr: "10.0.0.1/16": has host bits set; the prefix around it is 10.0.0.0/16',
        "nothing was changed",
    ]


HOLDS_NOTHING = "no resource in it; nothing was changed"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", f": {HOLDS_NOTHING}"),
        (b"# nothing\n---\n...\n", f": {HOLDS_NOTHING}"),
        (b"kind: NodeList\nitems: []\n", f": {HOLDS_NOTHING}"),
        (b"a: 1\nb: \xff\n", ":2: byte 0xff is not UTF-8; save the file as UTF-8; nothing was changed"),
        (
            "a: ü\n".encode("utf-16"),
            ":1: byte 0xff is not UTF-8; save the file as UTF-8; nothing was changed",
        ),
        (b"x" * 10_000_000, ": larger than 4 MiB; split the file; nothing was changed"),
    ],
    ids=["empty", "comments", "empty list", "Latin", "UTF-16", "10 MB"],
)
def test_a_file_that_holds_no_resource_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(content)
    assert refusal(path) == f"{path}{message}"


def test_10_mb_of_sound_yaml_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text((node("n") + "---\n") * 150_000)
    assert refusal(path) == f"{path}: larger than 4 MiB; split the file; nothing was changed"


def test_a_stream_without_an_end_is_refused_like_a_large_file() -> None:
    assert refusal("/dev/zero") == "/dev/zero: larger than 4 MiB; split the file; nothing was changed"


def test_a_directory_without_resources_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("")
    rule = "a directory without .yaml, .yml, .json files"
    assert refusal(tmp_path) == f"{tmp_path}: {rule}; -R looks into its directories too; nothing was changed"
    assert refusal(tmp_path, recursive=True) == f"{tmp_path}: {rule}; nothing was changed"


def test_an_empty_file_among_others_in_a_directory_is_passed_over(tree: Path) -> None:
    (tree / "a.yml").write_text("# later\n")
    assert [name for name, _ in names(tree)] == ["b1", "b2", "c"]


def test_a_link_to_nothing_is_not_passed_over(tree: Path) -> None:
    (tree / "gone.yaml").symlink_to("nowhere")
    assert refusal(tree) == f"{tree}/gone.yaml: No such file or directory; nothing was changed"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 300, f"{'x' * 300}: File name too long; nothing was changed"),
        ("a\0b", "a\\x00b: embedded null byte; nothing was changed"),
        ("\udcff.yaml", "\\udcff.yaml: No such file or directory; nothing was changed"),
        ("", '"": a file\'s name is empty; nothing was changed'),
    ],
    ids=["long", "NUL", "not UTF-8", "none"],
)
def test_a_name_no_file_can_have_is_one_that_cannot_be_read(name: str, message: str) -> None:
    assert refusal(name) == message


POOL = HEAD.format("IPPool", "p") + "spec:\n  cidr: 10.0.0.0/16\n"
PEER = HEAD.format("BGPPeer", "p") + "spec:\n  peerIP: 192.0.2.1\n"
POLICY = HEAD.format("NetworkPolicy", "p") + "spec:\n  ingress:\n  - action: Allow\n"
KUBERNETES = POLICY.replace("projectcalico.org/v3", "networking.k8s.io/v1").replace("action: Allow", "ports:")
NAME = "a name is lower-case letters, digits, '-' and '.', at most 253 characters"
LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{below}'] * 9)}]\n"
    for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)
AS = "at most 4294967295"


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        pytest.param(
            PEER + "  asNumber: 1.10\n",
            '7: spec.asNumber: 1.10: must be a whole number; a dotted AS number is put in quotes: "1.10"',
            id="AS as a fraction",
        ),
        pytest.param(
            POOL + "  blockSize: [26]\n", "7: spec.blockSize: must be a whole number", id="wrong type"
        ),
        pytest.param(
            POOL + "  blockSize: '26'\n",
            '7: spec.blockSize: "26": must be a whole number; leave the quotes out',
            id="quotes",
        ),
        pytest.param(
            POOL + "  blockSize: 33\n", "7: spec.blockSize: 33: must be 20 to 32 for IPv4", id="block size"
        ),
        pytest.param(POOL + "  disabled: off\n", '7: spec.disabled: "off": must be true or false', id="off"),
        pytest.param(
            POOL.replace("0/16", "1/16"),
            '6: spec.cidr: "10.0.0.1/16": has host bits set; the prefix around it is 10.0.0.0/16',
            id="host bits",
        ),
        pytest.param(
            POOL + "  cidr: fd00::/48\n", '7: key "cidr" is given twice, first on line 6', id="twice"
        ),
        pytest.param(
            PEER + "  asNumber: 4294967296\n", f"7: spec.asNumber: 4294967296: must be {AS}", id="AS 2^32"
        ),
        pytest.param(
            PEER + "  asNumber: '4294967296'\n",
            f"7: spec.asNumber: 4294967296: must be {AS}",
            id="AS in quotes",
        ),
        pytest.param(
            PEER + "  node: a\n  nodeSelector: all()\n",
            '8: spec.nodeSelector: "all()": excludes node',
            id="node and selector",
        ),
        pytest.param(node("x" * 254), f'4: metadata.name: "{"x" * 59}…: {NAME}', id="name over the limit"),
        pytest.param(
            POLICY + "    protocol: TCP\n    destination: {ports: [8080:53]}\n",
            '9: spec.ingress[0].destination.ports[0]: "8080:53": ports are 1 to 65535, and a range goes upwards',
            id="8080:53",
        ),
        pytest.param(
            KUBERNETES + "    - port: 8080:53\n",
            '8: spec.ingress[0].ports[0].port: "8080:53": must be a number from 1 to 65535, or a port\'s name: '
            "up to 15 lower-case letters, digits and '-', with a letter among them",
            id="Kubernetes' 8080:53",
        ),
        pytest.param(LAUGHS, "6: more than 500000 values once its aliases are expanded", id="alias bomb"),
    ],
)
def test_a_mistake_of_an_operator_is_named_with_its_line(tmp_path: Path, text: str, mistake: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    assert refusal(path) == f"{path}:{mistake}; nothing was changed"


def test_fields_that_a_kind_does_not_have_are_told_apart_and_kept_unless_more_is_wrong(
    tmp_path: Path,
) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(POOL + "  blokSize: 26\n")
    [given] = files.read([str(path)])
    told = f"{path}:7: spec.blokSize: no such field; did you mean blockSize?"
    assert given.unknown == ((("spec", "blokSize"), told),)
    assert isinstance(given.resource, IPPool)
    assert given.resource.spec.model_extra == {"blokSize": 26}
    path.write_text(POOL + "  blokSize: 26\n  blockSize: 99\n")
    assert told in refusal(path)
    assert len(refusal(path).splitlines()) == 3


def test_pools_over_one_another_and_an_object_given_twice_are_found_in_the_files_alone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "f.yaml"
    other = POOL.replace("name: p", "name: other")
    path.write_text("---\n".join((POOL, node("n1"), other, node("n1"))))
    documents = list(files.documents([str(path)]))
    lines = [
        line for d, wrong in zip(documents, files.among(documents), strict=True) for line in d.errors(wrong)
    ]
    overlap = (
        "spec.cidr: "
        + json.dumps(str(documents[0].entry.document.value["spec"]["cidr"]))
        + ": overlaps IPPool "
    )
    assert [overlap in line for line in lines] == [True, True, False]
    assert f'metadata.name: "n1": this Node is given twice, first at {path}:' in lines[2]
