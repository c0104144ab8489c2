"""Which attention a run uses: the one asked for, or the fastest of those that give what the model's own gives."""

from __future__ import annotations

import warnings

import torch

from ..recording import Recorder
from .interface import ATTENTIONS, obstacle
from .shape import AttentionShape
from .trial import Layer

__all__ = ["check_attention", "choose_attention", "fastest_attention"]

#: Candidates of ``auto``. Flex attention, which takes seconds to compile, is one that has to be asked for.
_MEASURED = ("model", "triton", "flash")

#: Numbers of columns are rounded up to a multiple of this: a prompt that is a word longer need not be measured again.
_ROUGHLY = 512

#: What was found, by everything that it depends on.
_found: dict[tuple, str] = {}


def check_attention(name: str) -> None:
    """Refuse what is no name.

    Raises:
        ValueError: see there.
    """
    if name not in ("auto", *ATTENTIONS):
        raise ValueError(f"attention: expected one of auto, {', '.join(ATTENTIONS)}, got {name!r}")


def choose_attention(
    name: str,
    shape: AttentionShape | None,
    device: torch.device,
    *,
    rows: int,
    inputs: int,
    columns: int,
    timesteps: int,
    paged: bool = False,
    record: Recorder | None = None,
) -> str:
    """The name of the attention of a run; measures, once per process and shape, if ``name`` is ``auto`` and there is a GPU.

    Args:
        name: ``auto`` or one of ``ATTENTIONS``.
        shape: of the model's attention, ``None``: it stays as it is.
        device: of keys and values.
        rows: R, of the model.
        inputs: T of a forward, ``timesteps`` of them timestep tokens.
        columns: of the cache.
        paged: it has pages, which ``triton`` alone reads without copying them first.
        record: iterations are recorded, so it is replays that are measured.

    Raises:
        ValueError: an unknown name, or one that cannot be used here; the message says why.
    """
    check_attention(name)
    if name != "auto":
        if (reason := obstacle(name, shape, device, timesteps=timesteps > 0)) is not None:
            raise ValueError(f"attention: expected one that can be used here, got {name!r}: {reason}")
        return name
    if shape is None or device.type != "cuda":
        return "model"
    columns = -(-columns // _ROUGHLY) * _ROUGHLY
    key = (shape, str(device), rows, inputs, columns, timesteps, paged, record is not None)
    if key not in _found:
        usable = [one for one in (("triton",) if paged else _MEASURED) if obstacle(one, shape, device, timesteps=timesteps > 0) is None]
        sizes = {"rows": rows, "inputs": inputs, "columns": columns, "timesteps": timesteps}
        _found[key] = fastest_attention(usable, shape, device, **sizes, record=record)
    return _found[key]


def fastest_attention(
    names: list[str],
    shape: AttentionShape,
    device: torch.device,
    *,
    rows: int,
    inputs: int,
    columns: int,
    timesteps: int = 0,
    record: Recorder | None = None,
) -> str:
    """The fastest of ``names`` (``model`` first) on random numbers; one that fails, or is not right, is left out with a warning."""
    layer = Layer(shape, device, rows, inputs, columns, timesteps)
    wanted, best, least = layer.call("model")().float(), "model", float("inf")
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-9}.get(shape.dtype, 3e-2)
    for name in names:
        try:
            off = float((layer.call(name)().float() - wanted).abs().max())
        except Exception as error:  # whatever a library or a compiler does not manage on this machine is no reason not to decode
            warnings.warn(f"attention: {name} is not used, it failed here: {type(error).__name__}: {error}", stacklevel=2)
            continue
        if not off <= tolerance:
            warnings.warn(f"attention: {name} is not used, it is off by {off:.1e} here, and at most {tolerance:.0e} was expected", stacklevel=2)
            continue
        if (seconds := layer.seconds(name, record)) < least:
            best, least = name, seconds
    return best
