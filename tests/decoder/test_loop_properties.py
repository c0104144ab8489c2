"""What holds for the loop whatever the model, the layout and the settings; ``make test-full`` tries many more cases."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sjd2.decoding import INITIALISATIONS, PRESETS, TokenLayout, decode, resolve_preset
from sjd2_kernels import LogitsProcessing
from support.tables import TableModel, target

VOCAB, COUNT, TABLES = 4, 6, 3
MODEL = TableModel(VOCAB, COUNT, TABLES + 1, seed=21)
FLAT = TABLES  # the table of the unconditional branch


@st.composite
def batches(draw):
    """A ragged batch: everything that ``decode`` takes but the preset, row by row, so that rows can be taken out of it."""
    rows = draw(st.integers(1, 4))

    def each(values):
        return [draw(values) for _ in range(rows)]

    forced = [[draw(st.sampled_from([-1, -1, -1, 0, VOCAB - 1])) for _ in range(COUNT)] for _ in range(rows)]
    allowed = torch.tensor([True, draw(st.booleans()), draw(st.booleans()), draw(st.booleans())])
    return {
        "table": each(st.integers(0, TABLES - 1)),
        "prompt": each(st.integers(1, 4)),
        "uncond_prompt": each(st.integers(1, 4)),
        "forced": forced,
        "length": each(st.integers(1, COUNT)),
        "seed": each(st.integers(0, 2**63 - 1)),
        "row_stride": draw(st.integers(0, COUNT)),
        "end_id": draw(st.sampled_from([-1, 0, 2])),
        "guided": draw(st.booleans()),
        "allowed": draw(st.sampled_from([None, allowed])),
        "guidance_scale": each(st.sampled_from([0.5, 1.0, 3.0])),
        "temperature": each(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
        "top_k": each(st.sampled_from([0, 1, 2, 9])),
        "top_p": each(st.sampled_from([0.3, 0.9, 1.0])),
    }


presets = st.builds(
    lambda method, window, initialisation: resolve_preset(method, window=1 if method == "ar" else window, initialisation=initialisation),
    st.sampled_from(list(PRESETS)),
    st.integers(1, COUNT + 2),
    st.sampled_from(INITIALISATIONS),
)


def run(batch: dict, preset, rows: list[int], poll_every: int = 1):
    def pick(name):
        return [batch[name][row] for row in rows]

    lengths, tables = pick("prompt"), pick("table")
    if batch["guided"]:
        lengths, tables = lengths + pick("uncond_prompt"), tables + [FLAT] * len(rows)
    processing = {name: pick(name) for name in ("temperature", "top_k", "top_p")}
    if batch["guided"]:
        processing["guidance_scale"] = pick("guidance_scale")
    return decode(
        MODEL,
        MODEL.prompt(torch.tensor(tables), torch.tensor(lengths)),
        TokenLayout(torch.tensor(pick("forced")), torch.tensor(pick("length")), batch["row_stride"], batch["end_id"]),
        LogitsProcessing.create(len(rows), allowed=batch["allowed"], **processing),
        preset,
        torch.tensor(pick("seed")),
        poll_every=poll_every,
    )


def possible(batch: dict, row: int, prefix: list[int]) -> list[bool]:
    """Which ids plain AR sampling could draw after ``prefix``, by the slow and obvious way."""
    code = sum(token * VOCAB**n for n, token in enumerate(prefix))
    index = int(MODEL.offsets[len(prefix)]) + code
    uncond = MODEL.logits[FLAT, index].numpy() if batch["guided"] else None
    p = target(
        MODEL.logits[batch["table"][row], index].numpy(),
        uncond,
        guidance_scale=batch["guidance_scale"][row] if batch["guided"] else 1.0,
        temperature=batch["temperature"][row],
        top_k=batch["top_k"][row],
        top_p=batch["top_p"][row],
        allowed=None if batch["allowed"] is None else batch["allowed"].numpy(),
    )
    return (p > 0).tolist()


# A case runs the loop several times, so there are fewer than of an op.
@settings(max_examples=max(60, settings().max_examples // 4))
@given(batches(), presets, st.integers(1, 9))
def test_decode(batch, preset, poll_every):
    rows = list(range(len(batch["seed"])))
    result = run(batch, preset, rows, poll_every)
    for row, report in enumerate(result.rows):
        tokens = result.tokens[row].tolist()
        ended = [n for n in range(batch["length"][row]) if tokens[n] == batch["end_id"]]
        expected = ended[0] + 1 if ended else batch["length"][row]
        assert report.tokens == expected, "a row has its length, or ends with its end id"
        assert tokens[expected:] == [0] * (COUNT - expected)
        assert 1 <= report.forwards <= expected
        assert 0 <= report.accepted <= expected
        for n in range(expected):
            if batch["forced"][row][n] >= 0:
                assert tokens[n] == batch["forced"][row][n]
            elif preset.exact != "none":
                assert possible(batch, row, tokens[:n])[tokens[n]], "every token is one that AR sampling could draw"

    if preset.exact == "tokens":
        assert torch.equal(result.tokens, run(batch, resolve_preset("ar"), rows).tokens)
    last = rows[-1]
    alone = run(batch, preset, [last])
    assert torch.equal(alone.tokens[0], result.tokens[last]), "a row does not depend on its mates, nor on when the host looks"
    assert alone.rows[0].forwards == result.rows[last].forwards
    backwards = run(batch, preset, rows[::-1], poll_every)
    assert torch.equal(backwards.tokens.flip(0), result.tokens)
