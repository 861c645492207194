"""Causal attention within the documents of a packed row, forward and backward, over lists of the blocks there are.

FlashAttention-2 (Dao 2023, arXiv:2307.08691, algorithms 1 and 2) in Triton. A variable-length kernel's usual grid is
(documents, longest / block, heads): for documents of many lengths most of it is empty. Here a program takes one entry
of a list of (document, block) made once a batch on the device, the ones with most to do first; the list's length is
fixed by the shapes, so that nothing is compiled again and the host waits for nothing. The backward pass needs no
atomic additions, and none of the copies that a kernel makes which expands grouped keys: one kernel takes a block of
queries, another a block of keys with all the query heads that read it.

Notation: t tokens of a packed row, n documents (empty ones included), h query heads, h_kv key heads, e head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    AVAILABLE = True
except ImportError:  # a host without a GPU stack
    AVAILABLE = False

CAPABILITY = (8, 0)
"""The least that the kernels compile for: bf16 products and asynchronous loads."""
LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Tiles:
    """How a kernel is cut: queries and keys of a tile, warps of a program, loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Plan:
    """Tiles of the three kernels, in the order of `document_attention`'s lists."""

    forward: Tiles
    query_gradient: Tiles
    key_gradient: Tiles


PLANS = {
    64: Plan(Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 2), Tiles(32, 64, 4, 3)),
    128: Plan(Tiles(64, 64, 4, 3), Tiles(64, 32, 4, 3), Tiles(32, 64, 4, 3)),
}
"""By head dimension, as measured on an H100 by tests/bench/gpu_attention.py. Shared memory, as compiled: at most 90,112
bytes on Ampere, Ada and sm_120 (which have 101,376 or more), 115,712 on Hopper and sm_100 (232,448)."""

