"""What the kernels and the engine are meant to reach, beside what was measured: ``python benchmarks/targets.py OUT``.

``OUT`` is a folder of results as ``gpu_suite.py`` writes them. Every target is *met*, *not met*, *not measured*, or the matter of a test.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sjd2 import PRESETS

ROOT = Path(__file__).parent
#: Of the embedded model on a CPU, where the CPU's targets are read off.
STORED = ROOT / "results" / "embedded_model.json"
SLICED, LARGE = (1_000, 8_192, 16_384, 32_768), (65_536, 131_072, 184_622)

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Target:
    """A target, and what became of it.

    Attributes:
        of: ``ops`` or ``engine``.
        text: what is wanted.
        figure: what was measured, in words; empty if nothing was.
        verdict: ``met``, ``not met``, ``not measured`` or ``a test``.
    """

    of: str
    text: str
    figure: str
    verdict: str


def load(folder: Path) -> dict[str, Any]:
    """The results in ``folder`` by name; those of the embedded model on a CPU from where they are stored."""
    names = ("suite", "full_size", "fused_ops")
    found = {name: json.loads(path.read_text()) for name in names if (path := folder / f"{name}.json").exists()}
    if STORED.exists():
        found["cpu"] = json.loads(STORED.read_text())
    return found


def on_gpu(results: Mapping[str, Any] | None) -> bool:
    """Whether figures are a GPU's: those of a trial on a CPU meet and miss nothing."""
    return results is not None and "NVIDIA" in results["conditions"].get("device", "")


def _judged(of: str, text: str, values: Mapping[str, float], reached: Callable[[float], bool], unit: str = "×") -> Target:
    """A target that all ``values`` have to reach, each named."""
    if not values:
        return Target(of, text, "", "not measured")
    percent = unit == "%"
    shown = ", ".join(f"{name} {100 * value:.1f} %" if percent else f"{name} {value:.2f}{unit}" for name, value in values.items())
    return Target(of, text, shown, "met" if all(reached(value) for value in values.values()) else "not met")


def _worst(
    of: str, text: str, values: Iterable[tuple[str, float]], reached: Callable[[float], bool], *, least: bool, unit: str = "×", sizes: int = 1
) -> Target:
    """The same, of which the worst alone is named; with fewer values than ``sizes`` it can be missed, and not met."""
    found = list(values)
    if not found:
        return Target(of, text, "", "not measured")
    name, value = (min if least else max)(found, key=lambda one: one[1])
    target = _judged(of, text, {name: value}, reached, unit)
    verdict = "not measured" if target.verdict == "met" and len(found) < sizes else target.verdict
    return Target(of, text, f"{target.figure} (the {'least' if least else 'most'} of {len(found)} values)", verdict)


