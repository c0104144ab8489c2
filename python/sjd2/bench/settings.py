"""What a benchmark runs: every method with every sampling setting, on the same prompts and seeds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sjd2_kernels import Rule

from ..arguments import one_seed_each, whole
from ..decoding import PRESETS, Preset, resolve_preset

__all__ = ["BenchSettings", "Variant", "variants_of"]

_SAMPLING = ("guidance_scale", "temperature", "top_k", "top_p")


@dataclass(frozen=True)
class Variant:
    """A method as it is run.

    Attributes:
        method: its name in ``sjd2.PRESETS``.
        options: ``window`` (a number, or ``auto``), ``initialisation``, ``keep_ratio``, ``clean``, ``levels`` and sampling settings of the pipeline's
            call.
    """

    method: str
    options: dict[str, Any]

    @property
    def preset(self) -> Preset:
        """The method with its options, as of an untuned model; with a window of ``auto`` its own window stands in."""
        options = {name: self.options[name] for name in ("initialisation", "keep_ratio", "clean", "levels")}
        return resolve_preset(self.method, window=None if self.options["window"] == "auto" else self.options["window"], **options)

    @property
    def sampling(self) -> dict[str, Any]:
        """What two variants must share to be compared."""
        return {name: self.options[name] for name in _SAMPLING}

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the method with every option."""
        return {"method": self.method, **self.options}


def variants_of(
    methods: Sequence[str],
    *,
    windows: Sequence[int | str | None] = (None,),
    initialisation: str | None = None,
    keep_ratio: float | None = None,
    clean: int | float | None = None,
    levels: int | None = None,
    guidance_scales: Sequence[float],
    temperatures: Sequence[float],
    top_k: int,
    top_p: float,
) -> list[Variant]:
    """Every method at every window, guidance scale and temperature; ``ar`` has one window only.

    Args:
        windows: ``None``: the method's own; ``auto``: what the pipeline finds fastest over the pictures, whose tokens then depend on the machine.
        initialisation, keep_ratio, clean, levels: of those methods that have one.

    Raises:
        ValueError: an unknown method, no method at all, a setting out of its range, or one twice.
    """
    if not methods:
        raise ValueError("methods: expected at least one, got none")
    owners = {"keep_ratio": _with_keep_ratio(), "clean": _that_denoise(), "levels": _that_denoise()}
    for name, value in {"keep_ratio": keep_ratio, "clean": clean, "levels": levels}.items():
        if value is not None and not owners[name] & set(methods):
            raise ValueError(f"{name}: only {' and '.join(sorted(owners[name]))} have one, got {value} for {', '.join(methods)}")
    found = []
    for method, window, scale, temperature in itertools.product(methods, windows, guidance_scales, temperatures):
        plain = resolve_preset(method)
        drafts = plain.name != "ar"
        options: dict[str, Any] = {
            "window": window if drafts and window is not None else plain.window,
            "initialisation": initialisation if drafts and initialisation is not None else plain.initialisation,
            "keep_ratio": keep_ratio if method in owners["keep_ratio"] else None,
            "clean": clean if method in owners["clean"] else None,
            "levels": levels if method in owners["levels"] else None,
            "guidance_scale": scale,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }
        variant = Variant(method, options)
        _ = variant.preset  # raises what the pipeline would raise later
        if drafts or variant not in found:
            found.append(variant)
    for variant in found:
        if found.count(variant) > 1:
            raise ValueError(f"methods: expected every method and setting once, got {variant.method} twice with the same settings")
    return found


def _with_keep_ratio() -> set[str]:
    return {name for name, preset in PRESETS.items() if preset.rule is Rule.KEEP_RATIO}


def _that_denoise() -> set[str]:
    return {name for name, preset in PRESETS.items() if preset.denoising is not None}


@dataclass(frozen=True)
class BenchSettings:
    """A benchmark.

    Attributes:
        prompts: one picture of each, or ``num_images``.
        variants: what is compared; see :func:`variants_of`.
        seed: of the first picture, the next one's is one higher: the same for every variant.
        num_images: pictures of every prompt.
        batch_size: pictures decoded together. Seconds are worth comparing with users' at 1.
        compile: let ``torch.compile`` compile the model's forward.
        cache, attention, negative_prompt, height, width, graphs: of the pipeline's call.

    Raises:
        ValueError: no prompt, no variant, or a number out of its range.
    """

    prompts: tuple[str, ...]
    variants: tuple[Variant, ...]
    seed: int = 0
    num_images: int = 1
    batch_size: int = 1
    cache: str = "ragged"
    attention: str = "auto"
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    graphs: bool | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        object.__setattr__(self, "variants", tuple(self.variants))
        if not self.prompts:
            raise ValueError("prompts: expected at least one, got none")
        if not self.variants:
            raise ValueError("variants: expected at least one, got none")
        whole("num_images", self.num_images, 1)
        whole("batch_size", self.batch_size, 1)
        one_seed_each(self.seed, len(self.prompts) * self.num_images)

    @property
    def pictures(self) -> list[tuple[str, int]]:
        """Prompt and seed of every picture that each variant makes."""
        prompts = [prompt for prompt in self.prompts for _ in range(self.num_images)]
        return list(zip(prompts, one_seed_each(self.seed, len(prompts)), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"variants": [variant.to_dict() for variant in self.variants], "prompts": list(self.prompts)}
