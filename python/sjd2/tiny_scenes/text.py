"""The caption tokenizer: a stock word-level tokenizer over the words of the caption grammar."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .prompts import COLOURS, GARMENTS

__all__ = ["BOI", "TEXT_VOCAB_SIZE", "build_text_tokenizer"]

PAD, BOS, BOI, UNK = "<pad>", "<s>", "<image>", "<unk>"

#: Image code ``c`` has the id ``TEXT_VOCAB_SIZE + c``; the ids between the last word and this are unused.
TEXT_VOCAB_SIZE = 64

_SPELLINGS = {
    r"\bgrey\b": "gray",
    r"\bt[ -]?shirts?\b": "t-shirt",
    r"\b(pants|trouser)\b": "trousers",
    r"\b(sweater|jumper)\b": "pullover",
    r"\bankle boots?\b|\bboots\b": "boot",
    r"\bsneakers\b": "sneaker",
    r"\bsandals\b": "sandal",
    r"\bhandbag\b": "bag",
}


def build_text_tokenizer() -> PreTrainedTokenizerFast:
    """A ``PreTrainedTokenizerFast``: lower case, a few spellings folded, ``<s> words… <image>`` around every caption."""
    words = [PAD, BOS, BOI, UNK, "a", "an", "on", "background", *COLOURS, *GARMENTS]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            *(normalizers.Replace(Regex(pattern), word) for pattern, word in _SPELLINGS.items()),
            normalizers.Replace(Regex(r"[.,;:!?\"']"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {BOI}", special_tokens=[(BOS, vocabulary[BOS]), (BOI, vocabulary[BOI])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        unk_token=UNK,
        extra_special_tokens={"boi_token": BOI},
        padding_side="left",
        model_max_length=32,
    )
