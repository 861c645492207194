"""Scores of a reward model: documents of all waiting requests share passes of a bounded number of tokens."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from training.data.batch import IGNORE, PackedBatch
from training.serving.clock import Mark
from training.serving.messages import QueueFull
from training.serving.metrics import Metrics

SCORE_TOKENS = 16384
"""Tokens of one pass."""
Scored = Callable[[list[float]], None]


class ScoreQueue:
    """Requests for scores, in the order of their arrival. `step` makes one pass."""

    def __init__(self, model: Any, device: torch.device, metrics: Metrics, *, max_queue: int) -> None:
        self.model, self.device, self.metrics, self.max_queue = model, device, metrics, max_queue
        self._documents: deque[list[int]] = deque()
        self._requests: deque[tuple[int, Scored, list[float], float]] = deque()  # wanted, tell, scores so far, since

    def submit(self, documents: list[list[int]], scored: Scored) -> None:
        """Raises QueueFull."""
        if len(self._requests) > self.max_queue:
            self.metrics.rejected.inc()
            raise QueueFull
        self._documents += documents
        self._requests.append((len(documents), scored, [], time.monotonic()))

    @property
    def idle(self) -> bool:
        return not self._documents

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting) requests: between two passes all of them wait."""
        return 0, len(self._requests)

    def retry_after(self) -> int:
        return 1

    @torch.no_grad()
    def step(self) -> None:
        """Score the next documents, and answer the requests that are complete."""
        batch: list[list[int]] = []
        total = 0
        while self._documents and (not batch or total + len(self._documents[0]) <= SCORE_TOKENS):
            batch.append(self._documents.popleft())
            total += len(batch[-1])
        begin = Mark(self.device)
        values = self.model.scores(pack_documents(batch).to(self.device))
        end = Mark(self.device)
        scores = values.tolist()
        self.metrics.device_seconds.labels(doing="score").inc(begin.until(end))
        self.metrics.prompt_tokens.inc(total)
        while scores:
            wanted, scored, found, since = self._requests[0]
            take = wanted - len(found)
            found += scores[:take]
            scores = scores[take:]
            if len(found) == wanted:
                self._requests.popleft()
                self.metrics.finished.labels(reason="score").inc()
                self.metrics.seconds.observe(time.monotonic() - since)
                scored(found)
        self.metrics.waiting.set(len(self._requests))


def pack_documents(documents: list[list[int]]) -> PackedBatch:
    """Whole documents one after another, without labels or a pad tail."""
    lengths = tuple(len(tokens) for tokens in documents)
    tokens = torch.tensor([token for tokens in documents for token in tokens])
    return PackedBatch(
        tokens=tokens,
        labels=torch.full_like(tokens, IGNORE),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32),
        max_seqlen=max(lengths),
        num_targets=0,
        lengths=lengths,
        rows=tuple(str(i) for i in range(len(lengths))),
    )
