"""Parts of an iteration have names, which cost nothing and change nothing until someone measures."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from sjd2.decoding.parts import PARTS, part, watch_parts
from support.llama import random_llama, sliced
from support.tape import Tape

from .test_compaction import run


class Watch:
    """Names of the parts that began and ended."""

    def __init__(self):
        self.seen = []

    @contextmanager
    def __call__(self, name):
        self.seen.append(name)
        yield
        self.seen.append(f"/{name}")


IN_ORDER = [mark for name in PARTS for mark in (name, f"/{name}")]


@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "recorded"])
def test_every_iteration_has_every_part_once(graphs):
    model, watch = sliced(random_llama()), Watch()
    settings = {"guided": False, "compact": False, "graphs": Tape() if graphs else None}
    plain = run(model, "mc-sjd", **settings)
    with watch_parts(watch):
        watched = run(model, "mc-sjd", **settings)
    assert torch.equal(watched.tokens, plain.tokens)
    assert len(watch.seen) % len(IN_ORDER) == 0
    iterations = len(watch.seen) // len(IN_ORDER)
    assert watch.seen == IN_ORDER * iterations
    if not graphs:
        assert iterations == max(row.forwards for row in plain.rows)
    else:
        assert 3 <= iterations < max(row.forwards for row in plain.rows), "the iterations that ran, and those that were recorded"


def test_a_watch_ends_with_its_block_whatever_happens():
    watch = Watch()
    with pytest.raises(KeyError), watch_parts(watch):
        raise KeyError
    with part("verify"):
        pass
    assert watch.seen == []
