"""``sjd2.generate`` against the model's own ``generate``: the same calls, the same tokens, the same format."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import EosTokenCriteria, GenerationConfig, MaxLengthCriteria, StoppingCriteriaList

import sjd2
from sjd2 import PRESETS, GenerateOutput
from support.door import SEEDS, VOCABULARY, both, falcon, frozen, gemma, gpt2, opt, qwen2
from support.llama import random_llama

EXACT = [name for name in PRESETS if PRESETS[name].exact != "none" and PRESETS[name].denoising is None]


@pytest.mark.parametrize("method", EXACT)
def test_greedy_equals_the_models_own_generate(model, inputs, method):
    own, ours = both(model, inputs, method=method, do_sample=False, max_new_tokens=24)
    assert torch.equal(own, ours)
    assert ours.dtype == torch.int64


@pytest.mark.parametrize("method", ["sjd2", "sjd2-relaxed", "sjd++"])
def test_every_other_method_runs_too(model, inputs, method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = model.generate(**inputs, custom_generate=sjd2.generate, method=method, seed=3, do_sample=True, max_new_tokens=24)
    assert ours.shape == (3, 31)


@pytest.mark.parametrize("method", ["ar", "jacobi"])
@pytest.mark.parametrize(
    "warpers", [{}, {"temperature": 0.7, "top_k": 12, "top_p": 0.9}, {"min_p": 0.05, "temperature": 1.3}], ids=["plain", "folded", "min_p"]
)
def test_sampling_with_the_same_noise_equals_the_models_own_generate(model, inputs, method, warpers):
    own, ours = frozen(model, inputs, method=method, warpers=warpers, max_new_tokens=20)
    assert torch.equal(own, ours)


@pytest.mark.parametrize("guided_by", ["negative prompts", "last tokens"])
@pytest.mark.parametrize("sampled", [False, True])
def test_guidance_is_that_of_generate(model, inputs, negative, guided_by, sampled):
    settings = {"guidance_scale": 1.7, "max_new_tokens": 16, **(negative if guided_by == "negative prompts" else {})}
    if sampled:
        own, ours = frozen(model, inputs, warpers={"temperature": 0.8, "top_k": 15}, **settings)
    else:
        own, ours = both(model, inputs, do_sample=False, **settings)
    assert torch.equal(own, ours)


def test_one_negative_prompt_serves_all_rows(model, inputs, negative):
    settings = {"guidance_scale": 1.7, "max_new_tokens": 16, "do_sample": False}
    one = negative["negative_prompt_ids"][:1]
    own, ours = both(model, inputs, negative_prompt_ids=one.repeat(3, 1), **settings)
    assert torch.equal(own, ours)
    assert torch.equal(model.generate(**inputs, custom_generate=sjd2.generate, negative_prompt_ids=one, **settings), own)


@pytest.mark.parametrize("ends", [7, [7, 21], [7, 21, 30]])
@pytest.mark.parametrize("method", ["ar", "jacobi", "mc-sjd"])
def test_rows_end_with_an_end_id_and_are_padded(model, inputs, ends, method):
    own, ours = both(model, inputs, method=method, do_sample=False, max_new_tokens=40, eos_token_id=ends, pad_token_id=0)
    assert torch.equal(own, ours)
    own, ours = frozen(model, inputs, method="jacobi", max_new_tokens=40, eos_token_id=ends, pad_token_id=3)
    assert torch.equal(own, ours)
    assert own.shape[1] < 47 or (own == 3).any(), "some row ends early"


def test_without_a_pad_id_the_end_id_pads(inputs):
    llama = random_llama()
    llama.generation_config.pad_token_id = llama.config.pad_token_id = None
    own, ours = both(llama, inputs, do_sample=False, max_new_tokens=40, eos_token_id=7)
    assert torch.equal(own, ours)


def test_lengths_are_those_of_generate(model, inputs):
    for settings in ({"max_length": 13}, {"max_new_tokens": 1}, {}, {"max_new_tokens": 9, "stopping_criteria": [MaxLengthCriteria(10)]}):
        own, ours = both(model, inputs, do_sample=False, **settings)
        assert torch.equal(own, ours)
    own, ours = both(model, inputs, do_sample=False, max_new_tokens=30, eos_token_id=3, stopping_criteria=StoppingCriteriaList([EosTokenCriteria(7)]))
    assert torch.equal(own, ours)


def test_more_tokens_than_the_model_has_positions_for(model, inputs):
    """As in snippets that count on an end id; it comes, or the model's positions end the row, and that is said."""
    settings = {"do_sample": False, "custom_generate": sjd2.generate, "method": "jacobi", "window": 8}
    free = model.generate(**inputs, do_sample=False, max_new_tokens=200)
    end_id = next(one for one in range(VOCABULARY) if all(one in row for row in free[:, 7:].tolist()))
    own = model.generate(**inputs, do_sample=False, max_new_tokens=200, eos_token_id=end_id)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(model.generate(**inputs, max_new_tokens=50_000, eos_token_id=end_id, **settings), own)
    with pytest.warns(UserWarning, match=r"max_new_tokens: rows end after 250 tokens"):  # 256 − 6 before the first one is fed
        cut = model.generate(**inputs, max_new_tokens=50_000, **settings)
    assert torch.equal(cut[:, :207], free)
    own = model.generate(**inputs, do_sample=False, max_new_tokens=249)
    assert torch.equal(model.generate(**inputs, max_new_tokens=249, **settings), own)


