"""What ``torchrun`` starts for the tests: looks from inside at a model whose weights two processes share.

torchrun --nproc-per-node 2 in_shares.py MODEL
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from torch.distributed.tensor import DTensor

from sjd2.decoding import resolve_preset
from sjd2.training import DraftDistillation, NextCleanTokenModel, Trajectory, TuningNoise, record
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
    state = tuned.state_dict()
    tuned.load_state_dict({name: before[name.removeprefix("model.")] + 1 for name in state})
    for name, value in tuned.state_dict().items():
        assert torch.equal(value.full_tensor(), before[name.removeprefix("model.")] + 1)


if __name__ == "__main__":
    state = PartialState(cpu=True)
    look(Path(sys.argv[1]), state)
    print("as it should be", flush=True)
    state.destroy_process_group()
