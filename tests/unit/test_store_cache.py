"""The journal a node starts from: what it gives back, and when it is of no use."""

import os
from itertools import pairwise
from pathlib import Path

import pytest

from fabric.errors import ConfigError
from fabric.store.cache import SLACK, Journal, Origin
from fabric.store.kv import Changes, KeyValue, Listing

ORIGIN = Origin("n1", "id-1", ("10.0.0.1:2379", "10.0.0.2:2379"))
A, B, C = (KeyValue(f"/calico/{name}", f'{{"v":"{name}"}}', 5) for name in "abc")


def begun(path: Path, *items: KeyValue, revision: int = 7) -> Journal:
    journal = Journal(path / "copy", ORIGIN)
    journal.begin(Listing(revision, items))
    return journal


def read(path: Path, origin: Origin = ORIGIN) -> Listing | None:
    copy = Journal(path / "copy", origin).read()
    return copy.listing if copy else None


def test_a_listing_and_the_changes_after_it_come_back_as_one_listing(tmp_path: Path) -> None:
    journal = begun(tmp_path, A, B)
    changed = KeyValue(A.key, "new", 8)
    journal.append([Changes(8, (changed, C)), Changes(9, (), (B.key,))])
    journal.append([Changes(12)])
    assert read(tmp_path) == Listing(12, (changed, C))


def test_an_empty_datastore_is_a_copy_too_and_no_file_is_none(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    begun(tmp_path)
    assert read(tmp_path) == Listing(7, ())


def test_what_is_no_utf8_comes_back_as_it_was(tmp_path: Path) -> None:
    odd = KeyValue("/calico/\udcff", "\udc80 ü\n\x00", 5)
    begun(tmp_path, odd)
    assert read(tmp_path) == Listing(7, (odd,))


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_torn_last_line_costs_that_change_alone(tmp_path: Path, cut: int) -> None:
    journal = begun(tmp_path, A)
    journal.append([Changes(8, (B,))])
    whole = (tmp_path / "copy").read_bytes()
    journal.append([Changes(9, (C,))])
    torn = (tmp_path / "copy").read_bytes()
    (tmp_path / "copy").write_bytes(torn[: max(len(torn) - cut, len(whole) + 1)].removesuffix(b"]"))
    assert read(tmp_path) == Listing(8, (A, B))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", ":1: not the first line"),
        (b"garbage\n", ":1: not the first line"),
        (b"\xff\xfe\n", "decode"),
        (b'{"version":2,"node":"n1","node_id":"id-1","etcd":["10.0.0.1:2379"]}\n', "version 2, not 1"),
        (b"HEAD[7,[],[]]\ngarbage\n[8,[],[]]\n", ":3: not a change"),
        (b"HEAD[7,[],[]]\n[8,5,[]]\n[9,[],[]]\n", ":3: not a change"),
        (b'HEAD[7,[["/calico/a"]],[]]\n[9,[],[]]\n', ":2: not a change"),
    ],
)
def test_a_file_that_is_no_journal_is_refused_with_the_line(tmp_path: Path, content: bytes, why: str) -> None:
    begun(tmp_path, A)
    head = (tmp_path / "copy").read_bytes().splitlines(keepends=True)[0]
    (tmp_path / "copy").write_bytes(content.replace(b"HEAD", head))
    with pytest.raises(ConfigError, match=f"{why}.*it is not used"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("origin", "why"),
    [
        (Origin("n2", "id-1", ORIGIN.etcd), 'of node "n1"'),
        (Origin("n1", "id-2", ORIGIN.etcd), 'of node "n1"'),
        (Origin("n1", "id-1", ("10.9.9.9:2379",)), "of which the configuration names none"),
    ],
    ids=["another name", "the same name joined anew", "another cluster"],
)
def test_the_copy_of_another_node_or_cluster_is_refused(tmp_path: Path, origin: Origin, why: str) -> None:
    begun(tmp_path, A)
    with pytest.raises(ConfigError, match=f"{why}.*it is not used"):
        read(tmp_path, origin)


def test_a_cluster_that_has_changed_some_of_its_members_is_the_same(tmp_path: Path) -> None:
    begun(tmp_path, A)
    assert read(tmp_path, Origin("n1", "id-1", ("10.0.0.2:2379", "10.0.0.3:2379")))


def test_it_is_written_whole_when_it_has_doubled_and_holds_the_same(tmp_path: Path) -> None:
    journal = begun(tmp_path, A)
    sizes = []
    for revision in range(8, 40):
        journal.append([Changes(revision, (KeyValue(A.key, str(revision) * (SLACK // 20), revision),))])
        sizes.append((tmp_path / "copy").stat().st_size)
    assert any(after < before for before, after in pairwise(sizes))
    assert max(sizes) < 4 * SLACK
    assert read(tmp_path) == Listing(39, (KeyValue(A.key, "39" * (SLACK // 20), 39),))


def test_only_root_may_read_it_whatever_the_mask_says(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        journal = begun(tmp_path, A)
        journal.append([Changes(8)])
    finally:
        os.umask(before)
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600


def test_it_knows_when_it_was_last_known_to_be_true(tmp_path: Path) -> None:
    journal = begun(tmp_path, A)
    os.utime(tmp_path / "copy", (1000, 1000))
    copy = journal.read()
    assert copy
    assert copy.as_of == 1000
    journal.append([])
    renewed = journal.read()
    assert renewed
    assert renewed.as_of > 1000
    assert renewed.listing == copy.listing
