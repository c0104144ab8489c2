"""A tensor-parallel plan of Transformers' own: two processes draw the tokens that one does."""

from __future__ import annotations

import json
import subprocess

import pytest

from support import planned
from support.runs import TORCHRUN
from support.tuning import write_model


@pytest.mark.filterwarnings("ignore:method. sjd2 feeds noise")
def test_two_processes_that_share_every_layer_draw_the_tokens_of_one(tmp_path):
    folder = write_model(tmp_path / "model")
    done = subprocess.run(
        [*TORCHRUN, "--redirects", "1", "--log-dir", str(tmp_path / "logs"), "--tee", "0", planned.__file__, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    logs = list((tmp_path / "logs").rglob("stdout.log"))
    assert len(logs) == 2
    alone = planned.tokens(folder)
    assert alone.pop("share") == 1
    for log in logs:
        found = json.loads(log.read_text())
        assert 0.5 < found.pop("share") < 0.6  # norms are whole everywhere, and in older plans embeddings
        assert found.pop("auto") == "window: expected a number with a tensor-parallel plan, got auto: each process would find another one fastest"
        assert found == alone
