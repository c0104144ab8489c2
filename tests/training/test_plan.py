"""Where noise goes: properties of random plans."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sjd2.denoising import NoiseLevels
from sjd2.training import NoisePlan, TuningNoise, draw_plan


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


segments = st.tuples(st.integers(1, 5), st.integers(0, 4)).map(lambda pair: (pair[0], sum(pair)))
noises = st.builds(
    lambda steps, segment, windows, window, layout: TuningNoise(NoiseLevels.karras(steps), layout, windows, window, segment),
    st.integers(1, 8), segments, st.integers(1, 4), st.integers(1, 50), st.sampled_from(["windows", "segments"]),
)  # fmt: skip


def runs(levels: list[int]) -> list[tuple[int, int]]:
    """(level, length) of every run."""
    return [(level, len(list(run))) for level, run in groupby(levels)]


@given(noises, st.integers(2, 80), st.integers(0, 2**62))
def test_segments_rise_one_by_one_and_fall_back_to_clean(noise, count, seed):
    noise = TuningNoise(noise.levels, "segments", segment=noise.segment)
    plan = draw_plan(count, noise, generator(seed))
    levels = plan.sequence_levels[0].tolist()
    steps, (low, high) = noise.levels.steps, noise.segment
    assert len(levels) == count - 1
    assert plan.window_start.shape == (1, 0)
    assert plan.window_levels.numel() == 0
    assert set(levels) <= set(range(steps + 1))
    found = runs(levels)
    for (before, _), (after, _) in pairwise(found):
        assert after in (0, before + 1)
    for place, (level, length) in enumerate(found):
        if 0 < level < steps:
            assert length <= high
            # A run is whole where its rise goes on behind it and it did not begin before the sequence.
            if 0 < place < len(found) - 1 and found[place + 1][0] == level + 1:
                assert length >= low


@given(noises, st.integers(2, 80), st.integers(0, 2**62))
def test_windows_lie_in_the_image_and_rise_one_by_one(noise, count, seed):
    noise = TuningNoise(noise.levels, "windows", noise.windows, noise.window, noise.segment)
    plan = draw_plan(count, noise, generator(seed))
    slots, steps = min(noise.window, count - 1), noise.levels.steps
    assert plan.sequence_levels.tolist() == [[0] * (count - 1)]
    assert plan.window_start.shape == (1, noise.windows)
    assert plan.window_levels.shape == (1, noise.windows, slots)
    assert plan.window_start.min() >= 0
    assert plan.window_start.max() + slots <= count - 1
    for levels in plan.window_levels[0].tolist():
        assert min(levels) >= 1
        found = runs(levels)
        assert [level for level, _ in found] == list(range(found[0][0], found[-1][0] + 1))
        assert all(noise.segment[0] <= length <= noise.segment[1] for level, length in found[:-1])
        assert found[-1][0] == steps or found[-1][1] <= noise.segment[1]


@given(noises, st.integers(2, 40), st.integers(0, 2**62), st.data())
def test_structural_tokens_stay_clean_and_change_nothing_else(noise, count, seed, data):
    structural = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    plan, plain = (draw_plan(count, noise, generator(seed), mask) for mask in (structural, None))
    assert torch.equal(plan.window_start, plain.window_start)
    for got, without, token in [
        (plan.sequence_levels[0], plain.sequence_levels[0], torch.arange(count - 1)),
        *(
            (levels, before, start + torch.arange(len(levels)))
            for levels, before, start in zip(plan.window_levels[0], plain.window_levels[0], plan.window_start[0], strict=True)
        ),
    ]:
        assert torch.equal(got, torch.where(structural[token], 0, without))


@pytest.mark.parametrize("layout", ["windows", "segments"])
def test_every_level_occurs_and_so_does_every_start(layout):
    noise = TuningNoise(NoiseLevels.karras(4), layout, windows=2, window=6)
    plan = NoisePlan.stack([draw_plan(20, noise, generator(seed)) for seed in range(400)])
    levels = plan.sequence_levels if layout == "segments" else plan.window_levels
    assert set(levels.unique().tolist()) == set(range(5) if layout == "segments" else range(1, 5))
    if layout == "windows":
        assert set(plan.window_start.unique().tolist()) == set(range(14))
        assert set(plan.window_levels[..., 0].unique().tolist()) == {1, 2, 3, 4}
    else:
        assert (plan.sequence_levels > 0).any(0).all()
        assert (plan.sequence_levels == 0).any(0).all()


def test_a_plan_is_that_of_its_generator():
    for layout in ("windows", "segments"):
        noise = TuningNoise(layout=layout)
        first, again, other = (draw_plan(64, noise, generator(seed)) for seed in (1, 1, 2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "rings"}, "layout: expected windows or segments, got 'rings'"),
        ({"windows": 0}, "windows: expected a whole number >= 1, got 0"),
        ({"window": 2.5}, "window: expected a whole number >= 1, got 2.5"),
        ({"segment": (4, 3)}, r"segment: expected 1 <= shortest <= longest, got \(4, 3\)"),
        ({"segment": (0, 3)}, "segment: expected 1 <= shortest <= longest"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        TuningNoise(**settings)
