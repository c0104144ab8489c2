"""A model small enough to enumerate: p(next token | prefix) stands in a random table, so the exact joint law is known.

It is driven by the real loop through the real cache: its "keys" are the tokens it was fed, and what it predicts depends on the
valid columns of its row and on nothing else. A wrong rollback therefore gives a wrong law. Noise that it is fed is read as some
token or other, and a timestep token that an input sees turns its prediction round: both mislead every later slot.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch

from sjd2.cache import RaggedCache
from sjd2.decoding import Prompt

_MARKER = 1000.0  # + table number: the last prompt input, which predicts the first token
_FILLER = -1.0


class TableModel:
    """``DecodableModel`` with ``tables`` random AR laws over ``vocab_size`` ids and up to ``count`` tokens."""

    position_limit = attention_shape = None
    column_bytes = input_bytes = item_bytes = 8

    def __init__(self, vocab_size: int, count: int, tables: int, *, seed: int = 0, sharpness: float = 1.5, device: str = "cpu"):
        self.vocab_size, self.count = vocab_size, count
        prefixes = sum(vocab_size**n for n in range(count))
        generator = torch.Generator().manual_seed(seed)
        self.device = torch.device(device)
        self.logits = sharpness * torch.randn(tables, prefixes, vocab_size, generator=generator, dtype=torch.float64)
        # A GPU gets float32, which is what the fused ops take.
        self._table = self.logits.to(self.device, torch.float64 if self.device.type == "cpu" else torch.float32)
        self.offsets = torch.tensor([sum(vocab_size**m for m in range(n)) for n in range(count)])
        self._offsets = self.offsets.to(self.device)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.to(torch.float64)[..., None]

    def image_embeddings(self) -> torch.Tensor:
        return self.embed(torch.arange(self.vocab_size, device=self.device))

    def new_cache(self, rows: int, capacity: int, kind: type[RaggedCache] = RaggedCache) -> RaggedCache:
        return kind(1, rows, capacity, device=self.device)

    def forward(self, inputs_embeds: torch.Tensor, cache: RaggedCache, *, outputs: slice = slice(None)) -> torch.Tensor:
        return self._logits(inputs_embeds, cache)[:, outputs]

    def _logits(self, inputs_embeds: torch.Tensor, cache: RaggedCache) -> torch.Tensor:
        fed = inputs_embeds[:, None]
        positions = cache.positions(inputs_embeds.shape[1])
        columns, places = cache.layers[0].update(fed, positions[:, None, :, None].to(fed.dtype))
        values = columns[:, 0, :, 0]
        if cache.levels is not None:
            return self._by_mask(values, places[:, 0, :, 0].long(), cache.mask(inputs_embeds.shape[1])[:, 0], positions)
        marked = values >= _MARKER
        marker = marked.long().argmax(1)
        # Rows whose marker is still to come are in their prompt: nobody looks at what they predict.
        table = (values.gather(1, marker[:, None]).squeeze(1) - _MARKER).long().clamp(min=0)
        place = torch.arange(values.shape[1], device=self.device) - marker[:, None] - 1
        powers = torch.where((place >= 0) & (place < self.count), float(self.vocab_size) ** place.clamp(0, self.count), 0.0)
        codes = (values.round().clamp(0, self.vocab_size - 1) * powers).cumsum(1)
        seen = (positions - marker[:, None]).clamp(max=self.count - 1)
        code = codes.gather(1, (marker[:, None] + seen).clamp(max=values.shape[1] - 1)).long()
        return self._table[table[:, None], self._offsets[seen] + code.clamp(min=0)]

    def _by_mask(self, values: torch.Tensor, places: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The same prediction from what each input ``[R, T]`` sees of the columns ``[R, S]``, in no order."""
        marker = (values >= _MARKER).long().argmax(1)
        table = (values.gather(1, marker[:, None]).squeeze(1) - _MARKER).long()
        place = (places - marker[:, None] - 1)[:, None]  # of the image token that a column holds
        token = values.round().clamp(0, self.vocab_size - 1)[:, None]
        held = mask & (place >= 0) & (place < positions[..., None] - marker[:, None, None]) & (place < self.count)
        code = torch.where(held, token * float(self.vocab_size) ** place.clamp(0, self.count), 0.0).sum(-1)
        seen = (positions - marker[:, None]).clamp(0, self.count - 1)
        logits = self._table[table[:, None], self._offsets[seen] + (code.long() % self.vocab_size**seen)]
        # A timestep token is the only input at a position of the prompt that is fed behind it.
        behind = torch.arange(values.shape[1], device=self.device) > marker[:, None]
        timestep = (mask & (behind & (places == 0))[:, None]).any(-1)
        return torch.where(timestep[..., None], logits.flip(-1), logits)

    def prompt(self, tables: torch.Tensor, lengths: torch.Tensor) -> Prompt:
        """Prompts of ``lengths`` inputs that select ``tables``, one per model row."""
        width = int(lengths.max())
        place = torch.arange(width)
        embeds = torch.where(place == lengths[:, None] - 1, _MARKER + tables[:, None].double(), _FILLER)
        return Prompt(embeds[..., None].to(self.device), lengths.to(self.device))


def target(logits: np.ndarray, uncond: np.ndarray | None, *, guidance_scale=1.0, temperature=1.0, top_k=0, top_p=1.0, allowed=None) -> np.ndarray:
    """The target distribution of one row, written the slow and obvious way."""
    z = logits.astype(float)
    if uncond is not None and guidance_scale != 1:
        z = uncond + guidance_scale * (z - uncond)
    if allowed is not None:
        z = np.where(allowed, z, -np.inf)
    if temperature == 0:
        return np.eye(len(z))[np.argmax(z)]
    z = z / temperature
    order = sorted(range(len(z)), key=lambda i: (-z[i], i))
    keep = [i for i in order if z[i] > -np.inf][: top_k or None]
    weight = np.exp(z - z.max())
    if top_p < 1:
        total, mass, nucleus = weight[keep].sum(), 0.0, []
        for i in keep:
            if mass >= top_p * total:
                break
            nucleus.append(i)
            mass += weight[i]
        keep = nucleus
    p = np.zeros_like(weight)
    p[keep] = weight[keep]
    return p / p.sum()


def exact_joint(model: TableModel, table: int, uncond_table: int | None, length: int, forced: list[int], end_id: int, **processing) -> np.ndarray:
    """Probability of every token sequence of ``count`` tokens (0 past the end), indexed by its base-V code."""

    @functools.cache  # sequences share their prefixes
    def after(row: int) -> np.ndarray:
        uncond = None if uncond_table is None else model.logits[uncond_table, row].numpy()
        return target(model.logits[table, row].numpy(), uncond, **processing)

    joint, offsets = np.zeros(model.vocab_size**model.count), model.offsets.tolist()
    for sequence in itertools.product(range(model.vocab_size), repeat=length):
        probability, code, prefix_code, ended = 1.0, 0, 0, False
        for n, token in enumerate(sequence):
            if ended:
                probability *= token == 0  # one representative for all that could follow
                continue
            if forced[n] >= 0:
                probability *= token == forced[n]
            else:
                probability *= after(offsets[n] + prefix_code)[token]
            prefix_code += token * model.vocab_size**n
            code += token * model.vocab_size**n
            ended = token == end_id
        joint[code] += probability
    return joint
