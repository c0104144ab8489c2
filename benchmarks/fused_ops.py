"""Time of every fused op beside its floor, its definition and its peers.

    python benchmarks/fused_ops.py [--device cuda] [-o results.json] [--csv results.csv]

The floor is what reading every input once and writing every result once takes at the copy rate measured on the same device in the same
run. Times are p20, p50 and p80 over repeated calls, with the inputs in cache (``hot``) and after the cache was overwritten (``flushed``).
A peer that is not installed is named as missing; one that is has to give the definition's tokens (or, where it draws with other random
numbers, the definition's acceptances or probabilities) before it is timed. On a CPU only definitions run: the figures then say nothing
about the kernels. Never asserts a time.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from conditions import conditions
from sjd2_kernels import LastForward, LogitsProcessing, Purpose, Rule, denoise, sample, verify
from sjd2_kernels.fused import triton_obstacle
from sjd2_kernels.processing import log_probabilities, row_statistics, scaled_logits
from sjd2_kernels.verify.reference import verify_reference

Call = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One implementation of one op at one size; times in microseconds."""

    op: str
    implementation: str
    batch: int
    window: int
    vocab: int
    cache: str
    p20: float
    p50: float
    p80: float
    floor_bytes: int
    gigabytes_per_second: float
    percent_of_floor: float


@dataclass(frozen=True)
class Contender:
    """An implementation, and whether it gives what the definition gives."""

    name: str
    call: Call
    agrees: Callable[[], bool]


def _times(call: Call, device: torch.device, repeats: int, flush: torch.Tensor | None) -> list[float]:
    """Microseconds of each of ``repeats`` calls, sorted."""
    for _ in range(3):
        call()
    measured = []
    if device.type == "cuda":
        marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
        for start, end in marks:
            if flush is not None:
                flush.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        measured = [start.elapsed_time(end) * 1e3 for start, end in marks]
    else:
        for _ in range(repeats):
            if flush is not None:
                flush.zero_()
            started = time.perf_counter()
            call()
            measured.append((time.perf_counter() - started) * 1e6)
    return sorted(measured)


def _copy_rate(device: torch.device) -> float:
    """Bytes per second of a large copy, read and written bytes both counted."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**25, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = _times(lambda: target.copy_(source), device, 20, None)
    return 2 * source.numel() / (times[len(times) // 2] * 1e-6)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


def _same_tokens(got: Any, wanted: Any) -> bool:
    """Equal but for what rounding may decide: one slot in a hundred."""
    got, wanted = (value[0] if isinstance(value, tuple) else value for value in (got, wanted))
    return float((got != wanted).double().mean()) <= 0.01


class Window:
    """Inputs of ``verify`` and ``sample``: half of the slots see almost what they saw before, the others something new."""

    def __init__(self, batch: int, window: int, vocab: int, device: torch.device):
        generator = torch.Generator(device=device).manual_seed(vocab + batch)

        def logits() -> torch.Tensor:
            return (2 * torch.randn(batch, window, vocab, generator=generator, device=device)).to(torch.bfloat16)

        self.logits, self.uncond = logits(), logits()
        settled = torch.rand(batch, window, 1, generator=generator, device=device) < 0.5
        before, before_uncond = (torch.where(settled, now, logits()) for now in (self.logits, self.uncond))
        self.processing = LogitsProcessing.create(batch, guidance_scale=3.0, top_k=min(2048, vocab), device=device)
        z = scaled_logits(before, before_uncond, self.processing)
        statistics = row_statistics(z, self.processing)
        slot = torch.arange(window, device=device).expand(batch, window).contiguous()
        self.rows = {
            "seeds": torch.arange(batch, device=device),
            "iteration": torch.full((batch,), 3, device=device),
        }
        self.arguments = {
            "drafts": log_probabilities(z, statistics).argmax(-1),
            "q_row": slot,
            "last": LastForward(before, before_uncond, statistics),
            "clean": torch.ones_like(slot, dtype=torch.bool),
            "forced": torch.full_like(slot, -1),
            "remaining": torch.full((batch,), 10_000, device=device),
            "position": torch.zeros(batch, dtype=torch.int64, device=device),
            **self.rows,
        }
        self.position = slot
        self.floor = 2 * self.logits.numel() * self.logits.element_size()

    def definition(self, rule: Rule) -> Any:
        """The definition itself, without dispatch."""
        return verify_reference(self.logits, self.uncond, self.processing, rule=rule, **self.arguments, log_keep_ratio=-1.2, end_id=-1)

    def verify(self, rule: Rule, backend: str) -> Any:
        """The public op."""
        return verify(self.logits, self.uncond, self.processing, rule=rule, backend=backend, **self.arguments)

    def sample(self, purpose: Purpose, backend: str) -> torch.Tensor:
        """The public op, on the same logits."""
        return sample(self.logits, self.uncond, self.processing, position=self.position, purpose=purpose, backend=backend, **self.rows)

    def probabilities(self) -> tuple[torch.Tensor, torch.Tensor]:
        """p and q, float32 ``[B, W, V]``, as the peers want them."""
        last = self.arguments["last"]
        now = scaled_logits(self.logits, self.uncond, self.processing)
        before = scaled_logits(last.logits, last.logits_uncond, self.processing)
        return (
            log_probabilities(now, row_statistics(now, self.processing)).exp(),
            log_probabilities(before, last.statistics).exp(),
        )


def _flashinfer_chain(window: Window) -> Contender:
    """FlashInfer's chain from the same logits: guidance, top-k, softmax, accept and resample; no redraw of later slots."""
    import flashinfer.sampling as peer

    processing, arguments = window.processing, window.arguments
    batch, slots, vocab = window.logits.shape
    _, q = window.probabilities()
    uncond_scale = processing.guidance_scale[:, None, None]

    def target() -> torch.Tensor:
        guided = window.uncond.float() + uncond_scale * (window.logits.float() - window.uncond.float())
        p = peer.top_k_renorm_probs(guided.flatten(0, 1).softmax(-1), processing.max_top_k)
        return p.view(batch, slots, vocab)

    def call() -> Any:
        p = target()
        # One more target row than drafts; the last is the bonus token, which Jacobi decoding does not have.
        return peer.chain_speculative_sampling(q[:, :-1].contiguous(), arguments["drafts"][:, :-1].int().contiguous(), p)

    return Contender("flashinfer 'chain_speculative_sampling'", call, lambda: torch.allclose(target(), window.probabilities()[0], atol=1e-5))


