"""Draws one token a row from logits, with counter-based noise: the same seed and position give the same draw anywhere.

Noise is a hash of (row seed, position, token id), so a request's sample depends neither on the batch that it sits in
nor on the device. Tokens are drawn by the Gumbel trick, argmax(logits / T + g), which needs no host synchronisation
and can live inside a captured graph. Shapes: n rows, V tokens of vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
MINUS_INFINITY = float("-inf")


class SamplingRows(NamedTuple):
    """Sampling options of the rows of a batch, each of shape [n]."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    penalty: Tensor
    seeds: Tensor


def mix(x: Tensor) -> Tensor:
    """32-bit avalanche hash (C. Wellons' lowbias32) on int64 tensors that hold unsigned 32-bit values."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def row_keys(seeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Two 32-bit keys a row from its seed (64 bits) and the position of the token to draw. Shapes [n]."""
    seeds = seeds.long()
    low, high = seeds & _MASK, (seeds >> 32) & _MASK
    first = mix(low ^ mix(positions.long() & _MASK))
    second = mix((high + mix(first ^ 0x5BD1E995)) & _MASK)
    return first, second


def gumbel_noise(seeds: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel noise [n, V] in fp32; resolution 2^-32 in the tail that decides the argmax."""
    first, second = row_keys(seeds, positions)
    ids = torch.arange(vocabulary, device=seeds.device)
    bits = mix((mix(ids[None, :] ^ first[:, None]) + second[:, None]) & _MASK)
    uniform = ((bits.float() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)
    return -torch.log(-torch.log1p(-uniform))


def penalise_repetition(logits: Tensor, history: Tensor, lengths: Tensor, penalty: Tensor) -> Tensor:
    """Divide (or multiply, below zero) the logits of tokens already in a row by its penalty, as CTRL does.

    logits [n, V]; history [n, s] token ids of which the first `lengths` of each row count (at least one).
    """
    live = torch.arange(history.shape[1], device=history.device)[None, :] < lengths[:, None]
    ids = torch.where(live, history, history[:, :1]).long()
    scores = logits.gather(1, ids)
    factor = penalty[:, None].to(scores.dtype)
    return logits.scatter(1, ids, torch.where(scores < 0, scores * factor, scores / factor))


def filter_logits(scaled: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Set all but the top-k, then all but the nucleus of mass top-p, then all below min-p times the highest
    probability, to -inf; at least one token is kept.

    scaled [n, V] are logits over temperature; top_k [n] (0 = off), top_p [n] (1 = off), min_p [n] (0 = off). Equal
    scores at the border are kept together.
    """
    vocabulary = scaled.shape[-1]
    ordered = scaled.sort(dim=-1, descending=True).values
    k = torch.where(top_k > 0, top_k, vocabulary).clamp(max=vocabulary).long()
    border = ordered.gather(1, (k - 1)[:, None])
    ordered = ordered.masked_fill(ordered < border, MINUS_INFINITY)
    mass = ordered.softmax(dim=-1)
    before = mass.cumsum(dim=-1) - mass
    outside = (before >= top_p[:, None]) & (top_p < 1)[:, None]
    outside[:, 0] = False
    border = torch.maximum(border, ordered.masked_fill(outside, float("inf")).amin(dim=-1, keepdim=True))
    border = torch.maximum(border, ordered[:, :1] + min_p[:, None].log())
    return scaled.masked_fill(scaled < border, MINUS_INFINITY)


def scale_logits(logits: Tensor, temperature: Tensor) -> Tensor:
    """fp32 logits over temperature; greedy rows (temperature 0) keep temperature 1."""
    return logits.float() / torch.where(temperature > 0, temperature, 1.0)[:, None]


def draw(
    logits: Tensor,
    rows: SamplingRows,
    positions: Tensor,
    *,
    history: Tensor | None = None,
    filtered: bool = False,
    unscaled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Draw one token a row. logits [n, V], positions [n] -> tokens [n] int64, log-probs [n] fp32.

    The log-prob is that of log_softmax(logits / T), as a trainer recomputes it, or (unscaled) of log_softmax(logits),
    the model's own: both before repetition penalty and filters.
    `history` [n, s] turns the repetition penalty on; its first `positions` entries a row count.
    """
    scaled = scale_logits(logits, rows.temperature)
    choice = scaled
    if history is not None:
        choice = scale_logits(penalise_repetition(logits.float(), history, positions, rows.penalty), rows.temperature)
    if filtered:
        choice = filter_logits(choice, rows.top_k, rows.top_p, rows.min_p)
    noise = gumbel_noise(rows.seeds, positions, logits.shape[-1])
    choice = torch.where((rows.temperature > 0)[:, None], choice + noise, choice)
    tokens = choice.argmax(dim=-1)
    measured = logits.float() if unscaled else scaled
    logprobs = measured.gather(1, tokens[:, None])[:, 0] - measured.logsumexp(dim=-1)
    return tokens, logprobs