def _engine(results: Mapping[str, Any] | None) -> list[Target]:
    """What full-size models are meant to reach on an H100."""
    rows: Rows = results["rows"] if results is not None and on_gpu(results) else []
    models = list(dict.fromkeys(row["model"] for row in rows))
    cells = {(row["model"], row.get("batch"), row.get("window")): row for row in rows if "milliseconds" in row}
    images = {(row["model"], row["end_to_end"] > 1): row for row in rows if "seconds" in row}

    def of_models(figure: Callable[[str], float]) -> dict[str, float]:
        found = {}
        for model in models:
            try:
                found[model] = figure(model)
            except (KeyError, TypeError):  # a row that is missing, or not run
                continue
        return found

    def beside_bound(model: str) -> float:
        row = cells[model, 1, 1]
        return row["milliseconds"] / (1e3 * row["weight_bytes"] / results["copy_bytes_per_second"])  # type: ignore[index]

    def outside(model: str) -> float:
        splits = [row["split"] for (name, batch, _), row in cells.items() if name == model and batch == 1 and row["split"]]
        if not splits:
            raise KeyError(model)
        return max(1 - split["forward"] / split["iteration"] for split in splits)

    def gain(model: str) -> float:
        ar, method = images[model, False], images[model, True]
        return (ar["seconds"] / method["seconds"]) / (ar["forwards"] / method["forwards"])

    def milliseconds(model: str, batch: int, window: int) -> float:
        return cells[model, batch, window]["milliseconds"]

    return [
        _judged("engine", "AR iteration, one image: at most 1.3 × the reading of the weights", of_models(beside_bound), lambda x: x <= 1.3),
        _judged(
            "engine",
            "an iteration at W = 64: at most 2 × one of AR",
            of_models(lambda model: milliseconds(model, 1, 64) / milliseconds(model, 1, 1)),
            lambda x: x <= 2,
        ),
        _judged(
            "engine",
            "at least 4 × faster than the published way of writing the loop, W = 64",
            of_models(lambda model: cells[model, 1, 64]["published_milliseconds"] / milliseconds(model, 1, 64)),
            lambda x: x >= 4,
        ),
        _judged("engine", "all but the model's forward: at most 3 % of an iteration of one image", of_models(outside), lambda x: x <= 0.03, "%"),
        _judged("engine", "gain in time over ar: at least 0.7 × the gain in forwards", of_models(gain), lambda x: x >= 0.7),
        _judged(
            "engine",
            "images per second at batch 8: at least 4 × those at batch 1, W = 64",
            of_models(lambda model: 8 * milliseconds(model, 1, 64) / milliseconds(model, 8, 64)),
            lambda x: x >= 4,
        ),
    ]


def _on_cpu(results: Mapping[str, Any] | None) -> list[Target]:
    """What the embedded model is meant to reach on a CPU."""
    fastest: dict[str, dict] = {}
    for row in results["wall_clock"] if results is not None and not on_gpu(results) else []:
        if row["method"] not in fastest or row["seconds"] < fastest[row["method"]]["seconds"]:
            fastest[row["method"]] = row
    shares = [(f"{method} at W = {row['window']}", row["share_outside_forward"]) for method, row in fastest.items()]
    gains = []
    if (ar := fastest.get("ar")) is not None:
        for method, row in fastest.items():
            if method != "ar" and PRESETS[method].exact != "none":
                inside = [one["seconds"] * (1 - one["share_outside_forward"]) for one in (ar, row)]
                gains.append((f"{method} at W = {row['window']}", (ar["seconds"] / row["seconds"]) / (inside[0] / inside[1])))
    return [
        _worst("engine", "CPU, embedded model: at most 15 % of an iteration outside the forward", shares, lambda x: x <= 0.15, least=False, unit="%"),
        _worst("engine", "CPU, embedded model: at least 0.9 of the gain that forwards alone would give", gains, lambda x: x >= 0.9, least=True),
    ]


