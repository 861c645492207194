"""AdamW over many tensors in one launch (Triton), which reads gradients where autograd left them.

Beside torch's fused AdamW on widened gradients this moves 30 bytes a bf16 parameter instead of 46: the norm reads the
gradient (2), the update reads it again (2), reads and writes master and moments (24) and writes the weight (2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    AVAILABLE = True
except ImportError:  # a host without a GPU stack
    AVAILABLE = False

BLOCK = 4096
"""Elements of one program."""
ALIGNMENT = 16
"""Bytes of addresses, and elements of pieces, with which loads are as wide as they can be."""
DTYPES = (torch.bfloat16, torch.float16)

if AVAILABLE:

    @triton.jit
    def _place(table, owner, kind: tl.constexpr, block: tl.constexpr, aligned: tl.constexpr):  # type: ignore[no-untyped-def]
        # table [5, pieces]: gradient address, weight address, size, start in the flat buffers, first block
        program = tl.program_id(0)
        piece = tl.load(owner + program)
        pieces = tl.load(owner + tl.num_programs(0))
        gradient = tl.load(table + piece).to(tl.pointer_type(kind))
        weight = tl.load(table + pieces + piece).to(tl.pointer_type(kind))
        size, start = tl.load(table + 2 * pieces + piece), tl.load(table + 3 * pieces + piece)
        inside = (program - tl.load(table + 4 * pieces + piece)) * block
        if aligned:
            gradient, weight = tl.multiple_of(gradient, 16), tl.multiple_of(weight, 16)
            size, start, inside = tl.multiple_of(size, 16), tl.multiple_of(start, 16), tl.multiple_of(inside, 16)
        offsets = inside + tl.arange(0, block)
        return gradient, weight, start, offsets, offsets < size

    @triton.jit
    def _square_sums(table, owner, out, kind: tl.constexpr, block: tl.constexpr, aligned: tl.constexpr):  # type: ignore[no-untyped-def]
        gradient, _, _, offsets, mask = _place(table, owner, kind, block, aligned)
        values = tl.load(gradient + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + tl.program_id(0), tl.sum(values * values))

    @triton.jit
    def _adamw(  # type: ignore[no-untyped-def]
        table, owner, master_ptr, first_ptr, second_ptr, divisor_ptr, not_finite_ptr, corrections_ptr,
        lr, decay, new1, keep2, new2, eps, kind: tl.constexpr, block: tl.constexpr, aligned: tl.constexpr,
    ):  # fmt: skip
        if tl.load(not_finite_ptr) == 0.0:
            gradient_at, weight_at, start, offsets, mask = _place(table, owner, kind, block, aligned)
            flat = start + offsets
            g = tl.load(gradient_at + offsets, mask=mask, other=0.0).to(tl.float32)
            g = g / tl.load(divisor_ptr)
            m = tl.load(first_ptr + flat, mask=mask, other=0.0)
            v = tl.load(second_ptr + flat, mask=mask, other=0.0)
            w = tl.load(master_ptr + flat, mask=mask, other=0.0)
            m = m + new1 * (g - m)
            v = keep2 * v + new2 * g * g
            correction1 = tl.load(corrections_ptr).to(tl.float32)
            correction2 = tl.load(corrections_ptr + 1).to(tl.float32)
            w = w - decay * w
            w = w - (lr / correction1) * m / (tl.sqrt(v) / tl.sqrt(correction2) + eps)
            tl.store(first_ptr + flat, m, mask=mask)
            tl.store(second_ptr + flat, v, mask=mask)
            tl.store(master_ptr + flat, w, mask=mask)
            tl.store(weight_at + offsets, w.to(kind), mask=mask)


class PieceKernels:
    """Norm and AdamW of a row of pieces whose masters and moments lie one after the other in flat fp32 buffers."""

    def __init__(self, sizes: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        blocks = [-(-size // BLOCK) for size in sizes]
        owner = np.repeat(np.arange(len(sizes)), blocks)
        self.blocks = len(owner)
        self.owner = torch.from_numpy(np.append(owner, len(sizes)).astype(np.int32)).to(device)
        starts, first = np.cumsum([0, *sizes[:-1]]), np.cumsum([0, *blocks[:-1]])
        self._fixed = [*sizes, *starts.tolist(), *first.tolist()]
        self._even = all(size % ALIGNMENT == 0 for size in sizes)
        self.dtype, self.device = dtype, device
        self.kind: Any = tl.bfloat16 if dtype == torch.bfloat16 else tl.float16
        self.sums = torch.empty(self.blocks, dtype=torch.float32, device=device)
        self.aligned = False
        self.table: Tensor | None = None

    @staticmethod
    def possible(dtype: torch.dtype, device: torch.device) -> bool:
        return AVAILABLE and device.type == "cuda" and dtype in DTYPES

    def bind(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> bool:
        """Take this step's addresses; False when the tensors aren't laid out as the kernels need them."""
        if any(g.dtype != self.dtype or not g.is_contiguous() for g in gradients):
            return False
        addresses = [*(g.data_ptr() for g in gradients), *(w.data_ptr() for w in weights)]
        self.aligned = self._even and all(address % ALIGNMENT == 0 for address in addresses)
        table = torch.tensor([*addresses, *self._fixed], dtype=torch.int64)
        if self.device.type == "cuda":
            table = table.pin_memory()
        self.table = table.to(self.device, non_blocking=True)
        return True

    def norm(self) -> Tensor:
        """The gradients' 2-norm, an fp32 scalar."""
        _square_sums[(self.blocks,)](
            self.table, self.owner, self.sums, kind=self.kind, block=BLOCK, aligned=self.aligned, num_warps=8
        )
        return self.sums.sum().sqrt()

    def adamw(
        self, master: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, divisor: Tensor, not_finite: Tensor,
        corrections: Tensor, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float,
    ) -> None:  # fmt: skip
        """AdamW on the bound tensors; corrections: [2] float64, 1 − β^step of both moments."""
        _adamw[(self.blocks,)](
            self.table, self.owner, master, exp_avg, exp_avg_sq, divisor, not_finite, corrections,
            float(lr), lr * weight_decay, 1.0 - betas[0], betas[1], 1.0 - betas[1], eps,
            kind=self.kind, block=BLOCK, aligned=self.aligned, num_warps=8,
        )  # fmt: skip
        self.table = None
