"""``sjd2 plot``: pictures of traces and of benchmarks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..files import check_writable
from ..plotting import require_matplotlib
from ..tracing import Trace, animate_window, draw_maps, draw_sheet

__all__ = ["add_parser"]

_KINDS = ("maps", "window", "sheet", "bench")
_EPILOG = """what is drawn:
  maps     of each trace: the forward that made each token final, and how often its draft changed
  window   of each trace: an animation of the window (committed, drafted, noisy)
  sheet    of several traces: pictures side by side, a row for every prompt and seed, a column for every method
  bench    of a benchmark's folder: tokens per forward, their histogram, seconds, and acceptance by guidance scale and temperature

example:
  sjd2 generate "a red coat on a yellow background" --seed 1 --method ar --trace out/ar.npz -o out/ar.png
  sjd2 generate "a red coat on a yellow background" --seed 1 --method sjd2 --trace out/sjd2.npz -o out/sjd2.png
  sjd2 plot out/ar.npz out/sjd2.npz -o out/plots
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to ``commands``."""
    parser = commands.add_parser(
        "plot",
        help="draw traces and benchmarks",
        description="Draw what `sjd2 generate --trace` and `sjd2 bench` wrote.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="TRACE_OR_DIR", help="trace files (.npz), folders of benchmarks")
    add("-o", "--output", default=".", metavar="DIR", help="where pictures go (default: here)")
    add("--kinds", nargs="+", choices=_KINDS, metavar="K", help=f"of {', '.join(_KINDS)}, see below (default: all that the inputs allow)")
    add("--frames", type=int, default=120, metavar="N", help="of an animation, at most (default: %(default)s)")
    add("--fps", type=int, default=12, metavar="N", help="frames per second of an animation (default: %(default)s)")
    add("--quiet", action="store_true", help="no report")
    parser.set_defaults(run=run)


def _rows_of(folder: Path) -> list[dict[str, Any]]:
    """Figures of a benchmark's folder."""
    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: expected a folder that `sjd2 bench` finished, found no results.json in it")
    try:
        return json.loads(path.read_text(encoding="utf-8"))["rows"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: expected what `sjd2 bench` wrote: {error}") from error


def run(options: argparse.Namespace) -> int:
    """Read everything, then draw."""
    from ..bench import draw_bench

    require_matplotlib()
    folder = Path(options.output)
    paths = [Path(name) for name in options.inputs]
    benches = {path: _rows_of(path) for path in paths if path.is_dir()}
    traces = {path: Trace.load(path) for path in paths if not path.is_dir()}
    stems = [path.stem for path in traces]
    if len(set(stems)) < len(stems):
        raise ValueError(f"TRACE: expected files of different names, since pictures are named after them, got {', '.join(map(str, traces))}")
    kinds = options.kinds or [
        *(["maps", "window"] if traces else []),
        *(["sheet"] if len(traces) > 1 and all(trace.image is not None for trace in traces.values()) else []),
        *(["bench"] if benches else []),
    ]
    for kind in kinds:
        if not (benches if kind == "bench" else traces):
            raise ValueError(f"--kinds: {kind} needs {'the folder of a benchmark' if kind == 'bench' else 'a trace'}, got none")
    check_writable(folder / "sheet.png", "--output")

    drawn: list[Path] = []
    for path, trace in traces.items():
        if "maps" in kinds:
            drawn.append(folder / f"{path.stem}-maps.png")
            draw_maps(trace, drawn[-1])
        if "window" in kinds:
            drawn.append(folder / f"{path.stem}-window.gif")
            animate_window(trace, drawn[-1], frames=options.frames, frames_per_second=options.fps)
    if "sheet" in kinds:
        drawn.append(folder / "sheet.png")
        draw_sheet(list(traces.values()), drawn[-1])
    if "bench" in kinds:
        for path, rows in benches.items():
            drawn += draw_bench(rows, folder if len(benches) == 1 else folder / path.name)
    if not options.quiet:
        for path in drawn:
            print(path)
    return 0
