"""Makes blocks fast or small: torch.compile of each block, products computed together, activations recomputed."""

from __future__ import annotations

import types
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from training.models.attention import PACKED, packed_attention
from training.models.blocks import find_blocks

GATED = {"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"}
"""down(act(gate(x)) · up(x)) with three plain linear layers."""
ROTARY = {"LlamaAttention", "MistralAttention", "Qwen2Attention"}
"""The same attention: three linear layers, rotary positions, grouped heads."""


def use_fast_matmul() -> None:
    """TF32 for what is left in fp32 on the GPU, and an allocator that doesn't fragment."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def speed_up_blocks(
    model: nn.Module, *, compiled: bool, checkpointing: str = "off", fuse: bool = False, dropout: bool = False
) -> None:
    """Change how the blocks of `model` run, in place; parameters, their names and the results stay the same."""
    blocks, _ = find_blocks(model)
    if fuse:
        for module in blocks.modules():
            fuse_products(module)
    if checkpointing == "full":
        recompute_all(model, keep_random_state=dropout)
    elif checkpointing == "selective":
        for block in blocks:
            recompute_cheap(block, keep_random_state=dropout)
    if compiled:
        torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
        base = getattr(model, "base_model", model)
        for name in ("norm", "ln_f", "final_layer_norm"):
            if isinstance(getattr(base, name, None), nn.Module):
                getattr(base, name).compile(dynamic=False)
        for block in blocks:
            block.compile(dynamic=False, fullgraph=checkpointing != "selective")


def fuse_products(module: nn.Module) -> bool:
    """Let a gated MLP, or attention's query, key and value, multiply their input once by weights laid side by side.

    The weights stay separate parameters: they are joined at each call, which costs little beside the products. The new
    forward is one function for all blocks, so that torch.compile makes one graph for all of them.
    """
    kind = type(module).__name__
    if kind in GATED and _plain(module, "gate_proj", "up_proj"):
        module.forward = types.MethodType(_gated_forward, module)
        return True
    if kind in ROTARY and _plain(module, "q_proj", "k_proj", "v_proj") and not _windowed(module):
        module.forward = types.MethodType(_rotary_forward, module)
        return True
    return False


def _plain(module: nn.Module, *names: str) -> bool:
    layers = [getattr(module, name, None) for name in names]
    return all(type(layer) is nn.Linear for layer in layers)


def _windowed(attention: Any) -> bool:
    config = attention.config
    return bool(getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True)


def _joined(x: Tensor, *layers: Any) -> tuple[Tensor, ...]:
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers]) if layers[0].bias is not None else None
    return F.linear(x, weight, bias).split([layer.weight.shape[0] for layer in layers], dim=-1)


def _gated_forward(self: Any, x: Tensor) -> Any:
    gate, up = _joined(x, self.gate_proj, self.up_proj)
    return self.down_proj(self.act_fn(gate) * up)


def _rotary_forward(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None,
    past_key_value: Any = None,
    cache_position: Any = None,
    **kwargs: Any,
) -> Any:
    """LLaMA-like attention as in transformers 4.51.3, with one product for query, key and value."""
    if past_key_value is not None or self.config._attn_implementation != PACKED:
        return type(self).forward(
            self, hidden_states, position_embeddings, attention_mask, past_key_value, cache_position, **kwargs
        )
    rows = (*hidden_states.shape[:-1], -1, self.head_dim)
    query, key, value = (
        part.reshape(rows).transpose(1, 2) for part in _joined(hidden_states, self.q_proj, self.k_proj, self.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
    dropout = self.attention_dropout if self.training else 0.0
    out, _ = packed_attention(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
    return self.o_proj(out.reshape(*hidden_states.shape[:-1], -1)), None


_MATMULS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}


def _keep(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = str(operation)
    if operation in _MATMULS or "attn" in name or "attention" in name:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def recompute_all(model: Any, *, keep_random_state: bool) -> None:
    """Keep only each block's input, through transformers' own switch (around the block's call, for sharding)."""
    base = getattr(model, "base_model", model)
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
