"""``TextToImagePipeline``: prompts in, pictures and figures out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from sjd2_kernels import LogitsProcessing

from .adapters import Adapter, load_adapter
from .arguments import check_callback, one_seed_each, whole
from .attention import check_attention
from .cache import resolve_cache
from .decoding import Preset, Progress, RowReport, decode, resolve_preset
from .decoding.auto_window import WINDOWS, WindowChooser, forward_seconds
from .decoding.kept import Kept
from .decoding.memory import Need, fits
from .decoding.presets import untuned_notice
from .denoising import NoiseLevels
from .recording import record_cuda_graph

__all__ = ["ImageReport", "PipelineOutput", "TextToImagePipeline"]


@dataclass(frozen=True)
class ImageReport:
    """How one image came to be.

    Attributes:
        prompt, method, window, seed: with the same settings they give the same tokens again.
        tokens: the image's token ids, in the order they were decoded.
        forwards: model forwards until the image was finished (prefill not counted).
        tokens_per_forward: step compression; AR sampling has 1.
        accepted_per_forward: accepted drafts per forward.
        seconds: from when this image's decoding began until it was finished; images that are decoded together share that time.
        forward_seconds: of those, spent in the model's forward, prefill included; ``None`` where iterations were replayed as CUDA graphs.
    """

    prompt: str
    method: str
    window: int
    seed: int
    tokens: list[int]
    forwards: int
    tokens_per_forward: float
    accepted_per_forward: float
    seconds: float
    forward_seconds: float | None

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class PipelineOutput:
    """``images`` (PIL), ``tokens`` (int64 ``[images, N]``, on the CPU) and ``reports``, in the order of the prompts.

    ``images`` is empty where the model's tokens cannot become pixels here (``pipeline.adapter.missing_decoder``), or only tokens were asked for.
    """

    images: list[Image.Image]
    tokens: torch.Tensor
    reports: list[ImageReport]


class _ProgressBar:
    """A token counter on the terminal; reads the state only when asked to show it."""

    def __init__(self, total: int, shown: bool):
        self._bar = tqdm(total=total, unit="token", disable=not shown, leave=False)

    def callback(self, user: Callable[[Progress], None] | None) -> Callable[[Progress], None] | None:
        """A callback that counts tokens and passes the progress on."""
        if self._bar.disable:
            return user
        done = 0

        def callback(progress: Progress) -> None:
            nonlocal done
            now = int(progress.committed.sum())
            self._bar.update(now - done)
            done = now
            if user is not None:
                user(progress)

        return callback

    def close(self) -> None:
        self._bar.close()


class TextToImagePipeline:
    """Text to images with any decoding method.

    Example:
        >>> from sjd2 import TextToImagePipeline
        >>> pipeline = TextToImagePipeline.from_pretrained()
        >>> output = pipeline("a red coat on a yellow background", method="mc-sjd", seed=1)
        >>> output.images[0].size, output.reports[0].forwards < 256
        ((32, 32), True)
    """

    def __init__(self, adapter: Adapter):
        self.adapter = adapter
        self._warned_untuned = False
        self._choosers: dict[tuple, WindowChooser] = {}
        self._kept = Kept()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        adapter: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | Literal["auto"] | None = None,
        **options: Any,
    ) -> TextToImagePipeline:
        """Load a model by folder or hub name; without one, the model that ships with the package.

        Args:
            adapter: what the configuration's ``sjd2`` does not say, for instance where the image tokens of a model without an adapter of its
                own lie; see docs/models.md.
            device: default: the GPU if there is one.
            dtype: of the weights in memory, ``auto``: as they are stored; default float32 on a CPU, bfloat16 elsewhere.
            options: of the model's own ``from_pretrained``: ``device_map``, ``tp_plan``, ``quantization_config``, ``attn_implementation`` …

        Raises:
            FileNotFoundError: nothing there.
            ValueError: damaged files, or a model that no adapter exists for.
        """
        return cls(load_adapter(model, adapter=adapter, device=device, dtype=dtype, **options))

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
        method: str | Preset = "mc-sjd",
        seed: int | Sequence[int] = 0,
        num_images_per_prompt: int = 1,
        window: int | Literal["auto"] | None = None,
        initialisation: str | None = None,
        keep_ratio: float | None = None,
        clean: int | float | None = None,
        levels: int | NoiseLevels | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        batch_size: int = 8,
        cache: str = "ragged",
        graphs: bool | None = None,
        attention: str = "auto",
        output_type: Literal["pil", "tokens"] = "pil",
        on_image: Callable[[int, Image.Image | None, ImageReport], None] | None = None,
        callback: Callable[[Progress], None] | None = None,
        progress_bar: bool = False,
    ) -> PipelineOutput:
        """Make ``num_images_per_prompt`` pictures of every prompt.

        Args:
            prompt: one prompt or several.
            negative_prompt: what guidance steers away from; default: the model's.
            height, width: of the images in pixels; default: the model's.
            method: a name from ``sjd2.PRESETS``, or a ``Preset``. By its name a method that denoises takes levels, timestep tokens and
                normalisation from what the model was tuned with; a ``Preset`` is taken as it is.
            seed: of the first image, the next image's is one higher; or one per image.
            window: drafts per forward; default: the method's. ``auto``: what makes most tokens per second, found with the first images and
                remembered for the next calls; an image's report says which it was.
            initialisation: of fresh drafts; default: the method's.
            keep_ratio: τ of ``sjd++``.
            clean: of a method that denoises: slots at the front without noise, as a number or as a share of the window.
            levels: likewise: noise levels, or how many; default: those that the model was tuned with.
            guidance_scale: 1 switches guidance off. Default, like the following: the model's.
            temperature: 0 is greedy.
            top_k: 0 keeps all ids.
            top_p: 1 keeps all ids.
            batch_size: images decoded together; the place of one that is finished is taken by the next.
            cache: ``ragged`` or ``paged``: how keys and values are stored; see ``sjd2.cache``. The tokens are the same.
            graphs: replay iterations as CUDA graphs; default: on a GPU. The tokens are the same.
            attention: who computes the attention of a window: ``model``, ``triton``, ``flex`` or ``flash`` (see ``sjd2.attention``). ``auto``: on a
                GPU the fastest, measured once; elsewhere the model. They differ in rounding.
            output_type: ``pil``, or ``tokens`` to leave pixels out.
            on_image: called with number, picture and report of every image as soon as it is finished; the picture is ``None`` where there is none.
            callback: called after every forward.
            progress_bar: show one.

        Raises:
            ValueError: a setting is out of its range.
            FloatingPointError: the model's logits were not finite.
        """
        if not isinstance(prompt, Sequence):
            raise ValueError(f"prompt: expected one text or several, got {prompt!r}")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise ValueError("prompt: expected at least one, got none")
        for one in prompts:
            if not isinstance(one, str):
                raise ValueError(f"prompt: expected text, got {one!r}")
        if not isinstance(negative_prompt, str | None):
            raise ValueError(f"negative_prompt: expected one text for all prompts, got {negative_prompt!r}")
        num_images_per_prompt = whole("num_images_per_prompt", num_images_per_prompt, 1)
        batch_size = whole("batch_size", batch_size, 1)
        resolve_cache(cache)
        check_attention(attention)
        if output_type not in ("pil", "tokens"):
            raise ValueError(f"output_type: expected pil or tokens, got {output_type!r}")
        check_callback(callback)
        if window == "auto" and getattr(self.adapter.model, "tp_size", None) is not None:
            raise ValueError("window: expected a number with a tensor-parallel plan, got auto: each process would find another one fastest")
        preset = resolve_preset(
            method,
            window=None if window == "auto" else window,
            initialisation=initialisation,
            keep_ratio=keep_ratio,
            clean=clean,
            levels=levels,
            tuned=self.adapter.denoising,
        )
        self._tell_untuned(preset)
        grid = self.adapter.grid_of(*(None if side is None else whole(name, side, 1) for name, side in (("height", height), ("width", width))))
        if negative_prompt is None:
            negative_prompt = self.adapter.defaults.negative_prompt
        given = {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        for name, value in given.items():
            if isinstance(value, Sequence):
                raise ValueError(f"{name}: expected one number for all images, got {value!r}")
        settings: dict[str, Any] = {name: getattr(self.adapter.defaults, name) if value is None else value for name, value in given.items()}
        LogitsProcessing.create(1, **settings)  # a bad setting is an error before any work, and so is a bad prompt in a later batch
        self.adapter.check_prompts(prompts if settings["guidance_scale"] == 1 or not negative_prompt else [*prompts, negative_prompt])
        if output_type == "pil" and self.adapter.missing_decoder is not None:
            warnings.warn(f"images: there will be none, only tokens: {self.adapter.missing_decoder}", stacklevel=2)
        prompts = [one for one in prompts for _ in range(num_images_per_prompt)]
        seeds = one_seed_each(seed, len(prompts))

        bar = _ProgressBar(len(prompts) * self.adapter.layout(1, grid).forced.shape[1], progress_bar)
        try:
            run = _Run(
                self.adapter,
                negative_prompt,
                grid,
                settings,
                batch_size,
                cache,
                graphs,
                attention,
                output_type == "pil",
                on_image,
                bar.callback(callback),
                self._kept,
            )
            if window == "auto" and preset.name != "ar":
                return self._with_best_window(run, prompts, seeds, preset)
            return run(prompts, seeds, preset)
        finally:
            bar.close()

    def compile(self, **options: Any) -> TextToImagePipeline:
        """Let ``torch.compile`` compile the model's forward over a window; the first pictures of every size of batch wait for it.

        Args:
            options: of ``torch.compile``: ``mode``, ``dynamic`` …

        Returns:
            This pipeline.
        """
        self.adapter.compile(**options)
        self._kept.drop()
        return self

    def release_memory(self) -> None:
        """Let go of what is kept on a GPU for the next call of the same kind: the last run's CUDA graphs and its cache."""
        self._kept.drop()

    def _tell_untuned(self, preset: Preset) -> None:
        """Warn, once, that the model was not tuned for denoising."""
        if preset.denoising is not None and self.adapter.denoising is None and not self._warned_untuned:
            self._warned_untuned = True
            warnings.warn(untuned_notice(preset), stacklevel=3)

    def _with_best_window(self, run: _Run, prompts: list[str], seeds: list[int], preset: Preset) -> PipelineOutput:
        """Batches with the windows that look best, until the best one is known; then the rest with that."""
        batch = min(run.batch_size, len(prompts))
        key = (preset, run.grid, run.settings["guidance_scale"] != 1, batch, run.graphs, run.attention)
        chooser = self._choosers.get(key)
        if chooser is None:
            chooser = self._choosers[key] = run.chooser(prompts, preset, batch)
        parts, done = [], 0
        while done < len(prompts):
            window = chooser.best()
            end = len(prompts) if chooser.settled else done + batch
            parts.append(run(prompts[done:end], seeds[done:end], replace(preset, window=window), first=done))
            for report in parts[-1].reports:
                chooser.learn(window, len(report.tokens), report.forwards, report.seconds)
            done = end
        return PipelineOutput(
            images=[image for part in parts for image in part.images],
            tokens=torch.cat([part.tokens for part in parts]),
            reports=[report for part in parts for report in part.reports],
        )


