"""A Triton kernel that multiplies some tens of rows by an int8 or int4 weight; linear.py has the formats."""

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
    def _quantized_matmul(
        x_ptr, data_ptr, scale_ptr, offset_ptr, bias_ptr, out_ptr, rows, outputs, inputs, row_words,
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
            groups = inputs // GROUP
            element = tl.arange(0, GROUP)
            shift = ((element % 8) // 2 + (element % 2) * 4) * 4
            for group in range(0, groups):
                column = group * GROUP + element
                word = column // 128 * 16 + column % 32 // 8 * 4 + column % 128 // 32
                at = out_at[:, None].to(tl.int64) * row_words + word[None, :]
                words = tl.load(data_ptr + at, mask=in_out[:, None], other=0)
                scale = tl.load(scale_ptr + out_at * groups + group, mask=in_out, other=0.0).to(tl.float32)
                offset = tl.load(offset_ptr + out_at * groups + group, mask=in_out, other=0.0).to(tl.float32)
                level = ((words >> shift[None, :]) & 0xF).to(tl.float32)
                matrix = (level * scale[:, None] + offset[:, None]).to(dtype)
                x_at = x_ptr + row[:, None].to(tl.int64) * inputs + (group * GROUP + element)[None, :]
                x = tl.load(x_at, mask=in_row[:, None], other=0.0)
                acc += tl.dot(x, tl.trans(matrix), input_precision=precision)
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
        none if weight.bias is None else weight.bias, out, rows, outputs, inputs, weight.data.shape[1],
        BITS=weight.bits, GROUP=weight.group or 1, BLOCK_ROWS=block_rows, BLOCK_OUT=block_out, BLOCK_IN=128,
        BIAS=weight.bias is not None, EXACT=x.dtype == torch.float32, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out
