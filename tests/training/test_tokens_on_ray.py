"""Images encoded by a pool of actors are the tokens that one process makes of them, and train the same."""

from __future__ import annotations

import pytest

from sjd2.cluster import Actors
from sjd2.training import prepare_tokens, read_examples
from support.tuning import load_model, write_images

ray = pytest.importorskip("ray")


def test_actors_make_the_file_that_one_process_would(folder, tmp_path):
    pictures = write_images(tmp_path / "pictures", 7)
    report = []
    output = prepare_tokens(pictures, tmp_path / "tokens.jsonl", model=folder, actors=Actors(count=2), batch_size=2, report=report.append)
    adapter = load_model(folder)
    expected, found = read_examples(pictures, adapter), read_examples(output, adapter)
    assert found.digest() == expected.digest()
    assert len({tuple(row) for row in found.tokens.tolist()}) == 7
    assert report == [f"{pictures}: 7 of 7 images encoded"]
    assert not ray.is_initialized()


@pytest.mark.full
def test_an_image_that_cannot_be_read_is_named_and_nothing_is_written(folder, tmp_path):
    pictures = write_images(tmp_path / "pictures", 7)
    (pictures / "4.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 5: 4.png cannot be read as an image"):
        prepare_tokens(pictures, tmp_path / "tokens.jsonl", model=folder, batch_size=2)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


@pytest.mark.parametrize(
    ("data", "output", "options", "kind", "message"),
    [
        ("pictures", "tokens.json", {}, ValueError, "output: expected a .jsonl file, got"),
        ("pictures", "tokens.jsonl", {"batch_size": 0}, ValueError, "batch_size: expected a whole number >= 1, got 0"),
        ("pictures", "pictures/0.png/tokens.jsonl", {}, OSError, "output: the folder"),
        ("nowhere", "tokens.jsonl", {}, FileNotFoundError, "data: nowhere is no folder"),
        ("empty", "tokens.jsonl", {}, ValueError, "data: expected metadata.jsonl in empty, found none"),
        ("none", "tokens.jsonl", {}, ValueError, "data: expected at least one record in none, got none"),
    ],
)
def test_what_is_wrong_is_named_before_a_cluster_is_started(folder, tmp_path, monkeypatch, data, output, options, kind, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sjd2.training.tokens_on_ray.cluster", None)
    write_images(tmp_path / "pictures", 1)
    write_images(tmp_path / "none", 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(kind, match=message):
        prepare_tokens(data, output, model=folder, **options)
