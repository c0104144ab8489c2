"""What Triton compiles the kernels to gives what the definitions give: run one instruction at a time, and every access is looked at."""

from __future__ import annotations

import pytest
import torch
from emulator.kernels import compiled_kernels
from op_inputs import Window
from triton.backends.compiler import GPUTarget

from sjd2_kernels import Purpose, Rule, denoise, verify, window_attention
from sjd2_kernels.fused import attention
from support.attention import attention_case, obvious_attention
from support.embeddings import denoising_case
from support.fused import compare_sample, compare_verify, random_window, some_slots

pytestmark = pytest.mark.usefixtures("garbage")

CPU = torch.device("cpu")
SM_80, SM_90 = GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32)
EVERY_RULE = [rule if rule is Rule.COUPLED else pytest.param(rule, marks=pytest.mark.full) for rule in Rule]
TARGETS = [SM_90, pytest.param(SM_80, marks=pytest.mark.full)]
SINGLE_PATH = ["row_statistics_kernel", "draw_kernel"]
SPLIT_PATH = ["split_sweep_kernel", "split_merge_kernel", "draw_kernel"]


def kernels(launches) -> list[str]:
    return [row["kernel"] for row in launches.rows]


def contiguous(case):
    """Rows of logits that lie in one piece, as a model leaves them, so that loads take several at a time."""
    logits, uncond, *rest = case
    return logits.contiguous(), None if uncond is None else uncond.contiguous(), *rest


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("rule", EVERY_RULE)
def test_short_rows_share_programs(rule, target):
    case = random_window(
        3, 31, 97, dtype=torch.bfloat16, guided=True, rounded=True, top_k=[0, 20, 5], top_p=[0.9, 1.0, 0.6], temperature=[1, 0.7, 1.3]
    )
    with compiled_kernels(target) as launches:
        compare_verify(case, rule, CPU)
    assert kernels(launches) == SINGLE_PATH


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("rule", EVERY_RULE)
@pytest.mark.parametrize(
    ("vocab", "align"), [(20_000, 8), pytest.param(20_002, 2, marks=pytest.mark.full), pytest.param(20_001, 1, marks=pytest.mark.full)]
)
def test_long_rows_are_split(vocab, align, rule, target):
    case = contiguous(random_window(2, 3, vocab, dtype=torch.bfloat16, guided=True, top_k=[100, 2_000]))
    with compiled_kernels(target) as launches:
        compare_verify(case, rule, CPU, excused_share=None)
    assert kernels(launches) == SPLIT_PATH
    assert launches.rows[0]["arguments"]["ALIGN"] == align


def test_rows_that_begin_at_odd_places():
    """Two logits into their memory: loads of eight would be at no multiple of their size."""
    logits, uncond, processing, arguments = random_window(1, 4, 9_002, dtype=torch.bfloat16, guided=True, top_k=50)
    logits, uncond = (torch.cat([side, side[..., :6]], -1)[..., 2:9_002] for side in (logits, uncond))
    processing = type(processing).create(1, guidance_scale=3.0, top_k=50)
    arguments |= {"last": None, "q_row": arguments["q_row"].clamp(max=-1), "drafts": arguments["drafts"] % 9_000}
    with compiled_kernels(SM_90) as launches:
        compare_verify((logits, uncond, processing, arguments), Rule.COUPLED, CPU, excused_share=None)
    assert launches.rows[0]["arguments"]["ALIGN"] == 8, "what rows begin at is a multiple; the memory is not, and Triton sees it"


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"top_p": 0.9}, marks=pytest.mark.full),
        pytest.param({"top_p": 0.7, "top_k": 300}, marks=pytest.mark.full),
        pytest.param({"top_k": 7_000}, marks=pytest.mark.full),  # more than the splits leave: swept
        pytest.param({}, marks=pytest.mark.full),
        pytest.param({"top_k": 60, "temperature": 0.7, "allowed": torch.arange(10_000) % 3 > 0}, marks=pytest.mark.full),
    ],
    ids=["p", "k-p", "swept", "all", "allowed"],
)
def test_searches_of_long_rows(settings):
    case = contiguous(random_window(1, 2, 10_000, dtype=torch.bfloat16, guided=True, peak=1.0, **settings))
    with compiled_kernels(SM_90):
        compare_verify(case, Rule.COUPLED, CPU, excused_share=None)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("purpose", [Purpose.DRAFT, pytest.param(Purpose.GUMBEL, marks=pytest.mark.full)])
