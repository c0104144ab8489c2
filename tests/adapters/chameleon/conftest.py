"""Checkpoints of Anole and Lumina-mGPT, a tiny random Chameleon in float64, and pipelines of them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.chameleon import save_chameleon, vqgan_weights
from support.chameleon_family import VARIANTS, load


@pytest.fixture(scope="package")
def folders(tmp_path_factory):
    """Of Lumina-mGPT as it is published, without any part of an image tokenizer; both with the file of the release."""
    found = {}
    for name in VARIANTS:
        folder = found[name] = tmp_path_factory.mktemp(name)
        save_chameleon(folder, **({"mask_image_logits": False} if name == "lumina_mgpt" else {}))
        if name == "lumina_mgpt":
            weights = load_file(folder / "model.safetensors")
            save_file({key: value for key, value in weights.items() if ".vqmodel." not in key}, folder / "model.safetensors", {"format": "pt"})
            (folder / "processor_config.json").unlink()
        torch.save({"state_dict": vqgan_weights(), "epoch": 3}, folder / "vqgan.ckpt")
    return found


@pytest.fixture(scope="package")
def pipelines(folders):
    return {name: load(folder, name) for name, folder in folders.items()}


@pytest.fixture(params=VARIANTS)
def pipeline(request, pipelines):
    return pipelines[request.param]
