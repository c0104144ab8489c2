"""Logits processors and stopping criteria of Hugging Face inside a window.

Both are written for one token after the other. A slot's processors see, as their ``input_ids``, the prompt, the committed tokens and the drafts
before the slot: what they make of its logits is then a function of the tokens before it, and nothing that is exact about a method changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import PrefixConstrainedLogitsProcessor

from ..decoding.state import WindowState, slots
from .folding import Guidance, LogitsFunction

__all__ = ["SlotRules", "Vocabulary"]


class Vocabulary(Protocol):
    """How slice ids and ids of the model's vocabulary belong together."""

    def vocabulary_ids(self, tokens: torch.Tensor) -> torch.Tensor:
        """Ids of the vocabulary for slice ids."""
        ...

    def spread(self, logits: torch.Tensor) -> torch.Tensor:
        """Scores of the whole vocabulary, −inf where the slice has none, of those of the slice."""
        ...

    def cut(self, scores: torch.Tensor) -> torch.Tensor:
        """The slice's of scores of the whole vocabulary."""
        ...


class SlotRules:
    """See the module; implements ``decoding.Rules``.

    Args:
        prompt: int64 ``[B, P]``, padded on the left, as ``generate`` was given it; processors and criteria get everything on its device.
        vocabulary: of the tokens that are decoded.
        processors: applied to every slot, in this order.
        criteria: looked at for every committed token; a row ends at the first one for which they fire.
        end_ids: int64, ids of the vocabulary that end a row, on the model's device.

    Attributes:
        ends: tokens of each row that a criterion ended, by its number.
    """

    def __init__(
        self,
        prompt: torch.Tensor,
        vocabulary: Vocabulary,
        processors: Sequence[LogitsFunction | Guidance],
        criteria: Sequence[Any],
        end_ids: torch.Tensor,
    ):
        self.prompt, self.vocabulary, self.processors, self.criteria = prompt, vocabulary, processors, criteria
        self.end_ids = end_ids
        self.numbered = bool(processors or criteria)
        self.ends: dict[int, int] = {}
        self._seen = [0] * len(prompt)
        self._dead: dict[tuple[int, int], Exception | None] = {}
        #: Processors, by their place, that have raised: from then on they are given one row at a time.
        self._asked_by_row: set[int] = set()

    def _known(self, state: WindowState) -> torch.Tensor:
        """Prompt, committed tokens and drafts ``[B, P + N + W]`` in ids of the vocabulary; what lies behind the window is of no meaning."""
        known = state.tokens.scatter(1, slots(state.committed, state.drafts.shape[1]), state.drafts)
        return torch.cat([self.prompt, self.vocabulary.vocabulary_ids(known).to(self.prompt.device)], dim=1)

    def targets(self, logits: torch.Tensor, logits_uncond: torch.Tensor | None, state: WindowState) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See ``decoding.Rules``."""
        if not self.processors:
            return logits, logits_uncond
        known, window = self._known(state), logits.shape[1]
        starts, remaining, forced = state.committed.tolist(), state.remaining.tolist(), (state.forced >= 0).tolist()
        every = torch.arange(len(logits), device=logits.device)
        processed = logits.float()  # as `generate` hands them to its processors
        processed = processed.clone() if processed is logits else processed
        places: dict[int, list[int]] = {}
        for row, start in enumerate(starts):
            for slot in range(min(window, remaining[row])):
                if not forced[row][slot]:
                    places.setdefault(start + slot, []).append(row)
        self._dead = {}
        for place, looking in sorted(places.items()):
            dead = {row for row, _ in self._dead}  # their later slots stand on a prefix that is not to come about
            rows = [row for row in looking if row not in dead]
            if not rows:
                continue
            slot_of = (place - state.committed).clamp(0, window - 1)
            scores = self._scores(logits[every, slot_of])
            uncond = None if logits_uncond is None else self._scores(logits_uncond[every, slot_of])
            outcome, errors = self._outcome(known[:, : self.prompt.shape[1] + place], scores, uncond, rows)
            here = torch.tensor(rows, device=logits.device)
            outcome = self.vocabulary.cut(outcome)[rows].to(processed)
            possible = (outcome > -torch.inf).any(-1)
            for index, row in enumerate(rows if errors or not bool(possible.all()) else ()):
                if row in errors and starts[row] == place:
                    raise errors[row]
                if row in errors or (not possible[index] and starts[row] != place):
                    # A prefix that may never come about: any target serves, as long as the tokens before it go.
                    self._dead[row, place] = errors.get(row)
                    outcome[index] = processed[row, place - starts[row]]
            processed[here, slot_of[here]] = outcome
        return processed, logits_uncond if self._guides_later else None

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        return self.vocabulary.spread(logits.float()).to(self.prompt.device)

    def _outcome(
        self, ids: torch.Tensor, scores: torch.Tensor, uncond: torch.Tensor | None, rows: list[int]
    ) -> tuple[torch.Tensor, dict[int, Exception]]:
        """Scores ``[B, V]`` after all processors, of meaning for ``rows``, and what was raised at some of them.

        All rows go along, so that each keeps its number.
        """
        errors: dict[int, Exception] = {}
        for index, one in enumerate(self.processors):
            if isinstance(one, Guidance):
                scores = scores.log_softmax(-1) if uncond is None else one(scores, uncond)
                continue
            if type(one) is not PrefixConstrainedLogitsProcessor and index not in self._asked_by_row:
                try:
                    scores = one(ids, scores.clone())  # some work in place
                    continue
                except Exception:  # drafts made up a prefix that it does not know; which row's, it does not say
                    self._asked_by_row.add(index)
            scores = scores.clone()
            for row in rows:
                try:
                    if row not in errors:
                        scores[row] = _of_row(one, row, ids[row : row + 1], scores[row : row + 1].clone())[0]
                except Exception as error:
                    errors[row] = error
        return scores, errors

    @property
    def _guides_later(self) -> bool:
        return not any(isinstance(one, Guidance) for one in self.processors)

    def stopped(self, state: WindowState) -> torch.Tensor:
        """See ``decoding.Rules``.

        Raises:
            FloatingPointError: processors left no id after tokens that were committed; or what they raised there.
        """
        tokens = self.vocabulary.vocabulary_ids(state.tokens)
        final = torch.arange(tokens.shape[1], device=tokens.device) < state.committed[:, None]
        ends = torch.isin(tokens, self.end_ids) & final
        stopped = ends.any(1)
        if self.criteria:
            self._look(self._known(state), state.committed.tolist())
            for row in self.ends:
                stopped[row] = True
        if self._dead:
            self._raise_dead(state.committed.tolist(), torch.where(ends.any(1), ends.int().argmax(1) + 1, tokens.shape[1]).tolist())
        return stopped

    def _raise_dead(self, committed: list[int], ended: list[int]) -> None:
        """Raise for a committed token that no processor allowed; what stands behind a row's end does not count."""
        for (row, place), error in self._dead.items():
            if place < min(committed[row], ended[row], self.ends.get(row, committed[row])):
                raise error or FloatingPointError(
                    f"logits_processor: expected at least one id that may be drawn, got none for token {place} of row {row}"
                )

    def _look(self, known: torch.Tensor, committed: list[int]) -> None:
        """Ask the criteria about every token committed since the last look."""
        first = min(seen for row, seen in enumerate(self._seen) if row not in self.ends) if len(self.ends) < len(self._seen) else max(committed)
        for count in range(first + 1, max(committed) + 1):
            rows = [row for row, seen in enumerate(self._seen) if row not in self.ends and seen < count <= committed[row]]
            if not rows:
                continue
            ids = known[:, : self.prompt.shape[1] + count]
            fired = torch.zeros(len(known), dtype=torch.bool)
            for criterion in self.criteria:
                fired |= torch.as_tensor(criterion(ids, None)).cpu()
            for row in rows:
                if fired[row]:
                    self.ends[row] = count
        self._seen = committed


def _of_row(processor: LogitsFunction, row: int, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Scores ``[1, V]`` after ``processor``; a function of prefixes is told the row's number."""
    if type(processor) is not PrefixConstrainedLogitsProcessor:
        return processor(ids, scores)
    ask = processor._prefix_allowed_tokens_fn
    return PrefixConstrainedLogitsProcessor(lambda _, sent: ask(row, sent), 1)(ids, scores)
