"""``sjd2.generate`` against the model's own ``generate``: the same calls, the same tokens, the same format."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DynamicCache,
    EosTokenCriteria,
    FalconConfig,
    FalconForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinPLogitsWarper,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
    T5Config,
    T5ForConditionalGeneration,
    TextStreamer,
)

import sjd2
from sjd2 import PRESETS, GenerateOutput
from support.frozen_noise import FrozenGumbel
from support.llama import random_llama

EXACT = [name for name in PRESETS if PRESETS[name].exact != "none" and PRESETS[name].denoising is None]
VOCABULARY = 40
SEEDS = [11, 5, 2**62]


@pytest.fixture(scope="module")
def model():
    llama = random_llama()
    llama.generation_config.eos_token_id = None
    return llama


@pytest.fixture
def inputs():
    """Three prompts of 5, 2 and 7 tokens, padded on the left."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCABULARY, (3, 7), generator=generator)
    mask = torch.ones_like(ids)
    for row, padding in enumerate([2, 5, 0]):
        ids[row, :padding], mask[row, :padding] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def negative():
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, VOCABULARY, (3, 4), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, :2], mask[1, :2] = 0, 0
    return {"negative_prompt_ids": ids, "negative_prompt_attention_mask": mask}


def both(model, inputs, *, method="jacobi", window=8, quiet=True, **settings):
    """The model's own tokens, and those through the door."""
    own = model.generate(**inputs, **settings)
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
        window = None if method == "ar" else window
        return own, model.generate(**inputs, custom_generate=sjd2.generate, method=method, window=window, **settings)


def frozen(model, inputs, *, method="jacobi", seeds=SEEDS, window=8, own_settings=None, **settings):
    """Both with the same noise: the model's own picks the highest of warped scores plus the noise."""
    warpers = settings.pop("warpers", {})
    processors = LogitsProcessorList(settings.pop("logits_processor", []))
    config = GenerationConfig(**{"do_sample": True, "top_k": 0, **warpers, "pad_token_id": 0, "eos_token_id": settings.get("eos_token_id")})
    config._eos_token_tensor = None
    warped = model._get_logits_processor(config, input_ids_seq_length=inputs["input_ids"].shape[1], logits_processor=LogitsProcessorList())
    noise = FrozenGumbel(seeds, 0, VOCABULARY)
    own = model.generate(**inputs, do_sample=False, logits_processor=LogitsProcessorList([*processors, *warped, noise]), **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = model.generate(
            **inputs, custom_generate=sjd2.generate, method=method, window=None if method == "ar" else window, seed=seeds,
            do_sample=True, **{"top_k": 0, **warpers}, logits_processor=processors, **settings,
        )  # fmt: skip
    return own, ours


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


class OnlyAfter(LogitsProcessor):
    """A rule of the user's: an even id follows only an odd one."""

    def __call__(self, input_ids, scores):
        even = torch.arange(scores.shape[-1]) % 2 == 0
        return scores.masked_fill(even & (input_ids[:, -1:] % 2 == 0), -torch.inf)


PER_SLOT = {
    "repetition_penalty": {"repetition_penalty": 1.6},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "min_new_tokens": {"min_new_tokens": 9, "eos_token_id": [7, 21, 30]},
    "forced_eos": {"forced_eos_token_id": 9},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(1, 30))},
    "bad_words": {"bad_words_ids": [[3, 4], [5], [11, 12, 13]]},
    "sequence_bias": {"sequence_bias": [[[8], 4.0], [[9, 10], 9.0]]},
    "decay": {"exponential_decay_length_penalty": (3, 1.2), "eos_token_id": 7},
    "the user's": {"logits_processor": LogitsProcessorList([OnlyAfter()])},
    "guided and penalised": {"repetition_penalty": 1.6, "guidance_scale": 2.0},
    "a prefix's": {"prefix_allowed_tokens_fn": lambda row, ids: [(int(ids[-1]) + step + row) % VOCABULARY for step in (1, 2, 3)]},
}


@pytest.mark.parametrize("name", PER_SLOT)
def test_processors_that_look_back_are_applied_to_every_slot(model, inputs, name):
    own, ours = both(model, inputs, do_sample=False, max_new_tokens=18, **PER_SLOT[name])
    assert torch.equal(own, ours)
    own, ours = frozen(model, inputs, max_new_tokens=18, **PER_SLOT[name])
    assert torch.equal(own, ours)


