"""The fused ``denoise`` against its definition."""

from __future__ import annotations

import pytest
import torch

from sjd2_kernels import denoise
from sjd2_kernels.fused import INTERPRETED
from support.embeddings import denoising_case


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("batch", "window", "width"), [(3, 7, 50), (1, 1, 1), (2, 5, 2050), (2, 96, 64)]
)  # one tile; one element; several tiles; a real window
def test_the_next_inputs_are_those_of_the_definition(dtype, batch, window, width, device):
    tensors, arguments = denoising_case(batch, window, width, dtype)
    wanted = denoise(*tensors, backend="torch", **arguments)
    moved = [tensor.to(device) for tensor in tensors]
    got = denoise(*moved, backend="triton", **{name: value.to(device) for name, value in arguments.items()}).cpu()
    assert got.dtype == dtype
    # The results are rounded to the model's dtype, which Triton's interpreter does by cutting off: one unit in the last place.
    unit = {torch.float32: 2e-6, torch.bfloat16: 2**-7 if INTERPRETED else 2**-8, torch.float16: 2**-10}[dtype]
    assert torch.allclose(got.float(), wanted.float(), rtol=unit, atol=4e-6)
    clean = arguments["next_levels"] == 0
    assert torch.equal(got[clean], tensors[1][arguments["tokens"]][clean]), "clean slots are their token's embedding, bit for bit"


def test_the_same_call_gives_the_same_bits(device):
    tensors, arguments = denoising_case(2, 9, 70, torch.bfloat16)
    moved, named = [tensor.to(device) for tensor in tensors], {name: value.to(device) for name, value in arguments.items()}
    assert torch.equal(denoise(*moved, backend="triton", **named), denoise(*moved, backend="triton", **named))


def test_fresh_slots_do_not_look_at_the_last_window(device):
    tensors, arguments = denoising_case(2, 6, 20, torch.float32)
    arguments["committed"].fill_(6)
    tensors[0].fill_(float("nan"))
    got = denoise(*(tensor.to(device) for tensor in tensors), backend="triton", **{name: value.to(device) for name, value in arguments.items()})
    assert got.isfinite().all()
