"""The whole recipe: data, model, training that survives being killed, a folder that the pipeline loads.

While it runs, its checkpoints lie in ``OUTPUT.tuning`` beside the folder to be made; that folder appears when it is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import Dataset
from transformers import Trainer

from ..adapters import Adapter, load_adapter
from ..files import check_writable, write_atomically
from .checkpoints import last_checkpoint
from .collator import NoiseCollator
from .data import TokenExamples, read_examples
from .distillation import DraftDistillation
from .lora import add_lora, merge_lora
from .model import NextCleanTokenModel
from .own_drafts import DraftPool, build_draft_trainer
from .processes import join_processes, own_device, quiet_but_for_one, sharding_asked_for, share_of_batch
from .prompts import Prompts, read_prompts
from .run import Report, check_same, described, is_finished, training_arguments
from .save import save_tuned
from .settings import FinetuneSettings
from .sharding import whole
from .trainer import build_trainer
from .trajectories import Trajectory

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["finetune"]

#: In the folder of a run: what it was begun with.
_COMMAND = "command.json"

#: Images of held-out prompts that tuning on own drafts is evaluated on.
_EVALUATED = 64


@dataclass(frozen=True)
class _Run:
    """What all parts of a run need to know.

    Attributes:
        settings: of the recipe.
        model, entries: as ``finetune`` was told.
        work: folder of its checkpoints.
        processes: that share it.
        device: of this one; ``None``: the GPU if there is one.
        sharded: each process keeps a share of the weights.
        report: called with a line of text now and then.
    """

    settings: FinetuneSettings
    model: str | Path | None
    entries: Mapping[str, Any] | None
    work: Path
    processes: PartialState
    device: torch.device | str | None
    sharded: bool
    report: Callable[[str], None]

    def frozen(self, dtype: torch.dtype | Literal["auto"]) -> Adapter:
        """The model as it was before tuning; on the CPU where it is to be sharded, since it need not fit onto the device."""
        return load_adapter(self.model, adapter=self.entries, device="cpu" if self.sharded else self.device, dtype=dtype)

    def trainable(self) -> Adapter:
        """The model, ready to be trained."""
        settings = self.settings
        adapter = self.frozen("auto" if settings.lora is not None and settings.bf16 else torch.float32)
        if adapter.model.dtype not in (torch.float32, torch.bfloat16):
            torch.nn.Module.to(adapter.model, torch.float32)  # float16 would lose bits in bfloat16, and overflow in gradients
        if self.processes.num_processes == 1 and adapter.device.index not in (None, 0):
            raise ValueError(f"device: expected cpu or cuda, got {self.device}; choose a GPU by CUDA_VISIBLE_DEVICES")
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


def _held_out_drafts(run: _Run, prompts: Prompts, teacher: NextCleanTokenModel) -> list[Trajectory]:
    """Drafts of the model before tuning, recorded once, by all processes together."""
    settings, processes, path = run.settings, run.processes, run.work / "held_out_drafts.pt"
    assert settings.drafts is not None
    recorded = path.exists()
    processes.wait_for_everyone()  # until all have looked, nobody writes
    if not recorded:
        window, count = 2 * settings.noise.window, min(_EVALUATED, settings.drafts.pool)
        pool = DraftPool(teacher.adapter, prompts, settings.drafts, window=window, seed=settings.seed + 1, processes=processes)
        teacher.with_weights(lambda: pool.renew(count))
        if processes.is_main_process:
            write_atomically(path, lambda scratch: torch.save([vars(one) for one in pool.trajectories], scratch))
        processes.wait_for_everyone()
    return [Trajectory(**fields) for fields in torch.load(path)]


def _trainer(run: _Run, adapter: Adapter, train: Any, held_out: Any, resumes: bool) -> tuple[Trainer, NextCleanTokenModel]:
    """The trainer of the recipe that the settings ask for, and what it trains."""
    settings, processes = run.settings, run.processes
    steps, device = settings.steps_for(len(train)), processes.device if run.sharded else adapter.device
    arguments = training_arguments(settings, steps, run.work, device, held_out is not None, resumes, processes.num_processes)
    callbacks = [Report(run.report)]
    if settings.drafts is None:
        tuned = NextCleanTokenModel(adapter, settings.noise)
        if run.sharded:
            tuned.shard(device)
        collator = NoiseCollator(adapter, settings.noise)
        return build_trainer(tuned, collator, train, held_out, arguments, callbacks, drop_captions=settings.drop_captions), tuned
    # With LoRA the model is its own teacher; otherwise a second copy of it is.
    teacher = run.frozen(adapter.model.dtype) if settings.lora is None else None
    if teacher is not None:
        teacher.grid = adapter.grid
    distilled = DraftDistillation(adapter, settings.noise, teacher, settings.drafts)
    if run.sharded:
        distilled.shard(device)
    pool = DraftPool(adapter, train, settings.drafts, window=2 * settings.noise.window, seed=settings.seed, processes=processes)
    drafts = None if held_out is None else _held_out_drafts(run, held_out, distilled.teacher)
    return build_draft_trainer(distilled, pool, drafts, arguments, callbacks, run.report), distilled


def _train(run: _Run, adapter: Adapter, train: Any, held_out: Any) -> tuple[NextCleanTokenModel, list[dict[str, Any]]]:
    """Train, from the last checkpoint if there is one; returns what was trained, and what the ``Trainer`` logged."""
    settings, processes = run.settings, run.processes
    with processes.main_process_first():  # it removes what a kill cut short
        checkpoint = last_checkpoint(run.work)
    trainer, tuned = _trainer(run, adapter, train, held_out, checkpoint is not None)
    steps = settings.steps_for(len(train))
    if settings.gradient_checkpointing:
        tuned.activation_checkpointing_enable()
    trained = sum(parameter.numel() for parameter in tuned.state_dict().values())
    per_step, kind = settings.batch_size * settings.gradient_accumulation, "examples" if settings.drafts is None else "prompts"
    shared = f" on {processes.num_processes} processes" if processes.num_processes > 1 else ""
    shared += ", which share the weights" if run.sharded else ""
    run.report(f"{trained:,} parameters, {len(train):,} {kind}, {len(held_out or ()):,} held out, {steps:,} steps of {per_step}{shared}")
    if checkpoint is not None:
        run.report(f"resumed from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    if held_out is not None and not any("eval_loss" in row and row["step"] == steps for row in trainer.state.log_history):
        trainer.evaluate()
    return tuned, trainer.state.log_history


def _tuned(run: _Run, adapter: Adapter, trained: NextCleanTokenModel) -> Adapter | None:
    """The tuned model to be saved, in the process that saves it; shares of one are put into the model as it was read."""
    saves = run.processes.is_main_process
    if run.sharded:
        state = whole(trained.state_dict(), keep=saves)
        if saves:
            adapter = run.trainable()
            NextCleanTokenModel(adapter).load_state_dict(state)
    if saves and run.settings.lora is not None:
        merge_lora(adapter.model)
    return adapter if saves else None


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


def _finetune(run: _Run, data: Any, output: Path, eval_data: Any, sources: dict[str, Any]) -> Path:
    """See :func:`finetune`; ``sources`` are its arguments, for the record."""
    settings, work, processes = run.settings, run.work, run.processes
    share_of_batch(settings.batch_size, settings.gradient_accumulation, processes.num_processes)
    command = json.loads(json.dumps({**sources, **asdict(settings)}, default=str))  # as it is read back
    if is_finished(output, command):
        if processes.is_main_process:
            shutil.rmtree(work, ignore_errors=True)  # a kill may have come between the two
        run.report(f"{output} is finished")
        return output
    check_writable(work / _COMMAND, "output")
    begun = json.loads((work / _COMMAND).read_text()) if (work / _COMMAND).is_file() else None
    if begun is not None:
        check_same(begun, command, work)

    with quiet_but_for_one(processes):
        adapter = run.trainable()
        with processes.main_process_first():  # it encodes the images; the others find their tokens
            train = _read(data, adapter, settings, work / "tokens.npz", run.report)
            held_out = None if eval_data is None else _read(eval_data, adapter, settings, work / "eval_tokens.npz", run.report)
    command["digest"] = [part.digest() if isinstance(part, (TokenExamples, Prompts)) else None for part in (train, held_out)]
    if begun is not None:
        check_same(begun, command, work)
    if held_out is None and settings.held_out:
        if not isinstance(train, (TokenExamples, Prompts)):
            raise ValueError("held_out: a dataset of your own is not split; give eval_data, or held_out=0")
        train, held_out = train.split(settings.held_out, settings.seed)
    if processes.is_main_process:
        write_atomically(work / _COMMAND, lambda scratch: scratch.write_text(json.dumps(command, indent=1) + "\n"))
    trained, history = _train(run, adapter, train, held_out)
    tuned = _tuned(run, adapter, trained)
    if tuned is not None:
        sizes = {"examples": len(train), "held_out": len(held_out or ())}
        save_tuned(tuned, settings.noise, output, {"command": command, **sizes, **_figures(history)})
        shutil.rmtree(work)
    processes.wait_for_everyone()
    run.report(f"{output}: done")
    return output


def finetune(
    data: str | Path | Dataset | Sequence[str],
    output: str | Path,
    settings: FinetuneSettings | None = None,
    *,
    model: str | Path | None = None,
    adapter: Mapping[str, Any] | None = None,
    eval_data: str | Path | Dataset | Sequence[str] | None = None,
    device: torch.device | str | None = None,
    fsdp: bool = False,
    report: Callable[[str], None] = _silent,
) -> Path:
    """Tune a model for denoising, and write it as a folder that ``TextToImagePipeline.from_pretrained`` loads.

    Interrupted, it goes on from its last checkpoint when it is called again with the same arguments. What it logs is in the folder's
    ``training_log.json``: loss, and before, during and after training the held-out NLL of clean and noisy inputs, or on own
    drafts the overlap of stale and true predictions and the drift of the law of AR sampling.

    Called in every process of ``torchrun`` or ``accelerate launch``, they share the batch of each step, and one of them writes and reports. What
    comes of it is the same up to rounding, and a run goes on with another number of processes, or sharded after it was not.

    Args:
        data: what :func:`read_examples` reads, or a map-style dataset of :class:`Example`. For own drafts (``settings.drafts``): what
            :func:`read_prompts` reads, or a list of prompts.
        output: the folder to be made.
        settings: see :class:`FinetuneSettings`.
        model: a folder or a hub name; ``None`` for the embedded model.
        adapter: what its configuration does not say, see ``load_adapter``.
        eval_data: like ``data``, to be evaluated in place of a held-out share.
        device: default: the GPU if there is one.
        fsdp: several processes share the weights, too, as they do where ``accelerate launch`` says ``--use_fsdp``; one alone has them all.
        report: called with a line of text now and then.

    Raises:
        FileNotFoundError, OSError: no such data or model, a folder that cannot be written or holds other files.
        ValueError: bad settings or data, a model that no adapter exists for, an ``output`` that another command began, or processes that cannot
            share the batch.
        FloatingPointError: the loss was not finite.
        ImportError: ``accelerate``, or for LoRA ``peft``, is not installed.
    """
    with sharding_asked_for(fsdp) as sharded:
        processes = join_processes(device)
        output = Path(output)
        run = _Run(
            settings=settings or FinetuneSettings(),
            model=model,
            entries=adapter,
            work=output.with_name(f"{output.name}.tuning"),
            processes=processes,
            device=own_device(device, processes),
            sharded=sharded and processes.num_processes > 1,
            report=report if processes.is_main_process else _silent,
        )
        sources = {"data": described(data), "eval_data": described(eval_data), "model": described(model)}
        return _finetune(run, data, output, eval_data, {**sources, "adapter": None if adapter is None else dict(adapter)})
