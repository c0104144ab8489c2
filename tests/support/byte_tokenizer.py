"""A fast tokenizer of bytes with special tokens, so that tiny models read any prompt and digits stay digits."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def byte_tokenizer(special: Sequence[str], *, first: Sequence[str] = (), **named: object) -> PreTrainedTokenizerFast:
    """Ids 0 … 255 are bytes, then come ``special`` tokens in their order; ``named`` are a tokenizer's attributes (``bos_token`` …).

    Special tokens that come ``first`` have the ids before the bytes.
    """
    ordered = [*first, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(ordered)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*first, *special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
