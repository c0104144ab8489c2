"""The whole recipe: data, model, training that survives being killed, a folder that the pipeline loads.

While it runs, its checkpoints lie in ``OUTPUT.tuning`` beside the folder to be made; that folder appears when it is complete.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer

from ..adapters import Adapter, load_adapter
from ..files import check_writable, write_atomically
from .collator import NoiseCollator
from .data import TokenExamples, read_examples
from .distillation import DraftDistillation
from .lora import add_lora, merge_lora
from .model import NextCleanTokenModel
from .own_drafts import DraftPool, build_draft_trainer
from .processes import join_processes, own_device, quiet_but_for_one, share_of_batch
from .prompts import Prompts, read_prompts
from .run import Report, check_same, described, is_finished, training_arguments
from .save import save_tuned
from .settings import FinetuneSettings
from .trainer import build_trainer, last_checkpoint
from .trajectories import Trajectory

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["finetune"]

#: In the folder of a run: what it was begun with.
_COMMAND = "command.json"

#: Images of held-out prompts that tuning on own drafts is evaluated on.
_EVALUATED = 64


def _load(
    model: str | Path | None,
    entries: Mapping[str, Any] | None,
    device: torch.device | str | None,
    settings: FinetuneSettings,
    processes: PartialState,
) -> Adapter:
    """The model, ready to be trained."""
    device = own_device(device, processes)
    stored = settings.lora is not None and settings.bf16
    adapter = load_adapter(model, adapter=entries, device=device, dtype="auto" if stored else torch.float32)
    if adapter.model.dtype not in (torch.float32, torch.bfloat16):
        torch.nn.Module.to(adapter.model, torch.float32)  # float16 would lose bits in bfloat16, and overflow in gradients
    if processes.num_processes == 1 and adapter.device.index not in (None, 0):
        raise ValueError(f"device: expected cpu or cuda, got {device}; choose a GPU by CUDA_VISIBLE_DEVICES")
    adapter.grid = adapter.grid_of(settings.height, settings.width)
    torch.manual_seed(settings.seed)
    adapter.model.requires_grad_(True)
    for part in adapter.frozen_parts():
        part.requires_grad_(False)
    if settings.lora is not None:
        add_lora(adapter.model, settings.lora, adapter.frozen_parts())
    return adapter


def _read(data: Any, adapter: Adapter, settings: FinetuneSettings, keep: Path, report: Callable[[str], None]) -> Any:
    """Prompts, or examples as they are, or examples from disk, whose images are encoded once."""
    if settings.drafts is not None:
        prompts = read_prompts(data)
        adapter.check_prompts(list(dict.fromkeys(prompts)))
        return prompts
    if not isinstance(data, (str, Path)):
        return data

    def progress(done: int, total: int) -> None:
        if done == total or done % 1024 == 0:
            report(f"{data}: {done:,} of {total:,} images encoded")

    return read_examples(data, adapter, keep=keep, progress=progress)


def _held_out_drafts(prompts: Prompts, teacher: Adapter, settings: FinetuneSettings, work: Path, processes: PartialState) -> list[Trajectory]:
    """Drafts of the model before tuning, recorded once, by all processes together."""
    assert settings.drafts is not None
    path = work / "held_out_drafts.pt"
    recorded = path.exists()
    processes.wait_for_everyone()  # until all have looked, nobody writes
    if not recorded:
        pool = DraftPool(teacher, prompts, settings.drafts, window=2 * settings.noise.window, seed=settings.seed + 1, processes=processes)
        pool.renew(min(_EVALUATED, settings.drafts.pool))
        if processes.is_main_process:
            write_atomically(path, lambda scratch: torch.save([vars(one) for one in pool.trajectories], scratch))
        processes.wait_for_everyone()
    return [Trajectory(**fields) for fields in torch.load(path)]


def _trainer(
    adapter: Adapter,
    settings: FinetuneSettings,
    train: Any,
    held_out: Any,
    work: Path,
    resumes: bool,
    copy: Callable[[], Adapter],
    processes: PartialState,
    report: Callable[[str], None],
) -> tuple[Trainer, NextCleanTokenModel]:
    """The trainer of the recipe that ``settings`` ask for, and what it trains; ``copy`` loads the model before tuning once more."""
    steps = settings.steps_for(len(train))
    arguments = training_arguments(settings, steps, work, adapter, held_out is not None, resumes, processes.num_processes)
    callbacks = [Report(report)]
    tuned: NextCleanTokenModel
    if settings.drafts is None:
        tuned, collator = NextCleanTokenModel(adapter, settings.noise), NoiseCollator(adapter, settings.noise)
        return build_trainer(tuned, collator, train, held_out, arguments, callbacks, drop_captions=settings.drop_captions), tuned
    # With LoRA the model is its own teacher; otherwise a second copy of it is.
    teacher = copy() if settings.lora is None else None
    if teacher is not None:
        teacher.grid = adapter.grid
    tuned = DraftDistillation(adapter, settings.noise, teacher, settings.drafts)
    pool = DraftPool(adapter, train, settings.drafts, window=2 * settings.noise.window, seed=settings.seed, processes=processes)
    drafts = None if held_out is None else _held_out_drafts(held_out, teacher or adapter, settings, work, processes)
    return build_draft_trainer(tuned, pool, drafts, arguments, callbacks, report), tuned


def _train(
    adapter: Adapter,
    settings: FinetuneSettings,
    train: Any,
    held_out: Any,
    work: Path,
    copy: Callable[[], Adapter],
    processes: PartialState,
    report: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Train, from the last checkpoint in ``work`` if there is one; returns what the ``Trainer`` logged."""
    with processes.main_process_first():  # it removes what a kill cut short
        checkpoint = last_checkpoint(work)
    trainer, tuned = _trainer(adapter, settings, train, held_out, work, checkpoint is not None, copy, processes, report)
    steps = settings.steps_for(len(train))
    if settings.gradient_checkpointing:
        tuned.activation_checkpointing_enable()
    trained = sum(parameter.numel() for parameter in tuned.state_dict().values())
    per_step, kind = settings.batch_size * settings.gradient_accumulation, "examples" if settings.drafts is None else "prompts"
    shared = f" on {processes.num_processes} processes" if processes.num_processes > 1 else ""
    report(f"{trained:,} parameters, {len(train):,} {kind}, {len(held_out or ()):,} held out, {steps:,} steps of {per_step}{shared}")
    if checkpoint is not None:
        report(f"resumed from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    if held_out is not None and not any("eval_loss" in row and row["step"] == steps for row in trainer.state.log_history):
        trainer.evaluate()
    return trainer.state.log_history


def _silent(line: str) -> None:
    """No report."""


def _figures(history: list[dict[str, Any]]) -> dict[str, Any]:
    """What is written beside the weights, of what the ``Trainer`` logged."""
    evaluations = [row for row in history if "eval_loss" in row]
    kept = ("step", "seconds", "eval_clean_nll", "eval_noisy_nll", "eval_level_", "eval_overlap", "eval_drift")
    return {
        "seconds": max((row.get("seconds", 0.0) for row in history), default=0.0),
        "evaluations": [{name.removeprefix("eval_"): value for name, value in row.items() if name.startswith(kept)} for row in evaluations],
        "training": [{name: row[name] for name in ("step", "loss", "learning_rate", "seconds")} for row in history if "loss" in row],
    }


def finetune(
    data: str | Path | Dataset | Sequence[str],
    output: str | Path,
    settings: FinetuneSettings | None = None,
    *,
    model: str | Path | None = None,
    adapter: Mapping[str, Any] | None = None,
    eval_data: str | Path | Dataset | Sequence[str] | None = None,
    device: torch.device | str | None = None,
    report: Callable[[str], None] = _silent,
) -> Path:
    """Tune a model for denoising, and write it as a folder that ``TextToImagePipeline.from_pretrained`` loads.

    Interrupted, it goes on from its last checkpoint when it is called again with the same arguments. What it logs is in the folder's
    ``training_log.json``: loss, and before, during and after training the held-out NLL of clean and noisy inputs, or on own
    drafts the overlap of stale and true predictions and the drift of the law of AR sampling.

    Called in every process of ``torchrun`` or ``accelerate launch``, they share the batch of each step, and one of them writes and reports. What
    comes of it is the same up to rounding, and a run goes on with another number of processes.

    Args:
        data: what :func:`read_examples` reads, or a map-style dataset of :class:`Example`. For own drafts (``settings.drafts``): what
            :func:`read_prompts` reads, or a list of prompts.
        output: the folder to be made.
        settings: see :class:`FinetuneSettings`.
        model: a folder or a hub name; ``None`` for the embedded model.
        adapter: what its configuration does not say, see ``load_adapter``.
        eval_data: like ``data``, to be evaluated in place of a held-out share.
        device: default: the GPU if there is one.
        report: called with a line of text now and then.

    Raises:
        FileNotFoundError, OSError: no such data or model, a folder that cannot be written or holds other files.
        ValueError: bad settings or data, a model that no adapter exists for, an ``output`` that another command began, or processes that cannot
            share the batch, or would share the model.
        FloatingPointError: the loss was not finite.
        ImportError: ``accelerate``, or for LoRA ``peft``, is not installed.
    """
    settings = settings or FinetuneSettings()
    output = Path(output)
    work = output.with_name(f"{output.name}.tuning")
    processes = join_processes(device)
    share_of_batch(settings.batch_size, settings.gradient_accumulation, processes.num_processes)
    if not processes.is_main_process:
        report = _silent
    told = None if adapter is None else dict(adapter)
    sources = {"data": described(data), "eval_data": described(eval_data), "model": described(model), "adapter": told}
    command = json.loads(json.dumps({**sources, **asdict(settings)}, default=str))  # as it is read back
    if is_finished(output, command):
        if processes.is_main_process:
            shutil.rmtree(work, ignore_errors=True)  # a kill may have come between the two
        report(f"{output} is finished")
        return output
    check_writable(work / _COMMAND, "output")
    begun = json.loads((work / _COMMAND).read_text()) if (work / _COMMAND).is_file() else None
    if begun is not None:
        check_same(begun, command, work)

    with quiet_but_for_one(processes):
        loaded = _load(model, adapter, device, settings, processes)
        with processes.main_process_first():  # it encodes the images; the others find their tokens
            train = _read(data, loaded, settings, work / "tokens.npz", report)
            held_out = None if eval_data is None else _read(eval_data, loaded, settings, work / "eval_tokens.npz", report)
    command["digest"] = [part.digest() if isinstance(part, (TokenExamples, Prompts)) else None for part in (train, held_out)]
    if begun is not None:
        check_same(begun, command, work)
    if held_out is None and settings.held_out:
        if not isinstance(train, (TokenExamples, Prompts)):
            raise ValueError("held_out: a dataset of your own is not split; give eval_data, or held_out=0")
        train, held_out = train.split(settings.held_out, settings.seed)
    if processes.is_main_process:
        write_atomically(work / _COMMAND, lambda scratch: scratch.write_text(json.dumps(command, indent=1) + "\n"))
    again = functools.partial(load_adapter, model, adapter=adapter, device=loaded.device, dtype=loaded.model.dtype)
    history = _train(loaded, settings, train, held_out, work, again, processes, report)
    if settings.lora is not None:
        merge_lora(loaded.model)
    if processes.is_main_process:
        sizes = {"examples": len(train), "held_out": len(held_out or ())}
        save_tuned(loaded, settings.noise, output, {"command": command, **sizes, **_figures(history)})
        shutil.rmtree(work)
    processes.wait_for_everyone()
    report(f"{output}: done")
    return output
