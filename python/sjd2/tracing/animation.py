"""The window sweeping over a picture, as an animated GIF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_atomically
from ..plotting import require_matplotlib
from .maps import caption
from .trace import Trace

__all__ = ["animate_window", "slot_states"]

#: What a token is after a forward, with its colour; Okabe and Ito's, which colour-blind eyes tell apart.
_STATES = {"not reached": "#E8E8E8", "noisy": "#E69F00", "drafted": "#56B4E9", "committed": "#0072B2"}


def slot_states(trace: Trace, forward: int) -> np.ndarray:
    """int ``[N]``: what each token is after ``forward`` forwards: 0 not reached, 1 noisy, 2 drafted, 3 committed.

    Before the first forward (0) nothing is reached.
    """
    states = np.zeros(len(trace.tokens), dtype=int)
    if forward > 0:
        start = int(trace.committed[forward - 1])
        end = min(start + trace.window, len(states))
        states[:start] = 3
        states[start:end] = 2
        if trace.levels is not None:
            states[start:end][trace.levels[forward - 1, : end - start] > 0] = 1
    return states


def _panels(figure: Any, trace: Trace, shape: tuple[int, int]) -> tuple[Any, Any]:
    """A map of states, and what covers the picture where it is not final yet (``None`` where there is no picture)."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    rows, columns = shape
    ratio = rows / columns if trace.image is None else trace.image.height / trace.image.width
    axes = figure.subplots(1, 1 if trace.image is None else 2, squeeze=False)[0]
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.set_box_aspect(ratio)
    limits = {"vmin": -0.5, "vmax": len(_STATES) - 0.5}
    states = axes[-1].imshow(np.zeros(shape), cmap=ListedColormap(list(_STATES.values())), interpolation="nearest", aspect="auto", **limits)
    names = [Patch(color=colour, label=name) for name, colour in _STATES.items()]
    axes[-1].legend(handles=names, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, fontsize=7)
    if trace.image is None:
        return states, None
    axes[0].imshow(trace.image, extent=(-0.5, columns - 0.5, rows - 0.5, -0.5), interpolation="nearest", aspect="auto")
    return states, axes[0].imshow(np.zeros((*shape, 4)), interpolation="nearest", aspect="auto")


def animate_window(trace: Trace, path: str | Path, *, frames: int = 120, frames_per_second: int = 12) -> None:
    """Draw a trace as an animated GIF: the tokens' states, beside as much of the picture as is final.

    Args:
        frames: at most so many; a longer run shows forwards at even distances, the last one among them.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: fewer than two frames, or none per second.
    """
    if frames < 2:
        raise ValueError(f"frames: expected a whole number >= 2, got {frames}")
    if frames_per_second < 1:
        raise ValueError(f"frames_per_second: expected a whole number >= 1, got {frames_per_second}")
    figure = require_matplotlib()(figsize=(4 if trace.image is None else 8, 4.7), layout="constrained")
    from matplotlib.animation import PillowWriter

    shape = trace.cells(slot_states(trace, 0)).shape
    shown, cover = _panels(figure, trace, shape)
    title = figure.suptitle("", fontsize=10)
    forwards = np.unique(np.linspace(0, trace.forwards, min(frames, trace.forwards + 1)).round().astype(int)).tolist()

    def draw(forward: int) -> None:
        states = trace.cells(slot_states(trace, forward))
        shown.set_data(states)
        if cover is not None:
            grey = np.full((*shape, 4), 0.9)
            grey[..., 3] = states != 3
            cover.set_data(grey)
        title.set_text(f"{caption(trace)}\nafter {forward} of them")

    def write(scratch: Path) -> None:
        writer = PillowWriter(fps=frames_per_second)
        with writer.saving(figure, str(scratch), dpi=90):
            for forward in forwards:
                draw(forward)
                writer.grab_frame()
            for _ in range(frames_per_second):  # a look at the finished picture before it begins again
                writer.grab_frame()

    write_atomically(Path(path), write)
