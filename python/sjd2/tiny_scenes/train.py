"""Train TinyScenes from the photos: ``python -m sjd2.tiny_scenes.train --out DIR``.

Three stages, each resumed from its checkpoint when the command is given again: the image tokenizer, the object
classifier that judges pictures, and the autoregressive model. ``--export DIR`` then writes the shipped folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from .fsq import FSQTokenizer
from .judge import GarmentClassifier
from .likelihood import code_logits, sequence_statistics
from .recipe import Schedule, autocast, run_stage
from .scenes import SceneBatch, SceneSampler
from .source import load_photos
from .text import TEXT_VOCAB_SIZE, build_text_tokenizer

__all__ = ["build_model", "export", "train"]

#: Codes per side of an image.
GRID = 16

TOKENIZER_SCHEDULE = Schedule(steps=3000, batch_size=32, learning_rate=2e-3)
JUDGE_SCHEDULE = Schedule(steps=1500, batch_size=128, learning_rate=3e-3)
MODEL_SCHEDULE = Schedule(steps=11_000, batch_size=16, learning_rate=1.5e-3, warmup=200)


def build_model(codebook_size: int) -> LlamaForCausalLM:
    """The untrained AR model: a stock Llama whose vocabulary is the words followed by the image codes."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TEXT_VOCAB_SIZE + codebook_size,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        bos_token_id=1,
        pad_token_id=0,
        eos_token_id=None,
    )
    # What the adapter needs to know; Transformers keeps fields that it does not use.
    config.update({"sjd2": {"adapter": "tiny_scenes", "image_id_start": TEXT_VOCAB_SIZE, "image_ids": codebook_size, "grid": [GRID, GRID]}})
    return LlamaForCausalLM(config)


def _train_tokenizer(train: SceneSampler, held_out: SceneBatch, folder: Path, device: torch.device, schedule: Schedule) -> FSQTokenizer:
    torch.manual_seed(0)
    model = FSQTokenizer().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels = held_out.pixels.to(device)

    def loss_of(step: int) -> torch.Tensor:
        batch = train.batch(step, schedule.batch_size).pixels.to(device, memory_format=torch.channels_last)
        with autocast(device):
            error = model(batch).float() - batch
        return error.square().mean() + 0.2 * error.abs().mean()

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        codes = model.encode(pixels)
        mse = (model.decode(codes) - pixels).square().mean() / 4  # of pixels in [0, 1]
        return {"psnr": -10 * mse.log10().item(), "codes_used": float(codes.unique().numel())}

    run_stage("tokenizer", model, loss_of, evaluate, schedule, folder)
    return model


def _train_judge(train: SceneSampler, held_out: SceneBatch, folder: Path, device: torch.device, schedule: Schedule) -> GarmentClassifier:
    torch.manual_seed(0)
    model = GarmentClassifier().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels, garment = held_out.pixels.to(device), held_out.garment.to(device)

    def loss_of(step: int) -> torch.Tensor:
        batch = train.batch(step, schedule.batch_size)
        with autocast(device):
            logits = model(batch.pixels.to(device, memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), batch.garment.to(device))

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        return {"held_out_accuracy": (model(pixels).argmax(1) == garment).float().mean().item()}

    run_stage("judge", model, loss_of, evaluate, schedule, folder)
    return model


