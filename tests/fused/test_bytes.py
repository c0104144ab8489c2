"""What the kernels read, counted load by load in the interpreter: the modelled bytes of ``docs/kernels.md``."""

from __future__ import annotations

import pytest
import torch

from sjd2_kernels import LastForward, LogitsProcessing, Purpose, Rule, denoise, sample, verify, window_attention
from sjd2_kernels.fused import INTERPRETED
from sjd2_kernels.processing import log_probabilities, row_statistics, scaled_logits
from sjd2_kernels.sampling.inverse_cdf import BLOCK
from support.attention import attention_case

if not INTERPRETED:
    pytest.skip("loads are counted in Triton's interpreter", allow_module_level=True)

WINDOW = 4
#: Loads of single ids for the draft test, four to a slot.
GATHERS = 4


class Meter:
    """Bytes that masked-in lanes load from, and store to, each of some tensors."""

    def __init__(self, monkeypatch, **tensors: torch.Tensor):
        from triton.runtime import interpreter

        self.loaded, self.stored = dict.fromkeys(tensors, 0), dict.fromkeys(tensors, 0)
        ranges = {name: (t.data_ptr(), t.data_ptr() + t.untyped_storage().nbytes(), t.element_size()) for name, t in tensors.items()}

        def count(into, addresses, mask) -> None:
            for name, (begin, end, size) in ranges.items():
                into[name] += int((mask & (addresses >= begin) & (addresses < end)).sum()) * size

        builder = interpreter.InterpreterBuilder
        load, store = builder.create_masked_load, builder.create_masked_store

        def counted_load(self_, pointers, mask, *rest):
            count(self.loaded, pointers.data, mask.data)
            return load(self_, pointers, mask, *rest)

        def counted_store(self_, pointers, value, mask, *rest):
            count(self.stored, pointers.data, mask.data)
            return store(self_, pointers, value, mask, *rest)

        monkeypatch.setattr(builder, "create_masked_load", counted_load)
        monkeypatch.setattr(builder, "create_masked_store", counted_store)


def _window(vocab: int, *, kept: bool, **settings):
    """A call whose drafts are all kept (p = q), or all rejected; two half-precision inputs."""
    generator = torch.Generator().manual_seed(0)
    now, uncond = (torch.randn(1, WINDOW, vocab, generator=generator).to(torch.bfloat16) for _ in range(2))
    processing = LogitsProcessing.create(1, guidance_scale=3.0, **settings)
    last = LastForward(now.clone(), uncond.clone(), row_statistics(scaled_logits(now, uncond, processing), processing))
    z = scaled_logits(now, uncond, processing)
    zeros = torch.zeros(1, dtype=torch.int64)
    slots = torch.arange(WINDOW)[None]
    arguments = {
        # A draft with one-hot q and a tiny p is rejected, and everything but the draft is left over.
        "drafts": z.argmax(-1) if kept else z.argmin(-1),
        "q_row": slots if kept else torch.full_like(slots, -3),
        "last": last,
        "clean": torch.ones(1, WINDOW, dtype=torch.bool),
        "forced": torch.full((1, WINDOW), -1),
        "remaining": zeros + 100,
        "seeds": zeros,
        "iteration": zeros,
        "position": zeros,
    }
    return now, uncond, processing, arguments


