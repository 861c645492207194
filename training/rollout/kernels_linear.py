"""Triton kernels of matrix products in decoding: one row by dense, int8 or int4 weights, a few rows by int8 or int4.

At one row a step is bound by reading the weights, and by launches: so the kernel also takes in what surrounds the
product (RMSNorm or SwiGLU before it, bias and residual after it). RMSNorm's factor is common to a row, so the sum of
squares is gathered in the same pass and applied at the end.
"""

from __future__ import annotations

from collections.abc import Callable
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
    def _input(
        x_ptr, up_ptr, norm_ptr, at, inside, NORM: tl.constexpr, SILU: tl.constexpr, EVEN: tl.constexpr
    ):  # fmt: skip
        # The input's elements as the product sees them, and as they are (for the sum of squares).
        if EVEN:  # noqa: SIM108
            x = tl.load(x_ptr + at).to(tl.float32)
        else:
            x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        raw = x
        if SILU:
            if EVEN:
                up = tl.load(up_ptr + at).to(tl.float32)
            else:
                up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
            x = x * tl.sigmoid(x) * up
        if NORM:
            if EVEN:
                x = x * tl.load(norm_ptr + at).to(tl.float32)
            else:
                x = x * tl.load(norm_ptr + at, mask=inside, other=0.0).to(tl.float32)
        return x, raw

    @triton.jit
    def _nibble(words, J: tl.constexpr):
        # 16 + nibble J of each word, exactly: the nibble becomes the four highest bits of a float's fraction.
        if J <= 4:  # noqa: SIM108
            bits = words << (19 - 4 * J)
        else:
            bits = words >> (4 * J - 19)
        return ((bits & 0x780000) + 0x41800000).to(tl.float32, bitcast=True)

    @triton.jit
    def _gemv(
        x_ptr, up_ptr, norm_ptr, data_ptr, scale_ptr, offset_ptr, bias_ptr, residual_ptr, out_ptr, outputs, inputs,
        row_words, eps,
        BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, EVEN: tl.constexpr,
        NORM: tl.constexpr, SILU: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
        in_row = row < outputs
        if BITS == 4:
            WORDS: tl.constexpr = GROUP // 8
            GROUPS: tl.constexpr = BLOCK_IN // GROUP
            groups = inputs // GROUP
            acc4 = tl.zeros([BLOCK_OUT, GROUPS, WORDS], tl.float32)
            squares4 = tl.zeros([GROUPS, WORDS], tl.float32)
            word = tl.arange(0, WORDS)
            for first in range(0, groups, GROUPS):
                group = first + tl.arange(0, GROUPS)
                in_group = group < groups
                at = group[:, None] * WORDS + word[None, :]
                data_at = row[:, None, None].to(tl.int64) * row_words + at[None, :, :]
                scale_at = row[:, None].to(tl.int64) * groups + group[None, :]
                mask = in_row[:, None] & in_group[None, :]
                words = tl.load(data_ptr + data_at, mask=mask[:, :, None], other=0)
                scale = tl.load(scale_ptr + scale_at, mask=mask, other=0.0).to(tl.float32)
                offset = tl.load(offset_ptr + scale_at, mask=mask, other=0.0).to(tl.float32) - 16.0 * scale
                inside = in_group[:, None] & (word < WORDS)[None, :]
                part = tl.zeros([BLOCK_OUT, GROUPS, WORDS], tl.float32)
                total = tl.zeros([GROUPS, WORDS], tl.float32)
                for j in tl.static_range(8):
                    x_at = group[:, None] * GROUP + j * WORDS + word[None, :]
                    x, raw = _input(x_ptr, up_ptr, norm_ptr, x_at, inside, NORM, SILU, EVEN)
                    part += _nibble(words, j) * x[None, :, :]
                    total += x
                    if NORM:
                        squares4 += raw * raw
                acc4 += scale[:, :, None] * part + offset[:, :, None] * total[None, :, :]
            out = tl.sum(tl.sum(acc4, 2), 1)
            squares = tl.sum(squares4)
        else:
            acc = tl.zeros([BLOCK_OUT, BLOCK_IN], tl.float32)
            squares1 = tl.zeros([BLOCK_IN], tl.float32)
            for first in range(0, inputs, BLOCK_IN):
                column = first + tl.arange(0, BLOCK_IN)
                inside = column < inputs
                at = row[:, None].to(tl.int64) * inputs + column[None, :]
                if EVEN:
                    data = tl.load(data_ptr + at, mask=in_row[:, None], other=0)
                else:
                    data = tl.load(data_ptr + at, mask=in_row[:, None] & inside[None, :], other=0)
                x, raw = _input(x_ptr, up_ptr, norm_ptr, column, inside, NORM, SILU, EVEN)
                if NORM:
                    squares1 += raw * raw
                acc += data.to(tl.float32) * x[None, :]
            out = tl.sum(acc, 1)
            squares = tl.sum(squares1)
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
            WORDS: tl.constexpr = GROUP // 8
            groups = inputs // GROUP
            # element j * WORDS + w of a group is nibble j of its word w
            element = tl.arange(0, GROUP)
            shift = (element // WORDS) * 4
            for group in range(0, groups):
                at = out_at[:, None].to(tl.int64) * row_words + (group * WORDS + element % WORDS)[None, :]
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


Tile = tuple[int, int, int]
TILES: dict[int, tuple[Tile, ...]] = {
    16: ((4, 1024, 4), (8, 1024, 4), (4, 512, 1), (2, 1024, 1), (4, 1024, 2)),
    8: ((4, 1024, 4), (8, 1024, 4), (4, 512, 1), (8, 512, 1), (16, 512, 2)),
    4: ((4, 1024, 4), (4, 512, 1), (8, 512, 1), (16, 512, 2), (8, 1024, 2)),
}
"""Candidates for the one-row product by bits: outputs a program, inputs a pass, warps."""
_best: dict[tuple[object, ...], Tile] = {}


def gemv_tile(key: tuple[object, ...]) -> Tile:
    """The tile that `tune` found fastest for a product, or one that does well everywhere."""
    return _best.get(key, (4, 1024, 4))


def tune(weights: list[Weight], run: Callable[[Weight, Tile], object], key: tuple[object, ...]) -> Tile:
    """Time `run(weight, tile)` over all weights (a product's matrix in every layer) for each tile; keep the best."""
    if key in _best:
        return _best[key]
    found: list[tuple[float, Tile]] = []
    for tile in TILES[weights[0].bits]:
        try:
            for weight in weights[:1]:
                run(weight, tile)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                for weight in weights:
                    run(weight, tile)
            times = []
            for _ in range(3):
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                graph.replay()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end))
            found.append((min(times), tile))
        except triton.runtime.errors.OutOfResources:
            continue
    if found:
        _best[key] = min(found)[1]
    return gemv_tile(key)


