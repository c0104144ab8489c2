"""Processors that look back, applied slot by slot: the law of sampling token by token from what they make of the logits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from sjd2.decoding import PRESETS, TokenLayout, decode, resolve_preset
from sjd2.generation.slots import SlotRules
from sjd2_kernels import LogitsProcessing
from support.law import FALSE_ALARM, sampling_floor, with_noise
from support.tables import TableModel, target

IDS, COUNT, ROWS = 4, 4, 60_000
LOSSLESS = [name for name, preset in PRESETS.items() if preset.exact != "none" and name != "ar"]


def looks_back(ids, scores):
    """Ids that were drawn before are less likely, one more than the last never follows, and what ends in 2, 1 is turned round."""
    seen = torch.nn.functional.one_hot(ids, IDS).sum(1) if ids.shape[1] else torch.zeros_like(scores)
    scores = scores - 0.7 * seen
    if ids.shape[1]:
        scores = scores.scatter(1, (ids[:, -1:] + 1) % IDS, -torch.inf)
    if ids.shape[1] > 1:
        turned = (ids[:, -2] == 2) & (ids[:, -1] == 1)
        scores = torch.where(turned[:, None], scores.flip(-1), scores)
    return scores


class AllIds:
    """The table's ids are the vocabulary."""

    def vocabulary_ids(self, tokens):
        return tokens

    def spread(self, logits):
        return logits

    cut = spread


def exact(model: TableModel, table: int, **processing) -> np.ndarray:
    joint = np.zeros(IDS**COUNT)
    for sequence in itertools.product(range(IDS), repeat=COUNT):
        probability, code = 1.0, 0
        for place, token in enumerate(sequence):
            logits = model.logits[table, int(model.offsets[place]) + code].float()
            scores = looks_back(torch.tensor([sequence[:place]], dtype=torch.int64), logits[None])[0]
            probability *= target(scores.numpy(), None, **processing)[token]
            code += token * IDS**place
        joint[code] = probability
    return joint


@pytest.mark.parametrize("method", LOSSLESS)
def test_every_lossless_preset_has_the_law_of_ar(method):
    model, processing = TableModel(IDS, COUNT, tables=2), {"temperature": 0.9, "top_k": 3}
    table, lengths = torch.arange(ROWS) % 2, 1 + torch.arange(ROWS) % 3
    result = decode(
        model,
        model.prompt(table, lengths),
        TokenLayout(torch.full((ROWS, COUNT), -1), torch.full((ROWS,), COUNT)),
        LogitsProcessing.create(ROWS, **processing),
        with_noise(resolve_preset(method, window=3)),
        torch.arange(ROWS),
        rules=SlotRules(torch.empty(ROWS, 0, dtype=torch.int64), AllIds(), [looks_back], [], torch.empty(0, dtype=torch.int64)),
    )
    codes = (result.tokens * IDS ** torch.arange(COUNT)).sum(1)
    for one in range(2):
        expected = exact(model, one, **processing)
        counts = np.bincount(codes[table == one].numpy(), minlength=len(expected)).astype(float)
        total = counts.sum()
        assert counts[expected == 0].sum() == 0
        assert 0.5 * np.abs(counts / total - expected).sum() < sampling_floor(expected, total)
        rare = expected * total < 5
        observed, wanted = np.append(counts[~rare], counts[rare].sum()), np.append(expected[~rare], expected[rare].sum()) * total
        assert stats.chisquare(observed[wanted > 0], wanted[wanted > 0] * observed.sum() / wanted.sum()).pvalue > FALSE_ALARM
