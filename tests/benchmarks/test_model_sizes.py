"""Figures of full-size models: what is stored is what the configurations give, and a cache is as large as is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model_sizes import FAMILIES, figures

from sjd2 import load_adapter
from sjd2.adapters.causal_lm import column_bytes
from support.llama import random_llama, random_prompt, sliced

STORED = {row["name"]: row for row in json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "model_sizes.json").read_text())["models"]}


def test_every_family_is_stored():
    assert list(STORED) == list(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_stored_figures_are_those_of_the_configuration(name):
    assert figures(name) == STORED[name]


def test_the_embedded_model_is_what_it_is_said_to_be():
    adapter, row = load_adapter(None, device="cpu"), STORED["embedded (TinyScenes)"]
    assert sum(parameter.numel() for parameter in adapter.model.parameters()) == row["parameters"]
    assert (adapter.vocab_size, adapter.layout(1).forced.shape[1]) == (row["vocab_size"], row["steps"])


@pytest.mark.parametrize("name", FAMILIES)
def test_documented(name):
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    assert f"\n| {name} | {STORED[name]['pixels']} |" in text


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_a_real_cache_is_as_large_as_is_said(kv_heads):
    adapter = sliced(random_llama(kv_heads=kv_heads))
    prompt, _ = random_prompt(adapter, [5, 3])
    cache = adapter.new_cache(2, 40)
    adapter.forward(prompt.embeds, cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 2 * 40 * column_bytes(adapter.text_config, torch.float64)
