"""Time per iteration of published models at full size: ``python benchmarks/full_size.py --device cuda -o OUT.json``.

Weights are random, which changes no time: an iteration's shapes depend on the window and the batch alone. Guidance doubles the rows, as it does
in earnest. Each row of the result has an iteration halfway through an image, split into forward, verify, cache and rest, its peak memory, on a GPU
as a CUDA graph and operation by operation, and, of one image, that of a loop written the way research scripts are (``published_loop.py``), behind
as many columns. Beside them stands the bound that nothing gets below: the bytes of the weights that a forward reads, at the copy rate measured in
the same run. How many tokens an iteration commits does depend on weights: ``--end-to-end N`` decodes images that commit N, for N − 1 of N tokens are
known and slots farther away are noise, as ``sjd2`` has them. What does not fit is recorded as such; the file is written after every row.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import small_models
import torch
from iterations import bytes_of_a_forward, timed, words
from model_sizes import FAMILIES, Size
from published_loop import published_sjd
from timing import copy_rate
from transformers import JanusForConditionalGeneration

from conditions import conditions
from sjd2.adapters.causal_lm import SlicedCausalLM
from sjd2.adapters.janus import JanusAdapter
from sjd2.decoding import PRESETS, Preset, RowReport, TokenLayout, decode
from sjd2.decoding.kept import Kept
from sjd2.denoising import Denoising
from sjd2.files import write_atomically
from sjd2_kernels import LogitsProcessing

#: Models by name and their first image ids: rows of ``model_sizes.FAMILIES``, in the order of their worth, and small ones of the same architectures.
MODELS = {"Lumina-mGPT 7B": 4, "Emu3-Gen 8B": 151_854, "Janus-Pro-7B": 0}
SMALL = {"small Lumina-mGPT": (small_models.lumina, 4), "small Emu3": (small_models.emu3, 20), "small Janus": (small_models.janus, 0)}
WINDOWS = (1, 16, 32, 64, 96, 128)
BATCHES = (1, 4, 8)
GUIDANCE, TOP_K = 3.0, 2048
#: Forwards of the published loop: those that warm it up, and those that are timed.
PUBLISHED = (2, 6)


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


def published(adapter: SlicedCausalLM, size: Size, window: int) -> float | None:
    """Milliseconds of an iteration of the published loop, behind half an image; of Janus none, whose head is none of a language model."""
    if isinstance(adapter, JanusAdapter):
        return None
    count = size.layout.forced.shape[1]
    ids, images = (
        words(adapter, size, 1, more=count // 2).to(adapter.device),
        range(adapter.image_id_start, adapter.image_id_start + adapter.vocab_size),
    )
    for forwards in PUBLISHED:
        run = published_sjd(adapter.model, ids, images, count, window, guidance=GUIDANCE, top_k=TOP_K, most=forwards)
    return 1e3 * run.seconds / run.forwards


def end_to_end(adapter: SlicedCausalLM, size: Size, window: int, tokens_per_forward: int, most: int) -> dict[str, Any]:
    """Seconds of an image, or its first ``most`` tokens, with ``tokens_per_forward`` tokens from every forward; 1 is AR.

    Of the second such image: as in a pipeline, it takes over the graphs that the first one recorded.
    """
    device, graphs = adapter.device, adapter.device.type == "cuda"
    count = min(most, size.layout.forced.shape[1])
    forced = torch.zeros(1, count, dtype=torch.int64, device=device)
    forced[:, ::tokens_per_forward] = -1
    layout = TokenLayout(forced, torch.tensor([count], device=device), size.layout.row_stride, places=size.layout.places)
    preset = PRESETS["ar"]
    if tokens_per_forward > 1:
        preset = replace(PRESETS["sjd2"], window=window, denoising=Denoising(clean=tokens_per_forward - 1))
    processing = LogitsProcessing.create(1, guidance_scale=GUIDANCE, top_k=TOP_K, device=device)
    prompt = adapter.prompt_from_ids(words(adapter, size, 1).tolist())

    kept = Kept()

    def image(seed: int) -> RowReport:
        return decode(adapter, prompt, layout, processing, preset, torch.tensor([seed], device=device), graphs=graphs, kept=kept).rows[0]

    first, second = image(1000), image(1001)
    return {"window": preset.window, "tokens": count, "forwards": second.forwards, "seconds": second.seconds, "first_seconds": first.seconds}


def _sized(name: str) -> tuple[Size, int]:
    if name in SMALL:
        build, start = SMALL[name]
        return build(), start
    return FAMILIES[name](), MODELS[name]


def _attempt(place: dict[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row, or why there is none: what is wrong with one shape does not end the others, and its cache does not outlive it."""
    try:
        return place | work()
    except Exception as error:
        return place | {"not run": _reason(error)}
    finally:
        gc.collect()


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _failed(row: dict[str, Any]) -> bool:
    """Whether a row is missing for another reason than that it has no room."""
    return "not run" in row and not row["not run"].startswith(("OutOfMemoryError", "MemoryError"))