@dataclass(frozen=True)
class _Run:
    """What all images of a call have in common."""

    adapter: Adapter
    negative_prompt: str
    grid: tuple[int, int]
    settings: Mapping[str, Any]
    batch_size: int
    cache: str
    graphs: bool | None
    attention: str
    pictures: bool
    on_image: Callable[[int, Image.Image | None, ImageReport], None] | None
    callback: Callable[[Progress], None] | None
    kept: Kept

    def chooser(self, prompts: Sequence[str], preset: Preset, batch: int) -> WindowChooser:
        """Of windows for ``batch`` images together: those that there is memory for, or else the smallest, whose run will say what is missing."""
        layout = self.adapter.layout(1, self.grid)
        tokens = layout.forced.shape[1]
        limit = min(tokens, self.adapter.position_limit or tokens)
        rows = batch if self.settings["guidance_scale"] == 1 else 2 * batch
        windows = [window for window in WINDOWS if window <= limit] or [limit]
        longest = max(map(len, self.adapter.prompt_ids(list(dict.fromkeys(prompts)), self.grid)))
        needs = {
            window: Need.of_run(self.adapter, replace(preset, window=window), guided=rows > batch, prompt=longest, count=tokens) for window in windows
        }
        windows = [window for window in windows if fits(needs[window], batch, self.adapter.device)] or windows[:1]
        replays = self.graphs if self.graphs is not None else self.adapter.device.type == "cuda"
        return WindowChooser(forward_seconds(self.adapter, layout, windows, rows, self.attention, record_cuda_graph() if replays else None))

    def __call__(self, prompts: list[str], seeds: list[int], preset: Preset, *, first: int = 0) -> PipelineOutput:
        """Decode and draw; the first prompt is number ``first`` of the call."""
        adapter, count = self.adapter, len(prompts)
        negative = None if self.settings["guidance_scale"] == 1 else [self.negative_prompt] * count
        drawn: dict[int, Image.Image] = {}

        def report(index: int, tokens: list[int], row: RowReport) -> ImageReport:
            return ImageReport(
                prompt=prompts[index],
                method=preset.name,
                window=preset.window,
                seed=seeds[index],
                tokens=tokens,
                forwards=row.forwards,
                tokens_per_forward=row.tokens_per_forward,
                accepted_per_forward=row.accepted_per_forward,
                seconds=row.seconds,
                forward_seconds=row.forward_seconds,
            )

        def finished(index: int, tokens: torch.Tensor, row: RowReport) -> None:
            if self.pictures and adapter.missing_decoder is None:
                padded = nn.functional.pad(tokens, (0, adapter.layout(1, self.grid).forced.shape[1] - len(tokens)))
                drawn[index] = adapter.images(padded[None], self.grid)[0]
            assert self.on_image is not None
            self.on_image(first + index, drawn.get(index), report(index, tokens.tolist(), row))

        result = decode(
            adapter,
            adapter.prompt(prompts, negative, self.grid),
            adapter.layout(count, self.grid),
            LogitsProcessing.create(count, **self.settings, device=adapter.device),
            preset,
            torch.tensor(seeds, dtype=torch.int64, device=adapter.device),
            batch_size=self.batch_size,
            callback=self.callback,
            finished=None if self.on_image is None else finished,
            cache=self.cache,
            graphs=self.graphs,
            attention=self.attention,
            kept=self.kept,
        )
        tokens = result.tokens.cpu()
        images = [drawn[index] for index in sorted(drawn)]
        if self.pictures and not images and adapter.missing_decoder is None:
            images = [image for part in result.tokens.split(self.batch_size) for image in adapter.images(part, self.grid)]
        reports = [report(index, tokens[index, : row.tokens].tolist(), row) for index, row in enumerate(result.rows)]
        return PipelineOutput(images, tokens, reports)
