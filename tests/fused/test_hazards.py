"""What Triton's interpreter forgives and a GPU does not: every kernel on every path, under ``support.interpreted``.

Results must be the same to the last bit whatever the order of programs is and whatever lies in memory that nobody wrote.
"""

from __future__ import annotations

import math

import pytest
import torch

from sjd2_kernels import LastForward, LogitsProcessing, Purpose, Rule, denoise, sample, verify, window_attention
from sjd2_kernels.fused import INTERPRETED, attention, launch, plans
from sjd2_kernels.fused import denoise as denoising
from support.attention import attention_case, paged
from support.embeddings import denoising_case
from support.fused import compare_verify, random_window, some_slots
from support.interpreted import interpreted

if not INTERPRETED:
    pytest.skip("programs are watched in Triton's interpreter", allow_module_level=True)

RULES = list(Rule)
SINGLE_PATH = ["row_statistics_kernel", "draw_kernel"]
SPLIT_PATH = ["split_sweep_kernel", "split_merge_kernel", "draw_kernel"]


@pytest.fixture(autouse=True)
def divided(monkeypatch) -> None:
    """Small calls are divided over programs as large ones are on a GPU, where the interpreter would put them into one."""
    monkeypatch.setattr(plans, "TILE", 256)
    monkeypatch.setattr(denoising, "INTERPRETED", False)
    monkeypatch.setattr(attention, "INTERPRETED", False)
    monkeypatch.setattr(attention, "LEAST_COLUMNS", 16)


def bits(result) -> list[bytes]:
    """All tensors of a result, as bytes: NaN equals NaN."""
    if isinstance(result, torch.Tensor):
        return [result.contiguous().view(torch.uint8).numpy().tobytes()]
    return [one for part in result for one in bits(part)]


def check(call, kernels: list[str], orders=("descending",)) -> None:
    """``call`` gives the same bits in every order, and no program relies on another."""
    with interpreted("ascending") as watched:
        wanted = bits(call())
    assert [name for name, _ in watched.launches] == kernels
    assert all(programs > 1 for _, programs in watched.launches)
    for number, order in enumerate(orders):
        with interpreted(order, garbage=(number + 1) % 2):
            assert bits(call()) == wanted, f"order {order}"


def fields(result) -> list:
    """What a :class:`Verification` holds."""
    return [result.tokens, result.kept, result.committed, *result.statistics, result.invalid]


def check_verify(case, rule, kernels, **named) -> None:
    logits, uncond, processing, arguments = case
    check(lambda: fields(verify(logits, uncond, processing, rule=rule, backend="triton", **arguments)), kernels, **named)


@pytest.mark.parametrize("rule", RULES)
def test_verify_with_rows_that_share_programs(rule):
    check_verify(random_window(3, 4, 97, guided=True, top_k=[0, 20, 50], top_p=[0.9, 1.0, 0.5], allowed=torch.arange(97) % 3 > 0), rule, SINGLE_PATH)


@pytest.mark.parametrize(
    ("rule", "search"),
    [(rule, {}) for rule in RULES]
    + [(rule, {"top_k": 12, "top_p": 0.5}) for rule in (Rule.COUPLED, Rule.GUMBEL_TAIL, Rule.GUMBEL)]
    + [pytest.param(rule, {"top_k": 9}, marks=pytest.mark.full) for rule in RULES]
    + [pytest.param(rule, {"top_p": 0.5}, marks=pytest.mark.full) for rule in RULES],
)
def test_verify_with_split_rows(rule, search, small_splits):
    check_verify(random_window(1, 3, 600, guided=True, peak=3.0, **search), rule, SPLIT_PATH)


def test_verify_with_a_sweep(small_splits, sweeps):
    check_verify(random_window(1, 2, 300, top_k=200, peak=1.0), Rule.COUPLED, SPLIT_PATH)
    assert sweeps


@pytest.mark.parametrize(
    ("vocab", "search"), [(100, {"top_k": 3, "top_p": 0.9}), (300, {}), pytest.param(300, {"top_k": 3, "top_p": 0.9}, marks=pytest.mark.full)]
)
def test_verify_with_rows_that_cannot_be_drawn_from(vocab, search, small_splits):
    """What they give is worthless, but the same whatever happens."""
    logits, uncond, processing, arguments = random_window(1, 3, vocab, has_last=False, **search)
    logits[0, 0, 3], logits[0, 1] = torch.nan, -torch.inf
    arguments["forced"].fill_(-1)
    check_verify((logits, uncond, processing, arguments), Rule.GUMBEL_TAIL, SINGLE_PATH if vocab < 256 else SPLIT_PATH)


