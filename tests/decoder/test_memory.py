"""Too large a batch is refused before it begins, with the largest that fits."""

from __future__ import annotations

import pytest
import torch

from sjd2.decoding import memory
from sjd2.decoding.memory import Need, available, check_memory
from support.llama import random_llama, sliced

from .test_compaction import LENGTHS, Watched, run


def test_the_cache_is_counted_as_it_is_allocated():
    model = sliced(random_llama(dtype=torch.float32))
    cache = model.new_cache(6, 50)
    model.forward(torch.zeros(6, 4, 32), cache)
    allocated = sum(buffer.untyped_storage().nbytes() for layer in cache.layers for buffer in (layer.keys, layer.values))
    need = Need.of(model, guided=True, columns=50, inputs=4, window=4)
    assert 3 * need.cache == allocated
    assert 3 * need.logits == 2 * 6 * 4 * 32 * 4
    assert need.total == need.cache + need.logits + need.forward


def test_a_forward_takes_about_what_is_said(monkeypatch):
    """Tensors alive at the same time inside the model's forward, beside the cache: the estimate is above them, and not far."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Peak(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.alive, self.highest = {}, 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            import weakref

            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    self.alive[storage.data_ptr()] = (weakref.ref(tensor), storage.nbytes())
            self.alive = {address: (alive, size) for address, (alive, size) in self.alive.items() if alive() is not None}
            self.highest = max(self.highest, sum(size for _, size in self.alive.values()))
            return out

    model = sliced(random_llama(dtype=torch.float32))
    cache, window, rows = model.new_cache(4, 400), 64, 4
    with torch.inference_mode():
        model.forward(torch.zeros(rows, 8, 32), cache)
        inputs = torch.zeros(rows, window, 32)
        with Peak() as peak:
            model.forward(inputs, cache)
    need = Need.of(model, guided=False, columns=400, inputs=window, window=window)
    buffers = sum(buffer.untyped_storage().nbytes() for layer in cache.layers for buffer in (layer.keys, layer.values))
    used = peak.highest - buffers
    assert 0.2 * rows * (need.forward + need.logits / 2) < used < 1.5 * rows * (need.forward + need.logits / 2)


def test_a_batch_without_room_is_refused_before_anything_runs(monkeypatch):
    model = Watched(sliced(random_llama()))
    run(model, "mc-sjd")
    one = None

    def look(need, batch_size, device):
        nonlocal one
        one = need.total
        check_memory(need, batch_size, device)

    monkeypatch.setattr("sjd2.decoding.run.check_memory", look)
    run(model, "mc-sjd")
    monkeypatch.setattr(memory, "available", lambda device: 3 * one + 5)
    model.rows.clear()
    with pytest.raises(
        MemoryError, match=rf"batch_size: {len(LENGTHS)} images together need about .* beside the weights \(cache .*: batch_size 3 would fit"
    ):
        run(model, "mc-sjd")
    assert not model.rows
    run(model, "mc-sjd", batch_size=3)
    monkeypatch.setattr(memory, "available", lambda device: one - 1)
    with pytest.raises(MemoryError, match="not even one fits; a smaller window, a smaller image, or no guidance takes less"):
        run(model, "mc-sjd", batch_size=1)


def test_this_machine_knows_its_memory_and_others_need_not():
    room = available(torch.device("cpu"))
    assert room is None or room > 2**20
    assert available(torch.device("meta")) is None
    check_memory(Need(2**80, 0, 0), 1, torch.device("meta"))
