"""``sjd2.generate``, called by Hugging Face's ``generate`` or in its place."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from ..arguments import check_callback, one_seed_each
from ..attention import check_attention
from ..cache import resolve_cache
from ..decoding import Preset, Progress, resolve_preset
from ..decoding.presets import untuned_notice
from ..denoising import NoiseLevels
from .call import read_call
from .inputs import check_ids, check_mode
from .output import GenerateOutput
from .run import run

__all__ = ["generate"]

#: Arguments of ``generate`` that have no meaning here.
_OURS = {
    "streamer": "callback= is told what is committed",
    "assistant_model": "the model drafts for itself",
    "custom_generate": "this is one",
}


def generate(
    model: PreTrainedModel,
    input_ids: torch.Tensor | None = None,
    *,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: GenerationConfig | None = None,
    method: str | Preset = "mc-sjd",
    window: int | None = None,
    initialisation: str | None = None,
    keep_ratio: float | None = None,
    clean: int | float | None = None,
    levels: int | NoiseLevels | None = None,
    seed: int | Sequence[int] | None = None,
    cache: str = "ragged",
    attention: str = "auto",
    processor: Any = None,
    generation_mode: str | None = None,
    callback: Callable[[Progress], None] | None = None,
    **model_kwargs: Any,
) -> torch.Tensor | GenerateOutput:
    """``generate`` of a Hugging Face causal language model, by any decoding method.

    Given to the model's own ``generate`` as ``custom_generate=sjd2.generate``, with the arguments below among its own, or called directly with what
    that would be called with. Greedy decoding gives the tokens of the model's own ``generate``, sampling its distribution (see ``Preset.exact``).

    Logits processors that are temperature, top-k, top-p, guidance or suppressed ids are done by the fused ops; all others are applied to every slot
    of the window, given the tokens before it: they have to be functions of those. Stopping criteria are asked about every committed token.

    Args:
        model: decoder-only, with full attention in every layer.
        input_ids: int64 ``[B, P]``, padded on the left; or ``inputs_embeds`` instead.
        logits_processor, stopping_criteria, generation_config: as ``generate`` takes them. Sampling and greedy decoding are possible.
        method: a name from ``sjd2.PRESETS``, or a ``Preset``.
        window: drafts per forward; default: the method's, and never more than the tokens to come.
        initialisation: of fresh drafts; default: the method's.
        keep_ratio: τ of ``sjd++``.
        clean, levels: of a method that denoises: slots at the front without noise (a number, or a share of the window), and noise levels, or how
            many; see ``Denoising``.
        seed: of the first row, the next row's is one higher; or one per row. Default: drawn from PyTorch's generator (``torch.manual_seed``).
        cache: ``ragged`` or ``paged``: how keys and values are stored; see ``sjd2.cache``. The tokens are the same.
        attention: of the windows; ``auto``: on a GPU the fastest, elsewhere the model's own. See ``sjd2.attention``.
        processor: the model's own, for families whose adapter needs it to tell from a prompt what image is asked for.
        generation_mode: of models that know several, such as ``image``.
        callback: called after every forward.
        model_kwargs: whatever else ``generate`` takes: ``max_new_tokens``, ``do_sample``, ``attention_mask``, ``negative_prompt_ids`` …

    Returns:
        int64 ``[B, P + N]``, prompts and new tokens, padded on the right where rows ended earlier; with ``return_dict_in_generate`` a
        ``GenerateOutput``.

    Raises:
        ValueError: an argument is out of its range, or asks for what cannot be done; it names the argument.
        FloatingPointError: the logits were not finite, or the processors left no id.

    Example:
        >>> import sjd2, torch, transformers
        >>> config = transformers.LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model, prompt = transformers.LlamaForCausalLM(config).double().eval(), torch.tensor([[1, 5, 7]])
        >>> settings = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)
        >>> own = model.generate(prompt, **settings)
        >>> bool((model.generate(prompt, custom_generate=sjd2.generate, method="jacobi", **settings) == own).all())
        True
    """
    settings = {"window": window, "initialisation": initialisation, "keep_ratio": keep_ratio, "clean": clean, "levels": levels}
    resolve_preset(method, **settings)  # type: ignore[arg-type] # a bad setting is an error before any work
    resolve_cache(cache)
    check_attention(attention)
    check_callback(callback)
    knobs = _Knobs(method, settings, seed, cache, attention, processor, generation_mode, callback)
    if hasattr(generation_config, "_eos_token_tensor"):  # Transformers sets it where it prepares a call
        assert input_ids is not None
        return _prepared(
            model, input_ids, generation_config=generation_config, logits_processor=logits_processor, stopping_criteria=stopping_criteria,
            knobs=knobs, told={}, **model_kwargs,
        )  # fmt: skip
    for name, instead in _OURS.items():
        if model_kwargs.pop(name, None) is not None:
            raise ValueError(f"{name}: expected None, got one; {instead}")
    model = _unwrapped(model)
    if not isinstance(model, GenerationMixin):
        raise ValueError(f"model: expected a model of Transformers that can generate, got {type(model).__name__}")
    input_ids = model_kwargs.pop("inputs", None) if input_ids is None else input_ids
    check_ids(input_ids)
    base: Any = GenerationMixin  # a family's own generate may know nothing of custom_generate (Janus in image mode)
    # Transformers drops sizes of images that come without pixels: what was told is handed round it.
    ours = functools.partial(_prepared, knobs=knobs, told=dict(model_kwargs))
    return base.generate(
        model, input_ids, generation_config=generation_config, logits_processor=logits_processor, stopping_criteria=stopping_criteria,
        custom_generate=ours, **model_kwargs,
    )  # fmt: skip


@dataclass(frozen=True)
class _Knobs:
    """What ``generate`` takes beside Transformers' arguments; ``settings`` are of ``resolve_preset``."""

    method: str | Preset
    settings: dict[str, Any]
    seed: int | Sequence[int] | None
    cache: str
    attention: str
    processor: Any
    mode: str | None
    callback: Callable[[Progress], None] | None


def _prepared(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    *,
    generation_config: Any,
    logits_processor: Any,
    stopping_criteria: Any,
    knobs: _Knobs,
    told: Mapping[str, Any],
    **inputs: Any,
) -> torch.Tensor | GenerateOutput:
    """A call that Transformers has prepared, and what it was ``told`` before it did."""
    check_mode(generation_config)
    call = read_call(model, input_ids, generation_config, logits_processor or (), stopping_criteria or (), inputs, knobs.processor, knobs.mode, told)
    count = len(call.layout.lengths)
    seeds = torch.randint(2**63 - 1, (count,)).tolist() if knobs.seed is None else one_seed_each(knobs.seed, count)
    preset = resolve_preset(knobs.method, tuned=call.model.denoising, **knobs.settings)
    if preset.denoising is not None and call.model.denoising is None:
        warnings.warn(untuned_notice(preset), stacklevel=3)
    return run(call, replace(preset, window=min(preset.window, call.longest)), seeds, knobs.cache, knobs.attention, knobs.callback)


def _unwrapped(model: Any) -> Any:
    """The model in a ``PeftModel``, in whose layers the adapters are.

    Raises:
        ValueError: adapters that are prompts, which the model in it knows nothing of.
    """
    if not hasattr(model, "peft_config") or not hasattr(model, "get_base_model"):
        return model
    if getattr(model.active_peft_config, "is_prompt_learning", False):
        raise ValueError(f"model: expected adapters in the model's layers, such as LoRA, got {model.active_peft_config.peft_type.value}")
    return model.get_base_model()
