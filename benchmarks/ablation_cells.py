"""The cells of the ablations of SJD2: which settings are run, in which groups, and what each is compared with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from sjd2 import PRESETS, Preset
from sjd2.denoising import Denoising, NoiseLevels
from sjd2_kernels import Rule

GUIDANCE = 3.0
WINDOWS = (16, 32, 64, 96)
#: The window of every cell that does not vary it.
WINDOW = 64
#: Clean slots where most of the window is to be noise: so many can be committed by one forward, and the others are denoised.
BORN = 8
CLEAN = (1, 8, 16, 32, 48)
PER_LEVEL = (1, 3, 6)
STEPS = (2, 6, 12, 25)
SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
RULES = {Rule.FRESH: "fresh draws", Rule.COUPLED: "coupled (MRS)", Rule.GUMBEL_TAIL: "Gumbel tail", Rule.GUMBEL: "frozen noise"}


@dataclass(frozen=True)
class Cell:
    """One setting: the ``tuned`` or the ``base`` model, a method with all that belongs to it, and a guidance scale."""

    model: str
    preset: Preset
    guidance_scale: float = GUIDANCE

    @property
    def inputs(self) -> int:
        """Inputs of a forward for one image (guidance doubles them): the newest committed token, the drafts, the timestep tokens."""
        preset, denoising = self.preset, self.preset.denoising
        if denoising is None:
            return preset.window
        return preset.window + denoising.timestep_tokens(preset.window)

    @property
    def exact(self) -> str:
        """What the method promises with these settings; see ``sjd2.decoding.presets.Exactness``."""
        if self.preset.rule is Rule.KEEP_RATIO or (self.preset.denoising is not None and self.preset.denoising.nearest):
            return "none"
        return "tokens" if self.preset.rule is Rule.GUMBEL else "law"

    @property
    def reference(self) -> Cell:
        """What tokens per forward are compared with: ``mc-sjd`` at its usual window, of the same model, at the same scale."""
        return Cell(self.model, replace(PRESETS["mc-sjd"], window=WINDOW), self.guidance_scale)

    def settings(self) -> dict[str, Any]:
        """Everything that decides its tokens, for JSON."""
        preset = asdict(self.preset) | {"rule": self.preset.rule.value}
        del preset["summary"], preset["exact"]
        return {"model": self.model, "guidance_scale": self.guidance_scale, **preset}


@dataclass(frozen=True)
class Place:
    """A cell in a group: ``at`` says where, by the names of what varies."""

    at: dict[str, Any]
    cell: Cell


def relaxed(preset: Preset) -> Preset:
    """``sjd2`` as published: the drafts of noisy slots are the nearest tokens, and one whose ratio is above 0.5 is kept. Not exact."""
    denoising = replace(preset.denoising or Denoising(), nearest=True)
    return replace(preset, rule=Rule.KEEP_RATIO, keep_ratio=0.5, exact="none", denoising=denoising)


def _strict_and_relaxed(preset: Preset) -> dict[str, Preset]:
    return {"strict": preset, "relaxed": relaxed(preset)}


class Plan:
    """All groups, by name, each a list of places.

    Args:
        width: D of the model's embeddings, which the schedule ``signal`` depends on.
        with_base: there is an untuned model to run the methods on.
        tuned: what the model was tuned with, which replaces levels, timestep tokens and normalisation of the preset.

    Example:
        >>> plan = Plan(width=256, with_base=False)
        >>> plan.groups["guidance"][0].at
        {'method': 'mc-sjd', 'guidance_scale': 1.0}
    """

    def __init__(self, width: int, with_base: bool, tuned: Denoising | None = None):
        self._width, self._models = width, ["tuned", "base"] if with_base else ["tuned"]
        self._denoising = PRESETS["sjd2"].denoising or Denoising()
        if tuned is not None:
            self._denoising = replace(self._denoising, levels=tuned.levels, timesteps=tuned.timesteps, normalise=tuned.normalise)
        self._denoising = replace(self._denoising, clean=self._denoising.clean_slots(WINDOW))
        self._sjd2 = replace(PRESETS["sjd2"], window=WINDOW, denoising=self._denoising)
        self.groups = {
            "methods": self._methods(),
            "quality": self._quality(),
            "updates": self._updates(),
            "switches": self._switches(),
            "guidance": self._guidance(),
            "schedule": self._schedule(),
            "clean_per_level": self._clean_per_level(),
            "clean_steps": self._clean_steps(),
            "steps_window": self._steps_window(),
        }

    def _with(self, *, window: int = WINDOW, **denoising: Any) -> Preset:
        """``sjd2`` with other settings."""
        return replace(self._sjd2, window=window, denoising=replace(self._denoising, **denoising))

    def _methods(self) -> list[Place]:
        places = []
        for model in self._models:
            places.append(Place({"model": model, "method": "ar", "window": 1}, Cell(model, PRESETS["ar"])))
            for name in PRESETS:
                for window in () if name == "ar" else WINDOWS:
                    preset = replace(PRESETS[name], window=window)
                    if preset.denoising is not None:  # at every window the same share of it is clean
                        share = {"clean": preset.denoising.clean, "nearest": preset.denoising.nearest}
                        preset = replace(preset, denoising=replace(self._denoising, **share))
                    places.append(Place({"model": model, "method": name, "window": window}, Cell(model, preset)))
        return places

    def _quality(self) -> list[Place]:
        """First what the others are compared with: the untuned model, where there is one."""
        places = [Place({"run": "ar" if model == "tuned" else "ar, untuned"}, Cell(model, PRESETS["ar"])) for model in reversed(self._models)]
        places.append(Place({"run": "mc-sjd"}, Cell("tuned", replace(PRESETS["mc-sjd"], window=WINDOW))))
        for front, clean in (("", self._denoising.clean), (f", {BORN} clean", BORN)):
            for verification, preset in _strict_and_relaxed(self._with(clean=clean)).items():
                for switch, normalise in (("", True), (", not normalised", False)):
                    changed = replace(preset, denoising=replace(preset.denoising or Denoising(), normalise=normalise))
                    places.append(Place({"run": f"sjd2, {verification}{front}{switch}"}, Cell("tuned", changed)))
        return places

    def _updates(self) -> list[Place]:
        places = []
        for clean in (self._denoising.clean, BORN):
            preset = self._with(clean=clean)
            for rule, name in RULES.items():
                places.append(Place({"clean": clean, "update": name}, Cell("tuned", replace(preset, rule=rule))))
            places.append(Place({"clean": clean, "update": "relaxed, not exact"}, Cell("tuned", relaxed(preset))))
        return places

    def _switches(self) -> list[Place]:
        places = []
        for clean in (self._denoising.clean, BORN):
            for normalise in (True, False):
                for timesteps in (True, False):
                    for verification, preset in _strict_and_relaxed(self._with(clean=clean, normalise=normalise, timesteps=timesteps)).items():
                        at = {"clean": clean, "normalise": normalise, "timesteps": timesteps, "verification": verification}
                        places.append(Place(at, Cell("tuned", preset)))
        return places

    def _guidance(self) -> list[Place]:
        presets = {"mc-sjd": replace(PRESETS["mc-sjd"], window=WINDOW), "sjd2": self._sjd2}
        return [
            Place({"method": name, "guidance_scale": scale}, Cell("tuned", preset, scale)) for name, preset in presets.items() for scale in SCALES
        ]

    def _schedule(self) -> list[Place]:
        steps = self._denoising.levels.steps
        schedules = {
            "Karras, ρ = 7": NoiseLevels.karras(steps, rho=7.0),
            "linear (ρ = 1)": NoiseLevels.karras(steps, rho=1.0),
            "signal": NoiseLevels.signal(steps, self._width),
        }
        return [
            Place({"clean": clean, "schedule": name}, Cell("tuned", self._with(clean=clean, levels=levels)))
            for clean in (self._denoising.clean, BORN)
            for name, levels in schedules.items()
        ]

    def _clean_per_level(self) -> list[Place]:
        return [
            Place({"clean": clean, "per_level": count}, Cell("tuned", self._with(clean=clean, per_level=count)))
            for clean in CLEAN
            for count in PER_LEVEL
        ]

    def _clean_steps(self) -> list[Place]:
        return [
            Place({"clean": clean, "steps": steps}, Cell("tuned", self._with(clean=clean, levels=NoiseLevels.karras(steps))))
            for clean in CLEAN
            for steps in STEPS
        ]

    def _steps_window(self) -> list[Place]:
        """As many slots of a level as it takes for K levels to reach the end of the window."""
        return [
            Place(
                {"steps": steps, "window": window},
                Cell("tuned", self._with(window=window, clean=BORN, per_level=-(-(window - BORN) // steps), levels=NoiseLevels.karras(steps))),
            )
            for steps in STEPS
            for window in WINDOWS
        ]

    def cells(self, names: Iterable[str]) -> list[Cell]:
        """Every cell that these groups need, once, what it is compared with before it."""
        return list(dict.fromkeys(cell for name in names for place in self.groups[name] for cell in (place.cell.reference, place.cell)))
