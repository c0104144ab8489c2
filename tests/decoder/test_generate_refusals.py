"""What ``sjd2.generate`` cannot do is refused, by the name of what asks for it."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DynamicCache,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    TextStreamer,
)

import sjd2
from support.door import falcon
from support.llama import random_llama


def test_embeddings_do_not_get_round_the_comparison_with_the_models_own_forward(inputs):
    doubled = random_llama()

    class Doubled(type(doubled)):
        def forward(self, *arguments, **named):
            output = super().forward(*arguments, **named)
            output.logits = 2 * output.logits
            return output

    doubled.__class__ = Doubled
    embeds = doubled.get_input_embeddings()(inputs["input_ids"])
    for mode in (doubled.train, doubled.eval):  # what was not compared in training is compared afterwards
        mode()
        if not doubled.training:
            with pytest.raises(ValueError, match="gives others"):
                sjd2.generate(doubled, inputs_embeds=embeds, attention_mask=inputs["attention_mask"], max_new_tokens=3, do_sample=False)
        else:
            sjd2.generate(doubled, inputs_embeds=embeds, attention_mask=inputs["attention_mask"], max_new_tokens=3, do_sample=False)


REFUSED = {
    "num_beams": {"num_beams": 2},
    "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3},
    "dola_layers": {"dola_layers": "high"},
    "output_scores": {"output_scores": True, "return_dict_in_generate": True},
    "output_attentions": {"output_attentions": True, "return_dict_in_generate": True},
    "output_hidden_states": {"output_hidden_states": True, "return_dict_in_generate": True},
    "output_logits": {"output_logits": True, "return_dict_in_generate": True},
    "attention_mask": {"attention_mask": torch.tensor([[1, 1, 0]])},
    "position_ids": {"position_ids": torch.tensor([[4, 5, 6]])},
    "negative_prompt_ids": {"negative_prompt_ids": torch.ones(2, 2, dtype=torch.int64), "guidance_scale": 2.0},
    "negative_prompt_attention_mask": {
        "negative_prompt_ids": torch.ones(1, 2, dtype=torch.int64),
        "negative_prompt_attention_mask": torch.tensor([[1, 0]]),
        "guidance_scale": 2.0,
    },
    "method": {"method": "sjd3"},
    "window": {"window": 0},
    "cache": {"cache": "none"},
    "seed": {"seed": -1},
    "generation_mode": {"generation_mode": "image"},
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("direct", [False, True], ids=["custom_generate", "direct"])
def test_what_it_cannot_do_is_refused_by_name(model, name, direct):
    call = (
        (lambda **settings: sjd2.generate(model, **settings))
        if direct
        else (lambda **settings: model.generate(custom_generate=sjd2.generate, **settings))
    )
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        call(**{"input_ids": torch.tensor([[3, 4, 5]]), "max_new_tokens": 4, **REFUSED[name]})


def test_arguments_that_only_a_direct_call_sees_are_refused(model, inputs):
    for name, value in (("streamer", TextStreamer(None)), ("assistant_model", model), ("custom_generate", sjd2.generate)):
        with pytest.raises(ValueError, match=rf"^{name}: expected None"):
            sjd2.generate(model, **inputs, max_new_tokens=2, **{name: value})
    with pytest.raises(ValueError, match=r"^model: expected a model of Transformers that can generate, got LlamaModel"):
        sjd2.generate(model.model, **inputs)


def test_a_cache_that_holds_something_is_refused(model):
    ids = torch.tensor([[3, 4, 5]])
    used = DynamicCache()
    model(ids[:, :2], past_key_values=used)
    with pytest.raises(ValueError, match=r"^past_key_values: expected an empty cache or none, got one of 2 tokens"):
        model.generate(ids, custom_generate=sjd2.generate, max_new_tokens=2, past_key_values=used)


def test_models_that_it_cannot_drive_are_refused(model, inputs):
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0))
    with pytest.raises(ValueError, match=r"^model: expected a decoder-only model"):
        t5.generate(**inputs, custom_generate=sjd2.generate, max_new_tokens=2)
    windowed = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    sliding = Qwen2ForCausalLM(Qwen2Config(vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, **windowed))
    with pytest.raises(ValueError, match=r"^model: expected full attention"):
        sliding.generate(**inputs, custom_generate=sjd2.generate, max_new_tokens=2)


def test_backbones_that_take_no_positions_are_refused(inputs):
    bloom = BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2))
    for other in (bloom, falcon(alibi=True)):
        with pytest.raises(ValueError, match=r"^model: expected a (forward|backbone) that takes position"):
            other.generate(**inputs, custom_generate=sjd2.generate, max_new_tokens=2)


class Doubled(type(random_llama())):
    """A forward that does more than backbone and head."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output


def test_a_forward_that_does_more_than_backbone_and_head_is_refused(model, inputs):
    doubled = Doubled(model.config).double().eval()
    with pytest.raises(ValueError, match=r"^model: expected logits that are its head's product .*, but Doubled\.forward gives others"):
        doubled.generate(**inputs, custom_generate=sjd2.generate, max_new_tokens=2)
