"""Tuning on several processes, started by ``torchrun`` or ``accelerate launch``: what of a step's batch each takes, and on which device.

A command means the same on any number of processes: the batch of a step is dealt out over them, and each example brings its own noise, so
that one process, two, or one that resumes what two began take the same steps up to rounding.
"""

from __future__ import annotations

import atexit
import gc
import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["join_processes", "leave_processes", "own_device", "quiet_but_for_one", "sharding_asked_for", "share_of_batch"]

#: What ``accelerate launch`` sets for kinds of training that have a runtime of their own.
_ENGINES = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}

#: And for FSDP, with the values of its settings that are what is done here.
_FSDP = "ACCELERATE_USE_FSDP"
_DONE = {
    "fsdp_sharding_strategy": ("FULL_SHARD", "1"),
    "fsdp_reshard_after_forward": ("true", "full_shard", "1"),
    "fsdp_offload_params": ("false",),
    "fsdp_activation_checkpointing": ("false",),
}
_INSTEAD = {"fsdp_activation_checkpointing": ", which finetune's own gradient_checkpointing does"}

#: How long a process waits for the others: while one encodes images, more than the ten minutes that PyTorch gives it on GPUs.
_PATIENCE = timedelta(days=1)

#: For a thread that has microseconds of work left, on a machine however busy.
_RELEASE_SECONDS = 0.5


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


@contextmanager
def sharding_asked_for(fsdp: bool) -> Iterator[bool]:
    """Whether the model is to be sharded: ``fsdp``, or ``accelerate launch`` says so, whose other readers are not to know as long as the block lasts.

    Raises:
        ValueError: a setting of FSDP's that is not supported.
    """
    launched = _is_set(_FSDP)
    if launched:
        for name, (value, *others) in _DONE.items():
            asked = os.environ.get(name.upper(), value)
            if asked.lower() not in (value.lower(), *others):
                raise ValueError(f"{name}: expected {value}, the launcher asks for {asked}{_INSTEAD.get(name, ', which is not supported')}")
        os.environ[_FSDP] = "false"  # accelerate would shard the model again, and Transformers leave its weights out in all processes but one
    try:
        yield fsdp or launched
    finally:
        if launched:
            os.environ[_FSDP] = "true"


def join_processes(device: torch.device | str | None) -> PartialState:
    """This process among those of the run; waits for the others. One that was not started with others is alone.

    Args:
        device: as it was asked for.

    Raises:
        ImportError: ``accelerate`` is not installed.
        ValueError: DeepSpeed or Megatron-LM, which a launcher asks for.
    """
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError('tuning needs accelerate: pip install "sjd2-kernels[tune]"') from error
    for name, kind in _ENGINES.items():
        if _is_set(name):
            raise ValueError(f"finetune: expected PyTorch's own DDP or FSDP, the launcher asks for {kind}, which is not supported")
    on_cpu = not torch.cuda.is_available() or (device is not None and str(device).startswith("cpu"))
    atexit.unregister(leave_processes)
    atexit.register(leave_processes)
    return PartialState(cpu=on_cpu, timeout=_PATIENCE)


def leave_processes() -> None:
    """To be called before this process ends, which would be aborted if anything of the group still ran: done or not, it would count as failed."""
    if torch.distributed.is_initialized():
        gc.collect()  # what an interrupted run leaves behind holds on to the group
        torch.distributed.destroy_process_group()
        # Gloo's threads let go of a collective's tensors after it is done, and outlive the group while a cache of DTensor's has its mesh. PyTorch has
        # no call that waits for them; one that asks for Python's lock when Python has begun to end takes the process down.
        time.sleep(_RELEASE_SECONDS)


def own_device(device: torch.device | str | None, processes: PartialState) -> torch.device | str | None:
    """The device of this process: with others on GPUs the one that is its own, or else what was asked for.

    Raises:
        ValueError: a certain GPU for several processes.
    """
    if processes.num_processes == 1 or processes.device.type == "cpu":
        return device
    if device is not None and str(device) != processes.device.type:
        raise ValueError(f"device: expected cpu or {processes.device.type} for {processes.num_processes} processes, got {device}")
    return processes.device


def share_of_batch(batch_size: int, accumulation: int, processes: int) -> tuple[int, int]:
    """Examples per forward and forwards per step of each process, for the same step: fewer forwards as far as that goes, then smaller ones.

    Raises:
        ValueError: a step's examples cannot be dealt out evenly.

    Example:
        >>> share_of_batch(2, 32, processes=8)
        (2, 4)
        >>> share_of_batch(8, 1, processes=2)
        (4, 1)
    """
    if batch_size * accumulation % processes:
        asked = f"{batch_size} x {accumulation}"
        raise ValueError(f"batch_size: expected batch_size x gradient_accumulation to be a multiple of the {processes} processes, got {asked}")
    forwards = math.gcd(accumulation, processes)
    return batch_size * forwards // processes, accumulation // forwards


@contextmanager
def quiet_but_for_one(processes: PartialState) -> Iterator[None]:
    """What all processes would warn of alike, the main one does."""
    with warnings.catch_warnings():
        if not processes.is_main_process:
            warnings.simplefilter("ignore")
        yield
