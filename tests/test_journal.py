"""Rows and settings of runs that go on after a kill."""

from __future__ import annotations

import os

import pytest

from sjd2.journal import Journal, changes


def test_a_row_that_found_no_room_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "rows.jsonl")
    journal.append({"id": 1})
    before = journal.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            journal.append({"id": 2})
        assert journal.path.read_bytes() == before
        with pytest.raises(OSError, match="No space left"):
            journal.replace([])
    assert journal.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    journal.append({"id": 3, "prompt": "сапог"})
    assert list(journal.rows()) == [{"id": 1}, {"id": 3, "prompt": "сапог"}]


def test_only_what_is_no_whole_row_is_removed(tmp_path):
    journal = Journal(tmp_path / "rows.jsonl")
    journal.mend()
    assert not journal.path.exists()
    assert not list(journal.rows())
    for content in (b'{"id": 1}\n{"id": 2}\n', b'{"id": 1}\n{"id": 2}\n{"id"', b'{"id": 1}\n{"id": 2}\n{"id": 3}'):
        journal.path.write_bytes(content)
        journal.mend()
        assert list(journal.rows()) == [{"id": 1}, {"id": 2}]


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"a": [1, 2], "b": None}, {"a": (1, 2)}, ""),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, "a.b[1]: 2 → 3"),
        ({"a": [1]}, {"a": [1, 2]}, "a: 1 → 2 of them"),
        ({"a": 1}, {"b": 2}, "a: 1 → None; b: None → 2"),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, {}, "a: 1 → None; b: 1 → None; c: 1 → None; and 1 more"),
    ],
)
def test_changes_are_named_in_full(before, now, expected):
    assert changes(before, now) == expected
