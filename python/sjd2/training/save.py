"""A tuned model as a folder that ``TextToImagePipeline.from_pretrained`` loads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from ..adapters import Adapter
from .plan import TuningNoise
from .sharding import is_share

__all__ = ["save_tuned"]

LOG = "training_log.json"


def save_tuned(adapter: Adapter, noise: TuningNoise, folder: str | Path, log: dict[str, Any] | None = None) -> None:
    """Write the tuned model: all at once, so that ``folder`` is either not there or complete.

    The configuration's ``sjd2`` says under ``denoising`` what the model was tuned with, and so does ``adapter.denoising`` from now on, and under
    ``grid`` at which size.

    Args:
        adapter: of the model; its weights take on the dtype they were stored in.
        noise: that it was tuned with.
        folder: that does not exist yet, or is empty.
        log: written as ``training_log.json``.

    Raises:
        OSError: a folder that is there already, or cannot be written.
        ValueError: a sharded model. The checkpoints of its trainer hold whole weights for one that is not.
    """
    if any(is_share(parameter) for parameter in adapter.model.parameters()):
        raise ValueError("adapter: expected whole weights, got shares of them; load a checkpoint of the trainer into a model that is not sharded")
    folder = Path(folder)
    scratch = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        adapter.denoising = noise.denoising
        adapter.model.config.update(
            {"sjd2": {**(getattr(adapter.model.config, "sjd2", None) or {}), "grid": list(adapter.grid), "denoising": noise.denoising.to_config()}}
        )
        adapter.save_pretrained(scratch)
        if log is not None:
            (scratch / LOG).write_text(json.dumps(log, indent=1) + "\n")
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
