"""What several processes do for the tests: look from inside at a model whose weights they share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from sjd2 import load_adapter
from sjd2.decoding import resolve_preset
from sjd2.training import DraftDistillation, NextCleanTokenModel, NoiseCollator, Trajectory, TuningNoise, record, save_tuned
from sjd2.training.processes import leave_processes
from support.tuning import load_model


def look(folder: Path, processes: PartialState) -> None:
    """Before, while and after the weights are whole in each process."""
    adapter, teacher = load_model(folder, torch.float32), load_model(folder, torch.float32)
    teacher.model.requires_grad_(False)
    before = {name: value.clone() for name, value in adapter.model.state_dict().items()}
    tuned = DraftDistillation(adapter, TuningNoise(windows=1, window=4), teacher)
    tuned.shard(processes.device)
    for model in (adapter.model, teacher.model):
        parameters = list(model.parameters())
        assert all(isinstance(parameter, DTensor) for parameter in parameters)
        assert sum(parameter.to_local().numel() for parameter in parameters) * 2 == sum(value.numel() for value in before.values())

    def act(wrapper: NextCleanTokenModel) -> torch.Tensor:
        """More forwards in one process than in the other: with shares they would wait for each other."""
        weights = dict(wrapper.model.named_parameters())
        assert all(torch.equal(weights[name], value) and not isinstance(weights[name], DTensor) for name, value in before.items())
        recorded: list[Trajectory] = []
        for _ in range(1 + 2 * processes.process_index):
            recorded = record(wrapper.adapter, ["a bag"], resolve_preset("mc-sjd", window=4), [2.0], torch.tensor([7]))
        return recorded[0].tokens

    tokens = [wrapper.with_weights(lambda wrapper=wrapper: act(wrapper)) for wrapper in (tuned, tuned.teacher)]
    assert torch.equal(*tokens)
    assert all(isinstance(parameter, DTensor) for model in (adapter.model, teacher.model) for parameter in model.parameters())
    with pytest.raises(ValueError, match="adapter: expected whole weights, got shares"):
        save_tuned(adapter, tuned.noise, folder / "nothing")
    assert not (folder / "nothing").exists()
    state = tuned.state_dict()
    tuned.load_state_dict({name: before[name.removeprefix("model.")] + 1 for name in state})
    for name, value in tuned.state_dict().items():
        assert torch.equal(value.full_tensor(), before[name.removeprefix("model.")] + 1)


def gradients(folder: Path, device: torch.device | None) -> dict[str, torch.Tensor]:
    """The loss of one batch and its gradients by name; with a ``device``, of a model that is shared."""
    adapter = load_adapter(folder, device="cpu", dtype=torch.float64)
    adapter.model.requires_grad_(True)
    for part in adapter.frozen_parts():
        part.requires_grad_(False)
    noise = TuningNoise(windows=1, window=4)
    model, collator = NextCleanTokenModel(adapter, noise), NoiseCollator(adapter, noise)
    if device is not None:
        model.shard(device)
    forced = adapter.layout(1).forced[0]
    tokens = torch.where(forced < 0, torch.arange(len(forced)) % adapter.vocab_size, forced)
    loss = model(**collator([{"prompt": "a bag", "tokens": tokens, "seed": 7}]))["loss"]
    loss.backward()
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    if device is not None:
        assert all(isinstance(value, DTensor) for value in found.values())
        frozen = {id(value) for part in adapter.frozen_parts() for value in part.parameters()}
        assert all((id(value) in frozen) != isinstance(value, DTensor) for value in adapter.model.parameters())
        layers = [type(module).__name__ for module in model.modules() if isinstance(module, FSDPModule)]
        assert len(layers) == adapter.text_config.num_hidden_layers + 1, layers
    return {"loss": loss.detach(), **{name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in found.items()}}


def look_at_all(folder: Path, families: dict[str, Path]) -> None:
    """What one of several processes finds."""
    state = PartialState(cpu=True)
    look(folder, state)
    for family, model in families.items():
        apart, shared = gradients(model, None), gradients(model, state.device)
        assert apart.keys() == shared.keys(), family
        for name, value in apart.items():
            torch.testing.assert_close(shared[name], value, atol=1e-9, rtol=1e-7, msg=lambda text, place=f"{family}: {name}": f"{place}: {text}")
    print("as it should be", flush=True)
    leave_processes()
