"""The decode loop on the Triton kernels gives the tokens that it gives on the definitions, for every preset."""

from __future__ import annotations

import pytest
import torch

from sjd2.decoding import INITIALISATIONS, PRESETS, Prompt, TokenLayout, decode, resolve_preset
from sjd2_kernels import LogitsProcessing
from sjd2_kernels.backends import use_backend
from support.llama import random_llama, random_prompt, sliced
from support.tables import TableModel

COUNT = 5


class HalfPreciseTables(TableModel):
    """Embeddings and logits in a dtype that the kernels take."""

    def embed(self, tokens):
        return super().embed(tokens).float()

    def forward(self, inputs_embeds, cache, **outputs):
        return super().forward(inputs_embeds.double(), cache, **outputs).float()

    def prompt(self, tables, lengths):
        prompt = super().prompt(tables, lengths)
        return Prompt(prompt.embeds.float(), prompt.lengths)


def _tokens(backend: str, method: str, rows: int, device: torch.device, initialisation: str | None = None) -> torch.Tensor:
    model = HalfPreciseTables(4, COUNT, tables=4, seed=8)
    row = torch.arange(rows)
    settings = torch.rand(4, rows, generator=torch.Generator().manual_seed(0))
    forced = torch.full((rows, COUNT), -1)
    forced[row % 5 == 0, 2] = 1
    with use_backend(backend):
        result = decode(
            model,
            model.prompt(torch.cat([row % 3, torch.full_like(row, 3)]), torch.cat([1 + row % 4, 1 + row % 2])),
            TokenLayout(forced, 2 + row % (COUNT - 1), row_stride=2, end_id=3),
            LogitsProcessing.create(
                rows,
                guidance_scale=(1 + settings[0]).tolist(),
                temperature=(0.5 + settings[1]).tolist(),
                top_k=(settings[2] * 5).long().tolist(),
                top_p=(0.5 + settings[3] / 2).tolist(),
            ),
            resolve_preset(method, window=1 if method == "ar" else 3, initialisation=initialisation),
            row * 12345,
        )
    return result.tokens


@pytest.mark.parametrize("method", list(PRESETS))
@pytest.mark.parametrize("rows", [200, pytest.param(2000, marks=pytest.mark.full)])
def test_tokens_are_those_of_the_definition(method, rows, device, launches):
    """A row may part where a decision hangs on the last bits of float32: about one in 10⁵ decisions. Not one does here."""
    if device.type != "cpu":
        pytest.skip("table models live on the CPU; this needs Triton's interpreter")
    got = _tokens("triton", method, rows, device)
    denoises = PRESETS[method].denoising is not None
    assert {name for name, *_ in launches} == {"row_statistics_kernel", "draw_kernel"} | ({"denoise_kernel"} if denoises else set())
    assert torch.equal(got, _tokens("torch", method, rows, device))


@pytest.mark.parametrize("method", ["ar", "mc-sjd", "sjd2"])
def test_attention_of_a_real_forward(method, device, launches):
    """A stock Llama whose layers call the kernels; none of these decisions hangs on the last bits of float32."""
    model = sliced(random_llama(dtype=torch.float32).to(device))
    prompt, _ = random_prompt(model, [3, 5, 2, 4])
    settings = {} if method == "ar" else {"window": 6}
    preset = resolve_preset(method, **settings, **({"clean": 3} if method == "sjd2" else {}))
    processing = LogitsProcessing.create(2, guidance_scale=2.0, device=device)
    layout, seeds = TokenLayout.grid(2, 3, 4, device=device), torch.tensor([3, 4], device=device)

    def tokens(attention):
        return decode(model, prompt, layout, processing, preset, seeds, attention=attention, compact=False)

    wanted = tokens("model")
    launches.clear()
    got = tokens("triton")
    assert torch.equal(got.tokens, wanted.tokens)
    calls = [arguments for name, _, arguments in launches if name == "window_attention_kernel"]
    assert len(calls) == 2 * max(row.forwards for row in got.rows)
    assert all(arguments["HAS_LEVELS"] == (method == "sjd2") for arguments in calls)


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
def test_every_initialisation(initialisation, device):
    if device.type != "cpu":
        pytest.skip("table models live on the CPU; this needs Triton's interpreter")
    assert torch.equal(_tokens("triton", "mc-sjd", 100, device, initialisation), _tokens("torch", "mc-sjd", 100, device, initialisation))
