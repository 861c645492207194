"""Linear layers as the decode step sees them: dense or quantized weights, fused where they lie side by side in memory.

A `Weight` is one matrix product, perhaps of several layers at once (query, key and value; gate and up). Layers whose
parameters are neighbours in one storage are seen as one matrix without any copy: `fuse_projections` moves them there
and leaves every Parameter object, name and value as it was.

Formats, for a matrix [N outputs, K inputs]:
- dense: `data` [N, K] in a floating type;
- int8: `data` [N, K] int8 and `scale` [N, 1]; w = data * scale;
- int4: `data` [N, 16 * ceil(K / 128)] int32 and `scale`, `offset` [N, K / group]; w = nibble * scale + offset. Words
  come in blocks of 16 for 128 inputs, in the order in which tensor cores want them: see `pack_nibbles`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.rollout import kernels_linear, one_row

DOT_ROWS = 256  # above this many rows a quantized product dequantizes its weight and runs a dense one


class Weight(NamedTuple):
    """One matrix of a product; see the module's docstring for the formats."""

    bits: int  # 16 (dense, any floating type), 8 or 4
    data: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None
    offset: Tensor | None = None
    group: int = 0

    @property
    def outputs(self) -> int:
        return self.data.shape[0]

    @property
    def inputs(self) -> int:
        if self.bits == 4:
            assert self.scale is not None
            return self.scale.shape[1] * self.group
        return self.data.shape[1]


class QuantizedLinear(nn.Module):
    """A linear layer with int8 or int4 weights; activations keep their type. Same shapes as nn.Linear."""

    def __init__(self, weight: Weight) -> None:
        super().__init__()
        self.bits, self.group = weight.bits, weight.group
        self.register_buffer("data", weight.data)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("offset", weight.offset)
        self.register_buffer("bias", weight.bias)

    @property
    def in_features(self) -> int:
        return self.as_weight().inputs

    @property
    def out_features(self) -> int:
        return int(self.data.shape[0])

    def as_weight(self) -> Weight:
        return Weight(self.bits, self.data, self.bias, self.scale, self.offset, self.group)

    def forward(self, x: Tensor) -> Tensor:
        return product(x.reshape(-1, x.shape[-1]), self.as_weight()).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, bits={self.bits}, group={self.group}"


def dequantize(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The matrix [N, K] that a quantized weight stands for, computed in fp32 and rounded once."""
    if weight.bits == 16:
        return weight.data.to(dtype)
    assert weight.scale is not None
    if weight.bits == 8:
        return (weight.data.float() * weight.scale.float()).to(dtype)
    assert weight.offset is not None
    rows, groups = weight.scale.shape
    levels = unpack_nibbles(weight.data)[:, : groups * weight.group].reshape(rows, groups, weight.group).float()
    full = levels * weight.scale.float()[..., None] + weight.offset.float()[..., None]
    return full.view(rows, groups * weight.group).to(dtype)


NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Place of each of eight neighbouring inputs in a word: pairs of neighbours lie 16 bits apart."""


def pack_nibbles(levels: Tensor) -> Tensor:
    """[N, K] of 0…15 -> int32 words [N, 16 * ceil(K / 128)], K filled up with zeros.

    Input 32 q + 8 t + e of a block of 128 is nibble NIBBLES[e] of the block's word 4 t + q: each of a quad of lanes
    reads its four words at once, and they are four steps of the tensor cores.
    """
    rows, inputs = levels.shape
    levels = F.pad(levels.to(torch.int32), (0, -inputs % 128)).view(rows, -1, 4, 4, 8)
    words = torch.zeros(levels.shape[:-1], dtype=torch.int32, device=levels.device)
    for place, nibble in enumerate(NIBBLES):
        words |= levels[..., place] << (4 * nibble)
    return words.transpose(2, 3).reshape(rows, -1).contiguous()


def unpack_nibbles(words: Tensor) -> Tensor:
    """The inverse of `pack_nibbles`, with the zeros at the end."""
    rows = words.shape[0]
    shifts = torch.tensor([4 * nibble for nibble in NIBBLES], dtype=torch.int32, device=words.device)
    blocks = words.view(rows, -1, 4, 4).transpose(2, 3)
    return ((blocks[..., None] >> shifts) & 0xF).reshape(rows, -1)


def product(x: Tensor, weight: Weight) -> Tensor:
    """x [n, K] times the weight's transpose, plus its bias -> [n, N] in x's dtype."""
    if weight.bits == 16:
        return F.linear(x, weight.data, weight.bias)
    if one_row.serves(x, weight):
        return one_row.gemv(x, weight)
    if x.is_cuda and kernels_linear.AVAILABLE and x.shape[0] <= DOT_ROWS:
        return kernels_linear.quantized_matmul(x, weight)
    return F.linear(x, dequantize(weight, x.dtype), weight.bias)


def side_by_side(tensors: Sequence[Tensor]) -> Tensor | None:
    """One [ΣN, K] (or [ΣN]) view over tensors that follow each other in one storage, or None where they don't."""
    first = tensors[0]
    if len(tensors) == 1:
        return first if first.is_contiguous() else None
    end = first.data_ptr()
    for tensor in tensors:
        if not tensor.is_contiguous() or tensor.dtype != first.dtype or tensor.shape[1:] != first.shape[1:]:
            return None
        if tensor.untyped_storage().data_ptr() != first.untyped_storage().data_ptr() or tensor.data_ptr() != end:
            return None
        end += tensor.numel() * tensor.element_size()
    rows = sum(tensor.shape[0] for tensor in tensors)
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())