def _train_model(
    train: SceneSampler,
    held_out: dict[str, SceneBatch],
    tokenizer: FSQTokenizer,
    folder: Path,
    device: torch.device,
    schedule: Schedule,
    compile_model: bool,
) -> LlamaForCausalLM:
    text, model = build_text_tokenizer(), build_model(tokenizer.codebook_size)
    torch.nn.Module.to(model, device)  # the model's own `to` is wrapped beyond what a type checker follows
    body = torch.compile(model.model) if compile_model else model.model
    codes = {name: tokenizer.encode(batch.pixels.to(device)).flatten(1) for name, batch in held_out.items()}

    def loss_of(step: int) -> torch.Tensor:
        batch = train.batch(step, schedule.batch_size)
        with autocast(device):
            target = tokenizer.encode(batch.pixels.to(device, memory_format=torch.channels_last)).flatten(1)
            logits = code_logits(model, text, batch.captions, target, body)
        return F.cross_entropy(logits.float().flatten(0, 1), (target + TEXT_VOCAB_SIZE).flatten())

    def evaluate() -> dict[str, float]:
        figures: dict[str, float] = {}
        for name, batch in held_out.items():
            parts = [sequence_statistics(model, text, batch.captions[i : i + 64], codes[name][i : i + 64]) for i in range(0, len(batch.captions), 64)]
            nll, entropy = (torch.cat(values).mean().item() for values in zip(*parts, strict=True))
            figures |= {f"{name}_nll": nll, f"{name}_entropy": entropy}
        return figures

    run_stage("model", model, loss_of, evaluate, schedule, folder)
    return model


def _scaled(schedule: Schedule, scale: float) -> Schedule:
    return Schedule(
        max(2, round(schedule.steps * scale)),
        schedule.batch_size,
        schedule.learning_rate,
        min(schedule.warmup, 1 + round(schedule.steps * scale / 10)),
    )


def train(
    out: str | Path,
    *,
    photos: str | Path | None = None,
    device: str = "cpu",
    compile_model: bool = False,
    scale: float = 1.0,
    held_out_scenes: int = 512,
) -> tuple[FSQTokenizer, GarmentClassifier, LlamaForCausalLM]:
    """Run (or resume) the three stages in ``out`` and return the trained modules on ``device``.

    Args:
        photos: the folder of the Fashion-MNIST files; found or fetched when left out.
        compile_model: train the AR model under ``torch.compile`` (about 15 % faster on a CPU; needs a C++ compiler).
        scale: multiplies the number of steps of every stage.
        held_out_scenes: scenes per held-out set that the logged figures are taken over.
    """
    folder, target = Path(out), torch.device(device)
    scenes = SceneSampler(*load_photos("train", photos))
    test_photos = load_photos("test", photos)
    held_out = {
        "held_out_photos": SceneSampler(*test_photos, full_captions=True, seed=1).batch(0, held_out_scenes),
        "held_out_pairs": SceneSampler(*test_photos, full_captions=True, held_out=True, seed=2).batch(0, held_out_scenes),
    }
    tokenizer = _train_tokenizer(scenes, held_out["held_out_photos"], folder, target, _scaled(TOKENIZER_SCHEDULE, scale))
    tokenizer.eval().requires_grad_(False)
    judge = _train_judge(scenes, held_out["held_out_pairs"], folder, target, _scaled(JUDGE_SCHEDULE, scale))
    model = _train_model(scenes, held_out, tokenizer, folder, target, _scaled(MODEL_SCHEDULE, scale), compile_model)
    return tokenizer, judge, model


def export(out: str | Path, tokenizer: FSQTokenizer, judge: GarmentClassifier, model: LlamaForCausalLM, folder: str | Path) -> None:
    """Write the folder that ``TextToImagePipeline.from_pretrained`` reads, with the training logs beside the weights."""
    folder = Path(folder)
    tokenizer.save_pretrained(folder)
    judge.save_pretrained(folder)
    build_text_tokenizer().save_pretrained(folder)
    model.half().save_pretrained(folder)
    logs = {
        stage: [json.loads(line) for line in (Path(out) / f"{stage}.jsonl").read_text().splitlines()] for stage in ("tokenizer", "judge", "model")
    }
    (folder / "training_log.json").write_text(json.dumps(logs, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sjd2.tiny_scenes.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="runs/tiny_scenes", metavar="DIR", help="checkpoints and logs (default: %(default)s)")
    parser.add_argument("--photos", metavar="DIR", help="folder of the four Fashion-MNIST .gz files (default: find or fetch them)")
    parser.add_argument("--export", metavar="DIR", help="write the finished model here")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--compile", action="store_true", help="train the AR model under torch.compile")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply every stage's steps (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        modules = train(options.out, photos=options.photos, device=options.device, compile_model=options.compile, scale=options.scale)
        if options.export:
            export(options.out, *modules, options.export)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
