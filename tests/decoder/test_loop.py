"""The loop over a stock Llama: token identity with AR, greedy decoding, rows on their own, reports, errors."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import DynamicCache, LogitsProcessorList

from sjd2.decoding import INITIALISATIONS, PRESETS, TokenLayout, decode, resolve_preset
from sjd2_kernels import LogitsProcessing, Purpose, sample
from support.llama import FIRST_IMAGE_ID, IMAGE_IDS, random_llama, random_prompt, sliced

LENGTHS = [3, 1, 6]
SPECULATIVE = [name for name in PRESETS if name != "ar"]


@pytest.fixture(scope="module")
def adapter():
    return sliced(random_llama())


def layout(rows: int = 3, *, end_id: int = -1) -> TokenLayout:
    """Images of 24, 18 and 12 tokens in lines of 6, the last of each line structural."""
    forced = torch.full((rows, 24), -1)
    forced[:, 5::6] = 7
    return TokenLayout(forced, torch.tensor([24, 18, 12])[:rows], row_stride=6, end_id=end_id)


def run(adapter, method, *, guided=True, rows=(0, 1, 2), processing=None, end_id=-1, sequence=None, **settings):
    options = {name: settings.pop(name) for name in ("callback", "poll_every") if name in settings}
    prompt, _ = random_prompt(adapter, [*LENGTHS, 2, 2, 4])
    pick = torch.tensor(rows)
    branches = torch.cat([pick, pick + 3]) if guided else pick
    whole = sequence or layout(end_id=end_id)
    return decode(
        adapter,
        type(prompt)(prompt.embeds[branches], prompt.lengths[branches]),
        TokenLayout(whole.forced[pick], whole.lengths[pick], whole.row_stride, whole.end_id),
        LogitsProcessing.create(len(rows), **(processing or {"guidance_scale": 1.5 if guided else 1.0, "top_k": 20})),
        resolve_preset(method, **settings),
        torch.tensor([11, 5, 2**62])[pick],
        **options,
    )


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "plain"])
@torch.inference_mode()
def test_ar_is_a_plain_sampling_loop(adapter, guided):
    """Token by token through the whole model, DynamicCache and the ``sample`` op, one row at a time."""
    _, ids = random_prompt(adapter, [*LENGTHS, 2, 2, 4])
    result = run(adapter, "ar", guided=guided)
    for row, length in enumerate([24, 18, 12]):
        processing = LogitsProcessing.create(1, guidance_scale=1.5 if guided else 1.0, top_k=20)
        branches = [ids[row], ids[row + 3]] if guided else [ids[row]]
        caches = [DynamicCache() for _ in branches]
        tokens: list[int] = []
        for position in range(length):
            logits = [
                adapter.model(input_ids=fed[None], past_key_values=cache).logits[:, -1:, FIRST_IMAGE_ID : FIRST_IMAGE_ID + IMAGE_IDS]
                for fed, cache in zip(branches, caches, strict=True)
            ]
            drawn = sample(
                logits[0], logits[1] if guided else None, processing, seeds=torch.tensor([11, 5, 2**62])[row : row + 1],
                iteration=torch.zeros(1, dtype=torch.int64), position=torch.tensor([[position]]), purpose=Purpose.GUMBEL,
            )  # fmt: skip
            tokens.append(7 if position % 6 == 5 else int(drawn))
            branches = [torch.tensor([tokens[-1] + FIRST_IMAGE_ID])] * len(branches)
        assert result.tokens[row, :length].tolist() == tokens
        assert result.tokens[row, length:].sum() == 0


@pytest.mark.parametrize("window", [1, 2, 7, 24, 40])
@pytest.mark.parametrize("initialisation", INITIALISATIONS)
def test_jacobi_gives_the_tokens_of_ar(adapter, window, initialisation):
    expected = run(adapter, "ar")
    result = run(adapter, "jacobi", window=window, initialisation=initialisation)
    assert torch.equal(result.tokens, expected.tokens)
    assert all(report.forwards <= plain.forwards for report, plain in zip(result.rows, expected.rows, strict=True))


@pytest.mark.parametrize("method", [name for name in PRESETS if PRESETS[name].exact != "none"])
def test_greedy_equals_the_models_own_greedy_generate(adapter, method):
    _, ids = random_prompt(adapter, LENGTHS)
    free = TokenLayout(torch.full((3, 24), -1), torch.tensor([24, 18, 12]), row_stride=6)
    result = run(adapter, method, guided=False, processing={"temperature": 0.0}, sequence=free)

    def image_ids_only(_, scores):
        allowed = torch.zeros(scores.shape[-1], dtype=torch.bool)
        allowed[FIRST_IMAGE_ID : FIRST_IMAGE_ID + IMAGE_IDS] = True
        return scores.masked_fill(~allowed, -torch.inf)

    for row, length in enumerate([24, 18, 12]):
        expected = adapter.model.generate(
            ids[row][None], attention_mask=torch.ones(1, len(ids[row])), do_sample=False, max_new_tokens=length,
            logits_processor=LogitsProcessorList([image_ids_only]),
        )  # fmt: skip
        assert (result.tokens[row, :length] + FIRST_IMAGE_ID).tolist() == expected[0, len(ids[row]) :].tolist()


@pytest.mark.parametrize("method", list(PRESETS))
def test_a_row_alone_gives_the_tokens_it_gives_in_a_batch(adapter, method):
    together = run(adapter, method)
    for row in range(3):
        alone = run(adapter, method, rows=(row,))
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert alone.rows[0].forwards == together.rows[row].forwards
    swapped = run(adapter, method, rows=(2, 0))
    assert torch.equal(swapped.tokens, together.tokens[[2, 0]])


@pytest.mark.parametrize("method", list(PRESETS))
def test_structural_tokens_stand_where_the_layout_puts_them(adapter, method):
    tokens = run(adapter, method).tokens
    for row, length in enumerate([24, 18, 12]):
        assert (tokens[row, 5:length:6] == 7).all()


@pytest.mark.parametrize("method", ["ar", *SPECULATIVE])
def test_an_end_token_ends_its_row_and_no_other(adapter, method):
    free = run(adapter, method)
    end_id = int(free.tokens[0, 8])
    assert end_id != 7
    result = run(adapter, method, end_id=end_id)
    for row in range(3):
        whole = free.tokens[row, : free.rows[row].tokens].tolist()
        length = whole.index(end_id) + 1 if end_id in whole else len(whole)
        assert result.rows[row].tokens == length
        assert result.tokens[row].tolist() == whole[:length] + [0] * (24 - length)


def test_the_host_may_look_as_rarely_as_it_likes(adapter):
    often, rarely = run(adapter, "mc-sjd", poll_every=1), run(adapter, "mc-sjd", poll_every=1000)
    assert torch.equal(often.tokens, rarely.tokens)
    assert [row.forwards for row in often.rows] == [row.forwards for row in rarely.rows]


def test_reports_and_progress_agree_with_each_other(adapter):
    seen = []

    def callback(progress):
        seen.append((progress.iteration, progress.committed.tolist(), progress.tokens.clone()))

    result = run(adapter, "mc-sjd", callback=callback)
    assert [iteration for iteration, *_ in seen] == list(range(1, len(seen) + 1))
    for (_, before, old), (_, after, new) in itertools.pairwise(seen):
        for row in range(3):
            assert before[row] < after[row] or before[row] == after[row] == [24, 18, 12][row], "an unfinished row commits at least one token"
            assert torch.equal(old[row, : before[row]], new[row, : before[row]]), "a committed token never changes"
    assert seen[-1][1] == [24, 18, 12]
    assert len(seen) == max(report.forwards for report in result.rows)
    for row, report in enumerate(result.rows):
        assert report.forwards == next(i for i, committed, _ in seen if committed[row] == report.tokens)
        assert report.tokens_per_forward == report.tokens / report.forwards
        free = report.tokens - report.tokens // 6
        # Each forward commits accepted drafts and at most one token that was drawn anew.
        assert free - report.forwards <= report.accepted <= free
        assert 0 < report.forward_seconds < report.seconds


def test_ar_accepts_no_draft(adapter):
    assert [report.accepted for report in run(adapter, "ar").rows] == [0, 0, 0]


@pytest.mark.parametrize("poll_every", [1, 5])
def test_logits_that_are_not_finite_are_an_error_that_names_the_row(poll_every):
    model = random_llama()
    adapter = sliced(model)
    model.model.embed_tokens.weight.data[FIRST_IMAGE_ID + 7] = torch.nan  # fed after the first line
    with pytest.raises(FloatingPointError, match=r"logits: expected finite values .* row 0"):
        run(adapter, "mc-sjd", poll_every=poll_every)


def test_an_exception_in_a_callback_leaves_the_model_usable(adapter):
    def callback(_):
        raise KeyboardInterrupt

    expected = run(adapter, "mc-sjd")
    with pytest.raises(KeyboardInterrupt):
        run(adapter, "mc-sjd", callback=callback)
    assert torch.equal(run(adapter, "mc-sjd").tokens, expected.tokens)


def test_shapes_that_do_not_fit_are_named(adapter):
    prompt, _ = random_prompt(adapter, [2, 2])
    arguments = (LogitsProcessing.create(3), resolve_preset("sjd"))
    with pytest.raises(ValueError, match="prompt: expected 3 rows, or 6 with guidance, got 2"):
        decode(adapter, prompt, layout(), *arguments, torch.zeros(3, dtype=torch.int64))
    prompt, _ = random_prompt(adapter, [2, 2, 2])
    with pytest.raises(ValueError, match=r"seeds: expected shape \(3,\), got \(2,\)"):
        decode(adapter, prompt, layout(), *arguments, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guided": False, "processing": {"guidance_scale": 2.0}}, "prompt: guidance needs 6 rows, conditional and unconditional, got 3"),
        ({"poll_every": 0}, "poll_every: expected a whole number >= 1, got 0"),
        ({"sequence": TokenLayout(torch.full((3, 4), -1), torch.tensor([4, 5, 4]))}, "layout.lengths: expected at most 4 .*, got 5"),
    ],
)
def test_bad_arguments_are_named(adapter, settings, message):
    with pytest.raises(ValueError, match=message):
        run(adapter, "sjd", **settings)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("logits_scaling", 4.0, "model: expected logits that are the head's product, got logits_scaling = 4.0"),
        ("final_logit_softcapping", 30.0, "model: expected logits that are the head's product, got final_logit_softcapping"),
        ("sliding_window", 8, "model: expected full attention in every layer, got sliding_attention"),
        ("layer_types", ["full_attention", "linear_attention"], "model: expected full attention in every layer, got linear_attention"),
    ],
)
def test_models_that_it_would_get_wrong_are_refused(field, value, message):
    model = random_llama()
    setattr(model.config, field, value)
    with pytest.raises(ValueError, match=message):
        sliced(model)


def test_an_image_that_the_model_has_no_positions_for_is_refused(adapter):
    free = TokenLayout(torch.full((3, 252), -1), torch.tensor([252, 18, 12]))
    with pytest.raises(ValueError, match="prompt: prompt and image together need 257 positions, the model has 256"):
        run(adapter, "mc-sjd", sequence=free)
    with pytest.raises(ValueError, match="window: expected at most the model's 256 positions, got 300"):
        run(adapter, "mc-sjd", window=300)


def test_an_image_may_take_up_all_positions(adapter):
    """Slots behind its end have none of their own, so a window needs no room there."""
    forced = torch.full((3, 251), 7)
    forced[:, 240:] = -1
    whole = TokenLayout(forced, torch.tensor([251, 18, 12]))
    expected = run(adapter, "ar", sequence=whole)
    assert torch.equal(run(adapter, "jacobi", sequence=whole, window=40).tokens, expected.tokens)