def weight_of(modules: Sequence[nn.Module]) -> Weight | None:
    """The one Weight of plain (or quantized) linear layers that share an input, or None: then call them one by one."""
    if all(type(module) is nn.Linear for module in modules):
        linears = [module for module in modules if isinstance(module, nn.Linear)]
        data = side_by_side([linear.weight for linear in linears])
        if data is None:
            return None
        biases = [linear.bias for linear in linears if linear.bias is not None]
        if not biases:
            return Weight(16, data.detach())
        bias = side_by_side(biases) if len(biases) == len(linears) else None
        return None if bias is None else Weight(16, data.detach(), bias.detach())
    if all(isinstance(module, QuantizedLinear) for module in modules):
        parts = [module.as_weight() for module in modules if isinstance(module, QuantizedLinear)]
        head = parts[0]
        if any(part.bits != head.bits or part.group != head.group for part in parts):
            return None
        joined: list[Tensor | None] = []
        for tensors in zip(*((part.data, part.bias, part.scale, part.offset) for part in parts), strict=True):
            present = [tensor for tensor in tensors if tensor is not None]
            if present and len(present) != len(parts):
                return None
            joined.append(side_by_side(present) if present else None)
            if present and joined[-1] is None:
                return None
        assert joined[0] is not None
        return Weight(head.bits, joined[0], joined[1], joined[2], joined[3], head.group)
    return None


class Projection:
    """One or more linear layers with the same input, applied together where their weights allow it.

    sizes: of the parts of a layer that is several in one, as Phi-3 has them.
    """

    def __init__(self, modules: Sequence[nn.Module], sizes: Sequence[int] | None = None) -> None:
        self.modules = list(modules)
        self.weight = weight_of(self.modules)
        self.sizes = list(sizes or [int(getattr(module, "out_features", 0)) for module in self.modules])

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.weight is not None:
            return product(x, self.weight).split(self.sizes, dim=-1)
        found = tuple(module(x) for module in self.modules)
        return found[0].split(self.sizes, dim=-1) if len(found) < len(self.sizes) else found


def join_storage(tensors: Sequence[Tensor]) -> None:
    """Move tensors into one storage, each a view of its part; their values, identities and shapes stay."""
    if side_by_side(tensors) is not None:
        return
    joined = torch.cat([tensor.detach() for tensor in tensors])
    for tensor, part in zip(tensors, joined.split([tensor.shape[0] for tensor in tensors]), strict=True):
        tensor.data = part


def fuse_linears(modules: Sequence[nn.Module]) -> bool:
    """Let layers with one input share a storage, so that one product serves all. True if they can."""
    if all(type(module) is nn.Linear for module in modules):
        tensors: list[Sequence[Tensor | None]] = [
            [module.weight for module in modules],  # type: ignore[misc]
            [module.bias for module in modules],  # type: ignore[misc]
        ]
    elif all(isinstance(module, QuantizedLinear) for module in modules):
        tensors = [[getattr(module, name) for module in modules] for name in ("data", "bias", "scale", "offset")]
    else:
        return False
    for column in tensors:
        present = [tensor for tensor in column if tensor is not None]
        if present and len(present) == len(modules):
            same = all(t.dtype == present[0].dtype and t.shape[1:] == present[0].shape[1:] for t in present)
            if not same or not all(t.is_contiguous() for t in present):
                return False
            join_storage(present)
        elif present:
            return False
    return True
