"""Time per iteration of published models at full size: ``python benchmarks/full_size.py --device cuda -o OUT.json``.

Weights are random, which changes no time: an iteration's shapes depend on the window and the batch alone. Guidance doubles the rows, as it does
in earnest. Each row of the result has an iteration operation by operation, with its forward apart; on a GPU replayed as a CUDA graph; and, of one
image, that of a loop written the way research scripts are (``published_loop.py``). How many tokens an iteration commits does depend on weights:
``--end-to-end N`` decodes whole images that commit N, for N − 1 of N tokens are known and slots farther away are noise, as ``sjd2`` has them.
What does not fit is recorded as such.
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
from published_loop import published_sjd
from transformers import JanusForConditionalGeneration

from conditions import conditions
from sjd2.adapters.causal_lm import SlicedCausalLM
from sjd2.adapters.janus import JanusAdapter
from sjd2.decoding import PRESETS, Preset, RowReport, TokenLayout, decode
from sjd2.denoising import Denoising
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


def mc_sjd(window: int) -> Preset:
    """``mc-sjd``, or AR at a window of 1."""
    return PRESETS["ar"] if window == 1 else replace(PRESETS["mc-sjd"], window=window)


def words(adapter: SlicedCausalLM, size: Size, batch: int) -> torch.Tensor:
    """Random prompts and their partners, int64 ``[2B, P]``, which end alike."""
    ids = torch.randint(adapter.text_config.vocab_size, (2 * batch, size.prompt), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = ids[0, -1]
    return ids


def last_row(adapter: SlicedCausalLM, size: Size, layout: TokenLayout, preset: Preset, batch: int, repeat: int, *, graphs: bool) -> RowReport:
    """The report of the row that took most forwards."""
    device = adapter.device
    processing = LogitsProcessing.create(batch, guidance_scale=GUIDANCE, top_k=TOP_K, device=device)
    prompt = adapter.prompt_from_ids(words(adapter, size, batch).tolist())
    seeds = torch.arange(batch, device=device) + 1000 * repeat
    rows = decode(adapter, prompt, layout, processing, preset, seeds, compact=False, graphs=graphs).rows
    return max(rows, key=lambda row: row.forwards)


def timed(adapter: SlicedCausalLM, size: Size, window: int, batch: int, iterations: int, repeats: int) -> dict[str, Any]:
    """Milliseconds per iteration, whole and inside the model's forward, medians over ``repeats`` runs of at least ``iterations`` iterations."""
    device = adapter.device
    forced = size.layout.forced.expand(batch, -1).to(device)
    tokens = min(forced.shape[1], iterations * window)  # a forward commits at most a window
    layout = TokenLayout(forced, torch.full((batch,), tokens, device=device), size.layout.row_stride, places=size.layout.places)
    # The first run warms up.
    eager = [last_row(adapter, size, layout, mc_sjd(window), batch, repeat, graphs=False) for repeat in range(repeats + 1)][1:]
    figures = {
        "window": window,
        "batch": batch,
        "milliseconds": 1e3 * statistics.median(row.seconds / row.forwards for row in eager),
        "forward_milliseconds": 1e3 * statistics.median(row.forward_seconds / row.forwards for row in eager),
        "iterations": statistics.median(row.forwards for row in eager),
    }
    if device.type == "cuda":
        replayed = [last_row(adapter, size, layout, mc_sjd(window), batch, repeat, graphs=True) for repeat in range(repeats + 1)][1:]
        figures["graph_milliseconds"] = 1e3 * statistics.median(row.seconds / row.forwards for row in replayed)
    if batch == 1 and not isinstance(adapter, JanusAdapter):  # whose head is none of a language model
        ids, images = words(adapter, size, 1).to(device), range(adapter.image_id_start, adapter.image_id_start + adapter.vocab_size)
        runs = [published_sjd(adapter.model, ids, images, tokens, window, guidance=GUIDANCE, top_k=TOP_K) for _ in range(2)][1:]
        figures["published_milliseconds"] = 1e3 * statistics.median(run.seconds / run.forwards for run in runs)
    return figures


def end_to_end(adapter: SlicedCausalLM, size: Size, window: int, tokens_per_forward: int) -> dict[str, Any]:
    """Seconds of a whole image with ``tokens_per_forward`` tokens from every forward; 1 is AR."""
    device, count, graphs = adapter.device, size.layout.forced.shape[1], adapter.device.type == "cuda"
    forced = torch.zeros(1, count, dtype=torch.int64, device=device)
    forced[:, ::tokens_per_forward] = -1
    layout = TokenLayout(forced, torch.tensor([count], device=device), size.layout.row_stride, places=size.layout.places)
    preset = PRESETS["ar"]
    if tokens_per_forward > 1:
        preset = replace(PRESETS["sjd2"], window=window, denoising=Denoising(clean=tokens_per_forward - 1))
    for repeat, length in enumerate((min(4 * window, count), count)):  # the first one warms up
        shown = replace(layout, lengths=torch.tensor([length], device=device))
        row = last_row(adapter, size, shown, preset, 1, repeat, graphs=graphs)
    return {"window": preset.window, "tokens": count, "forwards": row.forwards, "seconds": row.seconds}


def measure(
    name: str,
    device: str,
    dtype: torch.dtype,
    windows: Sequence[int],
    batches: Sequence[int],
    iterations: int,
    repeats: int,
    tokens_per_forward: int = 0,
) -> list[dict]:
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
    if tokens_per_forward:
        for window, count in ((1, 1), (64, tokens_per_forward)):
            row = {"model": name, "end_to_end": count} | end_to_end(adapter, size, window, count)
            print(f"{name:16} W {window:3}  {row['seconds']:8.2f} s for {row['tokens']} tokens in {row['forwards']} forwards", flush=True)
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
    parser.add_argument(
        "--end-to-end", type=int, default=0, metavar="N", help="decode an image, too, that commits N tokens with every forward (default: none)"
    )
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    rows = []
    for name in options.models:
        rows += measure(
            name, options.device, torch.bfloat16, options.windows, options.batches, options.iterations, options.repeats, options.end_to_end
        )
        if options.output:  # what is done is kept if the next one is cut off
            options.output.parent.mkdir(parents=True, exist_ok=True)
            facts = {"conditions": conditions(options.device), "guidance_scale": GUIDANCE, "top_k": TOP_K, "dtype": "bfloat16", "rows": rows}
            options.output.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
