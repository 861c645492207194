"""Finds a model's parts, whatever the architecture calls them: its trunk and the blocks of that."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.modeling_utils import PreTrainedModel

from training.errors import ConfigError


def find_blocks(model: nn.Module) -> tuple[nn.ModuleList, str]:
    """The repeated blocks and their dotted name (model.layers, transformer.h, …): the longest one-class ModuleList."""
    best: tuple[nn.ModuleList, str] | None = None
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and len({type(child) for child in module}) == 1:
            best = (module, name) if best is None or len(module) > len(best[0]) else best
    if best is None:
        raise ConfigError(
            f"{type(model).__name__} has no list of repeated blocks: this architecture can't be trained here."
        )
    return best


def trunk_of(model: Any) -> Any:
    """The model without its output layer: a causal LM's base model, or the model itself if it has no such layer.

    transformers' own `base_model` is the whole model where an architecture's prefix names nothing (JetMoe, Gemma 3).
    """
    trunk = getattr(model, "base_model", model)
    if trunk is not model or not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
        return trunk
    return getattr(model, trunk_name(model))


def trunk_name(model: PreTrainedModel) -> str:
    """Where a model that has a head keeps its trunk."""
    if hasattr(model, model.base_model_prefix):
        return str(model.base_model_prefix)
    inside = [name for name, child in model.named_children() if isinstance(child, PreTrainedModel)]
    if len(inside) != 1:
        raise ConfigError(f"{type(model).__name__} has no separate trunk: this architecture can't be trained here.")
    return inside[0]


def forget(trunk: nn.Module) -> None:
    """Drop what transformers keeps in modules from one forward to the next, text to text: the recurrent state of
    Griffin models, and the angles that dynamic NTK took from an earlier, longer text."""
    for module in trunk.modules():
        if getattr(module, "recurrent_states", None) is not None:
            module.recurrent_states = None
        if "dynamic" in str(getattr(module, "rope_type", "")) and hasattr(module, "original_inv_freq"):
            module.register_buffer("inv_freq", module.original_inv_freq.to(module.inv_freq.device), persistent=False)
            module.max_seq_len_cached = module.original_max_seq_len
