"""Checkpoints as Transformers loads them: in several files, placed by a device map, quantised."""

import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Emu3ForConditionalGeneration, TorchAoConfig

import sjd2
from sjd2 import TextToImagePipeline
from sjd2.adapters.emu3 import Emu3Adapter
from support.emu3 import emu3_model, emu3_processor, save_emu3
from support.glm_image import write_model

PROMPTS = ["a cat", "two red dogs in the snow"]
SIZE = {"height": 24, "width": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_emu3(tmp_path_factory.mktemp("emu3"))


def tokens(folder, method="mc-sjd", **options):
    pipeline = TextToImagePipeline.from_pretrained(folder, **options)
    return pipeline(PROMPTS, method=method, seed=1, **SIZE).tokens


def test_a_checkpoint_in_several_files(folder, tmp_path):
    processor = emu3_processor()
    emu3_model(processor).save_pretrained(tmp_path, max_shard_size="200KB")
    processor.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(tokens(tmp_path, device="cpu", dtype=torch.float64), tokens(folder, device="cpu", dtype=torch.float64))


def test_a_device_map_decides_where_the_model_lies(folder):
    placed = tokens(folder, dtype=torch.float64, device_map={"": "cpu"})
    assert torch.equal(placed, tokens(folder, device="cpu", dtype=torch.float64))


@pytest.mark.parametrize("method", ["mc-sjd", "sjd2"])
@pytest.mark.filterwarnings("ignore:method. sjd2 feeds noise")
def test_weights_left_on_the_disk(folder, tmp_path, method):
    places = {"model.text_model.embed_tokens": "disk", "model.text_model.layers.0": "cpu", "model.text_model.layers.1": "disk"}
    places |= {"model.text_model.norm": "cpu", "model.text_model.rotary_emb": "cpu", "model.vqmodel": "cpu", "lm_head": "disk"}
    offloaded = tokens(folder, method, dtype=torch.float64, device_map=places, offload_folder=tmp_path)
    assert torch.equal(offloaded, tokens(folder, method, device="cpu", dtype=torch.float64))


def test_a_model_that_computes_on_several_devices_is_refused_at_every_door(folder, monkeypatch):
    message = r"device_map: expected a model that computes on one device, got 0, 1: one length counts .* by tp_plan under torchrun"
    places = {"model.text_model": 0, "lm_head": 1, "model.vqmodel": "cpu"}
    adapter = TextToImagePipeline.from_pretrained(folder, device="cpu", dtype=torch.float64).adapter
    adapter.model.hf_device_map = places
    with pytest.raises(ValueError, match=message):
        Emu3Adapter(adapter.model, adapter.processor)
    with pytest.raises(ValueError, match=message):
        sjd2.generate(adapter.model, input_ids=torch.tensor([[1, 2, 3]]), max_new_tokens=4)
    monkeypatch.setattr(Emu3ForConditionalGeneration, "hf_device_map", places, raising=False)  # as the class leaves it on what it loads
    with pytest.raises(ValueError, match=message):
        TextToImagePipeline.from_pretrained(folder, device_map={"": "cpu"})


def test_a_dtype_as_stored(folder):
    assert TextToImagePipeline.from_pretrained(folder, device="cpu", dtype="auto").adapter.dtype == torch.float64


def test_a_quantised_model_is_driven_as_it_is(folder):
    """Weights in eight bits are tensors of another kind; drafts change nothing in what the quantised model says."""
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    pipeline = TextToImagePipeline.from_pretrained(folder, device="cpu", dtype=torch.float32, quantization_config=config)
    layer = pipeline.adapter.model.model.text_model.layers[0].self_attn.q_proj
    assert type(layer.weight) is not torch.nn.Parameter
    greedy = {method: pipeline(PROMPTS, method=method, temperature=0.0, **SIZE) for method in ("ar", "jacobi", "mc-sjd")}
    assert torch.equal(greedy["jacobi"].tokens, greedy["ar"].tokens)
    assert torch.equal(greedy["mc-sjd"].tokens, greedy["ar"].tokens)
    assert greedy["jacobi"].images[0].size == (SIZE["width"], SIZE["height"])


def test_a_head_that_is_no_plain_linear_layer_is_called_as_it_is(folder):
    """Quantised and wrapped heads know best how to multiply: all their rows, of which the image's are taken."""

    class Wrapped(torch.nn.Module):
        def __init__(self, inner: torch.nn.Linear):
            super().__init__()
            self.inner = inner

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return 2 * self.inner(hidden)

    pipeline = TextToImagePipeline.from_pretrained(folder, device="cpu", dtype=torch.float64)
    adapter = pipeline.adapter
    hidden = torch.randn(1, 3, 32, dtype=torch.float64)
    plain = adapter._head(hidden)
    adapter.model.lm_head = Wrapped(adapter.model.lm_head)
    assert torch.allclose(adapter._head(hidden), 2 * plain)


def test_an_option_that_from_pretrained_does_not_know_is_named(folder):
    with pytest.raises(ValueError, match=r"cannot be loaded: .*no_such_option"):
        TextToImagePipeline.from_pretrained(folder, device="cpu", no_such_option=1)


def test_the_dtype_by_its_older_name(folder):
    assert TextToImagePipeline.from_pretrained(folder, device="cpu", torch_dtype=torch.float64).adapter.dtype == torch.float64


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with repositories by name, from which only the files asked for are had; and what it was asked."""
    repositories, asked = {}, []

    def snapshot_download(name, *, allow_patterns=None, **options):
        asked.append({"name": name, **options})
        place = tmp_path / "cache" / name
        for file in filter(Path.is_file, repositories[name].rglob("*")):
            inner = file.relative_to(repositories[name])
            if allow_patterns is None or any(fnmatch(str(inner), pattern) for pattern in allow_patterns):
                (place / inner).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, place / inner)
        return str(place)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return SimpleNamespace(repositories=repositories, asked=asked, cache=tmp_path / "cache")


def test_what_chooses_a_version_on_the_hub_reaches_the_hub(folder, hub):
    hub.repositories["someone/emu3"] = folder
    TextToImagePipeline.from_pretrained("someone/emu3", device="cpu", revision="v2", token="secret", cache_dir="/somewhere")
    assert hub.asked == [{"name": "someone/emu3", "revision": "v2", "token": "secret", "cache_dir": "/somewhere"}] * 2
    assert sorted(path.name for path in (hub.cache / "someone/emu3").iterdir()) == sorted(path.name for path in folder.iterdir())


def test_of_a_pipeline_of_diffusers_only_what_is_read_is_fetched(hub, tmp_path):
    whole = tmp_path / "whole"
    write_model(whole / "vision_language_encoder")
    (whole / "processor").mkdir()
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.move(whole / "vision_language_encoder" / name, whole / "processor" / name)
    (whole / "model_index.json").write_text("{}")
    for part in ("transformer", "vae", "text_encoder"):
        (whole / part).mkdir()
        (whole / part / "model.safetensors").write_bytes(b"tens of gigabytes")
    hub.repositories["someone/glm"] = whole
    adapter = TextToImagePipeline.from_pretrained("someone/glm", device="cpu").adapter
    assert adapter.name == "glm_image"
    assert sorted(path.name for path in (hub.cache / "someone/glm").iterdir()) == ["model_index.json", "processor", "vision_language_encoder"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": None}, "prompt: expected one text or several, got None"),
        ({"negative_prompt": ["blurry"]}, r"negative_prompt: expected one text for all prompts, got \['blurry'\]"),
    ],
)
def test_prompts_of_another_kind_are_named(folder, settings, message):
    pipeline = TextToImagePipeline.from_pretrained(folder, device="cpu")
    with pytest.raises(ValueError, match=message):
        pipeline(**{"prompt": "a cat", **settings})
