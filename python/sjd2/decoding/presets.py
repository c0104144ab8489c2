"""Methods as data: an update rule, a window and a draft initialisation. Nothing else distinguishes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from sjd2_kernels import Rule

from ..arguments import number, whole
from ..denoising.levels import NoiseLevels
from ..denoising.settings import Denoising

__all__ = ["INITIALISATIONS", "PRESETS", "Exactness", "Initialisation", "Preset", "resolve_preset", "tuned_preset", "untuned_notice"]

#: ``tokens``: the tokens of ``ar`` at the same seed. ``law``: the same distribution as AR sampling. ``none``: neither.
Exactness = Literal["tokens", "law", "none"]

#: First draft of a slot that enters the window; see ``initialisation.py``.
Initialisation = Literal["none", "uniform", "left", "above", "left-copy", "above-copy"]
INITIALISATIONS: tuple[str, ...] = ("none", "uniform", "left", "above", "left-copy", "above-copy")


@dataclass(frozen=True)
class Preset:
    """A decoding method.

    Attributes:
        name: as given to ``method=`` and ``--method``.
        rule: how slots are updated.
        window: W, drafts per forward.
        initialisation: first draft of a fresh slot.
        exact: what is promised about the result, see ``Exactness``.
        summary: one line for help texts.
        keep_ratio: τ of ``Rule.KEEP_RATIO``.
        denoising: where noise stands in for tokens; ``None``: every slot is clean.
    """

    name: str
    rule: Rule
    window: int
    initialisation: Initialisation
    exact: Exactness
    summary: str
    keep_ratio: float = 0.3
    denoising: Denoising | None = None


_ALL = (
    Preset("ar", Rule.GUMBEL, 1, "none", "tokens", "plain autoregressive sampling, one token per forward"),
    Preset("jacobi", Rule.GUMBEL, 32, "left-copy", "tokens", "frozen-noise Jacobi iteration: the tokens of ar, in fewer forwards"),
    Preset("sjd", Rule.FRESH, 16, "left", "law", "speculative Jacobi decoding (2410.01699)"),
    Preset("mc-sjd", Rule.COUPLED, 64, "left", "law", "SJD with maximal coupling (2510.24211)"),
    Preset("gs-sjd", Rule.GUMBEL_TAIL, 64, "left", "law", "SJD with Gumbel-shared redraws (2510.24211)"),
    Preset("sjd++", Rule.KEEP_RATIO, 96, "left", "none", "SJD that keeps likely drafts after a rejection (2512.07503); not exact"),
    Preset("sjd2", Rule.COUPLED, 64, "left", "law", "speculative Jacobi-denoising decoding (2510.08994), strict", denoising=Denoising()),
    Preset(
        "sjd2-relaxed",
        Rule.KEEP_RATIO,
        64,
        "left",
        "none",
        "SJD2 as published: nearest-token drafts, the 0.5 rule; not exact",
        keep_ratio=0.5,
        denoising=Denoising(nearest=True),
    ),
)

#: Every method by its name.
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}


def resolve_preset(
    method: str | Preset,
    *,
    window: int | None = None,
    initialisation: str | None = None,
    keep_ratio: float | None = None,
    clean: int | float | None = None,
    levels: int | NoiseLevels | None = None,
    tuned: Denoising | None = None,
) -> Preset:
    """The preset called ``method`` with any of its settings replaced.

    Args:
        method: a name, or a preset.
        window, initialisation, keep_ratio: see :class:`Preset`.
        clean, levels: of a method that denoises, see ``Denoising``; a number K of levels is spaced as Karras et al. do.
        tuned: what a model was tuned with; a method that is given by its name takes levels, timestep tokens and normalisation from it.

    Raises:
        ValueError: an unknown method or initialisation, a window below 1, a window other than 1 for ``ar``, a ``keep_ratio`` that is negative or
            given to a method without one, ``clean`` or ``levels`` out of their range or for a method that does not denoise.
    """
    if isinstance(method, Preset):
        preset = method
    elif isinstance(method, str) and method in PRESETS:
        preset = PRESETS[method] if tuned is None else tuned_preset(PRESETS[method], tuned)
    else:
        raise ValueError(f"method: expected one of {', '.join(PRESETS)}, got {method!r}")
    if window is not None:
        window = whole("window", window, 1)
        if preset.name == "ar" and window != 1:
            raise ValueError(f"window: ar decodes one token per forward, so only 1 is possible, got {window}")
        preset = replace(preset, window=window)
    if initialisation is not None:
        if initialisation not in INITIALISATIONS:
            raise ValueError(f"initialisation: expected one of {', '.join(INITIALISATIONS)}, got {initialisation!r}")
        preset = replace(preset, initialisation=cast(Initialisation, initialisation))
    if keep_ratio is not None:
        if preset.rule is not Rule.KEEP_RATIO:
            raise ValueError(f"keep_ratio: only sjd++ and sjd2-relaxed have one, got {keep_ratio} for {preset.name}")
        if not number("keep_ratio", keep_ratio) >= 0:
            raise ValueError(f"keep_ratio: expected a number >= 0, got {keep_ratio}")
        preset = replace(preset, keep_ratio=keep_ratio)
    if clean is not None or levels is not None:
        preset = _denoised(preset, clean, levels)
    return preset


def _denoised(preset: Preset, clean: int | float | None, levels: int | NoiseLevels | None) -> Preset:
    """With clean slots and levels of its own, where they are given."""
    if preset.denoising is None:
        name, value = ("clean", clean) if clean is not None else ("levels", levels)
        denoising = ", ".join(one.name for one in _ALL if one.denoising is not None)
        raise ValueError(f"{name}: only methods that denoise have it ({denoising}), got {value!r} for {preset.name}")
    given: dict[str, Any] = {} if clean is None else {"clean": clean}
    if levels is not None:
        given["levels"] = levels if isinstance(levels, NoiseLevels) else NoiseLevels.karras(whole("levels", levels, 1))
    return replace(preset, denoising=replace(preset.denoising, **given))


def tuned_preset(preset: Preset, tuned: Denoising) -> Preset:
    """A preset that denoises with the levels, timestep tokens and normalisation that a model was ``tuned`` with; any other as it is."""
    if preset.denoising is None:
        return preset
    denoising = replace(preset.denoising, levels=tuned.levels, timesteps=tuned.timesteps, normalise=tuned.normalise)
    return replace(preset, denoising=denoising)


def untuned_notice(preset: Preset) -> str:
    """What to tell who denoises with a model that was not tuned for it."""
    promise = "the pictures are exact all the same, but" if preset.exact != "none" else "the pictures may suffer, and"
    return (
        f"method: {preset.name} feeds noise, and this model was not tuned for it: {promise} it takes more forwards than it could; "
        "tune the model with `sjd2 finetune`, or use mc-sjd"
    )