@pytest.mark.parametrize("vocab", [1000, 5000, 20_000])
@pytest.mark.parametrize("kept", [True, False], ids=["all kept", "all redrawn"])
@pytest.mark.parametrize("rule", [Rule.COUPLED, Rule.FRESH, Rule.GUMBEL])
def test_verify_reads_its_logits_once_and_again_where_it_draws(monkeypatch, vocab, kept, rule):
    now, uncond, processing, arguments = _window(vocab, kept=kept)
    meter = Meter(monkeypatch, now=now, uncond=uncond, last=arguments["last"].logits)
    result = verify(now, uncond, processing, rule=rule, backend="triton", **arguments)
    row = 2 * vocab
    if rule is not Rule.GUMBEL:
        assert result.kept.all() == kept
        assert result.kept.any() == kept
    drawn = WINDOW if rule is Rule.GUMBEL or not kept else 0
    for name in ("now", "uncond"):
        exact = WINDOW * row + drawn * row
        # A draw looks once more at the one block it fell into.
        slack = 2 * (WINDOW * GATHERS + drawn * min(vocab, BLOCK))
        assert exact <= meter.loaded[name] <= exact + slack
        assert meter.stored[name] == 0
    # One-hot drafts: q is known without the last logits.
    assert meter.loaded["last"] <= 2 * WINDOW * GATHERS


def test_a_residual_reads_the_last_logits_where_it_draws_and_nowhere_else(monkeypatch):
    now, uncond, processing, arguments = _window(5000, kept=True)
    # Drafts that the last logits liked and these do not: the first two slots are rejected.
    last = arguments["last"]
    changed = now.clone()
    changed[0, :2] = changed[0, :2].flip(-1)
    arguments["drafts"] = scaled_logits(last.logits, last.logits_uncond, processing).argmax(-1)
    meter = Meter(monkeypatch, last=last.logits)
    result = verify(changed, uncond, processing, rule=Rule.COUPLED, backend="triton", **arguments)
    redrawn = int((~result.kept).sum())
    assert 1 <= redrawn <= 2
    row = 2 * 5000
    assert redrawn * row <= meter.loaded["last"] <= redrawn * (row + 2 * BLOCK) + 2 * WINDOW * GATHERS


@pytest.mark.parametrize("settings", [{"top_k": 50}, {"top_p": 0.5}], ids=["top-k", "top-p"])
def test_thresholds_of_a_split_row_cost_the_candidates_and_no_further_pass(monkeypatch, settings):
    from sjd2_kernels.fused.plans import CANDIDATES

    now, uncond, processing, arguments = _window(20_000, kept=True, **settings)
    meter = Meter(monkeypatch, now=now)
    assert verify(now, uncond, processing, rule=Rule.COUPLED, backend="triton", **arguments).kept.all()
    row = 2 * 20_000
    assert WINDOW * row < meter.loaded["now"] <= WINDOW * (row + 2 * CANDIDATES[1] + 2 * GATHERS)


@pytest.mark.parametrize("rule", [Rule.COUPLED, Rule.GUMBEL_TAIL, Rule.GUMBEL])
@pytest.mark.parametrize("settings", [{"top_k": 50}, {"top_p": 0.5}], ids=["top-k", "top-p"])
def test_draws_of_a_split_row_cost_what_is_kept_and_a_block_and_no_further_pass(monkeypatch, settings, rule):
    from sjd2_kernels.fused.plans import CANDIDATES

    now, uncond, processing, arguments = _window(20_000, kept=False, **settings)
    arguments["q_row"] = torch.arange(WINDOW)[None]  # that q, and rejected all the same: p of the lowest id is 0
    meter = Meter(monkeypatch, now=now, last=arguments["last"].logits)
    result = verify(now, uncond, processing, rule=rule, backend="triton", **arguments)
    assert not result.kept.any()
    z = scaled_logits(now, uncond, processing)
    kept = int((log_probabilities(z, result.statistics) > -torch.inf).sum())
    assert WINDOW <= kept < WINDOW * CANDIDATES[1] / 2
    one_slot = 2 * (BLOCK + GATHERS)
    assert meter.loaded["now"] <= WINDOW * (2 * 20_000 + 2 * 2 * CANDIDATES[1] + one_slot)
    if rule is Rule.COUPLED:  # the others read q for the first slot at most
        assert meter.loaded["last"] >= 2 * kept
    assert meter.loaded["last"] <= 2 * kept + WINDOW * one_slot


