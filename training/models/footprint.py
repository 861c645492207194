"""What training a model takes: bytes of its state, and bytes of a token's activations."""

from __future__ import annotations

from typing import Any

from training.models.blocks import find_blocks

OPTIMIZER_BYTES = 12
"""AdamW's fp32 master and two moments of one trained weight."""


def activation_bytes(model: Any, *, compiled: bool) -> int:
    """About what a token's activations take until the backward pass, from above: outputs of all products in the blocks,
    the norms' inputs and results, and the gated product; as much again where blocks aren't compiled."""
    blocks, _ = find_blocks(model)
    width = model.config.hidden_size
    outputs = [weight.numel() // max(width, 1) for weight in blocks.parameters() if weight.ndim == 2]
    elements = sum(outputs) + len(blocks) * 6 * width
    size: int = next(blocks.parameters()).element_size()
    return elements * size * (1 if compiled else 2)


def recomputed_bytes(model: Any, *, compiled: bool) -> int:
    """The same with full activation checkpointing: the input of each block, and all of one block."""
    blocks, _ = find_blocks(model)
    size: int = next(blocks.parameters()).element_size()
    whole = activation_bytes(model, compiled=compiled)
    return len(blocks) * model.config.hidden_size * size + whole // max(len(blocks), 1)


def state_bytes(weights: int, trained: int, size: int) -> int:
    """Weights of `size` bytes each, and gradients and AdamW's state of those that are trained.

    In fp32 the weights are their own masters.
    """
    optimizer = OPTIMIZER_BYTES if size < 4 else OPTIMIZER_BYTES - 4
    return weights * size + trained * (size + optimizer)
