"""Generates completions of a batch of prompts with a trainer's own weights, refilling slots as rows finish."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from training.config.generation import GenerationConfig
from training.rollout.decoder import Decoder
from training.rollout.families import family_of
from training.rollout.memory import plan_cache
from training.rollout.slots import Features, Request

CHECK_EVERY = 16
"""Decode steps between two looks at which rows have finished."""


class Rollout(NamedTuple):
    """Prompts with their completions; b rows in the order of the prompts, s and r the longest total and completion.

    tokens [b, s] int64: prompt then completion, zeros after. prompt_lengths, response_lengths [b] int64 (the stop token
    counts). logprobs [b, r] fp32: log_softmax(logits / T) of each completion token, before any filter; zeros after.
    finished_by_stop [b] bool: ended by a stop id or string, not by length.
    """

    tokens: Tensor
    prompt_lengths: Tensor
    response_lengths: Tensor
    logprobs: Tensor
    finished_by_stop: Tensor

    def response(self, row: int) -> list[int]:
        """Completion tokens of one row."""
        start = int(self.prompt_lengths[row])
        return self.tokens[row, start : start + int(self.response_lengths[row])].tolist()


class RolloutEngine:
    """Batch generation; see `generate`. Model weights are read in place, so an optimizer step is seen at once."""

    def __init__(
        self,
        model: nn.Module,
        *,
        stop_ids: Sequence[int] = (),
        decode: Callable[[list[int]], str] | None = None,
        max_batch: int = 128,
        max_length: int = 1024,
        dtype: torch.dtype | None = None,
        seed: int = 0,
        graphs: bool = True,
        memory_share: float | None = None,
        note: Callable[[str], object] = lambda text: None,
    ) -> None:
        """`max_batch` rows at a time at most; with `memory_share` fewer where the cache would take more than that part
        of the device's free memory, and `note` is told. `dtype` other than the weights' makes a copy in it, refreshed
        before each rollout; `decode` (ids to text) is needed for stop strings only; `graphs=False` runs every step
        eagerly (for comparison)."""
        self.source = model
        self.stop_ids, self.decode = tuple(stop_ids), decode
        self.max_batch, self.max_length, self.graphs = max_batch, max_length, graphs
        self.memory_share, self.note = memory_share, note
        own = next(model.parameters()).dtype
        self.shadow = copy.deepcopy(model).to(dtype).requires_grad_(False) if dtype not in (None, own) else None
        self._decoder: Decoder | None = None
        self._seed, self._drawn = seed, 0

    def state_dict(self) -> dict[str, int]:
        """Where the random stream stands: with it, the next rollout repeats exactly."""
        return {"seed": self._seed, "drawn": self._drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seed, self._drawn = int(state["seed"]), int(state["drawn"])

    def release(self) -> None:
        """Free the cache and the graphs; the next `generate` makes them again."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def decoder(self) -> Decoder:
        """The decoder with up-to-date weights (made at first use)."""
        if self.shadow is not None:
            with torch.no_grad():
                torch._foreach_copy_(list(self.shadow.parameters()), list(self.source.parameters()))
        if self._decoder is None:
            self._fit_cache()
            self._decoder = Decoder(
                self.shadow or self.source, max_batch=self.max_batch, max_length=self.max_length, graphs=self.graphs
            )
        else:
            self._decoder.rebind()
        return self._decoder

    def _fit_cache(self) -> None:
        """Lower `max_batch` to what the device has memory for."""
        if self.memory_share is None:
            return
        model = self.shadow or self.source
        plan = plan_cache(
            family_of(model), next(model.parameters()).device, slots=self.max_batch, max_length=self.max_length,
            share=self.memory_share,
        )  # fmt: skip
        self.max_batch = plan.slots
        self.note(f"rollouts: {plan.sentence}")

    def generate(
        self, prompts: Sequence[Sequence[int]], config: GenerationConfig, *, seeds: Sequence[int] | None = None
    ) -> Rollout:
        """Complete every prompt (token ids). Any number of rows; each depends on its own prompt and seed only.

        Without `seeds` each row takes the next ones of the engine's stream. Raises ValueError for an empty prompt, one
        that leaves no room in max_length, or stop strings without a decoder.
        """
        if not prompts:
            raise ValueError("no prompts were given")
        if config.stop and self.decode is None:
            raise ValueError(
                "stop strings need the engine's `decode` (token ids to text); give it when making the engine"
            )
        if seeds is None:
            seeds = [row_seed(self._seed, self._drawn + row) for row in range(len(prompts))]
            self._drawn += len(prompts)
        decoder = self.decoder()
        with evaluation_mode(decoder.model), torch.autocast(decoder.device.type, enabled=False):
            return _Run(self, decoder, prompts, config, seeds).finish()


