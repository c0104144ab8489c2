"""``window="auto"`` takes the window that makes most tokens per second, whatever it thought at first."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sjd2 import TextToImagePipeline
from sjd2.decoding import PRESETS, TokenLayout, memory
from sjd2.decoding.auto_window import WINDOWS, WindowChooser, forward_seconds
from sjd2.decoding.memory import Need
from support.llama import random_llama, sliced
from support.tape import Tape


def decode_with(chooser, tokens_per_forward, seconds, images=20):
    """The windows that are chosen where an image has 100,000 tokens."""
    chosen = []
    for _ in range(images):
        window = chooser.best()
        forwards = round(100_000 / tokens_per_forward[window])
        chooser.learn(window, 100_000, forwards, forwards * seconds[window])
        chosen.append(window)
    return chosen


FLAT = dict.fromkeys(WINDOWS, 0.01)
STEEP = {window: 0.001 * window for window in WINDOWS}
#: Tokens per forward by window: as the embedded model has them; nothing gained by width; and all that a window can give.
CURVES = {
    "usual": {8: 3.3, 16: 4.9, 32: 6.6, 64: 7.5, 96: 7.4, 128: 7.4},
    "narrow": dict.fromkeys(WINDOWS, 2.5),
    "wide": {window: 0.9 * window for window in WINDOWS},
}


@pytest.mark.parametrize("beside", [0.0, 0.02], ids=["nothing beside", "much beside"])
@pytest.mark.parametrize("forward", [FLAT, STEEP, {8: 6, 16: 7, 32: 10.5, 64: 18.6, 96: 28, 128: 38}], ids=["flat", "steep", "measured"])
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_it_settles_on_the_fastest(curve, forward, beside):
    scale = max(forward.values()) if beside else 1.0
    seconds = {window: one + beside * scale for window, one in forward.items()}
    chosen = decode_with(WindowChooser(forward), curve, seconds)
    rates = {window: curve[window] / seconds[window] for window in WINDOWS}
    slow = [window for window in chosen if rates[window] < 0.999 * max(rates.values())]
    assert len(slow) == len(set(slow)), "no more than one image for a window that is not the fastest"


def test_free_forwards_take_the_widest_and_costly_ones_the_narrowest():
    assert WindowChooser(FLAT).best() == 128
    assert WindowChooser({window: 0.001 * window**2 for window in WINDOWS}).best() == 8


def test_it_is_settled_when_the_best_has_been_tried():
    chooser = WindowChooser({8: 0.9, 16: 1.0})
    assert not chooser.settled
    chooser.learn(16, 100, 10, 10.0)
    assert chooser.settled, "8 drafts cannot give 9 tokens"
    chooser.learn(16, 100, 1000, 5000.0)
    assert chooser.best() == 8
    assert not chooser.settled


def test_forwards_are_timed_over_every_window_and_leave_nothing_behind():
    model, seen = sliced(random_llama(dtype=torch.float32)), []
    forward = model.forward

    def watched(inputs, cache, **outputs):
        seen.append((inputs.shape, cache.extent))
        return forward(inputs, cache, **outputs)

    model.forward = watched
    seconds = forward_seconds(model, TokenLayout.grid(1, 5, 6), [8, 16], rows=4)
    assert set(seconds) == {8, 16}
    assert all(0 < one < 60 for one in seconds.values())
    assert set(seen) == {((4, 8, 32), 23), ((4, 16, 32), 31)}
    tape = Tape()
    seen.clear()
    assert set(forward_seconds(model, TokenLayout.grid(1, 5, 6), [8, 16], 4, "auto", tape)) == {8, 16}
    assert (tape.recordings, tape.replays) == (2, 2 * 4), "replays are timed where iterations are replayed"
    assert seen == 2 * [((4, 8, 32), 23), ((4, 16, 32), 31)], "once to begin with, once recorded"


def test_windows_without_room_are_left_out(monkeypatch):
    pipeline = TextToImagePipeline.from_pretrained(device="cpu")
    prompt, seen = "a red coat on a yellow background", []
    needs = {
        window: Need.of_run(pipeline.adapter, replace(PRESETS["mc-sjd"], window=window), guided=True, prompt=8, count=256).total for window in WINDOWS
    }
    monkeypatch.setattr("sjd2.pipeline.forward_seconds", lambda *arguments: seen.append(arguments[2]) or dict.fromkeys(arguments[2], 1.0))
    monkeypatch.setattr(memory, "available", lambda device: needs[32] + (needs[64] - needs[32]) // 2)
    assert pipeline([prompt] * 4, window="auto", batch_size=1).reports[-1].window <= 32
    assert seen == [[8, 16, 32]]
    monkeypatch.setattr(memory, "available", lambda device: needs[8] // 2)
    with pytest.raises(MemoryError, match="not even one fits"):
        pipeline(prompt, window="auto", method="jacobi")
    assert seen[1:] == [[8]]
