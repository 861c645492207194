"""Holds one micro-batch of documents laid end to end, and gives it as padded rows to backends that need rows.

Notation: t tokens in the batch (padding included), n documents, p pairs, b rows and s columns of a padded batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch

IGNORE = -100


@dataclass(frozen=True)
class PaddedBatch:
    """The documents of a packed batch as rows, padded on the right.

    input_ids, position_ids, labels: int64 [b, s]; attention_mask: bool [b, s], True on real tokens (made from lengths,
    never from the pad id). labels are already shifted: labels[i, j] is to be predicted at column j.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor

    def unshifted_labels(self) -> torch.Tensor:
        """[b, s] labels as transformers' own loss wants them (it shifts by itself)."""
        shifted = torch.full_like(self.labels, IGNORE)
        shifted[:, 1:] = self.labels[:, :-1]
        return shifted


@dataclass(frozen=True)
class PackedBatch:
    """Documents one after another in one row of t tokens; attention goes through `cu_seqlens`, never through a mask.

    tokens, labels, positions: int64 [t]. labels[i] is the token to predict at i (already shifted), -100 = no loss.
    positions restart at 0 with each document. The tail that fills the row up to its fixed length forms documents of its
    own (pad tokens, no labels), so that every token belongs to a segment.
    cu_seqlens: int32, fixed length; starts of all segments, then t repeated. Segments 0 … n-1 are the real documents.
    max_seqlen: upper bound of a segment's length, the same for all batches of a loader.
    lengths: tokens of each real document, on the host. num_tokens: their sum. num_targets: labels that count.
    rows: id of each document's row, "file.jsonl:12"; both documents of a pair carry the same id.
    pairs: int64 [p, 2], document numbers of (chosen, rejected): documents alternate chosen, rejected …; None where
    there are no pairs. p = 0 in batches that only fill up an evaluation step.
    prompt_lengths: int64 [n], leading tokens of each document that are prompt (pairs and prompts only).
    margins: float32 [p], by how much chosen should win, where the data says so (else zeros).
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    num_targets: int
    lengths: tuple[int, ...]
    rows: tuple[str, ...]
    pairs: torch.Tensor | None = None
    prompt_lengths: torch.Tensor | None = None
    margins: torch.Tensor | None = None

    @property
    def num_documents(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def num_pairs(self) -> int:
        return 0 if self.pairs is None else self.pairs.shape[0]

    @property
    def last_tokens(self) -> torch.Tensor:
        """[n] index of each real document's last token in the packed row (where rewards are read)."""
        return self.cu_seqlens[1 : self.num_documents + 1].long() - 1

    @property
    def last(self) -> torch.Tensor:
        """[2·p] `last_tokens` under the name that pair losses use: chosen, rejected, chosen …"""
        return self.last_tokens

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: change(v) for k, v in tensors.items() if isinstance(v, torch.Tensor)})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Page-locked copy, from which `.to(device, non_blocking=True)` overlaps with compute."""
        return self._map(lambda tensor: tensor.pin_memory())

    def documents(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(tokens, labels) of each real document, each [length]."""
        total = self.num_tokens
        return list(
            zip(self.tokens[:total].split(self.lengths), self.labels[:total].split(self.lengths), strict=True)
            if self.lengths
            else []
        )

    def padded(self, pad_id: int, *, multiple_of: int = 1) -> PaddedBatch:
        """Rows [b, s], one document each; s is the longest document rounded up to `multiple_of`. No host sync."""
        longest = max(self.lengths, default=1)
        width = -(-longest // multiple_of) * multiple_of
        device = self.tokens.device
        shape = (self.num_documents, width)
        lengths = torch.tensor(self.lengths, device=device)
        mask = torch.arange(width, device=device)[None, :] < lengths[:, None]
        index = torch.tensor([0, *self.lengths[:-1]], device=device).cumsum(0)[:, None] + torch.arange(
            width, device=device
        )
        index = torch.where(mask, index, torch.zeros_like(index))
        return PaddedBatch(
            input_ids=torch.where(mask, self.tokens[index], torch.full(shape, pad_id, device=device)),
            attention_mask=mask,
            position_ids=torch.arange(width, device=device).expand(shape).contiguous(),
            labels=torch.where(mask, self.labels[index], torch.full(shape, IGNORE, device=device)),
        )


@dataclass(frozen=True)
class StepBatch:
    """What one rank needs for one optimizer step, with the step's totals over all ranks (known without communication).

    micro_batches: this rank's, the same number on every rank. num_targets, num_documents, num_pairs, num_tokens: summed
    over all ranks and micro-batches (num_targets is the denominator of the loss). step counts from 0 over the whole
    run; epoch is how many passes over the data are done after this step, as a fraction.
    """

    micro_batches: tuple[PackedBatch, ...]
    num_targets: int
    num_documents: int
    num_pairs: int
    num_tokens: int
    step: int
    epoch: float

    @property
    def rows(self) -> tuple[str, ...]:
        """Row ids of this rank's micro-batches, for messages about a bad step."""
        return tuple(row for batch in self.micro_batches for row in batch.rows)


@dataclass(frozen=True)
class PromptRow:
    """One PPO prompt: row id, the conversation up to the assistant's turn, its text as rendered, its tokens, and the
    row's other fields (a reward function may want a reference answer). tools: what the assistant may call."""

    row: str
    messages: tuple[dict[str, Any], ...]
    text: str
    tokens: tuple[int, ...]
    fields: dict[str, Any]
    tools: tuple[Any, ...] = ()