@pytest.mark.full
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("split", [False, True])
def test_verify_in_many_orders(rule, seed, split, request):
    if split:
        request.getfixturevalue("small_splits")
    case = random_window(3, 5, 600 if split else 97, guided=True, rounded=True, top_k=[0, 20, 50], top_p=[0.9, 1.0, 0.5], seed=seed)
    check_verify(case, rule, SPLIT_PATH if split else SINGLE_PATH, orders=("descending", *range(5)))


@pytest.mark.parametrize("purpose", [Purpose.DRAFT, Purpose.GUMBEL])
@pytest.mark.parametrize(("vocab", "given"), [(97, 3), (300, 1)])
def test_sample(purpose, vocab, given, small_splits):
    logits, uncond, processing, _ = random_window(2, given, vocab, dtype=torch.bfloat16, guided=True, temperature=[1.0, 0.5])
    check(
        lambda: sample(logits, uncond, processing, purpose=purpose, backend="triton", **some_slots(2, 3)),
        SINGLE_PATH if vocab < 256 else SPLIT_PATH,
        orders=("descending", 1),
    )


@pytest.mark.parametrize(("width", "dtype"), [(50, torch.bfloat16), (1030, torch.float32)])
def test_denoise(width, dtype):
    tensors, arguments = denoising_case(2, 4, width, dtype)
    check(lambda: denoise(*tensors, backend="triton", **arguments), ["denoise_kernel"], orders=("descending", 1))


@pytest.mark.parametrize("timesteps", [0, 2])
@pytest.mark.parametrize("page_size", [0, 24])
@pytest.mark.parametrize("split", [False, True])
def test_attention(timesteps, page_size, split, monkeypatch):
    if not split:
        monkeypatch.setattr(attention, "LEAST_COLUMNS", 128)
    # Behind the inputs of a row lies what is not finite, and there are more inputs than a tile has.
    query, keys, values, lengths, levels = attention_case(2, 4, 2, 5, 70, 16, timesteps=timesteps)
    table = None
    if page_size:
        keys, values, table = paged(keys, values, page_size)
        table = table.masked_fill(torch.arange(table.shape[1]) * page_size >= lengths[:, None] + 5, -1)
    check(
        lambda: window_attention(query, keys, values, lengths, levels, block_table=table, backend="triton"),
        ["window_attention_kernel", *["merge_splits_kernel"] * split],
        orders=("descending", 1),
    )


def far(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """The same numbers with the last along ``axis`` 2^31 elements from the first: 4 GB that are never touched but for these."""
    strides = [0] * tensor.ndim
    dense = 1
    for other in reversed(range(tensor.ndim)):
        if other != axis:
            strides[other], dense = dense, dense * tensor.shape[other]
    strides[axis] = -(-(2**31) // (tensor.shape[axis] - 1))
    memory = torch.empty((tensor.shape[axis] - 1) * strides[axis] + dense, dtype=tensor.dtype)
    return memory.as_strided(tensor.shape, strides).copy_(tensor)


def nearby(kernels, monkeypatch) -> None:
    """Splits of 16 ids, so that few ids, and as few pages of memory, are many splits."""
    if kernels is SPLIT_PATH:
        for name, value in {"SINGLE": 16, "SPLIT": 16, "CANDIDATES": (64, 64), "BLOCK": 16, "BLOCKS_PER_PROGRAM": 1}.items():
            monkeypatch.setattr(plans, name, value)


@pytest.mark.parametrize(
    ("axis", "kernels", "rule"),
    [
        (0, SINGLE_PATH, Rule.COUPLED),
        (1, SPLIT_PATH, Rule.COUPLED),
        (2, SINGLE_PATH, Rule.GUMBEL_TAIL),
        (2, SPLIT_PATH, Rule.GUMBEL_TAIL),
        *(pytest.param(axis, path, rule, marks=pytest.mark.full) for axis in range(3) for path in (SINGLE_PATH, SPLIT_PATH) for rule in RULES),
    ],
)
@pytest.mark.parametrize(
    "search", [{"top_k": 12}, pytest.param({}, marks=pytest.mark.full), pytest.param({"top_k": 12, "top_p": 0.5}, marks=pytest.mark.full)]
)
def test_logits_that_lie_far_apart(axis, kernels, rule, search, monkeypatch):
    """Offsets beyond 2^31 elements in p, in the unconditional logits and in q."""
    nearby(kernels, monkeypatch)
    # Three along the axis, so that a stride fits in 32 bits, and Triton passes it so.
    batch, window = 3 if axis == 0 else 1, 3 if axis == 1 else 2
    logits, uncond, processing, arguments = random_window(batch, window, 33, dtype=torch.float16, guided=True, **search)
    # Slot 0 is rejected and asks for q of all ids, slot 1 comes behind it; the farthest id is what is likely.
    logits[..., 32] = 8
    arguments["forced"].fill_(-1)
    arguments["drafts"], arguments["q_row"] = logits.float().argmin(-1), torch.arange(window).expand(batch, window).contiguous()
    wanted = bits(fields(verify(logits, uncond, processing, rule=rule, backend="triton", **arguments)))
    last = arguments["last"]
    shifted = far(torch.stack([logits, uncond, last.logits, last.logits_uncond]), axis + 1)
    moved = arguments | {"last": LastForward(shifted[2], shifted[3], last.statistics)}
    with interpreted() as watched:
        got = bits(fields(verify(shifted[0], shifted[1], processing, rule=rule, backend="triton", **moved)))
    assert [name for name, _ in watched.launches] == kernels
    assert got == wanted


@pytest.mark.parametrize(("which", "axis"), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)])
def test_embeddings_that_lie_far_apart(which, axis):
    tensors, arguments = denoising_case(3, 4, 20, torch.float16)
    arguments["tokens"][:, ::2] = 19
    wanted = bits(denoise(*tensors, backend="triton", **arguments))
    tensors[which] = far(tensors[which], axis)
    with interpreted():
        assert bits(denoise(*tensors, backend="triton", **arguments)) == wanted