def _ops(results: Mapping[str, Any] | None) -> list[Target]:
    """What the fused ops are meant to reach on an H100 at W = 96."""
    rows = [row for row in (results["rows"] if results is not None and on_gpu(results) else []) if "p50" in row and row["window"] == 96]
    ours = [row for row in rows if row["implementation"] == "sjd2 triton"]

    def pick(op: str, cache: str, sizes: Iterable[int] | None = None) -> Rows:
        wanted = None if sizes is None else set(sizes)
        return [row for row in ours if row["op"].startswith(op) and row["cache"] == cache and (wanted is None or row["vocab"] in wanted)]

    def name(row: dict[str, Any]) -> str:
        return f"{row['op']} B {row['batch']} V {row['vocab']:,}"

    def ratios(is_peer: Callable[[dict[str, Any]], bool]) -> Iterable[tuple[str, float]]:
        """Of the fastest peer's time to ours, at every size that has a peer."""
        for row in pick("verify", "flushed"):
            place = tuple(row[key] for key in ("op", "batch", "vocab", "cache"))
            peers = [one["p50"] for one in rows if is_peer(one) and tuple(one[key] for key in ("op", "batch", "vocab", "cache")) == place]
            if peers:
                yield name(row), min(peers) / row["p50"]

    def definition(row: dict[str, Any]) -> bool:
        return row["implementation"].startswith("definition")

    small = [(name(row), row["p50"]) for row in pick("verify", "hot", SLICED) if row["batch"] == 1]
    large = [(name(row), 100 / row["percent_of_floor"]) for row in pick("verify", "flushed", LARGE)]
    moved = [(name(row), row["percent_of_floor"] / 100) for op in ("sample", "denoise") for row in pick(op, "flushed")]
    peers = ratios(lambda row: row["whole"] and not definition(row) and not row["implementation"].startswith("sjd2"))
    return [
        _worst("ops", "verify, sliced vocabularies, B = 1: at most 30 µs", small, lambda x: x <= 30, least=False, unit=" µs", sizes=len(SLICED)),
        _worst(
            "ops",
            "verify, V from 65,536, flushed: at most 2 × the reading of both logits",
            large,
            lambda x: x <= 2,
            least=False,
            sizes=3 * len(LARGE),
        ),
        _worst("ops", "verify: at least 3 × faster than the fastest peer that does the same", peers, lambda x: x >= 3, least=True),
        _worst("ops", "verify: at least 20 × faster than the eager top-k chain", ratios(definition), lambda x: x >= 20, least=True),
        _worst("ops", "sample and denoise, flushed: at least 85 % of the copy rate", moved, lambda x: x >= 0.85, least=True, unit="%"),
    ]


def _steps(suite: Mapping[str, Any] | None) -> list[Target]:
    """What the suite ran that passes or fails."""
    steps = suite["steps"] if suite is not None and on_gpu(suite) else {}
    found = []
    for of, text, names in (
        ("ops", "the kernels' tests, natively", ("kernel tests",)),
        ("ops", "law tests through the fused ops", ("law tests on the GPU",)),
        ("engine", "all other tests on a machine with a GPU", ("other tests",)),
        ("engine", "compute-sanitizer on the native ops", ("memcheck", "racecheck")),
    ):
        outcomes = [steps[name]["outcome"] for name in names if name in steps]
        ran = [outcome for outcome in outcomes if not outcome.startswith("not run")]
        verdict = "not measured" if len(ran) < len(names) else "met" if set(ran) == {"passed"} else "not met"
        found.append(Target(of, text, ", ".join(outcomes), verdict))
    return found


TESTED = (
    Target("ops", "verify in at most three launches", "tests/fused/test_verify.py", "a test"),
    Target("ops", "memory of verify beside its arguments below 16 MB, V = 184,622, W = 96, B = 8", "tests/fused/test_verify.py", "a test"),
    Target("ops", "the decoder on the kernels gives the definition's tokens", "tests/fused/test_decoder.py", "a test"),
    Target("engine", "nothing is read back, or copied from the host, in an iteration", "tests/decoder/test_no_host.py", "a test"),
    Target("engine", 'window="auto" stays with the fastest window', "tests/decoder/test_auto_window.py", "a test"),
)


def targets(results: Mapping[str, Any]) -> list[Target]:
    """All targets, those of the ops first."""
    found = [
        *_ops(results.get("fused_ops")),
        *_engine(results.get("full_size")),
        *_on_cpu(results.get("cpu")),
        *_steps(results.get("suite")),
        *TESTED,
    ]
    return sorted(found, key=lambda target: target.of != "ops")


def summary(results: Mapping[str, Any]) -> str:
    """The targets as lines for a terminal."""
    found = targets(results)
    width = max(len(target.text) for target in found)
    lines = [f"{target.of:6}  {target.verdict:12}  {target.text:{width}}  {target.figure}".rstrip() for target in found]
    counts = ", ".join(f"{sum(target.verdict == one for target in found)} {one}" for one in ("met", "not met", "not measured", "a test"))
    return "\n".join([*lines, f"targets: {counts}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of results")
    print(summary(load(parser.parse_args().folder)))


if __name__ == "__main__":
    main()
