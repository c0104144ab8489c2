"""Tunes the embedded model on its own drafts: ``python -m sjd2.tiny_scenes.tune --base FOLDER --out FOLDER``. Resumes where it stopped."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ..adapters import load_adapter
from ..denoising import NoiseLevels
from ..training.distillation import DraftDistillation, DraftSettings
from ..training.own_drafts import DraftPool, build_distillation
from .prompts import held_out_prompts, training_prompts

__all__ = ["LEVELS", "main"]

#: Noise levels of the embedded model, of width 256.
LEVELS = NoiseLevels.signal(6, 256)


def settings_for(defaults) -> DraftSettings:
    """Of an adapter's sampling defaults."""
    return DraftSettings(LEVELS, temperature=defaults.temperature, top_k=defaults.top_k, top_p=defaults.top_p)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", help="the untuned model (default: the one that ships with the package)")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and log")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--anchor", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    adapter, teacher = load_adapter(options.base, device="cpu"), load_adapter(options.base, device="cpu")
    adapter.model.requires_grad_(True)
    settings = DraftSettings(**{**vars(settings_for(adapter.defaults)), "anchor": options.anchor})
    model = DraftDistillation(adapter, teacher, settings)
    pool = DraftPool(adapter, training_prompts(), settings, seed=options.seed)
    arguments = TrainingArguments(
        output_dir=str(options.out),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        adam_beta2=0.98,
        weight_decay=0.01,
        bf16=True,
        use_cpu=True,
        logging_steps=20,
        save_steps=100,
        eval_strategy="steps",
        eval_steps=200,
        per_device_eval_batch_size=8,
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        seed=options.seed,
    )
    held_out = DraftPool(teacher, held_out_prompts(), settings, size=64, seed=options.seed + 1)
    held_out.renew(64)
    trainer = build_distillation(model, pool, arguments, evaluation=held_out.trajectories)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(options.out)) if options.out.is_dir() else None)
    torch.save(adapter.model.state_dict(), options.out / "model.pt")
    (options.out / "log.json").write_text(json.dumps({"seconds": time.perf_counter() - started, "log": trainer.state.log_history}, indent=1))
    shutil.rmtree(options.out / "runs", ignore_errors=True)


if __name__ == "__main__":
    main()