#: By name: a view of ``[2, 3, 1312]`` numbers, and the largest piece in which its rows can be loaded.
VIEWS = {
    "all": (lambda z: z, 8),
    "fewer ids": (lambda z: z[..., :1304], 8),
    "a multiple of 4": (lambda z: z[..., :1300], 4),
    "odd": (lambda z: z[..., :1301], 1),
    "behind the first id": (lambda z: z[..., 1:1305], 8),  # the base is not aligned: that Triton itself looks at, in the pointer
    "behind the first slot": (lambda z: z[:, 1:], 8),
    "odd rows of even length": (lambda z: z.flatten().as_strided((2, 3, 1288), (3 * 1301, 1301, 1)), 1),
    "even rows, odd windows": (lambda z: z.flatten().as_strided((2, 2, 1296), (2 * 1302 + 1, 1302, 1)), 1),
    "every second id": (lambda z: z[..., ::2], 8),
    "slots first": (lambda z: z.transpose(0, 1), 8),
    "ids first": (lambda z: z.permute(2, 0, 1).contiguous().permute(1, 2, 0), 1),
    "one row for all": (lambda z: z[:1, :1].expand(2, 3, -1), 8),
}


@pytest.mark.parametrize("uncond", [None, 1312, 1314, 1313])
@pytest.mark.parametrize("name", VIEWS)
def test_rows_are_loaded_in_pieces_that_divide_every_offset(name, uncond, small_splits, monkeypatch):
    """``ALIGN`` is a promise to the compiler: of the vocabulary, and of every stride between rows, of both branches."""
    view, align = VIEWS[name]
    logits = view(torch.zeros(2, 3, 1312))
    batch, window, vocab = logits.shape
    other = None if uncond is None else torch.zeros(2 * 3 * 1314).as_strided(logits.shape, (window * uncond, uncond, 1))
    seen = {}

    class Silent:
        def __getitem__(self, grid):
            return lambda **named: seen.update(named if "ALIGN" in named else {})

    for kernel in ("split_sweep_kernel", "split_merge_kernel"):
        monkeypatch.setattr(launch, kernel, Silent())
    processing = LogitsProcessing.create(batch)
    inputs = launch._inputs(logits, other, processing, None, window)
    one = torch.zeros(1).int()
    launch._statistics(inputs, processing, (batch, window, vocab), counters=one, flags=one, accept=None, log_keep_ratio=0.0)
    assert seen["ALIGN"] == (align if uncond is None else math.gcd(align, uncond))
    promised = [vocab, *(offset for tensor in (logits, other) if tensor is not None for offset in tensor.stride()[:2])]
    assert all(offset % seen["ALIGN"] == 0 for offset in promised)


@pytest.mark.parametrize("name", ["behind the first id", "even rows, odd windows", "ids first", "one row for all"])
def test_views_are_read_where_they_lie(name, small_splits):
    numbers = torch.randn(2, 3, 1312, generator=torch.Generator().manual_seed(1))
    logits = VIEWS[name][0](numbers)[:1, :2]
    _, _, processing, arguments = random_window(1, 2, logits.shape[-1], has_last=False, top_k=9)
    with interpreted():
        compare_verify((logits, None, processing, arguments), Rule.COUPLED, "cpu")