def _sglang_chain(window: Window) -> Contender:
    """SGLang's Triton chain on ready probabilities: accept and resample only, so less work than ours."""
    from sglang.kernels.ops.speculative.reject_sampling import chain_speculative_sampling_triton as peer

    p, q = window.probabilities()
    drafts = window.arguments["drafts"]
    batch, slots = drafts.shape
    coins = torch.rand(batch, slots, device=drafts.device)
    accepted = torch.zeros(batch, dtype=torch.int32, device=drafts.device)
    predicts = torch.zeros(batch * slots, dtype=torch.int32, device=drafts.device)
    index = torch.zeros(batch, slots, dtype=torch.int32, device=drafts.device)

    def call() -> torch.Tensor:
        peer(predicts, index, accepted, drafts, coins, coins[:, 0].contiguous(), p, q)
        return accepted

    def agrees() -> bool:
        below = coins * q.gather(-1, drafts[..., None]).squeeze(-1) < p.gather(-1, drafts[..., None]).squeeze(-1)
        wanted = below[:, : slots - 1].long().cumprod(1).sum(1)
        return torch.equal(call().long().clamp(max=slots - 1), wanted)

    return Contender("sglang 'chain_speculative_sampling_triton'", call, agrees)


def _vllm_top_k(window: Window) -> Contender:
    """vLLM's Triton top-k on ready guided logits: the search only, in place of ours."""
    from vllm.v1.sample.ops.topk_topp_triton import apply_top_k_top_p_triton as peer

    z = scaled_logits(window.logits, window.uncond, window.processing).flatten(0, 1)
    k = torch.full((len(z),), window.processing.max_top_k, dtype=torch.int32, device=z.device)

    def call() -> torch.Tensor:
        return peer(z.clone(), k, None)

    def agrees() -> bool:
        kept = call() > -torch.inf
        return bool((kept.sum(-1) >= window.processing.max_top_k).all())

    return Contender("vllm 'apply_top_k_top_p_triton' (search only)", call, agrees)


PEERS = (_flashinfer_chain, _sglang_chain, _vllm_top_k)


def _fused(device: torch.device) -> bool:
    return device.type == "cuda" and triton_obstacle(torch.empty(0, device=device)) is None


def _verify_contenders(window: Window, rule: Rule, device: torch.device) -> Iterator[Contender]:
    wanted = window.definition(rule)
    yield Contender("definition (eager PyTorch)", lambda: window.definition(rule), lambda: True)
    if device.type != "cuda":
        return
    compiled = _compiled(lambda: window.definition(rule))
    yield Contender("torch.compile of the definition", compiled, lambda: _same_tokens(compiled(), wanted))
    if _fused(device):
        yield Contender("sjd2 triton", lambda: window.verify(rule, "triton"), lambda: _same_tokens(window.verify(rule, "triton"), wanted))
    for peer in PEERS if rule is Rule.FRESH else ():
        try:
            yield peer(window)
        except ImportError as error:
            print(f"  {peer.__name__[1:]}: not importable here ({error})")


def _sample_contenders(window: Window, purpose: Purpose, device: torch.device) -> Iterator[Contender]:
    wanted = window.sample(purpose, "torch")
    yield Contender("definition (eager PyTorch)", lambda: window.sample(purpose, "torch"), lambda: True)
    if _fused(device):
        yield Contender("sjd2 triton", lambda: window.sample(purpose, "triton"), lambda: _same_tokens(window.sample(purpose, "triton"), wanted))


