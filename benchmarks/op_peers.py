"""Other libraries' kernels for what ``verify`` does, each with a check of its result; they draw with other random numbers than ours.

Written against the public sources of FlashInfer 0.6.11, SGLang 0.5.23 and vLLM 0.22. None of them does all that ``verify`` does: its name says what
it leaves out. A function here raises ``ImportError`` where its library is not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from op_inputs import Window

from sjd2_kernels.processing import scaled_logits


@dataclass(frozen=True)
class Contender:
    """An implementation, and whether it gives what the definition gives; ``whole``: it does all that the op does."""

    name: str
    call: Callable[[], Any]
    agrees: Callable[[], bool]
    whole: bool = True


def flashinfer(window: Window) -> Contender:
    """From the same logits: guidance, top-k, softmax, accept and resample."""
    import flashinfer.sampling as peer

    processing, arguments = window.processing, window.arguments
    batch, slots, vocab = window.logits.shape
    _, q = window.probabilities()
    uncond_scale = processing.guidance_scale[:, None, None]

    def target() -> torch.Tensor:
        guided = window.uncond.float() + uncond_scale * (window.logits.float() - window.uncond.float())
        p = peer.top_k_renorm_probs(guided.flatten(0, 1).softmax(-1), processing.max_top_k)
        return p.view(batch, slots, vocab)

    def call() -> Any:
        p = target()
        # One more target row than drafts; the last is the bonus token, which Jacobi decoding does not have.
        return peer.chain_speculative_sampling(q[:, :-1].contiguous(), arguments["drafts"][:, :-1].int().contiguous(), p)

    name = "flashinfer 'chain_speculative_sampling' (no redraw of later slots)"
    return Contender(name, call, lambda: torch.allclose(target(), window.probabilities()[0], atol=1e-5))


def sglang(window: Window) -> Contender:
    """On ready probabilities: accept and resample only, so less work than ours."""
    from sglang.kernels.ops.speculative.reject_sampling import chain_speculative_sampling_triton as peer

    p, q = window.probabilities()
    drafts = window.arguments["drafts"]
    batch, slots = drafts.shape
    device = drafts.device
    coins = torch.rand(batch, slots + 1, device=device)
    final = coins[:, -1].contiguous()
    # A chain begins with a token that is not judged, and ends with a target row for a bonus token.
    candidates = torch.cat([torch.zeros_like(drafts[:, :1]), drafts], 1)
    target = torch.cat([p, p[:, -1:]], 1)
    index = torch.arange(batch * (slots + 1), device=device).view(batch, -1)
    accepted = torch.zeros(batch, dtype=torch.int32, device=device)
    predicts, accept_index = torch.zeros(batch * (slots + 1), dtype=torch.int32, device=device), torch.full_like(index, -1)

    def call() -> torch.Tensor:
        peer(
            predicts=predicts,
            accept_index=accept_index,
            accept_token_num=accepted,
            candidates=candidates,
            retrive_index=index,
            retrive_next_token=None,
            retrive_next_sibling=None,
            uniform_samples=coins,
            uniform_samples_for_final_sampling=final,
            target_probs=target,
            draft_probs=q,
            threshold_single=1.0,
            threshold_acc=1.0,
            deterministic=True,
        )
        return accepted

    def agrees() -> bool:
        picked = drafts[..., None]
        below = coins[:, :-1] * q.gather(-1, picked).squeeze(-1) < p.gather(-1, picked).squeeze(-1)
        return torch.equal(call().long(), below.long().cumprod(1).sum(1))

    return Contender("sglang 'chain_speculative_sampling_triton' (from ready probabilities)", call, agrees, whole=False)


def vllm(window: Window) -> Contender:
    """Top-k on ready guided logits: the search only, in place of ours."""
    from vllm.v1.sample.ops.topk_topp_triton import apply_top_k_top_p_triton as peer

    z = scaled_logits(window.logits, window.uncond, window.processing).flatten(0, 1)
    k = torch.full((len(z),), window.processing.max_top_k, dtype=torch.int32, device=z.device)

    def call() -> torch.Tensor:
        return peer(z.clone(), k, None)  # it works in place

    def agrees() -> bool:
        kept = call() > -torch.inf
        return bool((kept.sum(-1) >= window.processing.max_top_k).all())

    return Contender("vllm 'apply_top_k_top_p_triton' (search only)", call, agrees, whole=False)


def vllm_rejection(window: Window) -> Contender:
    """From ready logits, guided and cut to the top-k: softmax, accept and resample, for requests that all have a full window of drafts."""
    from vllm.v1.sample.rejection_sampler import rejection_sample as peer

    p, q = window.probabilities()
    drafts = window.arguments["drafts"]
    batch, slots = drafts.shape
    vocab, device = p.shape[-1], p.device
    logits, flat = p.log().view(-1, vocab), drafts.flatten().int()
    ends = torch.arange(1, batch + 1, dtype=torch.int32, device=device) * slots
    bonus = torch.zeros(batch, 1, dtype=torch.int32, device=device)
    settings = SimpleNamespace(all_greedy=False, all_random=True, temperature=torch.ones(batch, device=device), generators={})

    def call() -> torch.Tensor:
        return peer(
            draft_token_ids=flat,
            num_draft_tokens=[slots] * batch,
            max_spec_len=slots,
            cu_num_draft_tokens=ends,
            draft_probs=q.view(-1, vocab),
            target_logits=logits,
            bonus_token_ids=bonus,
            sampling_metadata=settings,
        )

    def agrees() -> bool:
        """Drafts up to the first rejection, which is where p was less than q, and there a token of the residual; -1 behind it."""
        found = call().long()[:, :-1]
        accepted = (found == drafts).long().cumprod(1).bool()
        over = accepted.all(1)
        at = accepted.sum(1).clamp(max=slots - 1)[:, None]
        ours, theirs = (one.gather(1, at[..., None].expand(-1, -1, vocab)).squeeze(1) for one in (p, q))
        token, draft = found.gather(1, at), drafts.gather(1, at)
        residual = (ours - theirs).gather(1, token.clamp(min=0)).squeeze(1) > 0
        doubted = (ours < theirs).gather(1, draft).squeeze(1)
        behind = torch.arange(slots, device=device) > at
        return bool((over | residual & doubted & (found == -1).where(behind, True).all(1)).all())

    return Contender("vllm 'rejection_sample' (from ready logits)", call, agrees, whole=False)


PEERS = (flashinfer, sglang, vllm, vllm_rejection)
