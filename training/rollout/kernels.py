"""Triton kernels of the decode step: attention with rotary embedding and cache write, residual + RMSNorm, SwiGLU.

Each has its plain PyTorch counterpart in attention.py or families.py. Without Triton (a CPU host) this module still
imports, with AVAILABLE false.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.rollout.cache import LayerCache

try:
    import triton
    import triton.language as tl

    AVAILABLE = True
except ImportError:  # a host without a GPU stack: everything runs through the PyTorch counterparts
    AVAILABLE = False

if AVAILABLE:

    @triton.jit
    def _attend(
        q_ptr, k_ptr, v_ptr, key_cache, value_cache, slots_ptr, positions_ptr, cos_ptr, sin_ptr, slopes_ptr,
        out_ptr, acc_ptr, max_ptr, sum_ptr, scale,
        q_row, q_head, k_row, k_head, v_row, v_head, cache_slot, cache_head, heads,
        SIZE: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, GROUP: tl.constexpr,
        BLOCK_GROUP: tl.constexpr, BLOCK_KEYS: tl.constexpr, SPLITS: tl.constexpr, ROTARY: tl.constexpr,
        ALIBI: tl.constexpr, EXACT: tl.constexpr,
    ):  # fmt: skip
        # One program: one row, one key/value head with its group of query heads, one split of the row's keys.
        # Head vectors are held as two halves, so that the rotary pairs (i, i + D/2) sit in separate tensors.
        row, group_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        slot = tl.load(slots_ptr + row)
        position = tl.load(positions_ptr + row).to(tl.int32)
        half = tl.arange(0, BLOCK_HALF)
        in_half = half < HALF
        group = tl.arange(0, BLOCK_GROUP)
        in_group = group < GROUP
        head = group_head * GROUP + group
        dtype = key_cache.dtype.element_ty

        q_at = q_ptr + row * q_row + head[:, None] * q_head + half[None, :]
        q_mask = in_group[:, None] & in_half[None, :]
        q1 = tl.load(q_at, mask=q_mask, other=0.0).to(tl.float32)
        q2 = tl.load(q_at + HALF, mask=q_mask, other=0.0).to(tl.float32)
        k_at = k_ptr + row * k_row + group_head * k_head + half
        k1 = tl.load(k_at, mask=in_half, other=0.0).to(tl.float32)
        k2 = tl.load(k_at + HALF, mask=in_half, other=0.0).to(tl.float32)
        v_at = v_ptr + row * v_row + group_head * v_head + half
        v1 = tl.load(v_at, mask=in_half, other=0.0).to(dtype)
        v2 = tl.load(v_at + HALF, mask=in_half, other=0.0).to(dtype)
        if ROTARY:
            cos = tl.load(cos_ptr + position * HALF + half, mask=in_half, other=0.0)
            sin = tl.load(sin_ptr + position * HALF + half, mask=in_half, other=0.0)
            rotated = q1 * cos[None, :] - q2 * sin[None, :]
            q2 = q2 * cos[None, :] + q1 * sin[None, :]
            q1 = rotated
            rotated_k = k1 * cos - k2 * sin
            k2 = k2 * cos + k1 * sin
            k1 = rotated_k
        q1, q2, k1, k2 = q1.to(dtype), q2.to(dtype), k1.to(dtype), k2.to(dtype)

        base = slot.to(tl.int64) * cache_slot + group_head.to(tl.int64) * cache_head
        factor = scale * 1.4426950408889634
        slope = tl.zeros([BLOCK_GROUP], tl.float32)
        if ALIBI:
            slope = tl.load(slopes_ptr + head, mask=in_group, other=0.0) * 1.4426950408889634
        best = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_GROUP], tl.float32)
        acc1 = tl.zeros([BLOCK_GROUP, BLOCK_HALF], tl.float32)
        acc2 = tl.zeros([BLOCK_GROUP, BLOCK_HALF], tl.float32)
        if split == 0:  # the new token: from registers, and into the cache for the steps to come
            tl.store(key_cache + base + position * SIZE + half, k1, mask=in_half)
            tl.store(key_cache + base + position * SIZE + HALF + half, k2, mask=in_half)
            tl.store(value_cache + base + position * SIZE + half, v1, mask=in_half)
            tl.store(value_cache + base + position * SIZE + HALF + half, v2, mask=in_half)
            own = tl.sum(q1.to(tl.float32) * k1.to(tl.float32)[None, :], 1)
            own += tl.sum(q2.to(tl.float32) * k2.to(tl.float32)[None, :], 1)
            best = own * factor + slope * position
            total = total + 1.0
            acc1 = acc1 + v1.to(tl.float32)[None, :]
            acc2 = acc2 + v2.to(tl.float32)[None, :]

        chunk = tl.cdiv(tl.cdiv(position, SPLITS), BLOCK_KEYS) * BLOCK_KEYS
        start = split * chunk
        end = tl.minimum(start + chunk, position)
        for first in range(start, end, BLOCK_KEYS):
            keys = first + tl.arange(0, BLOCK_KEYS)
            in_keys = keys < end
            at = base + keys[:, None] * SIZE + half[None, :]
            mask = in_keys[:, None] & in_half[None, :]
            tile1 = tl.load(key_cache + at, mask=mask, other=0.0)
            tile2 = tl.load(key_cache + at + HALF, mask=mask, other=0.0)
            if EXACT:
                scores = tl.dot(q1, tl.trans(tile1), input_precision="ieee")
                scores += tl.dot(q2, tl.trans(tile2), input_precision="ieee")
            else:
                scores = tl.dot(q1, tl.trans(tile1))
                scores += tl.dot(q2, tl.trans(tile2))
            scores = scores * factor
            if ALIBI:
                scores += slope[:, None] * keys[None, :]
            scores = tl.where(in_keys[None, :], scores, float("-inf"))
            higher = tl.maximum(best, tl.max(scores, 1))
            shrink = tl.exp2(best - higher)
            weights = tl.exp2(scores - higher[:, None])
            total = total * shrink + tl.sum(weights, 1)
            value1 = tl.load(value_cache + at, mask=mask, other=0.0)
            value2 = tl.load(value_cache + at + HALF, mask=mask, other=0.0)
            if EXACT:
                acc1 = acc1 * shrink[:, None] + tl.dot(weights.to(dtype), value1, input_precision="ieee")
                acc2 = acc2 * shrink[:, None] + tl.dot(weights.to(dtype), value2, input_precision="ieee")
            else:
                acc1 = acc1 * shrink[:, None] + tl.dot(weights.to(dtype), value1)
                acc2 = acc2 * shrink[:, None] + tl.dot(weights.to(dtype), value2)
            best = higher

        if SPLITS == 1:
            out_at = out_ptr + (row * heads + head[:, None]) * SIZE + half[None, :]
            tl.store(out_at, (acc1 / total[:, None]).to(out_ptr.dtype.element_ty), mask=q_mask)
            tl.store(out_at + HALF, (acc2 / total[:, None]).to(out_ptr.dtype.element_ty), mask=q_mask)
        else:
            part = (row * heads + head) * SPLITS + split
            tl.store(max_ptr + part, best, mask=in_group)
            tl.store(sum_ptr + part, total, mask=in_group)
            tl.store(acc_ptr + part[:, None] * SIZE + half[None, :], acc1, mask=q_mask)
            tl.store(acc_ptr + part[:, None] * SIZE + HALF + half[None, :], acc2, mask=q_mask)

    @triton.jit
    def _combine(
        out_ptr, acc_ptr, max_ptr, sum_ptr,
        SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, SPLITS: tl.constexpr,
    ):  # fmt: skip
        # One program: one query head of one row; joins the softmax parts of its splits (the first is never empty).
        head = tl.program_id(0)
        size = tl.arange(0, BLOCK_SIZE)
        split = tl.arange(0, SPLITS)
        best = tl.load(max_ptr + head * SPLITS + split)
        weight = tl.exp2(best - tl.max(best, 0))
        total = tl.sum(tl.load(sum_ptr + head * SPLITS + split) * weight, 0)
        at = acc_ptr + (head * SPLITS + split[:, None]) * SIZE + size[None, :]
        parts = tl.load(at, mask=(size < SIZE)[None, :], other=0.0)
        out = tl.sum(parts * weight[:, None], 0) / total
        tl.store(out_ptr + head * SIZE + size, out.to(out_ptr.dtype.element_ty), mask=size < SIZE)

    @triton.jit
    def _rotate_and_store(
        q_ptr, k_ptr, v_ptr, q_out, k_out, key_cache, value_cache, slots_ptr, positions_ptr, cos_ptr, sin_ptr,
        q_row, q_head, k_row, k_head, v_row, v_head, cache_slot, cache_head, heads, kv_heads,
        SIZE: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr,
    ):  # fmt: skip
        # One program: one token; loops over its heads. Keys and values also go to the cache.
        token = tl.program_id(0).to(tl.int64)
        slot, position = tl.load(slots_ptr + token), tl.load(positions_ptr + token)
        half = tl.arange(0, BLOCK_HALF)
        inside = half < HALF
        cos = tl.load(cos_ptr + position * HALF + half, mask=inside, other=0.0)
        sin = tl.load(sin_ptr + position * HALF + half, mask=inside, other=0.0)
        dtype = q_out.dtype.element_ty
        for head in range(heads):
            at = q_ptr + token * q_row + head * q_head + half
            x1 = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            x2 = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
            out = q_out + (token * heads + head) * SIZE + half
            tl.store(out, (x1 * cos - x2 * sin).to(dtype), mask=inside)
            tl.store(out + HALF, (x2 * cos + x1 * sin).to(dtype), mask=inside)
        for head in range(kv_heads):
            at = k_ptr + token * k_row + head * k_head + half
            x1 = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            x2 = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
            k1 = (x1 * cos - x2 * sin).to(dtype)
            k2 = (x2 * cos + x1 * sin).to(dtype)
            out = k_out + (token * kv_heads + head) * SIZE + half
            tl.store(out, k1, mask=inside)
            tl.store(out + HALF, k2, mask=inside)
            cached = slot * cache_slot + head * cache_head + position * SIZE + half
            tl.store(key_cache + cached, k1, mask=inside)
            tl.store(key_cache + cached + HALF, k2, mask=inside)
            value = v_ptr + token * v_row + head * v_head + half
            v1 = tl.load(value, mask=inside, other=0.0)
            v2 = tl.load(value + HALF, mask=inside, other=0.0)
            tl.store(value_cache + cached, v1, mask=inside)
            tl.store(value_cache + cached + HALF, v2, mask=inside)

    @triton.jit
    def _add_rms_norm(
        x_ptr, delta_ptr, weight_ptr, sum_ptr, out_ptr, size, eps, HAS_DELTA: tl.constexpr, BLOCK: tl.constexpr
    ):
        row = tl.program_id(0).to(tl.int64)
        at = tl.arange(0, BLOCK)
        inside = at < size
        x = tl.load(x_ptr + row * size + at, mask=inside, other=0.0)
        if HAS_DELTA:
            x = (x.to(tl.float32) + tl.load(delta_ptr + row * size + at, mask=inside, other=0.0).to(tl.float32)).to(
                x.dtype
            )
            tl.store(sum_ptr + row * size + at, x, mask=inside)
        wide = x.to(tl.float32)
        wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / size + eps)
        weight = tl.load(weight_ptr + at, mask=inside, other=0.0)
        out = wide.to(x.dtype).to(tl.float32) * weight.to(tl.float32)
        tl.store(out_ptr + row * size + at, out.to(x.dtype), mask=inside)

    @triton.jit
    def _silu_mul(gate_ptr, up_ptr, out_ptr, gate_row, up_row, size, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = at < size
        gate = tl.load(gate_ptr + row * gate_row + at, mask=inside, other=0.0)
        up = tl.load(up_ptr + row * up_row + at, mask=inside, other=0.0)
        wide = gate.to(tl.float32)
        activated = (wide * tl.sigmoid(wide)).to(gate.dtype).to(tl.float32)
        tl.store(out_ptr + row * size + at, (activated * up.to(tl.float32)).to(gate.dtype), mask=inside)


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: LayerCache,
    *,
    scale: float,
    rotary: tuple[Tensor, Tensor] | None,
    slopes: Tensor | None,
    splits: int,
) -> Tensor:
    """See attention.decode_attention. `splits` is a power of two; D is even."""
    n, heads, size = q.shape
    kv_heads, half = k.shape[1], size // 2
    group = heads // kv_heads
    out = torch.empty((n, heads * size), dtype=q.dtype, device=q.device)
    if splits > 1:
        acc = torch.empty((n * heads * splits, size), dtype=torch.float32, device=q.device)
        best = torch.empty((2, n * heads * splits), dtype=torch.float32, device=q.device)
    else:
        acc, best = out, (out, out)
    cos, sin = rotary if rotary is not None else (out, out)
    _attend[(n, kv_heads, splits)](
        q, k, v, *cache, cos, sin, slopes if slopes is not None else out,
        out, acc, best[0], best[1], scale,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        cache.keys.stride(0), cache.keys.stride(1), heads,
        SIZE=size, HALF=half, BLOCK_HALF=max(16, triton.next_power_of_2(half)), GROUP=group,
        BLOCK_GROUP=max(16, triton.next_power_of_2(group)), BLOCK_KEYS=64 if size <= 128 else 32, SPLITS=splits,
        ROTARY=rotary is not None, ALIBI=slopes is not None, EXACT=q.dtype == torch.float32, num_warps=4, num_stages=2,
    )  # fmt: skip
    if splits > 1:
        _combine[(n * heads,)](
            out, acc, best[0], best[1], SIZE=size, BLOCK_SIZE=triton.next_power_of_2(size), SPLITS=splits, num_warps=2
        )
    return out


def rotate_and_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: LayerCache,
    rotary: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Rotate q [t, H, D] and k [t, G, D] of packed tokens, and write k and v [t, G, D] to the cache; see attention."""
    t, heads, size = q.shape
    q_out = torch.empty((t, heads, size), dtype=q.dtype, device=q.device)
    k_out = torch.empty((t, k.shape[1], size), dtype=k.dtype, device=k.device)
    half = size // 2
    _rotate_and_store[(t,)](
        q, k, v, q_out, k_out, *cache, rotary[0], rotary[1],
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        cache.keys.stride(0), cache.keys.stride(1), heads, k.shape[1],
        SIZE=size, HALF=half, BLOCK_HALF=triton.next_power_of_2(half), num_warps=1,
    )  # fmt: skip
    return q_out, k_out


def add_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + delta, rms_norm(x + delta) * weight) for x, delta [n, d]; without delta the first is x itself."""
    n, size = x.shape
    out = torch.empty_like(x)
    total = x if delta is None else torch.empty_like(x)
    block = triton.next_power_of_2(size)
    _add_rms_norm[(n,)](
        x, x if delta is None else delta, weight, total, out, size, eps,
        HAS_DELTA=delta is not None, BLOCK=block, num_warps=max(1, min(8, block // 256)),
    )  # fmt: skip
    return total, out


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up for [n, d] tensors that may be columns of a wider one."""
    n, size = gate.shape
    out = torch.empty((n, size), dtype=gate.dtype, device=gate.device)
    block = 1024
    _silu_mul[(n, triton.cdiv(size, block))](
        gate, up, out, gate.stride(0), up.stride(0), size, BLOCK=block, num_warps=4
    )
    return out
