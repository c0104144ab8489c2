"""Time of a window's attention in one layer of published models, by whoever can compute it, beside its floor.

    python benchmarks/window_attention.py [--device cuda] [-o results.json]

Rows have half of an image behind them, guidance doubles them, and the cache is in bfloat16. The floor is what reading the valid keys and values once
takes at the copy rate measured in the same run. Everyone has to give what the model's own attention gives before it is timed; who cannot run is
a row that says why. How times are taken stands in ``timing.py``. Never asserts a time.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from model_sizes import FAMILIES
from timing import call_times, copy_rate

from conditions import conditions
from sjd2.attention import ATTENTIONS, AttentionShape
from sjd2.attention.interface import obstacle
from sjd2.attention.trial import Layer
from sjd2.files import write_atomically

MODELS = ("Lumina-mGPT 7B", "Emu3-Gen 8B", "Janus-Pro-7B")
#: Of bfloat16 sums in another order.
TOLERANCE = 3e-2
#: Who compiles for long comes last: if it takes too long, what the others took is known.
PASSES = (tuple(name for name in ATTENTIONS if name != "flex"), ("flex",))


def one_size(
    names: Sequence[str], model: str, batch: int, window: int, timesteps: int, device: torch.device, rate: float, repeats: int
) -> list[dict[str, Any]]:
    """A row for each of these attentions."""
    size = FAMILIES[model]()
    shape = AttentionShape.of(size.model.config.get_text_config(decoder=True), torch.bfloat16)
    rows, inputs = 2 * batch, window + timesteps
    layer = Layer(shape, device, rows, inputs, size.prompt - 1 + int(size.layout.lengths[0]) + inputs, timesteps)
    floor = 4 * rows * shape.groups * shape.width * layer.cache.extent
    place = {"model": model, "batch": batch, "window": window, "timesteps": timesteps, "columns": layer.cache.extent, "floor_bytes": floor}
    wanted, found = layer.call("model")().float(), []
    for name in names:
        row = place | {"attention": name}
        why = obstacle(name, shape, device, timesteps=timesteps > 0)
        try:
            if why is None:
                call = layer.call(name)
                off = float((call().float() - wanted).abs().max())
                why = None if off <= TOLERANCE else f"off by {off:.1e}"
            if why is None:
                times = call_times(call, device, repeats)
                row |= {"way": times.way} | {f"p{int(100 * share)}": times.percentile(share) for share in (0.2, 0.5, 0.8)}
                row["percent_of_floor"] = 100 * floor / (max(row["p50"], 1e-3) * 1e-6) / rate
        except Exception as error:  # one contender's trouble is its own
            why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if why is not None:
            row["not run"] = why
        told = why or f"{row['p50']:10.1f} µs {row['percent_of_floor']:6.1f} % of the floor's rate"
        print(f"{model:16} B {batch}  W {window:3} + {timesteps}  {layer.cache.extent:5} columns  {name:8} {told}", flush=True)
        found.append(row)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--models", nargs="+", choices=list(FAMILIES), default=MODELS if cuda else ["embedded (TinyScenes)"], metavar="MODEL")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8] if cuda else [1])
    parser.add_argument("--window", type=int, nargs="+", default=[1, 32, 64, 96] if cuda else [1, 16])
    parser.add_argument("--repeats", type=int, default=40 if cuda else 5, help="at most")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    device, rows = torch.device(options.device), []
    facts = {"conditions": conditions(options.device), "copy_bytes_per_second": copy_rate(device), "rows": rows}
    with torch.inference_mode():
        places = [*((window, 0) for window in options.window), (max(options.window), 1)]
        for names in PASSES:
            for model, batch, (window, timesteps) in itertools.product(options.models, options.batch, places):
                rows += one_size(names, model, batch, window, timesteps, device, facts["copy_bytes_per_second"], options.repeats)
                if options.output is not None:
                    write_atomically(options.output, lambda path: path.write_text(json.dumps(facts, indent=1) + "\n"))
    ours = [row for row in rows if row["attention"] == "triton" and device.type == "cuda"]
    return int(any("not run" in row for row in ours))


if __name__ == "__main__":
    raise SystemExit(main())
