"""Heat maps over a picture: at which forward each token became final, and how often its draft changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..plotting import figure_file
from .trace import Trace

__all__ = ["caption", "draw_maps"]


def caption(trace: Trace) -> str:
    """Method and figures, for a title."""
    about = trace.about
    return f"{about['method']}, W = {trace.window}: {len(trace.tokens)} tokens in {trace.forwards} forwards"


def _map(figure: Any, axis: Any, values: Any, title: str, colours: str) -> None:
    shown = axis.imshow(values, cmap=colours, interpolation="nearest")
    axis.set_title(title, fontsize=10)
    axis.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=axis, shrink=0.8)


def draw_maps(trace: Trace, path: str | Path) -> None:
    """Draw both maps of a trace, beside the picture where there is one.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    commits, changes = trace.cells(trace.commit_iteration()), trace.cells(trace.draft_changes())
    panels = 2 if trace.image is None else 3
    with figure_file(path, figsize=(4.2 * panels, 4)) as figure:
        axes = figure.subplots(1, panels)
        _map(figure, axes[-2], commits, "forward that made the token final", "viridis")
        _map(figure, axes[-1], changes, "changes of the token's draft", "magma")
        if trace.image is not None:
            axes[0].imshow(trace.image, interpolation="nearest")
            axes[0].set_title(f"seed {trace.about['seed']}", fontsize=10)
            axes[0].set(xticks=[], yticks=[])
        figure.suptitle(f"{trace.about['prompt']}\n{caption(trace)}", fontsize=11)