@pytest.mark.parametrize("method", ["sjd", "mc-sjd", "gs-sjd"])
def test_processors_that_look_back_hold_for_every_method(model, inputs, method):
    own, ours = both(model, inputs, method=method, do_sample=False, max_new_tokens=18, repetition_penalty=1.6)
    assert torch.equal(own, ours)
    odd = both(model, inputs, method=method, do_sample=True, max_new_tokens=30, logits_processor=LogitsProcessorList([OnlyAfter()]))[1]
    following = odd[:, 6:].unfold(1, 2, 1)
    assert not (following % 2 == 0).all(-1).any()


def test_a_constraint_that_knows_only_its_own_prefixes_is_not_asked_about_others_in_vain(model, inputs):
    """Drafts break it; what it says, or raises, of them does not matter."""
    path = [4, 9, 2, 31, 17, 5, 6, 8, 22, 23]

    def along(row, ids):
        done = ids[7:].tolist()
        if done != path[: len(done)]:
            raise KeyError(done)
        return path[len(done) : len(done) + 1]

    own, ours = both(model, inputs, do_sample=False, max_new_tokens=10, prefix_allowed_tokens_fn=along)
    assert torch.equal(own, ours)
    assert ours[:, 7:].tolist() == [path] * 3


def test_an_error_about_committed_tokens_is_raised(model, inputs):
    def never(row, ids):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        model.generate(**inputs, custom_generate=sjd2.generate, max_new_tokens=4, prefix_allowed_tokens_fn=never)


class NothingAfter(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return torch.full_like(scores, -torch.inf) if input_ids.shape[1] >= 10 else scores


def test_a_processor_that_leaves_no_id_is_an_error(model, inputs):
    with pytest.raises(FloatingPointError, match=r"^logits"):
        model.generate(**inputs, custom_generate=sjd2.generate, max_new_tokens=9, logits_processor=LogitsProcessorList([NothingAfter()]))


def test_it_says_once_what_is_applied_slot_by_slot(model, inputs):
    settings = {"custom_generate": sjd2.generate, "max_new_tokens": 2, "seed": 0}
    with pytest.warns(UserWarning, match=r"logits_processor: RepetitionPenaltyLogitsProcessor, MinPLogitsWarper applied to every slot"):
        model.generate(**inputs, do_sample=True, repetition_penalty=1.5, logits_processor=LogitsProcessorList([MinPLogitsWarper(0.1)]), **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folded = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "suppress_tokens": [3, 4], "bad_words_ids": [[5]], "renormalize_logits": True}
        model.generate(**inputs, do_sample=True, guidance_scale=2.0, **folded, **settings)


def test_suppressed_ids_are_never_drawn(model, inputs):
    suppressed = list(range(1, VOCABULARY, 2))
    own, ours = both(model, inputs, do_sample=False, max_new_tokens=12, suppress_tokens=suppressed)
    assert torch.equal(own, ours)
    sampled = both(model, inputs, method="mc-sjd", do_sample=True, max_new_tokens=30, suppress_tokens=suppressed)[1]
    assert (sampled[:, 7:] % 2 == 0).all()


class EndsIn(StoppingCriteria):
    """Fires where the last two ids add up to more than ``total``."""

    def __init__(self, total):
        self.total = total

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -2:].sum(1) > self.total


@pytest.mark.parametrize("total", [55, 65, 70])
@pytest.mark.parametrize("method", ["ar", "jacobi", "mc-sjd"])
def test_rows_end_where_a_criterion_first_fires(model, inputs, method, total):
    free = model.generate(**inputs, do_sample=False, max_new_tokens=30)
    with pytest.warns(UserWarning, match=r"stopping_criteria: EndsIn"):
        ours = model.generate(
            **inputs, custom_generate=sjd2.generate, method=method, do_sample=False, max_new_tokens=30,
            stopping_criteria=StoppingCriteriaList([EndsIn(total)]), return_dict_in_generate=True,
        )  # fmt: skip
    lengths = []
    for row in free[:, 6:].tolist():
        fired = [place for place in range(1, 31) if row[place - 1] + row[place] > total]
        lengths.append(fired[0] if fired else 30)
    assert [row.tokens for row in ours.statistics] == lengths
    expected = torch.zeros(3, max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        expected[row, :length] = free[row, 7 : 7 + length]
    assert torch.equal(ours.sequences[:, 7:], expected)


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


def qwen2():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, initializer_range=0.4, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).double().eval()


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=128, n_embd=32, n_layer=2, n_head=4, initializer_range=0.4, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config).double().eval()


