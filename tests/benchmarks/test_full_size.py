"""The timing of full-size models, on models of a few thousand parameters."""

import json

import full_size
import pytest
import torch
from model_sizes import Size
from transformers import Emu3Config, Emu3ForConditionalGeneration, JanusConfig, JanusForConditionalGeneration

from sjd2.decoding import TokenLayout

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
VQ = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1}


def emu3() -> Size:
    text = {**SMALL, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = Emu3Config(text_config=text, vq_config={**VQ, "attn_resolutions": []}, vocabulary_map={"<image>": 9})
    with torch.device("meta"):
        model = Emu3ForConditionalGeneration(config)
    return Size(model, TokenLayout.grid(1, 4, 4, row_end=(40,), end=(41, 42)), 40, "4 × 4", "32 × 32", prompt=5)


def janus() -> Size:
    text = {**SMALL, "model_type": "llama", "vocab_size": 64}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "projection_dim": 32}
    vq = {**VQ, "num_embeddings": 24, "embed_dim": 8, "latent_channels": 8, "projection_dim": 32, "image_token_embed_dim": 32, "num_patches": 4}
    with torch.device("meta"):
        model = JanusForConditionalGeneration(JanusConfig(text_config=text, vision_config=vision, vq_config=vq))
    return Size(model, TokenLayout.grid(1, 4, 4), 24, "4 × 4", "16 × 16", prompt=5)


@pytest.mark.parametrize(("build", "start"), [(emu3, 20), (janus, 0)])
def test_every_window_and_batch_is_timed(tmp_path, monkeypatch, build, start):
    monkeypatch.setitem(full_size.FAMILIES, "small", build)
    monkeypatch.setitem(full_size.MODELS, "small", start)
    path = tmp_path / "full_size.json"
    arguments = [
        "--models",
        "small",
        "--windows",
        "1",
        "4",
        "--batches",
        "1",
        "2",
        "--iterations",
        "3",
        "--repeats",
        "1",
        "--device",
        "cpu",
        "--end-to-end",
        "4",
    ]
    full_size.main([*arguments, "-o", str(path)])
    *rows, ar, four = json.loads(path.read_text())["rows"]
    assert ar["forwards"] == ar["tokens"]
    assert four["tokens"] / 4 <= four["forwards"] <= four["tokens"] / 4 + 1
    assert ar["end_to_end"] == 1
    assert four["end_to_end"] == 4
    assert ["published_milliseconds" in row for row in rows] == [build is emu3, build is emu3, False, False]
    assert [(row["batch"], row["window"]) for row in rows] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    for row in rows:
        assert 0 < row["forward_milliseconds"] < row["milliseconds"]
        assert row["iterations"] == 3 if row["window"] == 1 else row["iterations"] >= 3


def test_what_has_no_room_is_a_row_that_says_so(monkeypatch):
    def none(*_):
        raise torch.OutOfMemoryError("no room for 16 GiB\nand more")

    monkeypatch.setattr(full_size, "with_weights", none)
    rows = full_size.measure("Emu3-Gen 8B", "cpu", torch.bfloat16, (1,), (1,), 1, 1)
    assert rows == [{"model": "Emu3-Gen 8B", "not run": "no room for 16 GiB"}]
