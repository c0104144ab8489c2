"""``sjd2 eval`` on a small benchmark of the embedded model."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from PIL import Image

from sjd2.bench import BenchSettings, Store, run_bench, variants_of
from sjd2.cli import main as sjd2
from sjd2.evaluation import Measures, evaluate, folder_name
from support.clip import save_clip
from support.generic import FIELDS, generic_pipeline, save_generic

PROMPTS = ("a red coat on a yellow background", "a blue bag on a white background")


@pytest.fixture(scope="module")
def benchmark_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    command = ["bench", "--prompts", str(folder / "prompts.txt"), "--methods", "jacobi", "mc-sjd", "--window", "32", "--device", "cpu"]
    assert sjd2([*command, "--no-plots", "--quiet", "-o", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def place(benchmark_folder, tmp_path, monkeypatch):
    """A copy of the benchmark beside references and metadata."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(benchmark_folder, tmp_path / "run")
    for index, colour in enumerate(("red", "blue", "grey")):
        (tmp_path / "references").mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), colour).save(tmp_path / "references" / f"{index}.jpg")
    rows = [{"tag": "colors", "include": [], "prompt": prompt} for prompt in PROMPTS]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def main(*arguments: str) -> int:
    return sjd2(["eval", "run", "--device", "cpu", *arguments])


def test_pictures_are_measured_by_method(place, capsys):
    pytest.importorskip("torchmetrics", reason="needs the eval extra")
    clip = str(save_clip(place / "clip"))
    assert main("--clip", clip, "--fid", "references", "--fid-features", clip, "--pictures", "pictures", "--batch-size", "1") == 0
    out = capsys.readouterr().out
    assert "CLIP-Score" in out
    assert "GenEval" not in out
    rows = json.loads((place / "run" / "eval.json").read_text())["rows"]
    assert [(row["method"], row["pictures"]) for row in rows] == [("jacobi", 2), ("mc-sjd", 2)]
    assert all(row["clip_score"]["low"] <= row["clip_score"]["value"] <= row["clip_score"]["high"] for row in rows)
    assert all(row["frechet_distance"] > 0 for row in rows)
    assert rows[0]["frechet_distance"] != rows[1]["frechet_distance"]
    cells = Store(place / "run").cells()
    for index, name in enumerate(("jacobi", "mc-sjd")):
        assert sorted(path.name for path in (place / "pictures" / name).iterdir()) == ["000000.png", "000001.png"]
        assert Image.open(place / "pictures" / name / "000001.png").size == (32, 32)
        assert {cell["first"] for cell in cells if cell["variant"] == index} == {0, 1}
    first, other = (Image.open(place / "pictures" / "mc-sjd" / f"00000{index}.png") for index in (0, 1))
    assert first.getpixel((0, 0))[2] < 120 < other.getpixel((0, 0))[2]  # a yellow background and a white one


def test_geneval_is_written_first_and_read_when_it_is_there(place, capsys):
    assert main("--geneval", "metadata.jsonl", "geneval") == 0
    assert "GenEval" not in capsys.readouterr().out
    assert (place / "geneval" / "mc-sjd" / "00001" / "samples" / "0000.png").is_file()
    (place / "geneval" / "mc-sjd.jsonl").write_text('{"tag": "colors", "correct": true}\n{"tag": "colors", "correct": false}\n')
    assert main("--geneval", "metadata.jsonl", "geneval") == 0
    assert "0.500" in capsys.readouterr().out
    rows = json.loads((place / "run" / "eval.json").read_text())["rows"]
    assert [row.get("geneval") for row in rows] == [None, {"overall": 0.5, "colors": 0.5}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--clip, --fid, --geneval, --pictures: expected at least one of them, got none"),
        (("--pictures", "p", "--batch-size", "0"), "--batch-size: expected a whole number >= 1, got 0"),
        (("--geneval", "nowhere.jsonl", "g"), "--geneval: nowhere.jsonl is no file"),
        (("--pictures", "p", "--model", "other"), "model: expected one that makes pictures of tokens here: give the model's own decoder"),
        (("--pictures", "p", "--model", "/nowhere/at/all"), "model: expected a folder or a hub name"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(place, capsys, arguments, message):
    save_generic(place / "other", {"adapter": "generic", **FIELDS})
    before = sorted(place.rglob("*"))
    capsys.readouterr()
    assert main(*arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert sorted(place.rglob("*")) == before


def test_a_model_without_an_entry_in_its_configuration_is_told_its_adapter(place, capsys):
    save_generic(place / "plain")
    entries = [f"{name}={json.dumps(value)}" for name, value in FIELDS.items()]
    told = ["--model", "plain", "--adapter", "generic", *(word for entry in entries for word in ("--adapter-option", entry)), "--device", "cpu"]
    (place / "prompts.txt").write_text("a fox")
    assert sjd2(["bench", *told, "--prompts", "prompts.txt", "--methods", "sjd", "-o", "told", "--no-plots", "--quiet"]) == 0
    capsys.readouterr()
    assert sjd2(["eval", "told", *told, "--pictures", "p"]) == 1
    assert "model: expected one that makes pictures of tokens here" in capsys.readouterr().err


def test_a_folder_that_is_no_benchmark_is_named(tmp_path, capsys):
    assert sjd2(["eval", str(tmp_path), "--pictures", "p"]) == 1
    assert "expected a folder that `sjd2 bench -o` made, found no settings.json in it" in capsys.readouterr().err


def test_without_torchmetrics_the_extra_is_named(place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    assert main("--clip", "anything") == 1
    assert 'pip install "sjd2-kernels[eval]"' in capsys.readouterr().err


def test_other_weights_and_too_few_pictures_are_refused(tmp_path):
    pipeline = generic_pipeline()
    variants = variants_of(["sjd"], guidance_scales=[1.0], temperatures=[1.0], top_k=0, top_p=1.0)
    run_bench(pipeline, BenchSettings(("a fox",), tuple(variants)), tmp_path)
    pictures = Measures(pictures=tmp_path / "pictures")
    assert evaluate(pipeline.adapter, Store(tmp_path), pictures)[0]["pictures"] == 1
    other = generic_pipeline()
    other.adapter.model.lm_head.weight.data += 1
    with pytest.raises(ValueError, match=r"model: expected the one that the pictures were drawn by .weights"):
        evaluate(other.adapter, Store(tmp_path), pictures)
    with pytest.raises(ValueError, match="--fid: expected at least 2 pictures of each method, got one of sjd"):
        evaluate(pipeline.adapter, Store(tmp_path), Measures(fid=object(), references=tmp_path))
    with pytest.raises(ValueError, match="references: expected a folder of pictures if there is a distance to measure"):
        Measures(references=tmp_path)


def test_names_of_folders():
    assert folder_name("mc-sjd, W = 16, guidance 2.5, T = 0.9") == "mc-sjd-W16-guidance2.5-T0.9"


def test_help_says_what_has_to_be_fetched(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main("--help")
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for part in ("what needs downloaded weights", "evaluate_images.py", "captions_val2014.json", "--inception-weights"):
        assert part in text
