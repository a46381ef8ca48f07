"""Whatever is typed, the command line ends with status 0, 1 or 2 and a message; never with a traceback."""

import io
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.cli.main import COMMANDS, GROUPS, main
from fabric.cli.output import table
from tests.unit.test_fuzz_files import DOCUMENTS

# No etcd is called like this, so that nothing typed here can reach one.
NOWHERE = ["--etcd", "nowhere"]

WORDS = (
    "-f|-f|-f|-|-|-R|-o|json|yaml|table|wide|name|jsonpath={.metadata.name}|jsonpath={|text|-n|default|-A|--dry-run|-p|-t"
    '|merge|strategic|{}|{"spec": {}}|[{"op": "add"}]|a=b|a-|--overwrite|--remove|--skip-exists|--skip-not-exists|-h'
    "|--help|--|node|ippools|wep|all|policy/a|default|bash|zsh|/dev/null|sound.yaml|broken.yaml|deep|.|none.yaml|=|%s|*"
)
NOT_UTF_8 = "\udcff"  # as Python gives us what is typed and is not
words = st.sampled_from([*WORDS.split("|"), NOT_UTF_8]) | st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), max_size=6
)
inputs = st.sampled_from([*DOCUMENTS, "", "a: [", "---\n" * 3, "kind: List\nitems: [1]\n"]).map(
    str.encode
) | st.binary(max_size=20)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli")
    (path / "deep").mkdir()
    (path / "sound.yaml").write_text("---\n".join(DOCUMENTS))
    (path / "broken.yaml").write_bytes(b"a: \xff")
    (path / "deep" / "pool.json").write_text('{"kind": "IPPool"}')
    return path


@contextmanager
def typed_in(directory: Path, stdin: bytes) -> Iterator[io.StringIO]:
    """Standard streams as a command in `directory` has them; yields what becomes of stderr."""
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin))
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    try:
        with chdir(directory), redirect_stdout(out), redirect_stderr(io.StringIO()) as err:
            yield err
    finally:
        sys.stdin = before


def status(directory: Path, argv: list[str], stdin: bytes = b"") -> int:
    with typed_in(directory, stdin) as err:
        try:
            main([*NOWHERE, *argv])
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
    assert code in {0, 1, 2}, code
    assert isinstance(code, int)
    assert code < 2 or err.getvalue()
    return code


@settings(max_examples=400, deadline=None)
@given(verb=st.sampled_from(sorted(COMMANDS)), rest=st.lists(words, max_size=7), stdin=inputs)
def test_any_words_behind_a_verb(directory: Path, verb: str, rest: list[str], stdin: bytes) -> None:
    status(directory, [verb, *rest], stdin)


@settings(max_examples=200, deadline=None)
@given(
    verb=st.sampled_from(["validate", "convert"]),
    form=st.sampled_from(["json", "yaml", "table"]),
    stdin=inputs,
)
def test_any_input_of_the_verbs_that_only_look(directory: Path, verb: str, form: str, stdin: bytes) -> None:
    status(directory, [verb, "-f", "-", "-o", form], stdin)


no_command = st.text(max_size=6).map("%".__add__)


@settings(max_examples=100, deadline=None)
@given(argv=st.tuples(st.sampled_from(sorted(GROUPS)) | no_command, no_command))
def test_words_that_are_no_command_are_a_usage_error(directory: Path, argv: tuple[str, str]) -> None:
    assert status(directory, list(argv)) == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


cells = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=40)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), headings=st.lists(cells, min_size=1, max_size=9), width=st.integers(20, 200))
def test_any_table_on_a_terminal_of_any_width(data: st.DataObject, headings: list[str], width: int) -> None:
    row = st.lists(cells, min_size=len(headings), max_size=len(headings))
    rows = data.draw(st.lists(row, max_size=3))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(Terminal()) as out:
        patch.setenv("COLUMNS", str(width))
        patch.setenv("TERM", "xterm")
        table(headings, rows)
    assert out.getvalue().endswith("\n")
