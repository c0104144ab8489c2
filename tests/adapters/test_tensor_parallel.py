"""A tensor-parallel plan of Transformers' own: two processes draw the tokens that one does."""

from __future__ import annotations

import json

import pytest

from support import planned
from support.forked import in_ranks
from support.tuning import write_model


@pytest.mark.filterwarnings("ignore:method. sjd2 feeds noise")
def test_two_processes_that_share_every_layer_draw_the_tokens_of_one(tmp_path):
    folder = write_model(tmp_path / "model")
    ranks = in_ranks(planned.print_tokens, folder, folder=tmp_path / "ranks", timeout=120)
    alone = planned.tokens(folder)
    assert alone.pop("share") == 1
    for rank in ranks:
        found = json.loads(rank.stdout)
        assert 0.5 < found.pop("share") < 0.6  # norms are whole everywhere, and in older plans embeddings
        assert found.pop("auto") == "window: expected a number with a tensor-parallel plan, got auto: each process would find another one fastest"
        assert found == alone