def opt():
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, init_std=0.4, word_embed_proj_dim=32
    )
    return OPTForCausalLM(config).double().eval()


def falcon(**fields):
    torch.manual_seed(0)
    config = FalconConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.4, **fields)
    return FalconForCausalLM(config).double().eval()


def gemma():
    torch.manual_seed(0)
    config = GemmaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=8,
        initializer_range=0.4,
    )  # fmt: skip
    return GemmaForCausalLM(config).double().eval()


@pytest.mark.parametrize("build", [qwen2, gpt2, opt, falcon, gemma])
@pytest.mark.parametrize("method", ["jacobi", "mc-sjd", "sjd2"])
@pytest.mark.filterwarnings("ignore:method. sjd2 feeds noise")
def test_other_families(build, inputs, method):
    other = build()
    own, ours = both(other, inputs, method=method, do_sample=False, max_new_tokens=24, pad_token_id=0, eos_token_id=7)
    assert torch.equal(own, ours)


class NothingBehind(LogitsProcessor):
    """Of constraint libraries: no id is possible behind an end, or asking is an error."""

    def __init__(self, ends, error=False):
        self.ends, self.error = torch.tensor(ends), error

    def __call__(self, input_ids, scores):
        ended = torch.isin(input_ids[:, 7:], self.ends).any(1)
        if self.error and ended.any():
            raise RuntimeError("behind the end")
        return scores.masked_fill(ended[:, None], -torch.inf)


class EndsWith(StoppingCriteria):
    def __init__(self, ends):
        self.ends = torch.tensor(ends)

    def __call__(self, input_ids, scores, **kwargs):
        return torch.isin(input_ids[:, -1], self.ends)


@pytest.mark.filterwarnings("ignore:logits_processor")
@pytest.mark.filterwarnings("ignore:stopping_criteria")
@pytest.mark.parametrize("error", [False, True], ids=["nothing", "raises"])
@pytest.mark.parametrize("ends", ["ids", "criterion"])
def test_processors_that_allow_nothing_behind_the_end(model, inputs, ends, error):
    """A forward commits tokens behind the end; what processors say there is of no interest."""
    one = {name: values[2:] for name, values in inputs.items()}
    settings = {"do_sample": True, "max_new_tokens": 40, "pad_token_id": 0, "custom_generate": sjd2.generate}
    settings |= {"eos_token_id": [5, 9]} if ends == "ids" else {"stopping_criteria": [EndsWith([5, 9])]}
    settings["logits_processor"] = [NothingBehind([5, 9], error)]
    ended = 0
    for seed in range(8):
        runs = [model.generate(**one, **settings, method=method, window=window, seed=seed) for method, window in (("ar", 1), ("jacobi", 8))]
        assert torch.equal(*runs)
        ended += runs[0].shape[1] < 47
    assert ended > 2  # otherwise nothing would have been tested


class HalvesInPlace(LogitsProcessor):
    def __call__(self, input_ids, scores):
        scores *= 0.3
        return scores


class Picky(LogitsProcessor):
    """Refuses prefixes that drafts make up, and that never come about."""

    def __call__(self, input_ids, scores):
        if (input_ids[:, 7:] == 9).any():
            raise RuntimeError("an unknown prefix")
        scores[:, 9] = -torch.inf
        return scores


@pytest.mark.filterwarnings("ignore:logits_processor")
def test_processors_that_work_in_place_are_applied_once(model, inputs):
    settings = {"do_sample": True, "max_new_tokens": 30, "logits_processor": [HalvesInPlace(), Picky()], "custom_generate": sjd2.generate}
    for seed in range(6):
        runs = [model.generate(**inputs, **settings, method=method, window=window, seed=seed) for method, window in (("ar", 1), ("jacobi", 8))]
        assert torch.equal(*runs)


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


def test_a_processor_list_may_be_plain(model, inputs):
    own = model.generate(**inputs, do_sample=False, max_new_tokens=6, logits_processor=[OnlyAfter()])
    with pytest.warns(UserWarning, match="OnlyAfter"):
        assert torch.equal(sjd2.generate(model, **inputs, do_sample=False, max_new_tokens=6, logits_processor=[OnlyAfter()]), own)


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
