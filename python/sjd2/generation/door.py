"""``sjd2.generate``, called by Hugging Face's ``generate`` or in its place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from ..arguments import one_seed_each
from ..cache import resolve_cache
from ..decoding import Preset, Progress, resolve_preset
from ..decoding.presets import tuned_preset, untuned_notice
from .call import Call, read_call
from .inputs import check_mode
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
    seed: int | Sequence[int] | None = None,
    cache: str = "ragged",
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
        seed: of the first row, the next row's is one higher; or one per row. Default: drawn from PyTorch's generator (``torch.manual_seed``).
        cache: ``ragged`` or ``paged``: how keys and values are stored; see ``sjd2.cache``. The tokens are the same.
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
    if not hasattr(generation_config, "_eos_token_tensor"):  # Transformers sets it where it prepares a call
        for name, instead in _OURS.items():
            if model_kwargs.pop(name, None) is not None:
                raise ValueError(f"{name}: expected None, got one; {instead}")
        if not isinstance(model, GenerationMixin):
            raise ValueError(f"model: expected a model of Transformers that can generate, got {type(model).__name__}")
        base: Any = GenerationMixin  # a family's own generate may know nothing of custom_generate (Janus in image mode)
        return base.generate(
            model, model_kwargs.pop("inputs", None) if input_ids is None else input_ids,
            generation_config=generation_config, logits_processor=logits_processor, stopping_criteria=stopping_criteria, custom_generate=generate,
            method=method, window=window, initialisation=initialisation, keep_ratio=keep_ratio, seed=seed, cache=cache,
            processor=processor, generation_mode=generation_mode, callback=callback, **model_kwargs,
        )  # fmt: skip
    assert input_ids is not None
    assert generation_config is not None
    check_mode(generation_config)
    preset = resolve_preset(method, window=window, initialisation=initialisation, keep_ratio=keep_ratio)
    resolve_cache(cache)
    call = read_call(model, input_ids, generation_config, logits_processor or (), stopping_criteria or (), model_kwargs, processor, generation_mode)
    count = len(call.layout.lengths)
    seeds = torch.randint(2**63 - 1, (count,)).tolist() if seed is None else one_seed_each(seed, count)
    return run(call, _fitted(preset, call, by_name=isinstance(method, str)), seeds, cache, callback)


def _fitted(preset: Preset, call: Call, *, by_name: bool) -> Preset:
    """The preset as the model was tuned for it, with a window that is no longer than a row."""
    preset = replace(preset, window=min(preset.window, call.longest))
    if preset.denoising is None:
        return preset
    if call.model.denoising is None:
        warnings.warn(untuned_notice(preset), stacklevel=3)
        return preset
    return tuned_preset(preset, call.model.denoising) if by_name else preset
