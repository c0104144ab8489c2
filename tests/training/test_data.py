"""Data: the three forms, and an error with file and line for everything that is wrong in them."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sjd2 import load_adapter
from sjd2.training import read_examples
from support.tuning import CODES, TOKENS, examples, write_images, write_tokens

GOOD = {"prompt": "a bag", "tokens": list(range(TOKENS))}


def write(path, *records):
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    return path


def test_a_token_file_is_read_as_it_is(adapter, tmp_path):
    file = write_tokens(tmp_path / "tokens.jsonl")
    data = read_examples(file, adapter)
    assert len(data) == 12
    for index, example in enumerate(examples(12)):
        assert data[index]["prompt"] == example["prompt"]
        assert data[index]["tokens"].tolist() == example["tokens"]
        assert data[index]["tokens"].dtype == torch.int64


def test_a_list_such_as_generate_writes_is_the_same(adapter, tmp_path):
    rows = [{"prompt": example["prompt"], "method": "ar", "seed": 3, "tokens": example["tokens"], "seconds": 1.5} for example in examples(4)]
    (tmp_path / "figures.json").write_text(json.dumps(rows, indent=1))
    data = read_examples(tmp_path / "figures.json", adapter)
    assert [data[index]["tokens"].tolist() for index in range(4)] == [example["tokens"] for example in examples(4)]


def test_images_are_encoded_by_the_models_tokenizer(adapter, tmp_path):
    folder = write_images(tmp_path / "pictures", count=5)
    shown = []
    data = read_examples(folder, adapter, batch_size=2, progress=lambda done, total: shown.append((done, total)))
    assert shown == [(2, 5), (4, 5), (5, 5)]
    for index in range(5):
        pixels = torch.from_numpy(np.array(Image.open(folder / f"{index}.png"))).permute(2, 0, 1)[None] / 127.5 - 1
        assert data[index]["tokens"].tolist() == adapter.tokenizer.encode(pixels).flatten().tolist()
        assert data[index]["prompt"] == "a bag"


def test_pictures_become_tokens_and_tokens_pictures(pipeline):
    picture = pipeline("a red coat on a yellow background", method="jacobi").images[0]
    again = pipeline.adapter.images(pipeline.adapter.encode([picture]))[0]
    difference = np.abs(np.asarray(again, dtype=int) - np.asarray(picture, dtype=int))
    assert difference.mean() < 8  # of 255


def test_an_image_of_another_shape_is_cropped_to_its_centre_and_resized(adapter):
    side = 8
    pixels = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).numpy()
    picture = Image.fromarray(pixels)
    wide = Image.new("RGB", (2 * side, side), "red")
    wide.paste(picture, (side // 2, 0))
    large = picture.resize((8 * side, 8 * side), Image.Resampling.NEAREST)
    expected = adapter.encode([picture])
    assert expected.shape == (1, TOKENS)
    assert expected.dtype == torch.int64
    assert torch.equal(adapter.encode([wide]), expected)
    assert torch.equal(adapter.encode([large.convert("RGBA")]), adapter.encode([large.resize((side, side), Image.Resampling.LANCZOS)]))


def test_a_photo_taken_sideways_is_turned(adapter, tmp_path):
    folder = write_images(tmp_path / "pictures", count=1)
    upright = read_examples(folder, adapter)[0]["tokens"]
    picture = Image.open(folder / "0.png").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90° clockwise
    picture.save(folder / "0.png", exif=exif)
    assert torch.equal(read_examples(folder, adapter)[0]["tokens"], upright)


def test_kept_tokens_serve_until_an_image_changes(adapter, tmp_path, monkeypatch):
    folder = write_images(tmp_path / "pictures")
    keep = tmp_path / "kept" / "tokens.npz"
    first = read_examples(folder, adapter, keep=keep)
    with monkeypatch.context() as patch:
        patch.setattr(adapter, "encode", lambda images: pytest.fail("encoded again"))
        again = read_examples(folder, adapter, keep=keep)
    assert again.digest() == first.digest()
    Image.new("RGB", (8, 8), "red").save(folder / "0.png")
    changed = read_examples(folder, adapter, keep=keep)
    assert changed.digest() != first.digest()
    assert torch.equal(changed[1]["tokens"], first[1]["tokens"])


def test_a_held_out_share_is_the_same_for_a_seed_and_nothing_is_in_both(adapter, tmp_path):
    data = read_examples(write_tokens(tmp_path / "tokens.jsonl", 20), adapter)

    def rows(part):
        return [tuple(part[index]["tokens"].tolist()) for index in range(len(part))]

    train, held_out = data.split(0.25, 1)
    assert (len(train), len(held_out)) == (15, 5)
    assert sorted(rows(train) + rows(held_out)) == sorted(rows(data))
    assert rows(data.split(0.25, 1)[1]) == rows(held_out)
    assert rows(data.split(0.25, 2)[1]) != rows(held_out)
    assert [len(part) for part in data.split(0.001, 1)] == [19, 1]
    assert [len(part) for part in data.split(0.999, 1)] == [1, 19]


def test_one_example_cannot_be_split(adapter, tmp_path):
    data = read_examples(write_tokens(tmp_path / "tokens.jsonl", 1), adapter)
    with pytest.raises(ValueError, match="held_out: expected at least 2 examples to hold some of them out, got 1"):
        data.split(0.5, 0)


def test_unknown_words_are_one_warning(adapter, tmp_path):
    file = write(tmp_path / "t.jsonl", {**GOOD, "prompt": "a shiny bag"}, GOOD, {**GOOD, "prompt": "an umbrella"}, {**GOOD, "prompt": ""})
    with pytest.warns(UserWarning, match="the model does not know shiny, umbrella") as caught:
        read_examples(file, adapter)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ((GOOD, "{oops"), r"t\.jsonl, line 2: expected JSON, got '{oops'"),
        ((GOOD, "", [1]), r"t\.jsonl, line 3: expected an object, got \[1\]"),
        (({"tokens": [1]},), r"t\.jsonl, line 1: expected a caption in 'prompt', got nothing"),
        ((GOOD, {"prompt": 7, "tokens": [1]}), r"line 2: expected a caption in 'prompt', got 7"),
        (({"prompt": "a bag"},), r"line 1: expected a list of token ids in 'tokens', got nothing"),
        ((GOOD, {**GOOD, "tokens": GOOD["tokens"][1:]}), "line 2: expected 16 tokens, got 15"),
        ((GOOD, {**GOOD, "tokens": [*GOOD["tokens"][1:], CODES]}), "line 2: expected token ids from 0 to 29, got 30 as token 15"),
        (({**GOOD, "tokens": [-1, *GOOD["tokens"][1:]]},), "line 1: expected token ids from 0 to 29, got -1 as token 0"),
        (({**GOOD, "tokens": [1.5, *GOOD["tokens"][1:]]},), "line 1: expected token ids from 0 to 29, got 1.5 as token 0"),
        ((GOOD, {**GOOD, "prompt": "coat " * 40}), r"t\.jsonl, line 2: prompt: expected at most 30 words, got 40"),
        ((), r"data: expected at least one record in .*t\.jsonl, got none"),
    ],
)
def test_a_bad_record_of_tokens_is_named_by_file_and_line(adapter, tmp_path, records, message):
    with pytest.raises(ValueError, match=message):
        read_examples(write(tmp_path / "t.jsonl", *records), adapter)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", r"t\.json: expected a list, got dict"),
        ("[1,\n", r"t\.json: expected JSON: .* line 2"),
        (json.dumps([GOOD, 3]), r"t\.json, entry 2: expected an object, got 3"),
        (json.dumps([GOOD, {**GOOD, "tokens": []}]), r"t\.json, entry 2: expected 16 tokens, got 0"),
    ],
)
def test_a_bad_list_is_named_by_file_and_entry(adapter, tmp_path, text, message):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_examples(tmp_path / "t.json", adapter)


def test_a_structural_token_has_to_be_there(adapter, tmp_path, monkeypatch):
    layout = adapter.layout(1)
    forced = torch.where(torch.arange(TOKENS) == 3, 9, -1)[None]
    monkeypatch.setattr(adapter, "layout", lambda count: replace(layout, forced=forced))
    with pytest.raises(ValueError, match="line 1: expected the structural token 9 as token 3, got 3"):
        read_examples(write(tmp_path / "t.jsonl", GOOD), adapter)
    assert len(read_examples(write(tmp_path / "t.jsonl", {**GOOD, "tokens": [*range(3), 9, *range(4, 16)]}), adapter)) == 1


def _lines(folder, *records):
    write(folder / "metadata.jsonl", *records)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "metadata.jsonl").unlink(), "data: expected metadata.jsonl in .*pictures, found none"),
        (lambda folder: (folder / "metadata.jsonl").write_text(""), "data: expected at least one record"),
        (lambda folder: (folder / "2.png").unlink(), r"metadata\.jsonl, line 3: expected the image 2\.png in .*pictures, found none"),
        (lambda folder: (folder / "1.png").write_bytes(b"no image"), r"line 2: 1\.png cannot be read as an image"),
        (lambda folder: (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:60]), r"line 2: 1\.png cannot be read as an image"),
        (lambda folder: _lines(folder, {"file_name": "0.png"}), "line 1: expected a caption in 'text', got nothing"),
        (lambda folder: _lines(folder, {"text": "a bag"}), "line 1: expected the name of an image in 'file_name', got nothing"),
        (lambda folder: _lines(folder, {"file_name": "0.png", "text": ["a"]}), r"line 1: expected a caption in 'text', got \['a'\]"),
        (lambda folder: (folder / "metadata.jsonl").write_bytes(b"\xff\xfe"), r"metadata\.jsonl, line 1: expected JSON"),
    ],
    ids=["no metadata", "empty", "missing", "no image", "cut image", "no text", "no name", "list", "not utf-8"],
)
def test_what_is_wrong_in_a_folder_is_named(adapter, tmp_path, damage, message):
    folder = write_images(tmp_path / "pictures")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        read_examples(folder, adapter)


def test_what_is_neither_is_an_error(adapter, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data: .*nowhere does not exist"):
        read_examples(tmp_path / "nowhere", adapter)
    (tmp_path / "data.csv").write_text("")
    with pytest.raises(ValueError, match=r"data: expected a folder with metadata.jsonl, or a .jsonl or .json file of tokens, got .*data\.csv"):
        read_examples(tmp_path / "data.csv", adapter)


def test_the_embedded_models_tokens_are_read_without_a_warning(tmp_path):
    file = write(tmp_path / "t.jsonl", {"prompt": "", "tokens": [999] * 256})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_examples(file, load_adapter(None, device="cpu"))) == 1