if AVAILABLE:

    @triton.jit
    def _entry(work, count: tl.constexpr):  # type: ignore[no-untyped-def]
        """This program's document [start, start + length), block and number among `count` heads."""
        entry = work + 3 * (tl.program_id(0) // count)
        return tl.load(entry).to(tl.int64), tl.load(entry + 1), tl.load(entry + 2), tl.program_id(0) % count

    @triton.jit
    def _rows(at, rows, length, row: tl.constexpr, size: tl.constexpr, masked: tl.constexpr):  # type: ignore[no-untyped-def]
        """[rows, size] of a [t, ·, size] tensor from `at`, the document's first; zeros behind its end if masked."""
        where = at + rows[:, None] * row + tl.arange(0, size)[None, :]
        return tl.load(where, mask=(rows < length)[:, None], other=0.0) if masked else tl.load(where)

    @triton.jit
    def _attend(  # type: ignore[no-untyped-def]
        acc, total, best, q, k_at, v_at, rows, first, last, length, scale,
        row: tl.constexpr, size: tl.constexpr, keys: tl.constexpr, masked: tl.constexpr,
    ):  # fmt: skip
        for at in range(first, last, keys):
            columns = at + tl.arange(0, keys)
            s = tl.dot(q, tl.trans(_rows(k_at, columns, length, row, size, masked)))
            if masked:
                s = tl.where(rows[:, None] >= columns[None, :], s, float("-inf"))
            new = tl.maximum(best, tl.max(s, 1) * scale)
            p = tl.exp2(s * scale - new[:, None])
            keep = tl.exp2(best - new)
            total = total * keep + tl.sum(p, 1)
            acc = acc * keep[:, None]
            acc = tl.dot(p.to(q.dtype), _rows(v_at, columns, length, row, size, masked), acc)
            best = new
        return acc, total, best

    @triton.jit
    def _attention_forward(  # type: ignore[no-untyped-def]
        q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, work, tokens, scale,
        heads: tl.constexpr, group: tl.constexpr, size: tl.constexpr, queries: tl.constexpr, keys: tl.constexpr,
    ):  # fmt: skip
        start, length, block, head = _entry(work, heads)
        if length == 0:
            return
        wide: tl.constexpr = heads * size
        narrow: tl.constexpr = wide // group
        begin = block * queries
        rows = begin + tl.arange(0, queries)
        q = _rows(q_ptr + start * wide + head * size, rows, length, wide, size, True)
        k_at, v_at = (k_ptr + start * narrow + head // group * size), (v_ptr + start * narrow + head // group * size)
        acc = tl.zeros([queries, size], tl.float32)
        total = tl.zeros([queries], tl.float32)
        best = tl.full([queries], float("-inf"), tl.float32)
        edge = begin // keys * keys  # whole blocks of keys lie before it
        acc, total, best = _attend(
            acc, total, best, q, k_at, v_at, rows, 0, edge, length, scale, narrow, size, keys, False
        )
        acc, total, best = _attend(
            acc, total, best, q, k_at, v_at, rows, edge, tl.minimum(begin + queries, length), length, scale,
            narrow, size, keys, True,
        )  # fmt: skip
        where = out_ptr + start * wide + head * size + rows[:, None] * wide + tl.arange(0, size)[None, :]
        tl.store(where, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=(rows < length)[:, None])
        tl.store(lse_ptr + head * tokens + start + rows, best + tl.log2(total), mask=rows < length)

    @triton.jit
    def _pull_queries(  # type: ignore[no-untyped-def]
        dq, q, dout, lse, delta, k_at, v_at, rows, first, last, length, scale,
        row: tl.constexpr, size: tl.constexpr, keys: tl.constexpr, masked: tl.constexpr,
    ):  # fmt: skip
        for at in range(first, last, keys):
            columns = at + tl.arange(0, keys)
            k = _rows(k_at, columns, length, row, size, masked)
            p = tl.exp2(tl.dot(q, tl.trans(k)) * scale - lse[:, None])
            if masked:
                p = tl.where(rows[:, None] >= columns[None, :], p, 0.0)
            dp = tl.dot(dout, tl.trans(_rows(v_at, columns, length, row, size, masked)))
            dq = tl.dot((p * (dp - delta[:, None])).to(q.dtype), k, dq)
        return dq

    @triton.jit
    def _attention_query_gradient(  # type: ignore[no-untyped-def]
        q_ptr, k_ptr, v_ptr, out_ptr, dout_ptr, lse_ptr, delta_ptr, dq_ptr, work, tokens, scale, natural,
        heads: tl.constexpr, group: tl.constexpr, size: tl.constexpr, queries: tl.constexpr, keys: tl.constexpr,
    ):  # fmt: skip
        """dq, and delta = Σ out · dout of its rows, which the other kernel reads."""
        start, length, block, head = _entry(work, heads)
        if length == 0:
            return
        wide: tl.constexpr = heads * size
        narrow: tl.constexpr = wide // group
        begin = block * queries
        rows = begin + tl.arange(0, queries)
        at = start * wide + head * size
        q = _rows(q_ptr + at, rows, length, wide, size, True)
        dout = _rows(dout_ptr + at, rows, length, wide, size, True)
        out = _rows(out_ptr + at, rows, length, wide, size, True)
        delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)
        tl.store(delta_ptr + head * tokens + start + rows, delta, mask=rows < length)
        lse = tl.load(lse_ptr + head * tokens + start + rows, mask=rows < length, other=float("inf"))
        k_at, v_at = (k_ptr + start * narrow + head // group * size), (v_ptr + start * narrow + head // group * size)
        dq = tl.zeros([queries, size], tl.float32)
        edge = begin // keys * keys
        dq = _pull_queries(dq, q, dout, lse, delta, k_at, v_at, rows, 0, edge, length, scale, narrow, size, keys, False)
        dq = _pull_queries(
            dq, q, dout, lse, delta, k_at, v_at, rows, edge, tl.minimum(begin + queries, length), length, scale,
            narrow, size, keys, True,
        )  # fmt: skip
        where = dq_ptr + at + rows[:, None] * wide + tl.arange(0, size)[None, :]
        tl.store(where, (dq * natural).to(dq_ptr.dtype.element_ty), mask=(rows < length)[:, None])

    @triton.jit
    def _pull_keys(  # type: ignore[no-untyped-def]
        dk, dv, k, v, q_at, dout_at, lse_at, delta_at, columns, first, last, length, tokens, scale,
        wide: tl.constexpr, group: tl.constexpr, size: tl.constexpr, queries: tl.constexpr, masked: tl.constexpr,
    ):  # fmt: skip
        """One loop over blocks of queries and the heads of the group, so that short documents fill the pipeline too."""
        for step in range(0, group * tl.cdiv(last - first, queries)):
            head = step % group
            rows = first + step // group * queries + tl.arange(0, queries)
            q = _rows(q_at + head * size, rows, length, wide, size, True)
            dout = _rows(dout_at + head * size, rows, length, wide, size, True)
            lse = tl.load(lse_at + head * tokens + rows, mask=rows < length, other=float("inf"))  # p = 0 behind the end
            delta = tl.load(delta_at + head * tokens + rows, mask=rows < length, other=0.0)
            p = tl.exp2(tl.dot(k, tl.trans(q)) * scale - lse[None, :])  # [keys, queries]
            if masked:
                p = tl.where(rows[None, :] >= columns[:, None], p, 0.0)
            dv = tl.dot(p.to(q.dtype), dout, dv)
            dp = tl.dot(v, tl.trans(dout))
            dk = tl.dot((p * (dp - delta[None, :])).to(q.dtype), q, dk)
        return dk, dv

    @triton.jit
    def _attention_key_gradient(  # type: ignore[no-untyped-def]
        q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, work, tokens, scale, natural,
        heads: tl.constexpr, group: tl.constexpr, size: tl.constexpr, queries: tl.constexpr, keys: tl.constexpr,
    ):  # fmt: skip
        start, length, block, head = _entry(work, heads // group)
        if length == 0:
            return
        wide: tl.constexpr = heads * size
        narrow: tl.constexpr = wide // group
        begin = block * keys
        columns = begin + tl.arange(0, keys)
        at = start * narrow + head * size
        k = _rows(k_ptr + at, columns, length, narrow, size, True)
        v = _rows(v_ptr + at, columns, length, narrow, size, True)
        q_at, dout_at = q_ptr + start * wide + head * group * size, dout_ptr + start * wide + head * group * size
        lse_at, delta_at = lse_ptr + head * group * tokens + start, delta_ptr + head * group * tokens + start
        dk = tl.zeros([keys, size], tl.float32)
        dv = tl.zeros([keys, size], tl.float32)
        edge = tl.minimum(begin + keys, length)  # from here on every query sees all of these keys
        dk, dv = _pull_keys(
            dk, dv, k, v, q_at, dout_at, lse_at, delta_at, columns, begin, edge, length, tokens, scale,
            wide, group, size, queries, True,
        )  # fmt: skip
        dk, dv = _pull_keys(
            dk, dv, k, v, q_at, dout_at, lse_at, delta_at, columns, edge, length, length, tokens, scale,
            wide, group, size, queries, False,
        )  # fmt: skip
        where = at + columns[:, None] * narrow + tl.arange(0, size)[None, :]
        tl.store(dk_ptr + where, (dk * natural).to(dk_ptr.dtype.element_ty), mask=(columns < length)[:, None])
        tl.store(dv_ptr + where, dv.to(dv_ptr.dtype.element_ty), mask=(columns < length)[:, None])


def list_blocks(bounds: Tensor, tokens: int, block: int, *, of_keys: bool = False) -> Tensor:
    """[tokens // block + n, 3] int32: start and length of a document, number of a block in it; zeros fill the list.

    bounds: int32 [n + 1]. A block of queries reads all keys before it, a block of keys is read by all queries behind
    it: the blocks with most of them come first, so that none of the long ones is begun last.
    """
    starts, lengths = bounds[:-1], bounds.diff()
    blocks = (lengths + block - 1) // block
    ends = blocks.cumsum(0)
    number = torch.arange(tokens // block + len(lengths), device=bounds.device)
    document = torch.searchsorted(ends, number, right=True).clamp(max=len(lengths) - 1)
    inside = number - (ends - blocks)[document]
    real = number < ends[-1]
    work = lengths[document] - inside * block if of_keys else inside
    order = torch.where(real, work, -1).argsort(descending=True)
    entries = torch.stack([starts[document], lengths[document], inside], 1) * real[:, None]
    return entries[order].to(torch.int32)


def run_forward(q: Tensor, k: Tensor, v: Tensor, work: Tensor, scale: float, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """out [t, h, e], and log-sum-exp of the scores to the base of 2, fp32 [h, t]."""
    (tokens, heads, size), kv_heads = q.shape, k.shape[1]
    out, lse = torch.empty_like(q), torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    _attention_forward[(len(work) * heads,)](
        q, k, v, out, lse, work, tokens, scale * LOG2_E, heads=heads, group=heads // kv_heads, size=size,
        queries=tiles.queries, keys=tiles.keys, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out, lse


def run_query_gradient(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, work: Tensor, scale: float, tiles: Tiles
) -> tuple[Tensor, Tensor]:
    """dq [t, h, e], and delta = Σ_e out · dout, fp32 [h, t]."""
    (tokens, heads, size), kv_heads = q.shape, k.shape[1]
    dq, delta = torch.empty_like(q), torch.empty_like(lse)
    _attention_query_gradient[(len(work) * heads,)](
        q, k, v, out, dout, lse, delta, dq, work, tokens, scale * LOG2_E, scale, heads=heads, group=heads // kv_heads,
        size=size, queries=tiles.queries, keys=tiles.keys, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return dq, delta


def run_key_gradient(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, lse: Tensor, delta: Tensor, work: Tensor, scale: float, tiles: Tiles
) -> tuple[Tensor, Tensor]:
    """dk, dv [t, h_kv, e]. `tiles.keys` is a multiple of `tiles.queries`."""
    (tokens, heads, size), kv_heads = q.shape, k.shape[1]
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    _attention_key_gradient[(len(work) * kv_heads,)](
        q, k, v, dout, lse, delta, dk, dv, work, tokens, scale * LOG2_E, scale, heads=heads, group=heads // kv_heads,
        size=size, queries=tiles.queries, keys=tiles.keys, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return dk, dv


def list_work(bounds: Tensor, tokens: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The lists of the three kernels for heads of dimension `size`, made once for all layers."""
    plan = PLANS[size]
    forward = list_blocks(bounds, tokens, plan.forward.queries)
    same = plan.forward.queries == plan.query_gradient.queries
    query = forward if same else list_blocks(bounds, tokens, plan.query_gradient.queries)
    return forward, query, list_blocks(bounds, tokens, plan.key_gradient.keys, of_keys=True)


@torch.library.custom_op("navarch::document_attention", mutates_args=())
def document_attention(
    q: Tensor, k: Tensor, v: Tensor, forward_work: Tensor, query_work: Tensor, key_work: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """q [t, h, e], k and v [t, h_kv, e], contiguous; lists of `list_work` → out [t, h, e], lse [h, t]. scale > 0."""
    with torch.cuda.device_of(q):
        return run_forward(q, k, v, forward_work, scale, PLANS[q.shape[2]].forward)


@document_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, forward_work: Tensor, query_work: Tensor, key_work: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@torch.library.custom_op("navarch::document_attention_backward", mutates_args=())
def document_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    query_work: Tensor, key_work: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    plan, dout = PLANS[q.shape[2]], dout.contiguous()
    with torch.cuda.device_of(q):
        dq, delta = run_query_gradient(q, k, v, out, dout, lse, query_work, scale, plan.query_gradient)
        return dq, *run_key_gradient(q, k, v, dout, lse, delta, key_work, scale, plan.key_gradient)


@document_attention_backward.register_fake
def _(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    query_work: Tensor, key_work: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, _, query_work, key_work, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, query_work, key_work)


def _backward(ctx: Any, dout: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = document_attention_backward(dout, *ctx.saved_tensors, ctx.scale)
    return *gradients, None, None, None, None


document_attention.register_autograd(_backward, setup_context=_keep)
