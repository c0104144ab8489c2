"""Every family's layers take their attention from where the decoder says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AttentionInterface

from sjd2.attention import ATTENTIONS, choice, interface
from sjd2.decoding import PRESETS, decode
from sjd2_kernels import LogitsProcessing, window_attention
from support.families import FAMILIES, family_adapter


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_are_the_same_and_all_layers_were_asked(family, tmp_path, monkeypatch):
    adapter, asked = family_adapter(family, tmp_path / family), []
    grid = (3, 4) if family == "emu3" else None  # whose usual one is large
    layout = adapter.layout(2, grid)
    monkeypatch.setattr(choice, "obstacle", lambda *arguments, **named: None)
    monkeypatch.setattr(interface, "window_attention", lambda *a, backend, **named: window_attention(*a, backend="torch", **named))
    own = AttentionInterface._global_mapping[ATTENTIONS["triton"]]
    monkeypatch.setitem(AttentionInterface._global_mapping, ATTENTIONS["triton"], lambda *a, **named: asked.append(1) or own(*a, **named))
    preset = replace(PRESETS["mc-sjd"], window=6)
    prompt = adapter.prompt(["a red coat", "a teal boot on a bed"], ["", ""], grid)

    def run(attention):
        processing = LogitsProcessing.create(2, guidance_scale=2.0)
        return decode(adapter, prompt, layout, processing, preset, torch.tensor([1, 2]), attention=attention, compact=False)

    wanted, got = run("model"), run("triton")
    assert torch.equal(got.tokens, wanted.tokens)
    assert len(asked) == adapter.text_config.num_hidden_layers * max(row.forwards for row in got.rows)
    shape = adapter.attention_shape
    assert (shape.heads, shape.dtype) == (adapter.text_config.num_attention_heads, torch.float64)
