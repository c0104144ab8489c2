"""The ragged cache under an unmodified Llama forward."""

from __future__ import annotations

import pytest
import torch

from sjd2.cache import CACHES, RaggedCache
from support.llama import random_llama, sliced


@pytest.mark.parametrize("kv_heads", [4, 2], ids=["multi-head", "grouped"])
@pytest.mark.parametrize(("attention", "tolerance"), [("sdpa", 1e-12), ("eager", 1e-4)])  # eager's softmax runs in float32
@pytest.mark.parametrize("kind", list(CACHES.values()))
@torch.inference_mode()
def test_windows_with_rollback_equal_the_full_forward(kv_heads, attention, tolerance, kind):
    model = random_llama(kv_heads=kv_heads)
    model.set_attn_implementation(attention)
    adapter = sliced(model)
    generator = torch.Generator().manual_seed(2)
    rows, window = 3, 4
    cache = adapter.new_cache(rows, 40, kind)
    kept: list[list[int]] = [[] for _ in range(rows)]
    for counts in ([2, 0, 4], [1, 3, 2], [4, 1, 0], [1, 1, 1]):
        fed = torch.randint(32, (rows, window), generator=generator)
        logits = adapter.forward(adapter.embed(fed), cache)
        for row in range(rows):
            ids = torch.tensor([[*kept[row], *fed[row].tolist()]])
            full = model(input_ids=ids + adapter.image_id_start).logits[0, -window:, 5:37]
            torch.testing.assert_close(logits[row], full, atol=tolerance, rtol=tolerance)
            kept[row] += fed[row, : counts[row]].tolist()
        cache.commit(torch.tensor(counts))
    assert cache.lengths.tolist() == [8, 5, 7]


def test_reset_forgets_lengths_and_buffers():
    cache = RaggedCache(1, 2, 6)
    cache.layers[0].update(torch.ones(2, 1, 3, 4), torch.ones(2, 1, 3, 4))
    cache.commit(torch.tensor([1, 3]))
    cache.reset()
    assert cache.lengths.tolist() == [0, 0]
    assert cache.layers[0].keys.abs().sum() == 0
    assert cache.get_max_length() == 6


def test_attention_that_takes_no_mask_is_refused():
    model = random_llama()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="model: expected attn_implementation sdpa or eager, got flash_attention_2"):
        sliced(model)


def test_the_mask_lets_an_input_see_valid_columns_and_the_window_up_to_itself():
    cache = RaggedCache(1, 2, 6)
    cache.commit(torch.tensor([0, 3]))
    assert cache.mask(2)[:, 0].int().tolist() == [
        [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]],
        [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]],
    ]
    assert cache.positions(2).tolist() == [[0, 1], [3, 4]]
