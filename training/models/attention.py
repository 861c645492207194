"""Attention within the documents of a packed row, registered in transformers as the implementation "navarch_packed".

On CUDA (bf16, fp16) it is our own kernels (attention_kernels.py) for the head dimensions that they know, and torch's
variable-length flash attention for others and for windows; elsewhere each document goes through SDPA by itself.
Architectures that route attention through transformers' registry and pass keyword arguments down to it (families.py
says which) run packed; the others (BLOOM with its ALiBi, GPT-2, OPT, …) get padded rows and their own attention,
through the same function `packed_hidden`, with the same result.

Notation: t tokens of a packed row, n documents, h heads, e head dimension, d hidden size.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from training.data.batch import PackedBatch
from training.models import attention_kernels
from training.models.blocks import forget, trunk_of
from training.models.compile import uncompiled
from training.models.families import family_of, rotary_limit

PACKED = "navarch_packed"


def packed_hidden(model: PreTrainedModel, batch: PackedBatch, *, pad_id: int = 0) -> Tensor:
    """[t, d] last hidden states (after the final norm) of every token; rows of the pad tail are unspecified but finite.

    `model` is a causal LM or its base model. A token sees its own document up to itself, whatever the architecture.
    """
    base = trunk_of(model)
    limit = rotary_limit(base.config)
    if limit is not None and max(batch.lengths, default=0) > limit:
        return _one_by_one(base, batch, pad_id)
    return _together(base, batch, pad_id, limit)


def _one_by_one(base: PreTrainedModel, batch: PackedBatch, pad_id: int) -> Tensor:
    """Each document in a pass of its own: where its length decides all its angles, no other may be beside it."""
    pieces = []
    with uncompiled(base):
        for tokens, labels in batch.documents():
            pieces.append(_together(base, lone_document(tokens, labels), pad_id, None))
    hidden = torch.cat(pieces)
    return F.pad(hidden, (0, 0, 0, batch.tokens.shape[0] - hidden.shape[0]))


def lone_document(tokens: Tensor, labels: Tensor) -> PackedBatch:
    """A batch of one document, [n] each."""
    length = tokens.shape[0]
    return PackedBatch(
        tokens=tokens, labels=labels, positions=torch.arange(length, device=tokens.device),
        cu_seqlens=torch.tensor([0, length], dtype=torch.int32, device=tokens.device), max_seqlen=length,
        num_targets=length, lengths=(length,), rows=("",),
    )  # fmt: skip


def _together(base: Any, batch: PackedBatch, pad_id: int, limit: int | None) -> Tensor:
    """All documents in one pass; with a `limit`, none of them is longer (and what only fills the row mustn't be)."""
    if family_of(base.config).keeps_state or rotary_limit(base.config) is not None:
        forget(base)
    if getattr(base.config, "_attn_implementation", None) == PACKED:
        tokens, positions, bounds = batch.tokens, batch.positions, batch.cu_seqlens
        if limit is not None:
            positions = positions.clamp(max=limit - 1)
        if not tokens.is_cuda and batch.num_tokens:  # nothing is compiled for a fixed length there: no pad tail
            tokens, positions = tokens[: batch.num_tokens], positions[: batch.num_tokens]
            bounds = bounds[: batch.num_documents + 1]
        hidden: Tensor = base(
            input_ids=tokens[None],
            position_ids=positions[None],
            attention_mask=_no_mask(tokens.device),
            use_cache=False,
            cu_seq_lens_q=bounds,
            max_length_q=batch.max_seqlen,
            document_work=document_work(base.config, bounds, tokens.shape[0]),
        )[0][0]
    else:
        if not batch.lengths:  # a batch of nothing, that keeps ranks in step: one pad token, read by nobody
            batch = replace(batch, lengths=(1,))
        rows = batch.padded(pad_id)
        extra = {}
        if "position_ids" in inspect.signature(base.forward).parameters:
            extra["position_ids"] = rows.position_ids
        states = base(input_ids=rows.input_ids, attention_mask=rows.attention_mask.long(), use_cache=False, **extra)[0]
        hidden = states.flatten(0, 1).index_select(0, _real_positions(batch.lengths, states.shape[1], states.device))
    missing = batch.tokens.shape[0] - hidden.shape[0]
    return F.pad(hidden, (0, 0, 0, missing)) if missing else hidden


def _real_positions(lengths: tuple[int, ...], width: int, device: torch.device) -> Tensor:
    """[sum(lengths)] indices into flattened [n, width] rows of the real tokens, made on the host."""
    spans = [torch.arange(row * width, row * width + length) for row, length in enumerate(lengths)]
    return torch.cat(spans).to(device, non_blocking=True)


Work = tuple[Tensor, Tensor, Tensor]


def document_work(config: Any, bounds: Tensor, tokens: int) -> Work | None:
    """The lists our kernels run over, made once for all layers; None where they don't run."""
    if not bounds.is_cuda or not attention_kernels.AVAILABLE or not _is_able(bounds.device):
        return None
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size not in attention_kernels.PLANS or tokens * config.num_attention_heads * size >= 2**31:  # 32-bit offsets
        return None
    return attention_kernels.list_work(bounds, tokens, size)


@cache
def _is_able(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= attention_kernels.CAPABILITY


@cache
def _no_mask(device: torch.device) -> Tensor:
    """A 4-d mask passes through transformers untouched, so that it builds no dense [t, t] mask; it is never read."""
    return torch.ones(1, 1, 1, 1, device=device)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    document_work: Work | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: q [1, h, t, e], k and v [1, h_kv, t, e] → ([1, t, h, e], None).

    Without document bounds (generation, evaluation of ordinary rows) this is transformers' own SDPA.
    """
    if cu_seq_lens_q is None:
        sdpa: Any = ALL_ATTENTION_FUNCTIONS["sdpa"]
        result: tuple[Tensor, None] = sdpa(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))  # [t, h, e]
    flash = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and dropout == 0.0
    if flash and document_work is not None and not (sliding_window and sliding_window < (max_length_q or 0)):
        scale = q.shape[2] ** -0.5 if scaling is None else scaling
        out = attention_kernels.document_attention(
            q.contiguous(), k.contiguous(), v.contiguous(), *document_work, scale
        )[0]
    elif flash and _varlen is not None and _varlen.can(sliding_window, scaling, q.shape[2]):
        assert max_length_q is not None
        out = _varlen(q, k, v, cu_seq_lens_q, max_length_q, scaling, sliding_window)
    else:
        out = _each_document(q, k, v, cu_seq_lens_q, dropout, scaling, sliding_window)
    return out[None], None


class Varlen:
    """torch's varlen_attn under one signature: 2.10 says is_causal, 2.11 window_size, 2.12 and later enable_gqa too.

    What an installed signature can't express isn't asked of it: `can` says so, and the caller goes another way.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        known = frozenset(inspect.signature(function).parameters)
        self.grouped, self.windowed, self.scaled = "enable_gqa" in known, "window_size" in known, "scale" in known
        self.causal = self.windowed or "is_causal" in known

    def can(self, window: int | None, scale: float | None, size: int) -> bool:
        """Causal attention with this window, this factor on the scores and this head size."""
        usual = scale is None or math.isclose(scale, size**-0.5)
        return self.causal and (self.windowed or not window) and (self.scaled or usual)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, scale: float | None, window: int | None
    ) -> Any:
        options: dict[str, Any] = {}
        if self.scaled:
            options["scale"] = scale
        if self.grouped:
            options["enable_gqa"] = q.shape[1] != k.shape[1]
        if self.windowed:
            options["window_size"] = (window - 1 if window else -1, 0)
        else:
            options["is_causal"] = True
        parts = q.contiguous(), k.contiguous(), v.contiguous()
        return self.function(*parts, bounds, bounds, longest, longest, **options)


def _find_varlen() -> Varlen | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    found = Varlen(varlen_attn)
    return found if found.causal else None


_varlen = _find_varlen()
HAS_VARLEN = _varlen is not None
"""torch 2.10 and later; without it packed attention loops over documents, which can't be compiled."""


def _each_document(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, dropout: float, scale: float | None, window: int | None
) -> Tensor:
    """Causal SDPA over each [start, stop) by itself; [t, h, e]."""
    edges = bounds.tolist()
    grouped = q.shape[1] != k.shape[1]
    pieces = []
    for start, stop in pairwise(edges):
        if start == stop:
            continue
        one_q, one_k, one_v = (each[start:stop].transpose(0, 1)[None] for each in (q, k, v))
        mask = None
        if window and stop - start > window:
            ahead = torch.arange(stop - start, device=q.device)
            distance = ahead[:, None] - ahead[None, :]
            mask = (distance >= 0) & (distance < window)
        out = F.scaled_dot_product_attention(
            one_q,
            one_k,
            one_v,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=grouped,
        )
        pieces.append(out[0].transpose(0, 1))
    return torch.cat(pieces)


ALL_ATTENTION_FUNCTIONS.update({PACKED: packed_attention})


def _of_windows(record: logging.LogRecord) -> bool:
    """Qwen2 in transformers warns of windows whatever its config says and this module does. What a run computes is
    compared with transformers' own forward at its first step anyway."""
    return record.getMessage().startswith("Sliding Window Attention is enabled but not implemented")


for _handler in logging.getLogger("transformers").handlers:
    _handler.addFilter(lambda record: not _of_windows(record))
