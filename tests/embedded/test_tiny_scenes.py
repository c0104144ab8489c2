"""The embedded model's data, tokenizers and training loop."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import torch

from sjd2.adapters.registry import EMBEDDED_MODEL
from sjd2.tiny_scenes.fsq import FSQConfig, FSQTokenizer
from sjd2.tiny_scenes.judge import background_colour, garment_colour
from sjd2.tiny_scenes.prompts import COLOURS, GARMENTS, HELD_OUT_PAIRS, caption, held_out_prompts, parse_prompt
from sjd2.tiny_scenes.scenes import SceneSampler
from sjd2.tiny_scenes.source import find_photos
from sjd2.tiny_scenes.text import build_text_tokenizer
from support.forked import Forked
from support.stage import stage


def photos() -> tuple[torch.Tensor, torch.Tensor]:
    """Ellipses instead of garments: the data set is not on every machine that runs the tests."""
    y, x = torch.meshgrid(torch.arange(28), torch.arange(28), indexing="ij")
    shapes = [(((x - 14) / (5 + label)) ** 2 + ((y - 14) / 12) ** 2 < 1) * (150 + 10 * label) for label in range(10)]
    return torch.stack(shapes).to(torch.uint8).repeat(20, 1, 1), torch.arange(10).repeat(20)


def test_held_out_pairs_cover_garments_and_colours_and_stay_out_of_training():
    assert len(HELD_OUT_PAIRS) == 20
    assert {garment for garment, _ in HELD_OUT_PAIRS} == set(GARMENTS)
    assert {colour for _, colour in HELD_OUT_PAIRS} == set(COLOURS)
    for held_out in (False, True):
        batch = SceneSampler(*photos(), held_out=held_out).batch(0, 500)
        pairs = {(GARMENTS[g], list(COLOURS)[c]) for g, c in zip(batch.garment.tolist(), batch.colour.tolist(), strict=True)}
        assert all((pair in HELD_OUT_PAIRS) == held_out for pair in pairs)
        assert (batch.colour != batch.background).all()


def test_scenes_repeat_by_number_and_not_otherwise():
    sampler = SceneSampler(*photos(), seed=3)
    first, again, other = sampler.batch(5, 8), sampler.batch(5, 8), sampler.batch(6, 8)
    assert torch.equal(first.pixels, again.pixels)
    assert first.captions == again.captions
    assert not torch.equal(first.pixels, other.pixels)


def test_a_scene_shows_what_its_caption_says():
    batch = SceneSampler(*photos(), full_captions=True).batch(0, 200)
    assert batch.pixels.shape == (200, 3, 32, 32)
    assert batch.pixels.abs().max() <= 1
    assert torch.equal(background_colour(batch.pixels), batch.background)
    assert (garment_colour(batch.pixels) == batch.colour).float().mean() > 0.9
    for text, g, c, b in zip(batch.captions, batch.garment, batch.colour, batch.background, strict=True):
        assert parse_prompt(text) == (GARMENTS[g], list(COLOURS)[c], list(COLOURS)[b])


def test_some_captions_are_empty_for_guidance():
    captions = SceneSampler(*photos()).batch(0, 2000).captions
    assert 0.07 < captions.count("") / 2000 < 0.13


def test_captions_and_held_out_prompts():
    assert caption("bag", "orange", "teal") == "an orange bag on a teal background"
    assert caption("coat") == "a coat"
    assert parse_prompt("a coat") == ("coat", None, None)
    assert parse_prompt("something else") == (None, None, None)
    prompts = held_out_prompts()
    assert len(set(prompts)) == len(prompts) == 220
    assert all(parse_prompt(prompt)[:2] in HELD_OUT_PAIRS for prompt in prompts)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("A RED coat!", "a red coat"),
        ("a grey t shirt", "a gray t-shirt"),
        ("pants", "trousers"),
        ("an ankle boot", "an boot"),
        ("a  jumper", "a pullover"),
    ],
)
def test_spellings_fold(text, same):
    tokenizer = build_text_tokenizer()
    assert tokenizer(text)["input_ids"] == tokenizer(same)["input_ids"]
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


def test_every_code_decodes_and_encodes_to_itself():
    model = FSQTokenizer()
    codes = torch.arange(1000)
    index = codes[:, None, None, None] // model._column(model.strides) % model._column(model.levels)
    assert torch.equal((index * model._column(model.strides)).sum(1).flatten(), codes)
    assert model._centred(index.float()).abs().max() == 1
    quantised = model.quantise(torch.randn(50, 4, 3, 3) * 3)
    assert torch.equal(quantised, quantised.round())
    assert (quantised >= 0).all()
    assert (quantised < model._column(model.levels)).all()


def test_the_shipped_tokenizer_reconstructs():
    model = FSQTokenizer.from_pretrained(EMBEDDED_MODEL)
    pixels = SceneSampler(*photos()).batch(0, 32).pixels
    error = (model.decode(model.encode(pixels)) - pixels).square().mean() / 4
    assert -10 * error.log10() > 24  # dB, on shapes it never saw


def test_fsq_settings_survive_saving(tmp_path):
    model = FSQTokenizer(FSQConfig(levels=(3, 4), patch=4, channels=8, encoder_blocks=1, decoder_blocks=1))
    model.save_pretrained(tmp_path)
    again = FSQTokenizer.from_pretrained(tmp_path)
    assert again.config == model.config
    assert again.codebook_size == 12
    assert again.decode(again.encode(torch.zeros(1, 3, 16, 16))).shape == (1, 3, 16, 16)


def test_wrong_photos_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"photos: expected train-images-idx3-ubyte.gz in .*, found none"):
        find_photos(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"photos: .*expected SHA-256 b0564c3e.*, got "):
        find_photos(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
def test_a_killed_training_ends_as_if_it_had_not_been_killed(tmp_path):
    expected = stage(tmp_path / "whole")
    process = Forked(stage, tmp_path / "killed", 0.1, folder=tmp_path / "printed")
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / "line.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL, "it ended before it could be killed"
    assert stage(tmp_path / "killed") == expected
    rows = [json.loads(line) for line in (tmp_path / "killed" / "line.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(2, 41, 2))
    assert (rows[-1]["step"], rows[-1]["resumed"]) == (40, 1)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_log_rows_past_the_checkpoint_and_cut_lines_are_written_again(tmp_path):
    stage(tmp_path)
    log, checkpoint = tmp_path / "line.jsonl", tmp_path / "line.pt"
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state | {"step": 31}, checkpoint)
    with log.open("a") as file:
        file.write('{"step": 4')
    stage(tmp_path)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(2, 41, 2))


def test_a_finished_stage_is_not_trained_again(tmp_path):
    expected = stage(tmp_path)
    log = (tmp_path / "line.jsonl").read_text()
    assert stage(tmp_path) == expected
    assert (tmp_path / "line.jsonl").read_text() == log


def test_a_checkpoint_of_another_schedule_is_refused(tmp_path):
    stage(tmp_path)
    with pytest.raises(ValueError, match=r"expected the schedule .*'steps': 41.*, got .*'steps': 40"):
        stage(tmp_path, steps=41)
