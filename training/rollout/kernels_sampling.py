"""Triton kernels that end a decode step: draw a token a row, take its log-prob, and record both in the row's slot.

The same arithmetic as sampling.draw and slots.SlotTable.commit; the vocabulary is cut into chunks for parallelism.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    AVAILABLE = True
except ImportError:
    AVAILABLE = False

if TYPE_CHECKING:
    from training.rollout.slots import SlotTable

CHUNK = 2048

if AVAILABLE:

    @triton.jit
    def _mix(x):
        x = x ^ (x >> 16)
        x = (x * 0x7FEB352D).to(tl.uint32)
        x = x ^ (x >> 15)
        x = (x * 0x846CA68B).to(tl.uint32)
        return x ^ (x >> 16)

    @triton.jit
    def _draw_chunks(
        logits_ptr, choice_ptr, slots_ptr, lengths_ptr, seeds_ptr, temperature_ptr,
        peak_ptr, sum_ptr, best_ptr, token_ptr, score_ptr, vocabulary, chunks,
        CHOICE: tl.constexpr, UNSCALED: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
        slot = tl.load(slots_ptr + row)
        position = tl.load(lengths_ptr + slot).to(tl.uint32)
        seed = tl.load(seeds_ptr + slot)
        temperature = tl.load(temperature_ptr + slot)
        ids = chunk * BLOCK + tl.arange(0, BLOCK)
        inside = ids < vocabulary
        logits = tl.load(logits_ptr + row * vocabulary + ids, mask=inside, other=float("-inf")).to(tl.float32)
        choice = logits / tl.where(temperature > 0, temperature, 1.0)
        measured = choice
        if UNSCALED:
            measured = logits
        peak = tl.max(measured, 0)
        total = tl.sum(tl.exp(measured - peak), 0)
        if CHOICE:
            choice = tl.load(choice_ptr + row * vocabulary + ids, mask=inside, other=float("-inf"))
        if temperature > 0:
            first = _mix((seed & 0xFFFFFFFF).to(tl.uint32) ^ _mix(position))
            second = _mix(((seed >> 32) & 0xFFFFFFFF).to(tl.uint32) + _mix(first ^ 0x5BD1E995))
            bits = _mix(_mix(ids.to(tl.uint32) ^ first) + second)
            uniform = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10
            uniform = tl.minimum(uniform, 0.9999999403953552)
            series = uniform * (1.0 + uniform * (0.5 + uniform * 0.3333333432674408))
            waiting = tl.where(uniform < 0.00390625, series, -tl.log(1.0 - uniform))
            choice = choice - tl.log(waiting)
        choice = tl.where(inside, choice, float("-inf"))
        best = tl.max(choice, 0)
        at = tl.argmax(choice, 0)
        score = tl.sum(tl.where(tl.arange(0, BLOCK) == at, measured, 0.0), 0)
        out = row * chunks + chunk
        tl.store(peak_ptr + out, peak)
        tl.store(sum_ptr + out, total)
        tl.store(best_ptr + out, best)
        tl.store(token_ptr + out, chunk * BLOCK + at)
        tl.store(score_ptr + out, score)

    @triton.jit
    def _commit(
        slots_ptr, lengths_ptr, limits_ptr, finished_ptr, stopped_ptr, stop_ids_ptr, tokens_ptr, logprobs_ptr,
        peak_ptr, sum_ptr, best_ptr, token_ptr, score_ptr, chunks, width, vocabulary,
        STOPS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0)
        slot = tl.load(slots_ptr + row)
        chunk = tl.arange(0, BLOCK_CHUNKS)
        inside = chunk < chunks
        at = row * chunks + chunk
        best = tl.load(best_ptr + at, mask=inside, other=float("-inf"))
        peak = tl.load(peak_ptr + at, mask=inside, other=float("-inf"))
        winner = tl.argmax(best, 0)
        token = tl.load(token_ptr + row * chunks + winner)
        token = tl.minimum(token, vocabulary - 1).to(tl.int64)
        highest = tl.max(peak, 0)
        total = tl.sum(tl.where(inside, tl.load(sum_ptr + at, mask=inside, other=0.0) * tl.exp(peak - highest), 0.0), 0)
        logprob = tl.load(score_ptr + row * chunks + winner) - highest - tl.log(total)
        finished = tl.load(finished_ptr + slot)
        if finished == 0:
            length = tl.load(lengths_ptr + slot)
            tl.store(tokens_ptr + slot * width + length, token)
            tl.store(logprobs_ptr + slot * width + length, logprob)
            stops = tl.load(stop_ids_ptr + slot * STOPS + tl.arange(0, STOPS))
            stop = tl.max((stops == token).to(tl.int32), 0)
            tl.store(lengths_ptr + slot, length + 1)
            full = (length + 1 >= tl.load(limits_ptr + slot)).to(tl.int32)
            tl.store(finished_ptr + slot, ((stop + full) > 0).to(tl.int8))
            tl.store(stopped_ptr + slot, stop.to(tl.int8))


def draw_and_commit(logits: Tensor, choice: Tensor | None, slots: Tensor, table: SlotTable) -> None:
    """Draw from logits [n, V] (or from `choice` [n, V]: scaled, penalised, filtered) and record in the table's slots.

    Padding rows may all name the same slot if that slot is finished.
    """
    n, vocabulary = logits.shape
    chunks = triton.cdiv(vocabulary, CHUNK)
    parts = torch.empty((4, n, chunks), dtype=torch.float32, device=logits.device)
    ids = torch.empty((n, chunks), dtype=torch.int32, device=logits.device)
    _draw_chunks[(n, chunks)](
        logits, logits if choice is None else choice, slots, table.lengths, table.seeds, table.temperature,
        parts[0], parts[1], parts[2], ids, parts[3], vocabulary, chunks,
        CHOICE=choice is not None, UNSCALED=table.unscaled, BLOCK=CHUNK, num_warps=4,
    )  # fmt: skip
    _commit[(n,)](
        slots, table.lengths, table.limits, table.finished, table.stopped, table.stop_ids, table.tokens, table.logprobs,
        parts[0], parts[1], parts[2], ids, parts[3], chunks, table.tokens.shape[1], vocabulary,
        STOPS=table.stop_ids.shape[1], BLOCK_CHUNKS=triton.next_power_of_2(chunks), num_warps=1,
    )  # fmt: skip
