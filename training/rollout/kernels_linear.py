"""Triton kernels of matrix products in decoding: one row by dense, int8 or int4 weights, a few rows by int8 or int4.

At one row a step is bound by reading the weights, and by launches: so the kernel also takes in what surrounds the
product (RMSNorm or SwiGLU before it, bias and residual after it). RMSNorm's factor is common to a row, so the sum of
squares is gathered in the same pass and applied at the end.
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
    from training.rollout.linear import Weight

if AVAILABLE:

    @triton.jit
    def _input(x_ptr, up_ptr, norm_ptr, at, inside, NORM: tl.constexpr, SILU: tl.constexpr):
        # The input's elements as the product sees them, and as they are (for the sum of squares).
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        raw = x
        if SILU:
            x = x * tl.sigmoid(x) * tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            x = x * tl.load(norm_ptr + at, mask=inside, other=0.0).to(tl.float32)
        return x, raw

    @triton.jit
    def _gemv(
        x_ptr, up_ptr, norm_ptr, data_ptr, scale_ptr, offset_ptr, bias_ptr, residual_ptr, out_ptr, outputs, inputs,
        row_bytes, eps,
        BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
        NORM: tl.constexpr, SILU: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
        in_row = row < outputs
        squares = 0.0
        if BITS == 4:
            HALF: tl.constexpr = GROUP // 2
            GROUPS: tl.constexpr = BLOCK_IN // GROUP
            groups = inputs // GROUP
            acc4 = tl.zeros([BLOCK_OUT, GROUPS, HALF], tl.float32)
            byte = tl.arange(0, HALF)
            for first in range(0, groups, GROUPS):
                group = first + tl.arange(0, GROUPS)
                in_group = group < groups
                at = row[:, None, None].to(tl.int64) * row_bytes + (group[:, None] * HALF + byte[None, :])[None, :, :]
                mask = in_row[:, None, None] & in_group[None, :, None]
                packed = tl.load(data_ptr + at, mask=mask, other=0)
                scale_at = row[:, None].to(tl.int64) * groups + group[None, :]
                scale_mask = in_row[:, None] & in_group[None, :]
                scale = tl.load(scale_ptr + scale_at, mask=scale_mask, other=0.0).to(tl.float32)
                offset = tl.load(offset_ptr + scale_at, mask=scale_mask, other=0.0).to(tl.float32)
                x_at = group[:, None] * GROUP + byte[None, :]
                inside = in_group[:, None] & (byte < HALF)[None, :]
                low_x, low_raw = _input(x_ptr, up_ptr, norm_ptr, x_at, inside, NORM, SILU)
                high_x, high_raw = _input(x_ptr, up_ptr, norm_ptr, x_at + HALF, inside, NORM, SILU)
                if NORM:
                    squares += tl.sum(low_raw * low_raw + high_raw * high_raw)
                low = (packed & 0xF).to(tl.float32)
                high = (packed >> 4).to(tl.float32)
                acc4 += scale[:, :, None] * (low * low_x[None, :, :] + high * high_x[None, :, :])
                acc4 += offset[:, :, None] * (low_x + high_x)[None, :, :]
            out = tl.sum(tl.sum(acc4, 2), 1)
        else:
            acc = tl.zeros([BLOCK_OUT, BLOCK_IN], tl.float32)
            for first in range(0, inputs, BLOCK_IN):
                column = first + tl.arange(0, BLOCK_IN)
                inside = column < inputs
                at = row[:, None].to(tl.int64) * inputs + column[None, :]
                data = tl.load(data_ptr + at, mask=in_row[:, None] & inside[None, :], other=0)
                x, raw = _input(x_ptr, up_ptr, norm_ptr, column, inside, NORM, SILU)
                if NORM:
                    squares += tl.sum(raw * raw)
                acc += data.to(tl.float32) * x[None, :]
            out = tl.sum(acc, 1)
            if BITS == 8:
                out = out * tl.load(scale_ptr + row, mask=in_row, other=0.0).to(tl.float32)
        if NORM:
            out = out * tl.rsqrt(squares / inputs + eps)
        if BIAS:
            out += tl.load(bias_ptr + row, mask=in_row, other=0.0).to(tl.float32)
        if RESIDUAL:
            out += tl.load(residual_ptr + row, mask=in_row, other=0.0).to(tl.float32)
        tl.store(out_ptr + row, out.to(out_ptr.dtype.element_ty), mask=in_row)

    @triton.jit
    def _quantized_matmul(
        x_ptr, data_ptr, scale_ptr, offset_ptr, bias_ptr, out_ptr, rows, outputs, inputs, row_bytes,
        BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr,
        BLOCK_IN: tl.constexpr, BIAS: tl.constexpr, EXACT: tl.constexpr,
    ):  # fmt: skip
        out_at = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
        in_out = out_at < outputs
        row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        in_row = row < rows
        dtype = x_ptr.dtype.element_ty
        precision: tl.constexpr = "ieee" if EXACT else "tf32"
        acc = tl.zeros([BLOCK_ROWS, BLOCK_OUT], tl.float32)
        if BITS == 4:
            HALF: tl.constexpr = GROUP // 2
            groups = inputs // GROUP
            byte = tl.arange(0, HALF)
            for group in range(0, groups):
                at = out_at[:, None].to(tl.int64) * row_bytes + (group * HALF + byte)[None, :]
                packed = tl.load(data_ptr + at, mask=in_out[:, None], other=0)
                scale = tl.load(scale_ptr + out_at * groups + group, mask=in_out, other=0.0).to(tl.float32)
                offset = tl.load(offset_ptr + out_at * groups + group, mask=in_out, other=0.0).to(tl.float32)
                low = (packed & 0xF).to(tl.float32) * scale[:, None] + offset[:, None]
                high = (packed >> 4).to(tl.float32) * scale[:, None] + offset[:, None]
                x_at = x_ptr + row[:, None].to(tl.int64) * inputs + (group * GROUP + byte)[None, :]
                low_x = tl.load(x_at, mask=in_row[:, None], other=0.0)
                high_x = tl.load(x_at + HALF, mask=in_row[:, None], other=0.0)
                acc += tl.dot(low_x, tl.trans(low.to(dtype)), input_precision=precision)
                acc += tl.dot(high_x, tl.trans(high.to(dtype)), input_precision=precision)
        else:
            for first in range(0, inputs, BLOCK_IN):
                column = first + tl.arange(0, BLOCK_IN)
                inside = column < inputs
                at = out_at[:, None].to(tl.int64) * inputs + column[None, :]
                data = tl.load(data_ptr + at, mask=in_out[:, None] & inside[None, :], other=0)
                x_at = x_ptr + row[:, None].to(tl.int64) * inputs + column[None, :]
                x = tl.load(x_at, mask=in_row[:, None] & inside[None, :], other=0.0)
                acc += tl.dot(x, tl.trans(data.to(dtype)), input_precision=precision)
            acc = acc * tl.load(scale_ptr + out_at, mask=in_out, other=0.0).to(tl.float32)[None, :]
        if BIAS:
            acc += tl.load(bias_ptr + out_at, mask=in_out, other=0.0).to(tl.float32)[None, :]
        at = out_ptr + row[:, None].to(tl.int64) * outputs + out_at[None, :]
        tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=in_row[:, None] & in_out[None, :])


def gemv_tile(bits: int, outputs: int, inputs: int) -> tuple[int, int, int]:
    """(outputs a program, inputs a pass, warps) of the one-row product."""
    return (8 if outputs >= 132 * 64 else 4), (2048 if bits == 4 else 1024), 4


def gemv(
    x: Tensor,
    weight: Weight,
    *,
    norm: tuple[Tensor, float] | None = None,
    up: Tensor | None = None,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    tile: tuple[int, int, int] | None = None,
) -> Tensor:
    """One row times a weight's transpose: f(x) [1, K] @ [N, K]^T (+ bias) (+ residual) -> [1, N].

    f is RMSNorm with `norm` = (weight [K], eps), SwiGLU silu(x) * up with `up` [1, K], or nothing. Sums are fp32.
    """
    inputs, outputs = x.shape[1], weight.outputs
    out = torch.empty((1, outputs), dtype=out_dtype or x.dtype, device=x.device)
    block_out, block_in, warps = tile or gemv_tile(weight.bits, outputs, inputs)
    block_in = max(min(block_in, triton.next_power_of_2(inputs)), weight.group)
    none = x  # a pointer that the kernel does not read
    _gemv[(triton.cdiv(outputs, block_out),)](
        x, none if up is None else up, none if norm is None else norm[0], weight.data,
        none if weight.scale is None else weight.scale, none if weight.offset is None else weight.offset,
        none if weight.bias is None else weight.bias, none if residual is None else residual, out, outputs, inputs,
        inputs // 2, 0.0 if norm is None else norm[1], BITS=weight.bits, GROUP=weight.group or 1, BLOCK_OUT=block_out,
        BLOCK_IN=block_in, NORM=norm is not None, SILU=up is not None, BIAS=weight.bias is not None,
        RESIDUAL=residual is not None, num_warps=warps,
    )  # fmt: skip
    return out


def quantized_matmul(x: Tensor, weight: Weight) -> Tensor:
    """x [n, K] times an int8 or int4 weight's transpose, plus its bias -> [n, N]; for tens of rows."""
    rows, inputs = x.shape
    outputs = weight.outputs
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    block_rows = min(64, max(16, triton.next_power_of_2(rows)))
    block_out = 16 if outputs < 132 * 32 else 64
    none = x
    _quantized_matmul[(triton.cdiv(outputs, block_out), triton.cdiv(rows, block_rows))](
        x.contiguous(), weight.data, weight.scale, none if weight.offset is None else weight.offset,
        none if weight.bias is None else weight.bias, out, rows, outputs, inputs, inputs // 2, BITS=weight.bits,
        GROUP=weight.group or 1, BLOCK_ROWS=block_rows, BLOCK_OUT=block_out, BLOCK_IN=128,
        BIAS=weight.bias is not None, EXACT=x.dtype == torch.float32, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out
