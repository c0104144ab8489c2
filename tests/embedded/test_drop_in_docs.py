"""What docs/drop_in.md prints is what runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import sjd2
from support.chameleon import save_chameleon
from support.emu3 import save_emu3


def test_python_blocks_run_as_printed(request, tmp_path, monkeypatch, capsys):
    text = (Path(request.config.rootpath) / "docs" / "drop_in.md").read_text()
    monkeypatch.chdir(tmp_path)
    for owner in ("BAAI", "leloy"):
        (tmp_path / owner).mkdir()
    save_emu3(tmp_path / "BAAI" / "Emu3-Gen-hf")  # a model of that class, with images of 4 × 4 tokens
    save_chameleon(tmp_path / "leloy" / "Anole-7b-v0.1-hf")  # 4 × 4, too
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 6
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block.replace("518_400", "1_280"), "drop_in.md", "exec"), names)
    assert names["pixels"].shape == (1, 3, 32, 32)
    assert names["image"].shape == (1, 13 + 16)  # begin-of-text, ten letters, end of turn, begin-of-image
    printed = re.findall(r"256 tokens in (\d+) forwards", capsys.readouterr().out)
    assert len(printed) == 2
    assert all(int(forwards) < 256 for forwards in printed)


def test_every_argument_named_is_one(request):
    text = (Path(request.config.rootpath) / "docs" / "drop_in.md").read_text()
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", text.split("## Arguments")[1], flags=re.MULTILINE)))
    own = set(inspect.signature(sjd2.generate).parameters) - {
        "model", "input_ids", "logits_processor", "stopping_criteria", "generation_config", "model_kwargs",
    }  # fmt: skip
    assert set(named) == own
