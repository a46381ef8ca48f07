"""The resource verbs' arguments: what is refused before anything is read or asked."""

import pytest

from fabric.cli.main import main


@pytest.mark.parametrize(
    "args",
    [
        ("get",),
        ("get", "pools", "-o", "xml"),
        ("get", "pools", "-o", "jsonpath="),
        ("get", "pools", "-f", "x"),
        ("get", "np", "x", "-A"),
        ("delete", "pools"),
        ("delete", "pools", "a", "-f", "x"),
        ("patch", "pool", "a"),
        ("patch", "pool", "a", "-p", "{}", "-t", "other"),
        ("label", "pool", "a"),
        ("label", "pool", "a", "novalue"),
        ("label", "pool", "a", "x=1", "x-"),
        ("label", "pool", "a", "x=1", "x=2"),
        ("label", "pool", "a", "x", "--remove", "--overwrite"),
        ("apply",),
        ("diff",),
    ],
    ids=" ".join,
)
def test_a_usage_error_is_status_2_and_says_what(
    args: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(args))
    assert end.value.code == 2
    told = capsys.readouterr()
    assert (told.out, "Error" in told.err) == ("", True)
