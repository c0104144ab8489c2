"""Whether driving a model by its backbone and its head gives the logits that its own forward gives, for models of which nothing else is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .causal_lm import SlicedCausalLM

__all__ = ["check_logits"]

#: Ids that are fed at least (what is given is repeated), and at most.
_SHORTEST, _LONGEST = 6, 64


def check_logits(adapter: SlicedCausalLM, ids: Sequence[int]) -> bool:
    """Compare the decoder's forward, over two rows of different lengths, with the model's own.

    Args:
        adapter: of the model.
        ids: of its vocabulary, such as a prompt.

    Returns:
        Whether they were compared: a model in training draws dropout, and one on the meta device has nothing to compare.

    Raises:
        ValueError: the logits differ by more than rounding: the forward does something to them (Chameleon's masks image tokens), or the backbone
            does not go by positions and mask, or takes none.
    """
    model = adapter.model
    if model.training or adapter.device.type == "meta":
        return False
    count = min(max(len(ids), _SHORTEST), _LONGEST)
    row = torch.tensor([*ids] * -(-count // len(ids)), device=adapter.device)[:count]
    first, second, window = count - 3, count - 5, 3
    images = slice(adapter.image_id_start, adapter.image_id_start + adapter.vocab_size)
    with torch.no_grad():
        own = model(input_ids=row[None], use_cache=False).logits[0, :, images].to(adapter.device)
        expected = torch.stack([own[start : start + window] for start in (first, second)])
        cache = adapter.new_cache(2, first + 2 * window)
        try:
            adapter.forward(adapter.embed_ids(row[:first].expand(2, -1)), cache)
            cache.commit(torch.tensor([first, second], device=adapter.device))
            ours = adapter.forward(adapter.embed_ids(torch.stack([row[start : start + window] for start in (first, second)])), cache)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a forward does with masks and positions that it does not expect
            raise ValueError(
                f"model: expected a backbone that takes positions and a mask for every row, got {type(model.base_model).__name__}, which fails with "
                f"{type(error).__name__}: {error}"
            ) from error
    expected = expected.to(torch.promote_types(torch.float32, expected.dtype))
    distance, size = (ours - expected).abs().max(), expected.abs().max()
    if not distance <= torch.finfo(adapter.dtype).eps ** 0.5 * size:
        raise ValueError(
            f"model: expected logits that are its head's product with what its backbone gives, but {type(model).__name__}.forward gives others: up "
            f"to {float(distance):.2g} away, at a size of {float(size):.2g}"
        )
    return True
