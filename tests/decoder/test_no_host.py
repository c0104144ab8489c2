"""An iteration asks nothing of the host: it runs on tensors that have no contents, and takes none that lie on the CPU.

On the meta device whatever would make the host wait for a GPU (reading a value, a size that depends on one) is an error. What
would copy from the host is written down: a CUDA graph could not hold it.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from transformers import AttentionInterface

from sjd2.attention import ATTENTIONS, interface
from sjd2.cache import CACHES
from sjd2.decoding import INITIALISATIONS, PRESETS, Prompt, TokenLayout, resolve_preset
from sjd2.decoding.loop import iterate
from sjd2.decoding.state import Plan, begin
from sjd2.denoising.window import Denoiser
from sjd2_kernels import LogitsProcessing, window_attention
from support.llama import random_llama, sliced
from support.no_host import FromTheHost

BATCH, COUNT, WINDOW, WIDTH = 3, 24, 8, 5


def prepared(preset, cache="ragged", *, attention="model", structural=True, places=None):
    """Plan, state and cache behind the prompt."""
    model = sliced(random_llama(dtype=torch.float32).to("meta"))
    model.structural_ids, model._vocabulary_ids = (1, 2), torch.empty(34, dtype=torch.int64, device="meta")

    def rows(value, *shape):
        return torch.full(shape, value, device="meta")

    layout = TokenLayout(rows(-1, BATCH, COUNT), rows(COUNT, BATCH), row_stride=6, end_id=3, places=places)
    processing = LogitsProcessing.create(
        BATCH, guidance_scale=3.0, top_k=5, top_p=0.9, allowed=torch.ones(32, dtype=torch.bool), device=torch.device("meta")
    )
    plan = Plan(model, layout, processing, preset, rows(0, BATCH), guided=True, structural=structural, cache=CACHES[cache], compact=False)
    if preset.denoising is not None:
        plan = replace(plan, denoiser=Denoiser(preset.denoising, preset.window, model, torch.device("meta"), structural=structural))
    prompt = Prompt(torch.zeros(2 * BATCH, WIDTH, 32, device="meta"), rows(WIDTH - 1, 2 * BATCH))
    state, own = begin(plan, prompt, nullcontext(), capacity=WIDTH + COUNT + WINDOW + 30)
    own.attention = attention
    return plan, state, own


def runs_without_the_host(preset, **options):
    with torch.inference_mode():
        plan, state, cache = prepared(preset, **options)
        iterate(plan, state, cache, nullcontext())  # the first one fills what models and caches keep
        with FromTheHost() as copies:
            for _ in range(2):
                iterate(plan, state, cache, nullcontext())
    assert copies.seen == []


def named(method, **settings):
    return resolve_preset(method, window=None if method == "ar" else WINDOW, **settings)


@pytest.mark.parametrize("cache", list(CACHES))
@pytest.mark.parametrize("method", list(PRESETS))
def test_every_method(method, cache):
    runs_without_the_host(named(method), cache=cache)


@pytest.mark.parametrize("attention", ["triton", "flex"])
@pytest.mark.parametrize("method", ["ar", "mc-sjd", "sjd2"])
def test_every_attention(method, attention, monkeypatch):
    monkeypatch.setattr(interface, "window_attention", lambda *a, backend, **named: window_attention(*a, backend="torch", **named))
    # Flex attention itself knows no tensors without contents; its masks do.
    monkeypatch.setitem(AttentionInterface._global_mapping, ATTENTIONS["flex"], lambda module, query, *a, **named: (query.transpose(1, 2), None))
    runs_without_the_host(named(method), attention=attention)


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
@pytest.mark.parametrize("structural", [True, False])
def test_every_initialisation(initialisation, structural):
    runs_without_the_host(named("mc-sjd", initialisation=initialisation), structural=structural)


def test_several_rotary_axes():
    _, _, cache = prepared(named("mc-sjd"), places=torch.zeros(3, COUNT, dtype=torch.int64, device="meta"))
    with FromTheHost() as copies:
        assert cache.positions(WINDOW).shape == (3, 2 * BATCH, WINDOW)
    assert copies.seen == []


def test_what_the_tests_look_for_is_seen():
    on_device = torch.zeros(3, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(on_device.any())
    with pytest.raises((RuntimeError, NotImplementedError)):
        on_device[on_device > 0]
    with FromTheHost() as copies:
        torch.tensor([1, 2, 3], device="meta")
        torch.ones(3).to("meta")
    assert copies.seen == ["torch.tensor", "aten._to_copy.default"]