class NoisyInputs:
    """Inputs of ``denoise``: four tokens were committed, and every slot is at a level of its own."""

    def __init__(self, batch: int, window: int, width: int, device: torch.device, vocab: int = 8192):
        generator = torch.Generator(device=device).manual_seed(0)
        self.weight = torch.randn(vocab, width, generator=generator, device=device).to(torch.bfloat16)
        self.embeds = torch.randn(batch, window, width, generator=generator, device=device).to(torch.bfloat16)
        levels = torch.linspace(0.1, 1, window, device=device).expand(batch, window).contiguous()
        self.arguments = {
            "tokens": torch.randint(vocab, (batch, window), generator=generator, device=device),
            "committed": torch.full((batch,), min(4, window), device=device),
            "levels": levels,
            "next_levels": levels * 0.9,
            "seeds": torch.arange(batch, device=device),
            "position": torch.zeros(batch, dtype=torch.int64, device=device),
        }
        self.mean, self.std = self.weight.float().mean(0), self.weight.float().std(0)
        self.floor = 3 * self.embeds.numel() * self.embeds.element_size()

    def denoise(self, backend: str) -> torch.Tensor:
        """The public op."""
        return denoise(self.embeds, self.weight, self.mean, self.std, backend=backend, **self.arguments)


def _denoise_contenders(inputs: NoisyInputs, device: torch.device) -> Iterator[Contender]:
    wanted = inputs.denoise("torch").float()
    yield Contender("definition (eager PyTorch)", lambda: inputs.denoise("torch"), lambda: True)
    if _fused(device):
        close = {"rtol": 2**-7, "atol": 1e-3}
        yield Contender("sjd2 triton", lambda: inputs.denoise("triton"), lambda: torch.allclose(inputs.denoise("triton").float(), wanted, **close))


def _rows(op: str, size: tuple[int, int, int], floor_bytes: int, contenders: Iterator[Contender], rate: float, options) -> Iterator[Row]:
    device = torch.device(options.device)
    flush = torch.empty(2**27 if device.type == "cuda" else 2**25, dtype=torch.uint8, device=device)
    for contender in contenders:
        if not contender.agrees():
            print(f"  {op} {size} {contender.name}: does not give the definition's result, so it is not timed")
            continue
        for cache, buffer in (("hot", None), ("flushed", flush)):
            times = _times(contender.call, device, options.repeats, buffer)
            p20, p50, p80 = (times[int(share * (len(times) - 1))] for share in (0.2, 0.5, 0.8))
            achieved = floor_bytes / (p50 * 1e-6)
            row = Row(op, contender.name, *size, cache, p20, p50, p80, floor_bytes, achieved / 1e9, 100 * achieved / rate)
            print(
                f"  {op:18} {size!s:18} {cache:8} {p50:12.1f} µs {row.gigabytes_per_second:9.1f} GB/s {row.percent_of_floor:6.1f} %  {contender.name}"
            )
            yield row


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rows, with the conditions they were measured under."""
    device = torch.device(options.device)
    rate = _copy_rate(device)
    print(f"copy rate of {options.device}: {rate / 1e9:.1f} GB/s; GB/s and % below count the floor's bytes only")
    if not _fused(device):
        print("no GPU for the Triton kernels: only the definitions are timed")
    rows: list[Row] = []
    for batch in options.batch:
        for vocab in options.vocab:
            size = (batch, options.window, vocab)
            window = Window(*size, device)
            for rule in (Rule(name) for name in options.rules):
                rows += _rows(f"verify {rule.value}", size, window.floor, _verify_contenders(window, rule, device), rate, options)
            for purpose in (Purpose.DRAFT, Purpose.GUMBEL):
                rows += _rows(f"sample {purpose.name.lower()}", size, window.floor, _sample_contenders(window, purpose, device), rate, options)
            del window
        for width in options.width:
            inputs = NoisyInputs(batch, options.window, width, device)
            rows += _rows("denoise", (batch, options.window, width), inputs.floor, _denoise_contenders(inputs, device), rate, options)
    return {"conditions": conditions(options.device), "copy_bytes_per_second": rate, "rows": [asdict(row) for row in rows]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8] if cuda else [1])
    parser.add_argument("--window", type=int, default=96)
    parser.add_argument("--vocab", type=int, nargs="+", default=[1_000, 8_192, 16_384, 32_768, 65_536, 131_072, 184_622] if cuda else [1_000, 8_192])
    parser.add_argument("--width", type=int, nargs="+", default=[4096], help="embedding widths of denoise")
    parser.add_argument("--rules", nargs="+", choices=[rule.value for rule in Rule], default=[rule.value for rule in Rule])
    parser.add_argument("--repeats", type=int, default=100 if cuda else 5)
    parser.add_argument("-o", "--json", type=Path)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    result = run(options)
    for path in (options.json, options.csv):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.csv is not None:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*result["rows"][0], *result["conditions"]])
            writer.writeheader()
            writer.writerows(row | result["conditions"] for row in result["rows"])


if __name__ == "__main__":
    main()
