"""Time per iteration of published models at full size: ``python benchmarks/full_size.py --device cuda -o OUT.json``.

Weights are random, which changes no time: an iteration's shapes depend on the window and the batch alone. How many tokens an iteration commits does
depend on weights and is not said here. The cache has room for a whole image, so that attention reads what it would read in earnest; guidance
doubles the rows, as it does there. A model that does not fit is recorded as such.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from model_sizes import FAMILIES, Size
from transformers import JanusForConditionalGeneration

from conditions import conditions
from sjd2.adapters.causal_lm import SlicedCausalLM
from sjd2.adapters.janus import JanusAdapter
from sjd2.decoding import PRESETS, TokenLayout, decode
from sjd2_kernels import LogitsProcessing

#: Rows of ``model_sizes.FAMILIES`` that are timed, and the first image id of each.
MODELS = {"Emu3-Gen 8B": 151_854, "Lumina-mGPT 7B": 4, "Janus-Pro-7B": 0}
WINDOWS = (1, 16, 32, 64, 96, 128)
BATCHES = (1, 4, 8)
GUIDANCE, TOP_K = 3.0, 2048


class _JanusImages(JanusAdapter):
    """Without a processor: prompts are random here, and nothing is drawn."""

    def __init__(self, model: JanusForConditionalGeneration, vocab_size: int):
        SlicedCausalLM.__init__(self, model, 0, vocab_size)


def with_weights(size: Size, image_id_start: int, device: str, dtype: torch.dtype) -> SlicedCausalLM:
    """The model with random weights on ``device``."""
    with torch.device(device):
        model = type(size.model)._from_config(size.model.config, dtype=dtype).eval().requires_grad_(False)
    if isinstance(model, JanusForConditionalGeneration):
        return _JanusImages(model, size.vocab_size)
    structural = int(size.layout.forced.max()) - size.vocab_size + 1
    return SlicedCausalLM(model, image_id_start, size.vocab_size, structural_ids=range(max(structural, 0)))


def timed(adapter: SlicedCausalLM, size: Size, window: int, batch: int, iterations: int, repeats: int) -> dict[str, Any]:
    """Milliseconds per iteration, whole and inside the model's forward, medians over ``repeats`` runs of at least ``iterations`` iterations."""
    device = adapter.device
    preset = PRESETS["ar"] if window == 1 else replace(PRESETS["mc-sjd"], window=window)
    generator = torch.Generator().manual_seed(0)
    words = adapter.text_config.vocab_size
    prompt = adapter.prompt_from_ids(torch.randint(words, (2 * batch, size.prompt), generator=generator).tolist())
    forced = size.layout.forced.expand(batch, -1).to(device)
    tokens = min(forced.shape[1], iterations * window)  # a forward commits at most a window
    layout = TokenLayout(forced, torch.full((batch,), tokens, device=device), size.layout.row_stride, places=size.layout.places)
    processing = LogitsProcessing.create(batch, guidance_scale=GUIDANCE, top_k=TOP_K, device=device)
    whole, inside, forwards = [], [], []
    for repeat in range(repeats + 1):
        seeds = torch.arange(batch, device=device) + 1000 * repeat
        rows = decode(adapter, prompt, layout, processing, preset, seeds, compact=False).rows
        last = max(rows, key=lambda row: row.forwards)
        if repeat:  # the first one warms up
            whole.append(last.seconds / last.forwards)
            inside.append(last.forward_seconds / last.forwards)
            forwards.append(last.forwards)
    return {
        "window": window,
        "batch": batch,
        "milliseconds": 1e3 * statistics.median(whole),
        "forward_milliseconds": 1e3 * statistics.median(inside),
        "iterations": statistics.median(forwards),
    }


def measure(name: str, device: str, dtype: torch.dtype, windows: Sequence[int], batches: Sequence[int], iterations: int, repeats: int) -> list[dict]:
    """All rows of one model; what has no room is a row that says so."""
    size, rows = FAMILIES[name](), []
    try:
        adapter = with_weights(size, MODELS[name], device, dtype)
    except torch.OutOfMemoryError as error:
        return [{"model": name, "not run": str(error).splitlines()[0]}]
    for batch in batches:
        for window in windows:
            place = {"model": name, "window": window, "batch": batch}
            try:
                row = place | timed(adapter, size, window, batch, iterations, repeats)
                whole, inside = row["milliseconds"], row["forward_milliseconds"]
                print(f"{name:16} B {batch}  W {window:3}  {whole:8.2f} ms an iteration, {inside:8.2f} ms of it in the forward", flush=True)
            except torch.OutOfMemoryError as error:
                row = place | {"not run": str(error).splitlines()[0]}
                print(f"{name:16} B {batch}  W {window:3}  not run: out of memory", flush=True)
            rows.append(row)
    del adapter
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="default: all of them")
    parser.add_argument("--windows", nargs="+", type=int, default=WINDOWS, help="1 is AR (default: %(default)s)")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, help="images decoded together (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=8, help="per run, at least (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs, after one to warm up (default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    rows = []
    for name in options.models:
        rows += measure(name, options.device, torch.bfloat16, options.windows, options.batches, options.iterations, options.repeats)
        if options.output:  # what is done is kept if the next one is cut off
            options.output.parent.mkdir(parents=True, exist_ok=True)
            facts = {"conditions": conditions(options.device), "guidance_scale": GUIDANCE, "top_k": TOP_K, "dtype": "bfloat16", "rows": rows}
            options.output.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