def gemv_key(weight: Weight, inputs: int, norm: bool, gated: bool) -> tuple[object, ...]:
    return (weight.bits, weight.group, weight.outputs, inputs, weight.data.dtype, norm, gated)


def gemv(
    x: Tensor,
    weight: Weight,
    *,
    norm: tuple[Tensor, float] | None = None,
    up: Tensor | None = None,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """One row times a weight's transpose: f(x) [1, K] @ [N, K]^T (+ bias) (+ residual) -> [1, N].

    f is RMSNorm with `norm` = (weight [K], eps), SwiGLU silu(x) * up with `up` [1, K], or nothing. Sums are fp32.
    """
    inputs, outputs = x.shape[1], weight.outputs
    out = torch.empty((1, outputs), dtype=out_dtype or x.dtype, device=x.device)
    block_out, block_in, warps = tile or gemv_tile(gemv_key(weight, inputs, norm is not None, up is not None))
    block_in = max(min(block_in, triton.next_power_of_2(inputs)), weight.group)
    none = x  # a pointer that the kernel does not read
    _gemv[(triton.cdiv(outputs, block_out),)](
        x, none if up is None else up, none if norm is None else norm[0], weight.data,
        none if weight.scale is None else weight.scale, none if weight.offset is None else weight.offset,
        none if weight.bias is None else weight.bias, none if residual is None else residual, out, outputs, inputs,
        inputs // 8, 0.0 if norm is None else norm[1], BITS=weight.bits, GROUP=weight.group or 1, BLOCK_OUT=block_out,
        BLOCK_IN=block_in, EVEN=inputs % block_in == 0,
        NORM=norm is not None, SILU=up is not None, BIAS=weight.bias is not None,
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
        none if weight.bias is None else weight.bias, out, rows, outputs, inputs, inputs // 8, BITS=weight.bits,
        GROUP=weight.group or 1, BLOCK_ROWS=block_rows, BLOCK_OUT=block_out, BLOCK_IN=128,
        BIAS=weight.bias is not None, EXACT=x.dtype == torch.float32, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out
