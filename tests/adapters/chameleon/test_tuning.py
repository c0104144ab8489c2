"""Anole and Lumina-mGPT, tuned."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from sjd2 import TextToImagePipeline, load_adapter
from sjd2.training import DraftSettings, FinetuneSettings, TuningNoise, finetune
from support.chameleon import CODES, PATCH
from support.chameleon_family import TARGET, VARIANTS


def write_tokens(path, adapter, count=8):
    forced = adapter.layout(1).forced[0]
    generator = torch.Generator().manual_seed(0)
    rows = [torch.where(forced < 0, torch.randint(CODES, forced.shape, generator=generator), forced) for _ in range(count)]
    path.write_text("".join(json.dumps({"prompt": "a cat", "tokens": row.tolist()}) + "\n" for row in rows))
    return path


@pytest.fixture(params=VARIANTS)
def trainable(request, folders, tmp_path):
    """A folder that needs no options."""
    shutil.copytree(folders[request.param], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "sjd2": {"adapter": request.param, "target_size": TARGET}}))
    return tmp_path / "model"


@pytest.mark.parametrize("lora", [None, 2])
def test_tuning_from_tokens(trainable, tmp_path, lora):
    before = load_adapter(trainable, device="cpu", dtype=torch.float32)
    data = write_tokens(tmp_path / "tokens.jsonl", before)
    noise = TuningNoise(windows=2, window=6)
    finetune(data, tmp_path / "tuned", FinetuneSettings(noise, steps=2, batch_size=2, lora=lora, learning_rate=1e-2), model=trainable, device="cpu")
    tuned = TextToImagePipeline.from_pretrained(tmp_path / "tuned", device="cpu", dtype=torch.float64)
    assert tuned.adapter.denoising == noise.denoising
    assert type(tuned.adapter) is type(before)
    changed = [
        name for name, value in tuned.adapter.model.named_parameters() if not torch.equal(value.float(), before.model.get_parameter(name).float())
    ]
    assert changed
    assert not any("vqmodel" in name for name in changed)
    assert torch.equal(*(tuned("a cat", method=method, temperature=0.0).tokens for method in ("ar", "sjd2")))


def test_tuning_on_own_drafts(trainable, tmp_path):
    drafts = DraftSettings(pool=8, first=4, renewed=2, every=1)
    settings = FinetuneSettings(TuningNoise(windows=2, window=6), drafts, steps=2, batch_size=2, learning_rate=1e-2)
    finetune(["a cat", "a dog", "a red cat", "a red dog"], tmp_path / "tuned", settings, model=trainable, device="cpu")
    output = TextToImagePipeline.from_pretrained(tmp_path / "tuned", device="cpu")("a cat", method="sjd2")
    assert output.images[0].size == (4 * PATCH, 4 * PATCH)
