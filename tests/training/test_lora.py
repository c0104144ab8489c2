"""Adapters in place and merged."""

from __future__ import annotations

import pytest
import torch

from sjd2.training import add_lora, merge_lora
from support.tuning import load_model

pytest.importorskip("peft")


def logits(adapter) -> torch.Tensor:
    with torch.no_grad():
        return adapter.model(input_ids=torch.arange(10)[None] * 7).logits


def test_adapters_change_nothing_at_first_and_are_all_that_is_trained(adapter):
    before = logits(adapter)
    add_lora(adapter.model, 3)
    assert torch.equal(logits(adapter), before)
    trained = {name for name, parameter in adapter.model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 7 * 2  # two matrices at seven linear layers of two blocks
    assert all(".lora_" in name for name in trained)


def test_adapters_of_a_bfloat16_model_are_float32(folder):
    adapter = load_model(folder, torch.bfloat16)
    add_lora(adapter.model, 3)
    assert {parameter.dtype for parameter in adapter.model.parameters() if parameter.requires_grad} == {torch.float32}
    assert adapter.dtype == torch.bfloat16


def test_a_merged_model_does_what_the_adapters_did_in_layers_of_its_own(adapter):
    names = list(adapter.model.state_dict())
    before = logits(adapter)
    add_lora(adapter.model, 3)
    torch.manual_seed(0)
    for parameter in adapter.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    tuned = logits(adapter)
    assert (tuned - before).abs().max() > 0.1
    merge_lora(adapter.model)
    torch.testing.assert_close(logits(adapter), tuned, rtol=0, atol=1e-10)
    assert list(adapter.model.state_dict()) == names


def test_a_merged_model_is_saved_without_adapters(adapter, tmp_path):
    add_lora(adapter.model, 3)
    merge_lora(adapter.model)
    adapter.save_pretrained(tmp_path)
    assert not [path.name for path in tmp_path.iterdir() if "adapter" in path.name]


def test_a_rank_below_1_is_an_error(adapter):
    with pytest.raises(ValueError, match="lora: expected a rank >= 1, got 0"):
        add_lora(adapter.model, 0)
