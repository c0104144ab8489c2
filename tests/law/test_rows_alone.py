"""A table row decoded alone gives bit for bit the tokens that it gives in a batch, whatever its place and its mates."""

from __future__ import annotations

import pytest
import torch

from sjd2.decoding import PRESETS, TokenLayout, decode, resolve_preset
from sjd2_kernels import LogitsProcessing
from support.law import DEVICE, with_noise
from support.tables import TableModel

ROWS, COUNT = 1000, 6
MODEL = TableModel(4, COUNT, tables=4, seed=8, device=DEVICE)


def _decode(method: str, rows: torch.Tensor) -> torch.Tensor:
    """Tokens of ``rows`` (numbers in 0 … ROWS−1, each with its own settings) decoded as one batch."""
    generator = torch.Generator().manual_seed(0)
    settings = torch.rand(4, ROWS, generator=generator)[:, rows]
    prompt = MODEL.prompt(torch.cat([rows % 3, torch.full_like(rows, 3)]), torch.cat([1 + rows % 4, 1 + rows % 2]))
    forced = torch.full((len(rows), COUNT), -1)
    forced[rows % 5 == 0, 2] = 1
    return decode(
        MODEL,
        prompt,
        TokenLayout(forced.to(DEVICE), (2 + rows % (COUNT - 1)).to(DEVICE), row_stride=2, end_id=3),
        LogitsProcessing.create(
            len(rows),
            guidance_scale=(1 + settings[0]).tolist(),
            temperature=(0.5 + settings[1]).tolist(),
            top_k=(settings[2] * 5).long().tolist(),
            top_p=(0.5 + settings[3] / 2).tolist(),
            device=DEVICE,
        ),
        with_noise(resolve_preset(method, window=1 if method == "ar" else 3)),
        (rows * 12345).to(DEVICE),
    ).tokens.cpu()


@pytest.mark.parametrize("method", list(PRESETS))
def test_place_and_mates_do_not_matter(method):
    together = _decode(method, torch.arange(ROWS))
    shuffled = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    assert torch.equal(_decode(method, shuffled), together[shuffled])
    for part in torch.arange(ROWS).split(333):
        assert torch.equal(_decode(method, part), together[part])
    for row in torch.arange(0, ROWS, 25):
        assert torch.equal(_decode(method, row[None]), together[row[None]])


@pytest.mark.full
@pytest.mark.parametrize("method", list(PRESETS))
def test_every_row_alone(method):
    together = _decode(method, torch.arange(ROWS))
    for row in torch.arange(ROWS):
        assert torch.equal(_decode(method, row[None]), together[row[None]])