@pytest.mark.parametrize("vocab", [pytest.param(1_000, marks=pytest.mark.full), 20_000])
def test_sample(vocab, purpose, target):
    logits, uncond, processing, _ = contiguous(random_window(2, 1, vocab, dtype=torch.bfloat16, guided=True, top_k=[0, 30]))
    with compiled_kernels(target) as launches:
        compare_sample(logits, uncond, processing, some_slots(2, 3) | {"purpose": purpose}, CPU)
    assert kernels(launches)[-1] == "draw_kernel"


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize(("dtype", "shape"), [(torch.float32, (3, 7, 50)), (torch.bfloat16, (2, 5, 2050))])
def test_denoise(dtype, shape, target):
    tensors, arguments = denoising_case(*shape, dtype)
    wanted = denoise(*tensors, backend="torch", **arguments)
    with compiled_kernels(target) as launches:
        got = denoise(*tensors, backend="triton", **arguments)
    assert kernels(launches) == ["denoise_kernel"]
    unit = {torch.float32: 2e-6, torch.bfloat16: 2**-8}[dtype]
    assert torch.allclose(got.float(), wanted.float(), rtol=unit, atol=4e-6)
    clean = arguments["next_levels"] == 0
    assert torch.equal(got[clean], tensors[1][arguments["tokens"]][clean]), "clean slots are their token's embedding, bit for bit"


@pytest.mark.parametrize(
    ("dtype", "shape", "timesteps"),
    [
        (torch.bfloat16, (3, 4, 1, 9, 100, 64), 2),  # matrix products of half-precision numbers, which Triton's interpreter does not have
        pytest.param(torch.float16, (2, 4, 4, 5, 40, 16), 0, marks=pytest.mark.full),
        pytest.param(torch.bfloat16, (1, 2, 2, 70, 150, 128), 0, marks=pytest.mark.full),
        pytest.param(torch.float32, (2, 6, 2, 3, 3, 33), 0, marks=pytest.mark.full),
    ],
)
def test_window_attention(dtype, shape, timesteps, monkeypatch):
    """For an A100; what Hopper's own instructions do is in ``test_warpgroups.py``."""
    monkeypatch.setattr(attention, "_kind", lambda device: "ampere")
    case = attention_case(*shape, timesteps=timesteps, dtype=dtype, device=CPU)
    with compiled_kernels(SM_80) as launches:
        got = window_attention(*case, scale=0.4, backend="triton")
    assert kernels(launches)[0] == "window_attention_kernel"
    assert torch.allclose(
        got.double(), obvious_attention(*case, 0.4), rtol=0, atol={torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 3e-2}[dtype]
    )


@pytest.mark.full
def test_programs_in_another_order_give_the_same_bits():
    logits, uncond, processing, arguments = contiguous(random_window(2, 3, 20_000, dtype=torch.bfloat16, guided=True, top_k=[100, 2_000]))
    results = []
    for seed in range(2):
        with compiled_kernels(SM_90, seed):
            results.append(verify(logits, uncond, processing, rule=Rule.GUMBEL_TAIL, backend="triton", **arguments))
    first, second = ([got.tokens, got.kept, got.committed, *got.statistics] for got in results)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def per_id(row: dict, ids: int) -> tuple[float, float]:
    """Instructions of a thread, and bytes of the sectors that its warps touch in loads, for each of ``ids``."""
    return sum(row["executed"].values()) * 32 / ids, row["moved"]["load"] / ids


@pytest.mark.parametrize(("vocab", "instructions"), [(8_192, 170), pytest.param(65_536, 45, marks=pytest.mark.full)])
def test_what_the_first_kernel_executes_for_an_id(vocab, instructions):
    """Every logit is loaded once, in whole sectors, and a long row takes about as many instructions an id as there is time for while it comes."""
    window = Window(1, 2, vocab, CPU)
    with compiled_kernels(SM_90) as launches:
        window.verify(Rule.COUPLED, "triton")
    executed, moved = per_id(launches.rows[0], 2 * vocab)
    assert executed < instructions
    assert 4.0 <= moved < 4.6
