"""What the door keeps of a model between calls: a second call builds and checks nothing, and nothing that has changed is kept."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

import sjd2
from sjd2.adapters import causal_lm, generic, probe, vqgan
from sjd2.adapters.kept import kept
from support.emu3 import emu3_processor
from support.families import family_adapter
from support.generic import generic_tokenizer
from support.llama import random_llama

IMAGE_FAMILIES = ["emu3", "glm_image", "janus", "anole", "lumina_mgpt", "generic"]


class Counted:
    """How often adapters were made, by the class that was made."""

    def __init__(self, monkeypatch):
        self.made = []
        original = causal_lm.SlicedCausalLM.__init__

        def init(adapter, *arguments, **named):
            self.made.append(type(adapter).__name__)
            original(adapter, *arguments, **named)

        monkeypatch.setattr(causal_lm.SlicedCausalLM, "__init__", init)


def call(adapter, processor=None):
    """Of the door, with what asks the family for an image."""
    mode = {"generation_mode": "image"} if adapter.name == "janus" else {}
    ids = torch.tensor(adapter.prompt_ids(["a cat"]))
    return sjd2.generate(
        adapter.model, ids, **mode, processor=processor or getattr(adapter, "processor", None) or adapter.text, do_sample=False, max_new_tokens=3
    )


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_a_second_call_makes_no_adapter(family, tmp_path, monkeypatch):
    adapter = family_adapter(family, tmp_path / family)
    if family == "emu3":
        adapter.grid = (2, 3)
    counted = Counted(monkeypatch)
    compared = []
    monkeypatch.setattr(generic, "check_logits", lambda *arguments: compared.append(arguments) or probe.check_logits(*arguments))
    first = call(adapter)
    assert len(counted.made) == 1
    assert torch.equal(call(adapter), first)
    assert len(counted.made) == 1
    assert len(compared) == (family == "generic")


def test_the_door_makes_no_image_tokenizer(tmp_path, monkeypatch):
    adapter = family_adapter("anole", tmp_path / "anole")
    monkeypatch.setattr(vqgan.VQGAN, "__init__", lambda *_: pytest.fail("an image tokenizer was made"))
    call(adapter)


@pytest.mark.parametrize("asked", ["words", "an image"])
def test_models_without_a_processor(asked, exact_pipeline, monkeypatch):
    counted = Counted(monkeypatch)
    model = random_llama() if asked == "words" else exact_pipeline.adapter.model
    for _ in range(3):
        sjd2.generate(model, torch.tensor([[1, 5, 2]]), max_new_tokens=3, do_sample=False)
    assert len(counted.made) <= 1


CHANGES = {
    "the processor": lambda adapter: call(adapter, emu3_processor()),
    "its tokenizer": lambda adapter: setattr(adapter.processor, "tokenizer", emu3_processor().tokenizer),
    "the configuration": lambda adapter: adapter.model.config.update({"sjd2": {"grid": [3, 3]}}),
    "a part of the configuration": lambda adapter: setattr(adapter.model.config.text_config, "max_position_embeddings", 400),
    "the vocabulary": lambda adapter: setattr(adapter.model.config, "vocabulary_map", dict(adapter.model.config.vocabulary_map)),
    "the dtype": lambda adapter: adapter.model.float(),
    "training": lambda adapter: adapter.model.train(),
    "ids of the generation": lambda adapter: setattr(adapter.model.generation_config, "pad_token_id", 7),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_made_anew(change, tmp_path, monkeypatch):
    adapter = family_adapter("emu3", tmp_path / "emu3")
    adapter.grid = (2, 3)
    call(adapter)
    counted = Counted(monkeypatch)
    CHANGES[change](adapter)
    call(adapter, emu3_processor() if change == "the processor" else None)
    assert "Emu3Adapter" in counted.made


def test_a_changed_attention_is_refused_at_the_next_call():
    model, ids = random_llama(), torch.tensor([[1, 5, 2]])
    sjd2.generate(model, ids, max_new_tokens=3, do_sample=False)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attn_implementation"):
        sjd2.generate(model, ids, max_new_tokens=3, do_sample=False)


def test_models_are_let_go(tmp_path):
    adapter = family_adapter("generic", tmp_path / "generic")
    call(adapter)
    model = weakref.ref(adapter.model)
    del adapter
    gc.collect()
    assert model() is None


def test_a_copy_of_a_model_is_another_model(tmp_path, monkeypatch):
    adapter = family_adapter("generic", tmp_path / "generic")
    call(adapter)
    other = copy.deepcopy(adapter.model)
    counted = Counted(monkeypatch)
    found = kept(generic.GenericAdapter, other, generic_tokenizer())
    assert found.model is other
    assert counted.made == ["GenericAdapter"]