class _Run:
    """One call of generate: the queue of prompts, who sits in which slot, and the results so far."""

    def __init__(
        self,
        engine: RolloutEngine,
        decoder: Decoder,
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        seeds: Sequence[int],
    ) -> None:
        self.engine, self.decoder, self.prompts, self.config, self.seeds = engine, decoder, prompts, config, seeds
        self.stop_ids = engine.stop_ids if config.stop_ids is None else config.stop_ids
        # the longest prompts first: what is left at the end is short
        self.waiting = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        self.free = list(range(engine.max_batch))
        self.rows: dict[int, int] = {}  # slot -> row
        self.cut: dict[int, int] = {}  # row -> length at which a stop string ended it
        self.lengths = [0] * len(prompts)
        self.by_stop = [False] * len(prompts)
        device = decoder.device
        longest = max(len(prompt) for prompt in prompts)
        self.width = min(longest + config.max_new_tokens, engine.max_length)
        self.tokens = torch.zeros((len(prompts), self.width), dtype=torch.int64, device=device)
        self.logprobs = torch.zeros((len(prompts), self.width), dtype=torch.float32, device=device)

    def finish(self) -> Rollout:
        features = Features(filtered=self.config.filtered, penalised=self.config.penalised)
        try:
            self.admit()
            while self.rows:
                left = max(self.room(row, slot) for slot, row in self.rows.items())
                self.decoder.steps(list(self.rows), min(CHECK_EVERY, left), features)
                self.harvest()
                self.admit()
        finally:
            self.decoder.forget(list(self.rows))
        return self.result()

    def room(self, row: int, slot: int) -> int:
        limit = min(len(self.prompts[row]) + self.config.max_new_tokens, self.engine.max_length)
        return max(1, limit - self.lengths[row])

    def admit(self) -> None:
        requests = []
        while self.free and self.waiting:
            row, slot = self.waiting.pop(), self.free.pop()
            self.rows[slot] = row
            self.lengths[row] = len(self.prompts[row])
            requests.append(Request(slot, self.prompts[row], self.config, self.stop_ids, self.seeds[row]))
        if requests:
            self.decoder.admit(requests)

    def harvest(self) -> None:
        """Note progress; copy out finished rows and free their slots."""
        strings = self.config.stop
        snapshot = self.decoder.snapshot(CHECK_EVERY if strings else 0).wait()
        done: list[tuple[int, int]] = []
        for slot, row in self.rows.items():
            before, self.lengths[row] = self.lengths[row], snapshot.lengths[slot]
            self.by_stop[row] = bool(snapshot.stopped[slot])
            cut = self.stop_string(row, slot, before) if strings else None
            if cut is not None:
                self.lengths[row], self.by_stop[row] = cut, True
            if cut is not None or snapshot.finished[slot]:
                done.append((slot, row))
        if not done:
            return
        slots = torch.tensor([slot for slot, _ in done], device=self.decoder.device)
        rows = torch.tensor([row for _, row in done], device=self.decoder.device)
        self.tokens[rows] = self.decoder.table.tokens[slots, : self.width]
        self.logprobs[rows] = self.decoder.table.logprobs[slots, : self.width]
        for slot, _ in done:
            del self.rows[slot]
            self.free.append(slot)
        self.decoder.forget([slot for slot, _ in done])

    def stop_string(self, row: int, slot: int, before: int) -> int | None:
        """Length of the row up to the first token that completes a stop string, looking at what is new."""
        start = len(self.prompts[row])
        assert self.engine.decode is not None
        response = self.decoder.table.tokens[slot, start : self.lengths[row]].tolist()
        if not any(text in self.engine.decode(response) for text in self.config.stop):
            return None
        for end in range(max(before - start, 0) + 1, len(response) + 1):
            if any(text in self.engine.decode(response[:end]) for text in self.config.stop):
                return start + end
        return None

    def result(self) -> Rollout:
        device = self.decoder.device
        prompt_lengths = torch.tensor([len(prompt) for prompt in self.prompts], device=device)
        lengths = torch.tensor(self.lengths, device=device)
        response_lengths = lengths - prompt_lengths
        tokens = self.tokens[:, : max(self.lengths)]
        at = torch.arange(tokens.shape[1], device=device)
        tokens = tokens.masked_fill(at[None, :] >= lengths[:, None], 0)
        offsets = torch.arange(
            int(max(r - len(p) for r, p in zip(self.lengths, self.prompts, strict=True))), device=device
        )
        index = (prompt_lengths[:, None] + offsets[None, :]).clamp(max=self.width - 1)
        logprobs = self.logprobs.gather(1, index)
        logprobs = logprobs.masked_fill(offsets[None, :] >= response_lengths[:, None], 0.0)
        return Rollout(tokens, prompt_lengths, response_lengths, logprobs, torch.tensor(self.by_stop, device=device))


def row_seed(seed: int, index: int) -> int:
    """The 64-bit seed of the `index`-th row that a stream draws (splitmix64 of both)."""
    x = (seed * 0xD1342543DE82EF95 + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return (x ^ (x >> 31)) % 2**63


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off within; every module gets its own mode back."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