@pytest.mark.parametrize("method", EXACT)
def test_a_call_that_just_fits_the_models_positions(model, inputs, method):
    settings = {"do_sample": False, "max_new_tokens": 249}
    own = model.generate(**inputs, **settings)
    assert torch.equal(model.generate(**inputs, **settings, custom_generate=sjd2.generate, method=method), own)


def test_several_sequences_per_prompt(model, inputs):
    own, ours = both(model, inputs, do_sample=True, top_k=1, max_new_tokens=8, num_return_sequences=2)
    assert own.shape == (6, 15)
    assert torch.equal(own, ours)
    different = both(model, inputs, do_sample=True, max_new_tokens=8, num_return_sequences=2, method="mc-sjd")[1]
    assert not torch.equal(different[0], different[1])


def test_a_dictionary_has_sequences_statistics_and_seeds(model, inputs):
    settings = {"do_sample": True, "max_new_tokens": 12, "custom_generate": sjd2.generate, "method": "mc-sjd"}
    output = model.generate(**inputs, return_dict_in_generate=True, seed=9, **settings)
    assert isinstance(output, GenerateOutput)
    assert torch.equal(output.sequences, model.generate(**inputs, seed=9, **settings))
    assert output.seeds == (9, 10, 11)
    assert [row.tokens for row in output.statistics] == [12, 12, 12]
    assert all(1 <= row.forwards <= 12 for row in output.statistics)


def test_without_a_seed_pytorchs_generator_decides(model, inputs):
    settings = {"do_sample": True, "max_new_tokens": 12, "custom_generate": sjd2.generate, "return_dict_in_generate": True}
    torch.manual_seed(0)
    first, second = model.generate(**inputs, **settings), model.generate(**inputs, **settings)
    torch.manual_seed(0)
    again = model.generate(**inputs, **settings)
    assert torch.equal(first.sequences, again.sequences)
    assert not torch.equal(first.sequences, second.sequences)
    assert torch.equal(model.generate(**inputs, seed=list(second.seeds), **settings).sequences, second.sequences)


def test_called_directly_it_is_the_same(model, inputs, negative):
    settings = {"do_sample": False, "max_new_tokens": 12, "guidance_scale": 1.5, **negative}
    own = model.generate(**inputs, **settings)
    assert torch.equal(sjd2.generate(model, **inputs, method="mc-sjd", window=4, **settings), own)
    assert torch.equal(sjd2.generate(model, inputs["input_ids"], attention_mask=inputs["attention_mask"], **settings), own)
    config = GenerationConfig(do_sample=False, max_new_tokens=12, guidance_scale=1.5, pad_token_id=0)
    assert torch.equal(
        sjd2.generate(model, inputs=inputs["input_ids"], attention_mask=inputs["attention_mask"], generation_config=config, **negative), own
    )


def test_the_batch_does_not_matter(model, inputs):
    together = model.generate(**inputs, custom_generate=sjd2.generate, do_sample=True, max_new_tokens=12, seed=SEEDS)
    for row, padding in enumerate([2, 5, 0]):
        alone = model.generate(
            inputs["input_ids"][row : row + 1, padding:], custom_generate=sjd2.generate, do_sample=True, max_new_tokens=12, seed=SEEDS[row]
        )
        assert torch.equal(alone[0, 7 - padding :], together[row, 7:])


@pytest.mark.parametrize("cache", ["ragged", "paged"])
def test_both_caches(model, inputs, cache):
    own = model.generate(**inputs, do_sample=False, max_new_tokens=12)
    assert torch.equal(model.generate(**inputs, custom_generate=sjd2.generate, do_sample=False, max_new_tokens=12, cache=cache), own)


def test_prompts_given_as_embeddings(model, inputs):
    embedded = {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]), "attention_mask": inputs["attention_mask"]}
    own, ours = both(model, embedded, do_sample=False, max_new_tokens=12)
    assert own.shape == (3, 12)
    assert torch.equal(own, ours)


def test_rows_leave_the_batch_where_end_ids_alone_decide(model, inputs):
    """Several end ids are a rule that knows no row by its number."""
    sizes = []
    own = model.generate(**inputs, do_sample=False, max_new_tokens=60, eos_token_id=[7, 21])
    lengths = (own[:, 7:] != 0).sum(1).tolist()
    assert len(set(lengths)) > 1
    hook = model.model.register_forward_pre_hook(lambda _, args, kwargs: sizes.append(len(kwargs["inputs_embeds"])), with_kwargs=True)
    ours = model.generate(**inputs, custom_generate=sjd2.generate, method="ar", do_sample=False, max_new_tokens=60, eos_token_id=[7, 21])
    hook.remove()
    assert torch.equal(ours, own)
    assert min(sizes) < 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_precisions_are_no_reason_to_refuse_a_model(inputs, dtype):
    other = random_llama(dtype=dtype)
    ids = other.generate(**inputs, custom_generate=sjd2.generate, do_sample=True, top_k=9, max_new_tokens=12, eos_token_id=None, seed=1)
    assert ids.shape == (3, 19)


@pytest.mark.parametrize("build", [qwen2, gpt2, opt, falcon, gemma])
@pytest.mark.parametrize("method", ["jacobi", "mc-sjd", "sjd2"])
@pytest.mark.filterwarnings("ignore:method. sjd2 feeds noise")
def test_other_families(build, inputs, method):
    other = build()
    own, ours = both(other, inputs, method=method, do_sample=False, max_new_tokens=24, pad_token_id=0, eos_token_id=7)
    assert torch.equal(own, ours)