def _shown(row: dict[str, Any]) -> str:
    head = f"{row['model']:18} B {row.get('batch', 1)}  W {row.get('window', ''):3} "
    if "not run" in row:
        return f"{head} not run: {row['not run']}"
    if "end_to_end" in row:
        return f"{head} {row['seconds']:8.2f} s for {row['tokens']} tokens in {row['forwards']} forwards"
    split = ", ".join(f"{name} {value:.3f}" for name, value in (row["split"] or {}).items()) or "not split"
    peer = f", published loop {row['published_milliseconds']:.2f} ms" if row.get("published_milliseconds") else ""
    return f"{head} {row['milliseconds']:8.3f} ms an iteration ({split}){peer}"


def _rows(adapter: SlicedCausalLM, name: str, size: Size, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One image first, and AR and a window of 64 of all batches; then the images end to end."""
    weights = bytes_of_a_forward(adapter, size)
    cells = sorted(
        ((batch, window) for batch in options.batches for window in options.windows), key=lambda cell: (cell[0] > 1, cell[1] not in (1, 64))
    )
    for batch, window in cells:

        def iteration(batch: int = batch, window: int = window) -> dict[str, Any]:
            figures = timed(adapter, size, mc_sjd(window), batch, options.iterations, guidance_scale=GUIDANCE, top_k=TOP_K)
            peer = published(adapter, size, window) if batch == 1 else None
            return figures if peer is None else figures | {"published_milliseconds": peer}

        yield _attempt({"model": name, "window": window, "batch": batch, "weight_bytes": weights}, iteration)
    if options.end_to_end:
        for window, count in ((1, 1), (min(64, max(options.windows)), options.end_to_end)):

            def image(window: int = window, count: int = count) -> dict[str, Any]:
                return end_to_end(adapter, size, window, count, options.most)

            yield _attempt({"model": name, "end_to_end": count}, image)


def measure(name: str, device: str, dtype: torch.dtype, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All rows of one model as they come; what has no room is a row that says so."""
    size, start = _sized(name)
    try:
        adapter = with_weights(size, start, device, dtype)
    except torch.OutOfMemoryError as error:
        yield {"model": name, "not run": _reason(error)}
    else:
        gc.freeze()  # what is there by now is not looked through after every row
        yield from _rows(adapter, name, size, options)
        gc.unfreeze()
        del adapter
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=[*MODELS, *SMALL], help="default: those of full size")
    parser.add_argument("--small", action="store_true", help="small models of the same architectures, which only show that everything runs")
    parser.add_argument("--windows", nargs="+", type=int, default=WINDOWS, help="1 is AR (default: %(default)s)")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, help="images decoded together (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=6, help="that are timed, of each kind (default: %(default)s)")
    parser.add_argument(
        "--end-to-end", type=int, default=0, metavar="N", help="decode an image, too, that commits N tokens with every forward (default: none)"
    )
    parser.add_argument("--most", type=int, default=800, help="tokens of such an image at most (default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    facts = {"conditions": conditions(options.device), "guidance_scale": GUIDANCE, "top_k": TOP_K, "dtype": "bfloat16"}
    facts["copy_bytes_per_second"] = copy_rate(torch.device(options.device))
    rows: list[dict[str, Any]] = []
    for name in options.models or (SMALL if options.small else MODELS):
        for row in measure(name, options.device, torch.bfloat16, options):
            print(_shown(row), flush=True)
            rows.append(row)
            if options.output:  # what is done is kept if the next one is cut off
                text = json.dumps(facts | {"rows": rows}, indent=1) + "\n"
                write_atomically(options.output, lambda scratch, text=text: scratch.write_text(text))
    return int(any(map(_failed, rows)))


if __name__ == "__main__":
    raise SystemExit(main())
