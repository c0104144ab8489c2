"""What tuning on own drafts calls drift is that of tokens that are drawn: nobody samples where a structural token stands."""

from __future__ import annotations

import torch

from sjd2.decoding import resolve_preset
from sjd2.training import DraftCollator, DraftDistillation, DraftSettings, TuningNoise, record
from support.families import family_adapter


def test_structural_tokens_do_not_count(tmp_path):
    adapter, teacher = (family_adapter("generic", tmp_path / name) for name in ("student", "teacher"))
    noise, settings = TuningNoise(windows=1, window=4, timesteps=False), DraftSettings(anchor=2.0, branch_anchor=0.5)
    trajectories = record(
        adapter, ["a cat", "two red dogs"], resolve_preset("mc-sjd", window=6), [1.0, 2.0], torch.arange(2), temperature=1.0, top_k=0
    )
    batch = DraftCollator(adapter, noise, settings)(trajectories)
    batch["levels"] = torch.zeros_like(batch["levels"])  # no random numbers in the forward
    with torch.no_grad():
        for weight in adapter.model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=weight.dtype)
        distillation = DraftDistillation(adapter, noise, teacher, settings)
        found = distillation(**batch)
        named = [batch[name] for name in ("prompt_ids", "prompt_mask", "tokens", "start", "drafts", "levels")]
        (now, _), before = distillation.window_logits(*named), distillation._image_logits(*named[:3])

    def divergence(logits, other):
        return (other.softmax(-1) * (other.log_softmax(-1) - logits.log_softmax(-1))).sum(-1)

    def guided(logits):
        scale = batch["guidance_scale"].view(-1, 1, 1)
        return logits[2:] + scale * (logits[:2] - logits[2:])

    drawn = adapter.layout(1).forced[0] < 0
    assert not drawn.all()
    per_token = divergence(guided(now), guided(before))
    torch.testing.assert_close(found["drift"].double(), per_token[:, drawn].mean(1), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(per_token.mean(1), per_token[:, drawn].mean(1), rtol=1e-2)
    free = DraftDistillation(adapter, noise, teacher, DraftSettings(anchor=0.0, branch_anchor=0.0))
    with torch.no_grad():
        anchors = 2.0 * per_token[:, drawn].mean() + 0.5 * divergence(now, before)[:, drawn].mean()
        torch.testing.assert_close((found["loss"] - free(**batch)["loss"]).double(), anchors, rtol=1e-4, atol=1e-6)
