"""The fixed tensors of generation: a key/value cache and the state of every slot, all in place, fit for a graph.

A slot holds one running request. Its tokens, lengths, options and results live on the device; one more slot than
asked for is the padding of batches. `finished` and `stopped` are int8 so that kernels may write them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.config.generation import MAX_STOP_IDS, GenerationConfig
from training.rollout import kernels_sampling
from training.rollout.families import Family
from training.rollout.sampling import SamplingRows, draw, filter_logits, penalise_repetition, scale_logits

TOP_LOGPROBS = 20
RECENT = 64
"""Most steps between two snapshots."""


@dataclass(frozen=True)
class Request:
    """One prompt in one slot. `stop_ids` are final (no default behind them), `seed` any 64-bit integer."""

    slot: int
    prompt: Sequence[int]
    config: GenerationConfig
    stop_ids: Sequence[int]
    seed: int


@dataclass(frozen=True)
class Features:
    """What a step must do beyond plain sampling; part of a graph's identity."""

    filtered: bool = False
    penalised: bool = False
    top: bool = False


class SlotTable:
    """Tensors [slots + 1, …] on one device; see the module's docstring."""

    def __init__(
        self, family: Family, slots: int, max_length: int, dtype: torch.dtype, device: torch.device, *,
        unscaled: bool = False,
    ) -> None:  # fmt: skip
        """unscaled: log-probs are the model's own, not those of the distribution at the request's temperature."""
        self.slots, self.max_length, self.device, self.unscaled = slots, max_length, device, unscaled
        rows, width = slots + 1, max_length + 1  # one scratch column: where finished rows "write"
        shape = (len(family.blocks), rows, family.kv_heads, max_length, family.head_size)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.tokens = torch.zeros((rows, width), dtype=torch.int64, device=device)
        self.logprobs = torch.zeros((rows, width), dtype=torch.float32, device=device)
        self.lengths = torch.ones(rows, dtype=torch.int64, device=device)
        self.limits = torch.ones(rows, dtype=torch.int64, device=device)
        self.finished = torch.ones(rows, dtype=torch.int8, device=device)
        self.stopped = torch.zeros(rows, dtype=torch.int8, device=device)
        self.temperature = torch.zeros(rows, dtype=torch.float32, device=device)
        self.top_k = torch.zeros(rows, dtype=torch.int64, device=device)
        self.top_p = torch.ones(rows, dtype=torch.float32, device=device)
        self.min_p = torch.zeros(rows, dtype=torch.float32, device=device)
        self.penalty = torch.ones(rows, dtype=torch.float32, device=device)
        self.seeds = torch.zeros(rows, dtype=torch.int64, device=device)
        self.stop_ids = torch.full((rows, MAX_STOP_IDS), -1, dtype=torch.int64, device=device)
        self.top_ids: Tensor | None = None
        self.top_scores: Tensor | None = None

    @property
    def padding(self) -> int:
        """The slot that padding rows name; it is always finished."""
        return self.slots

    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in vars(self).values() if isinstance(t, Tensor))

    def keep_top(self) -> None:
        """Make room for the most likely tokens of every step."""
        if self.top_ids is None:
            shape = (*self.tokens.shape, TOP_LOGPROBS)
            self.top_ids = torch.zeros(shape, dtype=torch.int32, device=self.device)
            self.top_scores = torch.zeros(shape, dtype=torch.float32, device=self.device)

    def admit(self, requests: Sequence[Request]) -> None:
        """Write the prompts and options of new requests into their slots."""
        head = 5 + MAX_STOP_IDS
        longest = max(len(request.prompt) for request in requests)
        integers = np.zeros((len(requests), head + longest), dtype=np.int64)
        floats = np.empty((len(requests), 4), dtype=np.float32)
        for row, request in enumerate(requests):
            config, length = request.config, len(request.prompt)
            stops = [*request.stop_ids, *[-1] * (MAX_STOP_IDS - len(request.stop_ids))]
            limit = min(length + config.max_new_tokens, self.max_length)
            seed = (request.seed + 2**63) % 2**64 - 2**63
            integers[row, :head] = (request.slot, length, limit, config.top_k, seed, *stops)
            integers[row, head : head + length] = request.prompt
            floats[row] = (config.temperature, config.top_p, config.min_p, config.repetition_penalty)
        whole, parts = self.to_device(torch.from_numpy(integers)), self.to_device(torch.from_numpy(floats))
        at = whole[:, 0]
        self.lengths[at], self.limits[at], self.top_k[at], self.seeds[at] = whole[:, 1:5].unbind(1)
        self.stop_ids[at] = whole[:, 5:head]
        self.tokens[at, :longest] = whole[:, head:]
        self.temperature[at], self.top_p[at], self.min_p[at], self.penalty[at] = parts.unbind(1)
        self.stopped[at] = 0
        self.finished[at] = 0

    def stop(self, slots: Sequence[int]) -> None:
        """Finish these slots now: their tokens stay, nothing is added."""
        if slots:
            self.finished[self.to_device(torch.tensor(list(slots)))] = 1

    def to_device(self, tensor: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def sample(self, logits: Tensor, slots: Tensor, features: Features) -> None:
        """Draw the next token of each row from logits [n, V] and record it in the row's slot."""
        choice = None
        if logits.is_cuda and kernels_sampling.AVAILABLE:
            if features.filtered or features.penalised:
                choice = self.choice(logits, slots, features)
            if features.top:
                self.record_top(logits, slots)
            kernels_sampling.draw_and_commit(logits, choice, slots, self)
            return
        if features.top:
            self.record_top(logits, slots)
        rows = SamplingRows(
            self.temperature[slots], self.top_k[slots], self.top_p[slots], self.min_p[slots], self.penalty[slots],
            self.seeds[slots],
        )  # fmt: skip
        lengths = self.lengths[slots]
        history = self.tokens[slots] if features.penalised else None
        tokens, logprobs = draw(
            logits, rows, lengths, history=history, filtered=features.filtered, unscaled=self.unscaled
        )
        self.commit(slots, lengths, tokens, logprobs)

    def choice(self, logits: Tensor, slots: Tensor, features: Features) -> Tensor:
        """Scaled logits [n, V] after penalty and filters, as `draw` would choose from before noise."""
        logits = logits.float()
        if features.penalised:
            lengths = self.lengths[slots]
            logits = penalise_repetition(logits, self.tokens[slots], lengths, self.penalty[slots])
        scaled = scale_logits(logits, self.temperature[slots])
        if not features.filtered:
            return scaled
        return filter_logits(scaled, self.top_k[slots], self.top_p[slots], self.min_p[slots])

    def record_top(self, logits: Tensor, slots: Tensor) -> None:
        assert self.top_ids is not None and self.top_scores is not None
        measured = logits.float() if self.unscaled else scale_logits(logits, self.temperature[slots])
        scores, ids = measured.log_softmax(dim=-1).topk(min(TOP_LOGPROBS, measured.shape[-1]), dim=-1)
        at = self.write_position(slots)
        self.top_ids[slots, at, : ids.shape[1]] = ids.int()
        self.top_scores[slots, at, : ids.shape[1]] = scores

    def write_position(self, slots: Tensor) -> Tensor:
        return torch.where(self.finished[slots] == 0, self.lengths[slots], self.max_length)

    def commit(self, slots: Tensor, lengths: Tensor, tokens: Tensor, logprobs: Tensor) -> None:
        """Record drawn tokens [n] of the rows that still run; a row ends at a stop id or at its limit."""
        running = self.finished[slots] == 0
        at = torch.where(running, lengths, self.max_length)
        self.tokens[slots, at] = tokens
        self.logprobs[slots, at] = logprobs
        stop = (tokens[:, None] == self.stop_ids[slots]).any(dim=1) & running
        full = (lengths + 1 >= self.limits[slots]) & running
        self.lengths[slots] = lengths + running
        self.finished[slots] = (~running | stop | full).to(torch.int8)
        self.stopped[slots] = torch.where(running, stop.to(torch.int8), self.stopped[slots])


class Snapshot:
    """A copy of the slots' progress on the host, made without stopping the device."""

    def __init__(self, table: SlotTable, recent: int = 0, top: bool = False) -> None:
        """`recent` > 0 also copies the last tokens and log-probs of every slot (`top`: the most likely ones)."""
        self.recent = recent
        parts = [table.lengths, table.finished, table.stopped]
        if recent:
            at = (table.lengths[:, None] - recent + torch.arange(recent, device=table.device)).clamp(min=0)
            rows = torch.arange(table.slots + 1, device=table.device)[:, None]
            parts += [table.tokens[rows, at], table.logprobs[rows, at]]
            if top and table.top_ids is not None and table.top_scores is not None:
                parts += [table.top_ids[rows, at], table.top_scores[rows, at]]
        self._event: torch.cuda.Event | None = None
        if table.device.type == "cuda":
            self._parts = [
                torch.empty(p.shape, dtype=p.dtype, pin_memory=True).copy_(p, non_blocking=True) for p in parts
            ]
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._parts = [part.clone() for part in parts]

    def wait(self) -> Snapshot:
        if self._event is not None:
            self._event.synchronize()
        self.lengths: list[int] = self._parts[0].tolist()
        self.finished: list[int] = self._parts[1].tolist()
        self.stopped: list[int] = self._parts[2].tolist()
        if self.recent:  # whole lists at once: hundreds of small conversions would cost a server its time
            self._tokens: list[list[int]] = self._parts[3].tolist()
            self._logprobs: list[list[float]] = self._parts[4].tolist()
        return self

    def tokens(self, slot: int, start: int) -> list[int]:
        """Tokens of a slot from position `start` on (at most the last `recent`)."""
        return self._tokens[slot][self._from(slot, start) :]

    def logprobs(self, slot: int, start: int) -> list[float]:
        return self._logprobs[slot][self._from(slot, start) :]

    def top(self, slot: int, start: int, count: int) -> list[list[tuple[int, float]]]:
        """The `count` most likely tokens with their log-probs at each position from `start` on."""
        first = self._from(slot, start)
        ids, scores = self._parts[5][slot, first:, :count], self._parts[6][slot, first:, :count]
        return [list(zip(i, s, strict=True)) for i, s in zip(ids.tolist(), scores.tolist(), strict=True)]

    def _from(self, slot: int, start: int) -> int:
        count = self.lengths[slot] - start
        if count > self.recent:
            raise ValueError(f"slot {slot}: {count} new tokens, but only the last {self.recent} were copied")
        return self.recent - count
