"""Every family that an adapter exists for, by name: a tiny checkpoint of it on disk, and its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sjd2 import load_adapter
from sjd2.adapters.llamagen_convert import convert_llamagen
from support.chameleon import PATCH, save_chameleon
from support.emu3 import save_emu3
from support.generic import FIELDS, save_generic
from support.glm_image import write_model
from support.janus import save_janus
from support.llamagen import HEADS, SIDE, save_checkpoints

__all__ = ["FAMILIES", "family_adapter", "save_family"]

FAMILIES = ("emu3", "glm_image", "janus", "anole", "lumina_mgpt", "llamagen", "generic")


def save_family(family: str, folder: Path) -> Path:
    """A checkpoint that loads without options, in float64 where its format leaves a choice."""
    if family == "llamagen":
        (folder.parent / f"{folder.name}-published").mkdir(parents=True)
        published = save_checkpoints(folder.parent / f"{folder.name}-published")
        return convert_llamagen(**published, output=folder, image_size=2 * SIDE, heads=HEADS)
    if family == "generic":
        return save_generic(folder, {"adapter": "generic", **FIELDS})
    if family in ("anole", "lumina_mgpt"):
        fields = {"mask_image_logits": False, "sjd2": {"adapter": family, "target_size": 4 * PATCH}} if family == "lumina_mgpt" else {}
        save_chameleon(folder, **fields)
    else:
        {"emu3": save_emu3, "glm_image": write_model, "janus": save_janus}[family](folder)
    return folder


def family_adapter(family: str, folder: Path) -> Any:
    """Of a checkpoint that is written to ``folder`` for it, in float64 on the CPU."""
    return load_adapter(save_family(family, folder), device="cpu", dtype=torch.float64)
