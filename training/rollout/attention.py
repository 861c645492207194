"""Attention of a rollout: one new token a row against its cached keys, and whole prompts packed end to end.

Shapes: n rows, t packed tokens, H query heads, G key/value heads, D head size, S cache length. Row r of a batch lives
in slot `cache.slots[r]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from training.rollout import kernels, one_row
from training.rollout.cache import LayerCache


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split layout. x [n, H, D]; cos, sin [n, D/2] -> [n, H, D] in x's dtype.

    Rounds as the trainer's blocks do, whose log-probs are compared with ours: after each operation on a CPU, where they
    are not compiled, and at the end on a GPU. In bf16 that is most of the difference that there would be.
    """
    cos, sin = cos[:, None, :], sin[:, None, :]
    if x.is_cuda:
        first, second = x.float().chunk(2, dim=-1)
    else:
        first, second = x.chunk(2, dim=-1)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: LayerCache,
    *,
    scale: float,
    rotary: tuple[Tensor, Tensor] | None = None,
    slopes: Tensor | None = None,
    live: int | None = None,
    splits: int = 1,
    ahead: Sequence[Tensor] = (),
) -> Tensor:
    """Write the new key and value of each row at its position, then attend to everything up to it.

    q [n, H, D], k and v [n, G, D] before rotation; rotary = (cos, sin) tables [S, D/2] in fp32;
    slopes [H] of ALiBi; `live` bounds the longest row (host knowledge, reference only); `splits` cuts each row's keys
    into that many parallel parts (kernel only); `ahead`: what is read next (a hint). Returns [n, H * D].
    """
    if one_row.attends(q, cache.keys, slopes, splits):
        return one_row.attention(q, k, v, cache, scale=scale, rotary=rotary, ahead=ahead)
    if q.is_cuda and kernels.AVAILABLE:
        return kernels.decode_attention(q, k, v, cache, scale=scale, rotary=rotary, slopes=slopes, splits=splits)
    return decode_attention_reference(q, k, v, cache, scale=scale, rotary=rotary, slopes=slopes, live=live)


def decode_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: LayerCache,
    *,
    scale: float,
    rotary: tuple[Tensor, Tensor] | None = None,
    slopes: Tensor | None = None,
    live: int | None = None,
) -> Tensor:
    """The same in plain PyTorch: what runs on a CPU and what the kernel is checked against."""
    n, heads, size = q.shape
    if rotary is not None:
        cos, sin = rotary[0][cache.positions], rotary[1][cache.positions]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    cache.write(k, v)
    live = cache.keys.shape[2] if live is None else live
    keys, values = cache.keys[cache.slots, :, :live], cache.values[cache.slots, :, :live]
    offsets = torch.arange(live, device=q.device)
    allowed = (offsets[None, :] <= cache.positions[:, None])[:, None, None, :]
    bias = allowed
    if slopes is not None:
        distance = (offsets[None, :] * slopes[:, None]).to(q.dtype)[None, :, None, :]
        bias = distance.masked_fill(~allowed, float("-inf"))
    out = F.scaled_dot_product_attention(
        q[:, :, None], keys, values, attn_mask=bias, scale=scale, enable_gqa=keys.shape[1] != heads
    )
    return out.reshape(n, heads * size)


def rotate_and_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: LayerCache,
    rotary: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Write keys and values of packed tokens to the cache; returns q [t, H, D] and k [t, G, D] rotated.

    rotary as in `decode_attention`.
    """
    if rotary is not None:
        if q.is_cuda and kernels.AVAILABLE:
            return kernels.rotate_and_store(q, k, v, cache, rotary)
        cos, sin = rotary[0][cache.positions], rotary[1][cache.positions]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    cache.write(k, v)
    return q, k


def prefill_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    boundaries: Tensor,
    lengths: tuple[int, ...] | None,
    longest: int,
    *,
    scale: float,
    slopes: Tensor | None = None,
) -> Tensor:
    """Causal attention within each of the packed documents. q [t, H, D], k, v [t, G, D] -> [t, H * D].

    `boundaries` [documents + 1] int32 are cumulative lengths (trailing repeats are empty documents); `lengths` the same
    as host integers, needed wherever flash attention can't run; `longest` bounds a document's length.
    """
    t, heads, size = q.shape
    repeat = heads // k.shape[1]
    if q.is_cuda and slopes is None and q.dtype in (torch.bfloat16, torch.float16) and size % 8 == 0:
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        out = torch.ops.aten._flash_attention_forward(
            q, k, v, boundaries, boundaries, longest, longest, 0.0, True, False, scale=scale
        )[0]
        return out.reshape(t, heads * size)
    if lengths is None:
        raise ValueError("packed attention without flash attention needs the document lengths on the host")
    out = torch.empty_like(q)
    start = 0
    for length in lengths:
        if not length:
            continue
        part = slice(start, start + length)
        bias = None
        if slopes is not None:
            offsets = torch.arange(length, device=q.device)
            bias = (offsets[None, :] * slopes[:, None]).to(q.dtype)[:, None, :].expand(heads, length, length)
            bias = bias.masked_fill(offsets[None, None, :] > offsets[None, :, None], float("-inf"))[None]
        attended = F.scaled_dot_product_attention(
            q[None, part].transpose(1, 2),
            k[None, part].transpose(1, 2),
            v[None, part].transpose(1, 2),
            attn_mask=bias,
            is_causal=slopes is None,
            scale=scale,
            enable_gqa=repeat > 1,
        )
        out[part] = attended[0].transpose(0, 1)
        start += length
    if start < t:
        out[start:] = 0
    return out.reshape(t, heads * size)
