"""How decoding advances: tokens committed by each forward, by method, and what noise a window holds. ``make advance`` runs, stores and draws it."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablation_plots import NUMBER_OF, TOKENS, finish, plt, save, style
from conditions import conditions, weights_digest
from sjd2 import PRESETS, Progress, TextToImagePipeline
from sjd2.adapters.registry import EMBEDDED_MODEL
from sjd2.denoising import Denoising, NoiseLevels
from sjd2.denoising.levels import window_levels
from sjd2.denoising.settings import KARRAS
from sjd2.tiny_scenes.prompts import held_out_prompts

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "advance.json"
METHODS = ("sjd", "mc-sjd", "sjd2")


def measure(pipeline: TextToImagePipeline, methods: tuple[str, ...], prompts: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Tokens that are final after each forward, of every method and picture; a picture's list ends with its last forward."""
    rows = []
    for method in methods:
        after: list[list[int]] = []

        def watch(progress: Progress, after: list[list[int]] = after) -> None:
            after.append(progress.committed.tolist())

        output = pipeline(prompts, method=method, batch_size=len(prompts), callback=watch, **settings)
        for number, report in enumerate(output.reports):
            committed = [row[number] for row in after[: report.forwards]]
            rows.append({"method": method, "prompt": report.prompt, "seed": report.seed, "committed": committed})
    return rows


def by_one_forward(rows: list[dict[str, Any]], method: str) -> Counter[int]:
    """How many forwards of a method committed 1 token, 2 tokens and so on."""
    counts: Counter[int] = Counter()
    for row in rows:
        if row["method"] == method:
            counts.update(now - before for before, now in zip([0, *row["committed"]], row["committed"], strict=False))
    return counts


def draw_advance(rows: list[dict[str, Any]]) -> Any:
    """Tokens against forwards, a line per picture; and the distribution of what one forward commits."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4))
    tokens = max(row["committed"][-1] for row in rows)
    left.plot([0, tokens], [0, tokens], color="0.4", linestyle="--", linewidth=1.2, label="ar")
    for method in dict.fromkeys(row["method"] for row in rows):
        colour = style(NUMBER_OF[method])["color"]
        for number, row in enumerate(row for row in rows if row["method"] == method):
            left.plot([0, *row["committed"]], color=colour, linewidth=1, alpha=0.6, label=None if number else method)
        counts = by_one_forward(rows, method)
        total, last = counts.total(), 20
        shares = [counts[size] / total for size in range(1, last)] + [sum(share for size, share in counts.items() if size >= last) / total]
        right.plot(range(1, last + 1), shares, label=method, color=colour, marker=style(NUMBER_OF[method])["marker"], markersize=4, linewidth=1.5)
    left.set(xlabel="forwards", ylabel="tokens committed", xlim=(0, 1.05 * max(len(row["committed"]) for row in rows)))
    right.set(xlabel=f"{TOKENS} (20: and more)", ylabel="share of forwards", xticks=(1, 5, 10, 15, 20))
    for axis in (left, right):
        axis.legend(frameon=False)
    finish((left, right))
    return figure


def curves(window: int, width: int, usual: Denoising) -> dict[str, dict[str, list[float]]]:
    """The time of each slot of a window by schedule: with the ``usual`` settings, and with 8 clean slots."""
    schedules = {"Karras, ρ = 7": KARRAS, "linear": NoiseLevels.karras(KARRAS.steps, rho=1.0), "signal": NoiseLevels.signal(KARRAS.steps, width)}
    found = {}
    for clean, per_level in ((usual.clean_slots(window), usual.per_level), (8, -(-(window - 8) // KARRAS.steps))):
        level = window_levels(window, KARRAS.steps, clean=clean, per_level=per_level).tolist()
        found[f"{clean} clean slots, {per_level} of each level"] = {
            name: [round(levels.times[k], 6) for k in level] for name, levels in schedules.items()
        }
    return found


def draw_levels(panels: dict[str, dict[str, list[float]]]) -> Any:
    """Time against the distance from the front."""
    figure, axes = plt.subplots(1, len(panels), figsize=(10.5, 3), sharey=True)
    for axis, (title, times) in zip(axes, panels.items(), strict=True):
        for number, (name, values) in enumerate(times.items()):
            axis.step(range(len(values)), values, where="mid", color=style(number)["color"], linewidth=1.5, label=name)
        axis.set(title=title, xlabel="slot, counted from the front")
    axes[0].set_ylabel("t: 0 is the token, 1 noise")
    axes[0].legend(frameon=False)
    finish(axes)
    return figure


def plots(results: dict[str, Any]) -> list[tuple[str, Callable[[Any], Any], Any]]:
    """Name, plot, and data to plot."""
    usual = PRESETS["sjd2"].denoising
    assert usual is not None
    return [("advance", draw_advance, results["rows"]), ("noise_levels", draw_levels, curves(64, 256, usual))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=8, help="held-out prompts, a picture each (default: %(default)s)")
    parser.add_argument("--window", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="default: %(default)s")
    parser.add_argument("--draw-only", action="store_true", help="draw what is stored, run nothing")
    parser.add_argument("-o", "--output", type=Path, default=RESULT, help="default: the stored result")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="default: docs/images")
    options = parser.parse_args()
    if not options.draw_only:
        settings = {"window": options.window, "guidance_scale": options.guidance_scale, "seed": 0}
        pipeline = TextToImagePipeline.from_pretrained(device="cpu")
        rows = measure(pipeline, METHODS, held_out_prompts(options.prompts), settings)
        facts = {"conditions": conditions("cpu"), "weights": weights_digest(EMBEDDED_MODEL), "settings": settings, "prompts": options.prompts}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
    for path in save(plots(json.loads(options.output.read_text())), options.images):
        print(path)


if __name__ == "__main__":
    main()