@pytest.mark.parametrize("timesteps", [0, 2])
def test_attention_reads_the_valid_columns_of_a_group_once(monkeypatch, timesteps):
    inputs, width, columns = 6, 16, 300
    query, keys, values, lengths, levels = attention_case(3, 4, 2, inputs, columns, width, timesteps=timesteps, dtype=torch.float16)
    meter = Meter(monkeypatch, query=query, keys=keys, values=values)
    window_attention(query, keys, values, lengths, levels, backend="triton")
    valid = 2 * int((lengths + inputs).sum()) * width * 2  # in two groups, of two bytes each
    assert meter.loaded == {"query": query.numel() * 2, "keys": valid, "values": valid}


def test_denoise_reads_and_writes_everything_once(monkeypatch):
    width, vocab = 256, 40
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, WINDOW, width, generator=generator).to(torch.bfloat16)
    weight = torch.randn(vocab, width, generator=generator).to(torch.bfloat16)
    zeros = torch.zeros(1, dtype=torch.int64)
    meter = Meter(monkeypatch, embeds=embeds, weight=weight)
    denoise(
        embeds,
        weight,
        weight.float().mean(0),
        weight.float().std(0),
        tokens=torch.arange(WINDOW)[None],
        committed=zeros + 1,
        levels=torch.tensor([[0.0, 0.0, 0.5, 0.9]]),
        next_levels=torch.tensor([[0.0, 0.25, 0.7, 1.0]]),
        seeds=zeros,
        position=zeros,
        backend="triton",
    )
    slot = 2 * width
    # Of the next window: slot 0 is clean, slots 1 and 2 take a step, slot 3 is born and stays noise.
    assert meter.loaded == {"embeds": 2 * slot, "weight": 3 * slot}
    assert meter.stored == {"embeds": 0, "weight": 0}


@pytest.mark.parametrize("purpose", [Purpose.DRAFT, Purpose.GUMBEL])
@pytest.mark.parametrize(("settings", "again"), [({"top_k": 50}, 4 * 1_024 + 2 * BLOCK), ({}, 2 * 20_000 + 2 * BLOCK)], ids=["top-k", "all"])
def test_sample_reads_a_long_row_once_and_its_candidates_where_there_are_some(monkeypatch, settings, again, purpose):
    now, uncond, processing, arguments = _window(20_000, kept=True, **settings)
    meter = Meter(monkeypatch, now=now, uncond=uncond)
    slots = {name: arguments[name] for name in ("seeds", "iteration")} | {"position": torch.arange(WINDOW)[None]}
    got = sample(now, uncond, processing, purpose=purpose, backend="triton", **slots)
    assert torch.equal(got, sample(now, uncond, processing, purpose=purpose, backend="torch", **slots))
    for loaded in meter.loaded.values():
        assert WINDOW * 2 * 20_000 < loaded <= WINDOW * (2 * 20_000 + again)


def test_highest_logits_that_crowd_in_one_split_are_looked_for_there(monkeypatch):
    """The slow way of a row whose candidates do not suffice reads it for every step of its searches, but not what has nothing as high."""
    now, uncond, processing, arguments = _window(20_000, kept=True, top_k=1_000)
    uncond, processing = None, LogitsProcessing.create(1, top_k=1_000)
    now[..., 4_096:8_192] += 20
    arguments |= {"last": None, "q_row": torch.full((1, WINDOW), -1)}
    meter = Meter(monkeypatch, now=now)
    result = verify(now, uncond, processing, rule=Rule.GUMBEL, backend="triton", **arguments)
    assert torch.equal(result.tokens, verify(now, uncond, processing, rule=Rule.GUMBEL, backend="torch", **arguments).tokens)
    once, split = 2 * 20_000, 2 * 4_096
    steps = 32 + 2 + (20_000).bit_length() + 1
    assert 20 * split < meter.loaded["now"] / WINDOW < 8 * once + steps * split < steps * once / 2
