"""Makes blocks fast or small: torch.compile of each block, activations recomputed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from training.models.blocks import find_blocks, trunk_of


def use_fast_matmul() -> None:
    """TF32 for what is left in fp32 on the GPU, and an allocator that doesn't fragment."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def speed_up_blocks(model: nn.Module, *, compiled: bool, checkpointing: str = "off", dropout: bool = False) -> None:
    """Change how the blocks of `model` run, in place; parameters, their names and the results stay the same."""
    blocks, _ = find_blocks(model)
    if checkpointing == "full":
        recompute_all(model, keep_random_state=dropout)
    elif checkpointing == "selective":
        for block in blocks:
            recompute_cheap(block, keep_random_state=dropout)
    if compiled:
        torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
        base = trunk_of(model)
        for name in ("norm", "ln_f", "final_layer_norm"):
            if isinstance(getattr(base, name, None), nn.Module):
                getattr(base, name).compile(dynamic=False)
        for block in blocks:
            block.compile(dynamic=False, fullgraph=checkpointing != "selective")


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Inside, what `speed_up_blocks` compiled runs plainly: for passes whose shapes won't come again."""
    compiled = [(part, part._compiled_call_impl) for part in model.modules() if part._compiled_call_impl is not None]
    for part, _ in compiled:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, call in compiled:
            part._compiled_call_impl = call


_MATMULS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}


def _keep(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = str(operation)
    if operation in _MATMULS or "attn" in name or "attention" in name:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def recompute_all(model: Any, *, keep_random_state: bool) -> None:
    """Keep only each block's input, through transformers' own switch (around the block's call, for sharding)."""
    base = trunk_of(model)
    function = partial(checkpoint, use_reentrant=False, preserve_rng_state=keep_random_state)
    base._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=function)


def recompute_cheap(block: nn.Module, *, keep_random_state: bool) -> None:
    """Drop a block's activations but matrix products and attention, which cost the most to compute again."""
    forward = block.forward
    options: dict[str, Any] = {
        "use_reentrant": False,
        "preserve_rng_state": keep_random_state,
        "context_fn": partial(create_selective_checkpoint_contexts, _keep),
    }

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, **options, **kwargs)

    block.forward = wrapped  # type: ignore[method-assign]
